"""How near MiniLM with weights in 8 bits comes to its float32, engine by engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.bench_bert import Int8Bert
from bench.case import Array, Inputs
from bench.exports import sentence_ids


@dataclass(frozen=True)
class Sentences(Int8Bert):
    """Real sentences, in one batch."""

    def inputs(self) -> Inputs:
        return {"ids": sentence_ids()}


def case() -> Sentences:
    lengths = tuple(map(len, sentence_ids()))
    return Sentences("minilm", f"{len(lengths)} sentences", lengths)


def cosines(case: Int8Bert, engine: str, expected: Array) -> Array:
    """Of each sentence's mean vector in 8 bits and in float32, which is expected."""
    call = getattr(case, engine)(case.inputs())
    found: Array = np.sum(expected * call.result(call.run()), axis=1)
    return found


def line(label: str, cosines: Array) -> str:
    return f"  {label:<20}mean {cosines.mean():.5f}, lowest {cosines.min():.5f}"
