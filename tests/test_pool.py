"""Pooling of packed sequences."""

import numpy as np
import pytest
import softgate
from cases import offsets
from cases.pool import POOL, POOLINGS, PoolCase
from layouts import SPOILED, Guarded, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits

pytestmark = pytest.mark.usefixtures("isa")

SMALL = PoolCase((2, 3), 5)


@pytest.mark.parametrize("case", POOL, ids=str)
def test_matches_reference(case):
    a = case.arguments()
    actual, expected = ops.pool(**a), reference.pool(**a)
    if case.mode == "mean":
        size = reference.pool(np.abs(a["x"]), a["cu_seqlens"], "mean")
        assert_close(actual, expected, scale=size, terms=max(case.lengths, default=1))
    else:
        assert np.array_equal(actual, expected, equal_nan=True)  # nothing to round


@pytest.mark.parametrize("case", POOL, ids=str)
def test_writes_out_and_nothing_else(case):
    a = case.arguments()
    expected = ops.pool(**a)
    guarded = Guarded(expected.shape, np.float32, "strided")
    assert ops.pool(**a, out=guarded.array) is guarded.array
    assert_same_bits(guarded.array, expected)
    guarded.assert_intact()


@pytest.mark.parametrize("case", POOL, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [ops.pool(**a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.parametrize("mode", POOLINGS)
def test_a_sequence_does_not_depend_on_the_others(mode):
    case = PoolCase((3, 0, 40, 1, 8), 37, mode)
    a = case.arguments()
    whole = ops.pool(**a)
    starts = a["cu_seqlens"]
    for b, length in enumerate(case.lengths):
        tokens = slice(starts[b], starts[b + 1])
        alone = ops.pool(a["x"][tokens], offsets((length,)), mode)
        assert_same_bits(alone, whole[b : b + 1])

        spoiled = np.full_like(a["x"], np.nan)
        spoiled[tokens] = a["x"][tokens]
        assert_same_bits(ops.pool(spoiled, starts, mode)[b], whole[b])


def test_tensors_in_tensor_out():
    a = SMALL.arguments()
    actual = ops.pool(softgate.Tensor(a["x"]), softgate.Tensor(a["cu_seqlens"]))
    assert isinstance(actual, softgate.Tensor)
    assert_same_bits(actual.numpy(), ops.pool(**a))


@pytest.mark.parametrize("spoiled", sorted(SPOILED.keys() - {"one_more"}))
def test_spoiled_x(spoiled):
    error, spoil = SPOILED[spoiled]
    a = SMALL.arguments()
    with pytest.raises(error, match=r"^pool: x\b"):
        ops.pool(**(a | {"x": spoil(a["x"])}))


@pytest.mark.parametrize("spoiled", SPOILED)
def test_spoiled_out(spoiled):
    error, spoil = SPOILED[spoiled]
    with pytest.raises(error, match=r"^pool: out\b"):
        ops.pool(**SMALL.arguments(), out=spoil(np.zeros((2, 5), np.float32)))


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        pytest.param({"x": np.zeros(5, np.float32)}, ValueError, "x", id="x_one_dimension"),
        pytest.param({"mode": "median"}, ValueError, "mode", id="unknown_mode"),
        pytest.param(
            {"out": read_only(np.zeros((2, 5), np.float32))}, ValueError, "out", id="out_read_only"
        ),
        pytest.param(
            {"cu_seqlens": np.array([0, 2, 5])}, TypeError, "cu_seqlens", id="cu_seqlens_int64"
        ),
        *(
            pytest.param(
                {"cu_seqlens": np.array(values, np.int32)}, ValueError, "cu_seqlens", id=name
            )
            for name, values in {
                "cu_seqlens_empty": [],
                "cu_seqlens_starts_late": [1, 2, 5],
                "cu_seqlens_negative": [-1, 2, 5],
                "cu_seqlens_falls": [0, 6, 2, 5],
                "cu_seqlens_ends_early": [0, 2, 4],
                "cu_seqlens_ends_late": [0, 2, 6],
                "cu_seqlens_two_dimensions": [[0, 2, 5]],
            }.items()
        ),
    ],
)
def test_bad_argument(change, error, argument):
    with pytest.raises(error, match=rf"^pool: {argument}\b"):
        ops.pool(**(SMALL.arguments() | change))


def test_out_may_not_overlap_x():
    a = SMALL.arguments()
    with pytest.raises(ValueError, match=r"^pool: out .*\bx\b"):
        ops.pool(**a, out=a["x"][:2])
