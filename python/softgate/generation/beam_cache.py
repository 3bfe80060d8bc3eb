"""Beam search in the rows of a model's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from softgate.generation.beam import BeamSearch, FloatArray, Hypothesis, IntArray, search
from softgate.generation.decoding import CHUNK, Ids
from softgate.generation.text import TextStream

if TYPE_CHECKING:
    from softgate.generation.model import LanguageModel
    from softgate.text import Tokenizer


def search_with_cache(
    model: LanguageModel, prompts: Sequence[Ids], settings: BeamSearch
) -> list[list[Hypothesis]]:
    """The best texts of each prompt; see `LanguageModel.beam_search`."""
    stop = settings.stop_tokens
    ends = tuple(model.config.eos_token_ids if stop is None else stop)
    settings.check_vocabulary(model.config.vocab_size, ends)
    capacity = max(map(len, prompts)) + settings.max_new_tokens
    cache = model.new_cache(settings.num_beams * len(prompts), capacity)
    beams = BeamRows(cache, settings.num_beams)

    def advance(tokens: IntArray, parents: IntArray) -> FloatArray:
        beams.go_on(parents)
        offsets = np.arange(len(tokens) + 1, dtype=np.int32)
        logits: FloatArray = (
            model(tokens, offsets, cache, rows=beams.rows, logits="last").to("cpu").numpy()
        )
        return logits

    first = _read(model, prompts, cache, beams.rows)
    found = search([prompt.tolist() for prompt in prompts], settings, ends, first, advance)
    tokenizer = model.tokenizer
    if tokenizer is None:
        return found
    return [[replace(one, text=_text(tokenizer, one, ends)) for one in texts] for texts in found]


class BeamRows:
    """Where the texts of a search are in a model's cache: rows, int32 `[texts]`.

    Prompt i has the cache's `num_beams` rows from i * num_beams on; its first is where it is read.
    """

    def __init__(self, cache: Any, num_beams: int) -> None:
        self.cache = cache
        self.num_beams = num_beams
        self.rows: IntArray = np.arange(0, cache.batch, num_beams, dtype=np.int32)
        # In which row each token was read first: rows of which these are equal hold the same.
        self._origins = np.repeat(np.arange(cache.batch)[:, None], cache.capacity, axis=1)

    @property
    def prompts(self) -> npt.NDArray[np.int64]:
        """Of each text."""
        return self.rows // np.int64(self.num_beams)

    def go_on(self, parents: IntArray) -> None:
        """Continue texts, of which some come several times.

        The first to go on from a row keeps it; only the others copy it, from where they part, into
        rows that none goes on from.
        """
        sources = self.rows[parents]
        first = np.unique(sources, return_index=True)[1]
        others = np.setdiff1d(np.arange(len(sources)), first)
        self.rows = sources.copy()
        if not len(others):
            return
        used = set(sources.tolist())
        for i in others:
            start = int(sources[i]) // self.num_beams * self.num_beams
            self.rows[i] = next(
                row for row in range(start, start + self.num_beams) if row not in used
            )
            used.add(int(self.rows[i]))
        old, new = sources[others], self.rows[others]
        seen = np.arange(self.cache.capacity) < self.cache.lengths[old][:, None]
        differs = (self._origins[old] != self._origins[new]) & seen
        starts = np.where(differs.any(axis=1), differs.argmax(axis=1), self.cache.lengths[old])
        self.cache.copy_rows(old, new, starts)
        self._origins[new] = np.where(seen, self._origins[old], new[:, None])


def _read(model: LanguageModel, prompts: Sequence[Ids], cache: Any, rows: IntArray) -> FloatArray:
    """What may follow each prompt, `[prompts, vocab]`, each now in its row of the cache."""
    first = np.empty((len(prompts), model.config.vocab_size), np.float32)
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        for start in range(0, len(prompt), CHUNK):
            logits = model(prompt[start : start + CHUNK], None, cache, rows=[row], logits="last")
        first[index] = logits.to("cpu").numpy()[0]
    return first


def _text(tokenizer: Tokenizer, found: Hypothesis, ends: Sequence[int]) -> str:
    stream = TextStream(tokenizer)
    ids = found.token_ids[:-1] if found.token_ids[-1] in ends else found.token_ids
    return "".join([stream.push(token) for token in ids]) + stream.finish()
