"""From logits to tokens."""

import itertools

import numpy as np
import pytest
import softgate
from cases.sample import (
    PENALIZE,
    SAMPLE,
    SOFTCAP,
    TOKEN_LOGPROBS,
    TOP_CONTINUATIONS,
    PenalizeCase,
    SampleCase,
    SoftcapCase,
    TokenLogprobsCase,
    TopContinuationsCase,
)
from layouts import SPOILED, Guarded, place, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits

pytestmark = pytest.mark.usefixtures("isa")

SETTINGS = ("temperature", "top_k", "top_p", "min_p")
# Relative, of summed weights: float32 exponentials of exponents up to 20 or so.
ROUNDING = 1e-5


def settings(a):
    return {name: a[name] for name in SETTINGS}


def weights_of(a):
    """The float64 weights of what is kept, each row adding up to 1."""
    x = a["logits"].astype(np.float64)
    keep = reference.kept(x, **settings(a))
    return reference.softmax(np.where(keep, x / a["temperature"], -np.inf))


def assert_drawn(ids, a):
    """Each row's token is where its random number falls, to rounding, among the kept ones."""
    weights = weights_of(a)
    cumulative = weights.cumsum(axis=-1)
    rows = np.arange(len(ids))
    random = a["random"].astype(np.float64)
    upper, own = cumulative[rows, ids], weights[rows, ids]
    assert (random <= upper + ROUNDING).all()
    assert (random >= upper - own - ROUNDING).all()
    assert (own > 0.0).all()


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_draws_where_the_random_number_falls(case):
    a = case.arguments()
    ids = ops.sample(**a)
    assert (ids.dtype, ids.shape) == (np.int32, (case.batch,))
    # A temperature that float32 cannot tell from 0.
    if case.temperature < 1e-40:
        np.testing.assert_array_equal(ids, a["logits"].argmax(axis=-1))
    else:
        assert_drawn(ids, a)


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_same_tokens_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    before = a["logits"].copy()
    first, *others = [ops.sample(**a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)
    assert_same_bits(np.ascontiguousarray(a["logits"]), before)


def test_a_row_does_not_depend_on_the_others():
    a = SampleCase(50, 300, top_k=20, top_p=0.9, min_p=0.01).arguments()
    whole = ops.sample(**a)
    for row in range(50):
        one = {name: a[name][row : row + 1] for name in ("logits", "random")}
        assert_same_bits(ops.sample(**(a | one)), whole[row : row + 1])


def reachable(logits, **options):
    """The tokens that any of many random numbers draws, and how often each is."""
    draws = ((np.arange(20000) + 0.5) / 20000).astype(np.float32)
    ids = ops.sample(np.broadcast_to(logits, (len(draws), len(logits))), draws, **options)
    return np.bincount(ids, minlength=len(logits)) / len(draws)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 4, 9])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_keeps_and_weighs_as_hugging_face(temperature, top_k, top_p, min_p):
    """Its warpers, in its order, on logits without ties."""
    torch = pytest.importorskip("torch", reason="the warpers work on its tensors")
    process = pytest.importorskip("transformers", reason="the oracle").generation.logits_process
    logits = np.random.default_rng(7).standard_normal(12).astype(np.float32) * 1.5
    warpers = [process.TemperatureLogitsWarper(temperature)]
    warpers += [process.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [process.TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    warpers += [process.MinPLogitsWarper(min_p)] if min_p else []
    scores = torch.from_numpy(logits)[None].double()
    for warp in warpers:
        scores = warp(None, scores)
    expected = torch.softmax(scores, dim=-1)[0].numpy()
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    np.testing.assert_array_equal(reference.kept(logits[None], **options)[0], expected > 0.0)
    np.testing.assert_allclose(reachable(logits, **options), expected, atol=1e-4)


@pytest.mark.parametrize("vocab", [100, 1000, 20000])
@pytest.mark.parametrize("order", ["random", "rising", "falling", "few_values", "peaked"])
def test_kept_set_of_a_large_vocabulary(vocab, order):
    """Exactly the kept ones are drawn: every boundary between two of them is tried."""
    random = np.random.default_rng(3)
    x = random.standard_normal(vocab).astype(np.float32) * 2.0
    if order == "rising":
        x = np.sort(x)
    elif order == "falling":
        x = -np.sort(-x)
    elif order == "few_values":
        x = np.round(x)
    elif order == "peaked":
        x[random.integers(0, vocab, 3)] += 20.0
    for top_k, top_p, min_p in ((40, 1.0, 0.0), (0, 0.31, 0.0), (700, 0.9, 0.0), (0, 1.0, 0.4)):
        options = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
        keep = reference.kept(x[None], **options)[0]
        weights = np.where(keep, np.exp(x.astype(np.float64) - x.max()), 0.0)
        ends = weights.cumsum() / weights.sum()
        heavy = weights / weights.sum() > 2e-6  # wider than what rounding moves
        middles = (ends - 0.5 * weights / weights.sum())[heavy].astype(np.float32)
        ids = ops.sample(np.broadcast_to(x, (len(middles), vocab)), middles, **options)
        np.testing.assert_array_equal(ids, np.flatnonzero(heavy))


def test_equal_logits_are_kept_together():
    x = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0], np.float32)
    assert (reachable(x, top_k=1) > 0).tolist() == [False, True, False, True, False, False]
    assert (reachable(x, top_k=3) > 0).tolist() == [False, True, True, True, True, True]
    assert (reachable(x, top_p=0.1) > 0).tolist() == [False, True, False, True, False, False]
    assert (reachable(x, top_p=0.7) > 0).tolist() == [False, True, True, True, True, True]
    assert (reachable(x, min_p=1.0) > 0).tolist() == [False, True, False, True, False, False]


