"""From text to token ids and back: tokenizers, streams of tokens, chat templates."""

from __future__ import annotations

from softgate.text.marian import MarianTokenizer
from softgate.text.stream import DecodeStream
from softgate.text.tokenizer import Encoding, Spans, Tokenizer, check_texts

__all__ = ["DecodeStream", "Encoding", "MarianTokenizer", "Spans", "Tokenizer", "check_texts"]
