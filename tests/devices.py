"""Arrays on a device, and what 16-bit numbers make of a computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import softgate
from softgate import reference

DTYPES = ("float32", "float16", "bfloat16")


class OnDevice:
    """An array in a layout (layouts.py), inside a buffer of guard elements on a device."""

    def __init__(self, array: np.ndarray, device: str, dtype: str, layout: str) -> None:
        array = np.asarray(array)
        is_float = array.dtype.kind == "f"
        before, after = (0, 0) if layout == "contiguous" else (1, 3)
        if layout == "misaligned" or array.ndim <= 1:
            flat = _padded(array.reshape(-1), before, after)
            inside = np.s_[before : before + array.size]
        else:
            flat = _padded(array, before, after)
            inside = (np.s_[:],) * (array.ndim - 1) + (np.s_[before : before + array.shape[-1]],)
        self.buffer = softgate.Tensor(flat).to(device, dtype if is_float else None)
        self.tensor = self.buffer[inside].reshape(array.shape)
        self._is_guard = np.ones(flat.shape, bool)
        self._is_guard[inside] = False

    def assert_guards_intact(self) -> None:
        assert np.isnan(self.buffer.to("cpu", "float32").numpy()[self._is_guard]).all()


def _padded(array: np.ndarray, before: int, after: int) -> np.ndarray:
    """The last dimension with guards around; NaN, so that who reads one spoils the result."""
    shape = (*array.shape[:-1], before + array.shape[-1] + after)
    padded = np.full(shape, np.nan if array.dtype.kind == "f" else 77, array.dtype)
    padded[..., before : before + array.shape[-1]] = array
    return padded


def on_device(value: Any, device: str, dtype: str, layout: str) -> Any:
    """Arrays, and lists of them, as tensors; anything else as it is."""
    if isinstance(value, list):
        return [on_device(item, device, dtype, layout) for item in value]
    if isinstance(value, np.ndarray):
        return OnDevice(value, device, dtype, layout).tensor
    return value


def fetched(tensor: softgate.Tensor) -> np.ndarray:
    """As float32, which holds every 16-bit number."""
    return tensor.to("cpu", "float32").numpy()


def rounded(value: Any, dtype: str) -> Any:
    """The nearest numbers of `dtype`, in the array's own dtype."""
    if isinstance(value, list):
        return [rounded(item, dtype) for item in value]
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or dtype == "float32":
        return value
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "float16":
            return value.astype(np.float16).astype(value.dtype)
        bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        nearest = np.where(np.isnan(value), np.uint32(0x7FFF0000), nearest)
        return nearest.view(np.float32).astype(value.dtype)


class _Rounding(np.ndarray):
    """float64 numbers that every step of NumPy rounds to `dtype`."""

    dtype_name: str

    def __array_finalize__(self, other: Any) -> None:
        self.dtype_name = getattr(other, "dtype_name", "float32")

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        plain = [np.asarray(x) if isinstance(x, _Rounding) else x for x in inputs]
        result = getattr(ufunc, method)(*plain, **kwargs)
        if np.asarray(result).dtype.kind != "f":
            return result
        return _rounding(result, self.dtype_name)


def _rounding(values: Any, dtype: str) -> _Rounding:
    array = rounded(np.atleast_1d(np.asarray(values, np.float64)), dtype)
    result = array.reshape(np.shape(values)).view(_Rounding)
    result.dtype_name = dtype
    return result


def naive(op: str, dtype: str, **arguments: Any) -> np.ndarray:
    """The reference with every intermediate result rounded to `dtype`."""
    with naively(dtype):
        return np.asarray(getattr(reference, op)(**arguments))


@contextmanager
def naively(dtype: str) -> Iterator[None]:
    """While it lasts the reference rounds every intermediate result to `dtype`."""
    before = reference._float64
    reference._float64 = lambda values: _rounding(values, dtype)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        reference._float64 = before
