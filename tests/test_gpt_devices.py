"""Decoder-only models on a device other than the CPU: pytest --device simt, or cuda."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import softgate
from devices import DTYPES, fetched, naively, rounded
from softgate import reference
from softgate.models.gpt import ACTIVATIONS, SLIDING, Gpt, GptConfig
from test_models_devices import transfers_of
from tolerances import assert_close, assert_same_bits

LLAMA = {
    "model_type": "llama",
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}
# What no two families do alike, in head sizes of the 16-bit kernels.
CONFIGS = {
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 99, "n_embd": 64, "n_inner": 72, "n_layer": 2,
        "n_head": 2, "n_positions": 64, "activation_function": "gelu_new",
    },
    "gpt_neox": LLAMA | {
        "model_type": "gpt_neox", "num_attention_heads": 2, "use_parallel_residual": True,
        "rotary_pct": 0.25, "hidden_act": "gelu",
    },
    "llama": LLAMA,
    "llama_dynamic": LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": 5},
    "qwen3": LLAMA | {"model_type": "qwen3", "tie_word_embeddings": True},
    "gemma2": LLAMA | {
        "model_type": "gemma2", "query_pre_attn_scalar": 24, "sliding_window": 5,
        "attn_logit_softcapping": 20.0, "final_logit_softcapping": 5.0,
    },
}  # fmt: skip
LENGTHS = (7, 1, 20)
# Of float32 through all layers, relative to the largest logit.
STACK = 1e-5


def gpt(name: str = "llama", device: str = "cpu", dtype: str = "float32") -> Gpt:
    """With weights large enough that every part shows, in numbers of `dtype`."""
    model = Gpt(GptConfig.from_dict(CONFIGS[name]), seed=None)
    model.init_weights(seed=3, std=0.2)
    model.load_state_dict({n: rounded(array, dtype) for n, array in model.state_dict().items()})
    return model if device == "cpu" else model.to(device, dtype)


def packed(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids and offsets."""
    ids = np.random.default_rng(seed).integers(0, 99, sum(lengths))
    return ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def expected_logits(model: Gpt, ids: np.ndarray, offsets: np.ndarray) -> Any:
    """By the functions of `reference`."""
    config, state = model.config, model.state_dict()
    heads, kv_heads, head_dim = config.num_attention_heads, config.kv_heads, config.head_size
    lengths = np.diff(offsets)
    positions = np.concatenate([np.arange(n) for n in lengths])

    def norm(x: Any, name: str, eps: float = config.norm_eps) -> Any:
        weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
        if bias is None:
            return reference.add_rms_norm(x, None, weight, eps=eps)
        return reference.add_layer_norm(x, None, weight, bias, eps=eps)

    def linear(x: Any, name: str, **more: Any) -> Any:
        return reference.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **more)

    def attend(x: Any, i: int) -> Any:
        name, kind = f"layers.{i}.attention", config.kinds[i]
        all_heads = linear(x, f"{name}.qkv").reshape(len(ids), -1, head_dim)
        q, k, v = np.split(all_heads, [heads, heads + kv_heads], axis=1)
        if config.qk_norm:
            q, k = norm(q, f"{name}.q_norm"), norm(k, f"{name}.k_norm")
        if model.ropes:
            tables = model.ropes[kind].tables(int(lengths.max()))
            cos, sin = (table.numpy()[positions, None] for table in tables)
            q, k = (reference.rotate(each, cos, sin, False) for each in (q, k))
        window = (config.sliding_window - 1, 0) if kind == SLIDING else (-1, -1)
        context = reference.attention(
            q, k, v, offsets, causal=True, window=window, scale=config.attention_scale(i),
            softcap=config.attn_logit_softcapping or 0.0,
        )  # fmt: skip
        return linear(context.reshape(len(ids), -1), f"{name}.output")

    def feed_forward(x: Any, i: int) -> Any:
        name, activation = f"layers.{i}.feed_forward", ACTIVATIONS[config.hidden_act]
        up = linear(x, f"{name}.up", activation=activation, gated=config.gated)
        return linear(up, f"{name}.down")

    scale = config.hidden_size**0.5 if config.scale_embeddings else 1.0
    residual = None if model.positions is None else state["positions"][positions]
    x = reference.gather(state["embedding"], ids, scale=scale, residual=residual)
    for i in range(config.num_hidden_layers):
        name = f"layers.{i}"
        attended = attend(norm(x, f"{name}.attention_norm"), i)
        if config.parallel_residual:
            x = x + attended + feed_forward(norm(x, f"{name}.feed_forward_norm"), i)
            continue
        if config.post_norms:
            attended = norm(attended, f"{name}.attention_post_norm")
        x = x + attended
        fed = feed_forward(norm(x, f"{name}.feed_forward_norm"), i)
        x = x + (norm(fed, f"{name}.feed_forward_post_norm") if config.post_norms else fed)
    logits = reference.linear(norm(x, "norm"), state.get("lm_head.weight", state["embedding"]))
    cap = config.final_logit_softcapping
    return logits if cap is None else reference.softcap(logits, cap)


