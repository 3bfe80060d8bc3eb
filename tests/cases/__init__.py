"""The shared case table: what every op is tried on, on every device, ISA and dtype.

A case is a small frozen dataclass; its string names whatever differs from the defaults and seeds
its random numbers. `arguments()` gives arrays and options by the names of `softgate.reference`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields

import numpy as np

# Around the vector widths (4, 8, 16) and their multiples.
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65)
# Around the matrix product's register blocks: 4, 6 or 14 rows by 8, 16 or 32 columns.
BLOCK_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 18, 19, 27, 28, 29, 41, 42, 43)
BLOCK_COLUMNS = (*LENGTHS, 80, 95, 96, 97, 128, 129)
# Of a packed batch.
RAGGED = (3, 0, 17, 1, 70)

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
