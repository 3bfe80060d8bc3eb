"""Beam search in the rows of a model's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

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
    width = settings.num_beams
    capacity = max(map(len, prompts)) + settings.max_new_tokens
    cache = model.new_cache(width * len(prompts), capacity)
    rows = width * np.arange(len(prompts), dtype=np.int32)

    def advance(tokens: IntArray, parents: IntArray) -> FloatArray:
        nonlocal rows
        rows = branch(cache, rows[parents])
        offsets = np.arange(len(tokens) + 1, dtype=np.int32)
        logits: FloatArray = (
            model(tokens, offsets, cache, rows=rows, logits="last").to("cpu").numpy()
        )
        return logits

    first = _read(model, prompts, cache, rows)
    found = search([prompt.tolist() for prompt in prompts], settings, ends, first, advance)
    tokenizer = model.tokenizer
    if tokenizer is None:
        return found
    return [[replace(one, text=_text(tokenizer, one, ends)) for one in texts] for texts in found]


def branch(cache: Any, parents: IntArray) -> IntArray:
    """Rows of the cache that go on from `parents`, rows too, of which some come several times.

    The first to go on from a row takes it; only the others copy it, into rows that none goes on
    from.
    """
    needed = set(parents.tolist())
    free = iter([row for row in range(len(cache.lengths)) if row not in needed])
    rows = []
    for parent in parents.tolist():
        if parent in needed:
            needed.remove(parent)
            rows.append(parent)
        else:
            row = next(free)
            cache.copy_row(parent, row)
            rows.append(row)
    return np.array(rows, dtype=np.int32)


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
