"""rotary.cu as nvcc compiles it, run by ptxrun: results, and nothing written elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import ptx
import pytest
from cases.rotary import RotaryCase
from devices import naively, rounded
from softgate import reference
from tolerances import assert_close, rotary_scales

SOURCE = "cuda/rotary.cu"
HEADS = 4  # of a block
ORDERS = ({"seed": 0}, {"seed": 1}, {"strict_warp": True})


def run(a: dict[str, Any], dtype: str, **options: Any) -> tuple[Any, list[np.ndarray]]:
    """As the launcher does: ptxrun's report; q and the caches."""
    k_shape = a["k_cache"].shape
    rows, capacity, num_kv_heads, head_dim = k_shape
    num_heads, total, batch = a["num_heads"], len(a["qkv"]), len(a["starts"])
    half = 0 if a["cos"] is None else a["cos"].shape[1]

    def inputs(*names: str, exact: bool = False) -> list[np.ndarray | None]:
        arrays = [a[name] for name in names]
        copies = [
            None if x is None else x.copy() if exact else ptx.to_bits(x, dtype) for x in arrays
        ]
        for copy in copies:
            if copy is not None:
                copy.flags.writeable = False
        return copies

    results = [
        ptx.to_bits(np.full(shape, np.nan), dtype)
        for shape in ((total, num_heads, head_dim), k_shape, k_shape)
    ]
    positions = capacity if half == 0 else min(capacity, len(a["cos"]))
    columns = (num_heads + 2 * num_kv_heads) * head_dim
    sizes = [batch, total, num_heads, num_kv_heads, head_dim, 2 * half, positions, rows]
    cache = [capacity * num_kv_heads * head_dim, num_kv_heads * head_dim, head_dim]
    strides = [columns, num_heads * head_dim, head_dim, half, half, *cache, *cache]
    fields = [
        *inputs("qkv", "q_norm", "k_norm"), *inputs("cos", "sin", exact=True), *results,
        *inputs("cu_seqlens", "starts", "cache_rows", exact=True),
        *map(np.int64, [*sizes, *strides]), np.float32(a["eps"]), np.bool_(a["interleaved"]),
    ]  # fmt: skip
    grid = (total, -(-(num_heads + 2 * num_kv_heads) // HEADS))
    kernel = ptx.kernel(SOURCE, f"rotary_kernel<{ptx.ELEMENTS[dtype]}>")
    report = ptx.launch(kernel, grid, (32, HEADS), fields, **options)
    assert not report.errors, "\n".join(report.errors)
    return report, [ptx.to_float64(result, dtype) for result in results]


def arguments(case: RotaryCase, dtype: str) -> dict[str, Any]:
    return {
        name: value if name in ("cos", "sin") else rounded(value, dtype)
        for name, value in case.arguments().items()
    }


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
@pytest.mark.parametrize(
    "case",
    [
        RotaryCase((3, 0, 2), (4, 1, 0), 9, 3, 64),
        RotaryCase((3, 2), (4, 1), 4, 2, 80, norm="qk", rows=(2, 0)),
        RotaryCase((1,) * 40, num_heads=2, head_dim=33, rotary_dim=6, norm="q"),
        RotaryCase((3,), num_heads=2, head_dim=128, rotary_dim=96, norm="k", interleaved=True),
        RotaryCase((3,), (2,), head_dim=256, norm="qk", spare=0),
        RotaryCase((2,), head_dim=6, rotary_dim=0),
    ],
    ids=str,
)
def test_matches_reference(case, dtype, order):
    a = arguments(case, dtype)
    _, results = run(a, dtype, **order)
    expected, scales = reference.rotary(**a), rotary_scales(**a)
    with naively(dtype):
        rough = reference.rotary(**a)
    terms = case.head_dim if case.norm else 1
    for actual, right, scale, steps in zip(results, expected, scales, rough, strict=True):
        naive = None if dtype == "float32" else np.asarray(steps)
        assert_close(actual, right, scale=scale, terms=terms, dtype=dtype, naive=naive)


@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
@pytest.mark.parametrize("argument", ["starts", "cache_rows"])
@pytest.mark.parametrize("bad", [-2, 2**31 - 1, -(2**31)])
def test_outside_of_the_cache(argument, bad, dtype):
    a = arguments(RotaryCase((2, 1), (3, 1), rows=(1, 0)), dtype)
    a[argument][0] = bad
    _, (q, k_cache, v_cache) = run(a, dtype)
    assert np.isnan(q[:2]).all()
    assert np.isfinite(q[2]).all()
    for cache in (k_cache, v_cache):
        assert np.argwhere(np.isfinite(cache).all(axis=(2, 3))).tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", ptx.ELEMENTS)
def test_moves_each_element_once(dtype):
    case = RotaryCase((16,), num_heads=8, num_kv_heads=4, head_dim=128, spare=0)
    a = arguments(case, dtype)
    report, results = run(a, dtype)
    bytes_moved = 2 * a["qkv"].size * (4 if dtype == "float32" else 2)
    angles = 2 * 16 * 12 * 64 * 4  # of each head of q and k, out of the cache
    assert ptx.sectors(report) <= 1.1 * (bytes_moved + angles) / 32
    assert np.isfinite(results[0]).all()


def test_no_instance_is_left_out():
    assert ptx.kernels(SOURCE).keys() == {f"rotary_kernel<{t}>" for t in ptx.ELEMENTS.values()}
