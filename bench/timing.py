"""Sampling: engines take turns in rounds, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep

# A sample shorter than this is mostly clock and scheduler.
MIN_SAMPLE_SECONDS = 20e-3
WARM_UP_SECONDS = 0.1
MAX_ROUNDS = 20
# Threads of the engine before spin on for a while after its turn: OpenMP's for 0.2 s.
SETTLE_SECONDS = 0.25

# Given a number of calls, makes them and returns the seconds they took together.
Sampler = Callable[[int], float]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one entry per sample.

    The median stands for the engine: on a shared machine the mean follows the worst neighbour and
    the minimum the luckiest moment.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return quantile(self.seconds, 0.5)

    @property
    def spread(self) -> tuple[float, float]:
        """10th and 90th percentile."""
        return quantile(self.seconds, 0.1), quantile(self.seconds, 0.9)


@dataclass(frozen=True)
class Effort:
    """How long to sample one case, all engines together, and how often at least."""

    seconds: float = 10.0
    min_rounds: int = 7

    @classmethod
    def quick(cls) -> Effort:
        return cls(seconds=0.5, min_rounds=3)


def quantile(values: Sequence[float], fraction: float) -> float:
    """Linear interpolation between the order statistics (Hyndman & Fan 1996, type 7)."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def time_calls(
    run: Callable[[], object], calls: int, clock: Callable[[], float] = perf_counter
) -> float:
    """Seconds that `calls` calls take, after an untimed one: another engine had the caches."""
    run()
    start = clock()
    for _ in range(calls):
        run()
    return clock() - start


def calls_per_sample(sampler: Sampler) -> int:
    """Warm the engine up, then choose how many calls make a sample long enough to trust."""
    elapsed = sampler(1)
    best = elapsed
    while elapsed < WARM_UP_SECONDS:
        calls = max(1, math.ceil(MIN_SAMPLE_SECONDS / max(best, 1e-9)))
        taken = sampler(calls)
        best = min(best, taken / calls)
        elapsed += max(taken, 1e-9)
    return max(1, math.ceil(MIN_SAMPLE_SECONDS / max(best, 1e-9)))


def measure(
    samplers: Mapping[str, Sampler],
    effort: Effort,
    settle: Callable[[], None] = lambda: sleep(SETTLE_SECONDS),
) -> dict[str, Timing]:
    """Time every engine: in each round one sample of each, the round's first one rotating."""
    calls = {name: calls_per_sample(sampler) for name, sampler in samplers.items()}
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    names = list(samplers)
    spent = 0.0
    for round_index in range(MAX_ROUNDS):
        if round_index >= effort.min_rounds and spent >= effort.seconds:
            break
        first = round_index % max(1, len(names))
        for name in names[first:] + names[:first]:
            settle()
            taken = samplers[name](calls[name])
            samples[name].append(taken / calls[name])
            spent += taken
    return {name: Timing(tuple(values)) for name, values in samples.items()}
