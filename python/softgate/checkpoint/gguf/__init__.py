"""GGUF files as Hugging Face checkpoints: its config, its tensors' names and order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from softgate.checkpoint.errors import CheckpointError, quote
from softgate.checkpoint.gguf.blocks import Array, Bytes, Quantized, dequantize, quantize
from softgate.checkpoint.gguf.config import architecture, hugging_face_config
from softgate.checkpoint.gguf.file import GgufFile
from softgate.checkpoint.gguf.names import ROPE_FACTORS, Stored, hugging_face_tensors

__all__ = ["GgufWeights", "Quantized"]


class GgufWeights(Mapping[str, Array]):
    """The tensors of a GGUF file by their Hugging Face names, float32 and read-only on access.

    What the file did to a tensor is undone: rows of queries and keys permuted for interleaved
    rotation (llama), query-key-value rows by part (gptneox), 1 added to norms (gemma), matrices
    transposed (gpt2). F32 tensors in file order are views of the memory map.

    config: as Hugging Face's config.json; metadata: as the file has it; dtypes: the file's types.

    Raises CheckpointError when the file lies or is of a family that softgate does not know.
    """

    config: dict[str, Any]
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        self.metadata = self._file.metadata
        infos = self._file.tensors
        try:
            factors = {
                name: dequantize(infos[name].type, self._file.rows(name))[0]
                for name in ROPE_FACTORS
                if name in infos
            }
            self.config = hugging_face_config(self.metadata, infos, factors)
            self._stored = hugging_face_tensors(architecture(self.metadata), self.config, infos)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        self.shapes = MappingProxyType(
            {
                ours: infos[stored.name].shape[:: -1 if stored.transposed else 1]
                for ours, stored in self._stored.items()
            }
        )
        self.dtypes = MappingProxyType(
            {ours: infos[stored.name].type for ours, stored in self._stored.items()}
        )

    def __getitem__(self, name: str) -> Array:
        stored = self._stored[name]
        info = self._file.tensors[stored.name]
        tensor = dequantize(info.type, self._rows(stored)).reshape(info.shape)
        if stored.plus:
            tensor = tensor - np.float32(stored.plus)
        if stored.transposed:
            tensor = np.ascontiguousarray(tensor.T)
        tensor.flags.writeable = False
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def quantized(self, name: str) -> Quantized | None:
        """A matrix in a run-time layout, always `[out_features, in_features]`; else None.

        So the transpose of `self[name]` for GPT-2's matrices, which Hugging Face keeps as
        `[in, out]`. Which types lose what: `quantize` in softgate/checkpoint/gguf/blocks.py;
        `quantization_loss` measures it.

        Raises CheckpointError when a scale does not fit in float16.
        """
        stored = self._stored[name]
        info = self._file.tensors[stored.name]
        if len(info.shape) != 2 or stored.plus:
            return None
        try:
            return quantize(info.type, self._rows(stored))
        except CheckpointError as error:
            raise CheckpointError(f"{self._file.path}: {quote(name)}: {error}") from None

    def quantization_loss(self, name: str) -> float:
        """Root mean square of what `quantized` changes of a tensor, over that of the tensor."""
        quantized = self.quantized(name)
        if quantized is None:
            return 0.0
        exact = dequantize(self.dtypes[name], self._rows(self._stored[name]))
        size = float(np.sqrt(np.mean(np.square(exact), dtype=np.float64)))
        error = np.square(quantized.dequantize() - exact)
        return float(np.sqrt(np.mean(error, dtype=np.float64))) / size if size else 0.0

    def _rows(self, stored: Stored) -> Bytes:
        """A tensor's bytes, its rows in Hugging Face's order."""
        rows = self._file.rows(stored.name)
        if stored.order is None:
            return rows
        if len(rows) == 1:  # a bias: what is a row of its matrix is an element
            return rows.reshape(len(stored.order), -1)[stored.order].reshape(1, -1)
        return rows[stored.order]

    def close(self) -> None:
        """Let go of the map; the system frees it with the last view."""
        self._file.close()
