"""Families of encoders and their heads against Hugging Face with the same weights."""

from __future__ import annotations

import dataclasses
import itertools
import re

import hugging_face_bert as oracle
import numpy as np
import pytest
import softgate
from hugging_face_bert import CASES, HEADS, SWITCHES
from softgate.checkpoint import CheckpointError, open_checkpoint, save_checkpoint
from softgate.models.bert import Bert
from softgate.models.bert_config import FAMILIES, BertConfig

# Errors of float32 add up over layers, and count in the size of what is compared.
TOLERANCE = 1e-5


def assert_near(actual, expected, factor=1):
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=factor * TOLERANCE * scale)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Pairs of a Hugging Face model and ours with the same weights, each made once."""
    made = {}

    def load(name, task=None, labels=3):
        if (name, task, labels) not in made:
            theirs = oracle.hugging_face(name, task, labels)
            folder = tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder)
            made[name, task, labels] = theirs, softgate.load(folder)
        return made[name, task, labels]

    return load


@pytest.mark.parametrize("name", CASES)
def test_encoder_equals_hugging_face(name, loaded):
    theirs, ours = loaded(name)
    ids, mask, types = oracle.batch(theirs, CASES[name].lengths)
    expected = oracle.run(theirs, ids, mask, types)
    output = ours(ids, mask, types, output_hidden_states=True, output_attentions=True)
    kept = mask != 0
    assert_near(output.last_hidden_state[kept], expected.last_hidden_state.numpy()[kept])
    assert not output.last_hidden_state[~kept].any()
    pooled = getattr(expected, "pooler_output", None)
    assert (output.pooler_output is None) == (pooled is None)
    if pooled is not None:
        assert_near(output.pooler_output, pooled.numpy())
    for actual, hidden in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert_near(actual[kept], hidden.numpy()[kept])
    for actual, weights in zip(output.attentions, expected.attentions, strict=True):
        rows = np.broadcast_to(kept[:, None, :], actual.shape[:3])
        assert_near(actual[rows], weights.numpy()[rows])
        assert not actual[~rows].any()
    # The other way through attention, which gives no weights.
    plain = ours(ids, mask, types).last_hidden_state
    assert_near(plain[kept], expected.last_hidden_state.numpy()[kept])


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("name", CASES)
def test_heads_equal_hugging_face(name, task, loaded):
    theirs, ours = loaded(name, task)
    assert ours.config.task == task
    ids, mask, types = oracle.batch(theirs, CASES[name].lengths)
    expected = oracle.logits_of(oracle.run(theirs, ids, mask, types), task)
    logits = ours(ids, mask, types).logits
    kept = slice(None) if task == "sequence-classification" else mask != 0
    assert_near(logits[kept], expected[kept])


@pytest.mark.usefixtures("rows_of_any_number")
@pytest.mark.parametrize("name", CASES)
def test_lists_give_packed_output_equal_to_padded(name, loaded):
    theirs, ours = loaded(name)
    ids, mask, types = oracle.batch(theirs, CASES[name].lengths)
    kept = mask != 0
    padded = ours(ids, mask, types)
    rows = [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)]
    of_rows = None if types is None else [r[k].tolist() for r, k in zip(types, kept, strict=True)]
    packed = ours(rows, token_type_ids=of_rows)
    np.testing.assert_array_equal(packed.last_hidden_state, padded.last_hidden_state[kept])
    alone = [
        ours([row], token_type_ids=None if of_rows is None else [of_rows[i]]).last_hidden_state
        for i, row in enumerate(rows)
    ]
    np.testing.assert_array_equal(packed.last_hidden_state, np.concatenate(alone))


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "modernbert"])
def test_padding_on_the_left_equals_hugging_face(name, loaded):
    theirs, ours = loaded(name)
    ids, mask, types = oracle.batch(theirs, CASES[name].lengths)
    ids, mask = ids[:, ::-1].copy(), mask[:, ::-1].copy()
    expected = oracle.run(theirs, ids, mask, types).last_hidden_state.numpy()
    assert_near(ours(ids, mask, types).last_hidden_state[mask != 0], expected[mask != 0])


@pytest.mark.parametrize("name", ["mpnet", "modernbert"])
def test_holes_are_refused_where_positions_are_relative(name, loaded):
    _, ours = loaded(name)
    ids = np.ones((2, 4), int)
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 1]])
    with pytest.raises(ValueError, match="padding between tokens"):
        ours(ids, mask)


@pytest.mark.parametrize(("name", "field", "value"), SWITCHES)
def test_every_switch_shows(name, field, value, loaded):
    """The comparison with Hugging Face would notice a switch that does nothing."""
    theirs, ours = loaded(name, "sequence-classification")
    config = dataclasses.replace(ours.config, **{field: value})
    assert config != ours.config
    other = Bert(config, seed=None)
    other.load_state_dict(ours.state_dict())
    ids, mask, types = oracle.batch(theirs, CASES[name].lengths)
    expected = oracle.run(theirs, ids, mask, types).logits.numpy()
    error = np.abs(other(ids, mask, types).logits - expected).max()
    assert error > 5 * TOLERANCE * max(1, np.abs(expected).max())


@pytest.mark.parametrize("task", [None, *HEADS])
@pytest.mark.parametrize("name", CASES)
def test_saved_folders_are_read_by_hugging_face_and_by_us(name, task, loaded, tmp_path):
    theirs, ours = loaded(name, task)
    ours.save(tmp_path)
    again = softgate.load(tmp_path)
    assert again.config == ours.config
    for key, array in ours.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key], array, err_msg=key)
    reread = type(theirs).from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids, mask, types = oracle.batch(theirs, (5, 9))
    before, after = (oracle.run(model, ids, mask, types) for model in (theirs, reread))
    if task is None:
        before, after = (o.last_hidden_state.numpy() for o in (before, after))
    else:
        before, after = (oracle.logits_of(o, task) for o in (before, after))
    np.testing.assert_allclose(
        after[mask != 0] if before.ndim > 2 else after,
        before[mask != 0] if before.ndim > 2 else before,
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", CASES)
def test_files_of_the_whole_model_are_read_as_the_encoder(name, loaded, tmp_path):
    """A folder for a task holds the encoder too, under names with a prefix."""
    theirs, ours = loaded(name, "token-classification")
    with open_checkpoint_of(ours, tmp_path / "whole") as checkpoint:
        config = dict(checkpoint.config) | {"architectures": None}
        tensors = {key: checkpoint.tensors[key].copy() for key in checkpoint.tensors}
    save_checkpoint(tmp_path / "plain", config, tensors)
    encoder = softgate.load(tmp_path / "plain")
    assert (encoder.config.task, encoder.head, encoder.pooler) == (None, None, None)
    ids, mask, types = oracle.batch(theirs, (5, 9))
    np.testing.assert_array_equal(
        encoder(ids, mask, types).last_hidden_state, ours(ids, mask, types).last_hidden_state
    )


def open_checkpoint_of(model, folder):
    model.save(folder)
    return open_checkpoint(folder)


def edit(folder, change_config=None, change_tensors=None):
    """Rewrite a checkpoint after changes to its config and tensors."""
    with open_checkpoint(folder) as checkpoint:
        config = dict(checkpoint.config)
        tensors = {name: checkpoint.tensors[name].copy() for name in checkpoint.tensors}
    if change_config:
        change_config(config)
    if change_tensors:
        change_tensors(tensors)
    save_checkpoint(folder, config, tensors)
    return folder


def test_the_tied_bias_has_two_names(loaded, tmp_path):
    theirs, ours = loaded("bert", "masked-lm")
    ours.save(tmp_path)
    ids, mask, types = oracle.batch(theirs, (5, 9))
    expected = ours(ids, mask, types).logits

    def other_name(tensors):
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")

    def both(tensors):
        tensors["cls.predictions.bias"] = tensors["cls.predictions.decoder.bias"]
        tensors["cls.predictions.decoder.weight"] = tensors[
            "bert.embeddings.word_embeddings.weight"
        ]
        tensors["bert.pooler.dense.weight"] = np.zeros((48, 48), np.float32)
        tensors["cls.seq_relationship.weight"] = np.zeros((2, 48), np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(64)

    for change in (other_name, both):
        again = softgate.load(edit(tmp_path, change_tensors=change))
        np.testing.assert_array_equal(again(ids, mask, types).logits, expected)


def test_labels_that_do_not_match_the_head_are_refused(loaded, tmp_path):
    _, ours = loaded("bert", "sequence-classification")
    ours.save(tmp_path)
    edit(tmp_path, lambda config: config.update(id2label={"0": "no", "1": "yes"}))
    message = "config.json has 2 labels, classifier.weight has 3 rows"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        softgate.load(tmp_path)
    edit(tmp_path, lambda config: config.update(id2label={"0": "no", "2": "yes", "3": "perhaps"}))
    with pytest.raises(CheckpointError, match=r"id2label is .*expected names for 0, 1, 2"):
        softgate.load(tmp_path)
    edit(tmp_path, lambda config: config.update(id2label={"0": "a", "1": "b", "2": 3}))
    with pytest.raises(CheckpointError, match=r"labels are .*expected names"):
        softgate.load(tmp_path)


def test_a_missing_head_is_listed(loaded, tmp_path):
    _, ours = loaded("roberta", "masked-lm")
    ours.save(tmp_path)
    edit(tmp_path, change_tensors=lambda tensors: tensors.pop("lm_head.dense.weight"))
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.dense\.weight"):
        softgate.load(tmp_path)


def test_token_types_of_a_family_without_them_are_refused(loaded):
    _, ours = loaded("distilbert")
    with pytest.raises(ValueError, match="a distilbert model has no token types"):
        ours([[1, 2]], token_type_ids=[[0, 0]])


def test_lengths_end_before_the_positions_do(loaded):
    _, ours = loaded("roberta_padding")
    assert ours.max_length == 64 - 6
    with pytest.raises(ValueError, match="59 tokens, expected at most 58"):
        ours([[1] * 59])


def test_empty_batches_and_sequences(loaded):
    for name in ("roberta", "albert", "mpnet", "modernbert"):
        _, ours = loaded(name, "sequence-classification")
        for ids in ([], [[]], [[], [3, 4], []]):
            output = ours(ids)
            assert output.last_hidden_state.shape == (sum(map(len, ids)), 48)
            assert output.logits.shape == (len(ids), 3)
            assert np.isfinite(output.logits).all()


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("task", [None, *HEADS])
def test_random_weights_from_a_config(model_type, task):
    """Without Hugging Face: from the family's own defaults but for the sizes."""
    model = Bert(BertConfig.from_dict(tiny_dict(model_type, task)))
    output = model([[1, 2, 3], [4]])
    assert output.last_hidden_state.shape == (4, 48)
    assert (output.logits is None) == (task is None)
    assert np.isfinite(output.last_hidden_state).all()


