"""Tokenizers from GGUF metadata alone, against transformers, tokenizers and SentencePiece."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import softgate.ops
import tokenizers
import transformers
from gguf_files import minimal, write_file
from softgate.checkpoint import CheckpointError, open_checkpoint
from softgate.text import Tokenizer
from softgate.text.bytelevel import BYTES, token_bytes
from softgate.text.gguf import _WORDS, build_tokenizer
from transformers.integrations.gguf import gguf_tokenizer_mapping
from weights import smollm2  # noqa: F401

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "Hello world",
    " leading and trailing ",
    "a  b   c    d\n\n\n  e\t\tf\r\n\r\ng\u00a0h\u3000i",
    "1 22 333 4,444.5 6e-10 ²³ ٣ Ⅷ 0x1F",
    "don't I'LL you've WE'RE it's 'quoted'",
    "def f(x: int) -> str:\n    return f'{x ** 2!r}'  # comment\n\n\nclass A:\n\tpass\n",
    "안녕하세요 세계! 한국어로 된 문장입니다.",
    "日本語のテキスト、漢字とかな。",
    "مرحبا بالعالم שלום",
    "🎉 👨‍👩‍👧‍👦 🏳️‍🌈 e\u0301 Å",
    "naïve café — “quotes”… €5",
    "CamelCaseWords and ALLCAPS and snake_case/paths/like.this",
    "\0\x01\x7f\ufeff\ufffd",
    Path(softgate.ops.__file__).read_text(),
]
# Where white space of some length comes before a digit: see the test that uses it.
SPACED_DIGITS = ["a  12", "x:  1\n    2", "\n\n3", "\t 4", "of   5 and  6 "]


def test_real_tokenizer_agrees_with_transformers(smollm2: Path) -> None:  # noqa: F811
    oracle = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    with open_checkpoint(smollm2) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    assert tokenizer is not None
    assert tokenizer.vocab_size == len(oracle) == 49152
    for role, token in oracle.special_tokens_map.items():
        assert tokenizer.special_tokens[role.removesuffix("_token")] == token
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.num_special_tokens == 0
    texts = [text for text in TEXTS if not any(c.isnumeric() for c in text)]
    texts += ["<|im_start|>user\nhi<|im_end|>", "1 22 333 4,444.5", "a<|endoftext|> b"]
    for text in texts:
        (encoding,) = tokenizer.encode([text])
        assert encoding.ids == oracle(text)["input_ids"], text
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
    # transformers reads no `tokenizer.ggml.pre` of "smollm", which cuts digits off before words:
    # so does the tokenizer that this model was trained with. It matters where spaces come before.
    oracle.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    for text in TEXTS + SPACED_DIGITS:
        (encoding,) = tokenizer.encode([text])
        assert encoding.ids == oracle(text)["input_ids"], text
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text


def test_special_tokens_are_left_out_of_text(smollm2: Path) -> None:  # noqa: F811
    with open_checkpoint(smollm2) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    assert tokenizer is not None
    (encoding,) = tokenizer.encode(["<|im_start|>user\nhi<|im_end|>"])
    assert encoding.ids[0] == 1
    assert encoding.ids[-1] == tokenizer.token_id("<|im_end|>") == 2
    assert tokenizer.decode(encoding.ids) == "user\nhi"
    assert {0, 1, 2} <= tokenizer.special_ids
    assert tokenizer.token_id("no such token") is None


# Byte-level BPE


def byte_level(**changes: Any) -> dict[str, Any]:
    """All bytes, a control and a user-defined token, and a few merges."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ Ġ", "Ġ w"]
    tokens = ["<s>", "</s>", "<tool>", *sorted(BYTES)]
    tokens += [merge.replace(" ", "") for merge in merges]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3, 3, 4] + [1] * (len(tokens) - 3), np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def test_alphabet_is_the_librarys() -> None:
    assert set(BYTES) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pre = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in TEXTS:
        pieces = pre.pre_tokenize_str(text)
        assert b"".join(token_bytes(piece) for piece, _ in pieces) == text.encode()


