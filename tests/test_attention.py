"""Attention over packed batches."""

import numpy as np
import pytest
import softgate
from cases import RAGGED, offsets
from cases.attention import ATTENTION, AttentionCase
from layouts import SPOILED, Guarded, place, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, attention_scales

pytestmark = pytest.mark.usefixtures("isa")

EVERYTHING = {"return_lse": True, "return_weights": True}

SMALL = AttentionCase((3, 5), (4, 6), num_heads=4, num_kv_heads=2, mask="bool")


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_matches_reference(case):
    a = case.arguments()
    expected = reference.attention(**a)
    scale, _, _ = attention_scales(**a)
    actual = ops.attention(**a)
    assert_close(actual, expected, scale=scale, terms=longest_keys(case))


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_lse_and_weights_match_reference(case):
    a = case.arguments()
    out, lse, weights = ops.attention(**a, **EVERYTHING)
    expected_out, expected_lse, expected_weights = reference.attention(**a, **EVERYTHING)
    scale, lse_scale, weight_scale = attention_scales(**a)
    terms = longest_keys(case)
    assert_close(out, expected_out, scale=scale, terms=terms)
    assert_close(lse, expected_lse, scale=lse_scale, terms=terms)
    assert_close(weights, expected_weights, scale=weight_scale * expected_weights, terms=terms)
    assert (weights[expected_weights == 0.0] == 0.0).all()
    alone = ops.attention(**a, return_lse=True)[1]
    assert_close(alone, expected_lse, scale=lse_scale, terms=terms)


def longest_keys(case):
    return max(case.key_lengths or case.lengths, default=1)


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_writes_out_and_nothing_else(case):
    a = case.arguments()
    expected = ops.attention(**a)
    for layout in ("strided", "transposed"):
        guarded = Guarded(expected.shape, np.float32, layout)
        assert ops.attention(**a, out=guarded.array) is guarded.array
        assert_same_bits(guarded.array, expected)
        guarded.assert_intact()


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [ops.attention(**a, **EVERYTHING) for _ in thread_counts]
    for results in others:
        for actual, expected in zip(results, first, strict=True):
            assert_same_bits(actual, expected)


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(RAGGED),
        AttentionCase(RAGGED, (5, 3, 0, 66, 9), causal=True),
        AttentionCase(RAGGED, num_heads=4, num_kv_heads=2, head_dim=33, window=(9, 2)),
        AttentionCase((3, 0, 90), mask="bool"),
        AttentionCase((3, 0, 90), mask="minus_inf", layout="strided"),
    ],
    ids=str,
)
def test_a_sequence_does_not_depend_on_the_others(case):
    a = case.arguments()
    whole = ops.attention(**a)
    starts_q = a["cu_seqlens_q"]
    starts_k = starts_q if a["cu_seqlens_k"] is None else a["cu_seqlens_k"]
    for b in range(len(case.lengths)):
        rows_q, rows_k = (slice(starts[b], starts[b + 1]) for starts in (starts_q, starts_k))
        alone = a | {
            "q": a["q"][rows_q],
            "k": a["k"][rows_k],
            "v": a["v"][rows_k],
            "cu_seqlens_q": offsets((rows_q.stop - rows_q.start,)),
            "cu_seqlens_k": offsets((rows_k.stop - rows_k.start,)),
            "mask": None if a["mask"] is None else a["mask"][b : b + 1],
        }
        assert_same_bits(ops.attention(**alone), whole[rows_q])

        spoiled = {name: np.full_like(a[name], np.nan) for name in ("q", "k", "v")}
        for name, rows in (("q", rows_q), ("k", rows_k), ("v", rows_k)):
            spoiled[name][rows] = a[name][rows]
        assert_same_bits(ops.attention(**(a | spoiled))[rows_q], whole[rows_q])


def test_nan_query_stays_in_its_row():
    a = AttentionCase((40,)).arguments()
    expected = ops.attention(**a)
    a["q"][7, 1, 5] = np.nan
    actual = ops.attention(**a)
    assert np.isnan(actual[7, 1]).all()
    actual[7, 1] = expected[7, 1]
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("key", [0, 30, 150, 199])
def test_nan_key_reaches_the_queries_that_see_it(key):
    a = AttentionCase((200,), causal=True).arguments()
    expected = ops.attention(**a)
    a["k"][key, 1, 3] = np.nan
    actual = ops.attention(**a)
    assert np.isnan(actual[key:, 1]).all()
    actual[key:, 1] = expected[key:, 1]
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("mask", ["bool_none", "bool_empty_rows", "minus_inf_empty_rows"])
def test_query_without_keys_gives_exact_zeros(mask):
    a = AttentionCase((40,), (70,), mask=mask).arguments()
    out, lse, weights = ops.attention(**a, **EVERYTHING)
    empty = np.isneginf(lse)  # [num_heads, total_q]
    assert empty.any()
    assert (out.swapaxes(0, 1)[empty] == 0.0).all()
    assert (weights[0][empty] == 0.0).all()
    assert_close(weights[0].sum(axis=-1), np.where(empty, 0.0, 1.0), terms=70)


