"""Encoders whose weights have fewer bits."""

from __future__ import annotations

import re

import hugging_face_bert as oracle
import numpy as np
import pytest
import softgate
from sentences import SENTENCES
from softgate import nn
from softgate.checkpoint import open_checkpoint
from softgate.models.bert import Bert
from softgate.models.bert_config import FAMILIES, BertConfig
from test_bert_families import tiny_dict
from weights import minilm  # noqa: F401

IDS = [[5, 6, 7, 8, 9], [10], [3] * 40]


def make(model_type="bert", task="sequence-classification", dtype="float32", **changes):
    sizes = (
        {"dim": 64, "hidden_dim": 96}
        if model_type == "distilbert"
        else {"hidden_size": 64, "intermediate_size": 96}
    )
    config = BertConfig.from_dict(tiny_dict(model_type, task) | sizes | changes)
    model = Bert(config, dtype=dtype, seed=None)
    model.init_weights(seed=1, std=0.2)
    return model


def exact(model):
    """In float32, of what the weights stand for."""
    twin = Bert(model.config, seed=None, pooler=model.pooler is not None)
    twin.load_state_dict({name: p.numpy() for name, p in model.named_parameters()})
    return twin


def relative_error(actual, expected):
    return np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("task", [None, "masked-lm"])
def test_sixteen_bits_are_stored_and_computed_with_in_float32(dtype, task, tmp_path):
    model = make(task=task, dtype=dtype)
    assert model.dtype == dtype
    expected = exact(model)(IDS)
    output = model(IDS)
    np.testing.assert_allclose(
        output.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5
    )
    assert (output.last_hidden_state != make(task=task)(IDS).last_hidden_state).any()
    model.save(tmp_path)
    stored = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    with open_checkpoint(tmp_path) as checkpoint:
        (name,) = (n for n in checkpoint.dtypes if n.endswith("layer.1.output.dense.weight"))
        assert checkpoint.dtypes[name] == stored
        assert checkpoint.config["torch_dtype"] == dtype
    again = softgate.load(tmp_path)
    assert again.dtype == dtype
    np.testing.assert_array_equal(again(IDS).last_hidden_state, output.last_hidden_state)
    assert softgate.load(tmp_path, dtype="float32").dtype == "float32"


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("task", [None, *oracle.HEADS])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_quantised_models_are_near_and_load_back_bit_for_bit(model_type, task, dtype, tmp_path):
    model = make(
        model_type,
        task,
        dtype,
        **({"embedding_size": 32} if model_type in ("albert", "electra") else {}),
    )
    output, expected = model(IDS), exact(model)(IDS)
    error = relative_error(output.last_hidden_state, expected.last_hidden_state)
    assert 0 < error < 0.05  # activations are rounded to 8 bits
    if task is not None:
        assert relative_error(output.logits, expected.logits) < 0.1
    model.save(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    again = softgate.load(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(again(IDS).last_hidden_state, output.last_hidden_state)
    if task is not None:
        np.testing.assert_array_equal(again(IDS).logits, output.logits)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert a.value.dtype == b.value.dtype, name
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)


def test_quantising_what_is_quantised_is_refused(tmp_path):
    model = make()
    assert model.to(dtype="int8") is model
    assert model.dtype == "int8"
    for dtype in ("int8", "int4"):
        message = f"to: dtype is '{dtype}', but weights are quantised already"
        with pytest.raises(ValueError, match=re.escape(message)):
            model.to(dtype=dtype)
    model.save(tmp_path)
    for dtype in ("int8", "int4", "float32"):
        message = f"dtype is '{dtype}', expected None: the weights are quantised"
        with pytest.raises(ValueError, match=re.escape(message)):
            softgate.load(tmp_path, dtype=dtype)
    expected = exact(model)(IDS).logits
    np.testing.assert_array_equal(model.to(dtype="float32")(IDS).logits, expected)


def test_all_ways_to_a_dtype_give_the_same(tmp_path):
    make().save(tmp_path)
    for dtype in ("bfloat16", "float16", "int8", "int4"):
        loaded = softgate.load(tmp_path, dtype=dtype)
        moved = softgate.load(tmp_path).to(dtype=dtype)
        filled = Bert(loaded.config, dtype=dtype, seed=None)
        filled.load_state_dict(make().state_dict())
        for other in (moved, filled):
            assert other.dtype == dtype
            np.testing.assert_array_equal(other(IDS).logits, loaded(IDS).logits)
    with pytest.raises(ValueError, match="dtype is 'float8'"):
        softgate.load(tmp_path, dtype="float8")


@pytest.mark.usefixtures("rows_of_any_number")
def test_results_do_not_depend_on_the_batch_or_threads(thread_counts):
    model = make(dtype="int8")
    alone = np.concatenate([model([ids]).last_hidden_state for ids in IDS])
    for _ in thread_counts:
        np.testing.assert_array_equal(model(IDS).last_hidden_state, alone)


# Weights with a scale for each group of columns


@pytest.mark.parametrize("columns", [32, 96, 33])
def test_grouped_weights_are_within_half_a_step(columns):
    weight = np.random.default_rng(0).standard_normal((20, columns), dtype=np.float32)
    weight[3] = 0
    weight[4] *= 1e-9
    weight[:, :32] *= 100
    parameter = nn.Parameter(20, columns, packed=True, grouped=True)
    parameter.fill(weight, "int8")
    stretch = 32 if columns % 32 == 0 else columns
    groups = np.abs(weight).reshape(20, -1, stretch)
    step = groups.max(axis=2, keepdims=True) / 127
    found = parameter.numpy()
    error = np.abs(found - weight).reshape(groups.shape)
    # A scale is rounded to float16, whose smallest number is 6e-8.
    assert (error <= step * 0.5 + 127 * step * 2**-11 + 127 * 3e-8).all()
    assert not found[3].any()
    again = nn.Parameter(20, columns, packed=True, grouped=True)
    again.load_state(parameter.state())
    np.testing.assert_array_equal(again.numpy(), found)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_weights_that_integers_cannot_hold_are_refused(value):
    weight = np.ones((4, 32), dtype=np.float32)
    weight[1, 2] = value
    with pytest.raises(ValueError, match="too large for int8, or not finite"):
        nn.Parameter(4, 32, packed=True, grouped=True).fill(weight, "int8")


# Real weights


def test_minilm_in_integers_is_near_float32(minilm):  # noqa: F811
    assert len(set(SENTENCES)) == 200
    expected = softgate.load(minilm).encode(SENTENCES)
    model = softgate.load(minilm, dtype="int8")
    cosine = (expected * model.encode(SENTENCES)).sum(axis=1)
    assert cosine.mean() >= 0.999
    assert cosine.min() >= 0.99


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_minilm_in_sixteen_bits_is_nearer(minilm, dtype):  # noqa: F811
    texts = SENTENCES[::10]
    expected = softgate.load(minilm).encode(texts)
    cosine = (expected * softgate.load(minilm, dtype=dtype).encode(texts)).sum(axis=1)
    assert cosine.min() >= 0.9999
