"""Language models to test generation with: their logits are a plain function of the tokens."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import softgate
from softgate.generation import LanguageModel
from softgate.text import Encoding

Array = np.ndarray[Any, Any]

END, TURN = 256, 257
SPECIAL = {"<end>": END, "<turn>": TURN}


class ByteTokenizer:
    """Its tokens are the bytes, the end of a text and the start of a turn, then `pieces`."""

    chat_template: str | None = "bytes"

    def __init__(self, pieces: Sequence[bytes] = ()) -> None:
        self.pieces = [*(bytes([i]) for i in range(256)), b"", b"", *pieces]

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[Encoding]:
        return [self._encoding(text) for text in texts]

    def _encoding(self, text: str) -> Encoding:
        ids = []
        for part in re.split("(<end>|<turn>)", text):
            ids += [SPECIAL[part]] if part in SPECIAL else list(part.encode())
        return Encoding(ids, [0] * len(ids), truncated=False)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")

    def decode_stream(self, *, continues: bool = False, skip_special_tokens: bool = True) -> Any:
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        return SimpleNamespace(feed=lambda token: utf8.decode(self.pieces[token]))

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool
    ) -> str:
        turns = [f"<turn>{message['role']}:{message['content']}<end>" for message in messages]
        return "".join(turns) + ("<turn>assistant:" if add_generation_prompt else "")


class Cache:
    """Tokens where a real one has keys and values."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.tokens = np.full((rows, capacity), -1, dtype=np.int32)
        self.lengths = np.zeros(rows, dtype=np.int32)
        self.batch, self.capacity = rows, capacity

    def truncate(self, row: int, length: int) -> None:
        assert 0 <= length <= self.lengths[row]
        self.lengths[row] = length

    def copy_rows(
        self, sources: Sequence[int], targets: Sequence[int], starts: Sequence[int] | None = None
    ) -> None:
        for source, target, start in zip(
            sources, targets, starts if starts is not None else [0] * len(targets), strict=True
        ):
            self.tokens[target, start:] = self.tokens[source, start:]
        self.lengths[targets] = self.lengths[sources]


class Model(LanguageModel):
    """logits_of: from all tokens up to one to the logits of the next, float32 `[vocab]`."""

    def __init__(
        self,
        logits_of: Callable[[Array], Array],
        *,
        context: int = 10_000,
        tokenizer: ByteTokenizer | None = None,
    ) -> None:
        self.logits_of = logits_of
        self.tokenizer = tokenizer or ByteTokenizer()
        self.config = SimpleNamespace(vocab_size=len(self.tokenizer.pieces), eos_token_ids=(END,))
        self.max_length = context
        self.calls: list[list[int]] = []  # how many tokens of each sequence, call by call
        self.interrupt_at: int | None = None

    @property
    def computed(self) -> int:
        return sum(map(sum, self.calls))

    def new_cache(self, batch: int, capacity: int | None = None) -> Cache:
        return Cache(batch, capacity or self.max_length)

    def __call__(
        self,
        input_ids: Array,
        cu_seqlens: Array | None,
        cache: Cache,
        *,
        rows: Array | None = None,
        logits: str,
    ) -> softgate.Tensor:
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        ends = [0, len(input_ids)] if cu_seqlens is None else cu_seqlens
        self.calls.append(np.diff(ends).tolist())
        result = []
        for b, row in enumerate(range(len(ends) - 1) if rows is None else rows):
            fresh = input_ids[ends[b] : ends[b + 1]]
            assert len(fresh) > 0
            start = cache.lengths[row]
            stop = start + len(fresh)
            assert stop <= cache.capacity
            cache.tokens[row, start:stop] = fresh
            cache.lengths[row] = stop
            first = stop if logits == "last" else start + 1
            result += [self.logits_of(cache.tokens[row, :n]) for n in range(first, stop + 1)]
        return softgate.Tensor(np.array(result, dtype=np.float32))


def random_logits(seed: int = 0, vocab: int = 258, scale: float = 2.0) -> Callable[[Array], Array]:
    """A function of every token, its place, and how many there are."""
    table = scale * np.random.default_rng(seed).standard_normal((vocab, vocab))

    def logits_of(tokens: Array) -> Array:
        weights = 0.7 ** np.arange(len(tokens))[::-1]
        return weights @ table[tokens] + table[len(tokens) % vocab]

    return logits_of


def recite(script: Sequence[int], after: int, vocab: int = 258) -> Callable[[Array], Array]:
    """Says `script` after a prompt of `after` tokens, then the end."""

    def logits_of(tokens: Array) -> Array:
        step = len(tokens) - after
        logits = np.zeros(vocab)
        logits[script[step] if step < len(script) else END] = 20
        return logits

    return logits_of
