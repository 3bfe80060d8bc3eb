"""linear and gather of packed weights on a device other than the CPU: integers, and gated ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import softgate
from cases.linear import GROUPED, PACKED_LINEAR, GatherCase, PackedLinearCase
from devices import DTYPES, OnDevice, fetched, naive, on_device, rounded
from layouts import LAYOUTS
from softgate import nn, ops, reference
from test_linear_packed import random_groups
from tolerances import assert_close, assert_same_bits, packed_linear_scale

INTEGERS = ("int8", *GROUPED)
# "float" is the dtype of x.
CASES = [
    *(case for case in PACKED_LINEAR if case.packed in INTEGERS),
    *(
        replace(case, packed="float")
        for case in PACKED_LINEAR
        if case.packed == "float16" and case.gated
    ),
]
# Large enough for the larger tiles (csrc/cuda/linear.cu, linear_integers.cu).
LARGE = [
    *(PackedLinearCase(70, 224, 8200, "silu", True, True, packed=packed) for packed in INTEGERS),
    PackedLinearCase(70, 224, 8200, "silu", True, True, packed="int4", gated=True),
    *(
        PackedLinearCase(70, 96, n, "silu", True, True, packed="float", gated=True)
        for n in (8200, 16400)
    ),
]
GATHER = [
    *(
        GatherCase(tokens, 70, columns, packed, gated)
        for packed in ("float", *INTEGERS)
        for tokens in (0, 1, 50)
        for gated in (False, True)
        for columns in ((32, 96) if packed in GROUPED else (1, 37, 96))
    ),
    *(
        GatherCase(5, 9, 2080, packed, layout=layout, id_type="int64")
        for packed in ("float", *INTEGERS)
        for layout in LAYOUTS
    ),
    *(GatherCase(5, 9, 64, packed, scale=1.0) for packed in ("float", *INTEGERS)),
    *(GatherCase(5, 9, 64, packed, residual=False) for packed in ("float", *INTEGERS)),
]


def pack_quantized(q: reference.QuantizedWeight, bits: Any, gated: bool, device: str) -> Any:
    arrays = (q.values, q.scales, q.minimums)
    there = (None if a is None else softgate.Tensor(a).to(device) for a in arrays)
    return ops.pack_groups(*there, bits=bits, gated=gated)


def pack(weight: np.ndarray, packed: str, gated: bool, device: str, dtype: str) -> tuple[Any, Any]:
    """A PackedWeight and what `reference` takes for it."""
    there = softgate.Tensor(np.ascontiguousarray(weight)).to(device)
    if packed == "float":
        return ops.pack(there.to(device, dtype), gated=gated), rounded(weight, dtype)
    if packed in ("int8", "int4"):
        quantized = reference.quantize_weight(weight, packed)
        return ops.pack(there, dtype=packed, gated=gated), quantized
    quantized = random_groups(weight.shape, packed)
    return pack_quantized(quantized, 8, gated, device), quantized


def prepare(
    case: PackedLinearCase | GatherCase, device: str, dtype: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the op, and of the reference."""
    a = case.arguments()
    ours, plain = pack(a.pop("weight"), case.packed, case.gated, device, dtype)
    a = {name: rounded(value, dtype) for name, value in a.items()}
    given = {name: on_device(value, device, dtype, case.layout) for name, value in a.items()}
    if isinstance(case, PackedLinearCase):
        a["gated"] = case.gated
    return given | {"weight": ours}, a | {"weight": plain}


def run(case: PackedLinearCase | GatherCase, device: str, dtype: str, **results: Any) -> Any:
    given, _ = prepare(case, device, dtype)
    if isinstance(case, PackedLinearCase):
        return ops.linear(**given, **results)
    if not case.residual and not results:
        results = {"out": softgate.Tensor.empty((case.tokens, case.columns), dtype, device)}
    return ops.gather(**given, **results)


def assert_matches_reference(case: PackedLinearCase | GatherCase, result: Any) -> None:
    dtype = result.dtype
    _, a = (
        prepare(case, "cpu", dtype) if dtype == "float32" else prepare(case, result.device, dtype)
    )
    with np.errstate(all="ignore"):
        if isinstance(case, GatherCase):
            op, terms = "gather", 1
            scale: Any = 10.0
        else:
            op, terms = "linear", case.in_features
            scale = packed_linear_scale(
                a["x"], a["weight"], a["bias"], a["residual"], gated=case.gated
            )
        expected = getattr(reference, op)(**a)
    assert_close(
        fetched(result),
        expected,
        scale=scale,
        terms=terms,
        dtype=dtype,
        naive=None if dtype == "float32" else naive(op, dtype, **a),
    )


EVERY_CASE = [
    pytest.param(case, dtype, id=f"{case}-{dtype}")
    for i, dtype in enumerate(DTYPES)
    # What differs between the dtypes is how x is read and results are written.
    for case in [*(CASES if i == 0 else CASES[i::3]), *LARGE[i::3], *GATHER]
]