def test_views_of_one_projection():
    projected = np.random.default_rng(0).standard_normal((23, 8, 16)).astype(np.float32)
    q, k, v = projected[:, :4], projected[:, 4:6], projected[:, 6:]
    starts = offsets((20, 3))
    expected = ops.attention(q.copy(), k.copy(), v.copy(), starts)
    assert_same_bits(ops.attention(q, k, v, starts), expected)


@pytest.mark.parametrize("mask", ["bool", "bias"])
def test_broadcast_mask_means_the_same(mask):
    a = AttentionCase((9, 20), num_heads=3, mask=mask, mask_over=(False, False)).arguments()
    full = np.broadcast_to(a["mask"], (2, 3, 20, 20))
    assert_same_bits(ops.attention(**(a | {"mask": full})), ops.attention(**a))
    assert_same_bits(ops.attention(**(a | {"mask": full.copy()})), ops.attention(**a))


@pytest.mark.parametrize("mask", ["bool", "bias"])
def test_mask_larger_than_the_longest_sequence(mask):
    a = AttentionCase((9, 20), (5, 30), mask=mask).arguments()
    expected = ops.attention(**a)
    larger = np.zeros((2, 2, 22, 37), a["mask"].dtype)
    larger[:, :, :20, :30] = a["mask"]
    assert_same_bits(ops.attention(**(a | {"mask": larger})), expected)


def test_weights_have_the_size_of_the_mask():
    a = AttentionCase((9, 20), (5, 30)).arguments()
    assert ops.attention(**a, return_weights=True)[1].shape == (2, 2, 20, 30)
    a["mask"] = np.ones((1, 1, 22, 37), bool)
    weights = ops.attention(**a, return_weights=True)[1]
    assert weights.shape == (2, 2, 22, 37)
    assert (weights[:, :, 20:] == 0.0).all()
    assert (weights[..., 30:] == 0.0).all()


def test_results_follow_the_flags():
    a = SMALL.arguments()
    assert isinstance(ops.attention(**a), np.ndarray)
    assert [array.shape for array in ops.attention(**a, return_lse=True)] == [(8, 4, 8), (4, 8)]
    assert [array.shape for array in ops.attention(**a, return_weights=True)] == [
        (8, 4, 8),
        (2, 4, 5, 6),
    ]


def test_causal_is_a_right_bound_of_zero():
    a = AttentionCase((33, 50), (40, 20)).arguments()
    causal = ops.attention(**(a | {"causal": True}))
    assert_same_bits(ops.attention(**(a | {"window": (-1, 0)})), causal)


def test_tensors_in_tensor_out():
    a = SMALL.arguments()
    tensors = {
        name: softgate.Tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in a.items()
    }
    results = ops.attention(**tensors, **EVERYTHING)
    for actual, expected in zip(results, ops.attention(**a, **EVERYTHING), strict=True):
        assert isinstance(actual, softgate.Tensor)
        assert_same_bits(actual.numpy(), expected)


@pytest.mark.parametrize("spoiled", sorted(SPOILED.keys() - {"one_more"}))
@pytest.mark.parametrize("argument", ["q", "k", "v", "out"])
def test_spoiled_argument(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    a = SMALL.arguments() | {"out": np.zeros((8, 4, 8), np.float32)}
    a[argument] = spoil(a[argument])
    with pytest.raises(error, match=rf"^attention: {argument}\b"):
        ops.attention(**a)


@pytest.mark.parametrize("argument", ["cu_seqlens_q", "cu_seqlens_k"])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(lambda starts: starts.astype(np.int64), TypeError, id="int64"),
        pytest.param(lambda starts: starts.astype(np.float32), TypeError, id="float32"),
        pytest.param(lambda starts: starts.tolist(), TypeError, id="list"),
        pytest.param(lambda starts: np.repeat(starts, 2)[::2], ValueError, id="gapped"),
        pytest.param(lambda starts: starts[None], ValueError, id="two_dimensions"),
        pytest.param(lambda starts: starts[:0], ValueError, id="empty"),
        pytest.param(lambda starts: starts + 1, ValueError, id="starts_late"),
        pytest.param(lambda starts: starts - [1, 0, 0], ValueError, id="negative"),
        pytest.param(lambda starts: starts * [0, 9, 1], ValueError, id="falls"),
        pytest.param(lambda starts: starts - [0, 0, 1], ValueError, id="ends_early"),
        pytest.param(lambda starts: starts - [0, 0, -1], ValueError, id="ends_late"),
    ],
)
def test_spoiled_offsets(argument, spoil, error):
    a = SMALL.arguments()
    spoiled = spoil(a[argument])
    if error is ValueError:
        spoiled = spoiled.astype(np.int32, copy=False)  # arithmetic made it int64
    with pytest.raises(error, match=rf"^attention: {argument}\b"):
        ops.attention(**(a | {argument: spoiled}))


