"""Types shared by annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    Array: TypeAlias = Any  # numpy.ndarray, softgate.Tensor, or an object with __dlpack__
else:
    Array = object
