"""Recurrent encoder-decoders: against plain torch, alone and in batches, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import softgate
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from softgate.checkpoint import CheckpointError
from softgate.cli import main
from softgate.generation import BeamSearch
from softgate.models.seq2seq import Seq2Seq, Seq2SeqConfig
from softgate.text import Tokenizer

torch = pytest.importorskip("torch", reason="torch is the oracle")

BASE = Seq2SeqConfig(
    source_vocab_size=23, target_vocab_size=19, embedding_size=10, encoder_size=12, decoder_size=12
)
ATTENTION = {"attention": "additive", "attention_size": 7}
CONFIGS: dict[str, dict[str, Any]] = {
    "context vector": {},
    "of an lstm": {"cell": "lstm", "num_layers": 2},
    "of an rnn": {"cell": "rnn"},
    "both ways": {"bidirectional": True, "decoder_size": 24, "num_layers": 2, "cell": "lstm"},
    "bridge": {"bidirectional": True, "first_state": "bridge", "num_layers": 2},
    "bridge of an lstm": {"cell": "lstm", "first_state": "bridge", "num_layers": 2},
    "zeros": {"first_state": "zeros", "bidirectional": True, **ATTENTION},
    "additive after": ATTENTION,
    "additive before": {
        **ATTENTION, "attention_at": "before", "bidirectional": True, "first_state": "bridge",
    },
    "dot": {"attention": "dot", "attentional_size": 9},
    "dot of an lstm, fed": {
        "attention": "dot", "attentional_size": 9, "input_feeding": True, "cell": "lstm",
        "num_layers": 2,
    },
    "general": {
        "attention": "general", "bidirectional": True, "first_state": "bridge",
        "attentional_size": 9, "input_feeding": True,
    },
    "concat": {"attention": "concat", "attentional_size": 9},
    "concat before, fed": {
        "attention": "concat", "attention_size": 5, "attention_at": "before",
        "attentional_size": 8, "input_feeding": True, "cell": "rnn",
    },
}  # fmt: skip
SOURCES = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13, 22], [14, 15]]
TARGETS = [[2, 4, 5], [2, 6, 7, 8, 9, 10], [2], [2, 18, 0, 1]]


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def model(request: pytest.FixtureRequest) -> Seq2Seq:
    return made(**CONFIGS[request.param])


def made(**changes: Any) -> Seq2Seq:
    model = Seq2Seq(replace(BASE, **changes), seed=None)
    model.init_weights(seed=3, std=0.4)
    return model


class Restated:
    """The same network in torch, a pair and a token at a time."""

    def __init__(self, model: Seq2Seq) -> None:
        self.config = config = model.config
        self.weights = {name: torch.tensor(array) for name, array in model.state_dict().items()}
        kind = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[config.cell]
        memory = config.encoder_size * (2 if config.bidirectional else 1)
        width = config.embedding_size
        width += memory if config.attention != "none" and config.attention_at == "before" else 0
        width += config.attentional_size if config.input_feeding else 0
        self.encoder = kind(
            config.embedding_size,
            config.encoder_size,
            config.num_layers,
            bidirectional=config.bidirectional,
        )
        self.decoder = kind(width, config.decoder_size, config.num_layers)
        for name in ("encoder", "decoder"):
            layer = getattr(self, name)
            layer.load_state_dict({n: self.weights[f"{name}.{n}"] for n in layer.state_dict()})

    def linear(self, name: str, x: Any) -> Any:
        bias = self.weights.get(f"{name}.bias")
        return torch.nn.functional.linear(x, self.weights[f"{name}.weight"], bias)

    def read(self, source: list[int]) -> tuple[Any, list[Any]]:
        """The encoder's outputs and the decoder's first states, h or h and c."""
        config = self.config
        outputs, last = self.encoder(self.weights["source_embedding"][source])
        states = []
        for kind, state in enumerate(last if config.cell == "lstm" else (last,)):
            layers = state.reshape(config.num_layers, -1)  # a layer's directions side by side
            if config.first_state == "zeros":
                layers = torch.zeros(config.num_layers, config.decoder_size)
            if config.first_state == "bridge":
                first = kind * config.num_layers
                layers = torch.stack(
                    [self.linear(f"bridges.{first + i}", part) for i, part in enumerate(layers)]
                )
                layers = layers if kind else torch.tanh(layers)
            states.append(layers)
        return outputs, states

    def attend(self, query: Any, memory: Any) -> tuple[Any, Any]:
        match self.config.attention:
            case "dot":
                scores = memory @ query
            case "general":
                scores = memory @ self.weights["attention.key.weight"].T @ query
            case "additive" | "concat":
                hidden = self.linear("attention.query", query)
                hidden = hidden + self.linear("attention.key", memory)
                scores = self.linear("attention.score", torch.tanh(hidden))[:, 0]
        weights = torch.softmax(scores, 0)
        return weights @ memory, weights

    @torch.no_grad()
    def __call__(self, source: list[int], target: list[int]) -> tuple[Any, Any]:
        config = self.config
        memory, states = self.read(source)
        feed = torch.zeros(config.attentional_size or 0)
        logits, attentions = [], []
        for token in target:
            x = self.weights["target_embedding"][token]
            if config.attention != "none" and config.attention_at == "before":
                context, weights = self.attend(states[0][-1], memory)
                x = torch.cat([x, context])
            if config.input_feeding:
                x = torch.cat([x, feed])
            first = tuple(states) if config.cell == "lstm" else states[0]
            y, last = self.decoder(x[None], first)
            states = list(last) if config.cell == "lstm" else [last]
            y = y[0]
            if config.attention != "none":
                if config.attention_at == "after":
                    context, weights = self.attend(y, memory)
                attentions.append(weights.numpy())
                y = torch.cat([y, context])
            if config.attentional_size is not None:
                y = feed = torch.tanh(self.linear("attentional", y))
            logits.append(self.linear("output", y).numpy())
        return np.array(logits), np.array(attentions)


@pytest.mark.usefixtures("isa")
def test_equals_torch(model: Seq2Seq) -> None:
    attends = model.config.attention != "none"
    output = model(SOURCES, TARGETS, output_attentions=attends)
    start = 0
    for i, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        logits, attentions = Restated(model)(source, target)
        found = output.logits[start : start + len(target)]
        np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
        assert np.abs(logits).max() > 0.1
        if attends:
            assert output.attentions is not None
            assert output.attentions[i].shape == (len(target), len(source))
            np.testing.assert_allclose(output.attentions[i], attentions, rtol=1e-4, atol=1e-6)
        start += len(target)


@pytest.mark.usefixtures("rows_of_any_number")
def test_a_batch_equals_each_alone(model: Seq2Seq) -> None:
    together = model(SOURCES, TARGETS).logits
    alone = [model([s], [t]).logits for s, t in zip(SOURCES, TARGETS, strict=True)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.usefixtures("rows_of_any_number")
def test_padded_equals_ragged(model: Seq2Seq) -> None:
    def padded(rows: list[list[int]], fill: int) -> tuple[Any, Any]:
        length = max(map(len, rows)) + 1
        ids = np.full((len(rows), length), fill)
        mask = np.zeros((len(rows), length), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask

    ragged = model(SOURCES, TARGETS).logits
    (sources, source_mask), (targets, target_mask) = padded(SOURCES, 3), padded(TARGETS, -1)
    found = model(sources, targets, source_mask, target_mask).logits
    assert found.shape == (4, 7, 19)
    np.testing.assert_array_equal(found[target_mask == 1], ragged)
    assert not found[target_mask == 0].any()


def test_steps_equal_the_whole(model: Seq2Seq) -> None:
    encoded = model.encode(SOURCES)
    state, memory = encoded.state, encoded.memory
    whole = model(SOURCES, [[2, 7, 11]] * 4).logits.reshape(4, 3, -1)
    for t, token in enumerate([2, 7, 11]):
        logits, state, _ = model.step(np.full(4, token), state, memory)
        np.testing.assert_allclose(logits, whole[:, t], rtol=1e-5, atol=1e-6)


def test_threads_do_not_matter(model: Seq2Seq, thread_counts: Any) -> None:
    results = [model(SOURCES, TARGETS).logits for _ in thread_counts]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


# Saving


def test_what_is_saved_is_loaded(model: Seq2Seq, tmp_path: Path) -> None:
    model.source_tokenizer = Tokenizer.train("whitespace", ["the warp"])
    model.target_tokenizer = Tokenizer.train("syllable", ["날실"])
    model.save(tmp_path)
    again = softgate.load(tmp_path)
    assert isinstance(again, Seq2Seq)
    assert again.config == model.config
    assert again.target_tokenizer is not None
    assert again.target_tokenizer.tokens("날실") == ["날", "실"]
    np.testing.assert_array_equal(again(SOURCES, TARGETS).logits, model(SOURCES, TARGETS).logits)
    result = CliRunner().invoke(main, ["info", "--model", str(tmp_path)])
    assert f"family      {Seq2SeqConfig.MODEL_TYPE}" in result.stdout


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "-"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_size": 13}, "decoder_size is 13, expected 12"),
        ({"embedding_size": 11}, r"mis-shaped: source_embedding is \[23, 10\], expected \[23, 11"),
        ({"num_layers": 2}, "missing: encoder.weight_ih_l1"),
        ({"num_layers": 10**9}, "num_layers is 1000000000, expected an integer from 1 to 1000"),
        ({"attention": "additive"}, r"missing: attention.key.weight"),
        ({"cell": "lstm"}, "mis-shaped: encoder.weight_hh_l0"),
        ({"cell": "tree"}, "cell is 'tree', expected one of"),
        ({"cell": ["gru"]}, "cell is .'gru'., expected one of"),
        ({"target_vocab_size": "-"}, "missing 1 required positional argument"),
        ({"vocab": 3}, "unknown field 'vocab'"),
        ({"eos_token_ids": [19]}, "eos_token_ids is .19,., expected ids below 19"),
        ({"eos_token_ids": 3}, "eos_token_ids is 3, expected ids"),
        ({"bos_token_id": None}, "bos_token_id is .None,., expected ids"),
        ({"bidirectional": 1}, "bidirectional is 1, expected true or false"),
        ({"encoder_size": 2**31}, "encoder_size is 2147483648, expected an integer"),
        ({"encoder_size": True}, "encoder_size is True, expected an integer"),
    ],
)
def test_config_and_weights_that_disagree(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    made().save(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        softgate.load(tmp_path)


def test_a_missing_tensor(tmp_path: Path) -> None:
    made().save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["output.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: output.bias"):
        softgate.load(tmp_path)
    with pytest.raises(ValueError, match="a softgate_seq2seq is float32 on 'cpu'"):
        softgate.load(tmp_path, "int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bidirectional": True}, "decoder_size is 12, expected 24"),
        (
            {"attention": "dot", "bidirectional": True, "first_state": "bridge"},
            "decoder_size is 12, expected 24, the encoder's, or attention 'general'",
        ),
        ({"attention_size": 4}, "attention_size is 4, but attention is 'none'"),
        ({"attentional_size": 4}, "attentional_size is 4, but attention is 'none'"),
        ({**ATTENTION, "input_feeding": True}, "attentional_size is missing"),
        ({"first_state": "ones"}, "first_state is 'ones', expected one of"),
        ({"attention": "self"}, "attention is 'self', expected one of"),
        ({"attention_at": "once"}, "attention_at is 'once', expected one of"),
        ({"source_vocab_size": 0}, "source_vocab_size is 0"),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)


# Input


@pytest.mark.parametrize(
    ("sources", "targets", "options", "error", "message"),
    [
        ([[1], []], [[2], [2]], {}, ValueError, r"source_ids\[1\] has no tokens"),
        ([[1]], [[]], {}, ValueError, r"target_ids\[0\] has no tokens"),
        ([[1]], [[2], [2]], {}, ValueError, "target_ids: 2 sequences, expected 1"),
        ([[23]], [[2]], {}, ValueError, "source_ids holds 23, expected ids below 23"),
        ([[1]], [[-1]], {}, ValueError, "target_ids holds -1, expected ids below 19"),
        ([[1.5]], [[2]], {}, TypeError, "source_ids: expected a list of lists of token ids"),
        ([1, 2], [[2]], {}, TypeError, "source_ids: expected a list of lists"),
        ("ab", [[2]], {}, TypeError, "source_ids: expected a list of lists"),
        (["ab"], [[2]], {}, TypeError, "source_ids: expected a list of lists"),
        (np.ones((1, 2)), [[2]], {}, ValueError, "source_ids: float64 array of shape"),
        (np.ones(3, int), [[2]], {}, ValueError, r"source_ids: int64 array of shape \[3\]"),
        (
            np.ones((1, 2), int), [[2]], {"source_mask": np.ones((2, 2))},
            ValueError, r"its mask has shape \[2, 2\], expected \[1, 2\]",
        ),
        (
            np.ones((1, 2), int), [[2]], {"source_mask": np.zeros((1, 2))},
            ValueError, r"source_ids\[0\] has no tokens",
        ),
        ([[1]], [[2]], {"source_mask": np.ones((1, 1))}, ValueError, "a mask is for an array"),
        ([[1]], [[2]], {"output_attentions": True}, ValueError, "the model has no attention"),
    ],
)  # fmt: skip
def test_input_that_is_refused(
    sources: Any, targets: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made()(sources, targets, **options)


def test_a_network_without_weights() -> None:
    with pytest.raises(ValueError, match="has no"):
        Seq2Seq(BASE, seed=None).encoder(np.zeros((1, 10), np.float32))


# Generation


def greedy(model: Seq2Seq, source: list[int], length: int) -> list[int]:
    restated, target = Restated(model), [model.config.bos_token_id]
    while len(target) <= length:
        target.append(int(restated(source, target)[0][-1].argmax()))
        if target[-1] in model.config.eos_token_ids:
            break
    return target[1:]


def test_one_beam_is_greedy(model: Seq2Seq) -> None:
    found = model.generate(SOURCES, num_beams=1, early_stopping=True, max_new_tokens=9)
    for source, (best,) in zip(SOURCES, found, strict=True):
        assert best.token_ids == greedy(model, source, 9)
    lengths = {len(best.token_ids) for (best,) in found}
    assert lengths != {1}


def every_target(model: Seq2Seq, source: list[int], length: int) -> list[tuple[float, list[int]]]:
    """All targets up to a length, with log-probability over length."""
    bos, (eos,) = model.config.bos_token_id, model.config.eos_token_ids
    found: list[tuple[float, list[int]]] = []
    open_ones: list[tuple[float, list[int]]] = [(0.0, [])]
    for n in range(1, length + 1):
        targets = [[bos, *ids] for _, ids in open_ones]
        logits = model([source] * len(targets), targets).logits[n - 1 :: n].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        grown = [
            (total + value, [*ids, token])
            for (total, ids), row in zip(open_ones, logprobs, strict=True)
            for token, value in enumerate(row)
        ]
        found += [(total / n, ids) for total, ids in grown if ids[-1] == eos or n == length]
        open_ones = [(total, ids) for total, ids in grown if ids[-1] != eos]
    return sorted(found, reverse=True)


def test_wide_enough_a_beam_finds_the_best() -> None:
    model = made(attention="general", target_vocab_size=6)
    (found,) = model.generate(
        [[1, 2, 3]], num_beams=5, num_return=3, max_new_tokens=3, early_stopping="never"
    )
    expected = every_target(model, [1, 2, 3], 3)
    assert found[0].token_ids == expected[0][1]
    assert found[0].score == pytest.approx(expected[0][0], abs=1e-5)


@pytest.mark.usefixtures("rows_of_any_number")
def test_beams_do_not_depend_on_the_batch(model: Seq2Seq) -> None:
    settings = BeamSearch(num_beams=3, num_return=3, max_new_tokens=8)
    together = model.generate(SOURCES, settings)
    assert together == model.generate(SOURCES, settings, batch_size=1)
    assert together[::-1] == model.generate(SOURCES[::-1], settings, batch_size=3)
    for source, hypotheses in zip(SOURCES, together, strict=True):
        for found in hypotheses:
            (score,) = model.score([source], [found.token_ids])
            assert score.total_logprob == pytest.approx(found.logprob, abs=1e-4)


def test_translating_texts() -> None:
    model = made(source_vocab_size=9, target_vocab_size=9)
    with pytest.raises(ValueError, match="needs a target_tokenizer"):
        model.translate(["the warp"])
    model.target_tokenizer = Tokenizer.train("whitespace", ["la trame et le fil"])
    with pytest.raises(ValueError, match=r"sources\[0\], a str, needs a source_tokenizer"):
        model.translate(["the warp"])
    model.source_tokenizer = Tokenizer.train("whitespace", ["the warp and the weft x"])
    texts = model.translate(["the warp", "weft"], max_new_tokens=4)
    (best,), _ = model.generate(["the warp", "weft"], max_new_tokens=4)
    assert best.text == texts[0]
    assert texts[0] == model.target_tokenizer.decode(best.token_ids)
    with pytest.raises(ValueError, match=r"sources\[0\] has no tokens"):
        model.translate(["  "])
    with pytest.raises(TypeError, match="texts is a str"):
        model.translate("the warp")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 2000}, "max_new_tokens is 2000, expected at most 1024"),
        ({"num_beams": 19}, "num_beams is 19, expected at most 18, the tokens that do not end"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"stop_tokens": [19]}, "stop_tokens holds 19, expected ids below 19"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made().generate(SOURCES, **settings)


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        ("the warp", TypeError, "sources is a str, expected a list"),
        ([1, 2], TypeError, r"sources\[0\] is 1, expected str or token ids"),
        ([[1], []], ValueError, "has no tokens"),
        ([[1], [99]], ValueError, "source_ids holds 99"),
    ],
)
def test_sources_that_are_refused(sources: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made().generate(sources)
    assert made().generate([]) == []
