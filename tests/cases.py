"""The shared case table: what every op is tried on, on every device, ISA and dtype.

A case is a small frozen dataclass; its string names whatever differs from the defaults and seeds
its random numbers. `arguments()` gives arrays and options by the names of `softgate.reference`.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

# Around the vector widths (4, 8, 16) and their multiples.
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65)
# Around the matrix product's register blocks: 4, 6 or 14 rows by 8, 16 or 32 columns.
BLOCK_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 18, 19, 27, 28, 29, 41, 42, 43)
BLOCK_COLUMNS = (*LENGTHS, 80, 95, 96, 97, 128, 129)

HUGE, TINY, DENORMAL = 1e30, 1e-30, 1e-40


@dataclass(frozen=True)
class Case:
    def __str__(self) -> str:
        return "-".join(
            _describe(field.name, getattr(self, field.name))
            for field in fields(self)
            if getattr(self, field.name) != field.default
        )

    def random(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{type(self).__name__} {self}".encode()))


def _describe(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"no_{name}"
    if isinstance(value, tuple):
        value = "x".join(map(str, value)) or "empty"
    return value if isinstance(value, str) else f"{name}={value}"


def offsets(lengths: tuple[int, ...]) -> np.ndarray:
    """Lengths to cu_seqlens."""
    return np.cumsum([0, *lengths], dtype=np.int32)


@dataclass(frozen=True)
class LinearCase(Case):
    rows: int | tuple[int, ...]
    in_features: int
    out_features: int
    activation: str = "none"
    bias: bool = True
    residual: bool = False
    layout: str = "contiguous"
    x_size: float = 1.0
    weight_size: float = 1.0
    positive: bool = False  # nothing cancels, so partial sums keep growing

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        leading = self.rows if isinstance(self.rows, tuple) else (self.rows,)

        def draw(*shape: int, size: float) -> np.ndarray:
            values = random.standard_normal(shape)
            values = (np.abs(values) if self.positive else values) * size
            return place(values.astype(dtype), self.layout)

        product = self.x_size * self.weight_size
        return {
            "x": draw(*leading, self.in_features, size=self.x_size),
            "weight": draw(self.out_features, self.in_features, size=self.weight_size),
            "bias": draw(self.out_features, size=product) if self.bias else None,
            "activation": self.activation,
            "residual": draw(*leading, self.out_features, size=product) if self.residual else None,
        }


ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu", "tanh")

LINEAR = [
    *(LinearCase(rows, 5, 37) for rows in BLOCK_ROWS),
    *(LinearCase(7, 9, columns) for columns in BLOCK_COLUMNS),
    *(LinearCase(rows, 17, columns) for rows in (1, 6, 14, 15) for columns in (8, 31, 64)),
    *(LinearCase(5, in_features, 19) for in_features in LENGTHS),
    *(
        LinearCase(5, 9, 37, activation, bias, residual)
        for activation in ACTIVATIONS
        for bias in (False, True)
        for residual in (False, True)
    ),
    *(
        LinearCase(rows, 13, 37, "gelu", True, True, layout)
        for rows in (1, 9)
        for layout in LAYOUTS
    ),
    LinearCase(0, 8, 16),
    LinearCase((2, 3), 8, 16, residual=True),
    LinearCase((2, 0, 3), 8, 16),
    LinearCase((), 24, 40),
    # across cache blocks
    LinearCase(300, 33, 40),
    LinearCase(3, 3072, 40),
    LinearCase(16, 5000, 9, positive=True),
    LinearCase(3, 9, 2100),
    LinearCase(70, 700, 150, "gelu", True, True),
    LinearCase(230, 770, 40, residual=True),
    # magnitudes
    LinearCase(5, 33, 19, x_size=HUGE, weight_size=1e-10),
    LinearCase(5, 33, 19, x_size=1e-10, weight_size=HUGE),
    LinearCase(5, 33, 19, x_size=TINY),
    LinearCase(5, 33, 19, x_size=DENORMAL, weight_size=1e10),
    *(LinearCase(5, 33, 19, a, x_size=size) for a in ACTIVATIONS for size in (3.0, 1e4, HUGE)),
]


# How a weight is packed: a dtype of `ops.pack`, or 8-bit groups for `ops.pack_groups`.
GROUPED = ("int4", "int8_groups", "int8_groups_minimums")
PACKED = ("float16", "bfloat16", "int8", *GROUPED)


@dataclass(frozen=True)
class PackedLinearCase(LinearCase):
    packed: str = "int8"
    gated: bool = False

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        a = super().arguments(dtype)
        if self.gated and self.residual:
            half = a["residual"][..., : self.out_features // 2]
            a["residual"] = place(half, self.layout)
        return a


def _packed_cases(packed: str) -> list[PackedLinearCase]:
    def case(*args: Any, **more: Any) -> PackedLinearCase:
        return PackedLinearCase(*args, packed=packed, **more)

    depths = (32, 64, 96, 160, 544) if packed in GROUPED else (1, 2, 3, 5, 7, 16, 31, 33, 65, 130)
    sizes = (HUGE, TINY, DENORMAL, 1e4)
    return [
        *(case(rows, 64, 37) for rows in BLOCK_ROWS),
        *(case(3, 32, columns) for columns in BLOCK_COLUMNS),
        *(case(rows, depth, 19) for rows in (1, 5, 17) for depth in depths),
        *(
            case(3, 32, columns, "silu", bias, True, gated=True)
            for columns in (2, 8, 14, 16, 18, 30, 32, 34, 66, 130)
            for bias in (False, True)
        ),
        *(
            case(5, 32, 38, activation, True, True, gated=gated)
            for activation in ACTIVATIONS
            for gated in (False, True)
        ),
        *(
            case(rows, 64, 38, "gelu", True, True, layout, gated=gated)
            for rows in (1, 9)
            for layout in LAYOUTS
            for gated in (False, True)
        ),
        case(0, 32, 16),
        case((2, 3), 32, 16, residual=True),
        case((2, 0, 3), 32, 16),
        case((), 32, 40),
        # across cache blocks
        case(300, 96, 40, gated=True),
        case(1, 3072, 40),
        case(30, 3072, 40),
        case(16, 4992, 9, positive=True),
        case(3, 32, 2100),
        case(70, 704, 150, "gelu", True, True),
        case(100, 1536, 40, residual=True),
        # magnitudes
        *(case(rows, 64, 19, x_size=size) for rows in (1, 20) for size in sizes),
        case(5, 64, 19, weight_size=1e-3),
        case(5, 64, 19, weight_size=1e-10),
        *(
            case(5, 64, 19, x_size=1e-10, weight_size=HUGE)
            for _ in range(packed not in (*GROUPED, "float16"))  # beyond float16
        ),
    ]


PACKED_LINEAR = [case for packed in PACKED for case in _packed_cases(packed)]


@dataclass(frozen=True)
class GatherCase(Case):
    tokens: int
    rows: int
    columns: int
    packed: str = "int8"
    gated: bool = False
    scale: float = 3.7
    residual: bool = True
    layout: str = "contiguous"
    id_type: str = "int32"

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        random = self.random()
        draw = lambda *shape: place(random.standard_normal(shape).astype(dtype), self.layout)  # noqa: E731
        return {
            "weight": draw(self.rows, self.columns),
            "ids": random.integers(0, self.rows, self.tokens, dtype=self.id_type),
            "scale": self.scale,
            "residual": draw(self.tokens, self.columns) if self.residual else None,
        }


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
            "relative_bias": _relative_bias(random, self.num_heads, self.reach),
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


def _relative_bias(
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

RAGGED = (3, 0, 17, 1, 70)

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
            "relative_bias": _relative_bias(random, self.num_heads, self.reach),
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


@dataclass(frozen=True)
class RecurrentCase(Case):
    kind: str
    lengths: tuple[int, ...]
    input_size: int = 5
    hidden_size: int = 9
    proj_size: int | None = None
    direction: str = "forward"
    dtype: str = "float32"  # of the stored weights
    bias: bool = True
    states: bool = True  # are the first ones given
    layout: str = "contiguous"
    x_size: float = 1.0
    weight_size: float = 1.0  # 1 keeps states from growing and from dying out
    state_size: float = 1.0
    shared: int | None = None  # rows of h0 and c0 that sequences start from, in no order

    def arguments(self, dtype: Any = np.float32) -> dict[str, Any]:
        """`weights` is a list, one for each direction, of what `pack_recurrent` takes."""
        random = self.random()
        rows = GATES[self.kind] * self.hidden_size
        output_size = self.proj_size or self.hidden_size

        def draw(*shape: int, size: float) -> np.ndarray:
            return place((random.standard_normal(shape) * size).astype(dtype), self.layout)

        def weight(*shape: int) -> np.ndarray:
            return draw(*shape, size=self.weight_size / np.sqrt(shape[-1]))

        def direction() -> dict[str, Any]:
            names = {"kind": self.kind}
            names |= {"weight_ih": weight(rows, self.input_size)}
            names |= {"weight_hh": weight(rows, output_size)}
            if self.bias:
                names |= {"bias_ih": draw(rows, size=0.5), "bias_hh": draw(rows, size=0.5)}
            if self.proj_size:
                names |= {"weight_hr": weight(self.proj_size, self.hidden_size)}
            return names

        directions = 2 if self.direction == "bidirectional" else 1
        arguments = {
            "x": draw(sum(self.lengths), self.input_size, size=self.x_size),
            "cu_seqlens": offsets(self.lengths),
            "weights": [direction() for _ in range(directions)],
            "direction": self.direction,
        }
        sizes = {"h0": output_size} | ({"c0": self.hidden_size} if self.kind == "lstm" else {})
        for name, size in sizes.items():
            rows = len(self.lengths) if self.shared is None else self.shared
            shape = (directions, rows, size)
            arguments[name] = draw(*shape, size=self.state_size) if self.states else None
        if self.shared is not None:
            chosen = random.integers(0, self.shared, len(self.lengths))
            arguments["h0_rows"] = place(chosen.astype(np.int32), self.layout)
        return arguments


GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}
DIRECTIONS = ("forward", "reverse", "bidirectional")

RECURRENT = [
    *(RecurrentCase(kind, (3, 5), hidden_size=n) for kind in GATES for n in LENGTHS),
    *(
        RecurrentCase(kind, (3, 5), n)
        for kind in GATES
        for n in (LENGTHS if kind == "lstm" else (1, 8, 33))
    ),
    *(
        RecurrentCase(kind, (2,) * n)
        for kind in GATES
        for n in (BLOCK_ROWS if kind == "lstm" else (1, 2, 3, 4, 6, 7, 14, 15, 29))
    ),
    *(RecurrentCase(kind, (1,), hidden_size=1, input_size=1) for kind in GATES),
    *(RecurrentCase(kind, (1,) * 19, hidden_size=40) for kind in GATES),
    # directions, states, biases
    *(
        RecurrentCase(kind, RAGGED, direction=direction, bias=bias, states=states)
        for kind in GATES
        for direction in DIRECTIONS
        for bias in (False, True)
        for states in (False, True)
    ),
    # ragged, empty
    *(
        RecurrentCase(kind, lengths, direction=direction)
        for kind in ("lstm", "gru", "gru_reset_before")
        for direction in DIRECTIONS
        for lengths in ((), (0,), (0, 0, 0), (0, 2, 0, 7, 0), (9, 7, 4, 4, 1), (1, 4, 4, 7, 9))
    ),
    # projections
    *(
        RecurrentCase("lstm", (3, 0, 5), 5, hidden, proj, direction)
        for hidden, proj in ((9, 1), (9, 8), (33, 16), (33, 32), (40, 17), (130, 33))
        for direction in DIRECTIONS
    ),
    RecurrentCase("lstm", (6,) * 17, 5, 40, 11),
    # several unit blocks, slices of the depth, chunks of steps
    *(
        RecurrentCase(kind, lengths, 37, hidden)
        for kind in GATES
        for hidden in (96, 130)
        for lengths in ((4,), (3,) * 17)
    ),
    *(
        RecurrentCase(kind, lengths, 300, 530)
        for kind in ("rnn_tanh", "lstm", "gru", "gru_reset_before")
        for lengths in ((2,), (2, *(1,) * 14))
    ),
    *(
        RecurrentCase(kind, (250, 40, 200), hidden_size=130, direction=direction)
        for kind, direction in zip(("gru", "gru_reset_before", "lstm"), DIRECTIONS, strict=True)
    ),
    RecurrentCase("rnn_tanh", (300, 200), hidden_size=530),
    *(RecurrentCase(kind, RAGGED, hidden_size=200, direction="bidirectional") for kind in GATES),
    RecurrentCase("lstm", RAGGED, 5, 200, 100, "bidirectional"),
    *(RecurrentCase(kind, (2000,), 3, 17) for kind in GATES),
    # many sequences, whose steps' states are split where the CPU has AMX
    *(RecurrentCase(kind, (4,) * 33 + RAGGED, 33, 70) for kind in GATES),
    RecurrentCase("gru", (3,) * 40, 5, 300, direction="bidirectional"),
    RecurrentCase("lstm", (3,) * 40, 5, 70, 40),
    *(RecurrentCase(kind, (2,) * 530, hidden_size=33) for kind in ("gru", "gru_reset_before")),
    *(
        RecurrentCase(kind, (3,) * 30, hidden_size=40, state_size=size)
        for kind in GATES
        for size in (HUGE, TINY)
    ),
    # layouts
    *(
        RecurrentCase(kind, (4, 0, 9), n, 17, direction="bidirectional", layout=layout)
        for kind in GATES
        for n in (7, 32)
        for layout in LAYOUTS
    ),
    RecurrentCase("lstm", (4, 0, 9), 7, 17, 8, layout="strided"),
    # magnitudes
    *(
        RecurrentCase(kind, (3, 5), x_size=size)
        for kind in GATES
        for size in (HUGE, TINY, DENORMAL)
    ),
    *(RecurrentCase(kind, (3, 5), state_size=size) for kind in GATES for size in (HUGE, TINY)),
    *(
        RecurrentCase(kind, (3, 5), 33, 40, weight_size=size)
        for kind in GATES
        for size in (TINY, 1e-3, 1.5)
    ),
]

# Sequences that start from states of which several may take the same. On the CPU.
RECURRENT_SHARED = [
    *(
        RecurrentCase(kind, (1,) * n, 5, 40, shared=rows)
        for kind in GATES
        for n, rows in ((1, 1), (3, 2), (4, 9), (16, 1), (30, 12), (70, 40))
    ),
    *(
        RecurrentCase(kind, lengths, 7, 33, direction=direction, shared=4)
        for kind in GATES
        for direction in DIRECTIONS
        for lengths in ((0, 2, 0, 7, 0), RAGGED, (3,) * 9, (3,) * 9 + (0, 0))
    ),
    RecurrentCase("lstm", (3, 0, 5, 1, 1), 5, 40, 17, "bidirectional", shared=3),
    RecurrentCase("lstm", (1,) * 30, 5, 70, 40, shared=7),
    # several parts of a step's rows, slices of the depth
    *(RecurrentCase(kind, (1,) * 600, hidden_size=33, shared=400) for kind in GATES),
    RecurrentCase("gru", (1,) * 40, 37, 530, shared=25),
    *(RecurrentCase("gru", (1,) * 9, 7, 17, layout=layout, shared=4) for layout in LAYOUTS),
    *(RecurrentCase("gru", (1,) * 30, shared=9, state_size=size) for size in (HUGE, TINY)),
    RecurrentCase("gru", (), shared=2),
]

# The weights that are kept in fewer bits.
RECURRENT_LOW = [
    RecurrentCase(kind, lengths, input_size, hidden, proj, direction, dtype)
    for dtype in ("bfloat16", "int8")
    for kind in GATES
    for lengths, input_size, hidden, proj, direction in (
        ((5,), 7, 1, None, "forward"),
        ((3, 0, 5), 16, 33, None, "bidirectional"),
        ((4,) * 17, 7, 100, None, "reverse"),
        ((40,), 37, 130, None, "forward"),
        ((4, 9), 7, 40, 17, "bidirectional"),
    )
    if proj is None or kind == "lstm"
]
RECURRENT_LOW += [
    RecurrentCase(kind, (1,) * n, 7, 40, dtype=dtype, shared=9)
    for dtype in ("bfloat16", "int8")
    for kind in GATES
    for n in (3, 30)
]


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
