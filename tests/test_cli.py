"""`softgate embed` and `softgate info`, on a model that stands in for a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click.testing
import numpy as np
import pytest
import softgate
from softgate.checkpoint import CheckpointError
from softgate.cli import main
from softgate.text import Encoding

HIDDEN = 4


class StandIn:
    """Embeds a text as its number of words, the first three letters, and nothing else."""

    config = SimpleNamespace(
        model_type="bert",
        num_hidden_layers=6,
        hidden_size=384,
        num_attention_heads=12,
        vocab_size=30522,
    )
    max_length = 6
    pooling = "mean"

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(encode=self.tokenize)
        self.batches: list[list[str]] = []
        self.options: dict[str, Any] = {}

    def tokenize(self, texts: Sequence[str], *, max_length: int) -> list[Encoding]:
        lengths = [len(text.split()) + 2 for text in texts]
        return [
            Encoding(
                [0] * min(length, max_length), [0] * min(length, max_length), length > max_length
            )
            for length in lengths
        ]

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray[Any, Any]:
        self.batches.append(list(texts))
        self.options = options
        return np.array([embedding(text) for text in texts])

    def num_parameters(self) -> int:
        return 22_713_216

    def nbytes(self) -> int:
        return 90_852_864


def embedding(text: str) -> np.ndarray[Any, Any]:
    letters = [ord(letter) / 7 for letter in text[:3].ljust(3)]
    return np.array([len(text.split()), *letters], np.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(softgate, "load", lambda spec: stand_in)
    return stand_in


def run(*arguments: object, stdin: str | bytes | None = None) -> click.testing.Result:
    runner = click.testing.CliRunner()
    return runner.invoke(main, [str(argument) for argument in arguments], input=stdin)


def embed(*arguments: object, stdin: str | bytes | None = None) -> click.testing.Result:
    return run("embed", "--model", "stand-in", *arguments, stdin=stdin)


def refused(result: click.testing.Result) -> str:
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    return result.stderr


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Printed


@pytest.mark.usefixtures("model")
def test_one_text_prints_its_values() -> None:
    result = embed("abc")
    assert result.exit_code == 0
    assert result.stdout == "4 dimensions: 1.0000 13.8571 14.0000 14.1429 ...\n"


@pytest.mark.usefixtures("model")
def test_several_texts_print_their_cosines() -> None:
    texts = ["the warp", "the weft and the warp", "\t" + "x" * 60]
    result = embed(*texts)
    assert result.exit_code == 0
    vectors = [embedding(text) / np.linalg.norm(embedding(text)) for text in texts]
    lines = result.stdout.splitlines()
    assert (
        lines[0].split() == f"{vectors[0] @ vectors[1]:.4f} the warp the weft and the warp".split()
    )
    assert lines[1].split()[0] == f"{max(vectors[0] @ vectors[2], vectors[1] @ vectors[2]):.4f}"
    assert lines[1].endswith("x" * 36 + "...")
    assert len(lines) == 3


# Files


def test_npy_holds_every_line(model: StandIn, tmp_path: Path) -> None:
    texts = [f"line {'word ' * (index % 5)}{index}" for index in range(3000)]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    result = embed(
        "--input", tmp_path / "in.txt", "--output", tmp_path / "out.npy", "--batch-tokens", 50
    )
    assert (result.exit_code, result.stdout) == (0, "")
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [embedding(text) for text in texts])
    for batch in model.batches:
        assert sum(min(len(text.split()) + 2, 6) for text in batch) <= 50
    assert max(map(len, model.batches)) > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]


@pytest.mark.usefixtures("model")
def test_json_lines_read_back_exactly(tmp_path: Path) -> None:
    texts = ["the warp", "", 'a "quoted"\ttext', "Käse 織物\u2028", "end"]
    (tmp_path / "in.txt").write_bytes("\r\n".join([*texts, ""]).encode("utf-8-sig"))
    result = embed("--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl")
    assert result.exit_code == 0
    content = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in content.removesuffix("\n").split("\n")]
    assert [row["index"] for row in rows] == list(range(len(texts)))
    assert [row["text"] for row in rows] == texts
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_array_equal(np.array(row["embedding"], np.float32), embedding(text))


@pytest.mark.usefixtures("model")
def test_standard_input(tmp_path: Path) -> None:
    result = embed("--input", "-", "--output", tmp_path / "out.jsonl", stdin="one\n\ntwo\n")
    assert result.exit_code == 0
    assert [row["text"] for row in read_json_lines(tmp_path / "out.jsonl")] == ["one", "", "two"]


def test_options_reach_the_model(model: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(softgate, "set_num_threads", counts.append)
    embed("a", "--no-normalize", "--max-length", 3, "--batch-tokens", 7, "--threads", 2)
    assert model.options == {"normalize": False, "max_length": 3, "batch_tokens": 7}
    assert counts == [2]
    embed("a")
    assert model.options == {"normalize": None, "max_length": 6, "batch_tokens": 8192}


@pytest.mark.usefixtures("model")
def test_truncation_is_said() -> None:
    result = embed("a b c d e", "a b", "a b c d e f")
    assert result.exit_code == 0
    assert result.stderr == "2 of 3 texts were cut to 6 tokens\n"
    assert embed("a b c d").stderr == ""


@pytest.mark.usefixtures("model")
def test_truncation_is_refused_when_asked(tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    text = "a b\n" * 2000 + "a b c d e\n"
    result = embed("--no-truncate", "--input", "-", "--output", output, stdin=text)
    assert "text 2001 of 2001 has more than 6 tokens" in refused(result)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


# Refused


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], None, "give either TEXTS or --input"),
        (["a", "--input", "-"], "b", "give either TEXTS or --input"),
        (["--input", "-"], "", "<stdin> is empty"),
        (["--input", "-"], b"good\nb\xffd\n", "line 2 is not UTF-8"),
        (["--input", "absent.txt"], None, "absent.txt"),
        (["--input", "."], None, "directory"),
        (["--input", "-"], "line\n" * 21, "give --output for more than 20 texts"),
        (["a", "--output", "out.txt"], None, "expected a name in .npy or .jsonl"),
        (["a", "--output", "absent/out.npy"], None, "No such file or directory"),
        (["a", "--output", "folder.npy"], None, "is a directory"),
        (["a", "--batch-tokens", "0"], None, "--batch-tokens"),
        (["a", "--max-length", "-1"], None, "--max-length"),
        (["a", "--threads", "0"], None, "--threads"),
    ],
)
def test_bad_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    stdin: str | bytes | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.npy").mkdir()
    assert message in refused(embed(*arguments, stdin=stdin))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npy"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CheckpointError("model.safetensors: lies"), "Error: model.safetensors: lies"),
        (PermissionError(13, "Permission denied", "x"), "Error: x: Permission denied"),
        (MemoryError(), "Error: out of memory"),
    ],
)
def test_model_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(spec: str) -> None:
        raise error

    monkeypatch.setattr(softgate, "load", fail)
    assert message in refused(embed("a", "--output", tmp_path / "out.npy"))
    assert list(tmp_path.iterdir()) == []
    assert message in refused(run("info", "--model", "x"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.usefixtures("model")
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert "No space left" in refused(embed("a", "--output", tmp_path / "out.npy"))
    assert list(tmp_path.iterdir()) == []


# Interrupted

INTERRUPTIBLE = """
import sys, time
sys.path[:0] = {path!r}
import softgate
from test_cli import StandIn

