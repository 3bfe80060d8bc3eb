"""What every language model can do: generate, stream, chat and score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from softgate.generation.beam import BeamSearch, Hypothesis
from softgate.generation.beam_cache import search_with_cache
from softgate.generation.chat import Conversation
from softgate.generation.decoding import Decoder, Generation, Ids, Stream, Text
from softgate.generation.sampling import Sampling, with_settings
from softgate.generation.score import Score, score_tokens
from softgate.generation.settings import replaced

if TYPE_CHECKING:
    from softgate.text import Tokenizer

# A text, or its token ids.
Prompt = str | Sequence[int] | Ids


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `generate`. generations: what there is of every text, in its order."""

    def __init__(self, generations: list[Generation]) -> None:
        super().__init__("interrupted")
        self.generations = generations


class LanguageModel:
    """Generation for a decoder with a key-value cache; models inherit it.

    Every method takes the settings of `Sampling`, as an object, as keywords, or both, where the
    keywords win.
    """

    if TYPE_CHECKING:
        config: Any  # with vocab_size and eos_token_ids
        tokenizer: Tokenizer | None

        @property
        def max_length(self) -> int: ...
        def new_cache(self, batch: int, capacity: int | None = None) -> Any: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    @overload
    def generate(
        self, prompts: Prompt, sampling: Sampling | None = None, *,
        num_samples: None = None, batch_size: int = 8, **settings: Any,
    ) -> Generation: ...  # fmt: skip

    @overload
    def generate(
        self, prompts: Prompt, sampling: Sampling | None = None, *,
        num_samples: int, batch_size: int = 8, **settings: Any,
    ) -> list[Generation]: ...  # fmt: skip

    @overload
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, *,
        num_samples: int | None = None, batch_size: int = 8, **settings: Any,
    ) -> list[Generation]: ...  # fmt: skip

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        num_samples: int | None = None,
        batch_size: int = 8,
        **settings: Any,
    ) -> Generation | list[Generation]:
        """Continue a prompt, or each of several.

        prompts: a text or its token ids, which gives a Generation, or a list of those, which gives
        a list. num_samples: as many texts of each prompt, next to each other in one list; the
        prompt is computed once. batch_size: texts computed at a time, at least num_samples; a text
        does not depend on the others in its batch (but see `ops.linear` on ISA "amx").

        Raises ValueError for settings that make no sense, an empty prompt, ids outside the
        vocabulary, and, unless context is "slide", a prompt with which max_new_tokens do not fit
        into the context. Ctrl-C raises Interrupted, a KeyboardInterrupt that holds what there is.
        """
        chosen = with_settings(sampling, settings)
        listed, is_single = _as_list(prompts)
        texts, decoder = self._begin(listed, chosen, num_samples, batch_size)
        try:
            for _ in decoder.run():
                pass
        except KeyboardInterrupt:
            raise Interrupted([text.result() for text in texts]) from None
        results = [text.result() for text in texts]
        return results[0] if is_single and num_samples is None else results

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        num_samples: int | None = None,
        batch_size: int = 8,
        **settings: Any,
    ) -> Iterator[Generation]:
        """What `generate` gives for several prompts, each as it is finished, in that order.

        A Generation's `prompt` and `sample` say whose it is.
        """
        chosen = with_settings(sampling, settings)
        _, decoder = self._begin(prompts, chosen, num_samples, batch_size)
        return (text.result() for text, _ in decoder.run() if text.reason is not None)

    def stream(self, prompt: Prompt, sampling: Sampling | None = None, **settings: Any) -> Stream:
        """Continue a prompt piece by piece: `for piece in lm.stream(prompt): ...`.

        Raises what `generate` does, and ValueError when the model has no tokenizer.
        """
        self.require_tokenizer("stream")
        chosen = with_settings(sampling, settings)
        (text,), decoder = self._begin([prompt], chosen)
        return Stream(text, (piece for _, piece in decoder.run() if piece))

    @overload
    def beam_search(
        self, prompts: Prompt, beams: BeamSearch | None = None, *, batch_size: int = 8,
        **settings: Any,
    ) -> list[Hypothesis]: ...  # fmt: skip

    @overload
    def beam_search(
        self, prompts: Sequence[Prompt], beams: BeamSearch | None = None, *, batch_size: int = 8,
        **settings: Any,
    ) -> list[list[Hypothesis]]: ...  # fmt: skip

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        beams: BeamSearch | None = None,
        *,
        batch_size: int = 8,
        **settings: Any,
    ) -> list[Hypothesis] | list[list[Hypothesis]]:
        """The likeliest continuations of a prompt, or of each of several, the best first.

        prompts: as in `generate`. settings: those of `BeamSearch`, as an object, as keywords, or
        both, where the keywords win. batch_size: prompts computed at a time; a result does not
        depend on the others.

        Raises ValueError for settings that make no sense, an empty prompt, ids outside the
        vocabulary, and a prompt with which max_new_tokens do not fit into the context.
        """
        chosen = replaced(beams or BeamSearch(), settings)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        listed, is_single = _as_list(prompts)
        ids = [self._token_ids(prompt, f"prompts[{i}]") for i, prompt in enumerate(listed)]
        for i, prompt in enumerate(ids):
            room = self.max_length - len(prompt)
            if chosen.max_new_tokens > room:
                raise ValueError(
                    f"max_new_tokens is {chosen.max_new_tokens}, expected at most {room}: the "
                    f"context of {self.max_length} also holds the {len(prompt)} tokens of "
                    f"prompts[{i}]"
                )
        found: list[list[Hypothesis]] = []
        for start in range(0, len(ids), batch_size):
            found += search_with_cache(self, ids[start : start + batch_size], chosen)
        return found[0] if is_single else found

    def chat(
        self, system: str | None = None, sampling: Sampling | None = None, **settings: Any
    ) -> Conversation:
        """Start a conversation, `for piece in conversation.say("Hello"): ...`.

        system: the message that sets the tone; None leaves it to the chat template. Raises
        ValueError when the model has no chat template, or for settings that make no sense.
        """
        return Conversation(self, system, with_settings(sampling, settings))

    @overload
    def score(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self, texts: Prompt, *, window: int | None = None, stride: int | None = None
    ) -> Score: ...

    @overload
    def score(
        self, texts: Sequence[Prompt], *, window: int | None = None, stride: int | None = None
    ) -> list[Score]: ...

    def score(
        self,
        texts: Prompt | Sequence[Prompt],
        *,
        window: int | None = None,
        stride: int | None = None,
    ) -> Score | list[Score]:
        """How likely the model finds a text, or each of several: token by token, and perplexity.

        A text longer than `window` tokens (default and at most: the model's context) is scored in
        windows that begin `stride` tokens apart (default: half a window). Each scores the tokens
        that none before it did, so that a token has at least `window - stride` tokens before it
        where the text does.

        Raises ValueError for a text without a token to predict, ids outside the vocabulary, and a
        window or stride that makes no sense.
        """
        context = self.max_length
        window = context if window is None else window
        if not 2 <= window <= context:
            raise ValueError(f"window is {window}, expected 2 to {context}, the model's context")
        stride = window // 2 if stride is None else stride
        if not 1 <= stride < window:
            raise ValueError(f"stride is {stride}, expected 1 to {window - 1}, below the window")
        listed, is_single = _as_list(texts)
        tokens = [self._token_ids(text, f"texts[{i}]") for i, text in enumerate(listed)]
        scores = [score_tokens(self, ids, window, stride) for ids in tokens]
        return scores[0] if is_single else scores

    def stop_tokens(self, sampling: Sampling) -> frozenset[int]:
        """Ids that end a text."""
        chosen = sampling.stop_tokens
        return frozenset(self.config.eos_token_ids if chosen is None else chosen)

    def require_tokenizer(self, what: str) -> Tokenizer:
        """The tokenizer; ValueError that names what needs it when there is none."""
        if self.tokenizer is None:
            raise ValueError(f"{what} needs a tokenizer, the model has none")
        return self.tokenizer

    def check_room(self, prompt: Ids, sampling: Sampling, name: str) -> None:
        """Raise ValueError where prompt and text might not fit into the context."""
        context = self.max_length
        if sampling.context == "slide":
            if sampling.keep > context - 2:
                raise ValueError(f"keep is {sampling.keep}, expected at most {context - 2}")
            return
        room = context - len(prompt)
        if room < 1:
            raise ValueError(
                f"{name} has {len(prompt)} tokens, expected at most {context - 1}: the context of "
                f"{context} holds prompt and text (context='slide' drops the oldest)"
            )
        if sampling.max_new_tokens is not None and sampling.max_new_tokens > room:
            raise ValueError(
                f"max_new_tokens is {sampling.max_new_tokens}, expected at most {room}: the "
                f"context of {context} also holds the {len(prompt)} tokens of {name}"
            )

    def _begin(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        num_samples: int | None = None,
        batch_size: int = 8,
    ) -> tuple[list[Text], Decoder]:
        """The samples of each prompt, and the decoder that they wait for."""
        count = 1 if num_samples is None else num_samples
        for name, value in (("num_samples", count), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if count > 1 and sampling.temperature == 0:
            raise ValueError(f"num_samples is {count}, but temperature is 0: all would be the same")
        if sampling.stop:
            self.require_tokenizer("stop")
        texts = []
        for index, prompt in enumerate(prompts):
            ids = self._token_ids(prompt, f"prompts[{index}]")
            self.check_room(ids, sampling, f"prompts[{index}]")
            seed = sampling.seed_of_prompt()
            texts += [
                Text(self, sampling, ids, seed=seed, index=index, sample=sample)
                for sample in range(count)
            ]
        rows = min(max(batch_size, count), len(texts))
        cache = self.new_cache(rows, self._capacity(texts, sampling)) if texts else None
        decoder = Decoder(self, sampling, cache, rows)
        for first in range(0, len(texts), count):
            decoder.add(texts[first : first + count])
        return texts, decoder

    def _capacity(self, texts: Sequence[Text], sampling: Sampling) -> int:
        """Tokens that a row of the cache needs."""
        context = self.max_length
        if sampling.max_new_tokens is None:
            return context
        longest = max(len(text.prompt) for text in texts)
        return min(context, longest + int(sampling.max_new_tokens))

    def _token_ids(self, prompt: Prompt, name: str) -> Ids:
        if isinstance(prompt, str):
            tokenizer = self.require_tokenizer(f"{name}, a str,")
            if not prompt:
                raise ValueError(f"{name} is empty")
            (encoding,) = tokenizer.encode([prompt])
            ids = np.array(encoding.ids)
        else:
            ids = np.asarray(prompt)
        if not ids.size:
            raise ValueError(f"{name} has no tokens")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise TypeError(f"{name} is {prompt!r:.80}, expected a str or a list of token ids")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            wrong = next(i for i in ids if not 0 <= i < self.config.vocab_size)
            raise ValueError(f"{name} holds {wrong}, expected ids below {self.config.vocab_size}")
        return ids.astype(np.int32)


def _as_list(prompts: Any) -> tuple[list[Prompt], bool]:
    """The prompts, and whether it was a single one."""
    is_single = (
        isinstance(prompts, str)
        or (isinstance(prompts, np.ndarray) and prompts.ndim == 1)
        or (len(prompts) > 0 and isinstance(prompts[0], int | np.integer))
    )
    return [prompts] if is_single else list(prompts), is_single
