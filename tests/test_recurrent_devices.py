"""rnn, lstm and gru on a device other than the CPU: pytest --device simt, or cuda."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import softgate
from cases.recurrent import GATES, RECURRENT, RecurrentCase
from devices import DTYPES, OnDevice, fetched, on_device, rounded
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, recurrent_scales

STATES = ("h0", "c0")
# 16-bit numbers do not reach as far.
MODERATE = [
    case
    for case in RECURRENT
    if (case.x_size, case.state_size) == (1.0, 1.0) and case.weight_size >= 1e-3
]
EVERY_CASE = [
    pytest.param(case, dtype, id=f"{dtype}-{case}")
    for dtype in DTYPES
    for case in (RECURRENT if dtype == "float32" else MODERATE[::3])
]


def name_of(case: RecurrentCase) -> str:
    return case.kind.split("_")[0]


def arguments(case: RecurrentCase, dtype: str) -> dict[str, Any]:
    """Of the case, in numbers of the dtype."""
    a = {name: rounded(value, dtype) for name, value in case.arguments().items()}
    return a | {
        "weights": [
            {name: rounded(value, dtype) for name, value in weight.items()}
            for weight in a["weights"]
        ]
    }


def pack(weight: dict[str, Any], device: str, dtype: str, layout: str) -> softgate.RecurrentWeight:
    return ops.pack_recurrent(
        **{name: on_device(value, device, dtype, layout) for name, value in weight.items()}
    )


def given(case: RecurrentCase, device: str, dtype: str) -> dict[str, Any]:
    a = arguments(case, dtype)
    there = {
        name: on_device(value, device, dtype, case.layout)
        for name, value in a.items()
        if name != "weights"
    }
    weights = [pack(weight, device, dtype, case.layout) for weight in a["weights"]]
    return there | {"weights": weights[0] if len(weights) == 1 else tuple(weights)}


def run(case: RecurrentCase, device: str, dtype: str, **results: Any) -> list[np.ndarray]:
    returned = getattr(ops, name_of(case))(**given(case, device, dtype), **results)
    for tensor in returned:
        assert (tensor.device, tensor.dtype) == (device, dtype)
    return [fetched(tensor) for tensor in returned]


@functools.cache
def exact(case: RecurrentCase, dtype: str) -> tuple[Any, list[float]]:
    a = arguments(case, dtype)
    weights = [reference.RecurrentWeight(**weight) for weight in a["weights"]]

    def with_weights(weights: Any) -> Any:
        return getattr(reference, name_of(case))(**(a | {"weights": weights}))

    return with_weights(weights), recurrent_scales(with_weights, weights)


def assert_matches_reference(case: RecurrentCase, dtype: str, results: list[np.ndarray]) -> None:
    terms = case.input_size + (case.proj_size or case.hidden_size)
    for array, expected, scale in zip(results, *exact(case, dtype), strict=True):
        assert_close(array, expected, scale=scale, terms=terms, dtype=dtype)


@pytest.mark.parametrize(("case", "dtype"), EVERY_CASE)
def test_matches_reference(device, case, dtype):
    assert_matches_reference(case, dtype, run(case, device, dtype))


EACH = [
    RecurrentCase(kind, (3, 0, 5, 4), 7, hidden, direction=direction)
    for kind in GATES
    for hidden, direction in ((9, "bidirectional"), (70, "forward"))
]
PROJECTED = RecurrentCase("lstm", (3, 0, 5, 4), 7, 40, 17, "bidirectional")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*EACH, PROJECTED], ids=str)
def test_writes_out_and_nothing_else(device, case, dtype):
    expected = run(case, device, dtype)
    nans = np.full(expected[0].shape, np.nan, np.float32)
    out = OnDevice(nans, device, dtype, "strided")
    for array, other in zip(run(case, device, dtype, out=out.tensor), expected, strict=True):
        assert_same_bits(array, other)
    assert_same_bits(fetched(out.tensor), expected[0])
    out.assert_guards_intact()


@pytest.mark.parametrize("order", ["reverse", "1"])
@pytest.mark.parametrize("case", [*EACH, PROJECTED], ids=str)
def test_same_bits_in_any_order_of_threads(device, case, order, monkeypatch):
    if device != "simt":
        pytest.skip("only simt can tell its threads when to run")
    expected = run(case, device, "float32")
    monkeypatch.setenv("SOFTGATE_SIMT_ORDER", order)
    for array, other in zip(run(case, device, "float32"), expected, strict=True):
        assert_same_bits(array, other)


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("case", [*EACH, PROJECTED], ids=str)
def test_cells_equal_the_sequence(device, case, batch):
    """A cell runs as a step of its own, a sequence, where it fits, as one kernel."""
    changes = {"lengths": (3,) * batch, "direction": "forward", "hidden_size": 19}
    case = RecurrentCase(**(vars(case) | changes))
    a = given(case, device, "float32")
    out, *last = getattr(ops, name_of(case))(**a)
    steps = fetched(a["x"]).reshape(batch, 3, case.input_size).swapaxes(0, 1)
    outputs = fetched(out).reshape(batch, 3, -1)
    states = [a[name][0] for name in STATES if name in a]
    for t, x in enumerate(steps):
        step = on_device(x, device, "float32", "contiguous")
        result = getattr(ops, f"{name_of(case)}_cell")(step, a["weights"], *states)
        states = list(result) if isinstance(result, tuple) else [result]
        assert_same_bits(fetched(states[0]), outputs[:, t])
    for state, other in zip(states, last, strict=True):
        assert_same_bits(fetched(state), fetched(other)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*EACH, PROJECTED], ids=str)
def test_unpack_gives_the_weights_back(device, case, dtype):
    for weight in arguments(case, dtype)["weights"]:
        packed = pack(weight, device, dtype, "contiguous")
        assert (packed.device, packed.dtype, packed.isa) == (device, dtype, None)
        arrays = packed.unpack()
        assert arrays.keys() == weight.keys() - {"kind"}
        for name, tensor in arrays.items():
            assert_same_bits(fetched(tensor), weight[name])


def test_weights_and_inputs_share_a_device_and_a_dtype(device):
    case = RecurrentCase("lstm", (3, 5))
    there, here = given(case, device, "float32"), given(case, "cpu", "float32")
    with pytest.raises(ValueError, match=rf"^lstm: weights is on {device}, expected cpu$"):
        ops.lstm(**(here | {"weights": there["weights"]}))
    with pytest.raises(ValueError, match=rf"^lstm: weights is on cpu, expected {device}$"):
        ops.lstm(**(there | {"weights": here["weights"]}))
    for name in ("cu_seqlens", "h0", "c0"):
        with pytest.raises(ValueError, match=rf"^lstm: {name} is on cpu, expected {device}$"):
            ops.lstm(**(there | {name: here[name]}))
    with pytest.raises(TypeError, match=r"^lstm: x has dtype float16, expected float32$"):
        ops.lstm(**(there | {"x": there["x"].to(device, "float16")}))


def test_rows_of_states_are_for_the_cpu(device):
    a = given(RecurrentCase("gru", (3, 5)), device, "float32")
    rows = softgate.Tensor(np.zeros(2, np.int32)).to(device)
    with pytest.raises(ValueError, match=rf"^gru: h0_rows is for the CPU, x is on {device}$"):
        ops.gru(**a, h0_rows=rows)


def test_weights_on_a_device_stay_as_they_are(device):
    (weight,) = RecurrentCase("gru", (), 5, 9).arguments()["weights"]
    there = {name: on_device(v, device, "float32", "contiguous") for name, v in weight.items()}
    with pytest.raises(ValueError, match=rf"^pack_recurrent: dtype is 'int8' on {device}, "):
        ops.pack_recurrent(**there, dtype="int8")
    with pytest.raises(
        ValueError, match=rf"^pack_recurrent: weight_hh is on cpu, expected {device}"
    ):
        ops.pack_recurrent(**(there | {"weight_hh": weight["weight_hh"]}))


@pytest.mark.parametrize("starts", [(0, 3, 2, 8), (0, 3, 9), (1, 3, 8)])
def test_offsets_that_cannot_be(device, starts):
    a = given(RecurrentCase("gru", (3, 5)), device, "float32")
    bad = softgate.Tensor(np.array(starts, np.int32)).to(device)
    with pytest.raises(ValueError, match=r"^gru: cu_seqlens "):
        ops.gru(**(a | {"cu_seqlens": bad, "h0": None}))
