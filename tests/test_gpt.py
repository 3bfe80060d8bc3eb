"""Decoder-only families against Hugging Face with the same weights, and their own promises."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import softgate
from hugging_face_gpt import CASES, SWITCHES, expected_logits, hugging_face
from softgate.checkpoint import CheckpointError, open_checkpoint, save_checkpoint
from softgate.models.gpt import Gpt
from softgate.models.gpt_config import FAMILIES, GptConfig
from softgate.nn import RopeConfig

# Errors of float32 add up over layers, and count in the size of the logits.
TOLERANCE = 1e-5

TINY = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def assert_logits(actual, expected):
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * scale)


def draw_ids(length, seed=0, vocab_size=99):
    return np.random.default_rng(seed).integers(0, vocab_size, length)


def with_lengths(model, lengths, seed=0):
    """Packed ids and offsets of random sequences."""
    ids = draw_ids(sum(lengths), seed, model.config.vocab_size)
    return ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Pairs of a Hugging Face model and ours with the same weights, each made once."""
    made = {}

    def load(name):
        if name not in made:
            theirs = hugging_face(name)
            folder = tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder)
            made[name] = theirs, softgate.load(folder)
        return made[name]

    return load


@pytest.mark.parametrize("name", CASES)
def test_equals_hugging_face(name, loaded):
    theirs, ours = loaded(name)
    lengths = CASES[name].lengths
    ids, offsets = with_lengths(ours, lengths)
    expected = expected_logits(theirs, np.split(ids, offsets[1:-1]))
    assert_logits(ours(ids, offsets).numpy(), np.concatenate(expected))
    last = ours(ids, offsets, logits="last").numpy()
    assert_logits(last, np.stack([rows[-1] for rows in expected]))


@pytest.mark.parametrize(("name", "field", "value"), SWITCHES)
def test_every_switch_shows(name, field, value, loaded):
    """The comparison with Hugging Face would notice a switch that does nothing."""
    theirs, ours = loaded(name)
    config = dataclasses.replace(ours.config, **{field: value})
    assert config != ours.config
    other = Gpt(config, seed=None)
    other.load_state_dict(ours.state_dict())
    ids, offsets = with_lengths(ours, CASES[name].lengths)
    expected = np.concatenate(expected_logits(theirs, np.split(ids, offsets[1:-1])))
    error = np.abs(other(ids, offsets).numpy() - expected).max()
    assert error > 5 * TOLERANCE * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_prefill_chunks_and_steps_equal_one_forward(name, loaded):
    _, ours = loaded(name)
    length = max(CASES[name].lengths)
    ids = draw_ids(length)
    whole = ours(ids).numpy()
    cache = ours.new_cache(1, length)
    parts = [ours(ids[:5], cache=cache), ours(ids[5:17], cache=cache)]
    parts += [ours(ids[i : i + 1], cache=cache, logits="last") for i in range(17, length)]
    assert cache.lengths.tolist() == [length]
    assert_logits(np.concatenate([part.numpy() for part in parts]), whole)


@pytest.mark.parametrize("name", [name for name in CASES if "_" not in name] + ["gpt_neox"])
def test_greedy_continuation_is_that_of_hugging_face(name, loaded):
    theirs, ours = loaded(name)
    ids = draw_ids(6).tolist()
    cache = ours.new_cache(1, 30)
    logits = ours(ids, cache=cache, logits="last").numpy()
    while len(ids) < 30:
        ids.append(int(logits.argmax()))
        logits = ours(ids[-1:], cache=cache, logits="last").numpy()
    (expected,) = expected_logits(theirs, [np.array(ids)])
    for position, token in enumerate(ids[6:], start=5):
        ordered = np.sort(expected[position])
        if ordered[-1] - ordered[-2] > 2 * TOLERANCE * np.abs(expected).max():
            assert token == expected[position].argmax(), position