def assert_logits(actual: np.ndarray, expected: Any, naive: Any, dtype: str) -> None:
    """In 16 bits twice as far off as the naive computation is anywhere: its rows are too few to
    find the worst in each."""
    expected, largest = np.asarray(expected), np.abs(expected).max()
    besides = STACK * largest
    if dtype != "float32":
        besides = 2.0 * np.abs(np.asarray(naive) - expected).max()
    assert_close(actual, expected, scale=largest, besides=besides, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_reference(device, name, dtype):
    model = gpt(name, device, dtype)
    assert (model.device, model.dtype) == (device, dtype)
    ids, offsets = packed()
    expected = expected_logits(model, ids, offsets)
    with naively(dtype):
        naive = expected_logits(model, ids, offsets)
    logits = model(ids, offsets)
    assert (logits.device, logits.dtype) == (device, dtype)
    assert_logits(fetched(logits), expected, naive, dtype)
    last = fetched(model(ids, offsets, logits="last"))
    assert_same_bits(last, fetched(logits)[offsets[1:] - 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_and_steps_equal_the_reference(device, name, dtype):
    """A prompt in chunks, then token by token, in any rows of the cache."""
    model = gpt(name, device, dtype)
    ids, offsets = packed((12, 9))
    sequences = np.split(ids, offsets[1:-1])
    expected = expected_logits(model, ids, offsets)
    with naively(dtype):
        naive = expected_logits(model, ids, offsets)
    cache = model.new_cache(3, 20)
    assert {tensor.dtype for tensor in (*cache.k, *cache.v)} == {dtype}
    actual: list[list[np.ndarray]] = [[], []]
    done = [0, 0]
    for chunks in ((5, 0), (2, 6), *[(1, 1)] * 3, (2, 0)):
        parts = [sequences[b][done[b] : done[b] + n] for b, n in enumerate(chunks)]
        cu_seqlens = np.cumsum([0, *chunks])
        logits = fetched(model(np.concatenate(parts), cu_seqlens, cache, rows=[2, 0]))
        for b, rows in enumerate(np.split(logits, cu_seqlens[1:-1])):
            actual[b].append(rows)
            done[b] += chunks[b]
    assert_logits(np.concatenate([*actual[0], *actual[1]]), expected, naive, dtype)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, "float32"),
        ({}, "float16"),
        # In 16 bits a number often falls elsewhere.
        ({"temperature": 0.9, "top_k": 30, "top_p": 0.9}, "float32"),
    ],
    ids=str,
)
def test_generates_what_the_cpu_does(device, settings, dtype):
    """The logits are far enough apart for both to choose alike."""
    prompts = [packed((n,), seed=n)[0] for n in (3, 11, 6)]
    settings = settings | {
        "max_new_tokens": 9, "seed": 5, "repetition_penalty": 1.2, "logprobs": True,
        "stop_tokens": (), "batch_size": 4, "num_samples": 2 if settings else None,
    }  # fmt: skip
    expected = gpt("qwen3", dtype=dtype).generate(prompts, **settings)
    results = gpt("qwen3", device, dtype).generate(prompts, **settings)
    for result, right in zip(results, expected, strict=True):
        assert result.token_ids == right.token_ids
        np.testing.assert_allclose(
            result.logprobs, right.logprobs, rtol=0, atol=1e-4 if dtype == "float32" else 0.05
        )


