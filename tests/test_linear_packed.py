"""linear and gather on weights of fewer bits: 16-bit, 8-bit, 4-bit, gated."""

from dataclasses import replace

import numpy as np
import pytest
import softgate
from cases.linear import GROUPED, PACKED, PACKED_LINEAR, PackedLinearCase
from layouts import LAYOUTS, SPOILED, Guarded, place
from softgate import nn, ops, reference
from tolerances import assert_close, assert_same_bits, packed_linear_scale

pytestmark = pytest.mark.usefixtures("isa")

INTEGERS = ("int8", *GROUPED)


def rounded(array, dtype):
    """float32 numbers that a 16-bit dtype holds."""
    return softgate.Tensor(array).to(dtype=dtype).to(dtype="float32").numpy()


def random_groups(shape, packed, seed=0):
    """Every bit pattern of the integers, scales of both signs."""
    random = np.random.default_rng(seed)
    lowest, highest = (0, 15) if packed == "int4" else (-128, 127)
    values = random.integers(lowest, highest, shape, dtype=np.int8, endpoint=True)
    groups = (shape[0], shape[1] // 32)
    scales = (random.standard_normal(groups) / 100.0).astype(np.float16)
    minimums = random.standard_normal(groups).astype(np.float16)
    return reference.QuantizedWeight(values, scales, None if packed == "int8_groups" else minimums)


def pack(weight, packed, gated=False):
    """A PackedWeight and what `reference` takes for it."""
    if packed in ("float16", "bfloat16"):
        return ops.pack(weight, dtype=packed, gated=gated), rounded(weight, packed)
    if packed in ("int8", "int4"):
        return ops.pack(weight, dtype=packed, gated=gated), reference.quantize_weight(
            weight, packed
        )
    quantized = random_groups(weight.shape, packed)
    return pack_quantized(quantized, 8, gated), quantized


def pack_quantized(q, bits, gated=False):
    return ops.pack_groups(
        q.values, q.scales.astype(np.float32), q.minimums, bits=bits, gated=gated
    )


def prepare(case):
    """Arguments of `ops.linear`, and of the reference."""
    a = case.arguments()
    weight, plain = pack(a.pop("weight"), case.packed, case.gated)
    return a | {"weight": weight}, a | {"weight": plain, "gated": case.gated}


@pytest.mark.parametrize("case", PACKED_LINEAR, ids=str)
def test_matches_reference(case):
    ours, a = prepare(case)
    expected = reference.linear(**a)
    scale = packed_linear_scale(a["x"], a["weight"], a["bias"], a["residual"], gated=case.gated)
    assert_close(ops.linear(**ours), expected, scale=scale, terms=case.in_features)


@pytest.mark.parametrize("case", PACKED_LINEAR[::3], ids=str)  # what writes is shared
def test_writes_out_and_nothing_else(case):
    a, _ = prepare(case)
    expected = ops.linear(**a)
    guarded = Guarded(expected.shape, np.float32, "strided" if expected.ndim <= 2 else "misaligned")
    assert ops.linear(**a, out=guarded.array) is guarded.array
    assert_same_bits(guarded.array, expected)
    guarded.assert_intact()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("rows", [1, 6, 70])
def test_same_bits_on_any_thread_count(rows, packed, gated, thread_counts):
    a, _ = prepare(PackedLinearCase(rows, 704, 310, "gelu", packed=packed, gated=gated))
    first, *others = [ops.linear(**a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("rows", [2, 5, 15, 29, 100])
def test_a_row_does_not_depend_on_the_others(rows, packed, gated):
    a, _ = prepare(PackedLinearCase(rows, 1056, 76, "silu", True, True, packed=packed, gated=gated))
    whole = ops.linear(**a)
    # With AMX, floating-point products of fewer rows than this round differently.
    fewest = 16 if softgate.isa() == "amx" and rows >= 16 and packed not in INTEGERS else 1
    for row in range(rows - fewest + 1):
        some = {name: a[name][row : row + fewest] for name in ("x", "residual")}
        assert_same_bits(ops.linear(**(a | some)), whole[row : row + fewest])


@pytest.mark.skipif("amx" not in softgate.isas(), reason="this CPU has no AMX")
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("packed", INTEGERS)
@pytest.mark.parametrize("rows", [8, 12, 16, 17, 31, 33, 70, 300])
def test_amx_gives_the_bits_of_avx512(rows, packed, gated):
    case = PackedLinearCase(rows, 2144, 310, "gelu", True, True, packed=packed, gated=gated)
    results = []
    for isa in ("amx", "avx512"):
        softgate.set_isa(isa)
        a, _ = prepare(case)
        results.append(ops.linear(**a))
    assert_same_bits(*results)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("packed", INTEGERS)
@pytest.mark.parametrize("rows", [2, 20])
def test_what_is_not_finite_makes_its_row_nan(rows, packed, value):
    a, _ = prepare(PackedLinearCase(rows, 96, 37, packed=packed))
    expected = ops.linear(**a)
    a["x"][1, 70] = value
    actual = ops.linear(**a)
    assert np.isnan(actual[1]).all()
    assert_same_bits(np.delete(actual, 1, axis=0), np.delete(expected, 1, axis=0))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("rows", [1, 40])
def test_no_further_from_the_weights_than_rounding_takes(rows, shift, dtype):
    a = PackedLinearCase(rows, 512, 64, packed=dtype).arguments()
    a["x"] += shift
    x, w = a["x"].astype(np.float64), a["weight"].astype(np.float64)
    stretch = 512 if dtype == "int8" else 32

    def steps(array, levels):
        parts = array.reshape(len(array), -1, stretch)
        reach = np.abs(parts).max(-1) if levels == 127 else np.ptp(parts, axis=-1)
        return np.repeat(reach / levels, stretch, axis=1)

    of_x = 0.5 * steps(x, 127)
    if dtype == "int8":  # 256 steps, with zero among them
        reach = x.max(-1, initial=0, keepdims=True) - x.min(-1, initial=0, keepdims=True)
        of_x = np.broadcast_to(0.5 * reach / 255, x.shape)
    of_w = (
        0.5 * steps(w, 127) if dtype == "int8" else 0.51 * steps(w, 15) + 2.0**-10 * np.abs(w).max()
    )
    bound = of_x @ (np.abs(w) + of_w).T + np.abs(x) @ of_w.T
    error = np.abs(ops.linear(a["x"], ops.pack(a["weight"], dtype=dtype)) - x @ w.T)
    assert (error <= bound).all()
    # Roundings are as often up as down: the sum walks at random.
    typical = np.sqrt(of_x**2 @ (w**2).T + (x**2) @ (of_w**2).T)
    assert np.sqrt((error**2).mean()) <= 0.7 * np.sqrt((typical**2).mean())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 16), (64, 3)], ids=str)
