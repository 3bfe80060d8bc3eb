"""`rotary`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import DENORMAL, HUGE, LENGTHS, TINY, Case, offsets


@dataclass(frozen=True)
class RotaryCase(Case):
    lengths: tuple[int, ...]
    starts: tuple[int, ...] | None = None  # zeros unless given
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 8
    rotary_dim: int | None = None  # head_dim unless given; 0 is no rotation
    norm: str = ""  # of "q", "k", "qk"
    interleaved: bool = False
    rows: tuple[int, ...] | None = None
    spare: int = 2  # capacity beyond the last position
    layout: str = "contiguous"
    size: float = 1.0
    eps: float = 1e-6

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        """Caches hold NaN."""
        random = self.random()
        starts = self.starts or (0,) * len(self.lengths)
        rows = self.rows or tuple(range(len(self.lengths)))
        ends = [n + start for n, start in zip(self.lengths, starts, strict=True)]
        positions = max(ends, default=0)
        layout = "contiguous" if self.layout == "transposed" else self.layout

        def draw(*shape: int, size: float = 1.0, mean: float = 0.0) -> np.ndarray:
            values = random.standard_normal(shape) * size + mean
            return place(values.astype(dtype), layout)

        def cache() -> np.ndarray:
            shape = (max(rows, default=0) + 1, positions + self.spare)
            shape = (*shape, self.num_kv_heads, self.head_dim)
            return place(np.full(shape, np.nan, dtype), self.layout)

        columns = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        half = (self.head_dim if self.rotary_dim is None else self.rotary_dim) // 2
        angles = np.arange(positions + 1)[:, None] * 10000.0 ** (-np.arange(half) / max(half, 1))
        return {
            "qkv": draw(sum(self.lengths), columns, size=self.size),
            "cu_seqlens": offsets(self.lengths),
            "starts": np.array(starts, np.int32),
            "k_cache": cache(),
            "v_cache": cache(),
            "num_heads": self.num_heads,
            "cos": place(np.cos(angles).astype(dtype), layout) if half else None,
            "sin": place(np.sin(angles).astype(dtype), layout) if half else None,
            "q_norm": draw(self.head_dim, size=0.5, mean=1.0) if "q" in self.norm else None,
            "k_norm": draw(self.head_dim, size=0.5, mean=1.0) if "k" in self.norm else None,
            "eps": self.eps,
            "interleaved": self.interleaved,
            "cache_rows": None if self.rows is None else np.array(self.rows, np.int32),
        }


ROTARY = [
    *(
        RotaryCase((3,), (4,), head_dim=d, norm=norm, interleaved=interleaved)
        for d in (*LENGTHS, 80, 96, 127, 128, 255, 256)
        for norm in ("", "qk")
        for interleaved in (False, True)
    ),
    *(
        RotaryCase((3,), (4,), head_dim=d, rotary_dim=r, norm=norm, interleaved=interleaved)
        for d, r in ((8, 0), (8, 2), (8, 6), (64, 16), (80, 32), (96, 72), (64, 62), (33, 0))
        for norm in ("", "qk")
        for interleaved in (False, True)
    ),
    *(RotaryCase((3, 2), norm=norm) for norm in ("q", "k")),
    *(
        RotaryCase((3,), num_heads=heads, num_kv_heads=kv_heads, norm="qk")
        for heads, kv_heads in ((1, 1), (2, 2), (12, 4), (9, 3), (1, 3))
    ),
    # ragged, empty, single tokens
    *(RotaryCase(lengths) for lengths in ((), (0,), (1,), (0, 2, 0, 7, 0), (1,) * 30)),
    RotaryCase((1, 3, 0, 5), (7, 0, 9, 2), norm="qk"),
    RotaryCase((300, 1, 200), (0, 900, 5), head_dim=64),
    RotaryCase((3, 4), (5, 4), spare=0),
    # rows of the cache
    RotaryCase((1, 3, 2), (7, 0, 9), rows=(5, 0, 2)),
    # layouts
    *(
        RotaryCase((3, 0, 2), head_dim=d, norm=norm, layout=layout)
        for d in (7, 32)
        for norm in ("", "qk")
        for layout in (*LAYOUTS, "transposed")
    ),
    # magnitudes
    *(RotaryCase((3,), size=size) for size in (HUGE, TINY, DENORMAL, 0.0)),
    *(RotaryCase((3,), norm="qk", size=size) for size in (1e15, 1e-3, TINY, DENORMAL, 0.0)),
    *(RotaryCase((3,), norm="qk", size=1e-3, eps=eps) for eps in (1e-12, 1e-5, 1e-1)),
]
