"""BERT against Hugging Face with the same weights, and its own promises."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import softgate
from softgate.checkpoint import CheckpointError, open_checkpoint
from softgate.models.bert import Bert, BertConfig
from weights import minilm  # noqa: F401

# Errors of float32 add up over layers; hidden states are of size 1 after their norm.
HIDDEN_TOLERANCE = {"rtol": 0, "atol": 2e-5}
WEIGHTS_TOLERANCE = {"rtol": 0, "atol": 2e-6}

TINY = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
}
CONFIGS = {
    "tiny": {},
    "one_head": {"num_attention_heads": 1},
    "many_heads": {"num_attention_heads": 16},
    "odd_sizes": {"hidden_size": 33, "num_attention_heads": 3, "intermediate_size": 17},
    "gelu_tanh": {"hidden_act": "gelu_new"},
    "relu": {"hidden_act": "relu"},
    "silu": {"hidden_act": "silu"},
    "large_eps": {"layer_norm_eps": 1e-3},
    "one_type": {"type_vocab_size": 1},
}


def hugging_face(**changes):
    """A Hugging Face model with weights large enough that every part of it shows."""
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    config = transformers.BertConfig(**{**TINY, **changes}, attn_implementation="eager")
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def save_hugging_face(model, folder):
    model.save_pretrained(folder)
    return folder


def run_hugging_face(model, input_ids, attention_mask, token_type_ids):
    import torch

    with torch.inference_mode():
        return model(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask),
            token_type_ids=torch.from_numpy(token_type_ids),
            output_hidden_states=True,
            output_attentions=True,
        )


def batch(config, lengths, seed=0):
    rng = np.random.default_rng(seed)
    length = max(lengths)
    input_ids = rng.integers(0, config.vocab_size, (len(lengths), length))
    token_type_ids = rng.integers(0, config.type_vocab_size, (len(lengths), length))
    attention_mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int64)
    return input_ids, attention_mask, token_type_ids


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lengths", [[1], [40], [7, 1, 40, 16, 23]], ids=str)
def test_equals_hugging_face(name, lengths, tmp_path):
    theirs = hugging_face(**CONFIGS[name])
    ours = softgate.load(save_hugging_face(theirs, tmp_path))
    input_ids, attention_mask, token_type_ids = batch(ours.config, lengths)
    expected = run_hugging_face(theirs, input_ids, attention_mask, token_type_ids)
    output = ours(
        input_ids,
        attention_mask,
        token_type_ids,
        output_hidden_states=True,
        output_attentions=True,
    )
    kept = attention_mask != 0
    np.testing.assert_allclose(
        output.last_hidden_state[kept], expected.last_hidden_state.numpy()[kept], **HIDDEN_TOLERANCE
    )
    assert not output.last_hidden_state[~kept].any()
    np.testing.assert_allclose(
        output.pooler_output, expected.pooler_output.numpy(), **HIDDEN_TOLERANCE
    )
    assert len(output.hidden_states) == len(expected.hidden_states)
    for actual, hidden in zip(output.hidden_states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(actual[kept], hidden.numpy()[kept], **HIDDEN_TOLERANCE)
    for actual, weights in zip(output.attentions, expected.attentions, strict=True):
        rows = np.broadcast_to(kept[:, None, :], actual.shape[:3])
        np.testing.assert_allclose(actual[rows], weights.numpy()[rows], **WEIGHTS_TOLERANCE)
        assert not actual[~rows].any()


def test_mask_with_holes_equals_hugging_face(tmp_path):
    theirs = hugging_face()
    ours = softgate.load(save_hugging_face(theirs, tmp_path))
    input_ids, _, token_type_ids = batch(ours.config, [17, 17])
    attention_mask = np.random.default_rng(5).integers(0, 2, input_ids.shape)
    expected = run_hugging_face(theirs, input_ids, attention_mask, token_type_ids)
    output = ours(input_ids, attention_mask, token_type_ids, output_attentions=True)
    kept = attention_mask != 0
    np.testing.assert_allclose(
        output.last_hidden_state[kept], expected.last_hidden_state.numpy()[kept], **HIDDEN_TOLERANCE
    )
    rows = np.broadcast_to(kept[:, None, :], output.attentions[0].shape[:3])
    np.testing.assert_allclose(
        output.attentions[0][rows], expected.attentions[0].numpy()[rows], **WEIGHTS_TOLERANCE
    )


def test_lists_give_packed_output_equal_to_padded():
    model = Bert(BertConfig(**TINY), seed=1)
    input_ids, attention_mask, token_type_ids = batch(model.config, [3, 9, 1])
    padded = model(input_ids, attention_mask, token_type_ids)
    packed = model(
        [row[:n].tolist() for row, n in zip(input_ids, (3, 9, 1), strict=True)],
        token_type_ids=[row[:n].tolist() for row, n in zip(token_type_ids, (3, 9, 1), strict=True)],
    )
    assert packed.cu_seqlens.tolist() == [0, 3, 12, 13]
    np.testing.assert_array_equal(
        packed.last_hidden_state, padded.last_hidden_state[attention_mask != 0]
    )
    np.testing.assert_array_equal(packed.pooler_output, padded.pooler_output)


@pytest.mark.parametrize("lengths", [(16, 17, 40, 22, 33), (1, 17, 40, 6, 33)], ids=str)
def test_independent_of_batch_composition_and_threads(lengths, thread_counts, request):
    if min(lengths) < 16:
        request.getfixturevalue("rows_of_any_number")
    model = Bert(BertConfig(**TINY), seed=1)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 99, n).tolist() for n in lengths]
    alone = np.concatenate([model([ids]).last_hidden_state for ids in texts])
    for _ in thread_counts:
        np.testing.assert_array_equal(model(texts).last_hidden_state, alone)


@pytest.mark.parametrize("ids", [[], [[]], [[], [3, 4], []]], ids=str)
def test_empty_batches_and_sequences(ids):
    model = Bert(BertConfig(**TINY))
    output = model(ids)
    assert output.last_hidden_state.shape == (sum(map(len, ids)), 48)
    assert output.pooler_output.shape == (len(ids), 48)
    assert np.isfinite(output.last_hidden_state).all()


def test_random_weights_follow_the_seed():
    config = BertConfig(**TINY)
    first, again, other = (Bert(config, seed=seed).state_dict() for seed in (3, 3, 4))
    name = "layers.1.feed_forward.up.weight"
    np.testing.assert_array_equal(first[name], again[name])
    assert (first[name] != other[name]).any()


def test_save_is_read_by_hugging_face_and_by_us(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    model = Bert(BertConfig(**TINY), seed=2)
    model.save(tmp_path / "saved")
    again = softgate.load(tmp_path / "saved")
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array, err_msg=name)
    theirs = transformers.BertModel.from_pretrained(tmp_path / "saved").eval()
    input_ids, attention_mask, token_type_ids = batch(model.config, [5, 8])
    expected = run_hugging_face(theirs, input_ids, attention_mask, token_type_ids)
    np.testing.assert_allclose(
        model(input_ids, attention_mask, token_type_ids).last_hidden_state[attention_mask != 0],
        expected.last_hidden_state.numpy()[attention_mask != 0],
        **HIDDEN_TOLERANCE,
    )


def test_whole_model_files_and_old_norm_names(tmp_path):
    """Files with a head, "bert." in front and gamma and beta are the same encoder."""
    model = Bert(BertConfig(**TINY), pooler=False, seed=2)
    model.save(tmp_path / "plain")
    with open_checkpoint(tmp_path / "plain") as checkpoint:
        config = checkpoint.config
        tensors = {name: checkpoint.tensors[name].copy() for name in checkpoint.tensors}
    old = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): array
        for name, array in tensors.items()
    }
    old["cls.predictions.bias"] = np.zeros(99, np.float32)
    softgate.checkpoint.save_checkpoint(tmp_path / "old", config, old)
    loaded = softgate.load(tmp_path / "old")
    assert loaded.pooler is None
    np.testing.assert_array_equal(
        loaded([[1, 2, 3]]).last_hidden_state, model([[1, 2, 3]]).last_hidden_state
    )


def edit_checkpoint(source, folder, edit_config=None, edit_tensors=None):
    with open_checkpoint(source) as checkpoint:
        config = dict(checkpoint.config)
        tensors = {name: checkpoint.tensors[name].copy() for name in checkpoint.tensors}
    if edit_config:
        edit_config(config)
    if edit_tensors:
        edit_tensors(tensors)
    softgate.checkpoint.save_checkpoint(folder, config, tensors)
    return folder


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert") / "tiny"
    Bert(BertConfig(**TINY), seed=0).save(folder)
    return folder


KEY = "encoder.layer.1.attention.self.key.weight"
BROKEN_TENSORS = {
    "missing": (lambda t: t.pop(KEY), f"missing: {KEY}"),
    "unexpected": (lambda t: t.update(extra=t[KEY]), "unexpected: extra"),
    "mis-shaped": (
        lambda t: t.update({KEY: t[KEY][:, :7].copy()}),
        f"mis-shaped: {KEY} is [48, 7], expected [48, 48]",
    ),
}


@pytest.mark.parametrize("name", BROKEN_TENSORS)
def test_broken_tensors_are_listed(name, tiny_folder, tmp_path):
    edit, message = BROKEN_TENSORS[name]
    folder = edit_checkpoint(tiny_folder, tmp_path / "broken", edit_tensors=edit)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        softgate.load(folder)


BROKEN_CONFIGS = {
    "unknown family": (
        {"model_type": "xlnet"},
        "model_type is 'xlnet', softgate supports: albert, bart,",
    ),
    "no family": ({"model_type": None}, "model_type is None"),
    "missing size": ({"hidden_size": ...}, "hidden_size missing"),
    "zero heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "negative": ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    "huge": ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
    "huge but an int": ({"intermediate_size": 2**31 - 1}, "mis-shaped"),
    "text": ({"hidden_size": "48"}, "hidden_size is '48'"),
    "boolean": ({"hidden_size": True}, "hidden_size is True"),
    "heads do not divide": ({"num_attention_heads": 7}, "expected a multiple of"),
    "activation": ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
    "activation of a wrong type": ({"hidden_act": ["gelu"]}, "hidden_act is ['gelu']"),
    "eps": ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "relative_key"),
    "decoder": ({"is_decoder": True}, "is_decoder is True"),
}


@pytest.mark.parametrize("name", BROKEN_CONFIGS)
def test_absurd_configs_are_refused(name, tiny_folder, tmp_path):
    changes, message = BROKEN_CONFIGS[name]

    def edit(config):
        config.update(changes)
        for key in [key for key, value in config.items() if value is ...]:
            del config[key]

    folder = edit_checkpoint(tiny_folder, tmp_path / "absurd", edit_config=edit)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        softgate.load(folder)


BAD_CALLS = {
    "id outside": (([[1, 99]],), {}, ValueError, "99"),
    "negative id": (([[1, -1]],), {}, ValueError, "-1"),
    "too long": (([[1] * 41],), {}, ValueError, "41 tokens, expected at most 40"),
    "flat list": (([1, 2, 3],), {}, TypeError, "input_ids"),
    "fractions": (([[1.5]],), {}, TypeError, "input_ids"),
    "one dimension": ((np.array([1, 2]),), {}, ValueError, "[batch, length]"),
    "float ids": ((np.ones((1, 2)),), {}, ValueError, "float64"),
    "mask shape": ((np.ones((1, 2), int), np.ones((1, 3))), {}, ValueError, "attention_mask"),
    "mask with list": (([[1]], np.ones((1, 1))), {}, ValueError, "attention_mask"),
    "type lengths": (([[1, 2]],), {"token_type_ids": [[0]]}, ValueError, "token_type_ids"),
    "type outside": (([[1]],), {"token_type_ids": [[3]]}, ValueError, "3"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(name):
    args, kwargs, error, message = BAD_CALLS[name]
    model = Bert(BertConfig(**TINY))
    with pytest.raises(error, match=re.escape(message)):
        model(*args, **kwargs)


def test_state_dict_round_trip_and_problems():
    config = BertConfig(**TINY)
    source, target = Bert(config, seed=1), Bert(config, seed=2)
    state = source.state_dict()
    target.load_state_dict(state)
    np.testing.assert_array_equal(
        target([[5, 6]]).last_hidden_state, source([[5, 6]]).last_hidden_state
    )
    name = "embedding.norm.bias"
    with pytest.raises(ValueError, match=f"missing: {name}"):
        target.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match="unexpected: other"):
        target.load_state_dict({**state, "other": state[name]})
    with pytest.raises(ValueError, match=rf"mis-shaped: {name} is \[2\], expected \[48\]"):
        target.load_state_dict({**state, name: np.zeros(2, np.float32)})


TEXTS = [
    "A heddle lifts the warp.",
    "",
    "Looms weave cloth.",
    "The treaty was signed. " * 30,
    "한국어 문장도 됩니다.",
    "word " * 400,
]


def test_minilm_equals_sentence_transformers_definition(minilm):  # noqa: F811
    """Mean of the token vectors, then length 1, computed by Hugging Face."""
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    model = softgate.load(minilm)
    assert (model.pooling, model.max_length) == ("mean", 256)
    with pytest.warns(UserWarning, match="1 of 6 texts were cut to 256 tokens"):
        vectors = model.encode(TEXTS, truncate=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = transformers.BertModel.from_pretrained(minilm).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    cosine = (vectors * expected).sum(axis=1)
    assert cosine.min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.usefixtures("rows_of_any_number")
def test_minilm_encode_in_small_batches_is_the_same(minilm):  # noqa: F811
    model = softgate.load(minilm)
    texts = [text[:80] for text in TEXTS]
    whole = model.encode(texts)
    pieces = model.encode(texts, batch_tokens=1)
    np.testing.assert_array_equal(whole, pieces)
    assert model.encode([]).shape == (0, 384)


def test_minilm_refuses_what_it_cannot_encode(minilm):  # noqa: F811
    model = softgate.load(minilm)
    with pytest.raises(ValueError, match=r"texts\[1\] has 402 tokens, expected at most 256"):
        model.encode(["short", "word " * 400])
    with pytest.raises(ValueError, match="max_length is 513, expected 1 to 256"):
        model.encode(["a"], max_length=513)
    with pytest.raises(TypeError, match="texts"):
        model.encode("a bare string")


def test_minilm_survives_saving(minilm, tmp_path):  # noqa: F811
    model = softgate.load(minilm)
    model.save(tmp_path / "copy")
    again = softgate.load(tmp_path / "copy")
    assert again.sentence_pooling == model.sentence_pooling
    np.testing.assert_array_equal(again.encode(["Looms"]), model.encode(["Looms"]))
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["model_type"] == "bert"
