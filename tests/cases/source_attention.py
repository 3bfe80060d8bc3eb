"""`source_attention`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import HUGE, LENGTHS, TINY, Case, offsets


@dataclass(frozen=True)
class SourceAttentionCase(Case):
    lengths: tuple[int, ...]
    sources: tuple[int, ...]
    size: int = 24
    columns: int = 17
    additive: bool = True
    layout: str = "contiguous"
    scale: float = 1.0

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()

        def numbers(*shape: int) -> Any:
            return place((random.standard_normal(shape) * self.scale).astype(dtype), self.layout)

        tokens = sum(self.lengths)
        return {
            "query": numbers(len(self.sources), self.size),
            "keys": numbers(tokens, self.size),
            "values": numbers(tokens, self.columns),
            "cu_seqlens": offsets(self.lengths),
            "sources": np.array(self.sources, np.int32),
            "v": random.standard_normal(self.size).astype(dtype) if self.additive else None,
        }


SOURCE_ATTENTION = [
    SourceAttentionCase(lengths, sources, size, columns, additive)
    for additive in (True, False)
    for lengths, sources, size, columns in (
        *(((3, 5), (1, 0, 1), size, 4) for size in LENGTHS),
        *(((3, 5), (1, 0, 1), 4, columns) for columns in LENGTHS),
        ((), (), 8, 8),
        ((4,), (), 8, 8),
        ((0, 2, 0), (0, 1, 2, 1), 8, 8),
        ((1, 300, 17), (1, 1, 2, 0, 1), 64, 128),
        ((25,) * 9, tuple(i // 4 for i in range(36)), 64, 128),
    )
] + [
    *(SourceAttentionCase((3, 5), (1, 0), layout=layout) for layout in LAYOUTS),
    *(SourceAttentionCase((3, 5), (1, 0), scale=scale) for scale in (30.0, 100.0, HUGE, TINY)),
]
