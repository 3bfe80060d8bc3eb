"""attention.cu as nvcc compiles it, run by ptxrun: results, races, waits, bank conflicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import ptx
import pytest
from cases import RAGGED
from cases.attention import AttentionCase
from devices import naive, rounded
from softgate import reference
from tolerances import assert_close, attention_scales

SOURCE = "cuda/attention.cu"
HEAD_DIMS = (32, 64, 80, 96, 128, 256)
SPLIT_KEYS, SPLIT_ROWS = 256, 16
ORDERS = ({"seed": 0}, {"seed": 1}, {"strict_warp": True})

every_order = pytest.mark.parametrize("order", ORDERS, ids=str)


def relative_bias(a: dict[str, Any]) -> tuple[np.ndarray | None, list[int]]:
    """The bias, one row after the other, with the distance between rows and its reach."""
    if a["relative_bias"] is None:
        return None, [0, 0]
    bias = np.ascontiguousarray(a["relative_bias"], np.float32).copy()
    return bias, [bias.shape[1], bias.shape[1] // 2]


class Run:
    """One call of the launcher: its kernels, one after another."""

    def __init__(self, dtype: str, a: dict[str, Any], **options: Any) -> None:
        self.dtype, self.options, self.results = dtype, options, []
        total_q, num_heads, head_dim = a["q"].shape
        lens_k = a["cu_seqlens_q"] if a["cu_seqlens_k"] is None else a["cu_seqlens_k"]
        batch, num_kv_heads = len(lens_k) - 1, a["k"].shape[1]
        mask = a["mask"]
        longest = [int(np.diff(lens).max(initial=0)) for lens in (a["cu_seqlens_q"], lens_k)]
        max_q, max_k = longest if mask is None else mask.shape[-2:]

        inputs = [ptx.to_bits(a[name], dtype) for name in "qkv"]
        lengths = [np.array(a["cu_seqlens_q"]), np.array(lens_k)]
        masks, mask_strides = [None, None], (0, 0, 0)
        if mask is not None:
            mask = np.ascontiguousarray(mask)
            strides = (n // mask.itemsize for n in mask.strides)
            mask_strides = [
                stride if size > 1 else 0 for stride, size in zip(strides, mask.shape, strict=True)
            ][:3]
            masks[mask.dtype != bool] = mask.copy()
        bias, bias_sizes = relative_bias(a)
        for array in [*inputs, *lengths, *masks, bias]:
            if array is not None:
                array.flags.writeable = False
        self.out = ptx.to_bits(np.full(a["q"].shape, np.nan), dtype)
        self.lse = np.full((num_heads, total_q), np.nan, np.float32)
        self.weights = np.full((batch, num_heads, max_q, max_k), np.nan, np.float32)

        lens_q = np.diff(a["cu_seqlens_q"])
        min_q = lens_q[lens_q > 0].min(initial=total_q)
        sizes = [batch, num_heads, num_kv_heads, head_dim, total_q, len(a["k"])]
        sizes += [max_q, max_k, min_q]
        heads = (num_heads, num_kv_heads, num_kv_heads, num_heads)  # of q, k, v, out
        strides = [*(head_dim * count for count in heads), *[head_dim] * 4]
        strides += [num_kv_heads * head_dim] * 2 + [0, total_q, *mask_strides]  # no cache
        strides += bias_sizes
        scale = head_dim**-0.5 if a["scale"] is None else a["scale"]
        left, right = a["window"]
        self.args = [
            *inputs, self.out, self.lse, self.weights, *lengths, None, None, *masks, bias,
            *map(np.int64, [*sizes, *strides]),
            np.float32(scale), np.float32(a["softcap"]),
            np.int64(left), np.int64(0 if a["causal"] else right),
        ]  # fmt: skip

        self.batch, self.max_q, self.heads, self.head_dim = batch, max_q, heads, head_dim
        self.general = mask is not None or bias is not None or a["softcap"] > 0 or not scale > 0
        group = num_heads // num_kv_heads
        if max_q * group > SPLIT_ROWS:
            self.start_tiles(total_q * group, split=False)
        if min_q * group <= SPLIT_ROWS:
            self.start_tiles(len(a["k"]), split=True)

    def start_tiles(self, items: int, *, split: bool) -> None:
        """The kernel of long sequences or, with the one that joins its results, of short ones."""
        num_heads, num_kv_heads, *_ = self.heads
        warps, general = 4, str(self.general).lower()
        if self.dtype == "float32":
            dim = next(d for d in (32, 64, 96, 128, 256) if self.head_dim <= d)
            rows = 16 if split or dim > 128 else 32
            shared = 4 * (rows * dim + 32 * (dim + 4) + rows * 32)
            shape = f"FloatShape<{dim}, {str(split).lower()}>"
            name, partials = f"attention_float_kernel<{shape}, {general}>", 1
        else:
            dim = self.head_dim
            if split and dim > 128:
                warps = 2
            rows = 16 if split else 64 if dim > 128 else 128
            keys = 32 if dim > 128 else 64 if dim > 64 or split else 128
            if self.general and not split and dim <= 128:
                keys //= 2
            shared = (rows + 2 * keys) * 2 * dim
            shape = f"Shape<{dim}, {str(split).lower()}>"
            name = f"attention_kernel<{ptx.ELEMENTS[self.dtype]}, {shape}, {general}>"
            partials = warps
        parts = items // (SPLIT_KEYS if split else rows) + self.batch
        count = parts * partials * num_kv_heads * SPLIT_ROWS if split else 0
        results = [
            np.full((count, dim), np.nan, np.float32), np.full(count, np.nan, np.float32),
            np.int64(num_kv_heads),
        ]  # fmt: skip
        self.start(name, (parts, num_kv_heads), 32 * warps, shared, results)
        if split:
            name = f"combine_kernel<{ptx.ELEMENTS[self.dtype]}, {shape} >"
            self.start(name, (-(-len(self.out) // 4), num_heads), 128, 0, results)

    def start(self, name: str, grid: tuple, block: int, shared: int, *more: list[Any]) -> None:
        result = ptx.launch(
            ptx.kernel(SOURCE, name), grid, block, self.args, *more,
            shared_bytes=shared, **self.options,
        )  # fmt: skip
        assert not result.errors, "\n".join(result.errors)
        self.results.append(result)

    def run_weights(self) -> np.ndarray:
        rows = self.batch * self.heads[0] * self.max_q
        self.start(f"weights_kernel<{ptx.ELEMENTS[self.dtype]}>", (-(-rows // 4), 1), 128, 0)
        return self.weights


def check(case: AttentionCase, dtype: str, **options: Any) -> Run:
    a = {name: rounded(value, dtype) for name, value in case.arguments().items()}
    run = Run(dtype, a, **options)
    expected, expected_lse = reference.attention(**a, return_lse=True)
    scale, lse_scale, _ = attention_scales(**a)
    terms = max(case.key_lengths or case.lengths, default=1)
    assert_close(
        ptx.to_float64(run.out, dtype),
        expected,
        scale=scale if dtype == "float32" else 0.0,
        terms=terms,
        dtype=dtype,
        naive=None if dtype == "float32" else naive("attention", dtype, **a),
    )
    # The log-sum-exp is float32 for any dtype.
    assert_close(run.lse, expected_lse, scale=lse_scale, terms=terms, dtype="float32")
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
def test_whole_sequences(head_dim, dtype, seed):
    heads = {"num_heads": 2, "num_kv_heads": 1} if head_dim in (64, 80) else {"num_heads": 1}
    for case in cases(head_dim, heads)[seed % 2 :: 2]:
        check(case, dtype, seed=seed, strict_warp=seed == 1)


GENERAL = (
    [
        AttentionCase((40, 150), (170, 33), num_heads=2, mask=mask, softcap=softcap, head_dim=64)
        for mask, softcap in [
            *(("bool", 0.0), ("bias", 0.0), ("bool_empty_rows", 0.0), ("minus_inf_late", 0.0)),
            *(("lowest_empty_rows", 0.0), (None, 3.0), ("bias", 5.0)),
        ]
    ]
    + [
        AttentionCase((40, 50), num_heads=2, mask="bool", mask_over=over, causal=True, head_dim=32)
        for over in ((False, False), (True, False), (False, True))
    ]
    + [
        AttentionCase((40, 150), (170, 33), 4, 2, 64, causal=True, reach=60),
        AttentionCase((40, 1), num_heads=2, head_dim=32, mask="bool", softcap=3.0, reach=7),
    ]
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", GENERAL, ids=str)
def test_masks(case, dtype):
    check(case, dtype)


def test_no_instance_is_left_out():
    """By the tests of every head size below, and test_weights."""
    of_16_bits = ("half", "bfloat16")
    flags = ("false", "true")
    shapes = [f"Shape<{dim}, {split}>" for dim in HEAD_DIMS for split in flags]
    float_shapes = [f"FloatShape<{d}, {split}>" for d in (32, 64, 96, 128, 256) for split in flags]
    assert ptx.kernels(SOURCE).keys() == {
        *(f"attention_kernel<{t}, {s}, {g}>" for t in of_16_bits for s in shapes for g in flags),
        *(f"attention_float_kernel<{s}, {g}>" for s in float_shapes for g in flags),
        *(f"combine_kernel<{t}, {s} >" for t in of_16_bits for s in shapes if "true" in s),
        *(f"combine_kernel<float, {s} >" for s in float_shapes if "true" in s),
        *(f"weights_kernel<{t}>" for t in ptx.ELEMENTS.values()),
    }


@every_order
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_masked_at_every_head_dim(head_dim, dtype, order):
    check(AttentionCase((150,), num_heads=1, mask="bool", head_dim=head_dim), dtype, **order)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, 7.0])
@pytest.mark.parametrize("lengths", [(3, 1), (40, 20)])
def test_scales(lengths, scale):
    check(AttentionCase(lengths, (150, 40), scale=scale, head_dim=64), "float16")


@every_order
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_few_queries(head_dim, dtype, order):
    more = {"num_heads": 8, "num_kv_heads": 2, "head_dim": head_dim}
    case = AttentionCase((1, 3, 0, 2, 1), (300, 5, 40, 256, 0), causal=True, **more)
    check(case, dtype, **order)
    masked = AttentionCase((1, 1), (300, 10), mask="bool_padding", softcap=5.0, **more)
    check(masked, dtype, **order)
    check(AttentionCase((2, 1), (300, 10), reach=100, **more), dtype, **order)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_few_queries_beside_many(dtype):
    case = AttentionCase((4, 20, 0, 1), (300, 40, 5, 3), num_heads=4, num_kv_heads=2, head_dim=32)
    assert len(check(case, dtype).results) == 3  # the tiles, the split, what joins it


@every_order
@pytest.mark.parametrize("head_dim", [8, 33, 64, 80, 128, 256])
def test_float32(head_dim, order):
    more = {"num_heads": 2, "num_kv_heads": 1, "head_dim": head_dim}
    check(AttentionCase(RAGGED, causal=True, **more), "float32", **order)
    masked = AttentionCase(
        (40, 2), (70, 290), mask="bool_empty_rows", window=(300, 5), softcap=4.0, **more
    )
    check(masked, "float32", **order)
    check(AttentionCase((40, 2), (70, 290), causal=True, reach=33, **more), "float32", **order)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mask", [None, "bool_empty_rows"])
@every_order
def test_weights(dtype, mask, order):
    case = AttentionCase(
        (9, 0, 20), (30, 4, 0), num_heads=4, num_kv_heads=2, mask=mask, causal=True, head_dim=32,
        reach=None if mask else 11,
    )  # fmt: skip
    a = {name: rounded(value, dtype) for name, value in case.arguments().items()}
    weights = Run(dtype, a, **order).run_weights()
    expected = reference.attention(**a, return_weights=True)[1]
    _, _, size = attention_scales(**a)
    assert_close(weights, expected, scale=size * expected, terms=30, dtype="float32")
    assert (weights[expected == 0.0] == 0.0).all()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("mask", [None, "bool"])
@pytest.mark.parametrize("queries", [300, 16])
def test_no_bank_conflicts(head_dim, mask, queries):
    case = AttentionCase((queries,), (300,), num_heads=1, head_dim=head_dim, mask=mask)
    result, *_ = check(case, "float16").results  # bfloat16 differs in the products alone
    shared = [access for access in result.memory() if access["waves"]]
    assert sum("ldmatrix" in access["where"] for access in shared) > 0
    assert sum("cp.async" in access["where"] for access in shared) > 0
    conflicts = [access for access in shared if access["waves"] > access["waves_ideal"]]
    assert not conflicts
