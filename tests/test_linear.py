"""linear and its packed weights."""

import numpy as np
import pytest
import softgate
from cases import BLOCK_COLUMNS
from cases.linear import LINEAR, LinearCase
from layouts import LAYOUTS, SPOILED, Guarded, place, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, linear_scale

pytestmark = pytest.mark.usefixtures("isa")

FULL = LinearCase(9, 21, 37, "gelu", True, True)


def linear(weight, **arguments):
    """With the weight packed on the way."""
    return ops.linear(weight=ops.pack(weight), **arguments)


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_matches_reference(case):
    a = case.arguments()
    scale = linear_scale(a["x"], a["weight"], a["bias"], a["residual"])
    assert_close(linear(**a), reference.linear(**a), scale=scale, terms=case.in_features)


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_writes_out_and_nothing_else(case):
    a = case.arguments()
    expected = linear(**a)
    guarded = Guarded(expected.shape, np.float32, "strided" if expected.ndim <= 2 else "misaligned")
    assert linear(**a, out=guarded.array) is guarded.array
    assert_same_bits(guarded.array, expected)
    guarded.assert_intact()


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [linear(**a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.parametrize("rows", [2, 5, 15, 29, 100, 300])
def test_a_row_does_not_depend_on_the_others(rows, isa):
    a = LinearCase(rows, 130, 75, "silu", True, True).arguments()
    whole = linear(**a)
    # With AMX, products of fewer rows than this round differently.
    fewest = 16 if isa == "amx" and rows >= 16 else 1
    for row in range(0, rows - fewest + 1, max(1, rows // 50)):
        some = {name: a[name][row : row + fewest] for name in ("x", "residual")}
        assert_same_bits(linear(**(a | some)), whole[row : row + fewest])


@pytest.mark.skipif("amx" not in softgate.isas(), reason="this CPU has no AMX")
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("in_features", [64, 768, 3072])
def test_amx_is_no_less_accurate_than_avx512(in_features, positive):
    a = LinearCase(64, in_features, 96, bias=False, positive=positive).arguments()
    expected = reference.linear(**a)
    errors = {}
    for isa in ("amx", "avx512"):
        softgate.set_isa(isa)
        errors[isa] = np.sqrt(np.mean((linear(**a) - expected) ** 2))
    assert 0 < errors["amx"] <= errors["avx512"]


@pytest.mark.skipif("amx" not in softgate.isas(), reason="this CPU has no AMX")
def test_amx_and_avx512_share_packed_weights():
    a = LinearCase(3, 64, 96).arguments()
    softgate.set_isa("avx512")
    weight = ops.pack(a.pop("weight"))
    expected = ops.linear(weight=weight, **a)
    softgate.set_isa("amx")
    assert_same_bits(ops.linear(weight=weight, **a), expected)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3.4e38, 1e-35, 1e-40])
def test_rows_of_any_magnitude(value):
    """Whole rows of it, beside ordinary ones, which they leave as they were."""
    a = LinearCase(40, 70, 50, bias=False).arguments()
    a["weight"] = np.abs(a["weight"]) / 200.0  # results stay finite
    expected = linear(**a)
    a["x"][[3, 39]] = value
    actual = linear(**a)
    spoiled = np.isin(np.arange(40), [3, 39])
    assert_same_bits(actual[~spoiled], expected[~spoiled])
    reference_rows = reference.linear(**(a | {"x": a["x"][spoiled]}))
    scale = linear_scale(a["x"][spoiled], a["weight"])
    assert_close(actual[spoiled], reference_rows, scale=scale, terms=70)


@pytest.mark.parametrize("value", [np.inf, 3.4e38, 1e-35])
def test_weight_rows_of_any_magnitude(value):
    a = LinearCase(40, 70, 50, bias=False).arguments()
    a["x"] = np.abs(a["x"]) / 200.0
    a["weight"][[7, 49]] = value
    scale = linear_scale(a["x"], a["weight"])
    assert_close(linear(**a), reference.linear(**a), scale=scale, terms=70)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activation_over_its_range(activation):
    x = np.linspace(-100.0, 100.0, 40001, dtype=np.float32)[:, None]
    weight = np.ones((1, 1), np.float32)  # nothing but the activation rounds
    actual = linear(x=x, weight=weight, activation=activation)
    expected = reference.linear(x, weight, activation=activation)
    assert_close(actual, expected, scale=np.abs(x))


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_nan_stays_in_its_row(activation):
    a = LinearCase(9, 21, 37, activation).arguments()
    expected = linear(**a)
    a["x"][4, 20] = np.nan
    actual = linear(**a)
    assert np.isnan(actual[4]).all()
    assert_same_bits(np.delete(actual, 4, axis=0), np.delete(expected, 4, axis=0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_residual_in_place(layout):
    a = FULL.arguments()
    expected = linear(**a)
    a["residual"] = place(a["residual"], layout)
    assert linear(**a, out=a["residual"]) is a["residual"]
    assert_same_bits(a["residual"], expected)


def test_leading_dimensions():
    a = LinearCase((2, 3), 8, 16, residual=True).arguments()
    actual = linear(**a)
    flat = linear(**(a | {"x": a["x"].reshape(6, 8), "residual": a["residual"].reshape(6, 16)}))
    assert_same_bits(actual, flat.reshape(2, 3, 16))


def test_repeated_row():
    a = FULL.arguments()
    x = np.broadcast_to(a["x"][:1], a["x"].shape)  # stride 0
    assert_same_bits(linear(**(a | {"x": x})), linear(**(a | {"x": x.copy()})))


def test_tensors_in_tensor_out():
    a = FULL.arguments()
    tensors = {name: softgate.Tensor(a[name]) for name in ("x", "bias", "residual")}
    weight = ops.pack(softgate.Tensor(a["weight"]))
    actual = ops.linear(weight=weight, activation="gelu", **tensors)
    assert isinstance(actual, softgate.Tensor)
    assert_same_bits(actual.numpy(), linear(**a))
    out = softgate.Tensor.empty((9, 37))
    assert ops.linear(weight=weight, activation="gelu", **tensors, out=out) is out
    assert_same_bits(out.numpy(), actual.numpy())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("in_features", [1, 5, 16, 33])
@pytest.mark.parametrize("out_features", BLOCK_COLUMNS)
def test_unpack_gives_the_weight_back(out_features, in_features, layout):
    random = np.random.default_rng(out_features)
    bits = random.integers(0, 2**32, (out_features, in_features), dtype=np.uint32)
    bits[0, 0] = 0xFFC12345  # a NaN with a payload
    weight = place(bits.view(np.float32), layout)
    packed = ops.pack(weight)
    assert (packed.out_features, packed.in_features) == weight.shape
    assert_same_bits(packed.unpack().numpy(), weight)


def test_pack_copies_the_weight():
    weight = np.ones((3, 4), np.float32)
    packed = ops.pack(weight)
    weight[:] = 2.0
    assert (packed.unpack().numpy() == 1.0).all()


def test_packed_weight_tells_what_it_is(isa):
    packed = ops.pack(np.zeros((37, 21), np.float32))
    assert packed.isa == isa
    assert packed.dtype == "float32"
    assert 37 * 21 * 4 <= packed.nbytes <= 64 * 21 * 4


@pytest.mark.skipif(len(softgate.isas()) < 2, reason="this CPU runs one ISA only")
def test_weight_of_another_isa_is_refused(isa):
    a = FULL.arguments()
    other = "generic" if isa != "generic" else softgate.isas()[0]
    softgate.set_isa(other)
    weight = ops.pack(a.pop("weight"))
    softgate.set_isa(isa)
    with pytest.raises(ValueError, match=rf"^linear: weight .*{other}.*{isa}"):
        ops.linear(weight=weight, **a)


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("argument", ["x", "bias", "residual", "out"])
def test_spoiled_argument(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    a = FULL.arguments() | {"out": np.zeros((9, 37), np.float32)}
    if (argument, spoiled) == ("x", "extra_dimension"):
        argument = "residual"  # x may have any leading dimensions: the residual must follow
        a["x"] = a["x"][None]
    else:
        a[argument] = spoil(a[argument])
    with pytest.raises(error, match=rf"^linear: {argument}\b"):
        linear(**a)


@pytest.mark.parametrize("spoiled", sorted(SPOILED.keys() - {"one_more", "float16"}))
def test_spoiled_weight(spoiled):
    error, spoil = SPOILED[spoiled]
    with pytest.raises(error, match=r"^pack: weight\b"):
        ops.pack(spoil(np.zeros((4, 5), np.float32)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"x": np.float32(1)}, TypeError, "x", id="x_scalar"),
        pytest.param({"x": np.zeros((9, 20), np.float32)}, ValueError, "x", id="x_narrow"),
        pytest.param({"x": np.zeros((), np.float32)}, ValueError, "x", id="x_without_dimensions"),
        pytest.param({"x": np.zeros((9, 21), np.float32)[::-1]}, ValueError, "x", id="x_reversed"),
        pytest.param({"bias": np.zeros(36, np.float32)}, ValueError, "bias", id="bias_short"),
        pytest.param(
            {"residual": np.zeros((8, 37), np.float32)}, ValueError, "residual", id="residual_rows"
        ),
        pytest.param({"out": np.zeros((8, 37), np.float32)}, ValueError, "out", id="out_rows"),
        pytest.param(
            {"out": read_only(np.zeros((9, 37), np.float32))}, ValueError, "out", id="out_read_only"
        ),
        pytest.param(
            {"out": np.lib.stride_tricks.as_strided(np.zeros(37, np.float32), (9, 37), (0, 4))},
            ValueError,
            "out",
            id="out_overlaps_itself",
        ),
        pytest.param({"activation": ""}, ValueError, "activation", id="no_activation"),
        pytest.param({"activation": "sigmoid"}, ValueError, "activation", id="unknown_activation"),
    ],
)
def test_bad_argument(change, error, message):
    with pytest.raises(error, match=rf"^linear: {message}\b"):
        linear(**(FULL.arguments() | change))


def test_plain_weight_is_refused():
    a = FULL.arguments()
    with pytest.raises(TypeError, match=r"^linear: weight is a .*PackedWeight"):
        ops.linear(**a)


def test_out_may_not_be_x():
    a = LinearCase(9, 21, 21).arguments()
    with pytest.raises(ValueError, match=r"^linear: out .*\bx\b"):
        linear(**a, out=a["x"])


def test_out_may_not_overlap_the_residual_in_part():
    a = FULL.arguments()
    memory = np.zeros((10, 37), np.float32)
    a["residual"] = memory[:9]
    with pytest.raises(ValueError, match=r"^linear: out overlaps residual"):
        linear(**a, out=memory[1:])


def test_out_may_not_overlap_the_bias():
    a = FULL.arguments()
    out = np.zeros((9, 37), np.float32)
    with pytest.raises(ValueError, match=r"^linear: out .*\bbias\b"):
        linear(**(a | {"bias": out[3]}), out=out)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 3, 4)], ids=str)
def test_shapes_that_cannot_be_packed(shape):
    with pytest.raises(ValueError, match=r"^pack: weight\b"):
        ops.pack(np.zeros(shape, np.float32))