class Slow(StandIn):
    def encode(self, texts, **options):
        if len(self.batches) == {batches}:
            print("waiting", flush=True)
            time.sleep(600)
        return super().encode(texts, **options)

softgate.load = lambda spec: Slow()
from softgate.cli import main
main()
"""


def interrupt(arguments: Sequence[object], batches: int) -> subprocess.CompletedProcess[str]:
    """Run embed in a process of its own and press Ctrl-C after some batches."""
    script = INTERRUPTIBLE.format(path=sys.path, batches=batches)
    command = [sys.executable, "-c", script, "embed", "--model", "slow", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        waiting = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert waiting == "waiting\n", errors
    assert "Traceback" not in errors
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"text {index}\n" for index in range(100)))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_ctrl_c_keeps_what_is_finished(lines: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    # Four tokens a text, so ten texts a batch.
    result = interrupt(["--input", lines, "--output", output, "--batch-tokens", 40], batches=3)
    assert result.returncode == 130
    assert "kept the first 30 of 100 lines" in result.stderr
    expected = [embedding(f"text {index}") for index in range(30)]
    if suffix == ".npy":
        found = np.load(output)
    else:
        found = np.array([row["embedding"] for row in read_json_lines(output)], np.float32)
    np.testing.assert_array_equal(found, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", output.name]


def test_ctrl_c_before_anything_keeps_the_old_file(lines: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    result = interrupt(["--input", lines, "--output", output], batches=0)
    assert result.returncode == 130
    assert "nothing was written" in result.stderr
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_ctrl_c_in_the_middle_of_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    from softgate import cli

    writer = cli.WRITERS[suffix]
    append = writer.append

    def torn(self: Any, texts: Sequence[str], embeddings: np.ndarray[Any, Any]) -> None:
        if self.rows == 4:
            self._file.write(b"half a row")
            self._file.flush()
            raise KeyboardInterrupt
        append(self, texts, embeddings)

    monkeypatch.setattr(writer, "append", torn)
    output = tmp_path / f"out{suffix}"
    texts = "".join(f"{index}\n" for index in range(9))
    result = embed("--input", "-", "--output", output, "--batch-tokens", 6, stdin=texts)
    assert result.exit_code == 130
    assert "kept the first 4 of 9 lines" in result.stderr
    count = len(np.load(output)) if suffix == ".npy" else len(read_json_lines(output))
    assert count == 4


# Described


def test_info(monkeypatch: pytest.MonkeyPatch, model: StandIn) -> None:
    alone = run("info")
    assert alone.exit_code == 0
    assert alone.stdout.startswith(f"softgate    {softgate.__version__}\nisa         ")
    described = run("info", "--model", "stand-in")
    assert described.stdout.startswith(alone.stdout)
    found = dict(line.split(maxsplit=1) for line in described.stdout.splitlines())
    assert found["isa"].startswith(softgate.isa())
    assert found["threads"] == str(softgate.num_threads())
    assert found["parameters"] == "22,713,216"
    assert found["memory"] == "86.6 MiB"
    assert found["heads"] == "12"


def test_help_is_light() -> None:
    script = (
        "import sys\nfrom softgate.cli import main\n"
        "main(['embed', '--help'], standalone_mode=False)\n"
        "heavy = {'tokenizers', 'huggingface_hub', 'tqdm', 'torch', 'transformers'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"
