"""`embedding`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import DENORMAL, HUGE, LENGTHS, TINY, Case


@dataclass(frozen=True)
class EmbeddingCase(Case):
    tokens: int
    hidden: int
    tables: tuple[int, ...] = (50,)  # rows of each
    ids: tuple[str, ...] | None = None  # dtype for each table, int32 unless given
    norm: bool = False
    norm_bias: bool = True
    layout: str = "contiguous"
    eps: float = 1e-12
    size: float = 1.0

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        id_dtypes = self.ids or ("int32",) * len(self.tables)

        def draw(*shape: int) -> np.ndarray:
            values = random.standard_normal(shape) * self.size
            return place(values.astype(dtype), self.layout)

        def draw_ids(rows: int, id_dtype: str) -> np.ndarray:
            ids = random.integers(0, rows, self.tokens)
            if self.tokens >= 2:
                ids[:2] = rows - 1, 0
            return place(ids.astype(id_dtype), self.layout)

        return {
            "ids": [draw_ids(*pair) for pair in zip(self.tables, id_dtypes, strict=True)],
            "tables": [draw(rows, self.hidden) for rows in self.tables],
            "norm_weight": draw(self.hidden) if self.norm else None,
            "norm_bias": draw(self.hidden) if self.norm and self.norm_bias else None,
            "eps": self.eps,
        }


EMBEDDING = [
    *(EmbeddingCase(5, hidden, norm=norm) for hidden in LENGTHS for norm in (False, True)),
    *(EmbeddingCase(tokens, 12, (50, 7), norm=True) for tokens in (0, 1, 2, 3, 8, 100, 1000)),
    *(
        EmbeddingCase(9, 40, (1, 2, 30, 9)[:count], norm=norm)
        for count in (1, 2, 3, 4)
        for norm in (False, True)
    ),
    EmbeddingCase(9, 33, ids=("int64",)),
    EmbeddingCase(9, 33, (50, 5, 7), ids=("int64", "int32", "int64"), norm=True),
    EmbeddingCase(9, 33, (50, 7), norm=True, norm_bias=False),
    EmbeddingCase(3, 768, (1000, 512, 2), norm=True),
    *(EmbeddingCase(3, hidden, (9, 2), norm=True) for hidden in (9000, 9001)),
    *(
        EmbeddingCase(9, 19, (50, 7), norm=norm, layout=layout)
        for norm in (False, True)
        for layout in LAYOUTS
    ),
    *(EmbeddingCase(5, 17, size=size) for size in (HUGE, TINY, DENORMAL)),
    *(EmbeddingCase(5, 17, size=1e-3, norm=True, eps=eps) for eps in (1e-12, 1e-5)),
]
