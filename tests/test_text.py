"""The tokenizer: lengths, truncation and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from softgate.checkpoint import CheckpointError
from softgate.text import Tokenizer
from weights import minilm  # noqa: F401

WORDS = ["the", "heddle", "lifts", "warp", "and", "weft", "cloth", "a"]
CLS, SEP, UNKNOWN = 1, 2, 3


def tokenizer_json() -> dict[str, Any]:
    """A small BERT-like tokenizer whose own settings truncate and pad."""
    vocabulary = {"[PAD]": 0, "[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNKNOWN}
    vocabulary |= {word: index for index, word in enumerate(WORDS, len(vocabulary))}
    special = [
        {"id": index, "content": content, "special": True, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for content, index in vocabulary.items() if content.startswith("[")
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": {
            "max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right",
        },
        "padding": {
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]}
                for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    return Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_neither_padded_nor_truncated_on_its_own(tokenizer: Tokenizer) -> None:
    short, long, empty = tokenizer.encode(["the warp", " ".join(WORDS), ""], max_length=99)
    assert short.ids == [CLS, 4, 7, SEP]
    assert long.ids == [CLS, *range(4, 4 + len(WORDS)), SEP]
    assert empty.ids == [CLS, SEP]
    for encoding in (short, long, empty):
        assert encoding.type_ids == [0] * len(encoding.ids)
        assert not encoding.truncated


def test_truncation_keeps_special_tokens(tokenizer: Tokenizer) -> None:
    text = " ".join(WORDS)
    for length in range(2, len(WORDS) + 4):
        (encoding,) = tokenizer.encode([text], max_length=length)
        kept = min(length - 2, len(WORDS))
        assert encoding.ids == [CLS, *range(4, 4 + kept), SEP]
        assert len(encoding.type_ids) == len(encoding.ids)
        assert encoding.truncated == (kept < len(WORDS))


def test_too_long_is_an_error_when_asked(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"texts\[1\] has 5 tokens, expected at most 4"):
        tokenizer.encode(["the warp", "the warp the"], max_length=4, truncate=False)


def test_no_room_for_special_tokens(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_length is 1, expected at least 2"):
        tokenizer.encode(["the"], max_length=1)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("the warp", TypeError, "texts is a str"),
        (b"the warp", TypeError, "texts is a bytes"),
        (None, TypeError, "texts is a NoneType"),
        ({"the"}, TypeError, "texts is a set"),
        (iter(["the"]), TypeError, "texts is a list_iterator"),
        (["the", None], TypeError, r"texts\[1\] is a NoneType, expected str"),
        (["the", b"warp"], TypeError, r"texts\[1\] is a bytes, expected str"),
        ([["the"]], TypeError, r"texts\[0\] is a list, expected str"),
        (["the", "a\ud800"], ValueError, r"texts\[1\] holds a lone surrogate at character 1"),
    ],
)
def test_what_is_not_text(
    tokenizer: Tokenizer, texts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tokenizer.encode(texts, max_length=8)


def test_odd_text_is_text(tokenizer: Tokenizer) -> None:
    for text in ("\0", "\ufeff", "a\u0301", "\U0010ffff", " ", "\n", "x" * 10_000):
        (encoding,) = tokenizer.encode([text], max_length=8)
        assert 2 <= len(encoding.ids) <= 8
    assert tokenizer.encode([], max_length=8) == []
    assert len(tokenizer.encode(("the", "a"), max_length=8)) == 2


def test_decode(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["the warp"], max_length=8)[0].ids
    assert tokenizer.decode(ids) == "the warp"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "[CLS] the warp [SEP]"


def test_vocab_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == len(WORDS) + 4


def test_to_json_reads_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "again.json").write_text(tokenizer.to_json(), encoding="utf-8")
    again = Tokenizer.from_file(tmp_path / "again.json")
    texts = ["the warp", " ".join(WORDS)]
    assert again.encode(texts, max_length=6) == tokenizer.encode(texts, max_length=6)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b"[" * 200_000, b'{"version":"1.0","model":{}}']
)
def test_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not a tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("damage", ["template", "unknown"])
def test_tokenizer_that_contradicts_itself(tmp_path: Path, damage: str) -> None:
    content = tokenizer_json()
    if damage == "template":
        content["post_processor"]["single"][0]["SpecialToken"]["id"] = "[NOT]"
    else:
        content["model"]["unk_token"] = "[NOT]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json").encode(["odd"], max_length=4)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_real_tokenizer_agrees_with_transformers(minilm: Path) -> None:  # noqa: F811
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.from_file(minilm / "tokenizer.json")
    oracle = transformers.AutoTokenizer.from_pretrained(minilm)
    texts = ["A heddle lifts the warp.", "", "Käse für 3 €", "織物", "word " * 300, "x" * 200]
    for length in (2, 3, 7, 256):
        found = tokenizer.encode(texts, max_length=length)
        expected = oracle(texts, truncation=True, max_length=length, padding=False)
        assert [encoding.ids for encoding in found] == expected["input_ids"]
        assert [encoding.type_ids for encoding in found] == expected["token_type_ids"]
    assert tokenizer.vocab_size == 30522