@pytest.mark.parametrize(("case", "dtype"), EVERY_CASE)
def test_matches_reference(device, case, dtype):
    result = run(case, device, dtype)
    assert (result.device, result.dtype) == (device, dtype)
    assert_matches_reference(case, result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*CASES[::5], LARGE[0], *GATHER[::2]], ids=str)
def test_writes_out_and_nothing_else(device, case, dtype):
    shape = run(case, device, dtype).shape
    layout = "strided" if len(shape) <= 2 else "misaligned"
    out = OnDevice(np.full(shape, np.nan, np.float32), device, dtype, layout)
    assert run(case, device, dtype, out=out.tensor) is out.tensor
    assert_matches_reference(case, out.tensor)
    out.assert_guards_intact()


@pytest.mark.parametrize("order", ["reverse", "1"])
@pytest.mark.parametrize("case", [*CASES[::6], *LARGE[:3], *GATHER[::6]], ids=str)
def test_same_bits_in_any_order_of_threads(device, case, order, monkeypatch):
    if device != "simt":
        pytest.skip("only simt can tell its threads when to run")
    expected = fetched(run(case, device, "float32"))
    monkeypatch.setenv("SOFTGATE_SIMT_ORDER", order)
    assert_same_bits(fetched(run(case, device, "float32")), expected)


