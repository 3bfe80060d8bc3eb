"""The case table on a device other than the CPU: pytest --device simt, or cuda."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import softgate
from cases import ADD_NORM, AddNormCase, Case
from devices import DTYPES, OnDevice, fetched, naive, on_device, rounded
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, norm_scale


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


def test_tensors_on_mixed_devices(device):
    x = softgate.Tensor(np.ones((2, 8), np.float32))
    weight = np.ones(8, np.float32)
    with pytest.raises(ValueError, match=rf"^add_rms_norm: weight is on cpu, expected {device}$"):
        ops.add_rms_norm(x.to(device), None, weight)
    with pytest.raises(ValueError, match=rf"^add_rms_norm: weight is on {device}, expected cpu$"):
        ops.add_rms_norm(x, None, softgate.Tensor(weight).to(device))
    with pytest.raises(ValueError, match=rf"^add_rms_norm: residual is on cpu, expected {device}$"):
        ops.add_rms_norm(x.to(device), x, softgate.Tensor(weight).to(device))


def test_an_op_without_a_kernel_for_the_device(device):
    x = softgate.Tensor(np.ones((2, 8), np.float32)).to(device)
    with pytest.raises(ValueError, match=rf"^softmax: x is on {device}, expected cpu$"):
        ops.softmax(x)


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
