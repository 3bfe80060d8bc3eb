"""add_layer_norm and add_rms_norm."""

import numpy as np
import pytest
import softgate
from cases.add_norm import ADD_NORM, AddNormCase
from layouts import LAYOUTS, SPOILED, Guarded, place, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, norm_scale

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.parametrize("op", ["add_layer_norm", "add_rms_norm"]),
]

SMALL = AddNormCase(5, 19)


def arguments(op, case):
    """Of the case, without the bias that an RMS norm does not have."""
    a = case.arguments()
    if op == "add_rms_norm":
        del a["bias"]
    return a


def run(op, **arguments):
    return getattr(ops, op)(**arguments)


def layout_for(array):
    """The most awkward layout that rows of this many dimensions may have."""
    return "strided" if array.ndim <= 2 else "misaligned"


@pytest.mark.parametrize("case", ADD_NORM, ids=str)
def test_matches_reference(op, case):
    a = arguments(op, case)
    expected = getattr(reference, op)(**a)
    scale = norm_scale(**a, center=op == "add_layer_norm")
    assert_close(run(op, **a), expected, scale=scale, terms=case.hidden)


@pytest.mark.parametrize("case", ADD_NORM, ids=str)
def test_writes_out_and_sum_and_nothing_else(op, case):
    a = arguments(op, case)
    expected = run(op, **a)
    out, total = (Guarded(expected.shape, np.float32, layout_for(expected)) for _ in range(2))
    assert run(op, **a, out=out.array, sum_out=total.array) is out.array
    assert_same_bits(out.array, expected)
    x, residual = a["x"], a["residual"]
    assert_same_bits(total.array, x if residual is None else x + residual)
    out.assert_intact()
    total.assert_intact()


@pytest.mark.parametrize("case", ADD_NORM, ids=str)
def test_same_bits_on_any_thread_count(op, case, thread_counts):
    a = arguments(op, case)
    first, *others = [run(op, **a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


def test_a_row_does_not_depend_on_the_others(op):
    a = arguments(op, AddNormCase(70, 37))
    whole = run(op, **a)
    for row in range(70):
        one = {name: a[name][row : row + 1] for name in ("x", "residual")}
        assert_same_bits(run(op, **(a | one)), whole[row : row + 1])


def test_nan_stays_in_its_row(op):
    a = arguments(op, SMALL)
    expected = run(op, **a)
    a["x"][2, 18] = np.nan
    actual = run(op, **a)
    assert np.isnan(actual[2]).all()
    assert_same_bits(np.delete(actual, 2, axis=0), np.delete(expected, 2, axis=0))


def test_more_rows_than_a_cache_holds(op):
    """Kernels may write so much around the caches; the result is that of the parts."""
    a = arguments(op, AddNormCase(8400, 1003))
    width = 1008  # keeps every row aligned to the widest vector
    out = Guarded((8400, width), np.float32)
    out.array[:, 1003:] = 7.0
    run(op, **a, out=out.array[:, :1003])
    for begin in range(0, 8400, 1200):
        part = {name: a[name][begin : begin + 1200] for name in ("x", "residual")}
        assert_same_bits(run(op, **(a | part)), out.array[begin : begin + 1200, :1003])
    assert (out.array[:, 1003:] == 7.0).all()
    out.assert_intact()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("out", "sum_out"),
    [
        ("x", None),
        ("residual", None),
        ("x", "residual"),
        ("residual", "x"),
        (None, "x"),
        (None, "residual"),
    ],
)
def test_in_place(op, out, sum_out, layout):
    a = arguments(op, SMALL)
    expected, total = run(op, **a), a["x"] + a["residual"]
    for name in ("x", "residual"):
        a[name] = place(a[name], layout)
    results = {"out": a.get(out), "sum_out": a.get(sum_out)}
    assert_same_bits(run(op, **a, **results), expected)
    if out is not None:
        assert_same_bits(results["out"], expected)
    if sum_out is not None:
        assert_same_bits(results["sum_out"], total)


def test_leading_dimensions(op):
    a = arguments(op, AddNormCase((2, 3), 16))
    flat = {name: a[name].reshape(6, 16) for name in ("x", "residual")}
    assert_same_bits(run(op, **a), run(op, **(a | flat)).reshape(2, 3, 16))


def test_tensors_in_tensor_out(op):
    a = arguments(op, SMALL)
    tensors = {
        name: softgate.Tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in a.items()
    }
    actual = run(op, **tensors)
    assert isinstance(actual, softgate.Tensor)
    assert_same_bits(actual.numpy(), run(op, **a))


@pytest.mark.parametrize("spoiled", SPOILED)
def test_spoiled_argument(op, spoiled):
    error, spoil = SPOILED[spoiled]
    a = arguments(op, SMALL)
    a |= {name: np.zeros((5, 19), np.float32) for name in ("out", "sum_out")}
    names = a.keys() - {"eps"}
    if spoiled in ("extra_dimension", "one_more"):
        names -= {"x"}  # which may have any shape: the others must follow
    for name in names:
        with pytest.raises(error, match=rf"^{op}: {name}\b"):
            run(op, **(a | {name: spoil(a[name])}))


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        pytest.param({"x": np.zeros((), np.float32)}, "x", id="x_without_dimensions"),
        pytest.param({"residual": np.zeros((4, 19), np.float32)}, "residual", id="residual_rows"),
        pytest.param({"eps": -1e-6}, "eps", id="eps_negative"),
        pytest.param({"eps": float("nan")}, "eps", id="eps_nan"),
        pytest.param({"weight": np.zeros(18, np.float32)}, "weight", id="weight_short"),
        pytest.param({"out": np.zeros((6, 19), np.float32)}, "out", id="out_rows"),
        pytest.param({"out": read_only(np.zeros((5, 19), np.float32))}, "out", id="out_read_only"),
        pytest.param(
            {"sum_out": read_only(np.zeros((5, 19), np.float32))}, "sum_out", id="sum_read_only"
        ),
    ],
)
def test_bad_argument(op, change, argument):
    with pytest.raises(ValueError, match=rf"^{op}: {argument}\b"):
        run(op, **(arguments(op, SMALL) | change))


@pytest.mark.parametrize("argument", ["out", "sum_out"])
@pytest.mark.parametrize("other", ["x", "residual", "weight"])
def test_results_may_not_overlap_arguments_in_part(op, other, argument):
    a = arguments(op, SMALL)
    memory = np.zeros((6, 19), np.float32)
    a[other] = memory[0] if other == "weight" else memory[:5]
    result = memory[:5] if other == "weight" else memory[1:]
    with pytest.raises(ValueError, match=rf"^{op}: .*\b{other}\b"):
        run(op, **a, **{argument: result})


def test_out_may_not_be_sum_out(op):
    array = np.zeros((5, 19), np.float32)
    with pytest.raises(ValueError, match=rf"^{op}: .*sum_out"):
        run(op, **arguments(op, SMALL), out=array, sum_out=array)
