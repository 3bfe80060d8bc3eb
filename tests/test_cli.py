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

CLS, SEP = 1, 2


class StandIn:
    """A model whose tokens are letters, and whose embedding of a text is its first letters."""

    config = SimpleNamespace(
        model_type="bert",
        task=None,
        num_hidden_layers=6,
        hidden_size=384,
        num_attention_heads=12,
        vocab_size=30522,
    )
    max_length = 12
    pooling = "mean"

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(encode=self.tokenize)
        self.batches: list[int] = []
        self.normalized: bool | None = None

    def tokenize(self, texts: Sequence[str], *, max_length: int) -> list[Encoding]:
        encodings = []
        for text in texts:
            ids = [CLS, *map(ord, text[: max_length - 2]), SEP]
            encodings.append(Encoding(ids, [0] * len(ids), len(text) > max_length - 2))
        return encodings

    def encode_batch(
        self, encodings: Sequence[Encoding], *, normalize: bool | None
    ) -> np.ndarray[Any, Any]:
        self.batches.append(sum(len(encoding.ids) for encoding in encodings))
        self.normalized = normalize
        return np.array([embedding(encoding.ids) for encoding in encodings])

    encode = encode_batch

    def num_parameters(self) -> int:
        return 22_713_216

    def nbytes(self) -> int:
        return 90_852_864

    def named_parameters(self) -> list[tuple[str, Any]]:
        sizes = {"float32": 10, "int8": 30}
        return [
            (name, SimpleNamespace(value=SimpleNamespace(dtype=name, nbytes=size)))
            for name, size in sizes.items()
        ]


def embedding(ids: Sequence[int]) -> np.ndarray[Any, Any]:
    first = [*ids[:4], 0, 0][:4]
    return np.array([len(ids), *first], np.float32) / np.float32(7)


def expected(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    encodings = StandIn().tokenize(texts, max_length=StandIn.max_length)
    return np.array([embedding(encoding.ids) for encoding in encodings])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(softgate, "load", lambda spec, **place: stand_in)
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
    content = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in content.removesuffix("\n").split("\n")]


# Printed


