"""`softgate generate`, `chat` and `score`, on models whose logits are a plain function."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import softgate
from language import Array, Model, random_logits, recite
from softgate.cli import chat as module
from softgate.cli import main
from test_chat import echo

CliResult = click.testing.Result


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The model that commands get, and what they asked for."""
    state: dict[str, Any] = {"model": Model(random_logits())}

    def load(spec: str, **options: Any) -> Any:
        state["options"] = options
        return state["model"]

    monkeypatch.setattr(softgate, "load", load)
    return state


def run(command: str, *arguments: object, stdin: str | bytes | None = None) -> CliResult:
    runner = click.testing.CliRunner()
    return runner.invoke(main, [command, "--model", "stand-in", *map(str, arguments)], input=stdin)


def json_rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


# generate


def test_one_text_comes_as_text(loaded: dict[str, Any]) -> None:
    loaded["model"] = Model(recite("직물은 천이다.".encode(), after=1))
    result = run("generate", "x")
    assert result.exit_code == 0
    assert result.stdout == "직물은 천이다.\n"
    assert result.stderr.startswith("21 tokens after 1 of prompt, the first in 0.0")
    assert result.stderr.endswith("tokens/s\n")
    assert loaded["options"] == {"dtype": None, "device": None}


def test_what_ended_a_text_is_said(loaded: dict[str, Any]) -> None:
    result = run("generate", "x", "--max-new-tokens", 1, "--dtype", "int8", "--device", "cuda:1")
    assert result.stderr.startswith("1 token after 1 of prompt, the first in 0.")
    assert result.stderr.endswith(" s; ended by --max-new-tokens\n")
    assert loaded["options"] == {"dtype": "int8", "device": "cuda:1"}


