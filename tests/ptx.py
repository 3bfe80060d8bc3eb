"""Runs kernels as nvcc compiled them, through ptxrun, the PTX interpreter beside the tree.

Where nvcc or ptxrun is missing the test skips, or fails when SOFTGATE_PROOFS is "required".
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "ptx"
ARCH = "compute_80"

ELEMENTS = {"float32": "float", "float16": "half", "bfloat16": "bfloat16"}


def missing(what: str) -> None:
    if os.environ.get("SOFTGATE_PROOFS") == "required":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


@functools.cache
def ptxrun() -> Any:
    """The interpreter, built in a copy: the one beside the tree is read-only."""
    sources = next(
        (p / "shared/ptxrun" for p in ROOT.parents if (p / "shared/ptxrun").is_dir()), None
    )
    if sources is None:
        missing("shared/ptxrun")
    copy = BUILD / "ptxrun"
    if not (copy / "ptxrun" / "libptxrun.so").exists():
        shutil.copytree(sources, copy, dirs_exist_ok=True, copy_function=shutil.copyfile)
        subprocess.run(["bash", "build.sh"], cwd=copy, check=True, capture_output=True)
    sys.path.insert(0, str(copy))
    return importlib.import_module("ptxrun")


@functools.cache
def compiled(source: str, arch: str = ARCH) -> Any:
    """The module that nvcc makes of a file, named from csrc on."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        missing("nvcc")
    interpreter = ptxrun()
    BUILD.mkdir(parents=True, exist_ok=True)
    ptx = BUILD / f"{Path(source).stem}.{arch}.ptx"
    options = ["-std=c++20", "-O3", "-lineinfo", f"-arch={arch}", "-Werror", "all-warnings"]
    command = [nvcc, *options, f"-I{ROOT / 'csrc'}", "-ptx", ROOT / "csrc" / source, "-o", ptx]
    subprocess.run(command, check=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves closing the file to Python
        return interpreter.Module(str(ptx))


def readable(demangled: str) -> str:
    """A kernel's name without its namespaces and parameters: `softmax_kernel<float, 4, true>`."""
    name = re.sub(r"^void |\b\w+::|\(anonymous namespace\)::", "", demangled)
    return re.sub(r"\([^()]*\)$", "", name)


@functools.cache
def kernels(source: str, arch: str = ARCH) -> dict[str, str]:
    """Readable names of a file's kernels to mangled ones."""
    mangled = compiled(source, arch).names()
    text = "\n".join(mangled)
    names = subprocess.run(["c++filt"], input=text, text=True, check=True, capture_output=True)
    return dict(zip(map(readable, names.stdout.splitlines()), mangled, strict=True))


def kernel(source: str, name: str, arch: str = ARCH) -> Any:
    found = kernels(source, arch)
    assert name in found, f"{source} has no {name}, but {sorted(found)}"
    return compiled(source, arch)[found[name]]


class _Buffers:
    """The memory of a launch. A buffer ends with its array, so that ptxrun sees the first byte past
    it; it starts with the array or, where that is a view, at the 64-byte boundary before."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.written: list[bool] = []
        self._index: dict[tuple[int, int], int] = {}

    def address(self, array: np.ndarray) -> int:
        if array.size == 0:
            return 0
        begin = array.ctypes.data
        steps = zip(array.shape, array.strides, strict=True)
        end = begin + sum((n - 1) * step for n, step in steps) + array.itemsize
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        start = begin if root.ctypes.data == begin else begin & ~63
        index = self._index.setdefault((start, end), len(self.arrays))
        if index == len(self.arrays):
            memory = (ctypes.c_uint8 * (end - start)).from_address(start)
            self.arrays.append(np.frombuffer(memory, dtype=np.uint8))
            self.written.append(False)
        self.written[index] |= array.flags.writeable
        return (index + 1 << ptxrun().runtime.SHIFT) + begin - start


def launch(
    kernel: Any,
    grid: Any,
    block: Any,
    *structs: Sequence[Any],
    shared_bytes: int = 0,
    **options: Any,
) -> Any:
    """Runs a kernel whose parameters are structs of these fields, in their order and types: arrays
    for pointers (read-only ones may not be written), None for null, NumPy scalars."""
    buffers = _Buffers()
    values = [_struct(fields, buffers) for fields in structs]

    # ptxrun knows the memory that its arguments name: each buffer is one more, past the structs.
    low = kernel.low
    own = low.f.params[: len(values)]
    sizes = [size for _, _, size, *_ in own]
    assert sizes == [len(value) for value in values], f"the structs have {sizes} bytes"
    extra = [(f"buffer{i}", "u64", 8, 8) for i in range(len(buffers.arrays))]
    first = low.param_off[own[-1][0]] + sizes[-1]
    low.f.params = [*own, *extra]
    low.param_bytes = first + 8 * len(extra)
    low.param_off |= {name: first + 8 * i for i, (name, *_) in enumerate(extra)}
    readonly = [len(values) + i for i, written in enumerate(buffers.written) if not written]
    return kernel.launch(
        grid,
        block,
        [*values, *buffers.arrays],
        smem=shared_bytes,
        readonly=readonly,
        **options,
    )


def _struct(fields: Sequence[Any], buffers: _Buffers) -> bytes:
    struct = bytearray()
    for field in fields:
        if field is None:
            field = np.uint64(0)
        elif isinstance(field, np.ndarray):
            field = np.uint64(buffers.address(field))
        struct += bytes(-len(struct) % field.itemsize) + field.tobytes()
    return bytes(struct + bytes(-len(struct) % 8))


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to an element type; bfloat16 as the upper halves, in an array of uint16."""
    values = np.asarray(values, dtype=np.float32)
    if dtype != "bfloat16":
        return values.astype(dtype)
    wide = values.view(np.uint32)
    rounded = (wide + 0x7FFF + (wide >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def to_float64(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def sectors(report: Any) -> int:
    """32-byte sectors of global memory that a run moved."""
    return sum(access["sectors"] for access in report.memory())