def shaped(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(
            {"k": shaped(10, 3, 8), "v": shaped(10, 3, 8)},
            ValueError,
            "k has 3 heads, expected a divisor of q's 4",
            id="heads_do_not_divide",
        ),
        pytest.param(
            {"k": shaped(10, 8, 8), "v": shaped(10, 8, 8)},
            ValueError,
            "k has 8 heads, expected a divisor of q's 4",
            id="more_heads_than_q",
        ),
        pytest.param(
            {"k": shaped(10, 0, 8), "v": shaped(10, 0, 8)}, ValueError, "k", id="no_heads"
        ),
        pytest.param({"v": shaped(10, 4, 8)}, ValueError, "v", id="v_heads"),
        pytest.param({"v": shaped(9, 2, 8)}, ValueError, "v", id="v_tokens"),
        pytest.param({"v": shaped(10, 2, 7)}, ValueError, "v", id="v_head_dim"),
        pytest.param({"k": shaped(10, 2, 9)}, ValueError, "k", id="k_head_dim"),
        pytest.param(
            {"q": shaped(8, 4, 257), "k": shaped(10, 2, 257), "v": shaped(10, 2, 257)},
            ValueError,
            "q.*257.*256",
            id="head_dim_257",
        ),
        pytest.param({"q": shaped(8, 32)}, ValueError, "q", id="q_two_dimensions"),
        pytest.param({"out": shaped(8, 4, 7)}, ValueError, "out", id="out_head_dim"),
        pytest.param(
            {"out": read_only(shaped(8, 4, 8))}, ValueError, "out is read-only", id="out_read_only"
        ),
        pytest.param({"cu_seqlens_k": offsets((10,))}, ValueError, "cu_seqlens_k", id="batch"),
        pytest.param(
            {"mask": shaped(2, 4, 5, 6, dtype=np.int8)}, TypeError, "mask", id="mask_int8"
        ),
        pytest.param(
            {"mask": shaped(2, 4, 5, 6, dtype=np.float64)}, TypeError, "mask", id="mask_float64"
        ),
        pytest.param({"mask": shaped(2, 5, 6)}, ValueError, "mask", id="mask_three_dimensions"),
        pytest.param({"mask": shaped(3, 4, 5, 6)}, ValueError, "mask", id="mask_batch"),
        pytest.param({"mask": shaped(2, 2, 5, 6)}, ValueError, "mask", id="mask_heads"),
        pytest.param({"mask": shaped(2, 4, 4, 6)}, ValueError, "mask", id="mask_few_queries"),
        pytest.param({"mask": shaped(2, 4, 5, 5)}, ValueError, "mask", id="mask_few_keys"),
        pytest.param({"softcap": -1.0}, ValueError, "softcap", id="softcap_negative"),
        pytest.param({"softcap": float("nan")}, ValueError, "softcap", id="softcap_nan"),
        pytest.param({"scale": float("nan")}, ValueError, "scale", id="scale_nan"),
    ],
)
def test_bad_argument(change, error, message):
    with pytest.raises(error, match=rf"^attention: {message}\b"):
        ops.attention(**(SMALL.arguments() | change))


@pytest.mark.parametrize("argument", ["q", "k", "v"])
def test_out_overlaps_none(argument):
    a = AttentionCase((9,)).arguments()
    with pytest.raises(ValueError, match=rf"^attention: out .*\b{argument}\b"):
        ops.attention(**a, out=a[argument])


def test_out_may_not_overlap_the_mask():
    a = AttentionCase((8,), mask="bias").arguments()
    out = a["mask"].reshape(8, 2, 8)
    with pytest.raises(ValueError, match=r"^attention: out .*\bmask\b"):
        ops.attention(**a, out=out)


def test_offsets_may_be_views():
    a = SMALL.arguments()
    moved = {name: place(a[name], "misaligned") for name in ("cu_seqlens_q", "cu_seqlens_k")}
    assert_same_bits(ops.attention(**(a | moved)), ops.attention(**a))