def test_sixteen_bits_unpack_exactly(shape, dtype, layout):
    bits = np.random.default_rng(0).integers(0, 2**16, shape, dtype=np.uint16)
    bits[0, 0] = 0x8000
    wide = (
        bits.view(np.float16).astype(np.float32)
        if dtype == "float16"
        else ((bits.astype(np.uint32) << 16).view(np.float32))
    )
    wide = np.nan_to_num(wide, nan=1.0)
    packed = ops.pack(place(wide, layout), dtype=dtype)
    assert_same_bits(packed.unpack().numpy(), wide)
    narrow = softgate.Tensor(wide).to(dtype=dtype)
    assert ops.pack(narrow).dtype == dtype
    assert_same_bits(ops.pack(narrow).unpack().numpy(), wide)
    assert_same_bits(ops.pack(narrow, dtype="float32").unpack().numpy(), wide)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("gated", [False, True])
def test_pack_quantises_as_the_reference(dtype, gated):
    weight = np.random.default_rng(0).standard_normal((38, 96), dtype=np.float32)
    weight[3] = 0.0
    weight[4] = 2.5
    weight[5, 32:64] = 1e-38
    packed = ops.pack(weight, dtype=dtype, gated=gated)
    expected = reference.quantize_weight(weight, dtype)
    values, scales, minimums = packed.quantized()
    assert_same_bits(values.numpy(), expected.values)
    assert_same_bits(scales.numpy(), expected.scales)
    if dtype == "int4":
        assert_same_bits(minimums.numpy(), expected.minimums)
    else:
        assert minimums is None
    assert_close(packed.unpack().numpy(), expected.dequantize(), scale=1.0)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("packed", GROUPED)
