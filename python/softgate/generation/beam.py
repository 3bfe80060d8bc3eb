"""Beam search over any model that continues sequences token by token.

The search keeps the `num_beams` likeliest unfinished texts of each prompt and the best finished
ones, scored by their log-probability over a power of their length. What it keeps, when it stops
and how it scores is as in Hugging Face's `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from softgate.generation.settings import check_int, check_number

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

# Tokens and the rows of the call before that they continue, to what may follow: `[rows, vocab]`.
Advance = Callable[[IntArray, IntArray], FloatArray]


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Settings of a beam search.

    - num_beams: unfinished texts that are kept; 1 is greedy search with early_stopping=True.
    - num_return: how many of the best texts to give, at most num_beams.
    - max_new_tokens, min_new_tokens: length of a text; a shorter one may not end.
    - length_penalty: texts are compared by log-probability / length ** length_penalty: 0 is plain,
      more favours longer ones.
    - early_stopping: True ends the search with num_beams finished texts; False when the best
      unfinished one scores less than all of those at its present length; "never" when it would at
      any length.
    - no_repeat_ngram: n-grams of this size come once in prompt and text; 0 allows all.
    - banned: sequences of token ids that a text may not hold.
    - first_token, last_token: what a text begins with, and ends with where it is of max_new_tokens.
    - stop_tokens: ids that end a text; None takes the model's own.

    Raises TypeError or ValueError that names the setting whose value makes no sense or contradicts
    another.
    """

    num_beams: int = 4
    num_return: int = 1
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram: int = 0
    banned: Sequence[Sequence[int]] = ()
    first_token: int | None = None
    last_token: int | None = None
    stop_tokens: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name, least in {
            "num_beams": 1, "num_return": 1, "max_new_tokens": 1, "min_new_tokens": 0,
            "no_repeat_ngram": 0,
        }.items():  # fmt: skip
            check_int(name, getattr(self, name), least)
        check_number("length_penalty", self.length_penalty, "a finite number", lambda x: True)
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                f"early_stopping is {self.early_stopping!r}, expected True, False or 'never'"
            )
        if self.num_return > self.num_beams:
            raise ValueError(
                f"num_return is {self.num_return}, expected at most num_beams, {self.num_beams}"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, expected at most max_new_tokens, "
                f"{self.max_new_tokens}"
            )
        object.__setattr__(self, "banned", tuple(_ids("banned", part) for part in self.banned))
        if not all(self.banned):
            raise ValueError("banned holds an empty sequence, which every text holds")
        if self.stop_tokens is not None:
            object.__setattr__(self, "stop_tokens", _ids("stop_tokens", self.stop_tokens))

    def check_vocabulary(self, vocab_size: int, stop_tokens: Sequence[int]) -> None:
        """Raise ValueError for ids outside the vocabulary, and more beams than it has tokens."""
        given = {
            "banned": [i for part in self.banned for i in part],
            "first_token": [] if self.first_token is None else [self.first_token],
            "last_token": [] if self.last_token is None else [self.last_token],
            "stop_tokens": list(stop_tokens),
        }
        for name, ids in given.items():
            if wrong := [i for i in ids if not 0 <= i < vocab_size]:
                raise ValueError(f"{name} holds {wrong[0]}, expected ids below {vocab_size}")
        most = vocab_size - len(set(stop_tokens))
        if self.num_beams > most:
            raise ValueError(
                f"num_beams is {self.num_beams}, expected at most {most}, the tokens that do not "
                "end a text"
            )


