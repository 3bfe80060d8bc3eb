"""Attention of a recurrent decoder to its encoder's states."""

import numpy as np
import pytest
import softgate
from cases.source_attention import SOURCE_ATTENTION, SourceAttentionCase
from layouts import SPOILED
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits

pytestmark = pytest.mark.usefixtures("isa")

SMALL = SourceAttentionCase((3, 5), (1, 0, 1), 5, 4)


def score_scale(a) -> float:
    """The size of the largest sum that a score is."""
    if a["v"] is not None:
        return float(np.abs(a["v"]).sum())
    largest = [np.abs(a[name]).max(initial=0.0) for name in ("query", "keys")]
    return float(a["query"].shape[1] * largest[0] * largest[1])


@pytest.mark.parametrize("case", SOURCE_ATTENTION, ids=str)
def test_matches_reference(case):
    a = case.arguments()
    out, weights = ops.source_attention(**a)
    expected, expected_weights = reference.source_attention(**a)
    # A score's error is a relative one of its weight.
    amplified = 1.0 + score_scale(a)
    terms = case.size + max(case.lengths, default=1)
    assert_close(weights, expected_weights, scale=amplified * expected_weights, terms=terms)
    size, _ = reference.source_attention(**a | {"values": np.abs(a["values"])})
    assert_close(out, expected, scale=amplified * size, terms=terms)


@pytest.mark.parametrize("case", SOURCE_ATTENTION, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [ops.source_attention(**a) for _ in thread_counts]
    for other in others:
        for one, another in zip(first, other, strict=True):
            assert_same_bits(one, another)


@pytest.mark.parametrize("additive", [True, False])
def test_a_row_does_not_depend_on_the_others(additive):
    a = SourceAttentionCase((3, 0, 40, 1), (2, 0, 3, 2, 1), 37, 21, additive).arguments()
    whole, weights = ops.source_attention(**a)
    ends = np.cumsum(np.diff(a["cu_seqlens"])[a["sources"]])
    for row, part in enumerate(np.split(weights, ends[:-1])):
        one = {name: a[name][row : row + 1] for name in ("query", "sources")}
        out, alone = ops.source_attention(**a | one)
        assert_same_bits(out, whole[row : row + 1])
        assert_same_bits(alone, part)


def test_a_nan_spoils_its_own_rows():
    a = SMALL.arguments()
    a["keys"][0, 2] = np.nan
    out, _ = ops.source_attention(**a)
    np.testing.assert_array_equal(np.isnan(out).all(axis=1), [False, True, False])
    assert np.isfinite(out[[0, 2]]).all()


def test_tensors_in_tensors_out():
    a = SMALL.arguments()
    given = {name: softgate.Tensor(array) for name, array in a.items()}
    for actual, expected in zip(
        ops.source_attention(**given), ops.source_attention(**a), strict=True
    ):
        assert isinstance(actual, softgate.Tensor)
        assert_same_bits(actual.numpy(), expected)


@pytest.mark.parametrize(
    ("argument", "spoiled"),
    [
        (argument, spoiled)
        for argument in ("query", "keys", "values", "v")
        for spoiled in SPOILED
        if (argument, spoiled) != ("values", "one_more")  # which may have any number of columns
    ],
)
def test_spoiled_argument(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    a = SMALL.arguments()
    with pytest.raises(error, match=r"^source_attention: "):
        ops.source_attention(**(a | {argument: spoil(a[argument])}))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sources": np.array([0, 2, 1], np.int32)}, ValueError, r"sources\[1\] is 2, expected 0"),
        ({"sources": np.array([0, -1, 1], np.int32)}, ValueError, r"sources\[1\] is -1, expected"),
        ({"sources": np.zeros(2, np.int32)}, ValueError, "sources has shape"),
        ({"sources": np.zeros(3, np.int64)}, TypeError, "sources"),
        ({"cu_seqlens": np.array([0, 3, 9], np.int32)}, ValueError, "cu_seqlens"),
        ({"cu_seqlens": np.array([0, 9, 8], np.int32)}, ValueError, "cu_seqlens"),
        ({"values": np.zeros((7, 4), np.float32)}, ValueError, "values has shape"),
        ({"keys": np.zeros((8, 6), np.float32)}, ValueError, "keys has shape"),
    ],
    ids=str,
)
def test_bad_argument(change, error, message):
    with pytest.raises(error, match=rf"^source_attention: {message}"):
        ops.source_attention(**(SMALL.arguments() | change))
