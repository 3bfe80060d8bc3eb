"""Recurrent language models: against plain torch, step by step and at once, generation, scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import softgate
from softgate.checkpoint import CheckpointError
from softgate.models.recurrent_lm import RecurrentLM, RecurrentLMConfig
from softgate.text import Tokenizer

torch = pytest.importorskip("torch", reason="torch is the oracle")

BASE = RecurrentLMConfig(vocab_size=31, embedding_size=11, hidden_size=13, num_layers=2)
CONFIGS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"cell": "gru", "num_layers": 1},
    "rnn": {"cell": "rnn"},
    "all layers": {"concat_layers": True},
    "average": {"average": True, "cell": "gru"},
    "average of all layers": {"average": True, "concat_layers": True},
    "wide average": {"average": True, "concat_layers": True, "hidden_size": 150},
}
TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [3, 5, 8, 9], [30, 0, 30]]
IDS = [token for text in TEXTS for token in text]
OFFSETS = np.cumsum([0, *map(len, TEXTS)])


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def model(request: pytest.FixtureRequest) -> RecurrentLM:
    return made(**CONFIGS[request.param])


def made(**changes: Any) -> RecurrentLM:
    model = RecurrentLM(replace(BASE, **changes), seed=None)
    model.init_weights(seed=5, std=0.4)
    return model


@torch.no_grad()
def restated(model: RecurrentLM, text: list[int]) -> Any:
    """The logits after each token, in torch."""
    config = model.config
    weights = {name: torch.tensor(array) for name, array in model.state_dict().items()}
    kind = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[config.cell]
    x = weights["embedding"][text]
    outputs = [x]
    for i in range(config.num_layers):
        layer = kind(x.shape[1], config.hidden_size)
        layer.load_state_dict({n: weights[f"layers.{i}.{n}"] for n in layer.state_dict()})
        x, _ = layer(x)
        outputs.append(x)
    if config.concat_layers:
        x = torch.cat(outputs, dim=1)
    if config.average:
        scores = x @ weights["score_of.weight"][0]
        x = torch.stack([torch.softmax(scores[: t + 1], 0) @ x[: t + 1] for t in range(len(text))])
    return torch.nn.functional.linear(x, weights["output.weight"], weights["output.bias"]).numpy()


@pytest.mark.usefixtures("isa")
def test_equals_torch(model: RecurrentLM) -> None:
    found = model(IDS, OFFSETS).numpy()
    expected = np.concatenate([restated(model, text) for text in TEXTS])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    last = model(IDS, OFFSETS, logits="last").numpy()
    np.testing.assert_allclose(last, found[OFFSETS[1:] - 1], rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("rows_of_any_number")
def test_a_batch_equals_each_alone(model: RecurrentLM) -> None:
    alone = [model(text).numpy() for text in TEXTS]
    np.testing.assert_array_equal(model(IDS, OFFSETS).numpy(), np.concatenate(alone))


def test_piece_by_piece_equals_at_once(model: RecurrentLM) -> None:
    cache = model.new_cache(3)
    whole = model(TEXTS[0]).numpy()
    first = model([*TEXTS[2], *TEXTS[0][:3]], [0, 4, 7], cache, rows=[2, 0]).numpy()
    rest = [model(TEXTS[0][i : i + 1], cache=cache, rows=[0]).numpy() for i in range(3, 8)]
    np.testing.assert_allclose(np.concatenate([first[4:], *rest]), whole, rtol=1e-5, atol=1e-6)
    assert cache.lengths.tolist() == [8, 0, 4]


def test_rows_are_copied_and_forgotten(model: RecurrentLM) -> None:
    cache = model.new_cache(2)
    model(TEXTS[0], cache=cache, rows=[0])
    cache.copy_rows([0], [1])
    after = [model([7], cache=cache, rows=[row]).numpy() for row in (0, 1)]
    np.testing.assert_array_equal(after[0], after[1])
    cache.truncate(0, 9)  # all that it has
    assert cache.lengths.tolist() == [9, 9]
    cache.truncate(0, 4)  # states do not go back
    assert cache.lengths.tolist() == [0, 9]
    np.testing.assert_array_equal(
        model(TEXTS[2], cache=cache, rows=[0]).numpy(), model(TEXTS[2]).numpy()
    )
    with pytest.raises(ValueError, match="length is 10, expected 0 to 9"):
        cache.truncate(1, 10)


def test_it_generates_as_its_logits_say(model: RecurrentLM) -> None:
    found = model.generate(TEXTS, max_new_tokens=6, stop_tokens=(), batch_size=3)
    for text, generation in zip(TEXTS, found, strict=True):
        tokens = list(text)
        for _ in range(6):
            tokens.append(int(restated(model, tokens)[-1].argmax()))
        assert generation.token_ids == tokens[len(text) :]
    drawn = [
        [g.token_ids for g in model.generate(TEXTS, temperature=1, seed=1, batch_size=size)]
        for size in (1, 4)
    ]
    assert drawn[0] == drawn[1]


def test_a_context_that_slides() -> None:
    model = made(max_length=12)
    generation = model.generate(TEXTS[0], max_new_tokens=20, context="slide", keep=2)
    assert len(generation.token_ids) == 20 or generation.finish_reason == "stop_token"
    slid = model.generate(TEXTS[0], max_new_tokens=20, context="slide", stop_tokens=())
    assert len(slid.token_ids) == 20


def test_it_scores_as_its_logits_say(model: RecurrentLM) -> None:
    logits = restated(model, TEXTS[0]).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = logprobs[np.arange(7), TEXTS[0][1:]]
    np.testing.assert_allclose(model.score(TEXTS[0]).logprobs[1:], expected, atol=1e-4)
    windowed = model.score(TEXTS[0], window=4, stride=2).logprobs
    np.testing.assert_allclose(windowed[1:4], expected[:3], atol=1e-4)


@pytest.mark.usefixtures("rows_of_any_number")
def test_beam_search(model: RecurrentLM) -> None:
    (best, *_) = model.beam_search(TEXTS[0], num_beams=1, early_stopping=True, max_new_tokens=5)
    greedy = model.generate(TEXTS[0], max_new_tokens=5)
    assert best.token_ids == greedy.token_ids
    found = model.beam_search(TEXTS, num_beams=4, num_return=4, max_new_tokens=5)
    for text, hypotheses in zip(TEXTS, found, strict=True):
        assert len({tuple(one.token_ids) for one in hypotheses}) == 4
        for one in hypotheses:
            score = model.score([*text, *one.token_ids]).logprobs[len(text) :]
            assert one.logprob == pytest.approx(float(score.sum()), abs=1e-4)
    assert found == model.beam_search(
        TEXTS, num_beams=4, num_return=4, max_new_tokens=5, batch_size=1
    )


def test_what_is_saved_is_loaded(model: RecurrentLM, tmp_path: Path) -> None:
    model.tokenizer = Tokenizer.train("syllable", ["날실과 씨실"])
    model.save(tmp_path)
    again = softgate.load(tmp_path)
    assert isinstance(again, RecurrentLM)
    assert again.config == model.config
    np.testing.assert_array_equal(again(IDS, OFFSETS).numpy(), model(IDS, OFFSETS).numpy())
    text = again.generate("날실", max_new_tokens=4)
    assert text.token_ids == model.generate("날실", max_new_tokens=4).token_ids
    again.config = replace(again.config, hidden_size=14)
    again.save(tmp_path)
    with pytest.raises(CheckpointError, match="mis-shaped: layers"):
        softgate.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([[]], {}, r"float64 array of shape \[0\], expected integers"),
        ([[31]], {}, "input_ids holds 31, expected ids below 31"),
        ([[-1]], {}, "input_ids holds -1"),
        ([[[1]]], {}, r"int64 array of shape \[1, 1\]"),
        ([[1, 2], [0, 1]], {}, "cu_seqlens: expected offsets from 0 to the 2 tokens"),
        ([[1, 2], [0, 1, 1, 2]], {}, "each above the one before"),
        ([[1, 2], [0.0, 2.0]], {}, "cu_seqlens: expected offsets"),
        ([[1]], {"logits": "some"}, "logits is 'some'"),
        ([[1]], {"rows": [2]}, "rows: .2., expected 1 different ones below 2"),
        ([[1], None], {"rows": None}, "rows: .0, 1., expected 1 different ones"),
        ([[1, 2], [0, 1, 2]], {"rows": [1, 1]}, "rows: .1, 1., expected 2 different"),
        ([[1] * 6], {"rows": [0]}, "the longest sequence has 6 tokens with those before"),
    ],
)
def test_input_that_is_refused(arguments: Any, options: Any, message: str) -> None:
    model = made()
    cache = model.new_cache(2, 5) if "rows" in options else None
    with pytest.raises(ValueError, match=message):
        model(*arguments, **options, cache=cache)
    assert cache is None or not cache.lengths.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "tree"}, "cell is 'tree'"),
        ({"average": 1}, "average is 1, expected true or false"),
        ({"num_layers": 0}, "num_layers is 0, expected an integer from 1 to 1000"),
        ({"eos_token_ids": (31,)}, r"eos_token_ids is \(31,\), expected ids below 31"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)


def test_caches_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="batch is 0"):
        made().new_cache(0)
    with pytest.raises(ValueError, match="capacity is 0"):
        made().new_cache(1, 0)
