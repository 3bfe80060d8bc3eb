"""Weights that are spread over several files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from softgate.checkpoint.errors import CheckpointError, quote
from softgate.checkpoint.folder import member, read_object
from softgate.checkpoint.safetensors import SafetensorsFile
from softgate.checkpoint.torch_bin import TorchFile

Array = np.ndarray[Any, np.dtype[Any]]


WeightsFile: TypeAlias = SafetensorsFile | TorchFile


class ShardedFiles(Mapping[str, Array]):
    """The tensors of several files, found through an index such as `model.safetensors.index.json`.

    Its `weight_map` says which file of the same folder holds which tensor. Tensors that it does not
    name are not seen. Raises as open_file does, which opens one of them, and CheckpointError when a
    file or a tensor it promises is missing.
    """

    def __init__(self, index: Path, open_file: Callable[[Path], WeightsFile]) -> None:
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index}: weight_map is missing or not an object")
        self._open_file = open_file
        self._files: dict[str, WeightsFile] = {}
        self._file_of: dict[str, WeightsFile] = {}
        for name, shard in weight_map.items():
            file = self._open(index, name, shard)
            if name not in file.entries:
                raise CheckpointError(f"{index}: {quote(name)} is not in {quote(shard)}")
            self._file_of[name] = file
        self.entries = {name: file.entries[name] for name, file in self._file_of.items()}

    def _open(self, index: Path, name: str, shard: Any) -> WeightsFile:
        path = member(index.parent, shard)
        if shard not in self._files:
            if not path.is_file():
                raise CheckpointError(f"{index}: the file of {quote(name)}, {path}, is missing")
            self._files[shard] = self._open_file(path)
        return self._files[shard]

    def __getitem__(self, name: str) -> Array:
        return self._file_of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def close(self) -> None:
        """Let go of the maps; the system frees each with its last view."""
        for file in self._files.values():
            file.close()
