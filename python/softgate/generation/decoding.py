"""Decodes many texts in the rows of one key-value cache, each entering and leaving on its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import Tensor
from softgate.generation.sampling import RandomStream, Sampling
from softgate.generation.text import TextStream

if TYPE_CHECKING:
    from softgate.generation.model import LanguageModel

Ids = npt.NDArray[np.int32]
FinishReason = Literal["stop_token", "stop", "length", "context", "interrupted"]

# Tokens of a prompt in one forward pass: enough for full speed, few enough for Ctrl-C.
CHUNK = 512


@dataclass(frozen=True)
class Generation:
    """A generated text.

    text: without the prompt, up to the stop string or token that ended it, and without the bytes of
    a character that never became whole; empty when the model has no tokenizer. token_ids: every
    token drawn, the one that ended the text among them. finish_reason: "stop_token", "stop" (a stop
    string), "length" (max_new_tokens), "context" (it is full) or "interrupted". logprobs: on
    request, the log-probability of each token given all before it, as the model says, before any
    sampling setting. seed, sample: what repeats this text. prompt: its index among the prompts.
    prompt_tokens, cached_tokens: length of the prompt, and how much of it was not computed because
    the cache held it. first_token_seconds, seconds: from the start of this text to its first token
    and to its last.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None
    seed: int
    sample: int
    prompt: int
    prompt_tokens: int
    cached_tokens: int
    first_token_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first one; 0 when there is none."""
        seconds = self.seconds - self.first_token_seconds
        return (len(self.token_ids) - 1) / seconds if seconds > 0 else 0.0


class Text:
    """One text in the making.

    context: the tokens that the model is shown, of which the cache may yet lack the last ones.
    """

    def __init__(
        self,
        model: LanguageModel,
        sampling: Sampling,
        prompt: Ids,
        *,
        seed: int,
        index: int = 0,
        sample: int = 0,
        continues: bool = True,
    ) -> None:
        """continues: the text goes on from the prompt's, so that a space it begins with counts."""
        self.prompt = prompt
        self.index, self.sample, self.seed = index, sample, seed
        self.row = -1
        self.context: list[int] = []
        self.cached_tokens = 0
        self.reason: FinishReason | None = None
        # A token and its log-probability are one item, so that Ctrl-C never parts them.
        self._drawn: list[tuple[int, float]] = []
        self._sampling = sampling
        self._stop_tokens = model.stop_tokens(sampling)
        self._tokenizer = model.tokenizer
        self._continues = continues
        self._random = RandomStream(seed, sample)
        self._stream = self._new_stream()
        self._pieces: list[str] = []
        self._seen = dict.fromkeys(prompt.tolist())
        self._start = self._first = self._last = perf_counter()

    def start(self, row: int, context: list[int], cached_tokens: int) -> None:
        """Take a row of the cache, which has the first `cached_tokens`; the clock starts."""
        self.row, self.context, self.cached_tokens = row, context, cached_tokens
        self._start = self._first = self._last = perf_counter()

    def next_random(self) -> float:
        return self._random.next()

    @property
    def seen(self) -> Ids:
        """The different tokens of prompt and text."""
        return np.fromiter(self._seen, dtype=np.int32, count=len(self._seen))

    def add(self, token: int, logprob: float) -> str:
        """Append a token and return the text that it makes certain."""
        self._last = perf_counter()
        if not self._drawn:
            self._first = self._last
        self._drawn.append((token, logprob))
        self._seen[token] = None
        self.context.append(token)
        piece = ""
        if token in self._stop_tokens:
            self.reason = "stop_token"
        else:
            piece = self._stream.push(token)
            if self._stream.stopped:
                self.reason = "stop"
            elif len(self._drawn) == self._sampling.max_new_tokens:
                self.reason = "length"
        self._pieces.append(piece)
        return piece

    def finish(self) -> str:
        """The text that was held back to the end, which this is."""
        rest = self._stream.finish()
        self._pieces.append(rest)
        return rest

    def result(self) -> Generation:
        """What there is, finished or not."""
        return Generation(
            text=self._replayed() if self.reason is None else "".join(self._pieces),
            token_ids=[token for token, _ in self._drawn],
            finish_reason=self.reason or "interrupted",
            logprobs=[value for _, value in self._drawn] if self._sampling.logprobs else None,
            seed=self.seed,
            sample=self.sample,
            prompt=self.index,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            first_token_seconds=self._first - self._start,
            seconds=self._last - self._start,
        )

    def _replayed(self) -> str:
        """The text of the tokens so far: Ctrl-C may have come between a token and its piece."""
        stream = self._new_stream()
        return "".join([stream.push(token) for token, _ in self._drawn]) + stream.finish()

    def _new_stream(self) -> TextStream:
        return TextStream(self._tokenizer, self._sampling.stop, continues=self._continues)


class Stream(Iterator[str]):
    """Iterates over the pieces of one text as they come; `generation` is what there is so far.

    Pieces are whole characters and never part of a stop string; joined they are the text. Ctrl-C
    loses nothing: `generation` then holds every token drawn.
    """

    def __init__(self, text: Text, pieces: Iterator[str]) -> None:
        self._text = text
        self._pieces = pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def generation(self) -> Generation:
        """The text so far."""
        return self._text.result()


