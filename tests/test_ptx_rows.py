"""The row-wise CUDA kernels as nvcc compiled them: every instance, on ragged shapes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import ptx
import pytest
from cases.embedding import EmbeddingCase
from cases.normalize import NormalizeCase
from cases.pool import PoolCase
from cases.softmax import SoftmaxCase
from layouts import place
from softgate import reference
from tolerances import assert_close, embedding_scale, softmax_scale

HELD = 16  # elements of a row that a thread keeps, as cuda/rows.cuh has it


class Form(NamedTuple):
    """How an instance sees a row, and one that it can take."""

    vectors: bool
    in_registers: bool
    columns: int
    block: int  # threads of a row

    def __str__(self) -> str:
        where = "registers" if self.in_registers else "memory"
        return f"{'vectors' if self.vectors else 'scalars'}-{where}-{self.columns}"

    @property
    def layout(self) -> str:
        return "contiguous" if self.vectors else "strided"

    def kernel(self, op: str, dtype: str) -> Any:
        width = 16 // np.dtype(STORED[dtype]).itemsize if self.vectors else 1
        held = str(self.in_registers).lower()
        name = f"{op}_kernel<{ptx.ELEMENTS[dtype]}, {width}, {held}>"
        return ptx.kernel(f"cuda/{op}.cu", name)


FORMS = [
    Form(True, True, 40, 32),
    Form(True, True, 776, 64),
    Form(False, True, 37, 32),
    Form(False, True, 1023, 64),
    Form(True, False, 1000, 32),
    Form(True, False, 1000, 64),
    Form(False, False, 333, 64),
]
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}

every_form = pytest.mark.parametrize("form", FORMS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", STORED)


def stored(values: np.ndarray | None, dtype: str, layout: str) -> np.ndarray | None:
    """Read-only, in an element type and a layout."""
    if values is None:
        return None
    # The bits of a bfloat16 travel as a float16, whose guards are known to `place`.
    bits = ptx.to_bits(values, dtype)
    array = place(bits.view(np.float16) if dtype == "bfloat16" else bits, layout)
    array.flags.writeable = False
    return array.view(STORED[dtype]) if dtype == "bfloat16" else array


def empty(shape: tuple[int, ...], dtype: str, layout: str) -> np.ndarray:
    array = place(np.full(shape, np.nan, np.float16 if dtype == "bfloat16" else dtype), layout)
    return array.view(STORED[dtype])


def stride(array: np.ndarray) -> np.int64:
    """Elements between rows."""
    return np.int64(array.strides[0] // array.itemsize)


def run(kernel: Any, grid: Any, block: Any, fields: list[Any], out: np.ndarray, **options: Any):
    """The kernel's result, the same in any order of its warps and without a finding."""
    results = []
    for order in ({"seed": 0}, {"seed": 1}, {"seed": 2}, {"strict_warp": True}):
        out[...] = 0x7FFF if out.dtype.kind == "u" else np.nan
        report = ptx.launch(kernel, grid, block, fields, **options, **order)
        assert not report.errors
        results.append(out.copy())
    for other in results[1:]:
        assert np.array_equal(other.view(np.uint8), results[0].view(np.uint8))
    return results[0]


