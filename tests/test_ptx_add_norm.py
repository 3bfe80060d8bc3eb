"""add_norm.cu as nvcc compiled it: every instance, on ragged shapes."""

from __future__ import annotations

import numpy as np
import ptx
import pytest
from cases.add_norm import AddNormCase
from devices import DTYPES, naive, rounded
from layouts import place
from softgate import reference
from tolerances import assert_close, assert_same_bits, norm_scale

PER_THREAD, MAX_THREADS = 16, 1024  # as in rows.cuh and add_norm.cu
ORDERS = ({"seed": 0}, {"seed": 1}, {"strict_warp": True})

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def instance(dtype: str, vectors: bool, hidden: int):
    width = 1 if not vectors else 4 if dtype == "float32" else 8
    held = str(hidden <= PER_THREAD * MAX_THREADS).lower()
    return ptx.kernel(
        "cuda/add_norm.cu", f"add_norm_kernel<{ptx.ELEMENTS[dtype]}, {width}, {held}>"
    )


def shape_of(rows: int, hidden: int):
    """Grid and block as the launcher chooses them."""
    threads = min(32 * -(-hidden // (32 * PER_THREAD)), MAX_THREADS)
    per_block = 4 if threads == 32 else 1
    return -(-rows // per_block), (threads, per_block)


def stored(values, dtype, layout, writeable=False):
    """In the dtype's memory; a bfloat16 travels as its bits."""
    if values is None:
        return None
    bits = ptx.to_bits(values, dtype)
    array = place(bits.view(np.float16) if dtype == "bfloat16" else bits, layout).view(bits.dtype)
    array.flags.writeable = writeable
    return array


def stride(array):
    return np.int64(0 if array is None else array.strides[0] // array.itemsize)


def run(case: AddNormCase, dtype: str, vectors: bool, center: bool, with_sum: bool, **order):
    a = {name: rounded(value, dtype) for name, value in case.arguments().items()}
    layout = "contiguous" if vectors else "strided"
    x, residual, weight, bias = (
        stored(a[name], dtype, layout) for name in ("x", "residual", "weight", "bias")
    )
    blank = np.full((case.rows, case.hidden), np.nan, np.float32)
    out, total = (stored(blank, dtype, layout, writeable=True) for _ in range(2))
    total = total if with_sum else None
    fields = [
        *(x, residual, weight, bias, out, total),
        *(np.int64(case.rows), np.int64(case.hidden)),
        *(stride(x), stride(residual), stride(out), stride(total)),
        *(np.float32(case.eps), np.bool_(center)),
    ]
    kernel = instance(dtype, vectors, case.hidden)
    grid, block = shape_of(case.rows, case.hidden)
    report = ptx.launch(kernel, grid, block, fields, shared_bytes=256, **order)
    assert not report.errors, "\n".join(report.errors)
    return a, out, total, report


@pytest.mark.parametrize("center", [True, False])
@every_dtype
@pytest.mark.parametrize(
    ("vectors", "hidden"),
    [(True, 40), (True, 776), (True, 16400), (False, 37), (False, 1023), (False, 16401)],
)
def test_every_instance(vectors, hidden, dtype, center):
    case = AddNormCase(5 if hidden < 10000 else 2, hidden)
    results = []
    for order in ORDERS:
        a, out, total, _ = run(case, dtype, vectors, center, True, **order)
        results.append(out)
    for other in results[1:]:
        assert_same_bits(other, results[0])
    sum_bits = ptx.to_bits(rounded(a["x"] + a["residual"], dtype), dtype)
    np.testing.assert_array_equal(total, sum_bits)
    op = "add_layer_norm" if center else "add_rms_norm"
    expected = getattr(reference, op)(**{k: v for k, v in a.items() if center or k != "bias"})
    expected = expected if center else expected + a["bias"]  # the kernel adds what it is given
    assert_close(
        ptx.to_float64(results[0], dtype),
        expected,
        scale=norm_scale(**a, center=center),
        terms=hidden,
        dtype=dtype,
        naive=None
        if dtype == "float32"
        else naive("add_layer_norm", dtype, **a)
        if center
        else None,
    )


@pytest.mark.parametrize("residual", [False, True])
@every_dtype
@pytest.mark.parametrize("hidden", [64, 768, 4096])
def test_each_element_is_read_and_written_once(hidden, dtype, residual):
    rows = 16
    case = AddNormCase(rows, hidden, residual=residual)
    _, out, _, report = run(case, dtype, True, True, residual)
    # Once per row: x, out, weight and bias (from the cache), with a residual also that and the sum.
    ideal = rows * hidden * out.itemsize / 32 * (6 if residual else 4)
    assert ptx.sectors(report) <= 1.05 * ideal
