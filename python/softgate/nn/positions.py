"""What tells a Transformer where tokens are, without learning it."""

from __future__ import annotations

import numpy as np

from softgate._core import Tensor
from softgate.nn.module import FloatArray


class Sinusoids:
    """Position p as `sin(p / 10000 ** (2 i / size))` and the cosines of the same (Vaswani et al.
    2017), side by side in pairs, or with all sines first."""

    def __init__(self, length: int, size: int, *, in_halves: bool = False) -> None:
        self.length = length
        self.size = size
        self.in_halves = in_halves
        self._tables: dict[tuple[str, str], Tensor] = {}

    def numpy(self) -> FloatArray:
        """float32 `[length, size]`."""
        pairs = (self.size + 1) // 2
        rates = 10000.0 ** (-2 * np.arange(pairs) / self.size)
        angles = np.arange(self.length)[:, None] * rates
        parts = [np.sin(angles), np.cos(angles)[:, : self.size // 2]]
        if self.in_halves:
            return np.concatenate(parts, axis=1, dtype=np.float32)
        table = np.empty((self.length, self.size), dtype=np.float32)
        table[:, 0::2], table[:, 1::2] = parts
        return table

    def table(self, device: str, dtype: str) -> Tensor:
        """`[length, size]` there, made once."""
        place = (device, dtype)
        if place not in self._tables:
            self._tables[place] = Tensor(self.numpy()).to(device, dtype)
        return self._tables[place]