def test_top_p_counts_what_top_k_left():
    x = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert (reachable(x, top_p=0.65) > 0).tolist() == [True, True, False, False]
    # Of the first two alone, the first has 4 / 7.
    assert (reachable(x, top_k=2, top_p=0.55) > 0).tolist() == [True, False, False, False]


def test_temperature_zero_takes_the_first_of_the_largest():
    x = np.zeros((3, 300), np.float32)
    x[0, [7, 299]] = 1.0
    x[1, 200:] = np.float32(1e-45)
    x[2] = -np.inf
    x[2, 130] = -1e30
    assert ops.sample(x, np.zeros(3, np.float32), temperature=0.0).tolist() == [7, 200, 130]


def test_only_one_token_to_choose():
    x = np.full((1, 200), -np.inf, np.float32)
    x[0, 150] = -3.0
    for random, top_k, top_p in itertools.product((0.0, 0.999), (0, 1, 50), (0.5, 1.0)):
        draw = np.array([random], np.float32)
        assert ops.sample(x, draw, top_k=top_k, top_p=top_p).tolist() == [150]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("place_of", [0, 77, 199])
@pytest.mark.parametrize("bad", ["nan", "inf", "nothing"])
def test_logits_that_cannot_be_chosen_from(bad, place_of, top_k, temperature):
    x = np.zeros((3, 200), np.float32)
    if bad == "nothing":
        x[1] = -np.inf
    else:
        x[1, place_of] = float(bad)
    with pytest.raises(ValueError, match=r"^sample: logits\[1\] has a NaN, \+inf, or nothing abo"):
        ops.sample(x, np.zeros(3, np.float32), temperature=temperature, top_k=top_k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"temperature": t}, "temperature is") for t in (-1.0, float("nan"), float("inf"))),
        ({"top_k": -1}, "top_k is -1"),
        *(({"top_p": p}, "top_p is") for p in (0.0, -0.5, 1.5, float("nan"))),
        *(({"min_p": p}, "min_p is") for p in (-0.5, 1.5, float("nan"))),
        *(
            ({"random": np.array([0.5, r], np.float32)}, r"random\[1\] is")
            for r in (1.0, -0.1, float("nan"))
        ),
        ({"random": np.zeros(3, np.float32)}, "random"),
        ({"random": np.zeros((2, 1), np.float32)}, "random"),
        ({"logits": np.zeros((2, 0), np.float32)}, "logits"),
        ({"logits": np.zeros((1, 2, 4), np.float32)}, "logits"),
    ],
    ids=str,
)
def test_bad_argument(change, message):
    a = {"logits": np.zeros((2, 4), np.float32), "random": np.zeros(2, np.float32)}
    with pytest.raises(ValueError, match=rf"^sample: {message}\b"):
        ops.sample(**(a | change))


