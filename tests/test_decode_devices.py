"""What decoding adds to attention, on a device: the cache, and from logits to tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import softgate
from cases import Case, offsets
from cases.cached_attention import CACHED_ATTENTION, CachedAttentionCase
from cases.rotary import ROTARY, RotaryCase
from cases.sample import (
    PENALIZE,
    SAMPLE,
    SOFTCAP,
    TOKEN_LOGPROBS,
    PenalizeCase,
    SampleCase,
    SoftcapCase,
    TokenLogprobsCase,
)
from devices import DTYPES, OnDevice, fetched, naively, on_device, rounded
from softgate import ops, reference
from test_sample import assert_drawn, logprobs_scale
from tolerances import assert_close, assert_same_bits, cached_attention_scale, rotary_scales

SIXTEEN_BIT = ("float16", "bfloat16")
HEAD_DIMS = (32, 64, 80, 96, 128, 256)

OPS = {
    CachedAttentionCase: "cached_attention",
    PenalizeCase: "penalize",
    RotaryCase: "rotary",
    SampleCase: "sample",
    SoftcapCase: "softcap",
    TokenLogprobsCase: "token_logprobs",
}
ALWAYS_FLOAT32 = ("cos", "sin", "random", "relative_bias")
GIVES_CACHES = ("k_cache", "v_cache")

# The table's head sizes are small; these are those of the 16-bit kernels.
CACHED_16_BIT = [
    *(
        CachedAttentionCase(lengths, keys, 4, 2, d, window=window)
        for d in HEAD_DIMS
        for lengths, keys in (((1, 3, 0, 2), (300, 5, 4, 0)), ((40, 1), (170, 33)))
        for window in ((-1, -1), (50, 0))
    ),
    CachedAttentionCase((1, 9, 40), (300, 33, 50), 4, 2, 32, softcap=3.0, rows=(4, 0, 2)),
    CachedAttentionCase((1, 9, 40), (300, 33, 50), 4, 2, 64, reach=128, rows=(4, 0, 2)),
    CachedAttentionCase((1, 1), (300, 40), 16, 1, 32, rows=(1, 1), spare=0),
    CachedAttentionCase((2, 1), (1100, 600), 9, 3, 64, causal=False),
]
# One block has a row: a few rows show what many would.
SAMPLED = [
    *(replace(case, batch=min(case.batch, 4)) for case in SAMPLE if case.vocab <= 300),
    *(replace(case, batch=2) for case in SAMPLE[::5] if 300 < case.vocab <= 5000),
    SampleCase(1, 50257, 0.8, top_k=50, top_p=0.95, min_p=0.01),
]
SCORED = [replace(case, rows=min(case.rows, 9)) for case in TOKEN_LOGPROBS]
SOFTCAP_16_BIT = [case for case in SOFTCAP if case.size <= 1e4]
SCORED_16_BIT = [case for case in SCORED[::2] if case.size <= 1e4]  # float16 ends at 65504


def arguments(case: Case, dtype: str) -> dict[str, Any]:
    """Of the case, in numbers of the dtype where the op takes them so."""
    return {
        name: value if name in ALWAYS_FLOAT32 else rounded(value, dtype)
        for name, value in case.arguments().items()
    }


def placed(a: dict[str, Any], device: str, dtype: str, layout: str) -> dict[str, Any]:
    return {
        name: on_device(value, device, "float32" if name in ALWAYS_FLOAT32 else dtype, layout)
        for name, value in a.items()
    }


def run(case: Case, device: str, dtype: str) -> list[np.ndarray]:
    """What the op returns, and the caches where it writes them."""
    given = placed(arguments(case, dtype), device, dtype, case.layout)
    op = OPS[type(case)]
    result = getattr(ops, op)(**given)
    assert result.device == device
    assert result.dtype == {"sample": "int32", "token_logprobs": "float32"}.get(op, dtype)
    if op == "sample":
        return [result.to("cpu").numpy()]
    written = [given[name] for name in GIVES_CACHES] if op == "rotary" else []
    return [fetched(tensor) for tensor in (result, *written)]


def assert_matches_reference(case: Case, dtype: str, results: list[np.ndarray]) -> None:
    a = arguments(case, dtype)
    if isinstance(case, SampleCase):
        (ids,) = results
        if case.temperature < 1e-40:  # float32 cannot tell it from 0
            np.testing.assert_array_equal(ids, a["logits"].argmax(axis=-1))
        else:
            assert_drawn(ids, a)
        return
    if isinstance(case, TokenLogprobsCase):
        expected, scale = reference.token_logprobs(**a), logprobs_scale(**a)
        assert_close(*results, expected, scale=scale, terms=case.vocab)
        return
    op = getattr(reference, OPS[type(case)])
    with np.errstate(all="ignore"):  # sizes that float16 does not have
        if isinstance(case, RotaryCase):
            terms, scales = case.head_dim if case.norm else 1, rotary_scales(**a)
        else:
            cached = isinstance(case, CachedAttentionCase)
            terms = max(case.key_lengths, default=1) if cached else 1
            scales = [cached_attention_scale(**a) if cached and dtype == "float32" else 0.0]
        with naively(dtype):
            of_steps = op(**a)
        expected = op(**a)
    if not isinstance(expected, tuple):
        expected, of_steps = (expected,), (of_steps,)
    for actual, right, scale, rough in zip(results, expected, scales, of_steps, strict=True):
        naive = None if dtype == "float32" else np.asarray(rough)
        assert_close(actual, right, scale=scale, terms=terms, dtype=dtype, naive=naive)


@pytest.mark.parametrize(
    "case", [*CACHED_ATTENTION, *ROTARY, *PENALIZE, *SAMPLED, *SOFTCAP, *SCORED], ids=str
)
def test_matches_reference(device, case):
    assert_matches_reference(case, "float32", run(case, device, "float32"))


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize(
    "case",
    [*CACHED_16_BIT, *ROTARY[::2], *PENALIZE, *SAMPLED[::3], *SOFTCAP_16_BIT, *SCORED_16_BIT],
    ids=str,
)
def test_matches_reference_in_16_bits(device, case, dtype):
    assert_matches_reference(case, dtype, run(case, device, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in ROTARY if case.lengths][::4], ids=str)
def test_rotary_writes_its_places_and_nothing_else(device, case, dtype):
    expected = run(case, device, dtype)
    given = placed(arguments(case, dtype), device, dtype, "contiguous")
    guards = [
        OnDevice(np.full(array.shape, np.nan, np.float32), device, dtype, "strided")
        for array in expected
    ]
    q, k_cache, v_cache = (guard.tensor for guard in guards)
    given |= {"k_cache": k_cache, "v_cache": v_cache}
    assert ops.rotary(**given, out=q) is q
    for guard, right in zip(guards, expected, strict=True):
        assert_same_bits(fetched(guard.tensor), right)
        guard.assert_guards_intact()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["reverse", "1"])
@pytest.mark.parametrize(
    "case",
    [
        CachedAttentionCase((1, 2, 40), (300, 40, 140), 2, 1, 32, rows=(2, 0, 1)),
        RotaryCase((3, 2), (4, 1), norm="qk", rows=(2, 0)),
        PenalizeCase((60, 9), 50),
        SoftcapCase(3, 1000),
        SampleCase(3, 1000, top_k=40, top_p=0.9),
        TokenLogprobsCase(3, 1000),
    ],
    ids=str,
)
def test_same_bits_in_any_order_of_threads(device, case, order, dtype, monkeypatch):
    if device != "simt":
        pytest.skip("only simt can tell its threads when to run")
    expected = run(case, device, dtype)
    monkeypatch.setenv("SOFTGATE_SIMT_ORDER", order)
    for result, before in zip(run(case, device, dtype), expected, strict=True):
        assert_same_bits(result, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_does_not_depend_on_the_others(device, dtype):
    case = CachedAttentionCase((1, 3, 40), (300, 5, 60), 4, 2, 32, rows=(2, 0, 1))
    a = arguments(case, dtype)
    whole = fetched(ops.cached_attention(**placed(a, device, dtype, "contiguous")))
    for b in range(3):
        tokens = slice(*a["cu_seqlens_q"][b : b + 2])
        alone = a | {
            "q": a["q"][tokens],
            "cu_seqlens_q": offsets((tokens.stop - tokens.start,)),
            "lengths_k": a["lengths_k"][b : b + 1],
            "cache_rows": a["cache_rows"][b : b + 1],
        }
        result = ops.cached_attention(**placed(alone, device, dtype, "contiguous"))
        assert_same_bits(fetched(result), whole[tokens])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(1,), (40,)])
def test_cached_keys_are_attentions_keys(device, lengths, dtype):
    """Bit for bit, whatever the capacity: a cache is another place for them."""
    case = CachedAttentionCase(lengths, (290,), 4, 2, 32, spare=300)
    given = placed(arguments(case, dtype), device, dtype, "contiguous")
    k, v = (given[name][0, :290] for name in GIVES_CACHES)
    starts = [softgate.SequenceOffsets(offsets(n), device) for n in (lengths, (290,))]
    expected = ops.attention(given["q"], k, v, *starts, causal=True)
    assert_same_bits(fetched(ops.cached_attention(**given)), fetched(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_k_and_v_may_be_views_of_one_cache(device, dtype):
    a = arguments(CachedAttentionCase((2, 20), (70, 40), 4, 2, 32), dtype)
    expected = fetched(ops.cached_attention(**placed(a, device, dtype, "contiguous")))
    both = np.stack([a["k_cache"], a["v_cache"]], axis=2)  # [rows, capacity, 2, heads, head_dim]
    both = on_device(both, device, dtype, "contiguous")
    given = placed(a, device, dtype, "contiguous")
    given |= {"k_cache": both[:, :, 0], "v_cache": both[:, :, 1]}
    assert_same_bits(fetched(ops.cached_attention(**given)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 40])
def test_lengths_and_rows_outside_of_the_cache(device, length, dtype):
    """Nobody waits for them: a length counts as the nearest possible, a row has no keys."""
    case = CachedAttentionCase((length,) * 5, (300,) * 5, 4, 2, 32, spare=0)
    a = arguments(case, dtype)
    a["cache_rows"] = np.array([0, 5, -1, 2**31 - 1, 4], np.int32)
    a["lengths_k"] = np.array([2**31 - 1, 300, 300, 300, -1], np.int32)
    result = fetched(ops.cached_attention(**placed(a, device, dtype, "contiguous")))
    a["cache_rows"] = np.arange(5, dtype=np.int32)
    a["lengths_k"] = np.array([300, 0, 0, 0, 0], np.int32)
    assert_same_bits(
        result, fetched(ops.cached_attention(**placed(a, device, dtype, "contiguous")))
    )
    assert (result[length:] == 0.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("argument", "bad"),
    [(name, bad) for name in ("starts", "cache_rows") for bad in (-1, 2**31 - 1, -(2**31))]
    + [("starts", 9), ("starts", 8), ("cache_rows", 3)],
)
def test_positions_and_rows_outside_of_the_cache(device, argument, bad, dtype):
    """Their queries are NaN, and nothing is written."""
    case = RotaryCase((2, 1, 1), (3, 8, 1), norm="qk", rows=(1, 0, 2), spare=0)
    expected = run(case, device, dtype)
    a = arguments(case, dtype)
    a[argument][0] = bad
    given = placed(a, device, dtype, "contiguous")
    q = fetched(ops.rotary(**given))
    places = [bad, bad + 1] if argument == "starts" else []  # of the first sequence's tokens
    inside = [place for place in places if 0 <= place < 9]
    assert np.isfinite(q[:2]).all(axis=(1, 2)).sum() == len(inside)
    assert_same_bits(q[2:], expected[0][2:])
    for name, right in zip(GIVES_CACHES, expected[1:], strict=True):
        cache = fetched(given[name])
        assert_same_bits(cache[[0, 2]], right[[0, 2]])
        assert np.flatnonzero(np.isfinite(cache[1]).all(axis=(1, 2))).tolist() == inside


def test_positions_beyond_cos(device):
    a = RotaryCase((3,), (2,)).arguments()
    a |= {name: a[name][:4] for name in ("cos", "sin")}
    given = placed(a, device, "float32", "contiguous")
    q = fetched(ops.rotary(**given))
    assert np.isnan(q).all(axis=(1, 2)).tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", ["nan", "inf", "nothing"])
def test_logits_that_cannot_be_chosen_from_give_minus_1(device, bad, temperature, dtype):
    x = np.zeros((3, 200), np.float32)
    x[1, 77] = np.nan if bad == "nan" else np.inf
    if bad == "nothing":
        x[1] = -np.inf
    x[0, 5] = 60.0
    x[2, [7, 199]] = 60.0
    logits, random = (
        on_device(array, device, kind, "contiguous")
        for array, kind in ((x, dtype), (np.zeros(3, np.float32), "float32"))
    )
    ids = ops.sample(logits, random, temperature=temperature, top_k=0 if temperature == 0 else 1)
    assert ids.to("cpu").numpy().tolist() == [5, -1, 7]


def test_equal_logits_are_kept_together(device):
    x = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, -0.0, 0.0], np.float32)
    draws = ((np.arange(64) + 0.5) / 64).astype(np.float32)
    logits = softgate.Tensor(np.broadcast_to(x, (64, 8)).copy()).to(device)
    random = softgate.Tensor(draws).to(device)

    def reached(**settings: float) -> list[int]:
        return sorted({*ops.sample(logits, random, **settings).to("cpu").numpy().tolist()})

    assert reached(top_k=1) == [1, 3]
    assert reached(top_k=3) == [1, 2, 3, 4, 5]
    assert reached(top_p=0.1) == [1, 3]
    assert reached(top_p=0.7) == [1, 2, 3, 4, 5]
    assert reached(min_p=1.0) == [1, 3]
    assert reached(top_k=7, temperature=3.0) == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("order", ["random", "rising", "few_values", "peaked"])
def test_kept_set(device, order):
    """Exactly the kept ones are drawn: every boundary between two of them is tried."""
    random = np.random.default_rng(3)
    x = random.standard_normal(100).astype(np.float32) * 2.0
    if order == "rising":
        x = np.sort(x)
    elif order == "few_values":
        x = np.round(x)
    elif order == "peaked":
        x[random.integers(0, 100, 3)] += 20.0
    for top_k, top_p, min_p in ((40, 1.0, 0.0), (0, 0.31, 0.0), (70, 0.9, 0.0), (0, 1.0, 0.4)):
        options = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
        keep = reference.kept(x[None], **options)[0]
        weights = np.where(keep, np.exp(x.astype(np.float64) - x.max()), 0.0)
        ends = weights.cumsum() / weights.sum()
        heavy = weights / weights.sum() > 2e-6  # wider than what rounding moves
        middles = (ends - 0.5 * weights / weights.sum())[heavy].astype(np.float32)
        logits = softgate.Tensor(np.broadcast_to(x, (len(middles), 100)).copy()).to(device)
        ids = ops.sample(logits, softgate.Tensor(middles).to(device), **options)
        np.testing.assert_array_equal(ids.to("cpu").numpy(), np.flatnonzero(heavy))


@pytest.mark.parametrize("bad", [-1, 50, 2**31 - 1, -(2**31)])
def test_ids_outside_of_the_vocabulary(device, bad):
    a = PenalizeCase((3, 2), 50).arguments()
    a["ids"][1] = bad
    given = placed(a, device, "float32", "contiguous")
    ops.penalize(**given)
    without = a | {"ids": np.delete(a["ids"], 1), "cu_ids": offsets((2, 2))}
    assert_close(fetched(given["logits"]), reference.penalize(**without))

    a = TokenLogprobsCase(3, 50).arguments()
    a["ids"][1] = bad
    result = fetched(ops.token_logprobs(**placed(a, device, "float32", "contiguous")))
    assert np.isnan(result).tolist() == [False, True, False]


def test_offsets_outside_of_the_ids(device):
    a = PenalizeCase((3, 2), 50).arguments()
    a["cu_ids"] = np.array([-9, 2, 2**31 - 1], np.int32)
    given = placed(a, device, "float32", "contiguous")
    ops.penalize(**given)
    inside = a | {"cu_ids": np.array([0, 2, 5], np.int32)}
    assert_close(fetched(given["logits"]), reference.penalize(**inside))


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_head_size_that_is_not_built(device, dtype):
    a = placed(
        arguments(CachedAttentionCase((4,), (9,), head_dim=72), dtype), device, dtype, "contiguous"
    )
    with pytest.raises(
        ValueError, match=r"^cached_attention: q has head_dim 72, expected 32, 64, "
    ):
        ops.cached_attention(**a)


@pytest.mark.parametrize("argument", ["q", "k_cache", "v_cache"])
def test_rows_that_begin_anywhere(device, argument):
    a = arguments(CachedAttentionCase((4,), (9,), head_dim=32), "float16")
    given = placed(a, device, "float16", "contiguous")
    given[argument] = on_device(a[argument], device, "float16", "misaligned")
    with pytest.raises(ValueError, match=rf"^cached_attention: rows of {argument} begin anywhere"):
        ops.cached_attention(**given)


@pytest.mark.parametrize(
    ("case", "first"),
    [
        (CachedAttentionCase((1, 2), (9, 8), rows=(1, 0)), "q"),
        (RotaryCase((3, 2), norm="qk", rows=(1, 0)), "qkv"),
        (PenalizeCase((3, 2), 50), "logits"),
        (SoftcapCase(3, 50), "logits"),
        (SampleCase(3, 50), "logits"),
        (TokenLogprobsCase(3, 50), "logits"),
    ],
    ids=str,
)
def test_mixed_devices_and_dtypes(device, case, first):
    a = case.arguments()
    given, op = placed(a, device, "float32", "contiguous"), OPS[type(case)]
    for name, value in a.items():
        if name == first or not isinstance(value, np.ndarray):
            continue
        with pytest.raises(ValueError, match=rf"^{op}: {name} is on cpu, expected {device}"):
            getattr(ops, op)(**given | {name: softgate.Tensor(value)})
        if value.dtype.kind == "f":
            other = softgate.Tensor(value).to(device, "float16")
            with pytest.raises(
                TypeError, match=rf"^{op}: {name} has dtype float16, expected float"
            ):
                getattr(ops, op)(**given | {name: other})


def test_vocabulary_beyond_exact_counts(device):
    logits = softgate.Tensor.empty((1, 2**24 + 1), "float16", device)
    random = softgate.Tensor(np.zeros(1, np.float32)).to(device)
    with pytest.raises(ValueError, match=r"^sample: logits has 16777217 columns, expected at most"):
        ops.sample(logits, random)
