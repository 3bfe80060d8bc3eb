"""From text to token ids and back, through the `tokenizers` library."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from softgate._files import atomic_write
from softgate.checkpoint.errors import CheckpointError, quote
from softgate.checkpoint.folder import read_object
from softgate.text import tiktoken
from softgate.text.errors import library_errors
from softgate.text.gguf import build_tokenizer, special_token_ids
from softgate.text.hugging_face import auto_tokenizer
from softgate.text.stream import DecodeStream, whole_characters
from softgate.text.template import render
from softgate.text.training import SPECIAL_TOKENS as TRAINED_TOKENS
from softgate.text.training import Kind, train_tokenizer

if TYPE_CHECKING:
    import tokenizers

    from softgate.checkpoint import Checkpoint

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text as token ids, special tokens among them.

    ids, type_ids: of the same length; truncated: whether the text was longer than asked for.
    """

    ids: list[int]
    type_ids: list[int]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Spans(Encoding):
    """A text, or two that belong together, whose tokens say where they come from.

    parts: 0 for tokens of the first text, 1 for those of the second, None for special tokens.
    offsets: the characters of that text, start and end, that a token stands for.
    """

    parts: list[int | None]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """A tokenizer, without padding, and a checkpoint's chat template.

    `tokens`, `ids` and `decode` for a text; `encode` for many. `load` reads one, `train` makes one
    of texts, `save` writes it.

    special_tokens: texts of the tokens with a role, by role: bos, eos, unk, sep, pad, cls, mask.
    chat_template: a Jinja template, or None.
    """

    special_tokens: Mapping[str, str]
    chat_template: str | None

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str] = MappingProxyType({}),
        chat_template: str | None = None,
    ) -> None:
        # Sequences are packed, and the length is the caller's choice.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.special_tokens = MappingProxyType(dict(special_tokens))
        self.chat_template = chat_template
        self.num_special_tokens = int(tokenizer.num_special_tokens_to_add(False))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer.json; CheckpointError when it is not one."""
        return cls(_read_tokenizer(Path(path)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer.json, a folder with one (such as `save` writes), or tiktoken's ranks.

        A folder's tokenizer_config.json says which tokens are special and, unless
        chat_template.jinja does, how to write a chat. A folder without tokenizer.json goes to
        transformers. Raises CheckpointError when there is no tokenizer or it is broken.
        """
        path = Path(path)
        if path.is_dir():
            tokenizer = cls._from_folder(path)
            if tokenizer is None:
                raise CheckpointError(f"{path} holds no {TOKENIZER}")
            return tokenizer
        with path.open("rb") as file:
            is_json = file.read(64).lstrip().startswith(b"{")
        return cls.from_file(path) if is_json else cls.from_tiktoken(path)

    @classmethod
    def from_tiktoken(cls, path: str | os.PathLike[str], encoding: str | None = None) -> Tokenizer:
        """Read tiktoken's rank file.

        encoding: r50k_base (GPT-2), p50k_base, cl100k_base or o200k_base, which says how texts are
        cut into words and what tokens are special; None goes by the number of ranks.

        Raises CheckpointError when the file is broken or its encoding cannot be told.
        """
        path = Path(path)
        ranks = tiktoken.read_ranks(path)
        chosen = tiktoken.find_encoding(path, len(ranks), encoding)
        return cls(tiktoken.build_tokenizer(path, ranks, chosen), {"eos": "<|endoftext|>"})

    @classmethod
    def train(
        cls,
        kind: Kind,
        texts: Sequence[str],
        *,
        vocab_size: int | None = None,
        min_count: int = 1,
        special_tokens: Mapping[str, str] = MappingProxyType(TRAINED_TOKENS),
    ) -> Tokenizer:
        """Make a tokenizer whose tokens are those of `texts`, the most frequent first.

        kind: "whitespace" takes what stands between white space, which `decode` makes one space;
        "syllable" takes characters as readers see them (grapheme clusters, in Korean syllables, in
        Unicode's NFC), spaces among them, so that `decode` gives the text back. vocab_size: at
        most, special tokens included; min_count: leave out rarer tokens. special_tokens: their
        texts by role, which come first and are not added to texts; what is left out becomes "unk".

        Raises ValueError when nothing is left or an argument makes no sense, TypeError when `texts`
        is not a sequence of str.
        """
        check_texts(texts)
        unknown = special_tokens.keys() - set(SPECIAL_TOKENS)
        if unknown:
            raise ValueError(
                f"special_tokens has {min(unknown)!r}, expected some of {', '.join(SPECIAL_TOKENS)}"
            )
        trained = train_tokenizer(kind, texts, vocab_size, min_count, special_tokens)
        return cls(trained, special_tokens)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Tokenizer | None:
        """The tokenizer of a folder's files or of a GGUF file's metadata; None if it has none.

        A folder's is that of `load`. Raises CheckpointError when one of its files is broken.
        """
        if "tokenizer.ggml.tokens" in checkpoint.metadata:
            return cls._from_gguf(checkpoint)
        return None if checkpoint.metadata else cls._from_folder(checkpoint.folder)

    @classmethod
    def _from_folder(cls, folder: Path) -> Tokenizer | None:
        path = folder / TOKENIZER
        if not path.is_file():
            found = auto_tokenizer(folder)
            return None if found is None else cls(*found)
        said = folder / TOKENIZER_CONFIG
        config = read_object(said) if said.is_file() else {}
        template = folder / CHAT_TEMPLATE
        return cls(
            _read_tokenizer(path),
            _special_tokens(config),
            _read_text(template) if template.is_file() else _chat_template(config),
        )

    @classmethod
    def _from_gguf(cls, checkpoint: Checkpoint) -> Tokenizer:
        metadata = checkpoint.metadata
        template = metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise CheckpointError(f"{checkpoint.spec}: tokenizer.chat_template is not a string")
        try:
            tokenizer = build_tokenizer(metadata)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.spec}: {error}") from None
        size, expected = tokenizer.get_vocab_size(), checkpoint.config["vocab_size"]
        if size > expected:
            raise CheckpointError(
                f"{checkpoint.spec}: the tokenizer has {size} tokens, the embedding {expected}"
            )
        special = {
            name: str(tokenizer.id_to_token(index))
            for name, index in special_token_ids(metadata).items()
        }
        return cls(tokenizer, special, template)

    @property
    def vocab_size(self) -> int:
        """How many ids there are, those of added tokens among them."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a text."""
        return self._special_id("bos")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text."""
        return self._special_id("eos")

    @property
    def pad_token_id(self) -> int | None:
        """The id of the token that fills a batch up."""
        return self._special_id("pad")

    @property
    def mask_token(self) -> str | None:
        """The text of the token that stands for a missing one."""
        said = self.special_tokens.get("mask")
        candidates = ("[MASK]", "<mask>") if said is None else (said,)
        return next((token for token in candidates if self.token_id(token) is not None), None)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    def token(self, index: int) -> str:
        """The token of an id; ValueError when there is none."""
        token = self._tokenizer.id_to_token(index) if index >= 0 else None
        if token is None:
            raise ValueError(f"there is no token {index}")
        return str(token)

    def token_id(self, token: str) -> int | None:
        """The id of a token's text, None when there is no such token."""
        index = self._tokenizer.token_to_id(token)
        return None if index is None else int(index)

    def ids(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text; see `encode`, which raises the same."""
        return self.encode([text], add_special_tokens=add_special_tokens)[0].ids

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> list[str]:
        """The tokens of a text, as the vocabulary spells them: byte-level BPE writes a space as
        \u0120, SentencePiece as \u2581."""
        ids = self.ids(text, add_special_tokens=add_special_tokens)
        return [self.token(index) for index in ids]

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        truncate: bool = True,
        add_special_tokens: bool = True,
    ) -> list[Encoding]:
        """Token ids of each text; an empty text has only the special tokens.

        A text of more than `max_length` tokens loses its end, but no special token, if `truncate`.
        add_special_tokens: False for text that has them already, such as a chat's; special tokens
        that a text spells out are found either way.

        Raises TypeError when `texts` is not a sequence of str, and ValueError when one holds a lone
        surrogate, is too long and not to be truncated, or `max_length` leaves no room for the
        special tokens; CheckpointError when the tokenizer contradicts itself.
        """
        reserved = self.num_special_tokens if add_special_tokens else 0
        if max_length is not None and max_length < reserved:
            raise ValueError(
                f"max_length is {max_length}, expected at least "
                f"{reserved}, the special tokens of a text"
            )
        check_texts(texts)
        with library_errors("the tokenizer fails"):
            batch = self._tokenizer.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
        encodings: list[Encoding] = []
        for index, full in enumerate(batch):
            if max_length is None or len(full) <= max_length:
                encodings.append(Encoding(full.ids, full.type_ids, truncated=False))
            elif truncate:
                encodings.append(self._truncated(texts[index], max_length, add_special_tokens))
            else:
                raise ValueError(
                    f"texts[{index}] has {len(full)} tokens, expected at most {max_length}"
                )
        return encodings

    def encode_spans(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        max_length: int | None = None,
        truncate: bool = True,
    ) -> list[Spans]:
        """Token ids of each text or pair of texts, with special tokens, and where they come from.

        What is longer than `max_length` loses its end, the longer text of a pair first, if
        `truncate`. Raises as `encode` does.
        """
        found = []
        for index, given in enumerate(texts):
            first, *others = self._tokenized(f"texts[{index}]", given)
            second = others[0] if others else None
            room = self._room(max_length, second is not None)
            size = len(first) + sum(map(len, others))
            too_long = room is not None and size > room
            if room is not None and too_long:
                if not truncate:
                    raise ValueError(
                        f"texts[{index}] has {size + (max_length or 0) - room} tokens, expected at "
                        f"most {max_length}"
                    )
                if second is None:
                    first.truncate(room)
                else:
                    shorter, longer = sorted((first, second), key=len)
                    shorter.truncate(min(len(shorter), room // 2))
                    longer.truncate(room - len(shorter))
            found.append(self._spans(first, second, too_long))
        return found

    def encode_windows(
        self, first: str, second: str, *, max_length: int, overlap: int
    ) -> list[Spans]:
        """A pair of texts whose second is cut into windows, so that each has at most `max_length`
        tokens with the first, which is never cut, and shares `overlap` tokens with the one before,
        or half of its room if that is less.

        Raises ValueError when the first leaves no room.
        """
        head, tail = self._tokenized("texts", (first, second))
        reserved = self._room(max_length, True)
        assert reserved is not None
        room = reserved - len(head)
        if room < 1:
            raise ValueError(
                f"the first text has {len(head)} tokens, expected at most {reserved - 1}"
            )
        if len(tail) > room:
            tail.truncate(room, min(overlap, room // 2))
        windows = [tail, *tail.overflowing]
        cut = len(windows) > 1
        return [self._spans(head, window, cut) for window in windows]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; an id outside the vocabulary has none."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as people read it: the characters that it holds or has a part of.

        Special tokens are their names. Where tokens are no part of the text as it stands
        (WordPiece), they are what the vocabulary calls them.
        """
        try:
            stream = self.decode_stream(skip_special_tokens=False, continues=True)
        except ValueError:
            stream = None
        if stream is None or self._tokenizer.decoder is None:
            return [self.token(index) for index in ids]
        return whole_characters([stream.bytes_of(index) for index in ids])

    def decode_stream(
        self, *, skip_special_tokens: bool = True, continues: bool = False
    ) -> DecodeStream:
        """A stream whose `feed(ids)` gives whole characters, `flush()` what is left at the end.

        continues: the tokens go on from a text, so that the first one's space is one; else
        SentencePiece style tokenizers drop it, as `decode` does.

        Raises ValueError for a tokenizer whose tokens have no text of their own (WordPiece).
        """
        return DecodeStream(
            self._tokenizer,
            self.special_ids,
            skip_special_tokens=skip_special_tokens,
            continues=continues,
        )

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text that the model's template makes of a chat; encode it without special tokens.

        messages: such as `{"role": "user", "content": "..."}`; add_generation_prompt: end with the
        beginning of an answer; variables: what else the template may ask for, such as `tools`.

        The template is the checkpoint's, so untrusted: it runs in a sandbox and a process of its
        own, with bounded time, memory and output.

        Raises ValueError when there is no template or it refuses the messages, TypeError when
        these are not mappings of JSON values, CheckpointError when the template is broken or
        exceeds its bounds.
        """
        if self.chat_template is None:
            raise ValueError("the checkpoint has no chat template")
        if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
            raise TypeError(
                f"messages is a {type(messages).__name__}, expected a sequence of mappings"
            )
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise TypeError(
                    f"messages[{index}] is a {type(message).__name__}, expected a mapping"
                )
        return render(
            self.chat_template,
            {f"{name}_token": token for name, token in self.special_tokens.items()}
            | {"tools": None, "documents": None}
            | variables
            | {
                # A key without a value is one that templates expect to be missing.
                "messages": [
                    {key: value for key, value in message.items() if value is not None}
                    for message in messages
                ],
                "add_generation_prompt": add_generation_prompt,
            },
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `load` and Hugging Face read back as this tokenizer."""
        files = self.to_files()
        Path(folder).mkdir(parents=True, exist_ok=True)
        with atomic_write(*(Path(folder) / name for name in files)) as opened:
            for file, content in zip(opened, files.values(), strict=True):
                file.write(content)

    def to_json(self) -> str:
        """The content of a tokenizer.json that reads back as this tokenizer."""
        return str(self._tokenizer.to_str())

    def to_files(self, token_types: bool = False) -> dict[str, bytes]:
        """Files, by name, that `from_checkpoint` and Hugging Face read back as this tokenizer.

        token_types: the model tells the texts of a pair apart.
        """
        config: dict[str, Any] = {
            f"{name}_token": token for name, token in self.special_tokens.items()
        }
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if token_types:
            config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        files = {
            TOKENIZER: self.to_json().encode(),
            TOKENIZER_CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        }
        if self.chat_template is not None:
            files[CHAT_TEMPLATE] = self.chat_template.encode()
        return files

    def _tokenized(self, name: str, given: str | tuple[str, str]) -> list[Any]:
        """The library's encodings of a text or a pair, without special tokens."""
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, Sequence) or not 1 <= len(texts) <= 2:
            raise TypeError(f"{name} is a {type(given).__name__}, expected str or a pair of str")
        check_texts(texts)
        with library_errors("the tokenizer fails"):
            return [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def _room(self, max_length: int | None, is_pair: bool) -> int | None:
        """How many tokens there may be besides the special ones."""
        if max_length is None:
            return None
        reserved = int(self._tokenizer.num_special_tokens_to_add(is_pair))
        if max_length < reserved:
            raise ValueError(
                f"max_length is {max_length}, expected at least "
                f"{reserved}, the special tokens of a text"
            )
        return max_length - reserved

    def _spans(self, first: Any, second: Any, truncated: bool) -> Spans:
        full = self._tokenizer.post_process(first, second)
        # The library's own sequence_ids are wrong after post_process.
        own = [0] * len(first) + [1] * (0 if second is None else len(second))
        added = full.special_tokens_mask
        if len(added) - sum(added) != len(own):
            raise CheckpointError("the tokenizer's post-processor changes the tokens of a text")
        following = iter(own)
        parts = [None if special else next(following) for special in added]
        return Spans(full.ids, full.type_ids, truncated, parts, full.offsets)

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_id(token)

    def _truncated(self, text: str, max_length: int, add_special_tokens: bool) -> Encoding:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if add_special_tokens:
            encoding.truncate(max_length - self.num_special_tokens)
            encoding = self._tokenizer.post_process(encoding)
        else:
            encoding.truncate(max_length)
        return Encoding(encoding.ids, encoding.type_ids, truncated=True)


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


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    content = path.read_bytes()
    with library_errors(f"{path}: not a tokenizer"):
        return tokenizers.Tokenizer.from_buffer(content)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8") from None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens of a tokenizer_config.json, each a string or an object with `content`."""
    special = {}
    for name in SPECIAL_TOKENS:
        token = config.get(f"{name}_token")
        if isinstance(token, dict):
            token = token.get("content")
        if token is None:
            continue
        if not isinstance(token, str):
            raise CheckpointError(f"{TOKENIZER_CONFIG}: {name}_token is {quote(token)}")
        special[name] = token
    return special


def _chat_template(config: Mapping[str, Any]) -> str | None:
    """The chat template of a tokenizer_config.json: a string, or the default one of several."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{TOKENIZER_CONFIG}: chat_template is {quote(template)}")
    return template
