"""Checkpoints: a folder with config.json, safetensors weights and further files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from softgate._files import atomic_write
from softgate.checkpoint.errors import CheckpointError
from softgate.checkpoint.folder import member, parse_json, read_object
from softgate.checkpoint.safetensors import (
    Array,
    SafetensorsFile,
    ShardedFiles,
    write_safetensors,
)
from softgate.checkpoint.source import WEIGHTS, WEIGHTS_INDEX, find_folder, other_weights

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint", "save_checkpoint"]

CONFIG = "config.json"


class Checkpoint:
    """A checkpoint's folder, opened for reading. A context manager.

    config: what config.json says.
    tensors: arrays by name, memory-mapped and read-only; bfloat16 widens to float32 on access.
    shapes: the shape of each, without touching its data.
    """

    spec: str
    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]

    def __init__(self, spec: str, folder: Path) -> None:
        self.spec = spec
        self.folder = folder
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder} holds no {CONFIG}")
        self.config = read_object(folder / CONFIG)
        self._weights = _open_weights(folder)
        self.tensors = self._weights
        self.shapes = MappingProxyType({n: e.shape for n, e in self._weights.entries.items()})

    def file(self, name: str) -> Path | None:
        """The path of a further file, such as `tokenizer.json` or `1_Pooling/config.json`.

        None when it is absent; CheckpointError when `name` leads out of the folder.
        """
        path = member(self.folder, name)
        return path if path.is_file() else None

    def json(self, name: str) -> Any | None:
        """The value of a further JSON file, None when it is absent.

        Raises CheckpointError when it is not JSON.
        """
        path = self.file(name)
        return None if path is None else parse_json(path.read_bytes(), path)

    def close(self) -> None:
        """Let go of the weights' memory map. Arrays taken from `tensors` stay valid."""
        self._weights.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_checkpoint(spec: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder, `package:NAME` (weights inside an installed package), or a Hugging Face id.

    A package is found without importing it. A Hugging Face id is fetched through huggingface_hub,
    which honours its cache, `HF_HUB_OFFLINE` and `HF_TOKEN`.

    Raises CheckpointError when there is no such checkpoint or its content contradicts itself.
    """
    return Checkpoint(os.fspath(spec), find_folder(spec))


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Array],
    files: Mapping[str, Path | bytes] = MappingProxyType({}),
) -> None:
    """Write a checkpoint that softgate and Hugging Face both read.

    `files` are further files by name, as bytes or as a path to copy from. All files are written
    aside and renamed at the end, so that a failure leaves an older checkpoint as it was; `tensors`
    and `files` may come from that older one.

    Raises TypeError for a dtype that safetensors lacks, ValueError for a bad name, OSError when the
    folder cannot be written.
    """
    folder = Path(folder)
    contents = {
        name: source if isinstance(source, bytes) else source.read_bytes()
        for name, source in files.items()
    }
    if WEIGHTS in contents or CONFIG in contents:
        raise ValueError(f"files: {CONFIG} and {WEIGHTS} come from config and tensors")
    contents[CONFIG] = (json.dumps(dict(config), indent=2, sort_keys=True) + "\n").encode()
    paths = [member(folder, name) for name in contents]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(*paths, folder / WEIGHTS) as (*others, weights):
        for file, content in zip(others, contents.values(), strict=True):
            file.write(content)
        write_safetensors(weights, tensors)


def _open_weights(folder: Path) -> SafetensorsFile | ShardedFiles:
    if (folder / WEIGHTS).is_file():
        return SafetensorsFile(folder / WEIGHTS)
    if (folder / WEIGHTS_INDEX).is_file():
        return ShardedFiles(folder / WEIGHTS_INDEX)
    others = other_weights(folder)
    there = f", only {', '.join(others)}; softgate reads safetensors" if others else ""
    raise CheckpointError(f"{folder} holds no {WEIGHTS} or {WEIGHTS_INDEX}{there}")