@pytest.mark.parametrize("spoiled", sorted(SPOILED.keys() - {"one_more"}))
@pytest.mark.parametrize("argument", ["logits", "random"])
def test_spoiled_argument(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    a = {"logits": np.zeros((2, 4), np.float32), "random": np.zeros(2, np.float32)}
    a[argument] = spoil(a[argument])
    with pytest.raises(error, match=rf"^sample: {argument}\b"):
        ops.sample(**a)


def test_tensors_in_tensor_out():
    a = SampleCase(9, 40).arguments()
    tensors = [softgate.Tensor(a[name]) for name in ("logits", "random")]
    actual = ops.sample(*tensors)
    assert isinstance(actual, softgate.Tensor)
    assert_same_bits(actual.numpy(), ops.sample(a["logits"], a["random"]))


@pytest.mark.parametrize("case", PENALIZE, ids=str)
def test_penalize_matches_reference(case):
    a = case.arguments()
    expected = reference.penalize(**a)
    assert ops.penalize(**a) is a["logits"]
    assert_close(a["logits"], expected)


@pytest.mark.parametrize("case", PENALIZE, ids=str)
def test_penalize_writes_the_ids_seen_and_nothing_else(case):
    a = case.arguments()
    guarded = Guarded(a["logits"].shape, np.float32, "strided")
    guarded.array[...] = a["logits"]
    ops.penalize(**(a | {"logits": guarded.array}))
    guarded.assert_intact()
    seen = np.zeros(a["logits"].shape, bool)
    for b, row in enumerate(seen):
        row[a["ids"][a["cu_ids"][b] : a["cu_ids"][b + 1]]] = True
    assert_same_bits(guarded.array[~seen], a["logits"][~seen])


def test_penalize_as_hugging_face():
    torch = pytest.importorskip("torch", reason="the processor works on its tensors")
    process = pytest.importorskip("transformers", reason="the oracle").generation.logits_process
    a = PenalizeCase((9,), 50).arguments()
    warp = process.RepetitionPenaltyLogitsProcessor(a["penalty"])
    ids = torch.from_numpy(a["ids"]).long()[None]
    expected = warp(ids, torch.from_numpy(a["logits"].copy())).numpy()
    assert_close(ops.penalize(**a), expected.astype(np.float64))


@pytest.mark.parametrize("case", PENALIZE, ids=str)
def test_penalize_same_bits_on_any_thread_count(case, thread_counts):
    first, *others = [ops.penalize(**case.arguments()) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": np.array([0, 4, 1], np.int32)}, ValueError, r"ids\[1\] is 4, expected 0 <= id <"),
        ({"ids": np.array([0, 1, -1], np.int32)}, ValueError, r"ids\[2\] is -1"),
        ({"ids": np.zeros(3, np.int64)}, TypeError, "ids"),
        ({"ids": np.zeros((3, 1), np.int32)}, ValueError, "ids"),
        ({"cu_ids": np.array([0, 1, 2], np.int32)}, ValueError, "cu_ids ends at 2"),
        ({"cu_ids": np.array([0, 3], np.int32)}, ValueError, "cu_ids has 2 offsets"),
        ({"cu_ids": np.array([0, 4, 3], np.int32)}, ValueError, "cu_ids falls"),
        *(({"penalty": p}, ValueError, "penalty is") for p in (0.0, -1.0, float("nan"))),
        ({"penalty": float("inf")}, ValueError, "penalty is inf"),
        ({"logits": read_only(np.zeros((2, 4), np.float32))}, ValueError, "logits is read-only"),
        ({"logits": np.zeros((2, 4))}, TypeError, "logits"),
    ],
    ids=str,
)
def test_penalize_bad_argument(change, error, message):
    a = {
        "logits": np.ones((2, 4), np.float32),
        "ids": np.array([0, 1, 2], np.int32),
        "cu_ids": np.array([0, 1, 3], np.int32),
        "penalty": 2.0,
    }
    with pytest.raises(error, match=rf"^penalize: {message}"):
        ops.penalize(**(a | change))
    assert (a["logits"] == 1.0).all()


