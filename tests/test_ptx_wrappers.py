"""Every wrapper of ptx.cuh means the same under ptxrun, as nvcc compiles it, and under simt."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import ptx
import pytest
import softgate

SOURCE = "../tests/ptx_wrappers.cu"
LANES, IN, OUT = 32, 16, 4
# The units in the last place by which results may differ: ex2.approx is approximate.
WRAPPERS = {
    "mma_m16n8k16_f32_f16": 0,
    "mma_m16n8k16_f32_bf16": 0,
    "mma_m16n8k32_s32_s8": 0,
    "ldmatrix_x4": 0,
    "ldmatrix_x4_trans": 0,
    "ld_shared_v4_u32": 0,
    "ld_shared_v2_u32": 0,
    "ld_global_nc_v4_u32": 0,
    "ld_global_nc_v2_u32": 0,
    "cp_async_16": 0,
    "ex2_approx_ftz": 2,
    "cvt_rn_f16x2": 0,
    "cvt_rn_bf16x2": 0,
}


@pytest.fixture(scope="module")
def simt():
    path = Path(softgate.__file__).parent / "_simt_wrappers.so"
    if not path.exists():
        ptx.missing("simt (SOFTGATE_SIMT=ON)")
    library = ctypes.CDLL(path)
    library.simt_wrapper.restype = ctypes.c_char_p
    return library


def random_words(name: str, random: np.random.Generator) -> np.ndarray:
    floats = random.standard_normal((LANES, IN)).astype(np.float32)
    if name.startswith("ex2"):
        floats *= 60.0
        floats[::5, ::2] = random.choice([0.0, -0.0, np.inf, -np.inf, -126.5, -150.0, 127.9], 8)
    elif name.startswith("cvt"):
        floats *= np.exp2(random.integers(-30, 20, floats.shape)).astype(np.float32)
        floats[::5, ::2] = random.choice([0.0, -0.0, np.inf, 65519.9, 65520.0, 6e-8, 3.4e38], 8)
    words = floats.view(np.uint32).copy()
    if name.endswith("s8"):
        return random.integers(0, 2**32, (LANES, IN), dtype=np.uint32) >> 1
    if name.startswith("mma"):
        pairs = random.standard_normal((LANES, 12)).astype(np.float32)
        if name.endswith("bf16"):
            halves = (pairs.view(np.uint32) >> 16).astype(np.uint16)
        else:
            halves = pairs.astype(np.float16).view(np.uint16)
        words[:, :6] = halves.view(np.uint32)
    return words


def test_no_wrapper_is_left_out():
    source = (ptx.ROOT / "csrc" / "cuda" / "ptx.cuh").read_text()
    source = source[source.index("#else") :]
    defined = set(re.findall(r"^__device__ __forceinline__ \S+ (\w+)\(", source, re.MULTILINE))
    used_by_others = {"shared_address", "cp_async_commit", "cp_async_wait"}
    assert defined - used_by_others == WRAPPERS.keys()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", WRAPPERS)
def test_means_the_same(simt, name, seed):
    words = random_words(name, np.random.default_rng(seed))
    compiled = np.zeros((LANES, OUT), np.uint32)
    result = ptx.kernel(SOURCE, name).launch(
        1, LANES, [words, compiled], smem=1024, readonly=(0,), seed=seed
    )
    assert not result.errors, "\n".join(result.errors)
    meant = np.zeros_like(compiled)
    pointer = ctypes.c_void_p
    report = simt.simt_wrapper(
        name.encode(), pointer(words.ctypes.data), pointer(meant.ctypes.data)
    )
    assert report == b""
    assert (meant != 0).any()
    apart = np.abs(compiled.astype(np.int64) - meant.astype(np.int64))
    assert apart.max() <= WRAPPERS[name]
