"""The GGUF container, read through a memory map.

A file is the magic, a version, two counts, the metadata (typed keys and values), a description of
each tensor, and the data, aligned. Everything is little endian. No count, length or offset is
believed before it is known to lie inside the file.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate.checkpoint.errors import CheckpointError, quote
from softgate.checkpoint.gguf.blocks import BLOCKS, TYPE_NAMES

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 had 32-bit counts, and no files worth reading
MAX_DIMS = 4
MAX_NESTING = 4
MAX_KEY_BYTES = 65535  # the specification's bound
DEFAULT_ALIGNMENT = 32

# The types of metadata values, by their number.
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype(np.bool_),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SMALLEST_ENTRY = 8 + 4 + 1  # a key's length, a value's type, a value of one byte
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # a name's length, number of dimensions, type, offset

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its type's name, its shape with rows first, its bytes' range in the file."""

    type: str
    shape: tuple[int, ...]
    begin: int
    end: int


class GgufFile:
    """Metadata and tensors of one file.

    metadata: Python scalars and strings, NumPy arrays of numbers, lists of strings or arrays.
    tensors: what the file says of each, in the file's order.

    Raises CheckpointError when the file contradicts itself or the format, OSError when it cannot
    be read.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < len(MAGIC):
                raise CheckpointError(f"{path}: {size} bytes are no GGUF file")
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        self._data: Bytes | None = np.frombuffer(self._map, np.uint8)
        try:
            reader = _Reader(self._map)
            num_tensors, num_entries = _read_counts(reader)
            self.metadata = MappingProxyType(_read_metadata(reader, num_entries))
            infos = _read_infos(reader, num_tensors)
            self.tensors = MappingProxyType(_place(infos, reader, self.metadata))
        except ValueError as error:
            raise CheckpointError(f"{path}: bad GGUF file: {error}") from None

    def rows(self, name: str) -> Bytes:
        """A tensor's bytes, `[rows, bytes of a row]`, a read-only view of the map."""
        info = self.tensors[name]
        if self._data is None:
            raise ValueError(f"{self.path} is closed")
        # Pages of tensors read before would stay resident beside the model's own copy.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        return self._data[info.begin : info.end].reshape(math.prod(info.shape[:-1]), -1)

    def close(self) -> None:
        """Let go of the map; the system frees it with the last view."""
        self._data = None


