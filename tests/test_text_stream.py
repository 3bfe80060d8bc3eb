"""Streams of tokens: whole characters, never taken back, nothing lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import softgate.ops
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from softgate.checkpoint import open_checkpoint
from softgate.text import Tokenizer
from softgate.text.bytelevel import BYTES, token_bytes
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models
from weights import smollm2  # noqa: F401

TEXTS = [
    "",
    "Hello, world!",
    " leading",
    "한국어 문장",
    "🎉👨‍👩‍👧‍👦 e\u0301 \U0010ffff",
    "\ufffd is a character, too",
    "a\0b\n\n\tc",
    Path(softgate.ops.__file__).read_text()[:2000],
]
SPACE = "\u2581"


def byte_level() -> Tokenizer:
    """All bytes, the beginning of a character as a token, one whole one, and a special token."""
    vocabulary = {character: index for index, character in enumerate(sorted(BYTES))}
    spelled = {byte: character for character, byte in BYTES.items()}
    half = "".join(spelled[byte] for byte in "한".encode()[:2])
    whole = half + spelled["한".encode()[2]]
    vocabulary |= {half: 256, whole: 257}
    merges = [(half[0], half[1]), (half, whole[2])]
    library = Library(models.BPE(vocabulary, merges))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<end>"])
    library.add_tokens(["<도구>"])
    return Tokenizer(library)


def test_pieces_are_whole_characters() -> None:
    tokenizer = byte_level()
    ids = tokenizer.ids("글한a  \n<end>")
    assert [tokenizer.token(index) for index in ids[:3]] != ["글", "글", "글"]
    assert tokenizer.pieces(ids) == ["글", "글", "글", "한", "a", " ", " ", "\n", "<end>"]
    halves = [256, tokenizer.token_id("ľ")]  # of 한, as a model may write them
    assert tokenizer.pieces(halves) == ["한", "한"]
    assert tokenizer.pieces([256]) == ["\ufffd"]
    pieces = sentence_piece(decoders.ByteFallback(), decoders.Metaspace())
    assert pieces.pieces(pieces.ids("a b한")) == [" a", " b", "한", "한", "한"]


def test_pieces_that_are_no_text_are_the_vocabulary_s() -> None:
    library = Library(models.WordPiece({"[UNK]": 0, "weav": 1, "##er": 2}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    assert Tokenizer(library).pieces([1, 2, 0]) == ["weav", "##er", "[UNK]"]
    trained = Tokenizer.train("whitespace", ["the warp"])
    assert trained.pieces(trained.ids("the warp")) == ["the", "warp"]


def sentence_piece(*steps: Any) -> Tokenizer:
    """Letters, byte tokens, and words that begin with a space."""
    tokens = ["<unk>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"abc"]
    tokens += [f"{SPACE}a", f"{SPACE}b"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [(SPACE, "a"), (SPACE, "b")]
    library = Library(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    library.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend(SPACE), tokenizers.normalizers.Replace(" ", SPACE)]
    )
    library.decoder = steps[0] if len(steps) == 1 else decoders.Sequence(list(steps))
    library.add_special_tokens(["<end>"])
    return Tokenizer(library)


def llama() -> Tokenizer:
    return sentence_piece(
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    )


def gemma() -> Tokenizer:
    return sentence_piece(decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse())


def metaspace() -> Tokenizer:
    return sentence_piece(decoders.ByteFallback(), decoders.Metaspace())


KINDS = {"byte level": byte_level, "llama": llama, "gemma": gemma, "metaspace": metaspace}


def stream(tokenizer: Tokenizer, ids: list[int], **options: Any) -> list[str]:
    decoder = tokenizer.decode_stream(**options)
    return [*(decoder.feed(index) for index in ids), decoder.flush()]


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back_in_whole_characters(kind: str) -> None:
    tokenizer = KINDS[kind]()
    for text in TEXTS:
        ids = tokenizer.encode([text])[0].ids
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert pieces[-1] == ""
        for piece in pieces:
            assert "\ufffd" not in piece or "\ufffd" in text


def test_a_character_comes_with_its_last_byte() -> None:
    tokenizer = byte_level()
    han = [*(BYTES_TO_ID[byte] for byte in "한".encode())]
    assert stream(tokenizer, han) == ["", "", "한", ""]
    assert stream(tokenizer, [256, han[2], 257]) == ["", "한", "한", ""]
    assert stream(tokenizer, [256]) == ["", "\ufffd"]
    assert stream(tokenizer, [256, BYTES_TO_ID[ord("a")]]) == ["", "\ufffda", ""]
    assert stream(tokenizer, [256, 256, han[2]]) == ["", "\ufffd", "한", ""]


BYTES_TO_ID = {BYTES[character]: index for index, character in enumerate(sorted(BYTES))}


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 259)))
def test_any_tokens_give_what_decoding_gives(ids: list[int]) -> None:
    tokenizer = byte_level()
    for skip in (True, False):
        pieces = stream(tokenizer, ids, skip_special_tokens=skip)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)
    raw = [token_bytes(tokenizer._tokenizer.id_to_token(i)) for i in ids if i != 258]
    # What has been given is all that is certain: the bytes left are less than a character.
    for count in range(len(ids)):
        given = "".join(stream(tokenizer, ids[:count])[:-1])
        rest = b"".join(raw[: sum(i != 258 for i in ids[:count])])[len(given.encode()) :]
        assert "\ufffd" in given or len(rest) < 4


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(1, 264)))
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_bytes_that_are_no_text(kind: str, ids: list[int]) -> None:
    """Decoding replaces all of a run with one bad byte; a stream keeps what it has given."""
    tokenizer = KINDS[kind]()
    found = "".join(stream(tokenizer, ids))
    whole = tokenizer.decode(ids)
    assert found == whole or "\ufffd" in whole

    def raw(index: int) -> bytes:
        token = tokenizer._tokenizer.id_to_token(index)
        if token is None or token == "<end>":
            return b""
        if 2 <= index < 258:
            return bytes([index - 2])
        return token.replace(SPACE, " ").encode()

    expected = b"".join(map(raw, ids)).decode(errors="replace")
    assert found == (expected.removeprefix(" ") if kind == "llama" else expected)


def test_chunks_do_not_matter() -> None:
    choose = random.Random(0)
    for build in KINDS.values():
        tokenizer = build()
        ids = tokenizer.encode([" ".join(TEXTS)])[0].ids
        decoder, text, rest = tokenizer.decode_stream(), "", ids
        while rest:
            size = choose.randint(0, 5)
            text += decoder.feed(rest[:size])
            rest = rest[size:]
        assert text + decoder.flush() == tokenizer.decode(ids)


def test_special_tokens() -> None:
    tokenizer = byte_level()
    end, tool = tokenizer.token_id("<end>"), tokenizer.token_id("<도구>")
    assert end is not None
    assert tool is not None
    a = BYTES_TO_ID[ord("a")]
    assert stream(tokenizer, [a, end, tool, a]) == ["a", "", "<도구>", "a", ""]
    assert stream(tokenizer, [end], skip_special_tokens=False) == ["<end>", ""]
    assert stream(tokenizer, [9999, a]) == ["", "a", ""]


@pytest.mark.parametrize(
    ("kind", "first", "going_on"),
    [("llama", "a", " a"), ("metaspace", "a", " a"), ("gemma", " a", " a")],
)
def test_space_in_front(kind: str, first: str, going_on: str) -> None:
    tokenizer = KINDS[kind]()
    a, end = tokenizer.token_id(f"{SPACE}a"), tokenizer.token_id("<end>")
    assert a is not None
    assert end is not None
    assert stream(tokenizer, [a, a]) == [first, " a", ""]
    assert stream(tokenizer, [end, a]) == ["", first, ""]
    assert stream(tokenizer, [a, a], continues=True) == [going_on, " a", ""]


def test_word_pieces_cannot_be_streamed() -> None:
    library = Library(models.WordLevel({"a": 0}, unk_token="a"))
    library.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="decodes by WordPiece, which cannot be streamed"):
        Tokenizer(library).decode_stream()


def test_real_tokenizer(smollm2: Path) -> None:  # noqa: F811
    with open_checkpoint(smollm2) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    assert tokenizer is not None
    for text in TEXTS:
        ids = tokenizer.encode([text])[0].ids
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == text
        assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)