def words(pre: str, text: str) -> list[str]:
    tokenizer = build_tokenizer(byte_level(pre=pre))
    return [
        token_bytes(piece).decode() for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)
    ]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", "It|'s| 1234| | x|/|y| aBcD"),
        ("smollm", "It|'s| |1|2|3|4| | x|/|y| aBcD"),
        ("llama-bpe", "It|'s| |123|4| | x|/y| aBcD"),
        ("qwen2", "It|'s| |1|2|3|4| | x|/y| aBcD"),
        ("gpt-4o", "It's| |123|4| | x|/y| a|Bc|D"),
        ("tekken", "It|'s| |1|2|3|4| | x|/y| a|Bc|D"),
    ],
)
def test_words(pre: str, expected: str) -> None:
    assert words(pre, "It's 1234  x/y aBcD") == expected.split("|")


@pytest.mark.parametrize("pre", _WORDS)
def test_patterns_are_transformers(pre: str) -> None:
    theirs = gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS.get(pre)
    ours = words(pre, "\n".join(TEXTS))
    assert "".join(ours) == "\n".join(TEXTS)
    if theirs is not None:
        splits = tokenizers.pre_tokenizers.Split(tokenizers.Regex(theirs), "isolated")
        assert ours == [piece for piece, _ in splits.pre_tokenize_str("\n".join(TEXTS))]


def test_byte_level_pieces() -> None:
    tokenizer = Tokenizer(build_tokenizer(byte_level()))
    for text in TEXTS:
        ids = tokenizer.encode([text])[0].ids
        assert tokenizer.decode(ids) == text
    ids = tokenizer.encode(["hello<tool>  w</s>"])[0].ids
    assert [tokenizer.decode([i], skip_special_tokens=False) for i in ids] == [
        "hello", "<tool>", " ", " w", "</s>",
    ]  # fmt: skip
    assert tokenizer.decode(ids) == "hello<tool>  w"


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        ({}, 0, 0),
        ({"add_bos_token": True}, 1, 0),
        ({"add_eos_token": True}, 0, 1),
        ({"add_bos_token": True, "add_eos_token": True}, 1, 1),
        ({"pre": "llama-bpe"}, 1, 0),
        ({"pre": "llama-bpe", "add_bos_token": False}, 0, 0),
        ({"add_bos_token": True, "bos_token_id": None}, 0, 0),
    ],
)
def test_bos_and_eos(changes: dict[str, Any], before: int, after: int) -> None:
    tokenizer = Tokenizer(build_tokenizer(byte_level(**changes)))
    (encoding,) = tokenizer.encode(["he"])
    assert encoding.ids == [0] * before + [tokenizer.token_id("he")] + [1] * after
    assert tokenizer.num_special_tokens == before + after
    (encoding,) = tokenizer.encode(["he"], add_special_tokens=False)
    assert encoding.ids == [tokenizer.token_id("he")]
    (encoding,) = tokenizer.encode(["hello hello"], max_length=before + after + 1)
    assert encoding.ids == [0] * before + [tokenizer.token_id("hello")] + [1] * after
    (encoding,) = tokenizer.encode(["hello hello"], max_length=1, add_special_tokens=False)
    assert encoding.ids == [tokenizer.token_id("hello")]
    assert encoding.truncated


def test_words_that_no_merge_makes() -> None:
    """Llama 3 takes a word that is a token whole, whatever the merges say."""
    changes = byte_level()
    tokens = [*changes["tokenizer.ggml.tokens"], "xyz"]
    types = np.append(changes["tokenizer.ggml.token_type"], np.int32(1))
    for pre, whole in (("gpt-2", False), ("llama-bpe", True), ("dbrx", False), ("tekken", True)):
        metadata = byte_level(pre=pre, tokens=tokens, token_type=types, add_bos_token=False)
        tokenizer = Tokenizer(build_tokenizer(metadata))
        assert (len(tokenizer.encode(["xyz"])[0].ids) == 1) == whole