class Decoder:
    """Texts in the rows of a cache. Those that finish leave, and those that wait take their rows.

    The samples of one prompt enter together: one computes the prompt, the others copy it.
    """

    def __init__(self, model: LanguageModel, sampling: Sampling, cache: Any, rows: int) -> None:
        self._model = model
        self._sampling = sampling
        self._cache = cache
        self._context = model.max_length
        self._free = list(range(rows))
        self._waiting: deque[list[Text]] = deque()
        self._running: list[Text] = []
        self._followers: dict[int, list[Text]] = {}  # by row of the sample that computes the prompt

    def add(self, samples: list[Text]) -> None:
        """Queue the samples of a prompt, at most as many as there are rows."""
        self._waiting.append(samples)

    def start(self, text: Text, cached_tokens: int) -> None:
        """Begin at once in row 0, which holds the first `cached_tokens` tokens of the prompt."""
        self._free.remove(0)
        self._place(text, 0, cached_tokens)

    def run(self) -> Iterator[tuple[Text, str]]:
        """Texts and the pieces that they grow by, empty ones too, until all are finished."""
        while self._admit():
            yield from self._step()

    def _admit(self) -> bool:
        """Give free rows to those that wait; False when nothing is left to do."""
        while self._waiting and len(self._waiting[0]) <= len(self._free):
            first, *others = self._waiting.popleft()
            self._place(first, self._free.pop(0), 0)
            for text in others:
                text.start(self._free.pop(0), first.context.copy(), len(first.context))
            self._followers[first.row] = others
        return bool(self._running)

    def _place(self, text: Text, row: int, cached_tokens: int) -> None:
        context: list[int] = text.prompt.tolist()
        if len(context) >= self._context:
            context = window(context, self._context, self._sampling.keep)
            cached_tokens = min(cached_tokens, self._sampling.keep)
        self._cache.truncate(row, cached_tokens)
        text.start(row, context, cached_tokens)
        self._running.append(text)

    def _step(self) -> Iterator[tuple[Text, str]]:
        """One forward pass: a token of every text, or a chunk where a prompt is to be computed."""
        logits = self._forward()
        ready: list[Text] = []
        sources: list[int] = []
        for source, text in enumerate(self._running.copy()):
            if self._cache.lengths[text.row] == len(text.context):
                followers = self._followers.pop(text.row, [])
                if followers:
                    rows = [follower.row for follower in followers]
                    self._cache.copy_rows([text.row] * len(rows), rows)
                self._running += followers
                ready += [text, *followers]
                sources += [source] * (1 + len(followers))
        if not ready:
            return
        if sources != list(range(len(logits))):
            logits = _rows(logits, sources)
        for text, (token, logprob) in zip(ready, self._draw(logits, ready), strict=True):
            piece = text.add(token, logprob)
            if text.reason is None and len(text.context) == self._context:
                self._make_room(text)
            if text.reason is not None:
                piece += text.finish()
                self._running.remove(text)
                self._free.append(text.row)
            yield text, piece

    def _forward(self) -> Tensor:
        """Logits after each running text's tokens of this pass, `[running, vocab]`."""
        rows = np.array([text.row for text in self._running], dtype=np.int32)
        chunks = [
            text.context[length : length + CHUNK]
            for text, length in zip(self._running, self._cache.lengths[rows], strict=True)
        ]
        cu_seqlens = np.cumsum([0, *map(len, chunks)], dtype=np.int32)
        ids = np.array([token for chunk in chunks for token in chunk], dtype=np.int32)
        logits: Tensor = self._model(ids, cu_seqlens, self._cache, rows=rows, logits="last")
        return logits

    def _draw(self, logits: Tensor, texts: Sequence[Text]) -> list[tuple[int, float]]:
        """Next token of each text and its log-probability; uses `logits` up."""
        sampling, device = self._sampling, logits.device
        raw = logits
        if sampling.repetition_penalty != 1:
            if sampling.logprobs:
                raw = _rows(logits, range(len(texts)))
            seen = [text.seen for text in texts]
            cu_seen = np.cumsum([0, *map(len, seen)], dtype=np.int32)
            ids, offsets = (Tensor(x).to(device) for x in (np.concatenate(seen), cu_seen))
            ops.penalize(logits, ids, offsets, sampling.repetition_penalty)
        random = np.array([text.next_random() for text in texts], dtype=np.float32)
        drawn = ops.sample(
            logits,
            Tensor(random).to(device),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )
        tokens = drawn.to("cpu").numpy().tolist()
        if min(tokens) < 0:  # the CPU's sample raises this itself
            raise ValueError("logits hold a NaN, +inf, or nothing above -inf")
        logprobs = [0.0] * len(texts)
        if sampling.logprobs:
            logprobs = ops.token_logprobs(raw, drawn).to("cpu").numpy().tolist()
        return list(zip(tokens, logprobs, strict=True))

    def _make_room(self, text: Text) -> None:
        """The context is full: end the text, or drop its oldest tokens."""
        if self._sampling.context == "error":
            text.reason = "context"
            return
        keep = self._sampling.keep
        text.context[:] = window(text.context, self._context, keep)
        self._cache.truncate(text.row, keep)


def _rows(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows in a tensor of their own."""
    return ops.embedding([Tensor(np.array(rows, dtype=np.int32)).to(logits.device)], [logits])


def window(tokens: list[int], context: int, keep: int) -> list[int]:
    """The first `keep` tokens and the last ones, so that half the rest of the context is free."""
    recent = (context - keep) // 2
    return tokens[:keep] + tokens[len(tokens) - recent :]