def run_rows(kernel: Any, rows: int, threads: int, fields: list[Any], out: np.ndarray):
    """As cuda/rows.cuh launches it: a warp has a row, or a block."""
    per_block = 4 if threads == 32 else 1
    grid = -(-rows // per_block)
    return run(kernel, grid, (threads, per_block), fields, out, shared_bytes=256)


def assert_matches(dtype: str, bits: np.ndarray, expected: np.ndarray, *, scale=0.0, terms=1):
    assert_close(ptx.to_float64(bits, dtype), expected, scale=scale, terms=terms, dtype=dtype)


@every_dtype
@every_form
@pytest.mark.parametrize("spoil", [None, "nan", "inf", "minus_inf"])
def test_softmax(form, dtype, spoil):
    case = SoftmaxCase(
        (5, form.columns), size=4.0, minus_inf="rows" if spoil == "minus_inf" else None
    )
    x = case.arguments()["x"]
    if spoil in ("nan", "inf"):
        x[1, form.columns // 2] = float(spoil)
        x[3, 0] = -np.inf
    x = stored(x, dtype, form.layout)
    out = empty(x.shape, dtype, form.layout)
    rows, columns = map(np.int64, x.shape)
    fields = [x, out, rows, columns, stride(x), stride(out)]
    actual = run_rows(form.kernel("softmax", dtype), 5, form.block, fields, out)
    values = ptx.to_float64(x, dtype)
    with np.errstate(invalid="ignore"):
        expected = reference.softmax(values)
        scale = softmax_scale(values, expected)
    assert_matches(dtype, actual, expected, scale=scale, terms=form.columns)


@every_dtype
@every_form
def test_softmax_in_place(form, dtype):
    values = SoftmaxCase((5, form.columns)).arguments()["x"]
    x = stored(values, dtype, form.layout)
    out = empty(x.shape, dtype, form.layout)
    out[...] = x
    rows, columns = map(np.int64, x.shape)
    fields = [out, out, rows, columns, stride(out), stride(out)]
    per_block = 4 if form.block == 32 else 1
    report = ptx.launch(
        form.kernel("softmax", dtype), -(-5 // per_block), (form.block, per_block), fields,
        shared_bytes=256, seed=1,
    )  # fmt: skip
    assert not report.errors
    expected = reference.softmax(ptx.to_float64(x, dtype))
    scale = softmax_scale(ptx.to_float64(x, dtype), expected)
    assert_matches(dtype, out, expected, scale=scale, terms=form.columns)


# Of normal size; squares that overflow float32, that underflow it; a row of zeros.
SIZES = [1.0, 1e30, 1e-30, 0.0]


@every_dtype
@every_form
@pytest.mark.parametrize("size", SIZES)
def test_normalize(form, dtype, size):
    if dtype == "float16" and size not in (0.0, 1.0):
        size = 6e4 if size > 1.0 else 1e-7  # all that it can hold
    x = NormalizeCase(5, form.columns, size=1.0).arguments()["x"]
    x = np.clip(x * np.float32(size), -6.5e4, 6.5e4) if dtype == "float16" else x * np.float32(size)
    x = stored(x, dtype, form.layout)
    out = empty(x.shape, dtype, form.layout)
    rows, columns = map(np.int64, x.shape)
    fields = [x, out, rows, columns, stride(x), stride(out), np.float32(1e-30)]
    actual = run_rows(form.kernel("normalize", dtype), 5, form.block, fields, out)
    expected = reference.normalize(ptx.to_float64(x, dtype), eps=1e-30)
    assert_matches(dtype, actual, expected, terms=form.columns)


@every_dtype
def test_normalize_nan_and_infinity(dtype):
    form = FORMS[1]
    x = NormalizeCase(5, form.columns).arguments()["x"]
    x[1, 5], x[3, 7] = np.nan, np.inf
    x = stored(x, dtype, form.layout)
    out = empty(x.shape, dtype, form.layout)
    rows, columns = map(np.int64, x.shape)
    fields = [x, out, rows, columns, stride(x), stride(out), np.float32(1e-12)]
    actual = run_rows(form.kernel("normalize", dtype), 5, form.block, fields, out)
    actual = ptx.to_float64(actual, dtype)
    assert np.isnan(actual[1]).all()
    assert np.isnan(actual[3, 7])
    assert (np.delete(actual[3], 7) == 0.0).all()
    assert np.isfinite(actual[[0, 2, 4]]).all()


def embedding_fields(ids, tables, weight, bias, out, eps) -> list[Any]:
    def padded(values: list[Any], filler: Any) -> list[Any]:
        return values + [filler] * (4 - len(values))

    return [
        np.int32(len(tables)),
        *padded(tables, None),
        *padded([stride(table) for table in tables], np.int64(0)),
        *padded([np.int64(len(table)) for table in tables], np.int64(0)),
        *padded(ids, None),
        *padded([np.bool_(array.dtype == np.int64) for array in ids], np.bool_(False)),
        weight,
        bias,
        out,
        *map(np.int64, out.shape),
        stride(out),
        np.float32(eps),
    ]


def embedding_arguments(case: EmbeddingCase, dtype: str):
    a = case.arguments()
    store = functools.partial(stored, dtype=dtype, layout=case.layout)
    for ids in a["ids"]:
        ids.flags.writeable = False
    tables = [store(table) for table in a["tables"]]
    return a["ids"], tables, store(a["norm_weight"]), store(a["norm_bias"])


@every_dtype
@every_form
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("tables", [(50,), (50, 7), (50, 7, 3, 9)], ids=len)
def test_embedding(form, dtype, norm, tables):
    case = EmbeddingCase(
        9, form.columns, tables, ("int64", "int32", "int32", "int64")[: len(tables)],
        norm=norm, norm_bias=len(tables) != 2, layout=form.layout,
    )  # fmt: skip
    ids, stored_tables, weight, bias = embedding_arguments(case, dtype)
    out = empty((9, form.columns), dtype, form.layout)
    fields = embedding_fields(ids, stored_tables, weight, bias, out, case.eps)
    actual = run_rows(form.kernel("embedding", dtype), 9, form.block, fields, out)

    wide = [ptx.to_float64(table, dtype) for table in stored_tables]
    affine = [None if a is None else ptx.to_float64(a, dtype) for a in (weight, bias)]
    expected = reference.embedding(ids, wide, *affine, eps=case.eps)
    if not norm and len(tables) == 1:
        assert np.array_equal(actual, stored_tables[0][ids[0]])  # nothing to round
    scale = embedding_scale(ids, wide, *affine, eps=case.eps)
    assert_matches(dtype, actual, expected, scale=scale, terms=form.columns)


@pytest.mark.parametrize("bad", [-1, 50, 2**40])
@pytest.mark.parametrize("norm", [False, True])
def test_embedding_of_an_id_outside_its_table(bad, norm):
    form, case = FORMS[0], EmbeddingCase(5, 40, (50, 7), ("int64", "int32"), norm=norm)
    ids, tables, weight, bias = embedding_arguments(case, "float32")
    ids[0] = ids[0].copy()
    ids[0][3] = bad
    out = empty((5, 40), "float32", "contiguous")
    fields = embedding_fields(ids, tables, weight, bias, out, case.eps)
    actual = run_rows(form.kernel("embedding", "float32"), 5, form.block, fields, out)
    assert np.isnan(actual[3]).all()
    assert np.isfinite(np.delete(actual, 3, axis=0)).all()


@every_dtype
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("hidden", [384, 768, 1024])
def test_embedding_moves_each_element_once(dtype, norm, hidden):
    form = Form(True, True, hidden, 32 * -(-hidden // (32 * HELD)))
    case = EmbeddingCase(16, hidden, (50, 16, 2), norm=norm)
    ids, tables, weight, bias = embedding_arguments(case, dtype)
    out = empty((16, hidden), dtype, "contiguous")
    fields = embedding_fields(ids, tables, weight, bias, out, case.eps)
    per_block = 4 if form.block == 32 else 1
    report = ptx.launch(
        form.kernel("embedding", dtype), 16 // per_block, (form.block, per_block), fields,
        shared_bytes=256,
    )  # fmt: skip
    assert not report.errors
    rows = 16 * (len(tables) + 1 + 2 * norm)  # read, written; weight and bias come from the cache
    assert ptx.sectors(report) <= 1.05 * rows * hidden * out.itemsize / 32


@every_dtype
@pytest.mark.parametrize("mode", ["mean", "cls", "max", "last"])
@pytest.mark.parametrize(("vectors", "hidden"), [(True, 200), (False, 37)])
@pytest.mark.parametrize("nan", [False, True])
def test_pool(dtype, mode, vectors, hidden, nan):
    case = PoolCase((3, 0, 70, 1), hidden, mode, nan=nan)
    a = case.arguments()
    layout = "contiguous" if vectors else "strided"
    x = stored(a["x"], dtype, layout)
    out = empty((4, hidden), dtype, layout)
    starts = a["cu_seqlens"]
    starts.flags.writeable = False
    fields = [
        x, starts, out, *map(np.int64, (len(x), 4, hidden)), stride(x), stride(out),
        np.int32(["mean", "cls", "max", "last"].index(mode)),
    ]  # fmt: skip
    width = 16 // out.itemsize if vectors else 1
    reduction = "Sum" if mode == "mean" else "Max"
    name = f"pool_kernel<{ptx.ELEMENTS[dtype]}, {width}, {reduction}>"
    block = (16, 8) if mode in ("mean", "max") else (128, 1)
    grid = (4, -(-hidden // (block[0] * width)))
    kernel = ptx.kernel("cuda/pool.cu", name)
    actual = run(kernel, grid, block, fields, out, shared_bytes=128 * width * 4)
    values = ptx.to_float64(x, dtype)
    expected = reference.pool(values, starts, mode)
    if mode != "mean":
        assert np.array_equal(ptx.to_float64(actual, dtype), expected, equal_nan=True)
    size = reference.pool(np.abs(values), starts, "mean")
    assert_matches(dtype, actual, expected, scale=size, terms=70)