def tiny_dict(model_type, task=None):
    sizes = oracle.DISTIL if model_type == "distilbert" else oracle.TINY
    names = {None: "Model"} | HEADS
    return sizes | {
        "model_type": model_type,
        "architectures": [FAMILIES[model_type].architecture + names[task]],
    }


BROKEN = {
    "no positions": ("roberta", {"pad_token_id": 63}, "max_position_embeddings is 64"),
    "few buckets": ("mpnet", {"relative_attention_num_buckets": 31}, "is 31, expected at least 32"),
    "groups": ("albert", {"num_hidden_groups": 3}, "num_hidden_groups is 3, expected at most"),
    "kinds": ("modernbert", {"layer_types": ["full"] * 2}, "layer_types is 'full'"),
    "few kinds": ("modernbert", {"layer_types": ["full_attention"]}, "one for each of 2 layers"),
    "period": ("modernbert", {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0"),
    "rope": (
        "modernbert",
        {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}},
        "rope_type is 'dynamic'",
    ),
    "odd heads": ("modernbert", {"num_attention_heads": 16}, "3 of 3 elements of a head"),
    "pooling": ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
    "decoder": ("electra", {"is_decoder": True}, "is_decoder is True"),
    "problem": ("bert", {"problem_type": "ranking"}, "problem_type is 'ranking'"),
    "activation": (
        "bert",
        {"sentence_transformers": {"activation_fn": "torch.nn.ReLU"}},
        "activation_fn is 'torch.nn.ReLU', expected Sigmoid or Identity",
    ),
    "labels": ("bert", {"num_labels": 0}, "num_labels is 0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_absurd_configs_are_refused(name):
    model_type, changes, message = BROKEN[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        Bert(BertConfig.from_dict(tiny_dict(model_type) | changes))


def test_a_span_has_a_start_and_an_end():
    config = tiny_dict("bert", "question-answering") | {"num_labels": 3}
    with pytest.raises(ValueError, match="3 labels, expected 2 for question-answering"):
        BertConfig.from_dict(config)


STRANGE = [
    None, True, -1, 0, 3, 2**40, 1.5, -0.0, float("nan"), float("inf"), "", "x", [], [1], [[]], {},
    {"a": 1}, {"full_attention": 3}, {"rope_type": []}, ["x", None], {"0": "x"},
]  # fmt: skip


@pytest.mark.parametrize("task", [None, *HEADS])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_strange_values_are_values_or_errors_with_a_message(model_type, task):
    config = BertConfig.from_dict(tiny_dict(model_type, task)).to_dict()
    for key, value in itertools.product(config, STRANGE):
        try:
            found = BertConfig.from_dict(config | {key: value})
        except ValueError as error:
            assert str(error).startswith(("config: ", "rope: ")), (key, value)
        else:
            assert BertConfig.from_dict(found.to_dict()) == found, (key, value)


def test_a_config_that_its_family_cannot_say_is_not_saved(tmp_path):
    config = dataclasses.replace(BertConfig(**oracle.TINY), gated=True)
    model = Bert(config)
    assert np.isfinite(model([[1, 2]]).last_hidden_state).all()
    with pytest.raises(ValueError, match=r"a config.json of bert cannot say gated=True"):
        model.save(tmp_path)
