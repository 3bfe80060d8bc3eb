"""Where an encoder layer's time goes: each of its kernels by itself, at a model's batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.bench_bert import INTERMEDIATE_FACTOR, SIZES, Bert
from bench.case import normal
from bench.limits import Limits, Work
from bench.timing import Effort, Timing, measure, time_calls

HEADS = 12


@dataclass(frozen=True)
class Step:
    """One kernel call of a layer."""

    name: str
    run: Callable[[], object]
    work: Work


def layer_steps(case: Bert) -> list[Step]:
    """The calls of one layer of the case's model, on random values."""
    from softgate import Tensor, ops

    hidden = SIZES[case.model].hidden
    tokens = sum(case.lengths)
    x = Tensor(normal(tokens, hidden))
    offsets = Tensor(np.cumsum([0, *case.lengths], dtype=np.int32))

    def linear(name: str, inner: int, outer: int, activation: ops.Activation = "none") -> Step:
        values = x if inner == hidden else Tensor(normal(tokens, inner))
        weight = ops.pack(normal(outer, inner) / np.float32(inner**0.5))
        bias = Tensor(normal(outer))
        moved = 4 * (tokens * (inner + outer) + inner * outer)
        return Step(
            name,
            partial(ops.linear, values, weight, bias, activation=activation),
            Work(2 * tokens * inner * outer, moved, "read"),
        )

    def add_norm(name: str) -> Step:
        weight, bias = Tensor(normal(hidden)), Tensor(normal(hidden))
        out = Tensor.empty((tokens, hidden))
        return Step(
            name,
            partial(ops.add_layer_norm, x, x, weight, bias, out=out),
            Work(8 * tokens * hidden, 4 * 3 * tokens * hidden),
        )

    qkv = Tensor(normal(tokens, 3 * hidden)).reshape((tokens, 3, HEADS, hidden // HEADS))
    attention = Step(
        "attention",
        partial(ops.attention, qkv[:, 0], qkv[:, 1], qkv[:, 2], offsets),
        Work(4 * sum(n**2 for n in case.lengths) * hidden, 4 * 4 * tokens * hidden),
    )
    return [
        linear("qkv", hidden, 3 * hidden),
        attention,
        linear("attention output", hidden, hidden),
        add_norm("attention norm"),
        linear("feed-forward up, gelu", hidden, INTERMEDIATE_FACTOR * hidden, "gelu"),
        linear("feed-forward down", INTERMEDIATE_FACTOR * hidden, hidden),
        add_norm("feed-forward norm"),
    ]


def time_steps(steps: list[Step], effort: Effort) -> dict[str, Timing]:
    return measure({step.name: partial(time_calls, step.run) for step in steps}, effort)


def lines(steps: list[Step], timings: dict[str, Timing], limits: Limits) -> list[str]:
    """A line a kernel: milliseconds, share of the layer, share of the hardware's limit."""
    total = sum(timings[step.name].median for step in steps)
    table = [
        f"  {step.name:<24}{timings[step.name].median * 1e3:>9.3f} ms"
        f"{timings[step.name].median / total:>6.0%}"
        f"{limits.seconds(step.work) / timings[step.name].median:>6.0%} of limit"
        for step in steps
    ]
    return [*table, f"  {'one layer':<24}{total * 1e3:>9.3f} ms"]
