"""softmax."""

import numpy as np
import pytest
import softgate
from cases.softmax import SOFTMAX, SoftmaxCase
from layouts import LAYOUTS, SPOILED, Guarded, place, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, softmax_scale

pytestmark = pytest.mark.usefixtures("isa")


@pytest.mark.parametrize("case", SOFTMAX, ids=str)
def test_matches_reference(case):
    a = case.arguments()
    with np.errstate(invalid="ignore"):  # inf - inf, where a case has it
        expected = reference.softmax(**a)
        scale = softmax_scale(a["x"], expected)
    assert_close(ops.softmax(**a), expected, scale=scale, terms=case.shape[-1])


@pytest.mark.parametrize("case", SOFTMAX, ids=str)
def test_writes_out_and_nothing_else(case):
    a = case.arguments()
    expected = ops.softmax(**a)
    guarded = Guarded(expected.shape, np.float32, "strided" if expected.ndim <= 2 else "misaligned")
    assert ops.softmax(**a, out=guarded.array) is guarded.array
    assert_same_bits(guarded.array, expected)
    guarded.assert_intact()


@pytest.mark.parametrize("case", SOFTMAX, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [ops.softmax(**a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


def test_a_row_does_not_depend_on_the_others():
    x = SoftmaxCase((70, 37)).arguments()["x"]
    whole = ops.softmax(x)
    for row in range(len(x)):
        assert_same_bits(ops.softmax(x[row : row + 1]), whole[row : row + 1])


@pytest.mark.parametrize("minus_inf", ["rows", "some"])
def test_minus_inf_gives_exact_zeros(minus_inf):
    x = SoftmaxCase((6, 19), minus_inf=minus_inf).arguments()["x"]
    assert (ops.softmax(x)[x == -np.inf] == 0.0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place(layout):
    x = SoftmaxCase((9, 19)).arguments()["x"]
    expected = ops.softmax(x)
    x = place(x, layout)
    assert ops.softmax(x, out=x) is x
    assert_same_bits(x, expected)


def test_tensors_in_tensor_out():
    x = SoftmaxCase((9, 19)).arguments()["x"]
    actual = ops.softmax(softgate.Tensor(x))
    assert isinstance(actual, softgate.Tensor)
    assert_same_bits(actual.numpy(), ops.softmax(x))


@pytest.mark.parametrize("spoiled", sorted(SPOILED.keys() - {"extra_dimension", "one_more"}))
def test_spoiled_x(spoiled):
    error, spoil = SPOILED[spoiled]
    with pytest.raises(error, match=r"^softmax: x\b"):
        ops.softmax(spoil(np.zeros((4, 5), np.float32)))


@pytest.mark.parametrize("spoiled", SPOILED)
def test_spoiled_out(spoiled):
    error, spoil = SPOILED[spoiled]
    x = np.zeros((4, 5), np.float32)
    with pytest.raises(error, match=r"^softmax: out\b"):
        ops.softmax(x, out=spoil(x.copy()))


def test_scalar_is_refused():
    with pytest.raises(ValueError, match=r"^softmax: x\b"):
        ops.softmax(np.zeros((), np.float32))


def test_read_only_out_is_refused():
    x = np.zeros((4, 5), np.float32)
    with pytest.raises(ValueError, match=r"^softmax: out is read-only"):
        ops.softmax(x, out=read_only(x))


def test_out_may_not_overlap_x_in_part():
    memory = np.zeros((5, 6), np.float32)
    with pytest.raises(ValueError, match=r"^softmax: out overlaps x"):
        ops.softmax(memory[:4], out=memory[1:])
