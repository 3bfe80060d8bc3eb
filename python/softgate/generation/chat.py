"""A conversation with a model that has a chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from softgate.generation.decoding import Decoder, Ids, Stream, Text
from softgate.generation.sampling import Sampling, with_settings

if TYPE_CHECKING:
    from softgate.generation.model import LanguageModel

Message = dict[str, str]


class Conversation:
    """Messages so far, and a cache of their tokens: a turn computes only what is new.

    messages: {"role": "system", "user" or "assistant", "content": ...}, oldest first. A reply that
    is interrupted, or left before its end, stays as far as it came. Where context is "slide", the
    oldest messages after the system's are no longer shown to the model once they do not fit;
    `messages` keeps them.
    """

    def __init__(self, model: LanguageModel, system: str | None, sampling: Sampling) -> None:
        self._tokenizer = model.require_tokenizer("chat")
        if self._tokenizer.chat_template is None:
            raise ValueError("chat needs a chat template, the model has none")
        self.messages: list[Message] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._model = model
        self._sampling = sampling
        self._cache: Any = None
        self._cached: list[int] = []  # tokens of row 0, at least those that it holds
        self._pieces: Iterator[str] = iter(())

    def say(self, content: str, **settings: Any) -> Stream:
        """Start the reply to a message: iterate over it to get its pieces.

        settings: those of `Sampling` that differ for this reply. Ends the reply before this one if
        it has not ended. Raises ValueError when the message is empty or leaves the context no room
        for a reply; the conversation is then as it was.
        """
        if not content:
            raise ValueError("content is empty")
        self._end_reply()
        sampling = with_settings(self._sampling, settings)
        message = {"role": "user", "content": content}
        prompt = self._prompt([*self.messages, message], sampling)
        seed = sampling.seed_of_prompt()
        text = Text(self._model, sampling, prompt, seed=seed, continues=False)
        answer = {"role": "assistant", "content": ""}
        self.messages += [message, answer]
        self._pieces = self._decoded(text, sampling, answer)
        return Stream(text, self._pieces)

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self._end_reply()
        self.messages = [m for m in self.messages[:1] if m["role"] == "system"]

    def _end_reply(self) -> None:
        if close := getattr(self._pieces, "close", None):
            close()

    def _prompt(self, messages: list[Message], sampling: Sampling) -> Ids:
        """Tokens of the messages; with a sliding context, of as many as leave room for a reply."""
        first = 1 if messages[0]["role"] == "system" else 0
        room = self._model.max_length - int(sampling.max_new_tokens or 1)
        for oldest in range(first, len(messages), 2):
            prompt = self._tokens(messages[:first] + messages[oldest:])
            if sampling.context != "slide" or len(prompt) <= room:
                break
        self._model.check_room(prompt, sampling, "the conversation")
        return prompt

    def _tokens(self, messages: list[Message]) -> Ids:
        text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        (encoding,) = self._tokenizer.encode([text], add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32)

    def _decoded(self, text: Text, sampling: Sampling, answer: Message) -> Iterator[str]:
        """Decode the reply in row 0, of which stays what the prompt begins with."""
        if self._cache is None:
            self._cache = self._model.new_cache(1)
        known = np.array(self._cached[: self._cache.lengths[0]], dtype=np.int32)
        # The last token is computed in any case: the logits of the next one come from it.
        cached_tokens = min(common_prefix(known, text.prompt), len(text.prompt) - 1)
        decoder = Decoder(self._model, sampling, self._cache, rows=1)
        decoder.start(text, cached_tokens)
        self._cached = text.context
        try:
            for _, piece in decoder.run():
                answer["content"] += piece
                if piece:
                    yield piece
        finally:
            answer["content"] = text.result().text


def common_prefix(a: Ids, b: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length
