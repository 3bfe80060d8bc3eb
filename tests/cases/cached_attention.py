"""`cached_attention`: keys and values in the rows of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import place

from cases import DENORMAL, HUGE, LENGTHS, TINY, Case, offsets
from cases.attention import relative_bias_of


@dataclass(frozen=True)
class CachedAttentionCase(Case):
    lengths: tuple[int, ...]  # of the queries
    key_lengths: tuple[int, ...]  # their own keys among them
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 8
    causal: bool = True
    window: tuple[int, int] = (-1, -1)
    reach: int | None = None  # of a relative bias
    softcap: float = 0.0
    scale: float | None = None
    rows: tuple[int, ...] | None = None  # of the cache, which has more of them then
    spare: int = 3  # capacity beyond the longest length
    layout: str = "contiguous"
    q_size: float = 1.0
    v_size: float = 1.0

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        """What lies behind a sequence's keys is NaN."""
        random = self.random()
        rows = self.rows or tuple(range(len(self.lengths)))
        capacity = max(self.key_lengths, default=0) + self.spare
        filled = np.zeros((max(rows, default=0) + 1, capacity), bool)
        for row, length in zip(rows, self.key_lengths, strict=True):
            filled[row, :length] = True

        def cache(size: float) -> np.ndarray:
            shape = (*filled.shape, self.num_kv_heads, self.head_dim)
            values = random.standard_normal(shape) * size
            values[~filled] = np.nan
            return place(values.astype(dtype), self.layout)

        shape = (sum(self.lengths), self.num_heads, self.head_dim)
        q = place((random.standard_normal(shape) * self.q_size).astype(dtype), self.layout)
        return {
            "q": q,
            "k_cache": cache(1.0),
            "v_cache": cache(self.v_size),
            "cu_seqlens_q": offsets(self.lengths),
            "lengths_k": np.array(self.key_lengths, np.int32),
            "cache_rows": None if self.rows is None else np.array(self.rows, np.int32),
            "relative_bias": relative_bias_of(random, self.num_heads, self.reach),
            "scale": self.scale,
            "window": self.window,
            "causal": self.causal,
            "softcap": self.softcap,
        }


# Around the blocks of the decode kernel's keys.
DECODED = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1100)

CACHED_ATTENTION = [
    *(CachedAttentionCase((1,), (n,)) for n in DECODED),
    *(
        CachedAttentionCase((len_q,), (300,), heads, kv_heads)
        for len_q in (1, 2, 3, 4, 5, 8, 9, 16, 17, 100)
        for heads, kv_heads in ((1, 1), (3, 1), (4, 2), (12, 4), (9, 3))
    ),
    *(
        CachedAttentionCase((1,), (19,), head_dim=d)
        for d in (*LENGTHS, 72, 80, 96, 100, 127, 128, 129, 192, 255, 256)
    ),
    *(CachedAttentionCase((2,), (700,), head_dim=d) for d in (5, 33, 64, 80, 128, 256)),
    *(CachedAttentionCase((1,), (50,), heads, 1) for heads in (7, 8, 13, 14, 15, 16, 29, 71)),
    *(CachedAttentionCase((3,), (40,), heads, 1, 64) for heads in (5, 16)),
    # ragged: chunks, single tokens, empty sequences, queries before the first key
    *(
        CachedAttentionCase((1, 0, 5, 1, 70), (9, 4, 5, 600, 130), 4, 2, causal=causal)
        for causal in (False, True)
    ),
    *(CachedAttentionCase((0,) * n, (0,) * n) for n in (0, 1, 2)),
    CachedAttentionCase((1, 2), (0, 0)),
    CachedAttentionCase((0, 0), (3, 2)),
    CachedAttentionCase((4, 30), (2, 7)),
    CachedAttentionCase((1,) * 40, tuple(range(0, 400, 10))),
    CachedAttentionCase((1, 1), (900, 3), 8, 8, 64),
    # windows
    *(
        CachedAttentionCase((len_q,), (n,), window=window, causal=causal)
        for len_q in (1, 3, 40)
        for n in (90, 700)
        for window in ((0, 0), (15, 0), (300, 0), (6, 4), (-1, 0), (2**31, 2**62))
        for causal in (False, True)
    ),
    # relative bias
    *(
        CachedAttentionCase((1, 3, 40), (300, 17, 90), 4, 2, 64, causal=causal, reach=reach)
        for causal in (False, True)
        for reach in (0, 5, 31, 128, 700)
    ),
    CachedAttentionCase((2,), (700,), 4, 2, 128, window=(300, 0), reach=70, softcap=7.0),
    # several splits of 64 keys, of which a window reaches some
    *(
        CachedAttentionCase((1, len_q), (700, 450), 4, 2, 128, causal=causal, window=window)
        for len_q in (2, 4)
        for window in ((-1, -1), (15, 0), (63, 0), (64, 0), (300, 0), (100, 5))
        for causal in (False, True)
    ),
    # rows of the cache: any order, more than sequences, repeated, no room to spare
    CachedAttentionCase((1, 3, 40), (20, 30, 50), rows=(4, 0, 2)),
    CachedAttentionCase((1, 1, 2), (20, 300, 50), rows=(1, 1, 1)),
    CachedAttentionCase((1, 4), (300, 4), spare=0),
    # scale, soft cap
    *(CachedAttentionCase((1, 9), (30, 33), scale=scale) for scale in (0.0, 1.0, -0.5)),
    *(
        CachedAttentionCase((1, 9), (300, 33), softcap=softcap, q_size=q_size)
        for softcap in (0.5, 30.0)
        for q_size in (1.0, 40.0)
    ),
    CachedAttentionCase((2, 9), (300, 33), window=(40, 0), softcap=5.0),
    # layouts
    *(
        CachedAttentionCase((1, 2, 9), (40, 300, 30), 4, 2, d, layout=layout)
        for d in (5, 32, 64)
        for layout in ("misaligned", "strided", "transposed")
    ),
    # magnitudes
    *(CachedAttentionCase((1, 9), (300, 33), q_size=size) for size in (TINY, DENORMAL, 1e3, 1e6)),
    *(CachedAttentionCase((1, 9), (300, 33), v_size=size) for size in (HUGE, TINY, DENORMAL)),
]