def test_groups_come_back_as_they_were(packed, layout, gated):
    q = random_groups((74, 160), packed)
    bits = 4 if packed == "int4" else 8
    weight = ops.pack_groups(
        place(q.values, layout),
        place(q.scales.astype(np.float32), layout),
        None if q.minimums is None else place(q.minimums, layout),
        bits=bits,
        gated=gated,
    )
    values, scales, minimums = weight.quantized()
    assert_same_bits(values.numpy(), q.values)
    assert_same_bits(scales.numpy(), q.scales)
    assert (minimums is None) == (q.minimums is None)
    if minimums is not None:
        assert_same_bits(minimums.numpy(), q.minimums)
    assert_close(weight.unpack().numpy(), q.dequantize())
    assert (weight.dtype, weight.group_size, weight.gated) == (f"int{bits}", 32, gated)


def test_four_bits_without_minimums():
    q = replace(random_groups((40, 64), "int4"), minimums=None)
    weight = pack_quantized(q, 4)
    assert weight.quantized()[2] is None
    x = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    scale = packed_linear_scale(x, q)
    assert_close(ops.linear(x, weight), reference.linear(x, q), scale=scale, terms=64)


def test_rows_come_back_as_they_were():
    random = np.random.default_rng(0)
    values = random.integers(-128, 127, (37, 21), dtype=np.int8, endpoint=True)
    scales = random.standard_normal(37, dtype=np.float32)
    weight = ops.pack_groups(values, scales, bits=8)
    assert (weight.dtype, weight.group_size, weight.shape) == ("int8", 0, (37, 21))
    back = weight.quantized()
    assert_same_bits(back[0].numpy(), values)
    assert_same_bits(back[1].numpy(), scales)
    assert back[2] is None
    q = reference.QuantizedWeight(values, scales)
    x = random.standard_normal((3, 21), dtype=np.float32)
    scale = packed_linear_scale(x, q)
    assert_close(ops.linear(x, weight), reference.linear(x, q), scale=scale, terms=21)


def test_longest_rows_do_not_overflow():
    depth = 2**16
    values = np.full((2, depth), -128, np.int8)
    values[1] = 127
    x = np.repeat(np.array([[1], [-1]], np.float32), depth, axis=1)
    weight = ops.pack_groups(values, np.ones(2, np.float32), bits=8)
    expected = np.array([[-128.0, 127.0], [128.0, -127.0]]) * depth
    np.testing.assert_allclose(ops.linear(x, weight), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^pack: weight has 65537 columns, expected at most"):
        ops.pack(np.ones((1, depth + 1), np.float32), dtype="int8")


@pytest.mark.parametrize("packed", PACKED)
def test_weights_take_the_memory_of_their_bits(packed):
    weight, _ = pack(np.ones((64, 320), np.float32), packed)
    bits = {"float16": 16, "bfloat16": 16, "int8": 8.2, "int4": 5, "int8_groups": 8.5}
    assert weight.nbytes == 64 * 320 * bits.get(packed, 9) / 8


def test_repr(isa):
    weight = ops.pack(np.ones((4, 32), np.float32), dtype="int4", gated=True)
    expected = f"PackedWeight(shape=(4, 32), dtype=int4, group_size=32, gated=True, isa={isa})"
    assert repr(weight) == expected


# ---- gather ----


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("packed", ["float32", *PACKED])
@pytest.mark.parametrize("id_type", [np.int32, np.int64])
@pytest.mark.parametrize("tokens", [0, 1, 50])
def test_gather(tokens, id_type, packed, gated):
    random = np.random.default_rng(0)
    plain = random.standard_normal((70, 96), dtype=np.float32)
    weight = ops.pack(plain, gated=gated)
    if packed != "float32":
        weight, plain = pack(plain, packed, gated)
    ids = random.integers(0, 70, tokens, dtype=id_type)
    rows = ops.gather(weight, ids)
    assert_same_bits(rows, weight.unpack().numpy()[ids])
    assert_close(rows, reference.gather(plain, ids), scale=1.0)
    residual = place(random.standard_normal((tokens, 96), dtype=np.float32), "strided")
    expected = reference.gather(plain, ids, scale=3.7, residual=residual)
    assert_close(ops.gather(weight, ids, scale=3.7, residual=residual), expected, scale=10.0)
    assert ops.gather(weight, ids, scale=3.7, residual=residual, out=residual) is residual
    assert_close(residual, expected, scale=10.0)


def test_gather_writes_out_and_nothing_else():
    weight = ops.pack(np.random.default_rng(0).standard_normal((9, 37), dtype=np.float32))
    ids = np.array([8, 0, 3])
    guarded = Guarded((3, 37), np.float32, "strided")
    assert ops.gather(weight, ids, scale=2.0, out=guarded.array) is guarded.array
    assert_same_bits(guarded.array, 2.0 * weight.unpack().numpy()[ids])
    guarded.assert_intact()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"ids": np.array([0, 9])}, ValueError, r"ids\[1\] is 9", id="beyond"),
        pytest.param({"ids": np.array([-1, 0])}, ValueError, r"ids\[0\] is -1", id="negative"),
        pytest.param({"ids": np.zeros(2, np.float32)}, TypeError, "ids", id="float_ids"),
        pytest.param({"ids": np.zeros((1, 2), int)}, ValueError, "ids", id="two_dimensions"),
        pytest.param({"weight": np.zeros((9, 4), np.float32)}, TypeError, "weight", id="plain"),
        pytest.param(
            {"residual": np.zeros((2, 3), np.float32)}, ValueError, "residual", id="short"
        ),
        pytest.param({"out": np.zeros((3, 4), np.float32)}, ValueError, "out", id="out_rows"),
    ],
)
def test_gather_bad_argument(change, error, message):
    arguments = {"weight": ops.pack(np.zeros((9, 4), np.float32)), "ids": np.zeros(2, int)}
    with pytest.raises(error, match=rf"^gather: {message}"):
        ops.gather(**(arguments | change))


