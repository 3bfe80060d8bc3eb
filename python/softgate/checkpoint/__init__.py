"""Checkpoints: a folder with config.json, weights (safetensors, torch's .bin) and further files, or
a GGUF file."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from softgate._files import atomic_write
from softgate.checkpoint.errors import CheckpointError, quote
from softgate.checkpoint.folder import member, parse_json, read_object
from softgate.checkpoint.gguf import GgufWeights, Quantized
from softgate.checkpoint.safetensors import (
    Array,
    SafetensorsFile,
    write_safetensors,
)
from softgate.checkpoint.shards import ShardedFiles, WeightsFile
from softgate.checkpoint.source import (
    PACKED,
    TORCH,
    TORCH_INDEX,
    WEIGHTS,
    WEIGHTS_INDEX,
    find_checkpoint,
    other_weights,
)
from softgate.checkpoint.torch_bin import TorchFile

__all__ = ["Checkpoint", "CheckpointError", "Quantized", "open_checkpoint", "save_checkpoint"]

CONFIG = "config.json"

# softgate's own format, for weights that are quantised: config.json says so, and the tensors of
# PACKED are those of `Module.state_dict`.
PACKED_FORMAT, VERSION = "softgate_format", 1


class Checkpoint:
    """A checkpoint opened for reading. A context manager.

    folder: where it lies. config: what config.json says, or what it would say of a GGUF file.
    tensors: arrays by name, memory-mapped and read-only, under Hugging Face names; bfloat16, and
    whatever a GGUF file has, widens to float32 on access.
    shapes: the shape of each, without touching its data.
    dtypes: how the file stores each: safetensors' name, of .bin files too, or GGUF's, such as F32,
    BF16 or Q4_K.
    metadata: a GGUF file's metadata; empty for a folder.
    packed: is it in softgate's own format, which quantised models are saved in?
    """

    spec: str
    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, Any]
    packed: bool

    def __init__(self, spec: str, path: Path) -> None:
        self.spec = spec
        self._gguf: GgufWeights | None = None
        self.packed = False
        if path.is_dir():
            self.folder = path
            if not (path / CONFIG).is_file():
                raise CheckpointError(f"{path} holds no {CONFIG}")
            self.config = read_object(path / CONFIG)
            self.packed = PACKED_FORMAT in self.config
            weights = _open_packed(path, self.config) if self.packed else _open_weights(path)
            self.tensors, self._close = weights, weights.close
            self.shapes = MappingProxyType({n: e.shape for n, e in weights.entries.items()})
            self.dtypes = MappingProxyType({n: e.dtype for n, e in weights.entries.items()})
            self.metadata = MappingProxyType({})
        else:
            self.folder = path.parent
            self._gguf = GgufWeights(path)
            self.tensors, self._close = self._gguf, self._gguf.close
            self.config, self.metadata = self._gguf.config, self._gguf.metadata
            self.shapes, self.dtypes = self._gguf.shapes, self._gguf.dtypes

    def quantized(self, name: str) -> Quantized | None:
        """A quantised matrix of a GGUF file in a layout that `ops.pack_groups` takes; else None.

        Its values are `[out_features, in_features]` even where Hugging Face keeps the transpose
        (GPT-2). Exact for Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0; scales round to float16 for Q4_K and
        Q5_K; Q2_K, Q3_K and Q6_K are rounded anew (`quantization_loss` says how much that changes).

        Raises CheckpointError when a scale does not fit in float16.
        """
        return None if self._gguf is None else self._gguf.quantized(name)

    def quantization_loss(self, name: str) -> float:
        """Root mean square of what `quantized` changes of a tensor, over that of the tensor."""
        return 0.0 if self._gguf is None else self._gguf.quantization_loss(name)

    def file(self, name: str) -> Path | None:
        """The path of a further file, such as `tokenizer.json` or `1_Pooling/config.json`.

        None when it is absent, as all are that lie beside a GGUF file, which stands for itself;
        CheckpointError when `name` leads out of the folder.
        """
        path = member(self.folder, name)
        if self._gguf is not None:
            return None
        return path if path.is_file() else None

    def json(self, name: str) -> Any | None:
        """The value of a further JSON file, None when it is absent.

        Raises CheckpointError when it is not JSON.
        """
        path = self.file(name)
        return None if path is None else parse_json(path.read_bytes(), path)

    def close(self) -> None:
        """Let go of the weights' memory map. Arrays taken from `tensors` stay valid."""
        self._close()

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
    """Open a folder, a GGUF file, `package:NAME` (an installed package), or a Hugging Face id.

    A folder or package holds config.json with weights (safetensors, which goes first, or torch's
    .bin, of which nothing is executed), or one GGUF file. A package is
    found without importing it. A Hugging Face id is fetched through huggingface_hub,
    which honours its cache, `HF_HUB_OFFLINE` and `HF_TOKEN`.

    Raises CheckpointError when there is no such checkpoint or its content contradicts itself.
    """
    return Checkpoint(os.fspath(spec), find_checkpoint(spec))


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Array],
    files: Mapping[str, Path | bytes] = MappingProxyType({}),
    *,
    bfloat16: Collection[str] = (),
    packed: bool = False,
) -> None:
    """Write a checkpoint that softgate and Hugging Face both read.

    bfloat16: names of float32 tensors to store as that, which loses nothing of them. packed: in
    softgate's own format instead, with the tensors of `Module.state_dict`.

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
    if contents.keys() & {CONFIG, WEIGHTS, PACKED}:
        raise ValueError(f"files: {CONFIG} and the weights come from config and tensors")
    said = dict(config) | ({PACKED_FORMAT: VERSION} if packed else {})
    contents[CONFIG] = (json.dumps(said, indent=2, sort_keys=True) + "\n").encode()
    paths = [member(folder, name) for name in contents]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(*paths, folder / (PACKED if packed else WEIGHTS)) as (*others, weights):
        for file, content in zip(others, contents.values(), strict=True):
            file.write(content)
        write_safetensors(weights, tensors, bfloat16)


def _open_packed(folder: Path, config: Mapping[str, Any]) -> SafetensorsFile:
    if config[PACKED_FORMAT] != VERSION:
        raise CheckpointError(
            f"{folder}: {PACKED_FORMAT} is {quote(config[PACKED_FORMAT])}, expected {VERSION}"
        )
    if not (folder / PACKED).is_file():
        raise CheckpointError(f"{folder} holds no {PACKED}")
    return SafetensorsFile(folder / PACKED)


def _open_weights(folder: Path) -> WeightsFile | ShardedFiles:
    if (folder / WEIGHTS).is_file():
        return SafetensorsFile(folder / WEIGHTS)
    if (folder / WEIGHTS_INDEX).is_file():
        return ShardedFiles(folder / WEIGHTS_INDEX, SafetensorsFile)
    if (folder / TORCH).is_file():
        return TorchFile(folder / TORCH)
    if (folder / TORCH_INDEX).is_file():
        return ShardedFiles(folder / TORCH_INDEX, TorchFile)
    others = other_weights(folder)
    there = f", only {', '.join(others)}" if others else ""
    raise CheckpointError(f"{folder} holds no {WEIGHTS}, {TORCH} or index of such files{there}")
