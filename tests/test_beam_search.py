"""Beam search: against Hugging Face's `generate` on the same weights, and what it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from language import Model, random_logits
from softgate.generation import BeamSearch, Hypothesis
from softgate.generation.beam import search
from softgate.generation.beam_cache import BeamRows
from softgate.models.gpt import Gpt
from softgate.models.recurrent_lm import RecurrentCache
from softgate.nn import KVCache
from test_generation_gpt import pair

PROMPTS = [[5], list(range(20, 40)), [7, 7, 7, 9], [10, 11, 10, 11, 10]]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Gpt, Any, list[int]]:
    """The same weights in both libraries, and tokens that end their texts now and then."""
    ours, theirs = pair(request.param, tmp_path_factory.mktemp(request.param))
    found = ours.beam_search(PROMPTS, num_return=4, stop_tokens=[], max_new_tokens=8)
    return ours, theirs, sorted({one[-1].token_ids[5] for one in found})[:3]


# Our settings and theirs.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "one beam": ({"num_beams": 1, "early_stopping": True}, {"num_beams": 1}),
    "many beams": ({"num_beams": 9}, {"num_beams": 9}),
    "early": ({"early_stopping": True}, {"early_stopping": True}),
    "never": ({"early_stopping": "never"}, {"early_stopping": "never"}),
    "no penalty": ({"length_penalty": 0.0}, {"length_penalty": 0.0}),
    "long texts": ({"length_penalty": 2.5}, {"length_penalty": 2.5}),
    "long texts, never": (
        {"length_penalty": 2.5, "early_stopping": "never"},
        {"length_penalty": 2.5, "early_stopping": "never"},
    ),
    "short texts": ({"length_penalty": -1.0}, {"length_penalty": -1.0}),
    "short texts, never": (
        {"length_penalty": -1.0, "early_stopping": "never"},
        {"length_penalty": -1.0, "early_stopping": "never"},
    ),
    "min length": ({"min_new_tokens": 6}, {"min_new_tokens": 6}),
    "no bigram twice": ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
    "no token twice": ({"no_repeat_ngram": 1}, {"no_repeat_ngram_size": 1}),
    "banned": (
        {"banned": [[40], [50, 51], [7, 9, 10]]},
        {"bad_words_ids": [[40], [50, 51], [7, 9, 10]]},
    ),
    "last token": ({"last_token": 3}, {"forced_eos_token_id": 3}),
    "one end": ({"stop_tokens": [60]}, {"eos_token_id": 60}),
    "no end": ({"stop_tokens": []}, {"eos_token_id": None}),
}


def theirs_of(theirs: Any, prompt: list[int], **settings: Any) -> list[Hypothesis]:
    """What Hugging Face finds; it fills the shorter ones up with 0."""
    torch = pytest.importorskip("torch")
    given = {"num_beams": 4, "pad_token_id": 0} | settings
    count = given["num_beams"]
    result = theirs.generate(
        torch.tensor([prompt]),
        num_return_sequences=count,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **given,
    )
    ends = given["eos_token_id"] or []
    ends = [ends] if isinstance(ends, int) else ends
    scores = result.sequences_scores.tolist() if count > 1 else [float("nan")]
    found = []
    for row, score in zip(result.sequences.tolist(), scores, strict=True):
        ids = row[len(prompt) :]
        stop = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
        found.append(Hypothesis(ids[:stop], score, 0.0))
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_hugging_face(models: tuple[Gpt, Any, list[int]], name: str) -> None:
    ours, theirs, ends = models
    our_settings, their_settings = SETTINGS[name]
    given = {"num_beams": 4, "stop_tokens": ends, "max_new_tokens": 14} | our_settings
    found = ours.beam_search(PROMPTS, num_return=given["num_beams"], **given)
    ended = 0
    for prompt, hypotheses in zip(PROMPTS, found, strict=True):
        given_theirs = {"eos_token_id": ends} | their_settings
        expected = theirs_of(theirs, prompt, max_new_tokens=14, **given_theirs)
        assert [one.token_ids for one in hypotheses] == [one.token_ids for one in expected]
        for one, other in zip(hypotheses, expected, strict=True):
            if given["num_beams"] > 1:
                assert one.score == pytest.approx(other.score, rel=1e-5, abs=1e-4)
            ended += len(one.token_ids) < 14
    assert name not in ("plain", "early", "never", "no penalty", "short texts") or ended


@pytest.mark.parametrize("name", SETTINGS)
def test_fewer_returned_are_the_best_of_more(models: tuple[Gpt, Any, list[int]], name: str) -> None:
    ours, _, ends = models
    given = {"num_beams": 4, "stop_tokens": ends, "max_new_tokens": 14} | SETTINGS[name][0]
    every = ours.beam_search(PROMPTS, num_return=given["num_beams"], **given)
    for count in range(1, given["num_beams"]):
        found = ours.beam_search(PROMPTS, num_return=count, **given)
        assert found == [hypotheses[:count] for hypotheses in every]


def test_a_search_ends_when_what_it_returns_is_settled() -> None:
    steps = []

    def advance(tokens: Any, parents: Any) -> Any:
        steps.append(len(tokens))
        return np.log(np.full((len(tokens), 4), 0.25, np.float32))

    # Token 3 ends the best text at once; of ten tokens the next best would score -0.46.
    first = np.log(np.array([[0.01, 0.004, 0.003, 0.983]], np.float32))
    for num_return, goes_on in ((1, False), (2, True)):
        steps.clear()
        settings = BeamSearch(num_beams=2, num_return=num_return, max_new_tokens=10)
        (found,) = search([[0]], settings, [3], first, advance)
        assert found[0].token_ids == [3]
        assert bool(steps) == goes_on


def test_a_first_token_equals_hugging_face(models: tuple[Gpt, Any, list[int]]) -> None:
    ours, theirs, ends = models
    (found,) = ours.beam_search(
        [[5]], num_return=4, first_token=17, stop_tokens=ends, max_new_tokens=9
    )
    expected = theirs_of(theirs, [5], max_new_tokens=9, forced_bos_token_id=17, eos_token_id=ends)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert {one.token_ids[0] for one in found} == {17}


@pytest.mark.usefixtures("rows_of_any_number")
def test_texts_do_not_depend_on_the_batch(models: tuple[Gpt, Any, list[int]]) -> None:
    ours, _, ends = models
    settings = BeamSearch(num_beams=5, num_return=5, stop_tokens=ends, max_new_tokens=12)
    expected = ours.beam_search(PROMPTS, settings)
    for size in (1, 2, 3):
        assert ours.beam_search(PROMPTS, settings, batch_size=size) == expected
    assert ours.beam_search(PROMPTS[1], settings) == expected[1]


def test_threads_do_not_matter(models: tuple[Gpt, Any, list[int]], thread_counts: Any) -> None:
    ours, _, ends = models
    settings = BeamSearch(stop_tokens=ends, max_new_tokens=8)
    results = [ours.beam_search(PROMPTS, settings) for _ in thread_counts]
    assert results == results[:1] * 3


def test_scores_are_those_of_the_model(models: tuple[Gpt, Any, list[int]]) -> None:
    ours, _, ends = models
    for prompt in PROMPTS:
        for one in ours.beam_search(
            prompt, num_return=3, stop_tokens=ends, max_new_tokens=9, length_penalty=0.7
        ):
            logprobs = ours.score([*prompt, *one.token_ids]).logprobs[len(prompt) :]
            assert one.logprob == pytest.approx(float(logprobs.sum()), abs=1e-3)
            assert one.score == pytest.approx(one.logprob / len(one.token_ids) ** 0.7)


def test_texts_are_decoded() -> None:
    model = Model(random_logits())
    for one in model.beam_search("ab", num_return=4, max_new_tokens=5):
        ids = one.token_ids[:-1] if one.token_ids[-1] == 256 else one.token_ids
        # A character that lacks bytes at the end is left out.
        assert one.text.rstrip("\ufffd") == model.tokenizer.decode(ids).rstrip("\ufffd")


# The rows of a cache


def test_rows_are_copied_only_where_beams_part() -> None:
    cache = KVCache(2, 6, 9, 1, 2)
    copies: list[tuple[int, int]] = []  # rows and tokens
    copy = cache.copy_rows

    def counted(sources: Any, targets: Any, starts: Any) -> None:
        copies.append((len(sources), int((cache.lengths[sources] - starts).sum())))
        copy(sources, targets, starts)

    cache.copy_rows = counted  # type: ignore[method-assign]
    beams = BeamRows(cache, 3)
    texts: list[list[int]] = [[], []]
    for parents in ([0, 1], [0, 0, 0, 1, 1], [0, 1, 2, 3], [2, 2, 1], [0, 1, 1], [0, 1, 1]):
        beams.go_on(np.array(parents))
        texts = [[*texts[parent], 10 * len(texts[parent]) + i] for i, parent in enumerate(parents)]
        cache.lengths[beams.rows] += 1
        for tensor in (*cache.k, *cache.v):
            for row, text in zip(beams.rows, texts, strict=True):
                tensor.numpy()[row, len(text) - 1] = text[-1]
                assert tensor.numpy()[row, : len(text), 0, 0].tolist() == text
    # At first all tokens, then those that a row and its new parent do not share.
    assert copies == [(3, 3), (1, 2), (1, 3), (1, 1)]


@pytest.mark.parametrize("parents", list(itertools.product(range(3), repeat=3)))
def test_any_beams_go_on_from_any(parents: tuple[int, ...]) -> None:
    cache = RecurrentCache([np.zeros((3, 1), np.float32)], 9)
    beams = BeamRows(cache, 3)
    beams.go_on(np.zeros(3, np.int32))
    cache.states[0][beams.rows, 0] = range(3)
    beams.go_on(np.array(parents))
    assert sorted(beams.rows.tolist()) == [0, 1, 2]
    assert cache.states[0][beams.rows, 0].tolist() == list(parents)


# Parts


def test_everything_may_be_forbidden() -> None:
    settings = BeamSearch(num_beams=2, banned=[[0], [1], [2]], max_new_tokens=3)
    logits = np.zeros((1, 4), np.float32)
    # Only the token that ends a text is left.
    ((only,),) = search([[0]], settings, [3], logits, lambda tokens, parents: logits)
    assert only.token_ids == [3]
    none = search([[0]], settings, [], logits[:, :3], lambda tokens, parents: logits)
    assert none == [[]]


def test_never_goes_by_the_present_length_where_short_texts_are_favoured() -> None:
    shares = {0: [0.73, 0.07, 0.2], 1: [0.34, 0.33, 0.33]}  # after the first step, by last token
    steps = iter([shares, {token: [0.01, 0.01, 0.98] for token in (0, 1)}, shares, shares])

    def advance(tokens: Any, parents: Any) -> Any:
        after = next(steps)
        return np.log(np.array([after[int(token)] for token in tokens], np.float32))

    settings = BeamSearch(
        num_beams=2, num_return=2, max_new_tokens=10, length_penalty=-1.0, early_stopping="never"
    )
    first = np.log(np.array([[0.6, 0.1, 0.3]], np.float32))
    (found,) = search([[0]], settings, [2], first, advance)
    # Ending the second text after three tokens is better than after two.
    assert [one.token_ids for one in found] == [[2], [0, 0, 2]]


# Refusals


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_beams": 0}, ValueError, "num_beams is 0, expected at least 1"),
        ({"num_beams": 2.0}, TypeError, "num_beams is 2.0, expected an integer"),
        ({"num_beams": True}, TypeError, "num_beams is True, expected an integer"),
        ({"num_return": 5}, ValueError, "num_return is 5, expected at most num_beams, 4"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens is 0"),
        ({"min_new_tokens": 129}, ValueError, "min_new_tokens is 129, expected at most"),
        ({"length_penalty": float("nan")}, ValueError, "length_penalty is nan"),
        ({"length_penalty": "1"}, TypeError, "length_penalty is '1', expected a number"),
        ({"early_stopping": "always"}, ValueError, "early_stopping is 'always'"),
        ({"no_repeat_ngram": -1}, ValueError, "no_repeat_ngram is -1"),
        ({"banned": [[]]}, ValueError, "banned holds an empty sequence"),
        ({"banned": ["x"]}, TypeError, "banned holds 'x', expected token ids"),
        ({"banned": [3]}, TypeError, "banned holds 3, expected token ids"),
        ({"banned": [[-1]]}, ValueError, "banned is -1, expected at least 0"),
        ({"stop_tokens": "1"}, TypeError, "stop_tokens holds '1'"),
        ({"top_k": 3}, TypeError, "unknown setting 'top_k', expected one of num_beams"),
        ({"banned": [[258]]}, ValueError, "banned holds 258, expected ids below 258"),
        ({"first_token": 258}, ValueError, "first_token holds 258"),
        ({"last_token": 999}, ValueError, "last_token holds 999"),
        ({"num_beams": 258}, ValueError, "num_beams is 258, expected at most 257"),
        ({"max_new_tokens": 20_000}, ValueError, "max_new_tokens is 20000, expected at most 9998"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_settings_that_make_no_sense(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Model(random_logits()).beam_search("ab", **settings)


def test_prompts_that_are_refused(tmp_path: Path) -> None:
    model = Model(random_logits())
    with pytest.raises(ValueError, match=r"prompts\[1\] has no tokens"):
        model.beam_search([[1], []])
    with pytest.raises(ValueError, match=r"prompts\[0\] holds 258"):
        model.beam_search([[258]])
    assert model.beam_search([]) == []
    assert Gpt.beam_search is Model.beam_search
