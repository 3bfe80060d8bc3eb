"""Arrays at chosen places in memory.

contiguous   packed
misaligned   packed, one element past a 64-byte boundary
strided      a gap after every row of every outer dimension, misaligned as well
transposed   the first two dimensions swapped in memory, as heads-first attention inputs are
"""

from __future__ import annotations

from typing import Any

import numpy as np

LAYOUTS = ("contiguous", "misaligned", "strided")

ALIGNMENT = 64
GUARD = 64  # elements before and after: more than any vector is wide


class Guarded:
    """An array in a layout, inside a buffer of guard elements that nobody may write.

    Guards of floating arrays are NaN, so that a kernel that reads them spoils its result.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, layout: str = "contiguous") -> None:
        dtype = np.dtype(dtype)
        strides = _strides(shape, layout)
        span = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
        offset = GUARD + (layout in ("misaligned", "strided"))
        self._buffer = _aligned(offset + max(span, 1) + GUARD, dtype)
        self._buffer[:] = np.nan if dtype.kind == "f" else _ODD[dtype.kind]
        self.array = np.lib.stride_tricks.as_strided(
            self._buffer[offset:], shape, [stride * dtype.itemsize for stride in strides]
        )
        self._is_guard = np.ones(len(self._buffer), dtype=bool)
        np.lib.stride_tricks.as_strided(self._is_guard[offset:], shape, strides)[...] = False
        self._before = self._buffer.tobytes()

    def assert_intact(self) -> None:
        """No guard element has changed."""
        before = np.frombuffer(self._before, dtype=np.uint8).reshape(len(self._buffer), -1)
        now = self._buffer.view(np.uint8).reshape(before.shape)
        touched = np.flatnonzero((before != now).any(axis=1) & self._is_guard)
        assert touched.size == 0, f"written outside the array, at elements {touched.tolist()}"


_ODD = {"i": 77, "b": True}  # guards of integer and boolean arrays


def place(array: np.ndarray, layout: str = "contiguous") -> np.ndarray:
    """A copy of `array` in a layout, among guard elements unless it is contiguous.

    A contiguous one fills its allocation, so that AddressSanitizer sees the first byte past it.
    """
    if layout == "contiguous":
        return array.copy()
    guarded = Guarded(array.shape, array.dtype, layout)
    guarded.array[...] = array
    return guarded.array


def _strides(shape: tuple[int, ...], layout: str) -> list[int]:
    """Elements from one index of each dimension to the next."""
    order = list(range(len(shape)))
    if layout == "transposed":
        order[0], order[1] = 1, 0
    strides = [1] * len(shape)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
        if layout == "strided":
            step += 3
    return strides


def _aligned(count: int, dtype: np.dtype) -> np.ndarray:
    """`count` elements of which number GUARD is 64-byte aligned."""
    raw = np.empty(count * dtype.itemsize + ALIGNMENT, dtype=np.uint8)
    skip = -(raw.ctypes.data + GUARD * dtype.itemsize) % ALIGNMENT
    return raw[skip : skip + count * dtype.itemsize].view(dtype)


def gapped(array: np.ndarray) -> np.ndarray:
    """The same values in a view whose last dimension is not contiguous."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


# Ways to spoil a float32 argument, and what each op raises for it, naming the argument.
SPOILED = {
    "float64": (TypeError, lambda array: array.astype(np.float64)),
    "float16": (TypeError, lambda array: array.astype(np.float16)),
    "int32": (TypeError, lambda array: np.nan_to_num(array).astype(np.int32)),
    "list": (TypeError, lambda array: array.tolist()),
    "gapped": (ValueError, gapped),
    "extra_dimension": (ValueError, lambda array: array[None, None]),
    "one_more": (ValueError, lambda array: np.concatenate([array, array], axis=-1)),
}
