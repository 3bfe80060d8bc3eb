"""How the next token is drawn, and when a text ends."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from softgate.generation.settings import check_int, check_number, replaced

ContextPolicy = Literal["error", "slide"]

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of a text's generation; the default is greedy, 128 tokens at most.

    The logits go through, in this order: repetition_penalty, temperature, top_k, top_p, min_p.

    - max_new_tokens: where a text ends at the latest; None is where the context ends.
    - temperature: divides the logits; 0 always takes the likeliest token (lowest id on ties).
    - top_k: keep the k likeliest tokens; 0 keeps all.
    - top_p: keep the likeliest tokens whose probabilities first reach p (Holtzman et al. 2019).
    - min_p: keep tokens with at least this share of the likeliest one's probability (Nguyen et al.
      2024).
    - repetition_penalty: of tokens that the prompt or the text holds, positive logits are divided
      and negative ones multiplied by it (Keskar et al. 2019); 1 changes nothing.
    - seed: same seed, same text, whatever else is in the batch and however many threads. The
      numbers come from a counter-based stream (Philox, Salmon et al. 2011) keyed by the seed and
      the sample's number; None takes a seed from the system for each prompt, and the result
      tells it.
    - stop: strings that end a text, which then ends before them.
    - stop_tokens: ids that end a text; None takes the model's own, () none.
    - logprobs: also give each token's log-probability.
    - context: what happens where prompt and text fill the model's context. "error" refuses, before
      anything is computed, what might not fit. "slide" drops the oldest tokens but for the first
      `keep`, so that half of what those leave of the context is free, and computes the rest anew
      as if the text had begun there.
    - keep: tokens at the start of the prompt that sliding never drops.

    Raises TypeError or ValueError that names the setting whose value makes no sense or contradicts
    another.
    """

    max_new_tokens: int | None = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_tokens: Sequence[int] | None = None
    logprobs: bool = False
    context: ContextPolicy = "error"
    keep: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            check_int("max_new_tokens", self.max_new_tokens, 1)
        check_number("temperature", self.temperature, "at least 0", lambda x: x >= 0)
        check_int("top_k", self.top_k, 0)
        check_number("top_p", self.top_p, "more than 0 and at most 1", lambda x: 0 < x <= 1)
        check_number("min_p", self.min_p, "from 0 to 1", lambda x: 0 <= x <= 1)
        check_number("repetition_penalty", self.repetition_penalty, "above 0", lambda x: x > 0)
        if self.seed is not None:
            check_int("seed", self.seed, 0, MAX_SEED)
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        if self.stop_tokens is not None:
            for token in self.stop_tokens:
                check_int("stop_tokens", token, 0)
            object.__setattr__(self, "stop_tokens", tuple(map(int, self.stop_tokens)))
        if self.context not in ("error", "slide"):
            raise ValueError(f"context is {self.context!r}, expected 'error' or 'slide'")
        check_int("keep", self.keep, 0)
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        if self.temperature == 0:
            for name, neutral in (("top_k", 0), ("top_p", 1), ("min_p", 0)):
                if (value := getattr(self, name)) != neutral:
                    raise ValueError(
                        f"{name} is {value}, but temperature is 0, which always takes the likeliest"
                    )
        if self.keep and self.context != "slide":
            raise ValueError(f"keep is {self.keep}, but context is 'error': nothing is dropped")
        if self.context == "slide" and self.max_new_tokens is None:
            raise ValueError("max_new_tokens is None, but context is 'slide', which has no end")

    def seed_of_prompt(self) -> int:
        """The seed in use: the one given, or a fresh one."""
        return secrets.randbits(64) if self.seed is None else int(self.seed)


class RandomStream:
    """Numbers in [0, 1), one a step: a function of (seed, sample, step) alone."""

    def __init__(self, seed: int, sample: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, sample], dtype=np.uint64))

    def next(self) -> float:
        """24 bits of the next word, so that float32 holds the number exactly."""
        return (int(self._bits.random_raw()) >> 40) * 2.0**-24


def with_settings(sampling: Sampling | None, settings: dict[str, Any]) -> Sampling:
    """`sampling`, or the default, with some settings replaced; TypeError for unknown ones."""
    return replaced(sampling or Sampling(), settings)


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str):
            raise TypeError(f"stop holds {string!r}, expected strings")
        if not string:
            raise ValueError("stop holds an empty string, which would end every text")
    return strings
