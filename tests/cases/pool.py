"""`pool`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import HUGE, LENGTHS, TINY, Case, offsets


@dataclass(frozen=True)
class PoolCase(Case):
    lengths: tuple[int, ...]
    hidden: int
    mode: str = "mean"
    layout: str = "contiguous"
    size: float = 1.0
    mean: float = 0.0
    nan: bool = False  # in some tokens

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        x = random.standard_normal((sum(self.lengths), self.hidden)) * self.size + self.mean
        if self.nan:
            x[random.random(x.shape) < 0.1] = np.nan
        return {
            "x": place(x.astype(dtype), self.layout),
            "cu_seqlens": offsets(self.lengths),
            "mode": self.mode,
        }


POOLINGS = ("mean", "cls", "max", "last")

POOL = [
    *(PoolCase((3, 5), hidden, mode) for hidden in LENGTHS for mode in POOLINGS),
    *(
        PoolCase(lengths, 24, mode)
        for lengths in ((), (0,), (0, 0, 0), (1,), (0, 2, 0, 7, 0), (1, 1, 1), (600, 3))
        for mode in POOLINGS
    ),
    *(PoolCase((4, 0, 9), 13, mode, layout) for mode in POOLINGS for layout in LAYOUTS),
    *(PoolCase((4, 9), 13, mode, size=size) for mode in POOLINGS for size in (HUGE, TINY)),
    *(PoolCase((4, 9), 13, "max", mean=mean) for mean in (-50.0, 50.0)),
    *(PoolCase((2, 30), hidden, mode) for hidden in (129, 257, 768) for mode in POOLINGS),
    *(PoolCase((4, 9), 37, mode, nan=True) for mode in POOLINGS),
]
