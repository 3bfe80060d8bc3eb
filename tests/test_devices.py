"""The case table on a device other than the CPU: pytest --device simt, or cuda."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import softgate
from cases import Case
from cases.add_norm import ADD_NORM, AddNormCase
from cases.embedding import EMBEDDING, EmbeddingCase
from cases.linear import LINEAR, LinearCase
from cases.normalize import NORMALIZE, NormalizeCase
from cases.pool import POOL, POOLINGS, PoolCase
from cases.softmax import SOFTMAX, SoftmaxCase
from devices import DTYPES, OnDevice, fetched, naive, on_device, rounded
from softgate import ops, reference
from tolerances import (
    assert_close,
    assert_same_bits,
    embedding_scale,
    linear_scale,
    norm_scale,
    softmax_scale,
)


@dataclass(frozen=True)
class Op:
    cases: Sequence[Case]
    scale: Callable[..., np.ndarray]  # of the arguments, as tolerances.py means it
    terms: Callable[[Any], int]  # of the case
    without: tuple[str, ...] = ()  # arguments of the cases that the op does not take


OPS = {
    "add_layer_norm": Op(
        ADD_NORM, lambda **a: norm_scale(**a, center=True), lambda case: case.hidden
    ),
    "add_rms_norm": Op(
        ADD_NORM, lambda **a: norm_scale(**a, center=False), lambda case: case.hidden, ("bias",)
    ),
    "embedding": Op(EMBEDDING, embedding_scale, lambda case: case.hidden if case.norm else 1),
    "linear": Op(
        # Large enough for the larger tiles (csrc/cuda/linear.cu).
        [*LINEAR, LinearCase(40, 104, 8192), LinearCase(70, 104, 16384)],
        lambda activation, **a: linear_scale(**a),
        lambda case: case.in_features,
    ),
    "normalize": Op(NORMALIZE, reference.normalize, lambda case: case.hidden),
    "pool": Op(
        POOL,
        lambda x, cu_seqlens, mode: reference.pool(np.abs(x), cu_seqlens, mode),
        lambda case: max(case.lengths, default=1),
    ),
    "softmax": Op(
        SOFTMAX, lambda x: softmax_scale(x, reference.softmax(x)), lambda case: case.shape[-1]
    ),
}

EVERY_CASE = [
    pytest.param(op, case, id=f"{op}-{case}") for op, found in OPS.items() for case in found.cases
]


def arguments(op: str, case: Case, dtype: str) -> dict[str, Any]:
    """Of the case, in numbers of the dtype."""
    return {
        name: rounded(value, dtype)
        for name, value in case.arguments().items()
        if name not in OPS[op].without
    }


def run(op: str, case: Case, device: str, dtype: str, **results: Any) -> softgate.Tensor:
    layout = getattr(case, "layout", "contiguous")
    given = {
        name: on_device(value, device, dtype, layout)
        for name, value in arguments(op, case, dtype).items()
    }
    if op == "linear":
        given["weight"] = ops.pack(given["weight"])
    return getattr(ops, op)(**given, **results)


def assert_matches_reference(op: str, case: Case, result: softgate.Tensor) -> None:
    dtype = result.dtype
    a = arguments(op, case, dtype)
    with np.errstate(all="ignore"):
        expected = getattr(reference, op)(**a)
        scale = OPS[op].scale(**a)
    assert_close(
        fetched(result),
        expected,
        scale=scale,
        terms=OPS[op].terms(case),
        dtype=dtype,
        naive=None if dtype == "float32" else naive(op, dtype, **a),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_matches_reference(device, op, case, dtype):
    result = run(op, case, device, dtype)
    assert (result.device, result.dtype) == (device, dtype)
    assert_matches_reference(op, case, result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "case"), EVERY_CASE[::2])
def test_writes_out_and_nothing_else(device, op, case, dtype):
    with np.errstate(all="ignore"):
        shape = getattr(reference, op)(**arguments(op, case, dtype)).shape
    layout = "strided" if len(shape) <= 2 else "misaligned"
    out = OnDevice(np.full(shape, np.nan, np.float32), device, dtype, layout)
    assert run(op, case, device, dtype, out=out.tensor) is out.tensor
    assert_matches_reference(op, case, out.tensor)
    out.assert_guards_intact()


@pytest.mark.parametrize("order", ["reverse", "1"])
@pytest.mark.parametrize(("op", "case"), EVERY_CASE[::4])
def test_same_bits_in_any_order_of_threads(device, op, case, order, monkeypatch):
    if device != "simt":
        pytest.skip("only simt can tell its threads when to run")
    expected = fetched(run(op, case, device, "float32"))
    monkeypatch.setenv("SOFTGATE_SIMT_ORDER", order)
    assert_same_bits(fetched(run(op, case, device, "float32")), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 15, 16, 17, 40])
def test_a_row_of_linear_does_not_depend_on_the_others(device, rows, dtype):
    a = LinearCase(rows, 136, 75, "silu", residual=True).arguments()
    given = {name: on_device(value, device, dtype, "contiguous") for name, value in a.items()}
    given["weight"] = ops.pack(given["weight"])
    whole = fetched(ops.linear(**given))
    for row in (0, rows // 2, rows - 1):
        one = {name: given[name][row : row + 1] for name in ("x", "residual")}
        assert_same_bits(fetched(ops.linear(**(given | one))), whole[row : row + 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_in_place_of_the_residual(device, dtype):
    a = LinearCase(9, 24, 40, "gelu", residual=True).arguments()
    given = {name: on_device(value, device, dtype, "contiguous") for name, value in a.items()}
    given["weight"] = ops.pack(given["weight"])
    expected = fetched(ops.linear(**given))
    assert ops.linear(**given, out=given["residual"]) is given["residual"]
    assert_same_bits(fetched(given["residual"]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_weight(device, dtype):
    array = rounded(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32), dtype)
    packed = ops.pack(on_device(array, device, dtype, "strided"))
    assert (packed.device, packed.dtype, packed.shape, packed.isa) == (device, dtype, (5, 3), None)
    assert packed.nbytes == 5 * 3 * (4 if dtype == "float32" else 2)
    assert repr(packed) == f"PackedWeight(shape=(5, 3), dtype={dtype}, device={device})"
    unpacked = packed.unpack()
    assert (unpacked.device, unpacked.dtype) == (device, dtype)
    assert_same_bits(fetched(unpacked), array)


def test_weight_of_another_device_or_dtype(device):
    x, weight = np.ones((2, 3), np.float32), softgate.Tensor(np.ones((5, 3), np.float32))
    there = softgate.Tensor(x).to(device)
    with pytest.raises(ValueError, match=rf"^linear: weight is on cpu, expected {device}$"):
        ops.linear(there, ops.pack(weight))
    with pytest.raises(ValueError, match=rf"^linear: weight is on {device}, expected cpu$"):
        ops.linear(x, ops.pack(weight.to(device)))
    expected = r"^linear: weight has dtype float16, expected int8, int4 or float32$"
    with pytest.raises(TypeError, match=expected):
        ops.linear(there, ops.pack(weight.to(device, "float16")))


def test_what_only_the_cpu_packs(device):
    weight = softgate.Tensor(np.ones((4, 32), np.float32)).to(device)
    expected = rf"^pack: dtype is 'float16' on {device}, expected 'int8', 'int4' or that of"
    with pytest.raises(ValueError, match=expected):
        ops.pack(weight, dtype="float16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [19, 64, 900, 20000])
@pytest.mark.parametrize("op", ["add_layer_norm", "add_rms_norm"])
def test_add_norm_in_place_with_sum(device, op, hidden, dtype):
    case = AddNormCase(6, hidden)
    a = arguments(op, case, dtype)
    given = {name: on_device(value, device, dtype, "contiguous") for name, value in a.items()}
    result = getattr(ops, op)(**given, out=given["x"], sum_out=given["residual"])
    assert_matches_reference(op, case, result)
    with np.errstate(over="ignore"):
        total = rounded(a["x"] + a["residual"], dtype)
    assert_same_bits(fetched(given["residual"]), total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [19, 64, 900, 20000])
@pytest.mark.parametrize(("op", "case"), [("softmax", SoftmaxCase), ("normalize", NormalizeCase)])
def test_in_place(device, op, case, columns, dtype):
    made = case((6, columns)) if op == "softmax" else case(6, columns)
    x = on_device(arguments(op, made, dtype)["x"], device, dtype, "contiguous")
    assert_matches_reference(op, made, getattr(ops, op)(x, out=x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in POOL if case.mode != "mean"], ids=str)
def test_pool_without_rounding(device, case, dtype):
    expected = reference.pool(**arguments("pool", case, dtype))
    assert np.array_equal(fetched(run("pool", case, device, dtype)), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_embedding_of_one_table_is_its_rows(device, layout, dtype):
    case = EmbeddingCase(9, 40, layout=layout)
    a = arguments("embedding", case, dtype)
    assert_same_bits(fetched(run("embedding", case, device, dtype)), a["tables"][0][a["ids"][0]])


@pytest.mark.parametrize("bad", [-1, 50, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("norm", [False, True])
def test_embedding_of_an_id_outside_its_table_is_nan(device, norm, bad):
    a = EmbeddingCase(5, 19, (50, 7), norm=norm).arguments()
    a["ids"][0] = a["ids"][0].astype(np.int64 if abs(bad) >= 2**31 else np.int32)
    a["ids"][0][3] = bad
    given = {name: on_device(value, device, "float32", "contiguous") for name, value in a.items()}
    result = fetched(ops.embedding(**given))
    assert np.isnan(result[3]).all()
    assert np.isfinite(np.delete(result, 3, axis=0)).all()


@pytest.mark.parametrize("mode", POOLINGS)
def test_pool_by_offsets_outside_of_x(device, mode):
    x = PoolCase((4, 9), 13, mode).arguments()["x"]
    given = np.array([-5, 3, 2**31 - 1, 2, -(2**31), 20], np.int32)
    result = ops.pool(*(softgate.Tensor(array).to(device) for array in (x, given)), mode)
    expected = [
        reference.pool(x[rows], [0, len(x[rows])], mode)[0]
        for rows in (np.s_[:3], np.s_[3:], np.s_[:0], np.s_[:0], np.s_[:])
    ]
    assert_close(fetched(result), np.array(expected), scale=np.abs(x).max(), terms=13)


def test_tensors_on_mixed_devices(device):
    x = softgate.Tensor(np.ones((2, 8), np.float32))
    weight = np.ones(8, np.float32)
    with pytest.raises(ValueError, match=rf"^add_rms_norm: weight is on cpu, expected {device}$"):
        ops.add_rms_norm(x.to(device), None, weight)
    with pytest.raises(ValueError, match=rf"^add_rms_norm: weight is on {device}, expected cpu$"):
        ops.add_rms_norm(x, None, softgate.Tensor(weight).to(device))
    with pytest.raises(ValueError, match=rf"^add_rms_norm: residual is on cpu, expected {device}$"):
        ops.add_rms_norm(x.to(device), x, softgate.Tensor(weight).to(device))


@pytest.mark.parametrize("dtype", [*DTYPES, "int32", "int64", "int8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 4), (2, 0, 3)])
def test_copies_there_and_back(device, shape, dtype):
    is_float = dtype in DTYPES
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype("f4" if is_float else dtype)
    there = softgate.Tensor(array).to(device, dtype)
    assert (there.device, there.dtype, there.shape) == (device, dtype, shape)
    back = there.to("cpu", "float32" if is_float else None)
    np.testing.assert_array_equal(back.numpy(), array)
    assert there.to(device) is there


def test_copies_views(device):
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    views = (np.s_[1], np.s_[:, 1], np.s_[:, :, 1:3], np.s_[:, 1:, 2:], np.s_[0, :, 1:2])
    for view in views:
        there = softgate.Tensor(array).to(device)[view]
        np.testing.assert_array_equal(there.to("cpu").numpy(), array[view])
        np.testing.assert_array_equal(there.to(device, "float16").to("cpu").numpy(), array[view])
        there = softgate.Tensor(array)[view].to(device)
        np.testing.assert_array_equal(there.to("cpu").numpy(), array[view])


def test_numpy_wants_a_copy_on_the_host(device):
    x = softgate.Tensor(np.ones(3, np.float32)).to(device)
    with pytest.raises(ValueError, match=rf"is on {device}.*to\(\"cpu\"\)"):
        x.numpy()
    assert x[1:2].item() == 1.0
    assert repr(x) == f"Tensor(shape=(3,), dtype=float32, device={device})"
