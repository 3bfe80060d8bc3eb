"""How likely a model finds a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import Tensor
from softgate.generation.decoding import CHUNK, Ids

if TYPE_CHECKING:
    from softgate.generation.model import LanguageModel

# Tokens whose logits are held at a time, all of the vocabulary for each.
SCORED_CHUNK = 128


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    token_ids: of the text, with the special tokens that the tokenizer adds. logprobs: float32, the
    natural logarithm of each token's probability given those before it; NaN for the first one,
    which has none before it.
    """

    token_ids: list[int]
    logprobs: npt.NDArray[np.float32]

    @property
    def total_logprob(self) -> float:
        """Log-probability of the text given its first token."""
        return float(self.logprobs[1:].sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of all tokens but the first."""
        surprise = -self.total_logprob / (len(self.token_ids) - 1)
        try:
            return math.exp(surprise)
        except OverflowError:
            return math.inf


def score_tokens(model: LanguageModel, tokens: Ids, window: int, stride: int) -> Score:
    """Score windows of `window` tokens that begin `stride` apart."""
    if len(tokens) < 2:
        raise ValueError("a text of one token has none to predict")
    logprobs = np.full(len(tokens), np.nan, dtype=np.float32)
    cache = model.new_cache(1, min(window, len(tokens)))
    start, scored = 0, 1  # the first token goes without
    while scored < len(tokens):
        end = min(start + window, len(tokens))
        cache.truncate(0, 0)
        for position in range(start, scored - 1, CHUNK):
            model(tokens[position : min(position + CHUNK, scored - 1)], None, cache, logits="last")
        for position in range(scored - 1, end - 1, SCORED_CHUNK):
            stop = min(position + SCORED_CHUNK, end - 1)
            logits = model(tokens[position:stop], None, cache, logits="all")
            following = Tensor(tokens[position + 1 : stop + 1]).to(logits.device)
            found = ops.token_logprobs(logits, following)
            logprobs[position + 1 : stop + 1] = found.to("cpu").numpy()
        start, scored = start + stride, end
    return Score(tokens.tolist(), logprobs)
