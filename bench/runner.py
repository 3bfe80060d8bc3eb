"""Runs a case on every engine: check the results, then time them in turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bench.case import Array, Case
from bench.limits import Work
from bench.peers import ENGINES, EngineError, Worker
from bench.timing import Effort, Timing, measure


@dataclass(frozen=True)
class EngineResult:
    """`timing` is there when `problem` is not. `error`: the largest difference from the reference,
    None when there was nothing to compare with."""

    timing: Timing | None = None
    error: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class CaseResult:
    bench: str
    name: str
    work: Work
    engines: Mapping[str, EngineResult] = field(default_factory=dict)
    group: str = ""
    units: int = 0

    def median(self, engine: str) -> float | None:
        result = self.engines.get(engine)
        return result.timing.median if result and result.timing else None

    def best_peer(self) -> tuple[str, float] | None:
        """The fastest engine that is not ours, and its median."""
        peers = [
            (engine, median)
            for engine in self.engines
            if ENGINES[engine].is_peer and (median := self.median(engine)) is not None
        ]
        return min(peers, key=lambda peer: peer[1], default=None)

    def speedup(self) -> float | None:
        """How many times the best peer's speed softgate has."""
        ours, peer = self.median("softgate"), self.best_peer()
        return peer[1] / ours if ours and peer else None

    def over_float32(self, engine: str) -> float | None:
        """How many times the speed of softgate in float32 another of our engines has."""
        ours, float32 = self.median(engine), self.median("softgate")
        return float32 / ours if ours and float32 else None


def run_case(bench: str, case: Case, workers: Mapping[str, Worker], effort: Effort) -> CaseResult:
    """Prepare, check and time one case on those of its engines that have a worker.

    An engine that fails, or whose answer is wrong, is not timed, and its result says why.
    """
    results: dict[str, EngineResult] = {}
    answers: dict[str, Array] = {}
    for engine in case.engines:
        if engine in workers:
            try:
                answers[engine] = workers[engine].prepare(bench, case.name)
            except EngineError as error:
                results[engine] = EngineResult(problem=f"failed: {error}")

    reference = case.reference(case.inputs())
    if reference is None:
        reference = answers.get(case.oracle)
    errors = {engine: difference(answer, reference) for engine, answer in answers.items()}
    right = {
        engine: error
        for engine, error in errors.items()
        if error is None or error <= case.tolerance_of(engine)  # NaN is not
    }
    for engine in errors.keys() - right.keys():
        allowed = case.tolerance_of(engine)
        problem = f"wrong: off by {errors[engine]:.1e}, at most {allowed:.0e} expected"
        results[engine] = EngineResult(error=errors[engine], problem=problem)

    timings = measure({engine: workers[engine].sample for engine in right}, effort)
    for engine, timing in timings.items():
        results[engine] = EngineResult(timing, right[engine])
    ordered = {engine: results[engine] for engine in case.engines if engine in results}
    return CaseResult(bench, case.name, case.work, ordered, case.group, case.units)


def difference(answer: Array, reference: Array | None) -> float | None:
    """Largest absolute difference; infinite between shapes that differ."""
    if reference is None:
        return None
    if answer.shape != reference.shape:
        return float("inf")
    return float(np.abs(answer - reference).max())
