"""`softmax`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import DENORMAL, HUGE, LENGTHS, TINY, Case


@dataclass(frozen=True)
class SoftmaxCase(Case):
    shape: tuple[int, ...]
    layout: str = "contiguous"
    size: float = 1.0
    mean: float = 0.0
    minus_inf: str | None = None  # where: "some", "first" half, "rows"
    spoil: str | None = None  # one entry: "nan", "inf"

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        x = random.standard_normal(self.shape) * self.size + self.mean
        if self.minus_inf == "some":
            x[random.random(self.shape) < 0.5] = -np.inf
        elif self.minus_inf == "first":
            x[..., : self.shape[-1] // 2] = -np.inf
        elif self.minus_inf == "rows":
            x[::2] = -np.inf
        if self.spoil is not None:
            x[1, self.shape[-1] // 2] = float(self.spoil)
        return {"x": place(x.astype(dtype), self.layout)}


SOFTMAX = [
    *(SoftmaxCase((3, n)) for n in (*LENGTHS, 100, 128, 129, 257, 1000)),
    *(SoftmaxCase((rows, 19)) for rows in (0, 1, 2, 5, 64, 501)),
    *(SoftmaxCase(shape) for shape in ((7,), (2, 3, 5), (2, 0, 5))),
    SoftmaxCase((3, 30000)),
    SoftmaxCase((3, 30001), minus_inf="some"),
    *(SoftmaxCase((5, n), layout) for n in (7, 33) for layout in LAYOUTS),
    *(SoftmaxCase((4, 33), size=size) for size in (10.0, 50.0, 1e4, HUGE, TINY, DENORMAL)),
    *(SoftmaxCase((4, 33), mean=mean) for mean in (88.0, -88.0, 1e4, -1e4)),
    *(
        SoftmaxCase((5, n), minus_inf=where)
        for where in ("some", "first", "rows")
        for n in (1, 9, 40)
    ),
    *(SoftmaxCase((3, n), spoil=value) for value in ("nan", "inf") for n in (1, 5, 33)),
]
