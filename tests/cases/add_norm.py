"""`add_layer_norm` and `add_rms_norm`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import DENORMAL, LENGTHS, TINY, Case


@dataclass(frozen=True)
class AddNormCase(Case):
    rows: int | tuple[int, ...]
    hidden: int
    residual: bool = True
    bias: bool = True  # layer norm only
    layout: str = "contiguous"
    size: float = 1.0
    mean: float = 0.0
    constant: bool = False  # all of a row equal: no variance
    eps: float = 1e-5

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        leading = self.rows if isinstance(self.rows, tuple) else (self.rows,)
        varying = (*leading, 1 if self.constant else self.hidden)

        def draw() -> np.ndarray:
            values = random.standard_normal(varying) * self.size + self.mean
            values = np.broadcast_to(values, (*leading, self.hidden))
            return place(values.astype(dtype), self.layout)

        def parameter(mean: float) -> np.ndarray:
            values = mean + 0.5 * random.standard_normal(self.hidden)
            return place(values.astype(dtype), self.layout)

        return {
            "x": draw(),
            "residual": draw() if self.residual else None,
            "weight": parameter(1.0),
            "bias": parameter(0.0) if self.bias else None,
            "eps": self.eps,
        }


ADD_NORM = [
    *(AddNormCase(3, hidden) for hidden in (*LENGTHS, 100, 127, 128, 129, 255, 384, 768, 1023)),
    *(AddNormCase(rows, 33) for rows in (0, 1, 2, 4, 5, 8, 17, 100)),
    *(AddNormCase(4, 37, residual, bias) for residual in (False, True) for bias in (False, True)),
    *(
        AddNormCase(5, hidden, residual, layout=layout)
        for hidden in (7, 64)
        for residual in (False, True)
        for layout in LAYOUTS
    ),
    AddNormCase((2, 3), 16),
    AddNormCase((2, 0), 16),
    AddNormCase((), 16),
    AddNormCase(3, 5000),
    AddNormCase(700, 40),
    *(AddNormCase(4, 48, size=size) for size in (1e15, 1e-3, 1e-10, TINY, DENORMAL)),
    *(AddNormCase(4, 48, size=1e-3, eps=eps) for eps in (1e-12, 1e-6, 1e-1)),
    *(AddNormCase(4, 384, mean=mean) for mean in (1e2, 1e4)),
    AddNormCase(4, 48, constant=True),
    AddNormCase(4, 48, size=0.0),
]
