"""Between softgate's parameter names and those of Hugging Face checkpoints.

A family's table maps each softgate parameter to the tensors that it joins along their first
dimension: one, or several where softgate fuses products (query, key and value).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate.checkpoint import CheckpointError

Table = Mapping[str, tuple[str, ...]]


def check_names(
    table: Table, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError that lists what is missing, unexpected and mis-shaped.

    expected: the shapes of softgate's parameters; found: those of the checkpoint's tensors. Only
    shapes are read.
    """
    parts = {
        name: (expected[ours][0] // len(names), *expected[ours][1:])
        for ours, names in table.items()
        for name in names
    }
    check_shapes(parts, found)


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """The same, of tensors by their name in the checkpoint."""
    problems = [f"missing: {name}" for name in expected if name not in found]
    problems += [f"unexpected: {name}" for name in found if name not in expected]
    problems += [
        f"mis-shaped: {name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    if problems:
        raise CheckpointError(_listing("checkpoint does not fit its config", problems))


def join(names: Iterable[str], tensors: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """The float32 array that the named tensors make along their first dimension."""
    parts = [np.asarray(tensors[name], dtype=np.float32) for name in names]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def split(
    table: Table, state: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, npt.NDArray[Any]]:
    """The checkpoint's tensors: views of softgate's parameters."""
    return {
        name: part
        for ours, names in table.items()
        for name, part in zip(names, np.split(state[ours], len(names)), strict=True)
    }


def _listing(title: str, problems: list[str], most: int = 20) -> str:
    shown = sorted(problems)[:most]
    if len(problems) > most:
        shown.append(f"and {len(problems) - most} more")
    return title + ":\n  " + "\n  ".join(shown)
