"""attention.cu as nvcc compiles it, run by ptxrun: results, races, waits, bank conflicts."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from cases import RAGGED, AttentionCase
from devices import naive, rounded
from ptxrun_kernels import ROOT, compile_ptx, kernel, launch, load, ptxrun  # noqa: F401
from softgate import reference
from tolerances import assert_close, attention_scales

HEAD_DIMS = (32, 64, 80, 96, 128, 256)
CPP = {"float32": "f", "float16": "half", "bfloat16": "bfloat16"}
INPUTS = {"q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "bool_mask", "add_mask"}
SPLIT_KEYS, SPLIT_ROWS = 256, 16

POINTERS = (
    *("q", "k", "v", "out", "lse", "weights", "cu_seqlens_q", "cu_seqlens_k"),
    *("lengths_k", "cache_rows", "bool_mask", "add_mask"),
)
SIZES = (
    *("batch", "num_heads", "num_kv_heads", "head_dim", "total_q", "total_k", "max_q", "max_k"),
    *("q_stride", "k_stride", "v_stride", "out_stride"),
    *("q_head_stride", "k_head_stride", "v_head_stride", "out_head_stride"),
    *("k_row_stride", "v_row_stride"),
    *("lse_stride", "mask_batch_stride", "mask_head_stride", "mask_row_stride"),
)


class Args(ctypes.Structure):
    """AttentionArgs of ops/attention.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
        *((name, ctypes.c_int64) for name in ("window_left", "window_right")),
    )


class Partials(ctypes.Structure):
    _fields_ = (
        ("partial_out", ctypes.c_void_p),
        ("partial_lse", ctypes.c_void_p),
        ("num_kv_heads", ctypes.c_int64),
    )


@pytest.fixture(scope="session")
def ptx(ptxrun, tmp_path_factory):  # noqa: F811
    source = ROOT / "csrc" / "cuda" / "attention.cu"
    return load(ptxrun, compile_ptx(source, tmp_path_factory.mktemp("ptx") / "attention.ptx"))


