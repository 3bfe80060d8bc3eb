"""Files of `torch.save`, read through a memory map without torch and without running anything.

Since torch 1.6 such a file is a zip: `data.pkl`, a pickle that says how tensors lie in storages,
and a member for each storage, `data/0` and so on, stored as it is. Before, it was a sequence of
pickles (a magic number, the version, sizes of types, the tensors, the order of the storages) and
then each storage, its number of elements in front. A file is believed only once each storage is
known to have the size that its tensors were told, and each tensor to lie inside its storage.
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from softgate.checkpoint.errors import CheckpointError, quote
from softgate.checkpoint.pickles import MAX_BYTES, PickleReader
from softgate.checkpoint.safetensors import DTYPES, MAX_DIMS, as_readable

Array = np.ndarray[Any, np.dtype[Any]]

_STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, lengths of name and extra


@dataclass(frozen=True, slots=True)
class Storage:
    """Elements of one dtype that tensors share."""

    key: str
    dtype: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file; `strides` and `offset` count elements of its storage."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: Storage


@dataclass(frozen=True, slots=True)
class _Member:
    """Bytes of the file: of a zip's member, or of a storage."""

    begin: int
    end: int
    size: int
    deflated: bool = False


class TorchFile(Mapping[str, Array]):
    """The tensors of one file by name, read-only views of its memory map.

    bfloat16 is widened to float32, exactly, on each access; what does not lie at a multiple of its
    element size is copied, and so is what the zip compresses. Views stay valid after `close`.

    Raises CheckpointError when the file holds anything but a dict of tensors or contradicts itself,
    OSError when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._storages: dict[str, _Member] = {}
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise CheckpointError(f"{path} is empty")
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            self._data: Array | None = np.frombuffer(self._map, np.uint8)
            try:
                if bytes(self._data[:4]) == b"PK\3\4":
                    self.entries = self._read_zip(file, self._data)
                else:
                    self.entries = self._read_legacy(self._data.data)
            except (ValueError, RecursionError) as error:
                self._data = None
                raise CheckpointError(f"{path}: not a file of tensors by torch: {error}") from None

    def __getitem__(self, name: str) -> Array:
        entry = self.entries[name]
        # Pages of tensors read before would stay resident beside the model's own copy.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        try:
            raw = self._bytes(self._storages[entry.storage.key])
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {quote(name)}: {error}") from None
        dtype = DTYPES[entry.dtype]
        tensor = np.lib.stride_tricks.as_strided(  # `_tensor` has checked that it lies inside
            raw.view(dtype)[entry.offset :],
            entry.shape,
            [stride * dtype.itemsize for stride in entry.strides],
        )
        if entry.dtype == "BOOL" and tensor.size and tensor.view(np.uint8).max() > 1:
            raise CheckpointError(f"{self.path}: {quote(name)} is bool but holds other values")
        return as_readable(tensor, entry.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def close(self) -> None:
        """Let go of the map; the system frees it with the last view."""
        self._data = None

    def _bytes(self, member: _Member) -> Array:
        if self._data is None:
            raise ValueError(f"{self.path} is closed")
        raw = self._data[member.begin : member.end]
        return _inflated(raw, member.size) if member.deflated else raw

    def _read_zip(self, file: BinaryIO, data: Array) -> dict[str, Entry]:
        members = _members(file, data)
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"the zip holds data.pkl {len(roots)} times, expected once")
        (root,) = roots
        if f"{root}byteorder" in members:
            _check_little(bytes(self._small(members[f"{root}byteorder"])) == b"little")

        def storage_of(said: Any) -> Storage:
            storage = _storage(said, 5)
            member = members.get(f"{root}data/{storage.key}")
            if member is None:
                raise ValueError(f"the zip lacks storage {quote(storage.key)}")
            if member.size != storage.nbytes:
                raise ValueError(
                    f"storage {quote(storage.key)} is {storage.count} elements of {storage.dtype}, "
                    f"{storage.nbytes} bytes, but the zip holds {member.size}"
                )
            self._storages[storage.key] = member
            return storage

        pickled = self._small(members[f"{root}data.pkl"]).data
        return _tensors(PickleReader(pickled, 0, _FUNCTIONS, storage_of).load())

    def _small(self, member: _Member) -> Array:
        if member.size > MAX_BYTES:
            raise ValueError(f"the pickle has {member.size} bytes, expected at most {MAX_BYTES}")
        return self._bytes(member)

    def _read_legacy(self, data: memoryview) -> dict[str, Entry]:
        position = 0
        for expected in (_MAGIC, _PROTOCOL):
            reader = PickleReader(data, position)
            found = reader.load()
            if type(found) is not int or found != expected:
                raise ValueError("it begins neither as a zip nor with torch's magic number")
            position = reader.position
        reader = PickleReader(data, position)
        system = reader.load()
        _check_little(isinstance(system, dict) and system.get("little_endian") is True)
        storages: dict[str, Storage] = {}

        def storage_of(said: Any) -> Storage:
            storage = _storage(said, 6)
            if storages.setdefault(storage.key, storage) != storage:
                raise ValueError(f"storage {quote(storage.key)} is described in two ways")
            return storage

        reader = PickleReader(data, reader.position, _FUNCTIONS, storage_of)
        tensors = _tensors(reader.load())
        reader = PickleReader(data, reader.position)
        keys = reader.load()
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise ValueError("the order of the storages is not a list of their names")
        if len(set(keys)) < len(keys) or set(keys) != storages.keys():
            raise ValueError("the storages listed are not those of the tensors")
        position = reader.position
        for key in keys:
            storage = storages[key]
            count = int.from_bytes(data[position : position + 8], "little")
            begin, position = position + 8, position + 8 + storage.nbytes
            if count != storage.count or position > len(data):
                raise ValueError(f"storage {quote(key)} lacks its {storage.count} elements")
            self._storages[key] = _Member(begin, position, storage.nbytes)
        if position < len(data):
            raise ValueError(f"{len(data) - position} bytes after the last storage belong to none")
        return tensors


def _check_little(is_little: bool) -> None:
    if not is_little:
        raise ValueError("its byte order is not little-endian")


def _inflated(raw: Array, size: int) -> Array:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than promised would show that there is more.
        content = inflater.decompress(raw.data, size + 1)
    except zlib.error as error:
        raise CheckpointError(f"the zip is broken: {error}") from None
    if len(content) != size or not inflater.eof:
        raise CheckpointError(f"the zip does not hold the {size} bytes that it promises")
    return np.frombuffer(content, np.uint8)


def _members(file: BinaryIO, data: Array) -> dict[str, _Member]:
    """Where each member of a zip lies; ValueError when two overlap or one leaves the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    # What zipfile raises for files that lie, beside its own exception.
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        struct.error,
        OverflowError,
    ) as error:
        raise ValueError(f"the zip is broken: {error}") from None
    members: dict[str, _Member] = {}
    position = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename
        if name in members:
            raise ValueError(f"the zip holds {quote(name)} twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or (
            info.flag_bits & 1  # encrypted
        ):
            raise ValueError(f"the zip keeps {quote(name)} in a way that torch does not")
        header = bytes(data[info.header_offset : info.header_offset + _LOCAL_HEADER.size])
        if info.header_offset < position or len(header) < _LOCAL_HEADER.size:
            raise ValueError(f"the zip's {quote(name)} overlaps the member before it or the end")
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        begin = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        position = begin + info.compress_size
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        if signature != b"PK\3\4" or position > len(data):
            raise ValueError(f"the zip's {quote(name)} is not where it should be")
        if not deflated and info.file_size != info.compress_size:
            raise ValueError(f"the zip's {quote(name)} has two sizes")
        members[name] = _Member(begin, position, info.file_size, deflated)
    return members


