"""`sample` and what goes with it: penalties, soft caps, log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import HUGE, LENGTHS, TINY, Case, offsets


@dataclass(frozen=True)
class SampleCase(Case):
    batch: int
    vocab: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    layout: str = "contiguous"
    size: float = 3.0
    mean: float = 0.0
    minus_inf: bool = False  # half of the logits
    random: float | None = None  # drawn unless given

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = super().random()
        x = random.standard_normal((self.batch, self.vocab)) * self.size + self.mean
        if self.minus_inf:
            x[:, ::2][:, : self.vocab // 2] = -np.inf
        draws = random.random(self.batch) if self.random is None else [self.random] * self.batch
        return {
            "logits": place(x.astype(dtype), self.layout),
            "random": place(np.asarray(draws, dtype), self.layout),
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
        }


SAMPLE = [
    *(SampleCase(20, n) for n in (*LENGTHS, 127, 128, 129, 255, 256, 257, 1000)),
    *(SampleCase(batch, 40, top_p=0.9) for batch in (0, 1, 2, 3, 100)),
    *(
        SampleCase(20, n, temperature, top_k, top_p, min_p)
        for n in (9, 300, 5000)
        for temperature in (0.0, 0.3, 1.0, 1.7)
        for top_k, top_p, min_p in (
            (1, 1.0, 0.0),
            (3, 1.0, 0.0),
            (40, 1.0, 0.0),
            (2**40, 1.0, 0.0),
            (0, 1e-9, 0.0),
            (0, 0.5, 0.0),
            (0, 0.95, 0.0),
            (0, 1.0, 1.0),
            (0, 1.0, 0.1),
            (5, 0.7, 0.0),
            (100, 0.9, 0.05),
            (0, 0.9, 0.02),
        )
    ),
    SampleCase(3, 50257, top_k=50, top_p=0.9),
    SampleCase(3, 50257, 0.8, top_p=0.95),
    SampleCase(2, 50257, top_k=1000),
    *(SampleCase(20, 70, top_k=5, top_p=0.9, layout=layout) for layout in LAYOUTS),
    *(SampleCase(20, 70, minus_inf=True, top_k=k, top_p=p) for k, p in ((0, 1.0), (50, 0.9))),
    *(SampleCase(9, 300, top_p=0.9, random=r) for r in (0.0, 0.5, 1.0 - 2.0**-24)),
    *(SampleCase(9, 300, random=r) for r in (0.0, 1.0 - 2.0**-24)),
    # magnitudes
    *(SampleCase(9, 70, size=size, top_p=0.91) for size in (100.0, HUGE, 0.1, TINY)),
    *(SampleCase(9, 70, top_k=9, mean=mean) for mean in (1e4, -1e4)),
    *(SampleCase(9, 70, temperature=t, top_k=9) for t in (1e-42, 1e-10, 1e10, 1e300)),
]


@dataclass(frozen=True)
class PenalizeCase(Case):
    seen: tuple[int, ...]  # ids of each row
    vocab: int
    penalty: float = 1.3
    layout: str = "contiguous"

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        x = random.standard_normal((len(self.seen), self.vocab)) * 5.0
        x[:, ::7] = 0.0
        ids = random.integers(0, max(self.vocab, 1), sum(self.seen)).astype(np.int32)
        return {
            "logits": place(x.astype(dtype), self.layout),
            "ids": place(ids, self.layout),
            "cu_ids": offsets(self.seen),
            "penalty": self.penalty,
        }


PENALIZE = [
    *(PenalizeCase((3, 0, 40), n) for n in (1, 2, 31, 63, 64, 65, 1000)),
    *(PenalizeCase(seen, 50) for seen in ((), (0,), (200,), (0, 0, 5))),
    *(PenalizeCase((9, 9), 50, penalty) for penalty in (1.0, 0.5, 1e-30, 1e30)),
    *(PenalizeCase((9, 9), 50, layout=layout) for layout in LAYOUTS),
    PenalizeCase((5,) * 100, 70),
]


@dataclass(frozen=True)
class SoftcapCase(Case):
    rows: int
    vocab: int
    cap: float = 30.0
    layout: str = "contiguous"
    size: float = 20.0

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        x = self.random().standard_normal((self.rows, self.vocab)) * self.size
        return {"logits": place(x.astype(dtype), self.layout), "cap": self.cap}


SOFTCAP = [
    *(SoftcapCase(3, n) for n in (*LENGTHS, 129, 1000, 2500)),
    *(SoftcapCase(rows, 33) for rows in (0, 1, 2, 300)),
    *(SoftcapCase(3, 70, layout=layout) for layout in LAYOUTS),
    *(SoftcapCase(3, 70, cap, size=size) for cap in (0.5, 50.0) for size in (1e-3, 1e4, HUGE)),
    SoftcapCase(3, 70, size=TINY),
]


@dataclass(frozen=True)
class TokenLogprobsCase(Case):
    rows: int
    vocab: int
    layout: str = "contiguous"
    size: float = 3.0
    mean: float = 0.0
    minus_inf: bool = False  # half of the logits

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        x = random.standard_normal((self.rows, self.vocab)) * self.size + self.mean
        if self.minus_inf:
            x[random.random(x.shape) < 0.5] = -np.inf
            x[:, 0] = 0.0
        ids = random.integers(0, self.vocab, self.rows).astype(np.int32)
        return {"logits": place(x.astype(dtype), self.layout), "ids": place(ids, self.layout)}


TOKEN_LOGPROBS = [
    *(TokenLogprobsCase(7, n) for n in (*LENGTHS, 129, 1000)),
    *(TokenLogprobsCase(rows, 33) for rows in (0, 1, 2, 100, 1000)),
    TokenLogprobsCase(3, 50257),
    *(TokenLogprobsCase(7, 70, layout) for layout in LAYOUTS),
    TokenLogprobsCase(20, 70, minus_inf=True),
    *(TokenLogprobsCase(7, 70, size=size) for size in (0.0, 100.0, 1e4, HUGE, TINY)),
    *(TokenLogprobsCase(7, 70, mean=mean) for mean in (1e4, -1e4)),
]


@dataclass(frozen=True)
class TopContinuationsCase(Case):
    prompts: int
    beams: int
    vocab: int
    count: int
    banned: tuple[int, ...] = ()  # how many ids of each row
    layout: str = "contiguous"
    steps: int = 0  # that many different logits and scores only, so that many sums are equal
    minus_inf: bool = False
    size: float = 1.0

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        rows = self.prompts * self.beams
        logits = random.standard_normal((rows, self.vocab)) * self.size
        scores = -random.exponential(2.0, (self.prompts, self.beams))
        if self.steps:
            # Every row has the same logits in another order, so that equals are of several rows.
            logits[:] = random.integers(0, self.steps, self.vocab)
            logits, scores[:] = random.permuted(logits, axis=1), -1.0
        if self.minus_inf:
            logits[random.random(logits.shape) < 0.7] = -np.inf
            logits[:, 0] = 0.5
            scores[random.random(scores.shape) < 0.4] = -np.inf
        counts = self.banned or (0,) * rows
        parts = [random.permutation(self.vocab)[:n] for n in counts]
        likely = [np.argsort(-row)[: n // 2] for row, n in zip(logits, counts, strict=True)]
        parts = [
            np.concatenate([part[len(some) :], some])
            for part, some in zip(parts, likely, strict=True)
        ]
        return {
            "logits": place(logits.astype(dtype), self.layout),
            "scores": place(scores.astype(dtype), self.layout),
            "count": self.count,
            "banned": np.concatenate([np.empty(0), *parts]).astype(np.int32),
            "cu_banned": offsets(tuple(counts)),
        }


TOP_CONTINUATIONS = [
    *(TopContinuationsCase(3, 4, n, 8) for n in (*LENGTHS, 127, 128, 129, 300)),
    *(TopContinuationsCase(2, 3, 100, count) for count in (1, 2, 17, 299, 300, 333)),
    *(TopContinuationsCase(prompts, 4, 40, 8) for prompts in (0, 1, 100)),
    *(TopContinuationsCase(3, beams, 70, 5) for beams in (1, 2, 9)),
    TopContinuationsCase(2, 2, 50257, 12),
    *(TopContinuationsCase(4, 3, 500, 10, steps=steps) for steps in (1, 2, 30)),
    *(TopContinuationsCase(3, 2, 400, 9, (3, 0, 9, 40, 1, 7), steps=s) for s in (0, 5)),
    TopContinuationsCase(1, 2, 9, 9, (9, 5)),
    TopContinuationsCase(6, 2, 200, 90, minus_inf=True),
    *(TopContinuationsCase(3, 2, 70, 5, layout=layout) for layout in LAYOUTS),
    *(TopContinuationsCase(3, 2, 70, 5, size=size) for size in (100.0, 1e4, HUGE, TINY)),
]
