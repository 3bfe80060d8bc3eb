"""Where models look, against Hugging Face's weights, and pictures of it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import click.testing
import hugging_face_bert
import hugging_face_gpt
import hugging_face_seq2seq
import numpy as np
import pytest
import softgate
from softgate.attention_map import AttentionMap
from softgate.cli import main
from softgate.models.bert import Bert, BertConfig
from softgate.models.gpt import Gpt, GptConfig
from softgate.models.recurrent_lm import RecurrentLM, RecurrentLMConfig
from softgate.models.seq2seq import Seq2Seq, Seq2SeqConfig
from softgate.text import Tokenizer
from weights import nanum  # noqa: F401

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib draws")
from matplotlib import font_manager  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

TOLERANCE = 1e-5
SOURCE, TARGET = [5, 17, 60, 9, 2], [40, 3, 33, 8]


def assert_layers(expected: Any, actual: Any, **options: Any) -> None:
    """expected: each layer's, `[1, num_heads, rows, columns]`; actual: the method."""
    layers = [layer[0].numpy() for layer in expected]
    for i, layer in enumerate(layers):
        for j, head in enumerate(layer):
            found = actual(layer=i, head=j, **options)
            assert found.weights.dtype == np.float32
            np.testing.assert_allclose(found.weights, head, rtol=0, atol=TOLERANCE)
        found = actual(layer=i, **options).weights
        np.testing.assert_allclose(found, layer.mean(axis=0), rtol=0, atol=TOLERANCE)
    found = actual(head=1, **options).weights
    mean = np.mean([layer[1] for layer in layers], axis=0)
    np.testing.assert_allclose(found, mean, rtol=0, atol=TOLERANCE)
    mean = np.mean([layer.mean(axis=0) for layer in layers], axis=0)
    np.testing.assert_allclose(actual(**options).weights, mean, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("helper", "name"),
    [
        (hugging_face_bert, "bert"),
        (hugging_face_bert, "albert"),
        (hugging_face_bert, "modernbert"),
        (hugging_face_gpt, "gpt2"),
        (hugging_face_gpt, "llama"),
        (hugging_face_gpt, "mistral"),
        (hugging_face_gpt, "gemma2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_stack(helper: Any, name: str, tmp_path: Path) -> None:
    theirs = helper.hugging_face(name)
    theirs.save_pretrained(tmp_path)
    ours = softgate.load(tmp_path)
    import torch

    ids = [*SOURCE, *TARGET]
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids]), output_attentions=True).attentions
    assert_layers(expected, lambda **options: ours.attention_map(ids, **options))
    found = ours.attention_map(ids)
    assert found.rows == found.columns == [str(index) for index in ids]


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_encoder_and_decoder(name: str, tmp_path: Path) -> None:
    theirs = hugging_face_seq2seq.hugging_face(name)
    theirs.save_pretrained(tmp_path)
    ours = softgate.load(tmp_path)
    import torch

    start = ours.config.decoder_start_token_id
    given = [start, *TARGET[:-1]]
    with torch.inference_mode():
        output = theirs(
            input_ids=torch.tensor([SOURCE]),
            decoder_input_ids=torch.tensor([given]),
            output_attentions=True,
        )

    def attention_map(**options: Any) -> AttentionMap:
        return ours.attention_map(SOURCE, TARGET, **options)

    assert_layers(output.cross_attentions, attention_map)
    assert_layers(output.encoder_attentions, attention_map, kind="encoder")
    assert_layers(output.decoder_attentions, attention_map, kind="decoder")
    assert attention_map(kind="decoder").rows == attention_map(kind="decoder").columns
    assert attention_map(kind="decoder").rows == [str(index) for index in given]
    assert attention_map(kind="encoder").rows == [str(index) for index in SOURCE]


@pytest.fixture
def seq2seq() -> Seq2Seq:
    source = Tokenizer.train("whitespace", ["the warp and weft of $5 cloth"])
    target = Tokenizer.train("syllable", ["날실과 씨실"])
    config = Seq2SeqConfig(source.vocab_size, target.vocab_size, 8, 8, 8, attention="dot")
    model = Seq2Seq(config, seed=None)
    model.init_weights(seed=1, std=0.5)
    model.source_tokenizer, model.target_tokenizer = source, target
    return model


def test_recurrent_attention(seq2seq: Seq2Seq) -> None:
    found = seq2seq.attention_map("the warp of cloth", "씨실")
    assert (found.rows, found.columns) == (["씨", "실"], ["the", "warp", "of", "cloth"])
    given = [2, *seq2seq.target_tokenizer.ids("씨")]
    source = seq2seq.source_tokenizer.ids("the warp of cloth")
    output = seq2seq([source], [given], output_attentions=True)
    np.testing.assert_array_equal(found.weights, output.attentions[0])
    (best,) = seq2seq.generate(["the warp"])[0]
    own = seq2seq.attention_map("the warp")
    assert own.rows == seq2seq.target_tokenizer.pieces(best.token_ids)
    np.testing.assert_array_equal(
        own.weights, seq2seq.attention_map("the warp", best.token_ids, layer=0, head=0).weights
    )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([[1, 2]], {"layer": 2}, "layer is 2, expected 0 to 1"),
        ([[1, 2]], {"layer": -1}, "layer is -1, expected 0 to 1"),
        ([[1, 2]], {"head": 2}, "head is 2, expected 0 to 1"),
        ([[]], {}, "text has (no|0) tokens"),
        ([[9]], {}, "9, expected 0"),
        ([[1] * 600], {}, "600 tokens, expected (at most|1 to)"),
        (["warp"], {}, "tokenizer"),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_what_a_stack_refuses(kind: str, arguments: Any, options: Any, message: str) -> None:
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "max_position_embeddings": 512}
    model = Bert(BertConfig(**sizes)) if kind == "bert" else Gpt(GptConfig(**sizes))
    with pytest.raises(ValueError, match=message):
        model.attention_map(*arguments, **options)