# ---- errors ----

WEIGHT = np.ones((4, 64), np.float32)
SPOILT = WEIGHT.copy()
SPOILT[2, 3] = np.nan
VALUES = np.ones((4, 64), np.int8)
SCALES = np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        pytest.param(WEIGHT, {"dtype": "int5"}, "dtype is 'int5', expected 'float32'", id="dtype"),
        pytest.param(WEIGHT[:3], {"gated": True}, "weight has 3 rows, expected an even", id="odd"),
        pytest.param(
            WEIGHT[:, :33].copy(), {"dtype": "int4"}, "weight has 33 columns", id="groups"
        ),
        pytest.param(SPOILT, {"dtype": "int8"}, "weight is not finite in row 2", id="nan8"),
        pytest.param(SPOILT, {"dtype": "int4"}, "weight is not finite or .* in row 2", id="nan4"),
        pytest.param(
            WEIGHT * 1e6, {"dtype": "int4"}, "weight .* beyond float16 in row 0", id="big"
        ),
        pytest.param(WEIGHT * np.inf, {"dtype": "int8"}, "weight is not finite in row 0", id="inf"),
    ],
)
def test_cannot_be_packed(weight, options, message):
    with pytest.raises(ValueError, match=rf"^pack: {message}"):
        ops.pack(weight, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"bits": 5}, ValueError, "bits is 5, expected 4 or 8", id="bits"),
        pytest.param(
            {"bits": 4, "values": VALUES * 16}, ValueError, r"values\[0, 0\] is 16", id="4"
        ),
        pytest.param(
            {"bits": 4, "values": -VALUES}, ValueError, r"values\[0, 0\] is -1", id="sign"
        ),
        pytest.param({"values": VALUES.astype(np.int32)}, TypeError, "values", id="int32"),
        pytest.param(
            {"values": VALUES[:, :60].copy()}, ValueError, "values has 60 columns", id="60"
        ),
        pytest.param({"values": VALUES[:0]}, ValueError, "values is", id="empty"),
        pytest.param({"scales": SCALES[:, :1].copy()}, ValueError, "scales", id="scales"),
        pytest.param({"scales": np.ones(3, np.float32)}, ValueError, "scales", id="row_scales"),
        pytest.param(
            {"bits": 4, "scales": np.ones(4, np.float32)}, ValueError, "scales", id="rows"
        ),
        pytest.param({"scales": SCALES.astype(np.float64)}, TypeError, "scales", id="float64"),
        pytest.param({"scales": SCALES * 1e5}, ValueError, "scales holds a number .* 0$", id="big"),
        pytest.param({"scales": SCALES * np.nan}, ValueError, "scales holds a number", id="nan"),
        pytest.param({"minimums": SCALES[:3]}, ValueError, "minimums", id="minimums"),
        pytest.param({"minimums": SCALES * np.inf}, ValueError, "minimums holds", id="infinite"),
        pytest.param(
            {"scales": np.ones(4, np.float32), "minimums": SCALES},
            ValueError,
            "minimums is given with a scale per row",
            id="minimums_of_rows",
        ),
        pytest.param(
            {"values": VALUES[:3], "scales": SCALES[:3], "gated": True},
            ValueError,
            "values has 3 rows, expected an even number",
            id="odd",
        ),
    ],
)
def test_groups_cannot_be_packed(change, error, message):
    with pytest.raises(error, match=rf"^pack_groups: {message}"):
        ops.pack_groups(**({"values": VALUES, "scales": SCALES, "bits": 8} | change))


