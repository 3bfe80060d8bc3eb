"""Text of tokens that arrive one after another."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from softgate.text.bytelevel import token_bytes

if TYPE_CHECKING:
    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class DecodeStream:
    """Turns token ids into text as they arrive: whole characters only, never taken back.

    A character whose bytes are spread over tokens appears with the last of them. Bytes that are no
    UTF-8 become U+FFFD. Made by `Tokenizer.decode_stream`.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        special_ids: frozenset[int],
        *,
        skip_special_tokens: bool,
        continues: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._steps = _decoder_steps(tokenizer)
        self._strips = not continues and any(_strips_space(step) for step in self._steps)
        # Without a decoder, `decode` puts a space between tokens.
        self._joins = tokenizer.decoder is None
        self._is_first = not continues

    def feed(self, ids: int | Sequence[int]) -> str:
        """The text that is now certain; an id outside the vocabulary has none."""
        text = "".join(
            self._utf8.decode(self.bytes_of(index))
            for index in ([ids] if isinstance(ids, int) else ids)
        )
        if text and self._strips:
            self._strips = False
            text = text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character's last bytes never came."""
        return self._utf8.decode(b"", final=True)

    def bytes_of(self, index: int) -> bytes:
        """What a token adds to the text; nothing if it is left out."""
        token = None if index in self._skipped else self._tokenizer.id_to_token(int(index))
        if token is None:
            return b""
        if self._joins:
            token, self._is_first = token if self._is_first else f" {token}", False
        for step in self._steps:
            match step["type"]:
                case "ByteLevel":
                    return token_bytes(token)
                case "ByteFallback":
                    if match := _BYTE_TOKEN.fullmatch(token):
                        return bytes.fromhex(match[1])
                case "Replace":
                    token = token.replace(step["pattern"]["String"], step["content"])
                case "Metaspace":
                    token = token.replace(step["replacement"], " ")
        return token.encode()


def whole_characters(parts: Sequence[bytes]) -> list[str]:
    """Parts of a UTF-8 text, each with all of the characters of which it holds a byte."""
    text, found, end = b"".join(parts), [], 0
    for part in parts:
        start, end = end, end + len(part)
        first, last = start, end
        while part and first and _goes_on(text[first]):
            first -= 1
        while part and last < len(text) and _goes_on(text[last]):
            last += 1
        found.append(text[first:last].decode(errors="replace"))
    return found


def _goes_on(byte: int) -> bool:
    """Is this no character's first byte?"""
    return byte & 0xC0 == 0x80


def _strips_space(step: dict[str, Any]) -> bool:
    """Does this step drop the space that was put in front of a text?"""
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never")
    return bool(step["type"] == "Strip" and step["content"] == " " and step["start"] == 1)


def _decoder_steps(tokenizer: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """The parts of the tokenizer's decoder; ValueError unless each token's bytes are its own."""
    if tokenizer.decoder is None:
        return []
    decoder: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    for step in steps:
        known = step["type"] in ("ByteLevel", "ByteFallback", "Fuse", "Metaspace") or (
            step["type"] == "Strip" and step["stop"] == 0 and step["start"] <= 1
        ) or (step["type"] == "Replace" and "String" in step["pattern"])  # fmt: skip
        if not known:
            raise ValueError(
                f"the tokenizer decodes by {step['type']}, which cannot be streamed; "
                "byte-level BPE and SentencePiece can"
            )
    return steps