class _Reader:
    """Takes values from the file in turn, each only if it lies inside; ValueError otherwise."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.buffer) - self.position

    def skip(self, length: int, what: str) -> int:
        """The position of the next `length` bytes."""
        if length > self.left:
            raise ValueError(
                f"{what} of {length} bytes at byte {self.position} does not fit in the file's "
                f"{len(self.buffer)}"
            )
        self.position += length
        return self.position - length

    def uint32(self, what: str) -> int:
        return int(struct.unpack_from("<I", self.buffer, self.skip(4, what))[0])

    def uint64(self, what: str) -> int:
        return int(struct.unpack_from("<Q", self.buffer, self.skip(8, what))[0])

    def string(self, what: str, longest: int | None = None) -> str:
        length = self.uint64(what)
        if longest is not None and length > longest:
            raise ValueError(f"{what} is {length} bytes long, expected at most {longest}")
        start = self.skip(length, what)
        try:
            return self.buffer[start : start + length].decode()
        except UnicodeDecodeError:
            raise ValueError(f"{what} at byte {start} is not UTF-8") from None

    def value(self, kind: int, what: str, nesting: int = 0) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what, nesting)
        return self._numbers(kind, 1, what)[0].item()

    def _array(self, what: str, nesting: int) -> Any:
        if nesting == MAX_NESTING:
            raise ValueError(f"{what} nests more than {MAX_NESTING} arrays")
        kind, count = self.uint32(what), self.uint64(what)
        if kind in (_STRING, _ARRAY):
            smallest = 8 if kind == _STRING else 12
            if count * smallest > self.left:
                raise ValueError(f"{what} has {count} elements, more than the file holds")
            return [self.value(kind, what, nesting + 1) for _ in range(count)]
        return self._numbers(kind, count, what)

    def _numbers(self, kind: int, count: int, what: str) -> npt.NDArray[Any]:
        if kind not in _SCALARS:
            raise ValueError(f"{what} has a value of type {kind}, expected 0 to 12")
        dtype = _SCALARS[kind]
        start = self.skip(count * dtype.itemsize, what)
        numbers = np.frombuffer(self.buffer, dtype, count, start).copy()
        if kind == _BOOL and numbers.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"{what} holds a boolean that is neither 0 nor 1")
        return numbers


def _read_counts(reader: _Reader) -> tuple[int, int]:
    magic = reader.buffer[reader.skip(len(MAGIC), "the magic") : reader.position]
    if magic != MAGIC:
        raise ValueError(f"it starts with {magic!r}, expected {MAGIC!r}")
    version = reader.uint32("the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        order = ", in big-endian order" if swapped in VERSIONS else ""
        raise ValueError(f"its version is {version}{order}, expected 2 or 3 in little-endian order")
    num_tensors = reader.uint64("the number of tensors")
    num_entries = reader.uint64("the number of metadata entries")
    if num_tensors * _SMALLEST_TENSOR + num_entries * _SMALLEST_ENTRY > reader.left:
        raise ValueError(
            f"it promises {num_tensors} tensors and {num_entries} metadata entries, "
            f"more than fit in {len(reader.buffer)} bytes"
        )
    return num_tensors, num_entries


def _read_metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = reader.string("a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            raise ValueError(f"metadata {quote(key)} appears twice")
        metadata[key] = reader.value(reader.uint32("a metadata type"), f"metadata {quote(key)}")
    return metadata


def _read_infos(reader: _Reader, count: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Type, shape and offset in the data of each tensor."""
    infos: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for _ in range(count):
        name = reader.string("a tensor's name", MAX_KEY_BYTES)
        what = f"tensor {quote(name)}"
        if name in infos:
            raise ValueError(f"{what} appears twice")
        num_dims = reader.uint32(what)
        if not 1 <= num_dims <= MAX_DIMS:
            raise ValueError(f"{what} has {num_dims} dimensions, expected 1 to {MAX_DIMS}")
        # The file lists the fastest dimension first.
        shape = tuple(reader.uint64(what) for _ in range(num_dims))[::-1]
        kind, offset = reader.uint32(what), reader.uint64(what)
        type_name = TYPE_NAMES.get(kind, f"number {kind}")
        if type_name not in BLOCKS:
            raise ValueError(f"{what} has type {type_name}, supported are {', '.join(BLOCKS)}")
        infos[name] = (type_name, shape, offset)
    return infos


def _place(
    infos: Mapping[str, tuple[str, tuple[int, ...], int]],
    reader: _Reader,
    metadata: Mapping[str, Any],
) -> dict[str, TensorInfo]:
    """Where each tensor lies in the file, once all are known to lie inside and apart."""
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {quote(alignment)}, expected a power of two")
    start = -(-reader.position // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    for name, (type_name, shape, offset) in infos.items():
        what = f"tensor {quote(name)}"
        block = BLOCKS[type_name]
        if shape[-1] % block.size:
            raise ValueError(
                f"{what} is {type_name} with rows of {shape[-1]}, expected a multiple of "
                f"{block.size}"
            )
        length = math.prod(shape) // block.size * block.dtype.itemsize
        if not length:
            raise ValueError(f"{what} has shape {quote(list(shape))}, expected no zeros")
        if offset % alignment:
            raise ValueError(f"{what} starts at {offset}, expected a multiple of {alignment}")
        end = start + offset + length
        if end > len(reader.buffer):
            raise ValueError(
                f"{what}, {type_name} {quote(list(shape))}, ends at byte {end}, "
                f"the file at {len(reader.buffer)}"
            )
        placed[name] = TensorInfo(type_name, shape, start + offset, end)
    position = 0
    for name, info in sorted(placed.items(), key=lambda item: item[1].begin):
        if info.begin < position:
            raise ValueError(f"tensor {quote(name)} overlaps the tensor before it")
        position = info.end
    return placed