def test_device_and_dtype(model: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    monkeypatch.setattr(softgate, "load", lambda spec, **place: places.append(place) or model)
    assert embed("a", "--device", "cuda:1", "--dtype", "float16").exit_code == 0
    assert embed("a").exit_code == 0
    assert places == [{"device": "cuda:1", "dtype": "float16"}, {"device": None, "dtype": None}]
    assert "--dtype" in refused(embed("a", "--dtype", "int3"))


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError])
def test_device_that_there_is_not(monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    def fail(spec: str, **place: str | None) -> None:
        raise error(f"no {place['device']}")

    monkeypatch.setattr(softgate, "load", fail)
    assert "no cuda" in refused(embed("a", "--device", "cuda"))


@pytest.mark.usefixtures("model")
def test_one_text_prints_its_values() -> None:
    result = embed("abc")
    assert result.exit_code == 0
    assert result.stdout == "5 dimensions: 0.7143 0.1429 13.8571 14.0000 14.1429\n"


@pytest.mark.usefixtures("model")
def test_several_texts_print_their_cosines() -> None:
    texts = ["warp", "weft", "\t" + "x" * 60]
    result = embed(*texts)
    assert result.exit_code == 0
    unit = expected(texts) / np.linalg.norm(expected(texts), axis=1, keepdims=True)
    names = ["warp", "weft", "x" * 36 + "..."]
    pairs = sorted([(0, 1), (0, 2), (1, 2)], key=lambda pair: -(unit[pair[0]] @ unit[pair[1]]))
    assert [line.split() for line in result.stdout.splitlines()] == [
        [f"{unit[a] @ unit[b]:.4f}", names[a], names[b]] for a, b in pairs
    ]


# Files


def test_npy_holds_every_line(model: StandIn, tmp_path: Path) -> None:
    texts = [f"{index}{'x' * (index % 7)}" for index in range(3000)]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    result = embed(
        "--input", tmp_path / "in.txt", "--output", tmp_path / "out.npy", "--batch-tokens", 50
    )
    assert (result.exit_code, result.stdout) == (0, "")
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(texts))
    assert all(38 < tokens <= 50 for tokens in model.batches[:-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]


@pytest.mark.usefixtures("model")
def test_json_lines_read_back_exactly(tmp_path: Path) -> None:
    texts = ["warp", "", 'a "quoted"\ttext', "Käse 織物\u2028", "end"]
    (tmp_path / "in.txt").write_bytes("\r\n".join([*texts, ""]).encode("utf-8-sig"))
    result = embed("--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl")
    assert result.exit_code == 0
    rows = read_json_lines(tmp_path / "out.jsonl")
    assert [row["index"] for row in rows] == list(range(len(texts)))
    assert [row["text"] for row in rows] == texts
    found = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_array_equal(found, expected(texts))


@pytest.mark.usefixtures("model")
def test_standard_input(tmp_path: Path) -> None:
    result = embed("--input", "-", "--output", tmp_path / "out.jsonl", stdin="one\n\ntwo\n")
    assert result.exit_code == 0
    assert [row["text"] for row in read_json_lines(tmp_path / "out.jsonl")] == ["one", "", "two"]


def test_options_reach_the_model(model: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(softgate, "set_num_threads", counts.append)
    assert embed("ab", "abcdef", "--no-normalize", "--max-length", 5, "--threads", 2).exit_code == 0
    assert model.normalized is False
    assert model.batches == [4 + 5]
    assert counts == [2]
    assert embed("a", "--normalize").exit_code == 0
    assert model.normalized is True
    assert embed("a").exit_code == 0
    assert model.normalized is None
    assert counts == [2]


@pytest.mark.usefixtures("model")
def test_truncation_is_said() -> None:
    result = embed("x" * 11, "x" * 10, "x" * 12)
    assert result.exit_code == 0
    assert result.stderr == "2 of 3 texts were cut to 12 tokens\n"
    assert embed("x" * 10).stderr == ""


@pytest.mark.usefixtures("model")
def test_truncation_is_refused_when_asked(tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    text = "short\n" * 2000 + "too long, far too long\n"
    result = embed("--no-truncate", "--input", "-", "--output", output, stdin=text)
    assert "text 2001 of 2001 has more than 12 tokens" in refused(result)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


# Refused


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], None, "give either TEXTS or --input"),
        (["a", "--input", "-"], "b", "give either TEXTS or --input"),
        (["--input", "-"], "", "is empty"),
        (["--input", "-"], b"good\nb\xffd\n", "line 2 is not UTF-8"),
        (["--input", "absent.txt"], None, "absent.txt"),
        (["--input", "."], None, "directory"),
        (["--input", "-"], "line\n" * 21, "give --output for more than 20 texts"),
        (["a", "--output", "out.txt"], None, "expected a name in .npy or .jsonl"),
        (["a", "--output", "absent/out.npy"], None, "No such file or directory"),
        (["a", "--output", "folder.npy"], None, "is a directory"),
        (["a", "--batch-tokens", "0"], None, "--batch-tokens"),
        (["a", "--max-length", "-1"], None, "--max-length"),
        (["a", "--max-length", "13"], None, "--max-length is 13, expected at most 12"),
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
    def fail(spec: str, **place: str | None) -> None:
        raise error

    monkeypatch.setattr(softgate, "load", fail)
    assert message in refused(embed("a", "--output", tmp_path / "out.npy"))
    assert list(tmp_path.iterdir()) == []
    assert message in refused(run("info", "--model", "x"))


@pytest.mark.usefixtures("model")
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert "No space left" in refused(embed("a", "--output", tmp_path / "out.npy"))
    assert list(tmp_path.iterdir()) == []


# Interrupted

INTERRUPTIBLE = """
import signal, sys, time
sys.path[:0] = {path!r}
# A job started in the background inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
import softgate
from test_cli import StandIn

class Slow(StandIn):
    def encode_batch(self, encodings, *, normalize):
        if len(self.batches) == {batches}:
            print("waiting", flush=True)
            time.sleep(600)
        return super().encode_batch(encodings, normalize=normalize)

softgate.load = lambda spec, **place: Slow()
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
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert waiting == "waiting\n", errors
    assert "Traceback" not in errors
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{index:02}\n" for index in range(100)))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_ctrl_c_keeps_what_is_finished(lines: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    # Four tokens a text: ten texts a batch.
    result = interrupt(["--input", lines, "--output", output, "--batch-tokens", 40], batches=3)
    assert result.returncode == 130
    assert "kept the first 30 of 100 lines" in result.stderr
    if suffix == ".npy":
        found = np.load(output)
    else:
        found = np.array([row["embedding"] for row in read_json_lines(output)], np.float32)
    np.testing.assert_array_equal(found, expected([f"{index:02}" for index in range(30)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", output.name]


def test_ctrl_c_before_the_first_batch_keeps_the_old_file(lines: Path, tmp_path: Path) -> None:
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
    from softgate.cli.embed import WRITERS

    writer = WRITERS[suffix]
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
    if suffix == ".npy":
        assert output.stat().st_size == 128 + np.load(output).nbytes
        assert len(np.load(output)) == 4
    else:
        assert len(read_json_lines(output)) == 4


# Described


def test_info(monkeypatch: pytest.MonkeyPatch, model: StandIn) -> None:
    alone = run("info")
    assert alone.exit_code == 0
    assert alone.stdout.startswith(f"softgate    {softgate.__version__}\nisa         ")
    assert alone.stdout.endswith(f"\ncuda        {softgate.cuda.describe()}\n")
    described = run("info", "--model", "stand-in")
    assert described.stdout.startswith(alone.stdout)
    found = dict(line.split(maxsplit=1) for line in described.stdout.splitlines())
    assert found["isa"].startswith(softgate.isa())
    assert found["threads"] == str(softgate.num_threads())
    assert found["parameters"] == "22,713,216"
    assert found["memory"] == "86.6 MiB"
    assert found["heads"] == "12"
    assert found["dtype"] == "int8, float32"


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