def test_what_an_encoder_decoder_refuses(seq2seq: Seq2Seq) -> None:
    for options, message in (
        ({"kind": "encoder"}, "kind is 'encoder', expected one of cross"),
        ({"layer": 1}, "layer is 1, expected 0 to 0"),
        ({"target": []}, "target has no tokens"),
        ({"target": [999]}, "target holds 999, expected ids below"),
    ):
        with pytest.raises(ValueError, match=message):
            seq2seq.attention_map("the warp", **({"target": [4, 5]} | options))
    without = Seq2Seq(Seq2SeqConfig(9, 9, 8, 8, 8))
    with pytest.raises(ValueError, match="'cross', expected a model with attention"):
        without.attention_map([1], [4])


WEIGHTS = np.eye(2, 3, dtype=np.float32)


def labels(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_tokens_are_drawn_as_they_are(tmp_path: Path) -> None:
    axes = Figure().add_subplot()
    AttentionMap(WEIGHTS, [" $x$ $", "  "], ["\n", "a", ""]).draw(axes)
    assert labels(axes) == ["$x$ $", "\N{OPEN BOX}\N{OPEN BOX}"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["\\n", "a", ""]
    np.testing.assert_array_equal(axes.images[0].get_array(), WEIGHTS)
    found = AttentionMap(WEIGHTS, ["$\\frac$", "b"], ["c", "d", "e"])
    found.save(tmp_path / "a.png")
    found.save(str(tmp_path / "a.SVG"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "a.SVG").read_bytes()
    for name in ("a", "a.txt"):
        with pytest.raises(ValueError, match=r"ends with '(txt)?', expected one of .*png"):
            found.save(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2


KOREAN = AttentionMap(WEIGHTS, ["날실", " 과"], ["warp", "ω", "weft"])


def test_a_font_that_has_korean_is_found(
    nanum: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    manager.addfont(nanum)
    axes = Figure().add_subplot()
    KOREAN.draw(axes)
    families = axes.get_yticklabels()[0].get_fontfamily()
    fonts = [font_manager.get_font(manager.findfont(family)) for family in families]
    assert all(any(ord(c) in font.get_charmap() for font in fonts) for c in "날실과wω")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KOREAN.save(tmp_path / "a.png")


def without_korean(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = font_manager.fontManager
    few = [entry for entry in manager.ttflist if entry.name.startswith(("DejaVu", "Last Resort"))]
    monkeypatch.setattr(manager, "ttflist", few)


def test_characters_that_no_font_has_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_korean(monkeypatch)
    with pytest.warns(UserWarning, match="no installed font has 과 날 실: install") as said:
        KOREAN.save(tmp_path / "a.png")
    assert len(said) == 1
    assert (tmp_path / "a.png").exists()


def test_matplotlib_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install softgate\[plot\]"):
        KOREAN.save(tmp_path / "a.png")
    result = run("--model", "nowhere", "-o", tmp_path / "a.png", "the warp")
    assert result.exit_code == 2
    assert "pip install softgate[plot]" in result.stderr
    assert not list(tmp_path.iterdir())


def run(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["attention", *map(str, arguments)])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[AttentionMap]:
    """What is drawn."""
    found: list[AttentionMap] = []
    save = AttentionMap.save

    def kept(self: AttentionMap, path: Path) -> None:
        found.append(self)
        save(self, path)

    monkeypatch.setattr(AttentionMap, "save", kept)
    return found


def test_command(
    seq2seq: Seq2Seq,
    drawn: list[AttentionMap],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_korean(monkeypatch)
    seq2seq.save(tmp_path / "model")
    model = ("--model", tmp_path / "model")
    picture = tmp_path / "a.png"
    result = run(*model, "-o", picture, "the warp", "--target", "씨실", "--layer", 0, "--head", 0)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: no installed font has 실 씨")
    assert picture.read_bytes().startswith(b"\x89PNG")
    expected = seq2seq.attention_map("the warp", "씨실")
    np.testing.assert_array_equal(drawn[0].weights, expected.weights)
    assert drawn[0].rows == expected.rows
    assert run(*model, "-o", picture, "the warp").exit_code == 0
    assert drawn[1].rows == seq2seq.attention_map("the warp").rows
    for options, message in (
        (["--layer", 3], "layer is 3, expected 0 to 0"),
        (["--kind", "decoder"], "kind is 'decoder', expected one of cross"),
        (["-o", tmp_path / "a.txt"], "expected one of"),
    ):
        result = run(*model, "-o", picture, "the warp", *options)
        assert result.exit_code == 2
        assert message in result.stderr


def test_command_with_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "a.png"
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = Bert(BertConfig(**sizes, intermediate_size=8))
    monkeypatch.setattr(softgate, "load", lambda spec: bert)
    for name, value in (("target", "a"), ("kind", "cross")):
        result = run("--model", "x", "-o", picture, "the warp", f"--{name}", value)
        assert result.exit_code == 2
        assert f"--{name} is for encoder-decoders, x is a Bert" in result.stderr
    lm = RecurrentLM(RecurrentLMConfig(vocab_size=9))
    monkeypatch.setattr(softgate, "load", lambda spec: lm)
    result = run("--model", "x", "-o", picture, "the warp")
    assert "x is a RecurrentLM, expected a model with attention" in result.stderr
