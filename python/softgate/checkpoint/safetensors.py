"""The safetensors format, read through a memory map and written aside.

A file is the length of the header (8 bytes, little endian), the header (a JSON object that maps a
tensor's name to its dtype, shape and byte offsets), and the data. A header is believed only once
every tensor is known to lie inside the file, and all of them to tile the data without gap or
overlap.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from softgate.checkpoint.errors import CheckpointError, quote

Array = np.ndarray[Any, np.dtype[Any]]

MAX_HEADER_BYTES = 100_000_000  # the official reader's bound
MAX_DIMS = 32
METADATA = "__metadata__"

# NumPy has no bfloat16: its bits are read as uint16 and widened.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file; `begin` and `end` count bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(Mapping[str, Array]):
    """The tensors of one file by name, read-only views of its memory map.

    bfloat16 is widened to float32, exactly, on each access; a tensor that does not lie at a
    multiple of its element size is copied. Views stay valid after `close`.

    Raises CheckpointError when the header lies, OSError when the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            header = _read_header(file, size, path)
            start = file.tell()
            self.path = path
            self.entries = _parse_header(header, size - start, path)
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        self._data: Array | None = np.frombuffer(self._map, np.uint8)[start:]

    def __getitem__(self, name: str) -> Array:
        entry = self.entries[name]
        if self._data is None:
            raise ValueError(f"{self.path} is closed")
        # Pages of tensors read before would stay resident beside the model's own copy.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        raw = self._data[entry.begin : entry.end]
        if entry.dtype == "BOOL" and raw.size and raw.max() > 1:
            raise CheckpointError(f"{self.path}: {quote(name)} is BOOL but holds {raw.max()}")
        tensor = raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
        return as_readable(tensor, entry.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def close(self) -> None:
        """Let go of the map; the system frees it with the last view."""
        self._data = None


def as_readable(tensor: Array, dtype: str) -> Array:
    """A file's elements, aligned and read-only; BF16, which NumPy lacks, as float32."""
    if dtype == "BF16":
        tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
    elif not tensor.flags.aligned:
        tensor = tensor.copy()
    tensor.flags.writeable = False
    return tensor


def _read_header(file: BinaryIO, size: int, path: Path) -> bytes:
    if size < 8:
        raise CheckpointError(f"{path}: {size} bytes are too short for a safetensors file")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: header of {length} bytes, expected at most {MAX_HEADER_BYTES}"
        )
    if length > size - 8:
        raise CheckpointError(f"{path}: header of {length} bytes in a file of {size}")
    return file.read(length)


def _parse_header(header: bytes, data_bytes: int, path: Path) -> dict[str, Entry]:
    try:
        fields = json.loads(header.decode(), object_pairs_hook=_unique)
        if not isinstance(fields, dict):
            raise ValueError(f"expected a JSON object, found {quote(fields)}")
        _check_metadata(fields.pop(METADATA, {}))
        entries = {name: _entry(name, field) for name, field in fields.items()}
        _check_tiling(entries, data_bytes)
    except RecursionError:
        raise CheckpointError(f"{path}: header is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: bad safetensors header: {error}") from None
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{quote(name)} appears twice")
            seen.add(name)
    return fields


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{METADATA} is {quote(metadata)}, expected an object of strings")


def _entry(name: str, field: Any) -> Entry:
    if not isinstance(field, dict):
        raise ValueError(f"{quote(name)} is {quote(field)}, expected an object")
    dtype: Any = field.get("dtype")
    shape: Any = field.get("shape")
    offsets: Any = field.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"{quote(name)} has dtype {quote(dtype)}, supported are {', '.join(DTYPES)}"
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise ValueError(f"{quote(name)} has shape {quote(shape)}, expected up to {MAX_DIMS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{quote(name)} has data_offsets {quote(offsets)}, expected [begin, end]")
    itemsize = DTYPES[dtype].itemsize
    # NumPy bounds the product of the sizes that are not zero, too.
    if math.prod(size for size in shape if size) * itemsize > sys.maxsize:
        raise ValueError(f"{quote(name)} has shape {quote(shape)}, which overflows")
    begin, end = offsets
    if end - begin != math.prod(shape) * itemsize:
        raise ValueError(
            f"{quote(name)} is {dtype} {quote(shape)}, {math.prod(shape) * itemsize} bytes, "
            f"but its data_offsets span {end - begin}"
        )
    return Entry(dtype, tuple(shape), begin, end)


def _are_sizes(value: Any) -> bool:
    # bool is a subclass of int
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size <= sys.maxsize for size in value
    )


def _check_tiling(entries: dict[str, Entry], data_bytes: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < position:
            raise ValueError(f"{quote(name)} overlaps the tensor before it")
        if entry.begin > position:
            raise ValueError(
                f"{entry.begin - position} bytes before {quote(name)} belong to no tensor"
            )
        if entry.end > data_bytes:
            raise ValueError(
                f"{quote(name)} ends at byte {entry.end} of {data_bytes} bytes of data"
            )
        position = entry.end
    if position < data_bytes:
        raise ValueError(f"{data_bytes - position} bytes after the last tensor belong to none")


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Array], bfloat16: Collection[str] = ()
) -> None:
    """Write `tensors` in the order that keeps each aligned: by element size, then name.

    bfloat16: names of float32 tensors to store as that.

    Raises TypeError for a dtype that safetensors lacks, ValueError for a name it cannot hold and
    for values that are not bfloat16's.
    """
    arrays = {
        name: _upper_halves(name, tensor) if name in bfloat16 else _storable(name, tensor)
        for name, tensor in tensors.items()
    }
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    fields: dict[str, Any] = {METADATA: {"format": "pt"}}  # transformers insists on it
    position = 0
    for name in order:
        array = arrays[name]
        fields[name] = {
            "dtype": "BF16" if name in bfloat16 else DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)
    for name in order:
        file.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)


def _upper_halves(name: str, tensor: Array) -> Array:
    bits = np.ascontiguousarray(_storable(name, tensor), dtype="<f4").view("<u4")
    if (bits & 0xFFFF).any():
        raise ValueError(f"{quote(name)} holds values that bfloat16 lacks")
    return (bits >> 16).astype("<u2")


def _storable(name: str, tensor: Array) -> Array:
    if name == METADATA:
        raise ValueError(f"{METADATA} cannot name a tensor")
    array = np.asarray(tensor)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype not in DTYPE_NAMES:
        raise TypeError(
            f"{quote(name)} has dtype {array.dtype}, supported are "
            f"{', '.join(str(dtype) for dtype in DTYPE_NAMES)}"
        )
    return array
