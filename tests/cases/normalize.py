"""`normalize`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import DENORMAL, HUGE, LENGTHS, TINY, Case


@dataclass(frozen=True)
class NormalizeCase(Case):
    rows: int | tuple[int, ...]
    hidden: int
    layout: str = "contiguous"
    size: float = 1.0
    eps: float = 1e-12

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        leading = self.rows if isinstance(self.rows, tuple) else (self.rows,)
        x = self.random().standard_normal((*leading, self.hidden)) * self.size
        return {"x": place(x.astype(dtype), self.layout), "eps": self.eps}


NORMALIZE = [
    *(NormalizeCase(3, hidden) for hidden in (*LENGTHS, 100, 128, 384, 768, 1023, 9000, 9001)),
    *(NormalizeCase(rows, 33) for rows in (0, 1, 2, 4, 8, 100, 1000)),
    *(NormalizeCase(rows, 16) for rows in ((2, 3), (2, 0), ())),
    *(NormalizeCase(5, hidden, layout) for hidden in (7, 33) for layout in LAYOUTS),
    *(NormalizeCase(4, 33, size=size) for size in (0.0, HUGE, 1e-10, TINY, DENORMAL)),
    *(NormalizeCase(4, 33, size=size, eps=0.0) for size in (HUGE, TINY, DENORMAL)),
    *(NormalizeCase(4, 33, size=size, eps=0.5) for size in (1e-3, 1e-1, 1.0)),
]