@pytest.mark.usefixtures("rows_of_any_number")
@pytest.mark.parametrize("name", CASES)
def test_a_sequence_does_not_depend_on_the_others(name, loaded):
    _, ours = loaded(name)
    lengths = CASES[name].lengths
    ids, offsets = with_lengths(ours, lengths)
    alone = [ours(part).numpy() for part in np.split(ids, offsets[1:-1])]
    np.testing.assert_array_equal(ours(ids, offsets).numpy(), np.concatenate(alone))


@pytest.mark.parametrize("name", CASES)
def test_saved_folders_are_read_by_hugging_face_and_by_us(name, loaded, tmp_path):
    theirs, ours = loaded(name)
    ours.save(tmp_path)
    again = softgate.load(tmp_path)
    assert again.config == ours.config
    for key, array in ours.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key], array, err_msg=key)
    reread = type(theirs).from_pretrained(tmp_path, attn_implementation="eager").eval()
    weights = reread.state_dict()
    for key, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(weights[key], tensor, rtol=0, atol=1e-6, err_msg=key)
    ids = [draw_ids(length) for length in CASES[name].lengths]
    for actual, expected in zip(
        expected_logits(reread, ids), expected_logits(theirs, ids), strict=True
    ):
        assert_logits(actual, expected)  # torch rounds by where weights lie in memory


def test_threads_change_nothing(thread_counts):
    model = Gpt(GptConfig(**TINY))
    ids, offsets = with_lengths(model, [1, 40, 17])
    results = []
    for _ in thread_counts:
        cache = model.new_cache(3, 64)
        first = model(ids, offsets, cache).numpy()
        second = model([1, 2, 3], [0, 1, 2, 3], cache).numpy()
        results.append(np.concatenate([first, second]))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.usefixtures("rows_of_any_number")
def test_ragged_batch_in_a_cache_equals_single_rows():
    model = Gpt(GptConfig(**TINY))
    cache = model.new_cache(3, 64)
    steps = [[9, 1, 20], [1, 1, 1], [0, 5, 1], [1, 0, 0]]
    alone = [model.new_cache(1, 64) for _ in range(3)]
    for seed, lengths in enumerate(steps):
        ids, offsets = with_lengths(model, lengths, seed)
        logits = model(ids, offsets, cache).numpy()
        for row, part in enumerate(np.split(ids, offsets[1:-1])):
            expected = model(part, cache=alone[row]).numpy()
            np.testing.assert_array_equal(logits[offsets[row] : offsets[row + 1]], expected)
    assert cache.lengths.tolist() == [11, 7, 22]


def test_sequences_without_new_tokens_have_no_last_logits():
    model = Gpt(GptConfig(**TINY))
    logits = model([5, 6, 7], [0, 2, 2, 3], logits="last").numpy()
    np.testing.assert_array_equal(logits[[0, 2]], model([5, 6, 7], [0, 2, 3]).numpy()[[1, 2]])
    assert not logits[1].any()
    assert model([]).shape == (0, 99)
    assert model([], [0]).shape == (0, 99)


@pytest.mark.usefixtures("rows_of_any_number")
def test_truncated_cache_continues_from_there():
    model = Gpt(GptConfig(**TINY))
    ids = draw_ids(20)
    cache = model.new_cache(2, 32)
    model(np.tile(ids, 2), [0, 20, 40], cache)
    cache.truncate(1, 7)
    assert cache.lengths.tolist() == [20, 7]
    logits = model(ids[7:], [0, 0, 13], cache).numpy()
    fresh = model.new_cache(1, 32)
    model(ids[:7], cache=fresh)
    np.testing.assert_array_equal(logits, model(ids[7:], cache=fresh).numpy())
    for length in (-1, 21):
        with pytest.raises(ValueError, match=f"length is {length}, expected 0 to 20"):
            cache.truncate(0, length)
    with pytest.raises(IndexError):
        cache.truncate(2, 0)


def test_cache_says_what_it_holds():
    model = Gpt(GptConfig(**TINY))
    cache = model.new_cache(3, 10)
    assert (cache.batch, cache.capacity, len(cache.k), len(cache.v)) == (3, 10, 2, 2)
    assert cache.k[0].shape == (3, 10, 2, 12)
    assert cache.nbytes == 2 * 2 * 4 * 3 * 10 * 2 * 12
    assert model.new_cache(1).capacity == 64


