"""Generation on models whose logits are a plain function of the tokens."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from language import END, Array, ByteTokenizer, Model, random_logits, recite
from softgate.generation import Generation, Interrupted, Sampling
from softgate.generation.sampling import RandomStream
from softgate.generation.text import StopFinder, TextStream

PROMPTS = ["a", "The warp is set.", "weft " * 30, "직물", "shuttle"]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "max_new_tokens": 20}


def model(**options: Any) -> Model:
    return Model(random_logits(), **options)


def greedy(logits_of: Callable[[Array], Array], prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.float32(logits_of(np.array(tokens))).argmax()))
        if tokens[-1] == END:
            break
    return tokens[len(prompt) :]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


# Which token


@pytest.mark.parametrize("length", [1, 2, 511, 512, 513, 1025])
def test_greedy_takes_the_likeliest(length: int) -> None:
    lm = model()
    prompt = np.random.default_rng(0).integers(0, 256, length)
    result = lm.generate(prompt.tolist(), max_new_tokens=9)
    assert result.token_ids == greedy(lm.logits_of, prompt, 9)
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    assert result.text == utf8.decode(bytes(result.token_ids))
    assert result.prompt_tokens == length
    assert lm.computed == length + 8


def test_numpy_ids_lists_and_texts_are_prompts() -> None:
    lm = model()
    expected = lm.generate("warp", max_new_tokens=5).token_ids
    for prompt in (list(b"warp"), np.array(list(b"warp")), tuple(b"warp")):
        assert lm.generate(prompt, max_new_tokens=5).token_ids == expected
    several = lm.generate([list(b"warp"), list(b"weft")], max_new_tokens=5)
    assert [r.token_ids for r in several] == [
        expected,
        lm.generate("weft", max_new_tokens=5).token_ids,
    ]
    assert lm.generate([]) == []


def filtered(logits: Array, temperature: float, top_k: int, top_p: float, min_p: float) -> Array:
    """Probabilities that are left."""
    p = np.exp(log_softmax(logits / temperature))
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    if top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0
        p /= p.sum()
    p[p < min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.6},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_samples_are_distributed_as_the_settings_say(settings: dict[str, Any]) -> None:
    logits = np.random.default_rng(3).standard_normal(258) * 2
    lm = Model(lambda tokens: logits)
    count = 4000
    drawn = lm.generate("x", seed=11, num_samples=count, max_new_tokens=1, **settings)
    full = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **settings}
    expected = count * filtered(logits, **full)
    found = np.bincount([result.token_ids[0] for result in drawn], minlength=258)
    assert not found[expected == 0].any()
    # Rare tokens count as one, as Pearson's test asks for at least five of each.
    rare = expected < 5
    pairs = [(f, e) for f, e in zip(found[~rare], expected[~rare], strict=True)]
    if rare.any() and expected[rare].sum() > 0:
        pairs.append((found[rare].sum(), expected[rare].sum()))
    chi2 = sum((f - e) ** 2 / max(e, 1e-9) for f, e in pairs)
    freedom = len(pairs) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)
    assert chi2 > freedom - 4 * math.sqrt(2 * freedom)


def test_random_numbers_are_even_and_their_own() -> None:
    stream, other = RandomStream(5, 0), RandomStream(5, 1)
    numbers = np.array([stream.next() for _ in range(4000)])
    others = np.array([other.next() for _ in range(4000)])
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert (numbers == numbers.astype(np.float32)).all()
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 19 + 4 * math.sqrt(38)
    assert abs(np.corrcoef(numbers, others)[0, 1]) < 0.06
    again = RandomStream(5, 0)
    assert [again.next() for _ in range(5)] == numbers[:5].tolist()


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty(penalty: float) -> None:
    lm = model()
    tokens = list(b"warp and weft")
    for _ in range(30):
        logits = np.float32(lm.logits_of(np.array(tokens)))
        seen = sorted(set(tokens))
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        tokens.append(int(logits.argmax()))
    result = lm.generate(
        "warp and weft", repetition_penalty=penalty, max_new_tokens=30, stop_tokens=()
    )
    assert result.token_ids == tokens[13:]


# Seeds, samples, batches


def same(a: Generation, b: Generation) -> bool:
    return (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)


@pytest.mark.parametrize("settings", [{"max_new_tokens": 20}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batch_equals_single(batch_size: int, settings: dict[str, Any]) -> None:
    lm = model()
    single = [lm.generate(prompt, **settings) for prompt in PROMPTS]
    batch = lm.generate(PROMPTS, batch_size=batch_size, **settings)
    assert all(map(same, single, batch))
    assert [result.prompt for result in batch] == list(range(len(PROMPTS)))


def test_texts_leave_the_batch_and_others_enter() -> None:
    counts = {b"a"[0]: 3, b"b"[0]: 8, b"c"[0]: 2}

    def logits_of(tokens: Array) -> Array:
        logits = np.zeros(258)
        logits[END if len(tokens) == counts[tokens[0]] else 65] = 1
        return logits

    lm = Model(logits_of)
    results = lm.generate(["a", "b", "c"], batch_size=2)
    assert [len(r.token_ids) for r in results] == [3, 8, 2]
    assert lm.calls == [[1, 1], [1, 1], [1, 1], [1, 1], [1, 1], [1], [1], [1]]
    lm.calls.clear()
    finished = [r.prompt for r in lm.generate_each(["a", "b", "c"], batch_size=3)]
    assert finished == [2, 0, 1]


def test_a_seed_repeats_a_text() -> None:
    lm = model()
    first = lm.generate("warp", **SAMPLED)
    assert same(first, lm.generate("warp", **SAMPLED))
    assert first.seed == 7
    assert not same(first, lm.generate("warp", **{**SAMPLED, "seed": 8}))


def test_without_a_seed_every_prompt_has_its_own() -> None:
    lm = model()
    settings = {**SAMPLED, "seed": None, "temperature": 2.0}
    a, b = lm.generate(["warp", "warp"], **settings)
    assert not same(a, b)
    assert same(b, lm.generate("warp", **{**settings, "seed": b.seed}))


def test_samples_share_the_prompt() -> None:
    lm = model()
    prompt = "a long prompt " * 60
    samples = lm.generate(prompt, num_samples=5, **SAMPLED)
    assert [sample.sample for sample in samples] == list(range(5))
    assert len({tuple(sample.token_ids) for sample in samples}) == 5
    drawn = sum(len(sample.token_ids) - 1 for sample in samples)
    assert lm.computed == len(prompt) + drawn
    assert same(samples[0], lm.generate(prompt, **SAMPLED))
    several = lm.generate(["x", prompt, "y"], num_samples=5, batch_size=2, **SAMPLED)
    assert all(map(same, samples, several[5:10]))
    assert [result.prompt for result in several] == [0] * 5 + [1] * 5 + [2] * 5


# Ends


def test_stop_tokens() -> None:
    script = [*b"one two", END, *b"three"]
    lm = Model(recite(script, after=1))
    result = lm.generate("x")
    assert (result.text, result.finish_reason) == ("one two", "stop_token")
    assert result.token_ids == script[:8]
    result = lm.generate("x", stop_tokens=[ord("t")])
    assert (result.text, result.token_ids) == ("one ", list(b"one t"))
    result = lm.generate("x", stop_tokens=(), max_new_tokens=10)
    assert (result.text, result.finish_reason) == ("one twoth", "length")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("two", "one "),
        (["three", "o "], "one tw"),
        ("\n\n", "one two three"),
        (["threw", "three!"], "one two three"),
        (["e two", "two"], "on"),
        (["two three", "wo"], "one t"),
    ],
)
def test_stop_strings(stop: str | list[str], text: str) -> None:
    pieces = [b"on", b"e t", b"wo", b" th", b"ree"]
    tokenizer = ByteTokenizer(pieces)
    script = [258, 259, 260, 261, 262]
    lm = Model(recite(script, after=1, vocab=263), tokenizer=tokenizer)
    result = lm.generate("x", stop=stop)
    assert result.text == text
    assert result.finish_reason == ("stop_token" if text == "one two three" else "stop")
    assert "".join(lm.stream("x", stop=stop)) == text


def reference_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Read letter by letter until a stop string is complete; the earliest-beginning one counts."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_wherever_pieces_end(pieces: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    expected, found = reference_stop("".join(pieces), stops)
    passed = ""
    for index, piece in enumerate(pieces):
        passed += finder.push(piece)
        assert expected.startswith(passed)
        # Nothing is held back that no stop string can begin.
        seen = "".join(pieces[: index + 1])
        held = "" if finder.found else seen[len(passed) :]
        assert not held or any(stop.startswith(held) for stop in stops)
        if finder.found:
            break
    assert finder.found == found
    assert passed + ("" if found else finder.finish()) == expected


@given(st.data())
def test_streams_give_whole_characters(data: st.DataObject) -> None:
    letters = st.characters(exclude_categories=["Cs"])
    text = data.draw(st.text(letters, max_size=12)) + data.draw(st.sampled_from(["", "한글", "🧵"]))
    content = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    stream = TextStream(ByteTokenizer(pieces))  # type: ignore[arg-type]
    passed = ""
    for index in range(len(pieces)):
        passed += stream.push(258 + index)
        assert text.startswith(passed)
        whole = b"".join(pieces[: index + 1]).decode(errors="ignore")
        assert passed == whole
    assert passed + stream.finish() == text


@given(st.lists(st.binary(max_size=5), max_size=10))
def test_streams_of_any_bytes(pieces: list[bytes]) -> None:
    tokenizer = ByteTokenizer(pieces)
    stream = TextStream(tokenizer)  # type: ignore[arg-type]
    tokens = range(258, 258 + len(pieces))
    text = "".join([stream.push(token) for token in tokens]) + stream.finish()
    whole = tokenizer.decode(tokens)
    assert text == whole or (whole.startswith(text) and set(whole[len(text) :]) == {"�"})


@pytest.mark.parametrize("settings", [{"stop": "ab"}, {}, SAMPLED], ids=["stop", "greedy", "drawn"])
def test_pieces_join_to_the_text(settings: dict[str, Any]) -> None:
    lm = model()
    for prompt in PROMPTS:
        stream = lm.stream(prompt, **{"max_new_tokens": 40, **settings})
        pieces = list(stream)
        assert all(pieces)
        expected = lm.generate(prompt, **{"max_new_tokens": 40, **settings})
        assert "".join(pieces) == expected.text
        assert same(stream.generation, expected)


def test_a_character_that_is_cut_is_left_out() -> None:
    lm = Model(recite("직물".encode(), after=1))
    assert lm.generate("x", max_new_tokens=4).text == "직"
    assert lm.generate("x", max_new_tokens=6).text == "직물"


# The context


def test_full_context_ends_the_text() -> None:
    lm = model(context=20)
    result = lm.generate("a prompt", max_new_tokens=None, stop_tokens=())
    assert (result.finish_reason, len(result.token_ids)) == ("context", 12)
    assert len(lm.generate("a prompt", max_new_tokens=12, stop_tokens=()).token_ids) == 12


def slid(lm: Model, prompt: Sequence[int], count: int, context: int, keep: int) -> list[int]:
    tokens = list(prompt)
    shown = list(prompt)
    for _ in range(count):
        if len(shown) >= context:
            shown = shown[:keep] + shown[len(shown) - (context - keep) // 2 :]
        tokens.append(int(np.float32(lm.logits_of(np.array(shown))).argmax()))
        shown.append(tokens[-1])
    return tokens[len(prompt) :]


@pytest.mark.parametrize("keep", [0, 1, 5, 18])
@pytest.mark.parametrize("length", [3, 19, 20, 21, 50])
def test_sliding_context(length: int, keep: int) -> None:
    lm = model(context=20)
    prompt = list(range(65, 65 + length))
    settings = {"context": "slide", "keep": keep, "max_new_tokens": 60, "stop_tokens": ()}
    result = lm.generate(prompt, **settings)
    assert result.token_ids == slid(lm, prompt, 60, 20, keep)
    both = lm.generate([prompt, [1, 2]], **settings)
    assert same(both[0], result)


# Log-probabilities


def test_logprobs_are_the_models() -> None:
    lm = model()
    settings = {**SAMPLED, "repetition_penalty": 1.5, "logprobs": True}
    for result in lm.generate(PROMPTS[:2], **settings):
        tokens = list(PROMPTS[result.prompt].encode())
        assert result.logprobs is not None
        for token, logprob in zip(result.token_ids, result.logprobs, strict=True):
            expected = log_softmax(lm.logits_of(np.array(tokens)))[token]
            assert logprob == pytest.approx(expected, abs=1e-4)
            tokens.append(token)
    assert lm.generate("a").logprobs is None


@pytest.mark.parametrize(
    ("length", "window", "stride"),
    [
        (2, 20, 10),
        (20, 20, 10),
        (21, 20, 10),
        (97, 20, 10),
        (97, 20, 1),
        (97, 20, 19),
        (700, 600, 7),
    ],
)
def test_score(length: int, window: int, stride: int) -> None:
    lm = model(context=600)
    tokens = np.random.default_rng(1).integers(0, 256, length)
    score = lm.score(tokens, window=window, stride=stride)
    assert score.token_ids == tokens.tolist()
    assert np.isnan(score.logprobs[0])
    start = 0
    total = 0.0
    for i in range(1, length):
        while i >= start + window:
            start += stride
        expected = log_softmax(lm.logits_of(tokens[start:i]))[tokens[i]]
        assert score.logprobs[i] == pytest.approx(expected, abs=1e-4)
        total += expected
    assert score.total_logprob == pytest.approx(total, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(-total / (length - 1)), rel=1e-4)


def test_score_of_several_and_of_what_was_generated() -> None:
    lm = model()
    one, two = lm.score(["warp and weft", "직물"])
    assert one.token_ids == list(b"warp and weft")
    np.testing.assert_array_equal(two.logprobs, lm.score("직물").logprobs)
    result = lm.generate("warp", max_new_tokens=9, logprobs=True, stop_tokens=())
    score = lm.score(list(b"warp") + result.token_ids)
    np.testing.assert_allclose(score.logprobs[4:], result.logprobs, atol=1e-5)


def test_perplexity_of_the_impossible() -> None:
    logits = np.full(258, -2000.0)
    logits[0] = 0
    assert Model(lambda tokens: logits).score("ab").perplexity == math.inf


# Refused


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temperature": -0.1}, ValueError, "temperature is -0.1, expected at least 0"),
        ({"temperature": math.nan}, ValueError, "temperature is nan"),
        ({"temperature": math.inf}, ValueError, "temperature is inf"),
        ({"temperature": "hot"}, TypeError, "temperature is 'hot'"),
        ({"top_k": -1}, ValueError, "top_k is -1, expected at least 0"),
        ({"top_k": 2.5}, TypeError, "top_k is 2.5, expected an integer"),
        ({"top_p": 0.0}, ValueError, "top_p is 0.0, expected more than 0 and at most 1"),
        ({"top_p": 1.1}, ValueError, "top_p is 1.1"),
        ({"min_p": -0.1}, ValueError, "min_p is -0.1, expected from 0 to 1"),
        ({"min_p": 1.5}, ValueError, "min_p is 1.5"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty is 0, expected above 0"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens is 0, expected at least 1"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens is True"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**64}, ValueError, "expected at most 18446744073709551615"),
        ({"stop": ""}, ValueError, "stop holds an empty string"),
        ({"stop": ["a", 1]}, TypeError, "stop holds 1, expected strings"),
        ({"stop_tokens": [-1]}, ValueError, "stop_tokens is -1"),
        ({"context": "shift"}, ValueError, "context is 'shift', expected 'error' or 'slide'"),
        ({"keep": 3}, ValueError, "keep is 3, but context is 'error'"),
        ({"keep": 99, "context": "slide"}, ValueError, "keep is 99, expected at most 98"),
        ({"context": "slide", "max_new_tokens": None}, ValueError, "max_new_tokens is None"),
        ({"top_k": 5}, ValueError, "top_k is 5, but temperature is 0"),
        ({"top_p": 0.5}, ValueError, "top_p is 0.5, but temperature is 0"),
        ({"min_p": 0.5}, ValueError, "min_p is 0.5, but temperature is 0"),
        ({"max_tokens": 5}, TypeError, "unknown setting 'max_tokens', expected one of"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    lm = model(context=100)
    for method in (lm.generate, lm.stream):
        with pytest.raises(error, match=message.replace("(", "\\(")):
            method("x", **settings)
    with pytest.raises(error, match=message):
        lm.chat(**settings).say("x")
    assert lm.calls == []


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("", {}, ValueError, r"prompts\[0\] is empty"),
        (np.array([], dtype=np.int64), {}, ValueError, r"prompts\[0\] has no tokens"),
        (["a", ""], {}, ValueError, r"prompts\[1\] is empty"),
        ([["a"]], {}, TypeError, r"prompts\[0\] is \['a'\], expected a str or a list"),
        ([1.5], {}, TypeError, r"prompts\[0\] is 1.5"),
        ([1, 258], {}, ValueError, "holds 258, expected ids below 258"),
        ([-1], {}, ValueError, "holds -1, expected ids below 258"),
        ("x" * 100, {}, ValueError, "has 100 tokens, expected at most 99"),
        ("x" * 90, {"max_new_tokens": 11}, ValueError, "max_new_tokens is 11, expected at most 10"),
        ("x", {"num_samples": 0, "temperature": 1.0}, ValueError, "num_samples is 0"),
        ("x", {"num_samples": 2}, ValueError, "num_samples is 2, but temperature is 0"),
        ("x", {"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_bad_prompts(
    prompt: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    lm = model(context=100)
    with pytest.raises(error, match=message):
        lm.generate(prompt, **{"max_new_tokens": 5, **options})
    assert lm.calls == []


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        ("x", {}, "a text of one token has none to predict"),
        ("xyz", {"window": 1}, "window is 1, expected 2 to 100"),
        ("xyz", {"window": 101}, "window is 101"),
        ("xyz", {"stride": 0}, "stride is 0, expected 1 to 99"),
        ("xyz", {"stride": 100}, "stride is 100"),
    ],
)
def test_bad_scores(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(context=100).score(text, **options)


def test_without_a_tokenizer() -> None:
    lm = model()
    lm.tokenizer = None
    result = lm.generate([65, 66], max_new_tokens=3)
    assert (result.text, len(result.token_ids)) == ("", 3)
    for call in (
        lambda: lm.generate("x"),
        lambda: lm.generate([65], stop="x"),
        lambda: lm.stream([65]),
        lambda: lm.score("x"),
        lambda: lm.chat(),
    ):
        with pytest.raises(ValueError, match="needs a tokenizer, the model has none"):
            call()


def test_settings_are_checked_when_made() -> None:
    with pytest.raises(ValueError, match="top_p"):
        Sampling(temperature=1, top_p=2)
    assert Sampling(stop="x").stop == ("x",)
    lm = model()
    chosen = Sampling(max_new_tokens=4, stop_tokens=[])
    assert len(lm.generate("x", chosen).token_ids) == 4
    assert len(lm.generate("x", chosen, max_new_tokens=6).token_ids) == 6


# Interrupted


def test_ctrl_c_loses_nothing() -> None:
    lm = model()
    expected = lm.generate(["warp", "weft", "reed"], max_new_tokens=9, stop_tokens=(), batch_size=2)
    lm.calls.clear()
    lm.interrupt_at = 5
    with pytest.raises(Interrupted) as caught:
        lm.generate(["warp", "weft", "reed"], max_new_tokens=9, stop_tokens=(), batch_size=2)
    found = caught.value.generations
    assert [r.finish_reason for r in found] == ["interrupted"] * 3
    assert [len(r.token_ids) for r in found] == [5, 5, 0]
    assert found[1].token_ids == expected[1].token_ids[:5]
    assert expected[1].text.startswith(found[1].text)
    assert found[2].text == ""


def test_ctrl_c_in_a_stream() -> None:
    lm = Model(recite(b"warp and weft", after=1))
    lm.interrupt_at = 7
    stream = lm.stream("x", stop="p and x")
    pieces = []
    with pytest.raises(KeyboardInterrupt):
        for piece in stream:
            pieces.append(piece)
    assert "".join(pieces) == "war"
    assert stream.generation.text == "warp an"
    assert stream.generation.finish_reason == "interrupted"


# Times


def test_times() -> None:
    result = model().generate("warp", max_new_tokens=5, stop_tokens=())
    assert 0 < result.first_token_seconds < result.seconds
    rate = 4 / (result.seconds - result.first_token_seconds)
    assert result.tokens_per_second == pytest.approx(rate)
    assert model().generate("warp", max_new_tokens=1).tokens_per_second == 0
