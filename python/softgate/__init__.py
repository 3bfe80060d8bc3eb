"""Fused attention and sequence-model kernels, and the models that run on them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from softgate._core import (
    PackedWeight,
    RecurrentWeight,
    SequenceOffsets,
    Tensor,
    isa,
    isas,
    num_threads,
    release_cached,
    set_isa,
    set_num_threads,
)

if TYPE_CHECKING:
    from softgate import cuda, models, nn, ops
    from softgate.models import load

__version__ = "0.1.0"

__all__ = [
    "PackedWeight",
    "RecurrentWeight",
    "SequenceOffsets",
    "Tensor",
    "cuda",
    "isa",
    "isas",
    "load",
    "models",
    "nn",
    "num_threads",
    "ops",
    "release_cached",
    "set_isa",
    "set_num_threads",
]


def __getattr__(name: str) -> object:
    """Import the parts that need more than the extension when they are first used."""
    if name in {"cuda", "models", "nn", "ops"}:
        return importlib.import_module(f"softgate.{name}")
    if name == "load":
        return importlib.import_module("softgate.models").load
    raise AttributeError(f"module 'softgate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
