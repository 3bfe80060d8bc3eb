"""Beam search over any model that continues sequences token by token.

The search keeps the `num_beams` likeliest unfinished texts of each prompt and the best finished
ones, scored by their log-probability over a power of their length. What it keeps, when it stops
and how it scores is as in Hugging Face's `generate`, but for searches that stop sooner because
nothing can change what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from softgate import ops
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


class _Search:
    """The search for the texts of several prompts, step by step.

    places: the prompts whose search goes on, n of them. scores: log-probabilities of their
    unfinished texts, the best first, `[n, beams]`, -inf where there is none. steps: of each step
    the tokens of the texts that went on, and which texts of the step before they continue. ended:
    scores of the best finished texts of each of the prompts, the best first,
    `[prompts, num_beams]`, -inf where there is none; endings: which of the candidates those are.
    candidates: step by step, of texts that ended and others beside them, the length,
    log-probability, the text of the step before that it continues, and the last token.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        settings: BeamSearch,
        stop_tokens: Sequence[int],
        vocab_size: int,
    ) -> None:
        self.settings = settings
        self.prompts = [list(prompt) for prompt in prompts]
        self.stop_tokens = sorted(set(map(int, stop_tokens)))
        self.is_stop = np.isin(np.arange(vocab_size), self.stop_tokens)
        self.places = np.arange(len(prompts))
        self.scores = np.zeros((len(prompts), 1), np.float32)
        self.steps: list[tuple[IntArray, IntArray]] = []
        self.ended = np.full((len(prompts), settings.num_beams), -np.inf)
        self.endings = np.zeros(self.ended.shape, np.int64)
        self.candidates: list[tuple[npt.NDArray[Any], ...]] = []
        self.num_candidates = 0

    def extend(self, logits: FloatArray) -> tuple[IntArray, IntArray]:
        """Replace the texts by their best continuations.

        logits: of what may follow each, `[n * beams, vocab]`. Gives the last tokens of the texts
        that go on, and the rows of `logits` that they continue.
        """
        settings, length = self.settings, len(self.steps) + 1
        scores, rows, tokens = self._likeliest(logits)
        is_end = self.is_stop[tokens]
        if length == settings.max_new_tokens:
            is_end[:] = True
        self._finish(is_end, scores, rows, tokens)
        scores[is_end] = -np.inf
        going_on = np.argsort(is_end, axis=1, kind="stable")[:, : settings.num_beams]
        going_on += scores.shape[1] * np.arange(len(scores))[:, None]
        kept = np.flatnonzero(~self._is_done(scores.take(going_on[:, 0]), length))
        going_on, self.places = going_on[kept], self.places[kept]
        self.scores = scores.take(going_on)
        self.steps.append((tokens.take(going_on).ravel(), rows.take(going_on).ravel()))
        return self.steps[-1]

    def finished(self, count: int) -> list[list[Hypothesis]]:
        """At most `count` of the best finished texts of each prompt, the best first."""
        best = self.ended[:, :count]
        is_there = best > -np.inf
        if not is_there.any():
            return [[] for _ in self.prompts]
        chosen = self.endings[:, :count][is_there]
        columns = zip(*self.candidates, strict=True)
        lengths, logprobs, rows, tokens = (np.concatenate(parts)[chosen] for parts in columns)
        texts = self._texts(lengths - 1, rows)
        scores = best[is_there].tolist()
        parts = zip(texts, tokens.tolist(), scores, logprobs.tolist(), strict=True)
        every = iter([Hypothesis([*text, last], *numbers) for text, last, *numbers in parts])
        return [list(islice(every, n)) for n in is_there.sum(axis=1).tolist()]

    def _texts(self, lengths: IntArray, rows: IntArray) -> list[list[int]]:
        """Texts of so many steps, each ending in its row of the last one."""
        tokens = np.empty((len(rows), lengths.max(initial=0)), np.int32)
        rows = rows.copy()
        for i in reversed(range(tokens.shape[1])):
            longer = np.flatnonzero(lengths > i)
            at = rows[longer]
            tokens[longer, i], rows[longer] = (part[at] for part in self.steps[i])
        return [text[:n] for text, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]

    def _finish(
        self, is_end: npt.NDArray[np.bool_], scores: FloatArray, rows: IntArray, tokens: IntArray
    ) -> None:
        """Keep the best of the texts that have just ended."""
        beams, length = self.settings.num_beams, len(self.steps) + 1
        is_end = is_end[:, :beams]
        i = np.flatnonzero(is_end.any(axis=1))
        if not i.size:
            return
        at, logprobs = self.places[i], scores[i, :beams]
        found = np.where(is_end[i], self._compared(logprobs, length), -np.inf)
        endings = self.num_candidates + np.arange(found.size).reshape(found.shape)
        parts = (logprobs, rows[i, :beams], tokens[i, :beams])
        self.candidates.append((np.full(found.size, length), *(part.ravel() for part in parts)))
        self.num_candidates += found.size
        found = np.concatenate([self.ended[at], found], axis=1)
        endings = np.concatenate([self.endings[at], endings], axis=1)
        best = np.argsort(-found, axis=1, kind="stable")[:, :beams]  # the earlier of equals first
        best += found.shape[1] * np.arange(len(found))[:, None]
        self.ended[at], self.endings[at] = found.take(best), endings.take(best)

    def _is_done(self, best_logprobs: FloatArray, length: int) -> npt.NDArray[np.bool_]:
        """Which prompts' texts cannot get better, `[n]`."""
        settings, ended = self.settings, self.ended[self.places]
        worst, last_returned = ended[:, -1], ended[:, settings.num_return - 1]
        longest = settings.max_new_tokens if settings.length_penalty > 0 else length + 1
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = longest
        is_best = settings.early_stopping is True or self._compared(best_logprobs, length) <= worst
        # Not even the best length would bring an unfinished text among those that are returned.
        is_settled = self._compared(best_logprobs, longest) <= last_returned
        # -inf where fewer have ended than are kept.
        is_done: npt.NDArray[np.bool_] = (worst > -np.inf) & is_best | is_settled
        return is_done

    def _compared(self, logprobs: FloatArray, length: int) -> npt.NDArray[np.float64]:
        """What texts of a length are compared by."""
        size = float(length**self.settings.length_penalty)
        return logprobs.astype(np.float64) / size

    def _likeliest(self, logits: FloatArray) -> tuple[FloatArray, IntArray, IntArray]:
        """Of each prompt, the likeliest continuations of its texts: log-probabilities, rows of
        `logits` and tokens, `[n, count]`, the likeliest first."""
        settings, length = self.settings, len(self.steps)
        forced = settings.first_token if length == 0 else None
        if length == settings.max_new_tokens - 1 and settings.last_token is not None:
            forced = settings.last_token
        if forced is not None:
            rows = np.arange(len(logits), dtype=np.int32).reshape(self.scores.shape)
            return self.scores.copy(), rows, np.full_like(rows, forced)
        # As many as leave num_beams unfinished ones whatever ends.
        count = max(2, 1 + len(self.stop_tokens)) * settings.num_beams
        banned, starts = self._banned(len(logits))
        sums, parents, ids = ops.top_continuations(logits, self.scores, count, banned, starts)
        return sums, np.asarray(parents, np.int32), np.asarray(ids, np.int32)

    def _banned(self, rows: int) -> tuple[IntArray, IntArray]:
        """Tokens that may not follow a text, those of each after those of the one before, and
        where they start."""
        settings, length = self.settings, len(self.steps)
        everywhere = [] if length >= settings.min_new_tokens else self.stop_tokens
        if not (settings.no_repeat_ngram or settings.banned):
            starts = np.arange(rows + 1, dtype=np.int32) * np.int32(len(everywhere))
            return np.array(everywhere * rows, np.int32), starts
        beams = self.scores.shape[1]
        texts = self._texts(np.full(rows, length), np.arange(rows, dtype=np.int32))
        banned = [
            [*everywhere, *self._completing(self.prompts[self.places[row // beams]] + text)]
            for row, text in enumerate(texts)
        ]
        ids = np.array([token for row in banned for token in row], dtype=np.int32)
        return ids, np.cumsum([0, *map(len, banned)], dtype=np.int32)

    def _completing(self, tokens: list[int]) -> list[int]:
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
    settings.check_vocabulary(first.shape[1], stop_tokens)
    state = _Search(prompts, settings, stop_tokens, first.shape[1])
    logits = first
    while len(state.places):
        tokens, parents = state.extend(logits)
        if len(tokens):
            logits = advance(tokens, parents)
    return state.finished(settings.num_return)
