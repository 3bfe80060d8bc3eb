"""`attention` over packed sequences."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import place

from cases import DENORMAL, HUGE, LENGTHS, RAGGED, TINY, Case, offsets


@dataclass(frozen=True)
class AttentionCase(Case):
    lengths: tuple[int, ...]  # of the queries
    key_lengths: tuple[int, ...] | None = None
    num_heads: int = 2
    num_kv_heads: int | None = None
    head_dim: int = 8
    scale: float | None = None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    mask: str | None = None
    mask_over: tuple[bool, bool] = (True, True)  # does the mask differ by sequence, by head
    reach: int | None = None  # of a relative bias
    softcap: float = 0.0
    layout: str = "contiguous"
    q_size: float = 1.0
    v_size: float = 1.0

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        key_lengths = self.lengths if self.key_lengths is None else self.key_lengths
        num_kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads

        def draw(tokens: int, heads: int, size: float = 1.0) -> np.ndarray:
            values = random.standard_normal((tokens, heads, self.head_dim)) * size
            return place(values.astype(dtype), self.layout)

        return {
            "q": draw(sum(self.lengths), self.num_heads, self.q_size),
            "k": draw(sum(key_lengths), num_kv_heads),
            "v": draw(sum(key_lengths), num_kv_heads, self.v_size),
            "cu_seqlens_q": offsets(self.lengths),
            "cu_seqlens_k": None if self.key_lengths is None else offsets(key_lengths),
            "scale": self.scale,
            "causal": self.causal,
            "window": self.window,
            "mask": self._mask(random, key_lengths, dtype),
            "relative_bias": relative_bias_of(random, self.num_heads, self.reach),
            "softcap": self.softcap,
        }

    def _mask(
        self, random: np.random.Generator, key_lengths: tuple[int, ...], dtype: Any
    ) -> np.ndarray | None:
        if self.mask is None:
            return None
        shape = (
            len(self.lengths) if self.mask_over[0] else 1,
            self.num_heads if self.mask_over[1] else 1,
            max(self.lengths, default=0),
            max(key_lengths, default=0),
        )
        layout = "contiguous" if self.layout == "transposed" else self.layout
        return place(MASKS[self.mask](random, shape, dtype), layout)


def relative_bias_of(
    random: np.random.Generator, num_heads: int, reach: int | None
) -> np.ndarray | None:
    """float32 for every dtype. Its rows are not next to each other."""
    if reach is None:
        return None
    bias = (random.standard_normal((num_heads, 2 * reach + 1)) * 4.0).astype(np.float32)
    return place(bias, "strided")


def _random_bool(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return random.random(shape) < 0.6


def _empty_rows(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Every second query keeps no key."""
    return _random_bool(random, shape, dtype) & (np.arange(shape[2]) % 2 == 0)[:, None]