def test_scores_what_the_cpu_does(device):
    ids = packed((40,))[0]
    expected = gpt().score(ids, window=16)
    result = gpt(device=device).score(ids, window=16)
    np.testing.assert_allclose(result.logprobs, expected.logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_ids_go_up_and_ids_come_down(device, name):
    model = gpt(name, device, "float16")
    cache = model.new_cache(3, 40)
    ids, offsets = packed()
    model(ids, offsets, cache, logits="last")
    inputs = {"uploads": 1, "uploaded_bytes": 4 * 5 * 3}
    if device != "cuda":  # where a graph knows the offsets
        inputs = {"uploads": 2, "uploaded_bytes": inputs["uploaded_bytes"] + 4 * (4 + 3 * 3)}
    else:
        model(ids[:3], np.arange(4), cache)
    nothing = {"downloads": 0, "downloaded_bytes": 0}
    assert transfers_of(lambda: model(ids[:3], np.arange(4), cache)) == inputs | nothing

    prompt = packed((5,))[0]
    settings = {"stop_tokens": (), "temperature": 1.0, "seed": 1, "logprobs": True}
    model.generate(prompt, max_new_tokens=2, **settings)  # the tables are there from here on
    counts = [
        transfers_of(lambda n=n: model.generate(prompt, max_new_tokens=n, **settings))
        for n in (4, 5)
    ]
    of_a_step = {key: counts[1][key] - counts[0][key] for key in counts[0]}
    assert of_a_step["downloads"], of_a_step["downloaded_bytes"] == (2, 8)
    assert of_a_step["uploads"] == inputs["uploads"] + 1  # a random number
    assert of_a_step["uploaded_bytes"] <= 4 * 5 + 4 * (2 + 3) + 4


def test_rows_of_a_cache_are_copied(device):
    model = gpt(device=device)
    cache = model.new_cache(2, 30)
    model(packed((9,))[0], None, cache, rows=[0])
    cache.copy_rows([0], [1])
    first, second = fetched(model([4, 4], [0, 1, 2], cache))
    assert_same_bits(first, second)


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_and_back(device, dtype):
    model = gpt()
    expected = {name: rounded(array, dtype) for name, array in model.state_dict().items()}
    assert model.to(device, dtype) is model
    values = [parameter.value for _, parameter in model.named_parameters()]
    assert {(value.device, value.dtype) for value in values} == {(device, dtype)}
    model.to("cpu")
    packs = {p.value.dtype for _, p in model.named_parameters() if p.packed}
    others = {p.value.dtype for _, p in model.named_parameters() if not p.packed}
    assert (model.device, packs, others) == ("cpu", {dtype}, {"float32"})
    for name, array in model.state_dict().items():
        assert_same_bits(array, expected[name])
    assert np.isfinite(model(packed()[0]).numpy()).all()


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_loads_onto_a_device(device, stored, dtype, tmp_path):
    model = gpt(dtype=stored).to(dtype=stored)
    model.save(tmp_path)
    loaded = softgate.load(tmp_path, dtype, device=device)
    kept = dtype or stored
    places = {(p.value.device, p.value.dtype) for _, p in loaded.named_parameters()}
    assert places == {(device, kept)}
    ids, offsets = packed()
    assert_same_bits(fetched(loaded(ids, offsets)), fetched(model.to(device, kept)(ids, offsets)))


@pytest.mark.parametrize("stored", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_quantized_weights(device, stored, dtype):
    """Integers stay as they are. What differs are activations that round to others, of which there
    are more in 16 bits."""
    model = gpt("qwen3").to(dtype=stored)
    ids, offsets = packed()
    expected, state = model(ids, offsets).numpy(), model.state_dict()
    model.to(device, dtype)
    kept = {p.value.dtype for _, p in model.named_parameters()}
    assert kept == {stored, dtype or "float32"}
    logits = model(ids, offsets)
    assert (logits.device, logits.dtype) == (device, dtype or "float32")
    error = np.abs(fetched(logits) - expected).max()
    bound = (0.02 if dtype is None else 0.06) * np.abs(expected).max()
    assert error < bound
    cache = model.new_cache(1, 9)
    steps = [fetched(model([token], None, cache))[0] for token in ids[:7]]
    assert np.abs(np.array(steps) - expected[:7]).max() < bound
    for name, array in model.to("cpu").state_dict().items():
        if array.dtype.kind in "iu":
            assert_same_bits(array, state[name])


def test_weights_that_are_moved_away(device):
    model = gpt(device=device)
    cache = model.new_cache(1, 20)
    model([1, 2, 3], None, cache)
    model.to("cpu")
    with pytest.raises(ValueError, match=rf"on {device}, expected cpu|on cpu, expected {device}"):
        model([4], None, cache)


# ---- Graphs ----


@pytest.fixture
def only_cuda(device: str) -> str:
    if device != "cuda":
        pytest.skip("simt has no graphs")
    return device


@pytest.fixture
def eagerly(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Steps without graphs from here on."""

    def start() -> None:
        def step_graph(self: Gpt, cache: Any, inputs: np.ndarray, batch: int) -> Any:
            offsets = softgate.SequenceOffsets(np.arange(batch + 1, dtype=np.int32), cache.device)
            return lambda given: self.device_forward(
                softgate.Tensor(given).to(cache.device), offsets, cache, "last"
            )

        monkeypatch.setattr(Gpt, "_step_graph", step_graph)

    return start


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_a_step_is_a_graph(only_cuda, eagerly, name, dtype):
    model = gpt(name, only_cuda, dtype)

    def steps() -> list[np.ndarray]:
        cache = model.new_cache(3, 40)
        model(*packed(), cache)
        logits = [model(packed((3,), seed)[0], np.arange(4), cache) for seed in range(3)]
        logits.append(model([5, 6], np.arange(3), cache, rows=[2, 0]))
        logits.append(model([7, 8, 9], np.arange(4), cache, rows=[1, 2, 0]))
        assert sorted(cache.graphs) == ([2, 3] if cache.graphs else [])
        return [fetched(tensor) for tensor in logits]

    captured = steps()
    eagerly()
    for array, expected in zip(captured, steps(), strict=True):
        assert_same_bits(array, expected)


def test_a_graph_of_other_weights_is_captured_anew(only_cuda, eagerly):
    model = gpt("llama", only_cuda)
    cache = model.new_cache(1, 20)
    model([1, 2], None, cache)
    model([3], None, cache)
    model.init_weights(seed=9, std=0.2)
    after = fetched(model([4], None, cache))
    cache.truncate(0, 3)
    eagerly()
    assert_same_bits(after, fetched(model([4], None, cache)))


def test_generates_the_same_with_and_without_graphs(only_cuda, eagerly):
    model = gpt("llama", only_cuda, "float16")
    prompts = [packed((n,), seed=n)[0] for n in (3, 7)]
    settings = {"max_new_tokens": 6, "stop_tokens": ()}
    captured = [text.token_ids for text in model.generate(prompts, **settings)]
    eagerly()
    assert captured == [text.token_ids for text in model.generate(prompts, **settings)]
