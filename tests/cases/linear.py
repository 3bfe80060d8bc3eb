"""`linear` on weights in every format, and `gather` of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import LAYOUTS, place

from cases import BLOCK_COLUMNS, BLOCK_ROWS, DENORMAL, HUGE, LENGTHS, TINY, Case


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