BAD_CALLS = {
    "id outside": (([1, 99],), "input_ids: 99, expected 0 to 98"),
    "negative id": (([1, -1],), "input_ids: -1"),
    "two dimensions": (([[1, 2]],), "input_ids: int64 array of shape [1, 2]"),
    "float ids": (([0.5],), "input_ids: float64"),
    "offsets": (([1, 2], [0, 1]), "cu_seqlens: expected offsets that rise from 0 to the 2 tokens"),
    "falling offsets": (([1, 2], [0, 2, 1, 2]), "cu_seqlens"),
    "no offsets": (([1, 2], []), "cu_seqlens"),
    "too long": (([1] * 65,), "the longest sequence has 65 tokens with those in the cache"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(name):
    args, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        Gpt(GptConfig(**TINY))(*args)


def test_bad_use_of_a_cache_is_refused_and_changes_nothing():
    model = Gpt(GptConfig(**TINY))
    cache = model.new_cache(2, 8)
    model([1] * 12, [0, 5, 12], cache)
    with pytest.raises(ValueError, match=r"1 sequences, expected one for each of the cache's 2"):
        model([1], cache=cache)
    with pytest.raises(ValueError, match=r"9 tokens with those in the cache, expected at most 8"):
        model([1] * 3, [0, 1, 3], cache)
    assert cache.lengths.tolist() == [5, 7]
    other = Gpt(GptConfig(**TINY | {"num_hidden_layers": 1})).new_cache(1)
    with pytest.raises(ValueError, match="cache: 1 layers, expected those of the model, 2"):
        model([1], cache=other)
    with pytest.raises(ValueError, match="logits is 'first'"):
        model([1], logits="first")
    for capacity in (0, 65):
        with pytest.raises(ValueError, match=f"capacity is {capacity}, expected 1 to 64"):
            model.new_cache(1, capacity)
    with pytest.raises(ValueError, match="batch is 0"):
        model.new_cache(0)


# Weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_stored_and_computed_with_in_float32(dtype, loaded, tmp_path):
    import torch

    theirs, ours = loaded("gemma2")
    ours = Gpt(ours.config, dtype=dtype, seed=None)
    ours.load_state_dict(loaded("gemma2")[1].state_dict())
    rounded = hugging_face("gemma2")
    weights = (torch.nn.Linear, torch.nn.Embedding)
    with torch.no_grad():
        for module in filter(lambda m: isinstance(m, weights), rounded.modules()):
            module.weight.copy_(module.weight.to(getattr(torch, dtype)).float())
    ids = draw_ids(40)
    (expected,) = expected_logits(rounded, [ids])
    assert_logits(ours(ids).numpy(), expected)
    assert np.abs(expected - expected_logits(theirs, [ids])[0]).max() > 1e-3

    ours.save(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        stored = {"float16": "F16", "bfloat16": "BF16"}[dtype]
        assert checkpoint.dtypes["model.layers.1.mlp.up_proj.weight"] == stored
        assert checkpoint.config["torch_dtype"] == dtype
    again = softgate.load(tmp_path)
    assert again.embedding.value.dtype == dtype
    np.testing.assert_array_equal(again(ids).numpy(), ours(ids).numpy())
    reread = type(theirs).from_pretrained(tmp_path, torch_dtype=torch.float32).eval()
    assert_logits(expected_logits(reread, [ids])[0], expected)
    assert softgate.load(tmp_path, dtype="float32").embedding.value.dtype == "float32"


QUANTIZED = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_models_are_near_and_load_back_bit_for_bit(dtype, tmp_path):
    config = GptConfig(**TINY | QUANTIZED, tie_word_embeddings=True)
    model = Gpt(config, dtype=dtype)
    exact = Gpt(config, seed=None)
    # What the integers stand for.
    exact.load_state_dict({name: p.numpy() for name, p in model.named_parameters()})
    ids = draw_ids(40)
    logits, expected = model(ids).numpy(), exact(ids).numpy()
    error = np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < 0.03  # activations are rounded to 8 bits

    model.save(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    again = softgate.load(tmp_path)
    assert again.config == config
    np.testing.assert_array_equal(again(ids).numpy(), logits)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert a.value.dtype == b.value.dtype, name
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)
    with pytest.raises(ValueError, match="dtype is 'float32', expected None"):
        softgate.load(tmp_path, dtype="float32")


def edit(folder, change_config=None, change_tensors=None, *, packed=False):
    """Rewrite a checkpoint after changes to its config and tensors."""
    with open_checkpoint(folder) as checkpoint:
        config = {key: v for key, v in checkpoint.config.items() if key != "softgate_format"}
        tensors = {name: checkpoint.tensors[name].copy() for name in checkpoint.tensors}
    if change_config:
        change_config(config)
    if change_tensors:
        change_tensors(tensors)
    save_checkpoint(folder, config, tensors, packed=packed)
    return folder


def test_broken_quantised_files_are_refused(tmp_path):
    model = Gpt(GptConfig(**TINY | QUANTIZED), dtype="int4")
    name = "layers.1.attention.qkv.weight"
    broken = {
        "unexpected: other": lambda t: t.update(other=t["norm.weight"]),
        f"missing: {name}": lambda t: t.pop(f"{name}.values"),
        "missing: norm.weight": lambda t: t.pop("norm.weight"),
        f"mis-shaped: {name}.scales is [128, 1], expected [128, 2]": lambda t: t.update(
            {f"{name}.scales": t[f"{name}.scales"][:, :1].copy()}
        ),
        f"mis-shaped: {name}.values is [128, 16], expected [128, 32]": lambda t: t.update(
            {f"{name}.values": t[f"{name}.values"][:, :16].copy()}
        ),
        "scales": lambda t: t.update({f"{name}.scales": t[f"{name}.scales"] * np.float16(np.nan)}),
    }
    for index, (message, change) in enumerate(broken.items()):
        folder = tmp_path / str(index)
        model.save(folder)
        edit(folder, change_tensors=change, packed=True)
        with pytest.raises(CheckpointError, match=re.escape(message)):
            softgate.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"softgate_format": 2}))
    with pytest.raises(CheckpointError, match="softgate_format is 2, expected 1"):
        softgate.load(folder)