@pytest.mark.parametrize("packed", INTEGERS)
@pytest.mark.parametrize(("rows", "out_features"), [(2, 76), (29, 76), (40, 76), (70, 8200)])
def test_a_row_does_not_depend_on_the_others(device, rows, out_features, packed):
    gated = rows == 29
    case = PackedLinearCase(rows, 352, out_features, "silu", True, True, packed=packed, gated=gated)
    a, _ = prepare(case, device, "float16")
    whole = fetched(ops.linear(**a))
    for row in (0, rows // 2, rows - 1):
        one = {name: a[name][row : row + 1] for name in ("x", "residual")}
        assert_same_bits(fetched(ops.linear(**(a | one))), whole[row : row + 1])


@pytest.mark.skipif(softgate.isa() == "generic", reason="which need not have fused multiply-adds")
@pytest.mark.parametrize("packed", INTEGERS)
@pytest.mark.parametrize(("rows", "out_features"), [(1, 37), (20, 37), (70, 8200)])
def test_same_bits_as_on_the_cpu(device, rows, out_features, packed):
    """Integers are exact, and floats are added in the same order."""
    case = PackedLinearCase(rows, 352, out_features, packed=packed)
    there, here = (prepare(case, place, "float32")[0] for place in (device, "cpu"))
    assert_same_bits(fetched(ops.linear(**there)), fetched(ops.linear(**here)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", INTEGERS)
@pytest.mark.parametrize("rows", [2, 20])
def test_what_is_not_finite_makes_its_row_nan(device, rows, packed, dtype, value):
    case = PackedLinearCase(rows, 96, 37, packed=packed)
    a = case.arguments()
    weight, _ = pack(a["weight"], packed, False, device, dtype)
    expected = fetched(ops.linear(on_device(a["x"], device, dtype, "contiguous"), weight))
    a["x"][1, 70] = value
    actual = fetched(ops.linear(on_device(a["x"], device, dtype, "contiguous"), weight))
    assert np.isnan(actual[1]).all()
    assert_same_bits(np.delete(actual, 1, axis=0), np.delete(expected, 1, axis=0))


def test_longest_rows_do_not_overflow(device):
    depth = 2**16
    values = np.full((2, depth), -128, np.int8)
    values[1] = 127
    q = reference.QuantizedWeight(values, np.ones(2, np.float32))
    x = softgate.Tensor(np.repeat(np.array([[1], [-1]], np.float32), depth, axis=1)).to(device)
    result = fetched(ops.linear(x, pack_quantized(q, 8, False, device)))
    expected = np.array([[-128.0, 127.0], [128.0, -127.0]]) * depth
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("packed", [*INTEGERS, "int4 without minimums"])
@pytest.mark.parametrize("shape", [(2, 32), (38, 96), (74, 160)])
def test_integers_come_back_as_they_were(device, shape, packed, gated):
    if packed == "int8":
        random = np.random.default_rng(0)
        values = random.integers(-128, 127, shape, dtype=np.int8, endpoint=True)
        q = reference.QuantizedWeight(values, random.standard_normal(shape[0], dtype=np.float32))
    elif packed == "int4 without minimums":
        q = replace(random_groups(shape, "int4"), minimums=None)
    else:
        q = random_groups(shape, packed)
    bits = 4 if packed.startswith("int4") else 8
    weight = pack_quantized(q, bits, gated, device)
    values, scales, minimums = weight.quantized()
    assert_same_bits(values.numpy(), q.values)
    assert_same_bits(scales.numpy(), q.scales)
    assert (minimums is None) == (q.minimums is None)
    if minimums is not None:
        assert_same_bits(minimums.numpy(), q.minimums)
    unpacked = weight.unpack()
    assert (unpacked.device, unpacked.dtype) == (device, "float32")
    on_cpu = ops.pack_groups(q.values, q.scales, q.minimums, bits=bits, gated=gated)
    assert_same_bits(fetched(unpacked), on_cpu.unpack().numpy())
    expected = (device, f"int{bits}", 0 if packed == "int8" else 32, gated, None)
    assert (weight.device, weight.dtype, weight.group_size, weight.gated, weight.isa) == expected


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_pack_quantises_as_the_reference(device, dtype):
    array = np.random.default_rng(0).standard_normal((38, 96), dtype=np.float32)
    expected = reference.quantize_weight(rounded(array, "bfloat16"), dtype)
    weight = ops.pack(on_device(array, device, "bfloat16", "strided"), dtype=dtype)
    values, scales, minimums = weight.quantized()
    assert_same_bits(values.numpy(), expected.values)
    assert_same_bits(scales.numpy(), expected.scales)
    if minimums is not None:
        assert_same_bits(minimums.numpy(), expected.minimums)


@pytest.mark.parametrize("packed", ["float", *INTEGERS])
def test_gathered_rows_are_those_of_unpack(device, packed):
    weight, _ = pack(GatherCase(1, 70, 96).arguments()["weight"], packed, False, device, "float32")
    ids = np.random.default_rng(0).integers(0, 70, 50)
    rows = ops.gather(weight, softgate.Tensor(ids).to(device))
    assert (rows.device, rows.dtype) == (device, "float32")
    assert_same_bits(fetched(rows), fetched(weight.unpack())[ids])


@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("packed", ["float", *INTEGERS])
def test_gather_of_an_id_outside_the_weight_is_nan(device, packed, bad):
    weight, _ = pack(GatherCase(1, 9, 64).arguments()["weight"], packed, False, device, "float32")
    ids = np.array([1, bad, 8], np.int64 if abs(bad) >= 2**31 else np.int32)
    rows = fetched(ops.gather(weight, softgate.Tensor(ids).to(device)))
    assert np.isnan(rows[1]).all()
    assert np.isfinite(rows[[0, 2]]).all()


def test_gather_into_the_residual(device):
    given, a = prepare(GatherCase(5, 9, 64), device, "float16")
    assert ops.gather(**given, out=given["residual"]) is given["residual"]
    assert_close(fetched(given["residual"]), reference.gather(**a), scale=10.0, dtype="float16")


def layers() -> Iterator[Any]:
    for dtype in ("int8", "int4"):
        for gated in (False, True):
            layer = nn.Linear(64, 38, dtype=dtype, gated=gated)
            layer.init_weights(std=1.0)
            yield layer


def test_layers_keep_their_integers_on_the_way(device):
    x = softgate.Tensor(np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32))
    for layer in layers():
        before, expected = layer.state_dict(), layer(x).numpy()
        dtype = layer.weight.dtype
        layer.to(device)
        assert (layer.weight.value.device, layer.weight.value.dtype) == (device, dtype)
        there = layer(x.to(device))
        assert_close(fetched(there), expected, scale=20.0)
        for name, array in layer.state_dict().items():
            assert_same_bits(array, before[name])
        layer.to("cpu")
        assert_same_bits(layer(x).numpy(), expected)
        for name, array in layer.state_dict().items():
            assert_same_bits(array, before[name])


def test_layers_load_integers_on_a_device(device):
    for layer in layers():
        dtype, gated = layer.weight.dtype, layer.weight.gated
        other = nn.Linear(64, 38, dtype=dtype, gated=gated).to(device)
        other.load_state_dict(layer.state_dict())
        assert (other.weight.value.device, other.weight.value.dtype) == (device, dtype)
        for name, array in other.state_dict().items():
            assert_same_bits(array, layer.state_dict()[name])


def test_floats_become_integers_on_a_device(device):
    plain = nn.Linear(64, 38)
    plain.init_weights(std=1.0)
    plain.to(device)
    expected = reference.quantize_weight(plain.weight.numpy(), "int8")
    plain.weight.fill(plain.weight.numpy(), dtype="int8")
    values, scales, _ = plain.weight.value.quantized()
    assert plain.weight.value.device == device
    assert_same_bits(values.numpy(), expected.values)
    assert_same_bits(scales.numpy(), expected.scales)


def test_arguments_on_another_device(device):
    values, scales = np.ones((4, 32), np.int8), np.ones(4, np.float32)
    there = softgate.Tensor(values).to(device)
    with pytest.raises(ValueError, match=rf"^pack_groups: scales is on cpu, expected {device}$"):
        ops.pack_groups(there, scales, bits=8)
    weight = ops.pack_groups(there, softgate.Tensor(scales).to(device), bits=8)
    with pytest.raises(ValueError, match=rf"^gather: ids is on cpu, expected {device}$"):
        ops.gather(weight, softgate.Tensor(np.zeros(2, np.int32)))
    ids = softgate.Tensor(np.zeros(2, np.int32)).to(device)
    residual = softgate.Tensor(np.zeros((2, 32), np.float32))
    with pytest.raises(ValueError, match=rf"^gather: residual is on cpu, expected {device}$"):
        ops.gather(weight, ids, residual=residual)
    out = softgate.Tensor.empty((2, 32), "float16", device)
    with pytest.raises(TypeError, match=r"^gather: out has dtype float16, expected float32$"):
        ops.gather(weight, ids, residual=residual.to(device), out=out)
