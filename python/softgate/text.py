"""From text to token ids, through a tokenizer.json and the `tokenizers` library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from softgate.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text as token ids, special tokens among them.

    ids, type_ids: of the same length; truncated: whether the text was longer than asked for.
    """

    ids: list[int]
    type_ids: list[int]
    truncated: bool


class Tokenizer:
    """The tokenizer that a checkpoint's tokenizer.json describes, without its padding."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        # Sequences are packed, and the length is the caller's choice.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.num_special_tokens = int(tokenizer.num_special_tokens_to_add(False))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer.json; CheckpointError when it is not one."""
        import tokenizers

        content = Path(path).read_bytes()
        with _library_errors(f"{os.fspath(path)}: not a tokenizer"):
            return cls(tokenizers.Tokenizer.from_buffer(content))

    @property
    def vocab_size(self) -> int:
        """How many ids there are, those of added tokens among them."""
        return int(self._tokenizer.get_vocab_size())

    def encode(
        self, texts: Sequence[str], *, max_length: int, truncate: bool = True
    ) -> list[Encoding]:
        """Token ids of each text; an empty text has only the special tokens.

        A text of more than `max_length` tokens loses its end, but no special token, if `truncate`.

        Raises TypeError when `texts` is not a sequence of str, and ValueError when one holds a lone
        surrogate, is too long and not to be truncated, or `max_length` leaves no room for the
        special tokens; CheckpointError when the tokenizer contradicts itself.
        """
        if max_length < self.num_special_tokens:
            raise ValueError(
                f"max_length is {max_length}, expected at least "
                f"{self.num_special_tokens}, the special tokens of a text"
            )
        check_texts(texts)
        with _library_errors("the tokenizer fails"):
            batch = self._tokenizer.encode_batch_fast(list(texts))
        encodings: list[Encoding] = []
        for index, full in enumerate(batch):
            if len(full) <= max_length:
                encodings.append(Encoding(full.ids, full.type_ids, truncated=False))
            elif truncate:
                encodings.append(self._truncated(texts[index], max_length))
            else:
                raise ValueError(
                    f"texts[{index}] has {len(full)} tokens, expected at most {max_length}"
                )
        return encodings

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; an id outside the vocabulary has none."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def to_json(self) -> str:
        """The content of a tokenizer.json that reads back as this tokenizer."""
        return str(self._tokenizer.to_str())

    def _truncated(self, text: str, max_length: int) -> Encoding:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(max_length - self.num_special_tokens)
        encoding = self._tokenizer.post_process(encoding)
        return Encoding(encoding.ids, encoding.type_ids, truncated=True)


@contextmanager
def _library_errors(problem: str) -> Iterator[None]:
    """Narrow what the library raises: bare Exception, and BaseException where its Rust panics."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise CheckpointError(f"{problem}: {error}") from None


def check_texts(texts: Sequence[str]) -> None:
    """Raise unless `texts` is a sequence of str that UTF-8 can hold."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise TypeError(f"texts is a {type(texts).__name__}, expected a sequence of str")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] is a {type(text).__name__}, expected str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"texts[{index}] holds a lone surrogate at character {error.start}"
            ) from None
