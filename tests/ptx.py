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

ELEMENTS = {"float32": "float", "float16": "softgate::half", "bfloat16": "softgate::bfloat16"}


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
    """The module that nvcc makes of a file in csrc."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        missing("nvcc")
    interpreter = ptxrun()
    BUILD.mkdir(parents=True, exist_ok=True)
    ptx = BUILD / f"{Path(source).stem}.{arch}.ptx"
    options = ["-std=c++20", "-O3", "-lineinfo", f"-arch={arch}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([nvcc, *options, "-ptx", ROOT / "csrc" / source, "-o", ptx], check=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves closing the file to Python
        return interpreter.Module(str(ptx))


@functools.cache
def _entries(source: str, arch: str) -> dict[str, str]:
    """Readable names, such as `softmax_kernel<float, 4, true>`, to mangled ones."""
    mangled = compiled(source, arch).names()
    text = "\n".join(mangled)
    names = subprocess.run(["c++filt"], input=text, text=True, check=True, capture_output=True)
    readable = [
        re.sub(r"^void softgate::cuda::(\(anonymous namespace\)::)?|\([^()]*\)$", "", name)
        for name in names.stdout.splitlines()
    ]
    return dict(zip(readable, mangled, strict=True))


def kernel(source: str, name: str, arch: str = ARCH) -> Any:
    entries = _entries(source, arch)
    assert name in entries, f"{source} has no {name}, but {sorted(entries)}"
    return compiled(source, arch)[entries[name]]


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
    fields: Sequence[Any],
    *,
    shared_bytes: int = 0,
    **options: Any,
) -> Any:
    """Runs a kernel whose one parameter is a struct of these fields, in their order and types:
    arrays for pointers (read-only ones may not be written), None for null, NumPy scalars."""
    buffers = _Buffers()
    struct = bytearray()
    for field in fields:
        if field is None:
            field = np.uint64(0)
        elif isinstance(field, np.ndarray):
            field = np.uint64(buffers.address(field))
        struct += bytes(-len(struct) % field.itemsize) + field.tobytes()
    struct += bytes(-len(struct) % 8)

    # ptxrun knows the memory that its arguments name: each buffer is one more, past the struct.
    low = kernel.low
    (parameter, *_) = low.f.params
    assert parameter[2] == len(struct), f"the struct has {parameter[2]} bytes, not {len(struct)}"
    extra = [(f"buffer{i}", "u64", 8, 8) for i in range(len(buffers.arrays))]
    low.f.params = [parameter, *extra]
    low.param_bytes = len(struct) + 8 * len(extra)
    low.param_off |= {name: len(struct) + 8 * i for i, (name, *_) in enumerate(extra)}
    readonly = [i + 1 for i, written in enumerate(buffers.written) if not written]
    return kernel.launch(
        grid,
        block,
        [bytes(struct), *buffers.arrays],
        smem=shared_bytes,
        readonly=readonly,
        **options,
    )


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
