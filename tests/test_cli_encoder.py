"""`softgate fill-mask` and `softgate classify`, on tiny models saved to folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click.testing
import pytest
import softgate
from softgate.cli import encoder, main
from test_bert_tasks import TEXTS, make

Result = click.testing.Result
MASKED = ["The [MASK] lifts the warp.", "a loom weaves [MASK] .", "[MASK]"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models by what they are for."""
    models = {
        "mask": make("masked-lm"),
        "classes": make("sequence-classification"),
        "score": make("sequence-classification", ("fit",)),
        "encoder": make(None),
    }
    found = {}
    for name, model in models.items():
        found[name] = tmp_path_factory.mktemp(name)
        model.save(found[name])
    return found


def run(command: str, folder: Path, *arguments: object, stdin: Any = None) -> Result:
    runner = click.testing.CliRunner()
    words = [command, "--model", str(folder), *map(str, arguments)]
    return runner.invoke(main, words, input=stdin)


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    return result.stderr


def json_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_fill_mask_prints_texts(folders: dict[str, Path]) -> None:
    result = run("fill-mask", folders["mask"], *MASKED, "--top-k", 2)
    assert result.exit_code == 0, result.output
    expected = softgate.load(folders["mask"]).fill_masks(MASKED, 2)
    lines = [f"{fill.score:.4f}  {fill.text}" for fills in expected for fill in fills]
    assert result.stdout == "".join(f"{line}\n" for line in lines)


@pytest.mark.usefixtures("rows_of_any_number")
def test_fill_mask_writes_json_lines(folders: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    lines = "".join(f"{text}\n" for text in MASKED * 50)
    arguments = ["--input", "-", "--output", output, "--top-k", 3]
    result = run("fill-mask", folders["mask"], *arguments, stdin=lines)
    assert result.exit_code == 0, result.output
    fills = softgate.load(folders["mask"]).fill_masks(MASKED, 3)
    assert json_rows(output) == [
        {
            "index": index,
            "text": MASKED[index % 3],
            "fills": [dataclasses.asdict(fill) for fill in fills[index % 3]],
        }
        for index in range(150)
    ]


def test_a_line_without_a_mask_is_named_and_nothing_is_written(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    lines = "[MASK]\n" * 99 + "none\n"
    arguments = ["--input", "-", "--output", tmp_path / "out.jsonl"]
    errors = refused(run("fill-mask", folders["mask"], *arguments, stdin=lines))
    assert "text 100 has [MASK] 0 times, expected once" in errors
    assert list(tmp_path.iterdir()) == []


def test_classify_prints_labels(folders: dict[str, Path]) -> None:
    result = run("classify", folders["classes"], *TEXTS)
    assert result.exit_code == 0, result.output
    found = softgate.load(folders["classes"]).classify(TEXTS)
    lines = [f"{c.score:.4f}  {c.label}  {text}" for c, text in zip(found, TEXTS, strict=True)]
    assert result.stdout == "".join(f"{line}\n" for line in lines)


def test_classify_writes_json_lines(folders: dict[str, Path], tmp_path: Path) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("".join(f"{text}\n" for text in TEXTS))
    result = run("classify", folders["classes"], "--input", source, "--output", output)
    assert result.exit_code == 0, result.output
    found = softgate.load(folders["classes"]).classify(TEXTS)
    assert json_rows(output) == [
        {"index": i, "text": TEXTS[i]} | dataclasses.asdict(one) for i, one in enumerate(found)
    ]


def test_pairs_are_scored(folders: dict[str, Path], tmp_path: Path) -> None:
    pairs = [("who weaves?", "a loom."), ("red", "")]
    lines = "".join(f"{first}\t{second}\n" for first, second in pairs)
    output = tmp_path / "out.jsonl"
    arguments = ["--pairs", "--input", "-", "--output", output]
    assert run("classify", folders["score"], *arguments, stdin=lines).exit_code == 0
    scores = softgate.load(folders["score"]).score_pairs(pairs).tolist()
    assert json_rows(output) == [
        {"index": i, "text": list(pairs[i]), "label": "fit", "score": s, "scores": {"fit": s}}
        for i, s in enumerate(scores)
    ]
    assert run("classify", folders["classes"], *arguments, stdin=lines).exit_code == 0
    found = softgate.load(folders["classes"]).classify(pairs)
    assert [row["label"] for row in json_rows(output)] == [one.label for one in found]


@pytest.mark.parametrize(("line", "tabs"), [("one text", 0), ("a\tb\tc", 2)])
def test_lines_that_are_no_pairs_are_refused(
    folders: dict[str, Path], line: str, tabs: int
) -> None:
    errors = refused(run("classify", folders["score"], "--pairs", "a\tb", line))
    assert f"text 2 has {tabs} tabs, expected one" in errors


def test_long_texts_are_cut_or_refused(folders: dict[str, Path]) -> None:
    long = "the " * 40
    assert run("classify", folders["classes"], long).exit_code == 0
    errors = refused(run("classify", folders["classes"], "a", long, "--no-truncate"))
    assert "text 2 has 42 tokens, expected at most 24" in errors


def test_bad_use_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for command, folder, needed in (
        ("fill-mask", "classes", "masked-lm"),
        ("classify", "mask", "sequence-classification"),
        ("classify", "encoder", "sequence-classification"),
    ):
        assert f"expected one for {needed}" in refused(run(command, folders[folder], "a"))
    assert "give either TEXTS or --input" in refused(run("classify", folders["classes"]))
    many = [str(i) for i in range(21)]
    errors = refused(run("classify", folders["classes"], *many))
    assert "give --output for more than 20 texts" in errors
    errors = refused(run("classify", folders["classes"], "a", "--output", tmp_path / "no" / "x"))
    assert "No such file or directory" in errors
    assert "--dtype" in refused(run("classify", folders["classes"], "a", "--dtype", "int3"))


@pytest.mark.parametrize("dtype", encoder.DTYPES)
def test_dtypes(folders: dict[str, Path], dtype: str) -> None:
    result = run("classify", folders["classes"], *TEXTS, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    exact = run("classify", folders["classes"], *TEXTS)
    assert (result.stdout == exact.stdout) == (dtype == "float32")
    found = run("embed", folders["encoder"], "a loom", "--dtype", dtype)
    assert found.exit_code == 0, found.output


def test_ctrl_c_keeps_what_is_finished(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "PIECE", 2)
    model = softgate.load(folders["classes"])
    calls: list[int] = []
    classify = model.classify

    def interrupted(texts: Any, **options: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(texts))
        return classify(texts, **options)

    monkeypatch.setattr(model, "classify", interrupted)
    monkeypatch.setattr(softgate, "load", lambda spec, **place: model)
    output = tmp_path / "out.jsonl"
    lines = "".join(f"{i}\n" for i in range(9))
    arguments = ["--input", "-", "--output", output]
    result = run("classify", folders["classes"], *arguments, stdin=lines)
    assert result.exit_code == 130
    assert "kept the first 4 of 9 texts" in result.stderr
    assert [row["text"] for row in json_rows(output)] == ["0", "1", "2", "3"]
    output.write_text("old")
    result = run("classify", folders["classes"], *arguments, stdin=lines)
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    assert output.read_text() == "old"