def test_files_without_a_head_and_with_buffers(tmp_path):
    """Files of the model inside, and those of old versions that held masks and frequencies."""
    for model_type in ("gpt2", "llama"):
        config = GptConfig.from_dict(_tiny_dict(model_type))
        model = Gpt(dataclasses.replace(config, tie_word_embeddings=True))
        folder = tmp_path / model_type
        model.save(folder)

        def change(tensors, prefix={"gpt2": "transformer.", "llama": "model."}[model_type]):
            whole = dict(tensors)
            tensors.clear()
            tensors |= {name.removeprefix(prefix): array for name, array in whole.items()}
            tensors["h.0.attn.bias"] = np.zeros((1, 1, 64, 64), np.bool_)
            tensors["h.0.attn.masked_bias"] = np.zeros((), np.float32)
            tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(6, np.float32)
            tensors["lm_head.weight"] = np.zeros((99, 48), np.float32)

        edit(folder, change_tensors=change)
        ids = draw_ids(9)
        np.testing.assert_array_equal(softgate.load(folder)(ids).numpy(), model(ids).numpy())


def test_broken_tensors_are_listed(tmp_path):
    Gpt(GptConfig(**TINY)).save(tmp_path)
    name = "model.layers.1.self_attn.k_proj.weight"
    edit(tmp_path, change_tensors=lambda t: t.update({name: t[name][:7].copy(), "extra": t[name]}))
    with pytest.raises(CheckpointError, match=re.escape(f"mis-shaped: {name} is [7, 48]")) as found:
        softgate.load(tmp_path)
    assert "unexpected: model.extra" in str(found.value)