def test_options_are_settings(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(softgate, "set_num_threads", counts.append)
    options = {
        "max_new_tokens": 30,
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "seed": 3,
        "context": "slide",
        "keep": 2,
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    result = run("generate", "warp", *arguments, "--stop", "a", "--stop", "bc", "--threads", 2)
    assert result.exit_code == 0
    expected = loaded["model"].generate("warp", stop=["a", "bc"], **options)
    assert result.stdout == expected.text + "\n"
    assert counts == [2]


def test_several_texts_are_json_lines(loaded: dict[str, Any]) -> None:
    prompts = ["warp", "직물", "weft"]
    settings = {"temperature": 0.8, "seed": 5, "max_new_tokens": 9}
    arguments = ["--temperature", 0.8, "--seed", 5, "--max-new-tokens", 9]
    result = run("generate", *prompts, *arguments)
    assert result.exit_code == 0
    expected = loaded["model"].generate(prompts, **settings)
    assert json_rows(result.stdout) == [
        {
            "index": index,
            "prompt": prompts[index],
            "text": one.text,
            "finish_reason": one.finish_reason,
            "tokens": len(one.token_ids),
            "seed": 5,
        }
        for index, one in enumerate(expected)
    ]
    assert "직물" in result.stdout
    assert "3 texts, " in result.stderr
    assert result.stderr.endswith(" tokens/s\n")


def test_a_file_of_prompts(loaded: dict[str, Any], tmp_path: Path) -> None:
    prompts = [f"prompt {i} {'x' * (i % 5)}" for i in range(20)]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    output = tmp_path / "out.jsonl"
    arguments = ["--input", tmp_path / "in.txt", "--output", output, "--num-samples", 2]
    arguments += ["--temperature", 1, "--seed", 1, "--logprobs", "--max-new-tokens", 6]
    result = run("generate", *arguments, "--batch-size", 3)
    assert (result.exit_code, result.stdout) == (0, "")
    rows = json_rows(output.read_text(encoding="utf-8"))
    expected = loaded["model"].generate(
        prompts, num_samples=2, temperature=1.0, seed=1, logprobs=True, max_new_tokens=6
    )
    assert [(row["index"], row["sample"]) for row in rows] == [(i // 2, i % 2) for i in range(40)]
    for row, one in zip(rows, expected, strict=True):
        assert (row["text"], row["token_ids"]) == (one.text, one.token_ids)
        np.testing.assert_array_equal(np.float32(row["logprobs"]), np.float32(one.logprobs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.jsonl"]


def test_one_line_of_standard_input_is_one_text(loaded: dict[str, Any]) -> None:
    result = run("generate", "--input", "-", "--max-new-tokens", 5, stdin="warp\n")
    assert result.stdout == loaded["model"].generate("warp", max_new_tokens=5).text + "\n"


def test_ctrl_c_prints_what_there_is(loaded: dict[str, Any]) -> None:
    loaded["model"] = lm = Model(recite(b"warp and weft", after=1))
    lm.interrupt_at = 7
    result = run("generate", "x", "--stop", "p and x")
    assert result.exit_code == 130
    assert result.stdout == "warp an\n"
    assert result.stderr.startswith("7 tokens after 1 of prompt")
    assert result.stderr.endswith("interrupted\n")


def counting(tokens: Array) -> Array:
    """Writes as many letters as the prompt's only digit says."""
    logits = np.zeros(258)
    logits[256 if len(tokens) > tokens[0] - ord("0") else 65] = 1
    return logits


def test_ctrl_c_keeps_the_texts_that_are_finished(loaded: dict[str, Any], tmp_path: Path) -> None:
    loaded["model"] = lm = Model(counting)
    output = tmp_path / "out.jsonl"
    output.write_text("old")
    lm.interrupt_at = 5
    result = run("generate", "2", "9", "4", "--output", output)
    assert result.exit_code == 130
    assert "interrupted: kept 2 of 3 texts" in result.stderr
    rows = json_rows(output.read_text())
    assert [(row["index"], row["text"]) for row in rows] == [(0, "AA"), (2, "AAAA")]

    lm.calls.clear()
    lm.interrupt_at = 2
    result = run("generate", "7", "9", "--output", output)
    assert result.exit_code == 130
    assert result.stderr == "interrupted: nothing was written\n"
    assert json_rows(output.read_text()) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


SCRIPT = """
import signal, sys, time
sys.path[:0] = {path!r}
# A job started in the background inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
import softgate
from language import Model, recite

class Slow(Model):
    def __call__(self, *args, **kwargs):
        if len(self.calls) == 10:
            print("waiting", file=sys.stderr, flush=True)
            time.sleep(600)
        return super().__call__(*args, **kwargs)

softgate.load = lambda spec, dtype, device: Slow(recite("직물 warp weft".encode(), after=1))
from softgate.cli import chat as module
from softgate.cli import main
main()
"""


def test_a_real_ctrl_c() -> None:
    script = SCRIPT.format(path=sys.path)
    command = [sys.executable, "-c", script, "generate", "--model", "slow", "x"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert output == "직물 war\n"
    assert "Traceback" not in errors
    assert errors.endswith("interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], None, "give either PROMPTS or --input"),
        (["a", "--input", "-"], "b", "give either PROMPTS or --input"),
        (["--input", "-"], "a\n\nb\n", "prompt 2 of 3 is empty"),
        (["--input", "-"], b"good\nb\xffd\n", "line 2 is not UTF-8"),
        ([""], None, "prompt 1 of 1 is empty"),
        (["a", "--output", "absent/out.jsonl"], None, "No such file or directory"),
        (["a", "--logprobs"], None, "--logprobs needs --output"),
        (["a", "--dtype", "float8"], None, "float8"),
        (["a", "--max-new-tokens", "0"], None, "--max-new-tokens"),
        (["a", "--temperature", "-1"], None, "temperature is -1.0, expected at least 0"),
        (["a", "--top-p", "0.9"], None, "top_p is 0.9, but temperature is 0"),
        (["a", "--keep", "9"], None, "keep is 9, but context is 'error'"),
        (["a", "--num-samples", "2"], None, "num_samples is 2, but temperature is 0"),
        (["a" * 90], None, "max_new_tokens is 128, expected at most 10"),
    ],
)
def test_bad_arguments(
    loaded: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    stdin: str | bytes | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded["model"] = Model(random_logits(), context=100)
    result = run("generate", *arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["generate", "x"], "a language model"),
        (["chat"], "a language model"),
        (["score", "x"], "a language model"),
        (["embed", "x"], "an encoder"),
    ],
)
def test_a_model_of_the_wrong_kind(loaded: dict[str, Any], command: list[str], kind: str) -> None:
    class Other: ...

    loaded["model"] = Other()
    result = run(*command)
    assert result.exit_code == 2
    assert f"stand-in is a Other, expected {kind}" in result.stderr


# chat


def test_chat_through_a_pipe(loaded: dict[str, Any]) -> None:
    loaded["model"] = lm = Model(echo)
    result = run("chat", "--system", "Loud.", stdin="warp\n\n  weft \n/reset\nreed\n/exit\nloom\n")
    assert result.exit_code == 0
    assert result.stdout == "WARP\nWEFT\nREED\n"
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    start = len("Loud.") + 9 + 11 + 11
    assert [int(line.split()[3]) for line in lines] == [start, start + 27, start]
    assert lm.calls[-5] == [5 + 11]  # after the reset, what differs: from the message on


def test_chat_refuses_what_is_no_command(loaded: dict[str, Any]) -> None:
    loaded["model"] = Model(echo)
    result = run("chat", stdin="/rest\n/usr is a folder\n")
    assert result.stderr.startswith("/rest is no command: /reset forgets the conversation, /exit")
    assert result.stdout == "/USR IS A FOLDER\n"


def test_chat_that_is_full(loaded: dict[str, Any]) -> None:
    loaded["model"] = Model(echo, context=40)
    result = run("chat", "--max-new-tokens", 8, stdin="warp\nweft\n")
    assert (result.exit_code, result.stdout) == (2, "WARP\n")
    assert "the conversation" in result.stderr


def test_ctrl_c_in_a_chat_through_a_pipe(loaded: dict[str, Any]) -> None:
    loaded["model"] = lm = Model(echo)
    lm.interrupt_at = 3
    result = run("chat", stdin="warp\nweft\n")
    assert (result.exit_code, result.stdout) == (130, "WAR\n")


def test_chat_in_a_terminal(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded["model"] = lm = Model(echo, context=120)
    lm.interrupt_at = 3
    lines = iter(["warp", "weft", "x" * 120, "reed", EOFError, KeyboardInterrupt])

    def read(prompt: str) -> str:
        assert prompt == "> "
        lm.interrupt_at = 3 if not lm.calls else None
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(module, "input", read, raising=False)
    monkeypatch.setattr(module, "_is_terminal", lambda: True)
    result = run("chat", "--max-new-tokens", 6)
    assert result.exit_code == 0
    assert result.stdout == "WAR\nWEFT\nREED\n"
    assert "the conversation has" in result.stderr
    result = run("chat")
    assert result.exit_code == 130
    assert result.stderr.endswith("interrupted\n")


# score


def test_score(loaded: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    result = run("score", "warp and", "직물", "--output", output)
    assert result.exit_code == 0
    scores = loaded["model"].score(["warp and", "직물"])
    assert result.stdout == (
        f"perplexity {scores[0].perplexity:.4f}  8 tokens  text 1\n"
        f"perplexity {scores[1].perplexity:.4f}  6 tokens  text 2\n"
    )
    rows = json_rows(output.read_text(encoding="utf-8"))
    assert [row["text"] for row in rows] == [0] * 8 + [1] * 6
    assert "".join(row["token"] for row in rows) == "warp and직물"
    assert [row["token_id"] for row in rows] == scores[0].token_ids + scores[1].token_ids
    found = [row["logprob"] for row in rows]
    assert (found[0], found[8]) == (None, None)
    np.testing.assert_array_equal(np.float32(found[1:8]), scores[0].logprobs[1:])


def test_score_of_files(loaded: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("warp\nand weft\n")
    arguments = ["--input", path, "--input", "-", "--window", 8, "--stride", 3]
    result = run("score", *arguments, stdin="reed")
    scores = loaded["model"].score(["warp\nand weft\n", "reed"], window=8, stride=3)
    assert result.stdout == (
        f"perplexity {scores[0].perplexity:.4f}  14 tokens  {path}\n"
        f"perplexity {scores[1].perplexity:.4f}  4 tokens  -\n"
    )


def test_ctrl_c_keeps_the_scores_that_are_finished(loaded: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    lm = loaded["model"]
    lm.interrupt_at = 1
    result = run("score", "warp", "weft", "--output", output)
    assert result.exit_code == 130
    assert "interrupted: kept 1 of 2 texts" in result.stderr
    assert len(json_rows(output.read_text())) == 4
    lm.interrupt_at = 1
    result = run("score", "warp", "weft", "--output", output)
    assert (result.exit_code, result.stdout) == (130, "")
    assert len(json_rows(output.read_text())) == 4


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], None, "give either TEXTS or --input"),
        (["a", "--input", "-"], None, "give either TEXTS or --input"),
        (["ab", ""], None, "text 2 is empty"),
        (["a"], None, "a text of one token has none to predict"),
        (["--input", "-"], b"b\xffd", "-: byte 1 is not UTF-8"),
        (["--input", "absent"], None, "absent"),
        (["ab", "--window", "101"], None, "window is 101, expected 2 to 100"),
        (["ab", "--stride", "100"], None, "stride is 100"),
    ],
)
def test_bad_scores(
    loaded: dict[str, Any], arguments: list[str], stdin: str | bytes | None, message: str
) -> None:
    loaded["model"] = Model(random_logits(), context=100)
    result = run("score", *arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
