"""L2 normalisation."""

import numpy as np
import pytest
import softgate
from cases.normalize import NORMALIZE, NormalizeCase
from layouts import LAYOUTS, SPOILED, Guarded, place, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits

pytestmark = pytest.mark.usefixtures("isa")


@pytest.mark.parametrize("case", NORMALIZE, ids=str)
def test_matches_reference(case):
    a = case.arguments()
    assert_close(ops.normalize(**a), reference.normalize(**a), terms=case.hidden)


@pytest.mark.parametrize("case", NORMALIZE, ids=str)
def test_writes_out_and_nothing_else(case):
    a = case.arguments()
    expected = ops.normalize(**a)
    guarded = Guarded(expected.shape, np.float32, "strided" if expected.ndim <= 2 else "misaligned")
    assert ops.normalize(**a, out=guarded.array) is guarded.array
    assert_same_bits(guarded.array, expected)
    guarded.assert_intact()


@pytest.mark.parametrize("case", NORMALIZE, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [ops.normalize(**a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


def test_a_row_does_not_depend_on_the_others():
    x = NormalizeCase(70, 37).arguments()["x"]
    whole = ops.normalize(x)
    for row in range(len(x)):
        assert_same_bits(ops.normalize(x[row : row + 1]), whole[row : row + 1])


def test_nan_stays_in_its_row():
    x = NormalizeCase(5, 37).arguments()["x"]
    expected = ops.normalize(x)
    x[2, 36] = np.nan
    actual = ops.normalize(x)
    assert np.isnan(actual[2]).all()
    assert_same_bits(np.delete(actual, 2, axis=0), np.delete(expected, 2, axis=0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place(layout):
    x = NormalizeCase(9, 19).arguments()["x"]
    expected = ops.normalize(x)
    x = place(x, layout)
    assert ops.normalize(x, out=x) is x
    assert_same_bits(x, expected)


def test_tensors_in_tensor_out():
    x = NormalizeCase(9, 19).arguments()["x"]
    actual = ops.normalize(softgate.Tensor(x))
    assert isinstance(actual, softgate.Tensor)
    assert_same_bits(actual.numpy(), ops.normalize(x))


@pytest.mark.parametrize("spoiled", sorted(SPOILED.keys() - {"extra_dimension", "one_more"}))
def test_spoiled_x(spoiled):
    error, spoil = SPOILED[spoiled]
    with pytest.raises(error, match=r"^normalize: x\b"):
        ops.normalize(spoil(np.zeros((4, 5), np.float32)))


@pytest.mark.parametrize("spoiled", SPOILED)
def test_spoiled_out(spoiled):
    error, spoil = SPOILED[spoiled]
    x = np.zeros((4, 5), np.float32)
    with pytest.raises(error, match=r"^normalize: out\b"):
        ops.normalize(x, out=spoil(x.copy()))


def test_scalar_is_refused():
    with pytest.raises(ValueError, match=r"^normalize: x\b"):
        ops.normalize(np.zeros((), np.float32))


@pytest.mark.parametrize("eps", [-1e-6, float("nan")])
def test_bad_eps(eps):
    with pytest.raises(ValueError, match=r"^normalize: eps\b"):
        ops.normalize(np.zeros((4, 5), np.float32), eps=eps)


def test_read_only_out_is_refused():
    x = np.zeros((4, 5), np.float32)
    with pytest.raises(ValueError, match=r"^normalize: out is read-only"):
        ops.normalize(x, out=read_only(x))


def test_out_may_not_overlap_x_in_part():
    memory = np.zeros((5, 6), np.float32)
    with pytest.raises(ValueError, match=r"^normalize: out overlaps x"):
        ops.normalize(memory[:4], out=memory[1:])
