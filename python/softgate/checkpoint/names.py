"""Between softgate's parameters and the tensors of Hugging Face checkpoints.

A family's table maps each softgate parameter to a `Source`: the tensors that it joins along their
first dimension, one, or several where softgate fuses products (query, key and value).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate.checkpoint import Checkpoint, CheckpointError, Quantized

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """How a checkpoint holds one of softgate's parameters.

    names: the tensors that it joins along its rows; shapes: theirs.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    transposed: bool = False
    num_heads: int = 0  # where query, key and value of each head are together
    plus: float = 0.0

    def renamed(self, names: Mapping[str, str]) -> Source:
        """The same under other names."""
        return replace(self, names=tuple(names[name] for name in self.names))

    def load(self, tensors: Mapping[str, Array]) -> FloatArray:
        """softgate's float32 parameter."""
        parts = [np.asarray(tensors[name], dtype=np.float32) for name in self.names]
        array = self.join(part.T if self.transposed else part for part in parts)
        return array + np.float32(self.plus) if self.plus else array

    def load_quantized(self, checkpoint: Checkpoint) -> Quantized | None:
        """softgate's parameter from tensors that are all quantised, else None."""
        parts = [part for name in self.names if (part := checkpoint.quantized(name)) is not None]
        if len(parts) < len(self.names):
            return None
        minimums = [part.minimums for part in parts]
        if all(minimum is None for minimum in minimums):
            joined = None
        else:
            joined = self.join(
                np.zeros_like(part.scales) if part.minimums is None else part.minimums
                for part in parts
            )
        return Quantized(
            self.join(part.values for part in parts),
            self.join(part.scales for part in parts),
            joined,
            max(part.bits for part in parts),
        )

    def join(self, parts: Iterable[Array]) -> Array:
        """Rows as softgate orders them, from those of each tensor."""
        parts = list(parts)
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.num_heads:
            rows = rows.reshape(self.num_heads, 3, -1, *rows.shape[1:])
            rows = rows.swapaxes(0, 1).reshape(-1, *rows.shape[3:])
        return rows

    def save(self, array: FloatArray) -> dict[str, FloatArray]:
        """The checkpoint's tensors: the inverse of `load`."""
        if self.plus:
            array = array - np.float32(self.plus)
        if self.num_heads:
            array = array.reshape(3, self.num_heads, -1, *array.shape[1:])
            array = array.swapaxes(0, 1).reshape(-1, *array.shape[3:])
        if self.transposed:
            array = array.T
        ends = np.cumsum([shape[0] for shape in self.shapes])[:-1]
        return dict(zip(self.names, np.split(array, ends), strict=True))


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError that lists what is missing, unexpected and mis-shaped.

    expected, found: shapes of tensors by their name in the checkpoint.
    """
    problems = [f"missing: {name}" for name in expected if name not in found]
    problems += [f"unexpected: {name}" for name in found if name not in expected]
    problems += [
        f"mis-shaped: {name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    if problems:
        raise CheckpointError(_listing("checkpoint does not fit its config", problems))


def _listing(title: str, problems: list[str], most: int = 20) -> str:
    shown = sorted(problems)[:most]
    if len(problems) > most:
        shown.append(f"and {len(problems) - most} more")
    return title + ":\n  " + "\n  ".join(shown)
