"""Attention to keys and values in a cache."""

import numpy as np
import pytest
import softgate
from cases import offsets
from cases.cached_attention import CACHED_ATTENTION, CachedAttentionCase
from layouts import SPOILED, Guarded, place, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, cached_attention_scale

pytestmark = pytest.mark.usefixtures("isa")

SMALL = CachedAttentionCase((3, 1), (4, 6), num_heads=4, num_kv_heads=2, rows=(2, 0))


@pytest.mark.parametrize("case", CACHED_ATTENTION, ids=str)
def test_matches_reference(case):
    a = case.arguments()
    expected = reference.cached_attention(**a)
    scale = cached_attention_scale(**a)
    terms = max(case.key_lengths, default=1)
    assert_close(ops.cached_attention(**a), expected, scale=scale, terms=terms)


@pytest.mark.parametrize("case", CACHED_ATTENTION, ids=str)
def test_writes_out_and_nothing_else(case):
    a = case.arguments()
    expected = ops.cached_attention(**a)
    for layout in ("strided", "transposed"):
        guarded = Guarded(expected.shape, np.float32, layout)
        assert ops.cached_attention(**a, out=guarded.array) is guarded.array
        assert_same_bits(guarded.array, expected)
        guarded.assert_intact()


@pytest.mark.parametrize("case", CACHED_ATTENTION, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [ops.cached_attention(**a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.parametrize(
    "case",
    [
        CachedAttentionCase((1, 0, 5, 1, 70), (9, 4, 5, 600, 130), 4, 2),
        CachedAttentionCase((1, 1, 2), (20, 1300, 50), rows=(1, 1, 1)),
        CachedAttentionCase((1, 2, 3), (700, 90, 800), 12, 4, 64, window=(300, 0)),
        CachedAttentionCase((1,) * 40, tuple(range(0, 1200, 30)), 3, 1, 33),
    ],
    ids=str,
)
def test_a_sequence_does_not_depend_on_the_others(case):
    a = case.arguments()
    whole = ops.cached_attention(**a)
    rows = case.rows or range(len(case.lengths))
    for b, row in enumerate(rows):
        tokens = slice(a["cu_seqlens_q"][b], a["cu_seqlens_q"][b + 1])
        alone = a | {
            "q": a["q"][tokens],
            "cu_seqlens_q": offsets((tokens.stop - tokens.start,)),
            "lengths_k": a["lengths_k"][b : b + 1],
            "cache_rows": np.array([row], np.int32),
        }
        assert_same_bits(ops.cached_attention(**alone), whole[tokens])


@pytest.mark.parametrize("window", [(-1, -1), (70, 0)])
@pytest.mark.parametrize("length", [3, 40, 200, 600])
def test_chunks_mean_the_same_as_one_forward(length, window):
    """A query's result is that of `attention` over the whole sequence, however it came."""
    case = CachedAttentionCase((length,), (length,), 6, 2, 33, window=window)
    a = case.arguments()
    k, v = (a[name][0, :length] for name in ("k_cache", "v_cache"))
    starts = offsets((length,))
    expected = reference.attention(a["q"], k, v, starts, causal=True, window=window)
    scale = cached_attention_scale(**a)
    for chunk in (1, 2, 7, 64, length):
        for begin in sorted({0, max(0, length // chunk // 2 * chunk), max(0, length - chunk)}):
            end = min(begin + chunk, length)
            some = a | {
                "q": a["q"][begin:end],
                "cu_seqlens_q": offsets((end - begin,)),
                "lengths_k": np.array([end], np.int32),
            }
            actual = ops.cached_attention(**some)
            assert_close(actual, expected[begin:end], scale=scale[begin:end], terms=length)


@pytest.mark.parametrize("window", [(-1, -1), (70, 0), (9, 0)])
@pytest.mark.parametrize("length", [4, 66, 700])
def test_a_few_queries_at_once_are_decoded_as_one_by_one(length, window):
    """Bit for bit: what tokens guessed ahead give is what they will."""
    a = CachedAttentionCase((4,), (length,), 6, 2, 40, window=window, softcap=9.0).arguments()
    expected = ops.cached_attention(**a)
    for i in range(4):
        one = {"q": a["q"][i : i + 1], "cu_seqlens_q": offsets((1,))}
        one["lengths_k"] = np.array([length - 3 + i], np.int32)
        assert_same_bits(ops.cached_attention(**(a | one)), expected[i : i + 1])


@pytest.mark.parametrize("key", [0, 30, 299, 300, 1199])
def test_nan_key_reaches_the_queries_that_see_it(key):
    a = CachedAttentionCase((2, 1), (1200, 1200), 4, 2, rows=(0, 0)).arguments()
    a["lengths_k"][1] = 300
    expected = ops.cached_attention(**a)
    a["k_cache"][0, key, 1, 3] = np.nan
    actual = ops.cached_attention(**a)
    sees = np.array([key < 1199, True, key < 300])
    assert np.isnan(actual[sees, 2:]).all()
    actual[sees, 2:] = expected[sees, 2:]
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("length", [1, 4])
def test_nan_outside_the_window_is_not_read(length):
    a = CachedAttentionCase((length,), (1200,), 4, 2, window=(99, 0)).arguments()
    expected = ops.cached_attention(**a)
    for name in ("k_cache", "v_cache"):
        a[name][0, : 1200 - length - 99] = np.nan
    assert_same_bits(ops.cached_attention(**a), expected)


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("keys", [5, 700])
def test_minus_inf_scores_weigh_nothing(length, keys):
    """Keys that a query's infinities rule out, and queries for which that leaves none."""
    a = CachedAttentionCase((length,), (keys,), causal=False).arguments()
    a["q"][...] = 0.0
    a["q"][..., 0] = np.inf
    a["k_cache"][..., 0] = -1.0
    out = ops.cached_attention(**a)
    assert (out == 0.0).all()
    a["k_cache"][0, keys // 2, 0, 0] = 1.0
    assert np.isnan(ops.cached_attention(**a)).all()  # inf - inf, as in the reference


def test_causal_is_a_right_bound_of_zero():
    a = CachedAttentionCase((2, 33), (40, 50)).arguments()
    bound = ops.cached_attention(**(a | {"causal": False, "window": (-1, 0)}))
    assert_same_bits(ops.cached_attention(**a), bound)


def test_tensors_in_tensor_out():
    a = SMALL.arguments()
    tensors = {
        name: softgate.Tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in a.items()
    }
    actual = ops.cached_attention(**tensors)
    assert isinstance(actual, softgate.Tensor)
    assert_same_bits(actual.numpy(), ops.cached_attention(**a))


def test_k_and_v_may_be_views_of_one_cache():
    a = SMALL.arguments()
    both = np.stack([a["k_cache"], a["v_cache"]], axis=2)  # [rows, capacity, 2, heads, head_dim]
    views = a | {"k_cache": both[:, :, 0], "v_cache": both[:, :, 1]}
    assert_same_bits(ops.cached_attention(**views), ops.cached_attention(**a))


@pytest.mark.parametrize("spoiled", sorted(SPOILED))
@pytest.mark.parametrize("argument", ["q", "k_cache", "v_cache", "out"])
def test_spoiled_argument(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    a = SMALL.arguments() | {"out": np.zeros((4, 4, 8), np.float32)}
    a[argument] = spoil(a[argument])
    named = "q|k_cache" if argument == "q" else argument  # whose head_dim is the wrong one?
    with pytest.raises(error, match=rf"^cached_attention: ({named})\b"):
        ops.cached_attention(**a)


@pytest.mark.parametrize("argument", ["cu_seqlens_q", "lengths_k", "cache_rows"])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(lambda x: x.astype(np.int64), TypeError, id="int64"),
        pytest.param(lambda x: x.astype(np.float32), TypeError, id="float32"),
        pytest.param(lambda x: x.tolist(), TypeError, id="list"),
        pytest.param(lambda x: np.repeat(x, 2)[::2], ValueError, id="gapped"),
        pytest.param(lambda x: x[None], ValueError, id="two_dimensions"),
        pytest.param(lambda x: x[:0], ValueError, id="empty"),
        pytest.param(lambda x: x - np.int32(7), ValueError, id="negative"),
        pytest.param(lambda x: x + np.int32(9), ValueError, id="beyond"),
        pytest.param(lambda x: x + np.int32(2**31 - 9), ValueError, id="far_beyond"),
    ],
)
def test_spoiled_integers(argument, spoil, error):
    a = SMALL.arguments()
    with pytest.raises(error, match=rf"^cached_attention: {argument}\b"):
        ops.cached_attention(**(a | {argument: spoil(a[argument])}))


def shaped(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"lengths_k": np.array([10, 6], np.int32)},
            r"lengths_k\[0\] is 10, expected 0 to the capacity 9$",
            id="length",
        ),
        pytest.param(
            {"lengths_k": np.array([4, -1], np.int32)}, r"lengths_k\[1\] is -1", id="length_-1"
        ),
        pytest.param(
            {"cache_rows": np.array([0, 3], np.int32)},
            r"cache_rows\[1\] is 3, expected 0 <= row < 3$",
            id="row",
        ),
        pytest.param(
            {"cache_rows": np.array([-1, 0], np.int32)}, r"cache_rows\[0\] is -1", id="row_-1"
        ),
        pytest.param(
            {"cache_rows": None, "k_cache": shaped(1, 9, 2, 8), "v_cache": shaped(1, 9, 2, 8)},
            "k_cache has 1 rows, expected one for each of 2 sequences, or cache_rows",
            id="few_rows",
        ),
        pytest.param(
            {"k_cache": shaped(3, 9, 3, 8), "v_cache": shaped(3, 9, 3, 8)},
            "k_cache has 3 heads, expected a divisor of q's 4",
            id="heads",
        ),
        pytest.param(
            {"k_cache": shaped(3, 9, 0, 8), "v_cache": shaped(3, 9, 0, 8)}, "k_cache", id="no_heads"
        ),
        pytest.param({"v_cache": shaped(3, 9, 1, 8)}, "v_cache", id="v_heads"),
        pytest.param({"v_cache": shaped(3, 8, 2, 8)}, "v_cache", id="v_capacity"),
        pytest.param({"k_cache": shaped(3, 9, 2, 9)}, "k_cache", id="k_head_dim"),
        pytest.param({"q": shaped(4, 4, 257)}, "q has head_dim 257", id="head_dim"),
        pytest.param({"q": shaped(4, 0, 8)}, "q has no heads", id="q_heads"),
        pytest.param({"out": shaped(4, 4, 7)}, "out", id="out"),
        pytest.param({"out": read_only(shaped(4, 4, 8))}, "out is read-only", id="out_read_only"),
        pytest.param({"softcap": -1.0}, "softcap is -1", id="softcap"),
        pytest.param({"softcap": float("nan")}, "softcap is nan", id="softcap_nan"),
        pytest.param({"scale": float("inf")}, "scale is inf", id="scale"),
    ],
)
def test_bad_argument(change, message):
    a = SMALL.arguments()
    assert a["k_cache"].shape == (3, 9, 2, 8)
    with pytest.raises(ValueError, match=rf"^cached_attention: {message}"):
        ops.cached_attention(**a | change)


@pytest.mark.parametrize("argument", ["q", "k_cache", "v_cache"])
def test_out_overlaps_none(argument):
    a = SMALL.arguments()
    out = a[argument] if argument == "q" else a[argument].reshape(-1)[: 4 * 4 * 8].reshape(4, 4, 8)
    with pytest.raises(ValueError, match=rf"^cached_attention: out .*\b{argument}\b"):
        ops.cached_attention(**a, out=out)


def test_integers_may_be_views():
    a = SMALL.arguments()
    names = ("cu_seqlens_q", "lengths_k", "cache_rows")
    moved = {name: place(a[name], "misaligned") for name in names}
    assert_same_bits(ops.cached_attention(**(a | moved)), ops.cached_attention(**a))