def _ids(name: str, ids: Any) -> tuple[int, ...]:
    if isinstance(ids, str) or not isinstance(ids, Sequence | np.ndarray):
        raise TypeError(f"{name} holds {ids!r:.80}, expected token ids")
    for index in ids:
        check_int(name, index, 0)
    return tuple(map(int, ids))


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search found.

    token_ids: without the prompt, the token that ended it among them. score: what texts are
    compared by, logprob / len(token_ids) ** length_penalty; logprob: the sum over its tokens.
    text: empty when the model has no tokenizer.
    """

    token_ids: list[int]
    score: float
    logprob: float
    text: str = ""


@dataclass
class _Beam:
    """An unfinished text; row: its place in the last call of the model."""

    tokens: list[int]
    logprob: np.float32
    row: int


@dataclass
class _Search:
    """The search for the texts of one prompt."""

    prompt: list[int]
    settings: BeamSearch
    stop_tokens: frozenset[int]
    beams: list[_Beam]
    finished: list[Hypothesis] = field(default_factory=list)
    is_done: bool = False

    def extend(self, logprobs: FloatArray) -> None:
        """Replace the beams by their best continuations. logprobs: `[all rows, vocab]`."""
        settings = self.settings
        own = np.stack([self._allowed(beam, logprobs[beam.row]) for beam in self.beams])
        total = own + np.array([beam.logprob for beam in self.beams])[:, None]
        vocab = total.shape[1]
        # As many as leave num_beams unfinished ones whatever ends.
        count = max(2, 1 + len(self.stop_tokens)) * settings.num_beams
        length = len(self.beams[0].tokens) + 1
        is_last = length == settings.max_new_tokens
        beams: list[_Beam] = []
        for rank, place in enumerate(best(total.ravel(), count)):
            beam, token = self.beams[place // vocab], int(place % vocab)
            logprob = total.flat[place]
            tokens = [*beam.tokens, token]
            if token not in self.stop_tokens and not is_last:
                if len(beams) < settings.num_beams:
                    beams.append(_Beam(tokens, logprob, beam.row))
            elif rank < settings.num_beams:
                score = float(logprob) / length**settings.length_penalty
                self.finished.append(Hypothesis(tokens, score, float(logprob)))
        self.finished.sort(key=lambda found: -found.score)  # stable: the earlier of equals first
        del self.finished[settings.num_beams :]
        self.beams = beams
        self.is_done = is_last or not beams or self._cannot_improve(length)

    def _cannot_improve(self, length: int) -> bool:
        settings = self.settings
        if len(self.finished) < settings.num_beams:
            return False
        if settings.early_stopping is True:
            return True
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = settings.max_new_tokens
        best_score = float(self.beams[0].logprob) / length**settings.length_penalty
        return bool(best_score <= self.finished[-1].score)

    def _allowed(self, beam: _Beam, logprobs: FloatArray) -> FloatArray:
        """-inf for what may not follow."""
        settings = self.settings
        forced = None
        if not beam.tokens:
            forced = settings.first_token
        if len(beam.tokens) == settings.max_new_tokens - 1 and settings.last_token is not None:
            forced = settings.last_token
        if forced is not None:
            only = np.full_like(logprobs, -np.inf)
            only[forced] = 0
            return only
        forbidden = self._forbidden(self.prompt + beam.tokens)
        if len(beam.tokens) < settings.min_new_tokens:
            forbidden += self.stop_tokens
        if forbidden:
            logprobs = logprobs.copy()
            logprobs[forbidden] = -np.inf
        return logprobs

    def _forbidden(self, tokens: list[int]) -> list[int]:
        """Tokens that would complete an n-gram that came before, or a banned sequence."""
        found = []
        size = self.settings.no_repeat_ngram
        if size and len(tokens) >= size - 1:
            start = tokens[len(tokens) - size + 1 :]
            found += [
                tokens[i + size - 1]
                for i in range(len(tokens) - size + 1)
                if tokens[i : i + size - 1] == start
            ]
        for part in self.settings.banned:
            *start, last = part
            if len(start) <= len(tokens) and tokens[len(tokens) - len(start) :] == start:
                found.append(last)
        return found


def search(
    prompts: Sequence[Sequence[int]],
    settings: BeamSearch,
    stop_tokens: Sequence[int],
    first: FloatArray,
    advance: Advance,
) -> list[list[Hypothesis]]:
    """The best texts of each prompt, the best first.

    first: what may follow each prompt, `[prompts, vocab]`; advance: what may follow then. A prompt
    whose search has ended has no more rows. A text's result does not depend on the other prompts.
    """
    ends = frozenset(map(int, stop_tokens))
    settings.check_vocabulary(first.shape[1], sorted(ends))
    searches = [
        _Search(list(prompt), settings, ends, [_Beam([], np.float32(0), row)])
        for row, prompt in enumerate(prompts)
    ]
    running, logits = searches, first
    while True:
        logprobs = log_softmax(logits)
        for one in running:
            one.extend(logprobs)
        running = [one for one in running if not one.is_done]
        beams = [beam for one in running for beam in one.beams]
        if not beams:
            return [one.finished[: settings.num_return] for one in searches]
        tokens = np.array([beam.tokens[-1] for beam in beams], dtype=np.int32)
        parents = np.array([beam.row for beam in beams], dtype=np.int32)
        for row, beam in enumerate(beams):
            beam.row = row
        logits = advance(tokens, parents)


def log_softmax(logits: FloatArray) -> FloatArray:
    """Natural logarithms of the probabilities, row by row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    logprobs: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logprobs


def best(values: FloatArray, count: int) -> npt.NDArray[np.int64]:
    """Places of the `count` largest values above -inf, largest first, the first of equals first."""
    if len(values) > count:
        least = np.partition(values, len(values) - count)[len(values) - count]
        places = np.flatnonzero(values >= least)
    else:
        places = np.arange(len(values))
    places = places[values[places] > -np.inf]
    return places[np.argsort(-values[places], kind="stable")][:count]