def to_device(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return array.astype(dtype)


def from_device(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


class Run:
    """One call of the launcher: its kernels, one after another."""

    def __init__(self, module: Any, dtype: str, a: dict[str, Any], **options: Any) -> None:
        self.module, self.options, self.results = module, options, []
        total_q, num_heads, head_dim = a["q"].shape
        lens_k = a["cu_seqlens_q"] if a["cu_seqlens_k"] is None else a["cu_seqlens_k"]
        batch = len(lens_k) - 1
        mask = a["mask"]
        longest = [int(np.diff(lens).max(initial=0)) for lens in (a["cu_seqlens_q"], lens_k)]
        max_q, max_k = longest if mask is None else mask.shape[-2:]
        self.arrays = {
            **{name: to_device(a[name], dtype) for name in "qkv"},
            "out": np.full_like(to_device(a["q"], dtype), 0x7F if dtype == "bfloat16" else np.nan),
            "lse": np.full((num_heads, total_q), np.nan, np.float32),
            "weights": np.full((batch, num_heads, max_q, max_k), np.nan, np.float32),
            "cu_seqlens_q": a["cu_seqlens_q"],
            "cu_seqlens_k": np.array(lens_k),
            "bool_mask": None,
            "add_mask": None,
        }
        args = Args()
        if mask is not None:
            mask = np.ascontiguousarray(mask)
            if mask.dtype == bool:
                self.arrays["bool_mask"] = mask.view(np.uint8)
            else:
                self.arrays["add_mask"] = mask.astype(np.float32)
            strides = (n // mask.itemsize for n in mask.strides)
            args.mask_batch_stride, args.mask_head_stride, args.mask_row_stride, _ = (
                stride if size > 1 else 0 for stride, size in zip(strides, mask.shape, strict=True)
            )
        args.batch, args.num_heads, args.num_kv_heads = batch, num_heads, a["k"].shape[1]
        args.head_dim, args.total_q, args.total_k = head_dim, total_q, len(a["k"])
        args.max_q, args.max_k, args.lse_stride = max_q, max_k, total_q
        for name in ("q", "k", "v", "out"):
            setattr(args, f"{name}_stride", self.arrays[name].shape[1] * head_dim)
            setattr(args, f"{name}_head_stride", head_dim)
        args.scale = head_dim**-0.5 if a["scale"] is None else a["scale"]
        args.softcap = a["softcap"]
        args.window_left, args.window_right = a["window"]
        if a["causal"]:
            args.window_right = 0
        self.args = args

        group = num_heads // args.num_kv_heads
        if dtype == "float32":
            padded = next(d for d in (32, 64, 96, 128, 256) if head_dim <= d)
            rows = 16 if padded > 128 else 32
            shared = 4 * (rows * padded + 32 * (padded + 4) + rows * 32)
            grid = (total_q * group // rows + batch, args.num_kv_heads)
            self.start(("attention_float", f"ILi{padded}E"), grid, 128, shared)
            return
        general = mask is not None or a["softcap"] > 0 or not args.scale > 0
        split = max_q * group <= SPLIT_ROWS
        warps = 2 if split and head_dim > 128 else 4
        row_tiles = 1 if split or head_dim > 128 else 2
        rows = 16 * row_tiles * (1 if split else warps)
        keys = 32 if head_dim > 128 else 64 if head_dim > 64 or split else 128
        shared = (rows + 2 * keys) * 2 * head_dim
        shape = f"Li{head_dim}ELb{int(split)}E"
        parts = (args.total_k // SPLIT_KEYS if split else total_q * group // rows) + batch
        partials = Partials(num_kv_heads=args.num_kv_heads)
        if split:
            count = parts * warps * args.num_kv_heads * SPLIT_ROWS
            self.arrays["partial_out"] = np.full((count, head_dim), np.nan, np.float32)
            self.arrays["partial_lse"] = np.full(count, np.nan, np.float32)
        self.start(
            ("attention_kernel", CPP[dtype], shape, f"EELb{int(general)}E"),
            (parts, args.num_kv_heads),
            32 * warps,
            shared,
            partials,
        )
        if split:
            grid = (-(-total_q // 4), num_heads)
            self.start(("combine", CPP[dtype], shape), grid, 128, 0, partials)

    def start(self, parts: tuple[str, ...], grid: tuple, block: int, shared: int, *more: Any):
        result = launch(
            kernel(self.module, *parts),
            grid,
            block,
            (self.args, *more),
            self.arrays,
            readonly=INPUTS,
            smem=shared,
            **self.options,
        )
        assert not result.errors, "\n".join(result.errors)
        self.results.append(result)

    def weights(self, dtype: str) -> np.ndarray:
        rows = self.args.batch * self.args.num_heads * self.args.max_q
        name = f"weights_kernelI{'f' if dtype == 'float32' else 'NS'}"
        self.start((name, CPP[dtype]), (-(-rows // 4), 1), 128, 0)
        return self.arrays["weights"]


def check(module: Any, case: AttentionCase, dtype: str, **options: Any) -> Run:
    a = {name: rounded(value, dtype) for name, value in case.arguments().items()}
    run = Run(module, dtype, a, **options)
    expected, expected_lse = reference.attention(**a, return_lse=True)
    scale, lse_scale, _ = attention_scales(**a)
    terms = max(case.key_lengths or case.lengths, default=1)
    assert_close(
        from_device(run.arrays["out"]),
        expected,
        scale=scale if dtype == "float32" else 0.0,
        terms=terms,
        dtype=dtype,
        naive=None if dtype == "float32" else naive("attention", dtype, **a),
    )
    # The log-sum-exp is float32 for any dtype.
    assert_close(run.arrays["lse"], expected_lse, scale=lse_scale, terms=terms, dtype="float32")
    return run


LONG = (130, 1, 0, 300, 17)


def cases(head_dim: int, heads: dict[str, int]) -> list[AttentionCase]:
    more = {"head_dim": head_dim, **heads}
    return [
        AttentionCase(LONG, **more),
        AttentionCase(LONG, causal=True, **more),
        AttentionCase((130, 40), (300, 20), causal=True, **more),
        AttentionCase((150,), (20,), causal=True, **more),  # a tile without keys
        AttentionCase((140,), (290,), window=(70, 20), **more),
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_whole_sequences(ptx, head_dim, dtype, seed):
    heads = {"num_heads": 2, "num_kv_heads": 1} if head_dim in (64, 80) else {"num_heads": 1}
    for case in cases(head_dim, heads)[seed % 2 :: 2]:
        check(ptx, case, dtype, seed=seed, strict_warp=seed == 1)


GENERAL = [
    AttentionCase((40, 150), (170, 33), num_heads=2, mask=mask, softcap=softcap, head_dim=64)
    for mask, softcap in [
        *(("bool", 0.0), ("bias", 0.0), ("bool_empty_rows", 0.0), ("minus_inf_late", 0.0)),
        *(("lowest_empty_rows", 0.0), (None, 3.0), ("bias", 5.0)),
    ]
] + [
    AttentionCase((40, 50), num_heads=2, mask="bool", mask_over=over, causal=True, head_dim=32)
    for over in ((False, False), (True, False), (False, True))
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", GENERAL, ids=str)
def test_masks(ptx, case, dtype):
    check(ptx, case, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_masked_at_every_head_dim(ptx, head_dim, dtype):
    check(ptx, AttentionCase((150,), num_heads=1, mask="bool", head_dim=head_dim), dtype, seed=1)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, 7.0])
@pytest.mark.parametrize("lengths", [(3, 1), (40, 20)])
def test_scales(ptx, lengths, scale):
    check(ptx, AttentionCase(lengths, (150, 40), scale=scale, head_dim=64), "float16")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_few_queries(ptx, head_dim, dtype, seed):
    more = {"num_heads": 8, "num_kv_heads": 2, "head_dim": head_dim}
    case = AttentionCase((1, 3, 0, 2, 1), (700, 5, 40, 256, 0), causal=True, **more)
    check(ptx, case, dtype, seed=seed, strict_warp=seed == 1)
    masked = AttentionCase((1, 1), (300, 10), mask="bool_padding", softcap=5.0, **more)
    check(ptx, masked, dtype, seed=seed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("head_dim", [8, 33, 64, 80, 128, 256])
def test_float32(ptx, head_dim, seed):
    more = {"num_heads": 2, "num_kv_heads": 1, "head_dim": head_dim}
    check(ptx, AttentionCase(RAGGED, causal=True, **more), "float32", seed=seed, strict_warp=True)
    masked = AttentionCase(
        (40,), (70,), mask="bool_empty_rows", window=(30, 5), softcap=4.0, **more
    )
    check(ptx, masked, "float32", seed=seed)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mask", [None, "bool_empty_rows"])
def test_weights(ptx, dtype, mask):
    case = AttentionCase(
        (9, 0, 20), (30, 4, 0), num_heads=4, num_kv_heads=2, mask=mask, causal=True, head_dim=32
    )
    a = {name: rounded(value, dtype) for name, value in case.arguments().items()}
    weights = Run(ptx, dtype, a).weights(dtype)
    expected = reference.attention(**a, return_weights=True)[1]
    _, _, size = attention_scales(**a)
    assert_close(weights, expected, scale=size * expected, terms=30, dtype="float32")
    assert (weights[expected == 0.0] == 0.0).all()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_no_bank_conflicts(ptx, head_dim):
    case = AttentionCase((300,), (700,), num_heads=1, head_dim=head_dim)
    (result,) = check(ptx, case, "float16").results
    shared = [access for access in result.memory() if access["waves"]]
    assert sum("ldmatrix" in access["where"] for access in shared) > 0
    assert sum("cp.async" in access["where"] for access in shared) > 0
    conflicts = [access for access in shared if access["waves"] > access["waves_ideal"]]
    assert not conflicts