def test_generation_config_says_what_ends_a_turn(tmp_path):
    Gpt(GptConfig(**TINY, eos_token_ids=(3,), bos_token_id=1)).save(tmp_path)
    assert softgate.load(tmp_path).config.eos_token_ids == (3,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    config = softgate.load(tmp_path).config
    assert (config.bos_token_id, config.eos_token_ids) == (1, (3, 4))


# Configs


def _tiny_dict(model_type):
    names = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
    }
    config = {"model_type": model_type, **TINY, "sliding_window": 8, "rotary_pct": 0.5}
    config |= {names[key]: value for key, value in TINY.items() if key in names}
    return config


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_stack_is_one_line_and_its_config_survives(model_type):
    config = GptConfig.from_dict(_tiny_dict(model_type))
    assert GptConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    logits = Gpt(config, seed=3)(draw_ids(12)).numpy()
    assert np.isfinite(logits).all()
    assert logits.std() > 0
    np.testing.assert_array_equal(Gpt(config, seed=3)(draw_ids(12)).numpy(), logits)
    assert (Gpt(config, seed=4)(draw_ids(12)).numpy() != logits).any()


def test_a_config_that_no_family_has_computes_but_does_not_save(tmp_path):
    model = Gpt(GptConfig(**TINY, qk_norm=True, post_norms=True))
    assert np.isfinite(model(draw_ids(9)).numpy()).all()
    with pytest.raises(ValueError, match=r"llama cannot say qk_norm=True, post_norms=True"):
        model.save(tmp_path)


BAD_CONFIGS = {
    "model_type": ({"model_type": "bert"}, "expected one of ['gemma', 'gemma2'"),
    "hidden_size": ({"hidden_size": 0}, "expected an integer from 1"),
    "vocab_size": ({"vocab_size": 2**31}, "expected an integer from 1"),
    "num_hidden_layers": ({"num_hidden_layers": 10**6}, "expected an integer from 1 to 4096"),
    "num_attention_heads": ({"num_attention_heads": True}, "is True"),
    "intermediate_size": ({"intermediate_size": "80"}, "is '80'"),
    "head_dim": ({"head_dim": 257}, "expected an integer from 1 to 256"),
    "hidden_size ": ({"hidden_size": 49}, "expected a multiple of num_attention_heads, 4"),
    "num_attention_heads ": ({"num_key_value_heads": 3}, "a multiple of num_key_value_heads, 3"),
    "hidden_act": ({"hidden_act": "mish"}, "expected one of ['gelu'"),
    "norm": ({"norm": "batch"}, "expected one of ['layer', 'rms']"),
    "norm_eps": ({"norm_eps": float("nan")}, "is nan"),
    "gated": ({"gated": 1}, "expected true or false"),
    "final_logit_softcapping": ({"final_logit_softcapping": -1.0}, "expected a number above 0"),
    "query_pre_attn_scalar": ({"query_pre_attn_scalar": 0}, "expected a number above 0"),
    "sliding_window": ({"sliding_window": 0}, "expected an integer from 1"),
    "sliding_window ": (
        {"layer_types": ("full_attention", "sliding_attention")},
        "is missing, some layer_types are sliding",
    ),
    "layer_types": ({"layer_types": ("full_attention",)}, "expected one for each of 2 layers"),
    "layer_types ": ({"layer_types": ("full_attention", "linear")}, "is 'linear'"),
    "rope": ({"rope": {"rope_theta": 1e4}}, "expected RopeConfig"),
    "sliding_rope": ({"rope": None, "sliding_rope": RopeConfig()}, "is there, but rope is not"),
    "bos_token_id": ({"bos_token_id": 99}, "expected token ids below vocab_size, 99"),
    "eos_token_ids": ({"eos_token_ids": (3, -1)}, "expected token ids below vocab_size, 99"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_absurd_configs_are_refused(name):
    changes, message = BAD_CONFIGS[name]
    with pytest.raises(ValueError, match=f"^config: {name.strip()} .*" + re.escape(message)):
        GptConfig(**TINY | changes)


LONG = {"short_factor": (1.0,) * 6, "long_factor": (2.0,) * 6}
BAD_ROPES = {
    "rope_type": ({"rope_type": "ntk"}, "expected one of ['default', 'dynamic', 'linear'"),
    "factor": ({"rope_type": "linear"}, "is missing, 'linear' needs it"),
    "low_freq_factor": ({"rope_type": "llama3", "factor": 8.0}, "is missing"),
    "high_freq_factor": (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
        "expected another value than low_freq_factor",
    ),
    "rope_theta": ({"rope_theta": 1.0}, "expected a number above 1"),
    "partial_rotary_factor": ({"partial_rotary_factor": 1.5}, "at most 1"),
    "factor ": ({"rope_type": "linear", "factor": -2}, "is -2"),
    "long_factor": (
        {"rope_type": "longrope", "original_max_position_embeddings": 8, **LONG,
         "long_factor": (0.0,) * 6},
        "expected numbers above 0",
    ),
    "truncate": ({"truncate": "no"}, "expected true or false"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROPES)
def test_absurd_ropes_are_refused(name):
    changes, message = BAD_ROPES[name]
    with pytest.raises(ValueError, match=f"^rope: {name.strip()} .*" + re.escape(message)):
        RopeConfig(**changes)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"partial_rotary_factor": 0.1}, "1 of 12 elements of a head are rotated"),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 8, **LONG,
             "short_factor": (1.0,) * 5},
            "short_factor has 5 numbers, expected 6",
        ),
    ],
)  # fmt: skip
def test_ropes_that_do_not_fit_the_heads_are_refused(rope, message):
    with pytest.raises(ValueError, match=message):
        Gpt(GptConfig(**TINY, rope=RopeConfig(**rope)))