def test_floats_are_not_quantized():
    with pytest.raises(ValueError, match=r"^quantized: weight has dtype float32, expected int8"):
        ops.pack(WEIGHT).quantized()


@pytest.mark.parametrize("spoiled", SPOILED)
def test_spoiled_residual_of_a_gated_weight(spoiled):
    error, spoil = SPOILED[spoiled]
    weight = ops.pack(WEIGHT, dtype="int8", gated=True)
    x, residual = np.ones((3, 64), np.float32), spoil(np.ones((3, 2), np.float32))
    with pytest.raises(error, match=r"^linear: residual\b"):
        ops.linear(x, weight, residual=residual)


@pytest.mark.skipif(len(softgate.isas()) < 2, reason="this CPU runs one ISA only")
@pytest.mark.parametrize("call", ["gather", "unpack", "quantized"])
def test_weight_of_another_isa_is_refused(call, isa):
    weight = ops.pack(WEIGHT, dtype="int8")
    softgate.set_isa("generic" if isa != "generic" else softgate.isas()[0])
    with pytest.raises(ValueError, match=rf"^{call}: weight was packed for {isa}"):
        ops.gather(weight, np.zeros(1, int)) if call == "gather" else getattr(weight, call)()


# ---- modules ----


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_layers_save_and_load_bit_for_bit(dtype, gated):
    layer, other = (nn.Linear(64, 38, dtype=dtype, gated=gated) for _ in range(2))
    layer.init_weights(std=1.0)
    state = layer.state_dict()
    names = {"int8": {"weight.values", "weight.scales"}}
    names["int4"] = names["int8"] | {"weight.minimums"}
    assert state.keys() == names.get(dtype, {"weight"}) | {"bias"}
    other.load_state_dict(state)
    assert other.weight.value.dtype == layer.weight.value.dtype == dtype
    x = softgate.Tensor(np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32))
    assert_same_bits(other(x).numpy(), layer(x).numpy())
    assert other(x).shape == (5, 19 if gated else 38)
    assert layer.nbytes() == layer.weight.value.nbytes + 38 * 4
    for key, array in other.state_dict().items():
        assert_same_bits(array, state[key])


def test_floats_load_as_the_dtype_of_the_layer():
    plain, layer = nn.Linear(64, 38), nn.Linear(64, 38, dtype="int4")
    plain.init_weights()
    layer.load_state_dict(plain.state_dict())
    expected = reference.quantize_weight(plain.weight.numpy(), "int4")
    assert_close(layer.weight.numpy(), expected.dequantize(), scale=1.0)


def test_a_quantised_weight_decides_the_dtype():
    layer = nn.Linear(64, 38)
    q = random_groups((38, 64), "int8_groups")
    layer.weight.fill_quantized(q.values, q.scales.astype(np.float32), bits=8)
    assert (layer.weight.dtype, layer.weight.value.group_size) == ("int8", 32)
    with pytest.raises(ValueError, match=r"^parameter has shape \[38, 32\], expected \[38, 64\]"):
        layer.weight.fill_quantized(q.values[:, :32], q.scales[:, :1], bits=8)


def test_recurrent_layers_take_floats_only():
    layer = nn.GRU(3, 4)
    layer.init_weights()
    state = layer.state_dict()
    state["bias_hh_l0.values"] = state.pop("bias_hh_l0")
    with pytest.raises(ValueError, match=r"missing: bias_hh_l0\n  unexpected: bias_hh_l0.values$"):
        layer.load_state_dict(state)
    with pytest.raises(ValueError, match="dtype is 'int8', expected float32"):
        next(parameter for _, parameter in layer.named_parameters()).fill(
            state["weight_ih_l0"], dtype="int8"
        )


def test_quantised_states_that_do_not_fit_are_listed():
    layer = nn.Linear(64, 38, dtype="int4")
    layer.init_weights()
    state = layer.state_dict()
    bad = state | {"weight.values": state["weight.values"][:, :5], "bias.values": state["bias"]}
    del bad["weight.scales"], bad["bias"]
    with pytest.raises(ValueError, match="state does not fit") as caught:
        layer.load_state_dict(bad)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: weight.scales",
        "  missing: bias",
        "  unexpected: bias.values",
        "  mis-shaped: weight.values is [38, 5], expected [38, 32]",
    ]