def test_composed_text() -> None:
    for pre, composed in (("qwen2", True), ("gpt-2", False)):
        tokenizer = Tokenizer(build_tokenizer(byte_level(pre=pre)))
        text = tokenizer.decode(tokenizer.encode(["e\u0301"])[0].ids)
        assert text == ("\u00e9" if composed else "e\u0301")


# SentencePiece


@pytest.fixture(scope="module")
def sentence_piece() -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    lines = [line for text in TEXTS for line in text.split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<tool>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def metadata_of(processor: sentencepiece.SentencePieceProcessor, **changes: Any) -> dict[str, Any]:
    pieces = range(processor.get_piece_size())

    def kind(index: int) -> int:
        if processor.is_unknown(index):
            return 2
        if processor.is_control(index):
            return 3
        if processor.id_to_piece(index) == "<tool>":
            return 4
        return 6 if processor.is_byte(index) else 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(index) for index in pieces],
        "tokenizer.ggml.scores": np.array([processor.get_score(i) for i in pieces], np.float32),
        "tokenizer.ggml.token_type": np.array([kind(index) for index in pieces], np.int32),
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def test_sentence_piece(sentence_piece: sentencepiece.SentencePieceProcessor) -> None:
    tokenizer = Tokenizer(build_tokenizer(metadata_of(sentence_piece)))
    bos = sentence_piece.bos_id()
    for text in [*TEXTS, *SPACED_DIGITS]:
        expected = sentence_piece.encode(text)
        assert tokenizer.encode([text])[0].ids == [bos, *expected]
        assert tokenizer.decode([bos, *expected]) == sentence_piece.decode(expected) == text
    assert any(sentence_piece.is_byte(i) for text in TEXTS for i in sentence_piece.encode(text))


def test_sentence_piece_puts_a_space_after_special_tokens(
    sentence_piece: sentencepiece.SentencePieceProcessor,
) -> None:
    """As llama.cpp does, and files of Llama 2's time ask for."""
    metadata = metadata_of(sentence_piece, add_bos_token=False)
    tokenizer = Tokenizer(build_tokenizer(metadata))
    for text in ("</s>def", "<tool>def"):
        ids = tokenizer.encode([text])[0].ids
        assert ids[1:] == sentence_piece.encode("def")
    metadata["tokenizer.ggml.add_space_prefix"] = False
    tokenizer = Tokenizer(build_tokenizer(metadata))
    ids = tokenizer.encode(["</s>def x"])[0].ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == "</s>def x"
    assert ids[1:] != sentence_piece.encode("def x")
    assert tokenizer.encode([" def x"])[0].ids == sentence_piece.encode("def x")


def test_phi_3_drops_space_after_special_tokens(
    sentence_piece: sentencepiece.SentencePieceProcessor,
) -> None:
    metadata = metadata_of(sentence_piece) | {"general.architecture": "phi3"}
    tokenizer = Tokenizer(build_tokenizer(metadata))
    plain = Tokenizer(build_tokenizer(metadata_of(sentence_piece)))
    for text in ("</s>\n def", "</s>   def", "</s>def"):
        assert tokenizer.encode([text])[0].ids == plain.encode(["</s>def"])[0].ids
    assert tokenizer.encode(["<s>  def"])[0].ids == plain.encode(["<s>  def"])[0].ids