def _late(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Only the last key is kept: everything before it is masked, whole blocks among it."""
    return np.broadcast_to(np.arange(shape[3]) == shape[3] - 1, shape)


def _padding(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A prefix of the keys, the same for every query and head; none at all now and then."""
    kept = random.integers(0, shape[3] + 1, size=(shape[0], 1, 1, 1))
    return np.broadcast_to(np.arange(shape[3]) < kept, shape)


def _bias(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return (random.standard_normal(shape) * 4.0).astype(dtype)


def _additive(keep: Any, off: float) -> Any:
    """A boolean mask as numbers to add, `off` where it is False."""

    def additive(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.where(keep(random, shape, dtype), 0.0, off).astype(dtype)

    return additive


MASKS = {
    "bool": _random_bool,
    "bool_none": lambda random, shape, dtype: np.zeros(shape, dtype=bool),
    "bool_empty_rows": _empty_rows,
    "bool_late": _late,
    "bool_padding": _padding,
    "bias": _bias,
    "minus_inf": _additive(_random_bool, -np.inf),
    "minus_inf_empty_rows": _additive(_empty_rows, -np.inf),
    "minus_inf_late": _additive(_late, -np.inf),
    "lowest": _additive(_random_bool, float(np.finfo(np.float32).min)),
    "lowest_empty_rows": _additive(_empty_rows, float(np.finfo(np.float32).min)),
}

ATTENTION = [
    *(AttentionCase((n,), causal=causal) for n in (*LENGTHS, 130) for causal in (False, True)),
    *(
        AttentionCase((5,), (19,), head_dim=d)
        for d in (*LENGTHS, 72, 80, 96, 100, 127, 128, 129, 192, 255, 256)
    ),
    *(AttentionCase((4,), (n,)) for n in LENGTHS),
    # ragged, empty
    *(AttentionCase(RAGGED, causal=causal) for causal in (False, True)),
    *(
        AttentionCase(RAGGED, (5, 3, 0, 66, 9), causal=causal, window=window)
        for causal in (False, True)
        for window in ((-1, -1), (4, 3))
    ),
    *(AttentionCase(lengths) for lengths in ((), (0,), (0, 0), (0, 2), (2, 0))),
    AttentionCase((3, 2), (0, 0)),
    AttentionCase((0, 0), (3, 2)),
    # different lengths
    *(
        AttentionCase((len_q,), (len_k,), causal=True)
        for len_q, len_k in ((1, 700), (7, 33), (33, 7), (150, 20), (20, 150), (65, 64), (64, 65))
    ),
    *(
        AttentionCase((len_q,), (len_k,), window=(6, 4))
        for len_q, len_k in ((1, 90), (7, 33), (33, 7), (150, 20), (20, 150))
    ),
    # relative bias, whose reach ends before, in and beyond the vectors of keys
    *(
        AttentionCase(RAGGED, (5, 3, 0, 66, 90), 4, 2, causal=causal, reach=reach)
        for causal in (False, True)
        for reach in (0, 1, 7, 20, 64, 300)
    ),
    AttentionCase((150,), (290,), reach=128, head_dim=64, window=(100, 9)),
    AttentionCase((40,), mask="bool", reach=9, softcap=5.0),
    AttentionCase((40,), mask="bias", reach=9),
    # windows
    *(
        AttentionCase((75,), causal=causal, window=window)
        for window in (
            (0, 0),
            (3, 0),
            (0, 3),
            (2, 5),
            (16, 16),
            (-1, 2),
            (-7, 5),
            (5, -1),
            (2**31, 2**62),
        )
        for causal in (False, True)
    ),
    AttentionCase((700,), window=(40, 0), num_heads=1),
    # long, across blocks
    *(
        AttentionCase((len_q,), (700,), num_heads=1, head_dim=33, causal=causal)
        for len_q in (1, 9, 140)
        for causal in (False, True)
    ),
    AttentionCase((90, 280), num_heads=6, num_kv_heads=2, head_dim=72, causal=True),
    AttentionCase((1, 300, 2, 255, 256, 257, 0, 512), (3,) * 8, num_heads=1, head_dim=64),
    AttentionCase((1,) * 100, (2,) * 100),
    AttentionCase((3, 600), num_heads=3, num_kv_heads=1, causal=True),
    AttentionCase((300,), num_heads=1, head_dim=256, window=(150, 20)),
    AttentionCase((140,), (700,), num_heads=1, mask="bool_late"),
    AttentionCase((140,), (700,), num_heads=1, mask="minus_inf_late"),
    AttentionCase((9,), (700,), mask="bool_padding"),
    AttentionCase((300,), (300,), num_heads=4, num_kv_heads=2, mask="bool_empty_rows"),
    # masks
    *(AttentionCase((21, 6), (38, 40), mask=mask) for mask in MASKS),
    *(AttentionCase((38, 5), mask=mask, causal=True, window=(20, -1)) for mask in MASKS),
    *(
        AttentionCase((9, 20), num_heads=3, mask=mask, mask_over=over)
        for mask in ("bool", "bias")
        for over in itertools.product((False, True), repeat=2)
    ),
    *(
        AttentionCase((9, 20), num_heads=4, num_kv_heads=2, mask=mask, layout=layout)
        for mask in ("bool", "minus_inf")
        for layout in ("misaligned", "strided")
    ),
    # grouped heads
    *(
        AttentionCase((9, 33), num_heads=heads, num_kv_heads=kv_heads, causal=causal)
        for heads, kv_heads in ((1, 1), (4, 2), (6, 1), (12, 4), (5, 5))
        for causal in (False, True)
    ),
    # scale, soft cap
    *(AttentionCase((9, 33), scale=scale) for scale in (0.0, 0.05, 1.0, -0.5)),
    *(
        AttentionCase((9, 33), softcap=softcap, q_size=q_size)
        for softcap in (0.5, 30.0)
        for q_size in (1.0, 40.0)
    ),
    AttentionCase((9, 33), softcap=5.0, causal=True, mask="bias"),
    # layouts
    *(
        AttentionCase((9, 33), (40, 7), num_heads=4, num_kv_heads=2, head_dim=d, layout=layout)
        for d in (5, 32, 64)
        for layout in ("misaligned", "strided", "transposed")
    ),
    # magnitudes
    *(AttentionCase((9, 33), q_size=size) for size in (TINY, DENORMAL, 1e3, 1e6)),
    *(AttentionCase((9, 33), v_size=size, causal=True) for size in (HUGE, TINY, DENORMAL)),
]
