"""Types shared by annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    Array: TypeAlias = Any  # numpy.ndarray, softgate.Tensor, or an object with __dlpack__
else:
    Array = object

# What goes in decides what comes out: NumPy gives NumPy, a Tensor gives a Tensor.
SameArray = TypeVar("SameArray")