@pytest.mark.parametrize("case", SOFTCAP, ids=str)
def test_softcap_matches_reference(case):
    a = case.arguments()
    expected = reference.softcap(**a)
    assert ops.softcap(**a) is a["logits"]
    assert_close(a["logits"], expected)


@pytest.mark.parametrize("case", SOFTCAP, ids=str)
def test_softcap_same_bits_on_any_thread_count(case, thread_counts):
    first, *others = [ops.softcap(**case.arguments()) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


def test_softcap_writes_the_logits_and_nothing_else():
    a = SoftcapCase(5, 37).arguments()
    expected = ops.softcap(a["logits"].copy(), 30.0)
    guarded = Guarded(a["logits"].shape, np.float32, "strided")
    guarded.array[...] = a["logits"]
    assert_same_bits(ops.softcap(guarded.array, 30.0), expected)
    guarded.assert_intact()


def test_softcap_of_what_is_no_number():
    x = np.array([[np.nan, np.inf, -np.inf, 0.0]], np.float32)
    np.testing.assert_array_equal(ops.softcap(x, 5.0), [[np.nan, 5.0, -5.0, 0.0]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *(({"cap": c}, ValueError, "cap is") for c in (0.0, -1.0, float("nan"), float("inf"))),
        ({"logits": read_only(np.zeros((2, 4), np.float32))}, ValueError, "logits is read-only"),
        ({"logits": np.zeros((2, 4))}, TypeError, "logits"),
        ({"logits": np.zeros(4, np.float32)}, ValueError, "logits"),
    ],
    ids=str,
)
def test_softcap_bad_argument(change, error, message):
    a = {"logits": np.ones((2, 4), np.float32), "cap": 30.0}
    with pytest.raises(error, match=rf"^softcap: {message}"):
        ops.softcap(**(a | change))


def logprobs_scale(logits, ids):
    """Rounding is relative to the distance to the largest logit, and to the sum's logarithm."""
    x = logits.astype(np.float64)
    distance = x.max(axis=-1) - x[np.arange(len(x)), ids]
    return 1.0 + distance + np.log(x.shape[1])


@pytest.mark.parametrize("case", TOKEN_LOGPROBS, ids=str)
def test_token_logprobs_match_reference(case):
    a = case.arguments()
    expected, scale = reference.token_logprobs(**a), logprobs_scale(**a)
    assert_close(ops.token_logprobs(**a), expected, scale=scale, terms=case.vocab)


@pytest.mark.parametrize("case", TOKEN_LOGPROBS, ids=str)
def test_token_logprobs_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [ops.token_logprobs(**a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


def test_token_logprobs_of_spoiled_rows():
    x = TokenLogprobsCase(5, 70).arguments()["logits"]
    x[0, 3], x[1, 3], x[2] = np.nan, np.inf, -np.inf
    x[3, 3] = -np.inf
    actual = ops.token_logprobs(x, np.array([5, 5, 5, 3, 5], np.int32))
    assert np.isnan(actual[:3]).all()
    assert actual[3] == -np.inf
    assert np.isfinite(actual[4])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": np.array([0, 4], np.int32)}, ValueError, r"ids\[1\] is 4, expected 0 <= id < 4"),
        ({"ids": np.array([-1, 0], np.int32)}, ValueError, r"ids\[0\] is -1"),
        ({"ids": np.zeros(2, np.int64)}, TypeError, "ids"),
        ({"ids": np.zeros(3, np.int32)}, ValueError, "ids"),
        ({"logits": np.zeros((2, 4))}, TypeError, "logits"),
        ({"logits": np.zeros(4, np.float32)}, ValueError, "logits"),
        ({"logits": np.zeros((2, 0), np.float32)}, ValueError, "ids"),
    ],
    ids=str,
)
def test_token_logprobs_bad_argument(change, error, message):
    a = {"logits": np.ones((2, 4), np.float32), "ids": np.zeros(2, np.int32)}
    with pytest.raises(error, match=rf"^token_logprobs: {message}"):
        ops.token_logprobs(**(a | change))


def test_ids_may_be_views():
    a = TokenLogprobsCase(5, 70).arguments()
    moved = a | {"ids": place(a["ids"], "misaligned")}
    assert_same_bits(ops.token_logprobs(**moved), ops.token_logprobs(**a))


@pytest.mark.parametrize("case", TOP_CONTINUATIONS, ids=str)
def test_top_continuations_match_reference(case):
    a = case.arguments()
    expected, *expected_places = reference.top_continuations(**a)
    sums, *places = ops.top_continuations(**a)
    for actual, wanted in zip(places, expected_places, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    rows, ids = expected_places
    finite = expected > -np.inf
    np.testing.assert_array_equal(sums > -np.inf, finite)
    logits = a["logits"][rows[finite]]
    scale = logprobs_scale(logits, ids[finite]) + np.abs(a["scores"].reshape(-1)[rows[finite]])
    assert_close(sums[finite], expected[finite], scale=scale, terms=case.vocab)


@pytest.mark.parametrize("case", TOP_CONTINUATIONS[::4], ids=str)
def test_top_continuations_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [ops.top_continuations(**a) for _ in thread_counts]
    for other in others:
        for one, another in zip(first, other, strict=True):
            assert_same_bits(one, another)


def test_a_prompt_does_not_depend_on_the_others():
    a = TopContinuationsCase(5, 3, 70, 6).arguments()
    whole = ops.top_continuations(**a)
    for i in range(5):
        part = {"logits": a["logits"][3 * i : 3 * i + 3], "scores": a["scores"][i : i + 1]}
        alone = ops.top_continuations(**(a | part | {"cu_banned": np.zeros(4, np.int32)}))
        for one, among, shift in zip(alone, whole, (0, 3 * i, 0), strict=True):
            assert_same_bits(one[0] + one.dtype.type(shift), among[i])


def test_top_continuations_of_spoiled_rows():
    a = TopContinuationsCase(3, 3, 200, 4).arguments()
    logits, scores = a["logits"], a["scores"]
    logits[0, 3], logits[1, 150], logits[3] = np.nan, np.inf, -np.inf
    scores[1, 1], scores[2] = np.nan, -np.inf
    sums, rows, ids = ops.top_continuations(**a)
    assert np.isfinite(sums[:2]).all()
    assert rows.tolist() == [[2] * 4, [5] * 4, [6] * 4]
    assert sums[2].tolist() == [-np.inf] * 4
    assert ids[2].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"count": 0}, ValueError, "count is 0, expected at least 1"),
        ({"banned": np.array([4], np.int32)}, ValueError, r"banned\[0\] is 4, expected 0 <= id"),
        ({"banned": np.zeros(1, np.int64)}, TypeError, "banned"),
        ({"cu_banned": np.array([0, 1], np.int32)}, ValueError, "cu_banned has 2 offsets"),
        ({"cu_banned": np.array([0, 2, 1], np.int32)}, ValueError, "cu_banned"),
        ({"logits": np.zeros((2, 4))}, TypeError, "logits"),
        ({"logits": np.zeros(4, np.float32)}, ValueError, "logits"),
        ({"logits": np.zeros((3, 4), np.float32)}, ValueError, r"logits has shape \[3, 4\]"),
        ({"scores": np.zeros((1, 2))}, TypeError, "scores"),
        ({"scores": np.zeros(2, np.float32)}, ValueError, "scores"),
        ({"scores": np.zeros((2, 0), np.float32)}, ValueError, "scores has no columns"),
    ],
    ids=str,
)
def test_top_continuations_bad_argument(change, error, message):
    a = {
        "logits": np.ones((2, 4), np.float32), "scores": np.zeros((1, 2), np.float32), "count": 2,
        "banned": np.zeros(1, np.int32), "cu_banned": np.array([0, 1, 1], np.int32),
    }  # fmt: skip
    with pytest.raises(error, match=rf"^top_continuations: {message}"):
        ops.top_continuations(**(a | change))