def test_gemma_merges_in_the_tokens_order() -> None:
    """Its scores say nothing, and its runs of spaces are spelled as such."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "  ", "   ", "ab", "bc", "abc", "\u2581", *"abc"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    count = len(tokens)
    metadata = {
        "general.architecture": "gemma2",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.arange(count, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array([3, 3, 3, 2, 4, 4, *[1] * 7, *[6] * 256], np.int32),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = Tokenizer(build_tokenizer(metadata))
    assert tokenizer.encode(["bc"])[0].ids == [2, 7]
    assert tokenizer.encode(["abc"])[0].ids == [2, 8]
    assert tokenizer.encode(["a  bc   a"])[0].ids == [2, 10, 4, 7, 5, 10]
    assert tokenizer.decode([2, 10, 4, 7, 5, 10]) == "a  bc   a"
    both = [*tokens[:-1], "\u2581\u2581"]  # a file that has both spellings keeps them apart
    kept = build_tokenizer(metadata | {"tokenizer.ggml.tokens": both})
    assert kept.token_to_id("  ") == 4
    assert kept.token_to_id("\u2581\u2581") == count - 1
    names = ("architecture", "tokens", "tokenizer_type")
    theirs = dict(zip(names, ("gemma2", tokens, "llama"), strict=True))
    oracle = gguf_tokenizer_mapping.gemma_tokenizer(theirs)
    for text in ("a  bc   abc ab c", "aabbcc    b", "한 a"):
        expected = oracle.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode([text], add_special_tokens=False)[0].ids == expected


# Broken data


def without(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name != f"tokenizer.ggml.{key}"}


TYPES = byte_level()["tokenizer.ggml.token_type"]
BROKEN = {
    "model": (byte_level(model="rwkv"), "tokenizer.ggml.model is 'rwkv', supported are gpt2"),
    "no model": (without(byte_level(), "model"), "tokenizer.ggml.model is None"),
    "pre": (byte_level(pre="x"), "tokenizer.ggml.pre is 'x', supported: default, gpt-2"),
    "pre number": (byte_level(pre=1), "tokenizer.ggml.pre is 1"),
    "no tokens": (byte_level(tokens=[]), "tokens is missing or not an array of strings"),
    "tokens": (byte_level(tokens=np.arange(3)), "tokens is missing or not an array of strings"),
    "mixed": (byte_level(tokens=[["a"]]), "tokens is missing or not an array of strings"),
    "twice": (byte_level(tokens=["a", "b", "a"]), "tokenizer.ggml.tokens has 'a' twice"),
    "no types": (without(byte_level(), "token_type"), "token_type is missing or not an array"),
    "few types": (byte_level(token_type=TYPES[1:]), "token_type has 264 elements, expected 265"),
    "real types": (byte_level(token_type=TYPES / 2), "token_type is missing or not an array"),
    "no merges": (without(byte_level(), "merges"), "merges is missing or not an array"),
    "one part": (byte_level(merges=["he"]), "merges has 'he', expected two tokens with a space"),
    "three parts": (byte_level(merges=["h e l"]), "merges has 'h e l', expected two tokens"),
    "strange merge": (byte_level(merges=["h \u4e00"]), "the GGUF file's tokenizer is broken"),
    "no join": (byte_level(merges=["x y"]), "the GGUF file's tokenizer is broken"),
    "bos": (byte_level(bos_token_id=265), "the tokenizer's bos id is 265, expected less than 265"),
    "eos": (byte_level(eos_token_id=-1), "the tokenizer's eos id is -1, expected less than 265"),
    "unk": (byte_level(unknown_token_id="x"), "the tokenizer's unk id is 'x', expected less"),
    "flag": (byte_level(add_bos_token=1), "tokenizer.ggml.add_bos_token is 1, expected a boolean"),
    "no scores": (byte_level(model="llama"), "the GGUF file's tokenizer is broken: .*scores is"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data(case: str) -> None:
    metadata, message = BROKEN[case]
    if case == "no scores":
        metadata = without(metadata, "merges")
    with pytest.raises(CheckpointError, match=message):
        build_tokenizer(metadata)


def test_long_tokens_take_no_time() -> None:
    """Splits of a token are as many as its characters, and each is as long."""
    tokens = ["<unk>", "a", *("a" * length for length in range(100_000, 100_064))]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.token_type": np.ones(len(tokens), np.int32),
    }
    assert build_tokenizer(metadata).get_vocab_size() == len(tokens)


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    metadata, tensors = minimal()
    path = write_file(tmp_path / "model.gguf", "llama", metadata | _as_lists(byte_level()), tensors)
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(CheckpointError, match="the tokenizer has 265 tokens, the embedding 96"),
    ):
        Tokenizer.from_checkpoint(checkpoint)


def test_no_tokenizer(tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.gguf", "llama", *minimal())
    with open_checkpoint(path) as checkpoint:
        assert Tokenizer.from_checkpoint(checkpoint) is None


def _as_lists(metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in metadata.items()
    }
