"""Kernels as nvcc compiles them, run by ptxrun: an instrument beside this repository."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def missing(what: str) -> Any:
    """Skips, or fails where the proofs are required (.ci/run)."""
    if os.environ.get("SOFTGATE_PROOFS") == "required":
        pytest.fail(f"{what} is missing and SOFTGATE_PROOFS=required")
    pytest.skip(f"{what} is missing")


def nvcc() -> str:
    return shutil.which("nvcc") or missing("nvcc")


@cache
def _built_ptxrun(scratch: Path) -> Any:
    source = Path(os.environ.get("SOFTGATE_PTXRUN", ROOT.parent / "shared" / "ptxrun"))
    if not source.is_dir():
        return None
    copy = scratch / "ptxrun"
    shutil.copytree(source, copy)
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    subprocess.run(["./build.sh"], cwd=copy, check=True, capture_output=True)
    sys.path.insert(0, str(copy))
    import ptxrun

    return ptxrun


@pytest.fixture(scope="session")
def ptxrun(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The instrument, built from SOFTGATE_PTXRUN or from shared/ptxrun beside the repository."""
    return _built_ptxrun(tmp_path_factory.getbasetemp()) or missing("ptxrun")


def compile_ptx(source: Path, out: Path, arch: str = "compute_80") -> Path:
    command = [nvcc(), "-std=c++20", "-O3", "-lineinfo", f"-arch={arch}", "-ptx"]
    subprocess.run(
        [*command, "-Werror", "all-warnings", f"-I{ROOT / 'csrc'}", str(source), "-o", str(out)],
        check=True,
    )
    return out


def load(ptxrun: Any, path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the file open
        return ptxrun.Module(str(path))


def kernel(module: Any, *parts: str) -> Any:
    """The one entry of a module whose mangled name has all the parts."""
    names = [name for name in module.names() if all(part in name for part in parts)]
    assert len(names) == 1, f"{parts} name {len(names)} kernels"
    return module[names[0]]


def launch(
    kernel: Any,
    grid: Sequence[int],
    block: int,
    structs: Iterable[ctypes.Structure],
    arrays: Mapping[str, np.ndarray | None],
    *,
    readonly: Iterable[str] = (),
    **options: Any,
) -> Any:
    """Runs a kernel whose parameters are structs; a struct's field named like an array gets its
    device address. ptxrun knows arrays that are parameters: they are appended to the kernel's own.
    """
    low, structs = kernel.low, list(structs)
    given = {name: array for name, array in arrays.items() if array is not None and array.size}
    place = {name: (i + 1) << 36 for i, name in enumerate(given)}
    for struct in structs:
        for name, kind in struct._fields_:
            if kind is ctypes.c_void_p:
                setattr(struct, name, place.get(name, 0))
    before = low.f.params, dict(low.param_off), low.param_bytes
    low.f.params = list(low.f.params)
    start = -(-low.param_bytes // 8) * 8
    for i, name in enumerate(given):
        low.f.params.append((f"array_{name}", "u64", 8, 8))
        low.param_off[f"array_{name}"] = start + 8 * i
    low.param_bytes = start + 8 * len(given)
    first = len(structs)
    try:
        return kernel.launch(
            tuple(grid),
            block,
            [*(bytes(struct) for struct in structs), *given.values()],
            readonly=tuple(first + i for i, name in enumerate(given) if name in readonly),
            **options,
        )
    finally:
        low.f.params, low.param_off, low.param_bytes = before