BAD_FILES = {
    "no sizes": ("llama", {"vocab_size": ..., "hidden_size": ...}, "hidden_size missing"),
    "rope of a wrong type": ("llama", {"rope_scaling": "linear"}, "rope parameters are 'linear'"),
    "unknown rope": ("llama", {"rope_scaling": {"type": "ntk", "factor": 2}}, "rope_type is 'ntk'"),
    "cross attention": ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
    "bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}, "is True"),
    "ignored cap": ("gemma3_text", {"attn_logit_softcapping": 50.0}, "is 50.0, expected None"),
    "layer types": ("qwen2", {"layer_types": 3}, "layer_types is 3"),
    "first window": ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "is -1"),
    "pattern": ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    "eos": ("llama", {"eos_token_id": "</s>"}, "eos_token_ids is ('</s>',)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_absurd_files_are_refused(name, tmp_path):
    model_type, changes, message = BAD_FILES[name]
    Gpt(GptConfig.from_dict(_tiny_dict(model_type))).save(tmp_path)

    def change(config):
        if "rope_scaling" in changes:
            del config["rope_parameters"]
        config.update(changes)
        for key in [key for key, value in config.items() if value is ...]:
            del config[key]

    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        softgate.load(tmp_path)


STRANGE = [
    None, True, -1, 0, 3, 2**40, 1.5, -0.0, float("nan"), float("inf"), "", "x", [], [1], [[]], {},
    {"a": 1}, {"full_attention": 3}, {"rope_type": []}, {"factor": "x"}, ["x", None],
]  # fmt: skip


@pytest.mark.parametrize("model_type", FAMILIES)
def test_strange_values_are_values_or_errors_with_a_message(model_type):
    config = GptConfig.from_dict(_tiny_dict(model_type)).to_dict() | {"rope_scaling": None}
    for key, value in itertools.product(config, STRANGE):
        try:
            found = GptConfig.from_dict(config | {key: value})
        except ValueError as error:
            assert str(error).startswith(("config: ", "rope: ")), (key, value)
        else:
            assert GptConfig.from_dict(found.to_dict()) == found, (key, value)
