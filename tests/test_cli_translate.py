"""`softgate translate`, with a small random encoder-decoder and stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click.testing
import pytest
import softgate
from language import Model, random_logits
from softgate.cli import main
from softgate.generation import BeamSearch
from softgate.models.seq2seq import Seq2Seq, Seq2SeqConfig
from softgate.models.transformer import Transformer
from softgate.models.transformer_config import TransformerConfig
from softgate.text import Tokenizer

WORDS = "the warp and weft of cloth"


@pytest.fixture
def model() -> Seq2Seq:
    source = Tokenizer.train("whitespace", [WORDS])
    target = Tokenizer.train("syllable", ["날실과 씨실"])
    config = Seq2SeqConfig(
        source.vocab_size, target.vocab_size, 8, 8, 8, attention="dot", max_length=10
    )
    model = Seq2Seq(config, seed=None)
    model.init_weights(seed=1, std=0.5)
    model.source_tokenizer, model.target_tokenizer = source, target
    return model


@pytest.fixture
def folder(model: Seq2Seq, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def run(*arguments: object, stdin: str | None = None) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [*map(str, arguments)], input=stdin)


def test_texts_are_translated(model: Seq2Seq, folder: Path) -> None:
    texts = ["the warp", "weft of the cloth", "of"]
    expected = model.translate(texts)
    result = run("translate", "--model", folder, *texts)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == expected
    greedy = model.translate(texts, num_beams=1, early_stopping=True, max_new_tokens=4)
    result = run("translate", "--model", folder, "--num-beams", 1, "--max-new-tokens", 4, *texts)
    assert result.stdout.splitlines() == greedy


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_lines_become_json_lines(
    model: Seq2Seq, folder: Path, tmp_path: Path, batch_size: int
) -> None:
    texts, output = ["the warp", "weft of the cloth", "of"], tmp_path / "out.jsonl"
    result = run(
        "translate", "--model", folder, "--input", "-", "--output", output, "--num-return", 2,
        "--batch-size", batch_size, "--length-penalty", 0.5, stdin="\n".join(texts),
    )  # fmt: skip
    assert result.exit_code == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [row["index"] for row in rows] == [0, 1, 2]
    found = model.generate(texts, num_return=2, length_penalty=0.5)
    for row, best in zip(rows, found, strict=True):
        assert [one["text"] for one in row["translations"]] == [one.text for one in best]
        assert [one["score"] for one in row["translations"]] == pytest.approx(
            [one.score for one in best], rel=1e-6
        )


def test_ctrl_c_keeps_what_is_finished(
    model: Seq2Seq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(9))
    generate = model.generate

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(model, "generate", interrupted)
    monkeypatch.setattr(softgate, "load", lambda spec: model)
    output = tmp_path / "out.jsonl"
    result = run("translate", "--model", "x", "--output", output, "--batch-size", 1, *WORDS.split())
    assert result.exit_code == 130
    assert "kept 2 of 6 texts" in result.stderr
    assert len(output.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either TEXTS or --input"),
        (["--input", "-", "a"], "give either TEXTS or --input"),
        (["a", " "], "text 2 of 2 is empty"),
        (["--num-beams", 0, "a"], "num_beams is 0, expected at least 1"),
        (["--num-return", 5, "a"], "num_return is 5, expected at most num_beams, 4"),
        (["--max-new-tokens", 11, "a"], "max_new_tokens is 11, expected at most 10"),
        (["--num-beams", 100, "a"], "num_beams is 100, expected at most"),
    ],
)
def test_what_is_refused(folder: Path, arguments: list[Any], message: str) -> None:
    result = run("translate", "--model", folder, *arguments, stdin="")
    assert result.exit_code == 2
    assert message in result.stderr


def test_other_models_and_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("generate", "embed"):
        result = run(command, "--model", folder, "the warp")
        assert result.exit_code == 2
        assert "is a Seq2Seq, expected no encoder-decoder" in result.stderr
    monkeypatch.setattr(softgate, "load", lambda spec: Model(random_logits()))
    result = run("translate", "--model", "x", "a")
    assert result.exit_code == 2
    assert "x is a Model, expected an encoder-decoder" in result.stderr


def test_a_transformer_searches_as_its_folder_says(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train("whitespace", [WORDS])
    sizes = {"hidden_size": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    model = Transformer(TransformerConfig(vocab_size=tokenizer.vocab_size, **sizes), seed=None)
    model.init_weights(seed=2, std=0.5)
    model.source_tokenizer = model.target_tokenizer = tokenizer
    model.beams = BeamSearch(num_beams=3, max_new_tokens=4, no_repeat_ngram=1)
    model.save(tmp_path)
    result = run("translate", "--model", tmp_path, "the warp", "cloth")
    assert result.stdout.splitlines() == model.translate(["the warp", "cloth"])
    longer = model.translate(["cloth"], max_new_tokens=6, num_beams=2)
    result = run("translate", "--model", tmp_path, "--max-new-tokens", 6, "--num-beams", 2, "cloth")
    assert result.stdout.splitlines() == longer
    assert "softgate_transformer" in run("info", "--model", tmp_path).stdout