def _storage(said: Any, length: int) -> Storage:
    """From a persistent id: ("storage", type, key, device, count), before 1.6 one part more."""
    if type(said) is not tuple or len(said) != length or type(said[0]) is not str:
        raise ValueError("the pickle refers to what is not a storage")
    kind, dtype, key, _, count, *view = said
    if kind != "storage" or not isinstance(dtype, _Dtype) or type(key) is not str:
        raise ValueError("the pickle refers to what is not a storage of numbers")
    if not _is_size(count):
        raise ValueError(f"storage {quote(key)} has a size that is not one")
    if view and view[0] is not None:
        raise ValueError(f"storage {quote(key)} is a view of another, which is not supported")
    storage = Storage(key, dtype.name, count)
    if storage.nbytes > sys.maxsize:
        raise ValueError(f"storage {quote(key)} overflows")
    return storage


@dataclass(frozen=True, slots=True)
class _Dtype:
    name: str


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise ValueError("the pickle makes an OrderedDict of arguments")
    return {}


def _parameter(arguments: tuple[Any, ...]) -> Entry:
    if not arguments or not isinstance(arguments[0], Entry):
        raise ValueError("the pickle makes a parameter of what is not a tensor")
    return arguments[0]


def _tensor(arguments: tuple[Any, ...]) -> Entry:
    """storage, offset, shape, strides, and what training needs."""
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise ValueError("the pickle makes a tensor of what is not a storage")
    storage, offset, shape, strides = arguments[:4]
    if not _is_size(offset) or not _are_sizes(shape) or not _are_sizes(strides):
        raise ValueError("the pickle makes a tensor whose offset, shape or strides are no sizes")
    if len(shape) != len(strides) or len(shape) > MAX_DIMS:
        raise ValueError(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    itemsize = DTYPES[storage.dtype].itemsize
    # NumPy bounds the product of the sizes that are not zero, too.
    if math.prod(size for size in shape if size) * itemsize > sys.maxsize:
        raise ValueError(f"a tensor has shape {quote(list(shape))}, which overflows")
    elements = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # More elements than the storage has: a small file that would take all memory when copied.
    if elements > storage.count or (elements and last >= storage.count) or offset > storage.count:
        raise ValueError(
            f"a tensor of shape {quote(list(shape))}, strides {quote(list(strides))} and offset "
            f"{offset} does not lie inside its storage of {storage.count} elements"
        )
    # A stride that leads nowhere may be any number.
    strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides, strict=True))
    return Entry(storage.dtype, shape, strides, offset, storage)


_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): _Dtype(dtype) for name, dtype in _STORAGES.items()},
}


def _tensors(value: Any) -> dict[str, Entry]:
    if type(value) is not dict:
        raise ValueError(f"it is {_kind(value)}, expected a dict of tensors")
    for name, entry in value.items():
        if not isinstance(entry, Entry):
            raise ValueError(f"{quote(name)} is {_kind(entry)}, expected a tensor")
    return value


def _kind(value: Any) -> str:
    return "a tensor" if isinstance(value, Entry) else f"of type {type(value).__name__}"


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= sys.maxsize


def _are_sizes(value: Any) -> bool:
    return type(value) is tuple and all(_is_size(size) for size in value)
