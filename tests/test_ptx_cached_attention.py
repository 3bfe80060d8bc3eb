"""attention.cu on keys in a cache, as nvcc compiles it, run by ptxrun."""

from __future__ import annotations

from typing import Any

import numpy as np
import ptx
import pytest
from cases.cached_attention import CachedAttentionCase
from devices import naive, rounded
from softgate import reference
from test_ptx_attention import (
    HEAD_DIMS,
    SPLIT_KEYS,
    SPLIT_ROWS,
    Run,
    every_order,
    relative_bias,
)
from tolerances import assert_close, cached_attention_scale


class CachedRun(Run):
    """One call of the launcher."""

    def __init__(self, dtype: str, a: dict[str, Any], **options: Any) -> None:
        self.dtype, self.options, self.results = dtype, options, []
        (total_q, num_heads, head_dim), k_shape = a["q"].shape, a["k_cache"].shape
        rows, capacity, num_kv_heads, _ = k_shape
        batch = len(a["lengths_k"])
        inputs = [ptx.to_bits(a[name], dtype) for name in ("q", "k_cache", "v_cache")]
        lengths = [a["cu_seqlens_q"].copy(), None, a["lengths_k"].copy(), a["cache_rows"]]
        bias, bias_sizes = relative_bias(a)
        for array in [*inputs, *lengths, bias]:
            if array is not None:
                array.flags.writeable = False
        self.out = ptx.to_bits(np.full(a["q"].shape, np.nan), dtype)

        lens_q = np.diff(a["cu_seqlens_q"])
        max_q, min_q = lens_q.max(initial=0), lens_q[lens_q > 0].min(initial=total_q)
        sizes = [batch, num_heads, num_kv_heads, head_dim, total_q, 0, max_q, capacity, min_q]
        heads = (num_heads, num_kv_heads, num_kv_heads, num_heads)  # of q, k, v, out
        strides = [*(head_dim * count for count in heads), *[head_dim] * 4]
        strides += [capacity * num_kv_heads * head_dim] * 2 + [rows, *[0] * 4, *bias_sizes]
        scale = head_dim**-0.5 if a["scale"] is None else a["scale"]
        left, right = a["window"]
        self.args = [
            *inputs, self.out, None, None, *lengths, None, None, bias,
            *map(np.int64, [*sizes, *strides]),
            np.float32(scale), np.float32(a["softcap"]),
            np.int64(left), np.int64(0 if a["causal"] else right),
        ]  # fmt: skip
        self.batch, self.max_q, self.heads, self.head_dim = batch, max_q, heads, head_dim
        self.general = bias is not None or a["softcap"] > 0 or not scale > 0
        group = num_heads // num_kv_heads
        if max_q * group > SPLIT_ROWS:
            self.start_tiles(total_q * group, split=False)
        if min_q * group <= SPLIT_ROWS:
            # Every row of the cache has parts for all that it may hold.
            self.start_tiles(batch * (capacity // SPLIT_KEYS) * SPLIT_KEYS, split=True)


def check(case: CachedAttentionCase, dtype: str, **options: Any) -> CachedRun:
    a = {name: rounded(value, dtype) for name, value in case.arguments().items()}
    run = CachedRun(dtype, a, **options)
    is_16_bit = dtype != "float32"
    assert_close(
        ptx.to_float64(run.out, dtype),
        reference.cached_attention(**a),
        scale=0.0 if is_16_bit else cached_attention_scale(**a),
        terms=max(case.key_lengths),
        dtype=dtype,
        naive=naive("cached_attention", dtype, **a) if is_16_bit else None,
    )
    return run


@every_order
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_decode(head_dim, dtype, order):
    more = {"num_heads": 8, "num_kv_heads": 2, "head_dim": head_dim}
    case = CachedAttentionCase((1, 3, 0, 2, 1), (300, 5, 40, 256, 0), rows=(3, 0, 2, 4, 1), **more)
    run = check(case, dtype, **order)
    assert len(run.results) == 2  # the split, what joins it
    check(CachedAttentionCase((1, 1), (700, 10), window=(40, 0), softcap=5.0, **more), dtype)
    check(CachedAttentionCase((1, 2), (300, 10), reach=128, **more), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_chunk_of_a_prompt(head_dim, dtype):
    more = {"num_heads": 2, "num_kv_heads": 1, "head_dim": head_dim}
    check(CachedAttentionCase((40, 1), (170, 33), rows=(2, 0), **more), dtype)
    check(CachedAttentionCase((40,), (170,), window=(50, 0), softcap=5.0, **more), dtype)
    check(CachedAttentionCase((40,), (170,), reach=31, **more), dtype)


@every_order
@pytest.mark.parametrize("head_dim", [8, 33, 64, 80, 128, 256])
def test_float32(head_dim, order):
    more = {"num_heads": 4, "num_kv_heads": 2, "head_dim": head_dim}
    check(
        CachedAttentionCase((1, 3, 0, 20), (300, 5, 4, 40), rows=(3, 0, 2, 1), **more),
        "float32",
        **order,
    )
    check(CachedAttentionCase((1, 20), (300, 40), reach=20, **more), "float32", **order)


@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
def test_lengths_and_rows_outside_of_the_cache(dtype):
    a = CachedAttentionCase((1,) * 5, (40,) * 5, head_dim=32, spare=0).arguments()
    a = {name: rounded(value, dtype) for name, value in a.items()}
    a["cache_rows"] = np.array([0, 5, -1, 2**31 - 1, 4], np.int32)
    a["lengths_k"] = np.array([2**31 - 1, 40, 40, 40, -1], np.int32)
    out = ptx.to_float64(CachedRun(dtype, a).out, dtype)
    assert np.isfinite(out[0]).all()
    assert (out[1:] == 0.0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reads_the_keys_of_the_window_once(dtype):
    case = CachedAttentionCase((1,), (3000,), 4, 1, 64, window=(255, 0))
    a = {name: rounded(value, dtype) for name, value in case.arguments().items()}
    split, _ = CachedRun(dtype, a).results
    keys = 2 * (256 + 2 * 64) * 64 * 2  # those of the blocks that the window reaches
    written = 2 * 12 * 4 * 4 * 65 * 4  # of 12 parts; a store fills half of a sector
    assert ptx.sectors(split) <= 1.1 * (keys + written) / 32
