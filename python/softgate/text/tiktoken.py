"""Byte-pair tokenizers from tiktoken's rank files: a line for each token, its bytes in base64 and
its rank, which is its id. https://github.com/openai/tiktoken

A file does not say how texts are cut into words, nor its special tokens; `ENCODINGS` does.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from softgate.checkpoint.errors import CheckpointError, quote
from softgate.text import patterns
from softgate.text.bytelevel import BYTES
from softgate.text.errors import library_errors

if TYPE_CHECKING:
    import tokenizers

MAX_BYTES = 1 << 25
LONGEST = 256  # bytes of a token; finding its splits takes the square
_MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class Encoding:
    """What a rank file does not say. count: of its tokens, by which it is known."""

    count: int
    words: str
    special: dict[str, int]


ENCODINGS = {
    "r50k_base": Encoding(50256, patterns.GPT_2, {"<|endoftext|>": 50256}),
    "p50k_base": Encoding(50280, patterns.GPT_2, {"<|endoftext|>": 50256}),
    "cl100k_base": Encoding(
        100256,
        patterns.LLAMA_3,
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Encoding(
        199998, patterns.GPT_4O, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
    ),
}


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ranks; CheckpointError when the file is not one of ranks."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes, expected at most {MAX_BYTES}")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        token, rank = _read_line(line, f"{path}: line {number}")
        if token in ranks:
            raise CheckpointError(f"{path}: line {number}: {quote(token)} has a rank already")
        ranks[token] = rank
    if len(set(ranks.values())) < len(ranks):
        raise CheckpointError(f"{path}: two tokens have the same rank")
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise CheckpointError(f"{path}: there is no token for byte {lacking[0]}")
    return ranks


def _read_line(line: bytes, where: str) -> tuple[bytes, int]:
    try:
        encoded, digits = line.split(b" ")
        if not digits.isdigit() or len(digits) > len(str(_MAX_ID)):
            raise ValueError
        token, rank = base64.b64decode(encoded, validate=True), int(digits)
    except (ValueError, binascii.Error):
        raise CheckpointError(
            f"{where} is {quote(line)}, expected a token in base64 and its rank"
        ) from None
    if not 1 <= len(token) <= LONGEST or rank > _MAX_ID:
        raise CheckpointError(
            f"{where}: a token of {len(token)} bytes with rank {rank}, expected 1 to {LONGEST} "
            f"bytes and at most {_MAX_ID}"
        )
    return token, rank


def find_encoding(path: Path, count: int, name: str | None) -> Encoding:
    """The encoding of that name, or the one that has as many tokens."""
    if name is not None:
        if name not in ENCODINGS:
            raise ValueError(f"encoding is {name!r}, expected one of {', '.join(ENCODINGS)}")
        return ENCODINGS[name]
    for encoding in ENCODINGS.values():
        if encoding.count == count:
            return encoding
    raise CheckpointError(
        f"{path}: {count} tokens are none of {', '.join(ENCODINGS)}; name one as the encoding"
    )


def build_tokenizer(
    path: Path, ranks: dict[bytes, int], encoding: Encoding
) -> tokenizers.Tokenizer:
    """The tokenizer of these ranks."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = {byte: character for character, byte in BYTES.items()}
    texts = {token: "".join(characters[byte] for byte in token) for token in ranks}
    vocabulary = {texts[token]: rank for token, rank in ranks.items()}
    taken = set(ranks.values())
    for token, index in encoding.special.items():
        if index in taken or token in vocabulary:
            raise CheckpointError(f"{path}: rank {index} is that of {token}, a special token")
    with library_errors(f"{path}: not a tokenizer"):
        tokenizer = Tokenizer(
            models.BPE(
                vocabulary | encoding.special,
                _merges(ranks, texts),
                ignore_merges=True,
                fuse_unk=False,
            )
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(encoding.words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in encoding.special]
        )
    return tokenizer


def _merges(ranks: dict[bytes, int], texts: dict[bytes, str]) -> list[tuple[str, str]]:
    """All pairs of tokens whose join is a token, the join of lowest rank first, as tiktoken joins
    whatever gives the lowest rank."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [
            (left, right)
            for cut in range(1, len(token))
            if (left := token[:cut]) in ranks and (right := token[cut:]) in ranks
        ]
        splits.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(texts[left], texts[right]) for left, right in splits]
    return merges
