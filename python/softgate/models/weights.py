"""Weights of models from checkpoints and into them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate import nn, ops
from softgate.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from softgate.checkpoint.names import Source, check_shapes

Array = npt.NDArray[Any]

_QUANTIZED = ("int8", "int4")
_STORED: Mapping[str, ops.WeightType] = {"F16": "float16", "BF16": "bfloat16"}


def load_weights(
    model: nn.Module,
    table: Mapping[str, Source],
    names: Mapping[str, str],
    checkpoint: Checkpoint,
    dtype: ops.WeightType | None,
) -> None:
    """Fill a model's parameters from those of a family's table.

    names: the checkpoint's tensors, by the name that the table has for each. dtype: as in
    `softgate.load`.

    Raises CheckpointError when the checkpoint does not fit.
    """
    check_shapes(
        {
            name: shape
            for source in table.values()
            for name, shape in zip(source.names, source.shapes, strict=True)
        },
        {name: checkpoint.shapes[stored] for name, stored in names.items()},
    )
    for name, parameter in model.named_parameters():
        source = table[name].renamed(names)
        if not parameter.packed:
            parameter.fill(source.load(checkpoint.tensors))
        elif dtype is None and (found := source.load_quantized(checkpoint)) is not None:
            parameter.fill_quantized(
                found.values, found.scales, found.minimums, bits=4 if found.bits == 4 else 8
            )
        else:
            stored = {_STORED.get(checkpoint.dtypes[part], "float32") for part in source.names}
            kept = stored.pop() if len(stored) == 1 else "float32"
            parameter.fill(source.load(checkpoint.tensors), dtype or kept)


def load_packed(model: nn.Module, checkpoint: Checkpoint, dtype: ops.WeightType | None) -> None:
    """Fill a model's parameters from softgate's own format.

    Raises CheckpointError when the checkpoint does not fit, ValueError for a dtype: the weights are
    quantised by softgate already.
    """
    if dtype is not None:
        raise ValueError(f"dtype is {dtype!r}, expected None: the weights are quantised")
    for name, parameter in model.named_parameters():
        if parameter.packed:
            parameter.dtype = _STORED.get(checkpoint.dtypes.get(name, ""), "float32")
    try:
        model.load_state_dict(checkpoint.tensors)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.spec}: {error}") from None


def is_quantized(model: nn.Module) -> bool:
    """Are some weights integers?"""
    return any(parameter.value.dtype in _QUANTIZED for _, parameter in model.named_parameters())


def save_weights(
    model: nn.Module,
    table: Mapping[str, Source],
    config: Mapping[str, Any],
    folder: str | os.PathLike[str],
    files: Mapping[str, Path | bytes],
) -> None:
    """Write config, weights and further files, in softgate's own format if some are quantised."""
    packed = is_quantized(model)
    tensors: dict[str, Array] = {}
    bfloat16: set[str] = set()
    for name, parameter in model.named_parameters():
        dtype = parameter.value.dtype
        if packed:
            parts = {name + part: array for part, array in parameter.state().items()}
        else:
            parts = table[name].save(parameter.numpy())
        if dtype == "float16":
            parts = {key: part.astype(np.float16) for key, part in parts.items()}
        elif dtype == "bfloat16":
            bfloat16 |= parts.keys()
        tensors |= parts
    said = dict(config)
    if not packed:
        weights = (parameter for _, parameter in model.named_parameters() if parameter.packed)
        said["torch_dtype"] = next(weights).value.dtype
    save_checkpoint(folder, said, tensors, files, bfloat16=bfloat16, packed=packed)
