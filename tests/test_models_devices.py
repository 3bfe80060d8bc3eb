"""Models on a device other than the CPU, end to end: pytest --device simt, or cuda."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import softgate
from devices import DTYPES, fetched, naively, rounded
from softgate import cuda, nn, ops, reference
from softgate.models.bert import Bert, BertConfig
from softgate.models.bert_config import FAMILIES
from softgate.models.pooling import SentencePooling
from softgate.text import Encoding
from test_bert_families import tiny_dict
from tolerances import assert_close, assert_same_bits

CONFIG = BertConfig(
    vocab_size=99,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=96,
    max_position_embeddings=40,
    layer_norm_eps=1e-6,
)
LENGTHS = (5, 1, 12, 3)
STARTS = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)
# Of float32 through all layers; hidden states are of size 1 after their norm.
STACK = 2e-5


def bert(device: str = "cpu", dtype: str = "float32") -> Bert:
    """With weights large enough that every part shows, in numbers of `dtype`."""
    model = Bert(CONFIG, seed=None)
    model.init_weights(seed=3, std=0.2)
    state = {name: rounded(array, dtype) for name, array in model.state_dict().items()}
    model = Bert(CONFIG, seed=None).to(device, dtype)
    model.load_state_dict(state)
    return model


def texts(seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and types."""
    random = np.random.default_rng(seed)
    draw = lambda rows: [random.integers(0, rows, n).tolist() for n in LENGTHS]  # noqa: E731
    return draw(CONFIG.vocab_size), draw(CONFIG.type_vocab_size)


def flat(rows: list[list[int]]) -> np.ndarray:
    return np.concatenate(rows).astype(np.int64)


def expected_bert(state: dict[str, Any], ids: Any, types: Any) -> dict[str, list[Any]]:
    """BERT by the functions of `reference`."""

    def linear(x: Any, name: str, **more: Any) -> Any:
        return reference.linear(x, state[f"{name}.weight"], state[f"{name}.bias"], **more)

    def norm(x: Any, residual: Any, name: str) -> Any:
        weights = state[f"{name}.weight"], state[f"{name}.bias"]
        return reference.add_layer_norm(x, residual, *weights, eps=CONFIG.layer_norm_eps)

    positions = np.concatenate([np.arange(n) for n in LENGTHS])
    x = reference.embedding(
        [ids, positions, types],
        [state[f"embedding.tables.{i}"] for i in range(3)],
        state["embedding.norm.weight"],
        state["embedding.norm.bias"],
        eps=CONFIG.layer_norm_eps,
    )
    states, attentions = [x], []
    for i in range(CONFIG.num_hidden_layers):
        layer = f"layers.{i}"
        qkv = linear(x, f"{layer}.attention.qkv").reshape(len(ids), 3, 2, 32)
        context, weights = reference.attention(
            qkv[:, 0], qkv[:, 1], qkv[:, 2], STARTS, return_weights=True
        )
        attended = linear(context.reshape(len(ids), 64), f"{layer}.attention.output")
        x = norm(attended, x, f"{layer}.attention_norm")
        up = linear(x, f"{layer}.feed_forward.up", activation="gelu")
        x = norm(linear(up, f"{layer}.feed_forward.down"), x, f"{layer}.feed_forward_norm")
        states.append(x)
        attentions.append(weights)
    first = reference.pool(x, STARTS, "cls")
    return {
        "states": states,
        "attentions": attentions,
        "pooled": [linear(first, "pooler", activation="tanh")],
        "mean": [reference.pool(x, STARTS, "mean")],
    }


def assert_stack_close(actual: Any, expected: Any, naive: Any, dtype: str) -> None:
    """Of sizes around 1, after several ops."""
    assert actual.dtype == np.float32
    assert_close(
        actual,
        np.asarray(expected),
        scale=1.0,
        besides=STACK,
        dtype=dtype,
        naive=None if dtype == "float32" else np.asarray(naive),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_bert_equals_the_reference(device, dtype):
    model = bert(device, dtype)
    assert (model.device, model.dtype) == (device, dtype)
    ids, types = texts()
    output = model(ids, None, types, output_hidden_states=True, output_attentions=True)
    actual = {
        "states": output.hidden_states,
        "attentions": output.attentions,
        "pooled": [output.pooler_output],
    }
    state = model.state_dict()
    expected = expected_bert(state, flat(ids), flat(types))
    with naively(dtype):
        naive = expected_bert(state, flat(ids), flat(types))
    for name, arrays in actual.items():
        for array, exact, other in zip(arrays, expected[name], naive[name], strict=True):
            assert_stack_close(array, exact, other, dtype)
    assert_same_bits(output.last_hidden_state, output.hidden_states[-1])
    np.testing.assert_array_equal(output.cu_seqlens, STARTS)


def test_a_rotary_encoder_equals_the_cpu(device):
    config = dataclasses.replace(
        CONFIG,
        rope=nn.RopeConfig(),
        local_rope=nn.RopeConfig(rope_theta=100.0),
        layer_types=("full_attention", "sliding_attention"),
        local_attention=6,
        pre_norm=True,
        gated=True,
    )
    model = Bert(config, seed=None)
    model.init_weights(seed=3, std=0.2)
    ids, _ = texts()
    expected = model(ids, output_attentions=True)
    model.to(device)
    output = model(ids, output_attentions=True)
    zeros = np.zeros_like(expected.last_hidden_state)
    assert_stack_close(output.last_hidden_state, expected.last_hidden_state, zeros, "float32")
    for array, other in zip(output.attentions, expected.attentions, strict=True):
        np.testing.assert_allclose(array, other, rtol=0, atol=1e-5)
    downloads = transfers_of(lambda: model(ids))["downloads"]
    assert downloads == 2  # states and the pooler's
    half = model.to(dtype="float16")(ids).last_hidden_state
    assert np.abs(half - expected.last_hidden_state).max() < 0.05


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_encode_equals_the_reference(device, dtype, normalize):
    model = bert(device, dtype)
    model.sentence_pooling = SentencePooling("mean", normalize)
    ids, types = texts()
    encodings = [Encoding(i, t, False) for i, t in zip(ids, types, strict=True)]
    state = model.state_dict()

    def vectors() -> Any:
        (mean,) = expected_bert(state, flat(ids), flat(types))["mean"]
        return reference.normalize(mean) if normalize else mean

    with naively(dtype):
        naive = vectors()
    assert_stack_close(model.encode_batch(encodings), vectors(), naive, dtype)


def test_padded_ids_give_what_lists_give(device):
    model = bert(device)
    ids, _ = texts()
    padded = np.zeros((len(LENGTHS), max(LENGTHS)), np.int64)
    mask = np.arange(padded.shape[1]) < np.array(LENGTHS)[:, None]
    padded[mask] = flat(ids)
    output, packed = model(padded, mask, output_attentions=True), model(ids, output_attentions=True)
    assert_same_bits(output.last_hidden_state[mask], packed.last_hidden_state)
    assert not output.last_hidden_state[~mask].any()
    assert_same_bits(output.pooler_output, packed.pooler_output)
    for array, other in zip(output.attentions, packed.attentions, strict=True):
        assert_same_bits(array, other)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ids_go_up_and_results_come_down(device, dtype):
    model = bert(device, dtype)
    ids, types = texts()
    total, batch, hidden = int(STARTS[-1]), len(LENGTHS), CONFIG.hidden_size
    up = {"uploads": 2, "uploaded_bytes": 3 * 8 * total + 4 * (4 * batch + 1)}
    element = 4 if dtype == "float32" else 2

    assert transfers_of(lambda: model(ids, None, types)) == up | {
        "downloads": 2,
        "downloaded_bytes": element * hidden * (total + batch),
    }
    encodings = [Encoding(i, t, False) for i, t in zip(ids, types, strict=True)]
    assert transfers_of(lambda: model.encode_batch(encodings)) == up | {
        "downloads": 1,
        "downloaded_bytes": element * hidden * batch,
    }
    there, offsets = softgate.Tensor(flat(ids)).to(device), softgate.SequenceOffsets(STARTS, device)
    given = softgate.Tensor(flat(types)).to(device)
    assert transfers_of(lambda: model(there, None, given, cu_seqlens=offsets)) == {
        "uploads": 1,  # positions
        "uploaded_bytes": 8 * total,
        "downloads": 0,
        "downloaded_bytes": 0,
    }


def transfers_of(call: Any) -> dict[str, int]:
    before = cuda.transfers()
    call()
    return {name: count - before[name] for name, count in cuda.transfers().items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [True, False])
def test_tensors_in_and_out(device, dtype, kept):
    model = bert(device, dtype)
    ids, types = texts()
    there = [softgate.Tensor(flat(rows)).to(device) for rows in (ids, types)]
    offsets = softgate.SequenceOffsets(STARTS, device) if kept else STARTS
    expected = model(ids, None, types, output_hidden_states=True, output_attentions=True)
    output = model(
        there[0],
        None,
        there[1],
        cu_seqlens=offsets,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert output.cu_seqlens is offsets
    tensors = [output.last_hidden_state, output.pooler_output, *output.hidden_states]
    assert {(tensor.device, tensor.dtype) for tensor in tensors} == {(device, dtype)}
    assert_same_bits(fetched(output.last_hidden_state), expected.last_hidden_state)
    assert_same_bits(fetched(output.pooler_output), expected.pooler_output)
    for name in ("hidden_states", "attentions"):
        for tensor, array in zip(getattr(output, name), getattr(expected, name), strict=True):
            assert_same_bits(fetched(tensor), array)
    without_types = model(there[0], cu_seqlens=offsets)
    assert_same_bits(fetched(without_types.last_hidden_state), model(ids).last_hidden_state)


def test_ids_that_cannot_be(device):
    model = bert(device)
    with pytest.raises(ValueError, match=r"^input_ids: token 1 is 99, expected 0 <= id < 99$"):
        model([[3, 99]])
    with pytest.raises(ValueError, match=r"^token_type_ids: token 0 is -1, expected 0 <= id < 2$"):
        model([[3]], token_type_ids=[[-1]])
    there = softgate.Tensor(np.zeros(41, np.int64)).to(device)
    with pytest.raises(ValueError, match=r"longest sequence has 41 tokens, expected at most 40$"):
        model(there, cu_seqlens=np.array([0, 41], np.int32))
    with pytest.raises(ValueError, match=r"packed: expected cu_seqlens$"):
        model(there)
    with pytest.raises(ValueError, match=r"^embedding: ids\[0\] is on cpu, expected"):
        model(softgate.Tensor(np.zeros(3, np.int64)), cu_seqlens=np.array([0, 3], np.int32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_and_back(device, dtype):
    model = bert()
    expected = {name: rounded(array, dtype) for name, array in model.state_dict().items()}
    bytes_on_cpu = model.nbytes()
    assert model.to(device, dtype) is model
    values = [parameter.value for _, parameter in model.named_parameters()]
    assert {(value.device, value.dtype) for value in values} == {(device, dtype)}
    assert model.nbytes() <= bytes_on_cpu // (1 if dtype == "float32" else 2)
    for name, array in model.state_dict().items():
        assert_same_bits(array, expected[name])
    assert (model.to("cpu", "float32").device, model.dtype) == ("cpu", "float32")
    for name, array in model.state_dict().items():
        assert_same_bits(array, expected[name])
    assert np.isfinite(model(texts()[0]).last_hidden_state).all()


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("stored", ["int8", "int4"])
def test_quantised_weights(device, stored, dtype):
    """Integers, scaled by row and by group, stay as they are. What differs are activations that
    round to others, of which there are more in 16 bits."""
    model = Bert(CONFIG, dtype=stored, seed=None)
    model.init_weights(seed=3, std=0.2)
    ids, _ = texts()
    expected, state = model(ids).last_hidden_state, model.state_dict()
    grouped = {array.ndim == 2 for name, array in state.items() if name.endswith(".scales")}
    assert grouped == ({True, False} if stored == "int8" else {True})
    model.to(device, dtype)
    kept = {(p.value.device, p.value.dtype) for _, p in model.named_parameters()}
    assert kept == {(device, stored), (device, dtype or "float32")}
    output = model(ids)
    error = np.abs(output.last_hidden_state - expected).max()
    assert error < (0.02 if dtype is None else 0.06) * np.abs(expected).max()
    for name, array in model.state_dict().items():
        if array.dtype.kind in "iu":
            assert_same_bits(array, state[name])
    if dtype is None:
        assert_same_bits(model.to("cpu")(ids).last_hidden_state, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_are_quantised_on_the_way_to_a_device_and_there(device, dtype):
    model = bert(device, dtype)
    state = model.state_dict()
    ids, _ = texts()
    first = Bert(CONFIG, dtype="int8", seed=None).to(device)
    first.load_state_dict(state)
    first.to(dtype=dtype)
    assert first.dtype == "int8"
    expected = first(ids).last_hidden_state
    on_cpu = Bert(CONFIG, seed=None).to(dtype=dtype)
    on_cpu.load_state_dict(state)
    for other in (model.to(dtype="int8"), on_cpu.to(device, "int8")):
        kept = {(p.value.device, p.value.dtype) for _, p in other.named_parameters()}
        assert kept == {(device, "int8"), (device, dtype)}
        assert_same_bits(other(ids).last_hidden_state, expected)
    with pytest.raises(ValueError, match=r"^to: dtype is 'int4', but weights are quantised"):
        model.to(dtype="int4")


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
def test_loads_onto_a_device(device, dtype, tmp_path):
    model = bert(dtype="float16").to(dtype="float16")
    model.save(tmp_path)
    loaded = softgate.load(tmp_path, dtype, device=device)
    kept = {(p.value.device, p.value.dtype) for _, p in loaded.named_parameters()}
    floats = dtype if dtype == "bfloat16" else "float32" if dtype == "int8" else "float16"
    assert kept == {(device, dtype or "float16"), (device, floats)}
    ids, _ = texts()
    expected = model.to("cpu", dtype).to(device)(ids).last_hidden_state
    assert_same_bits(loaded(ids).last_hidden_state, expected)


def test_weights_filled_in_later_go_to_the_device(device):
    before, model = bert(device, "float16"), Bert(CONFIG, seed=None).to(device, "float16")
    assert all(parameter.value is None for _, parameter in model.named_parameters())
    model.load_state_dict(before.state_dict())
    ids, _ = texts()
    assert_same_bits(model(ids).last_hidden_state, before(ids).last_hidden_state)


def test_to_where_it_cannot_go(device, monkeypatch):
    model = bert(device)
    ids, _ = texts()
    expected = model(ids).last_hidden_state
    with pytest.raises(TypeError, match=r"^to: dtype is 'float64' on cpu"):
        model.to("cpu", "float64")
    for dtype, layer in (("float64", model), ("int8", nn.LSTM(6, 10)), ("int8", nn.LayerNorm(6))):
        with pytest.raises(TypeError, match=rf"^to: dtype is '{dtype}' on {device}"):
            layer.to(device, dtype)
    with pytest.raises(ValueError, match=r"device is \"tpu\""):
        model.to("tpu")
    pack, packed = ops.pack, []

    def no_room(weight: softgate.Tensor, **options: Any) -> Any:
        packed.append(weight)
        if len(packed) == 3:
            raise MemoryError
        return pack(weight, **options)

    monkeypatch.setattr(ops, "pack", no_room)
    with pytest.raises(MemoryError):
        model.to("cpu")
    assert model.device == device
    assert_same_bits(model(ids).last_hidden_state, expected)


def test_a_part_that_is_elsewhere(device):
    model = bert(device)
    model.layers[1].to("cpu")
    with pytest.raises(ValueError, match=rf"^linear: weight is on cpu, expected {device}$"):
        model(texts()[0])


# ---- Recurrent layers ----

MAKES = {
    "rnn": lambda **more: nn.RNN(6, 10, 2, **more),
    "gru": lambda **more: nn.GRU(6, 10, 2, **more),
    "gru_reset_before": lambda **more: nn.GRU(6, 10, 2, reset_after=False, **more),
    "lstm": lambda **more: nn.LSTM(6, 10, 2, **more),
    "lstm_projected": lambda **more: nn.LSTM(6, 10, 2, proj_size=4, **more),
}
STEPS, BATCH = 7, 4
UNEVEN = (3, 7, 0, 5)


def layer_of(name: str, device: str = "cpu", dtype: str = "float32", **more: Any) -> Any:
    layer = MAKES[name](**more)
    layer.init_weights(seed=1, std=0.4)
    layer.load_state_dict({n: rounded(array, dtype) for n, array in layer.state_dict().items()})
    return layer.to(device, dtype if device != "cpu" else None)


def draw(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return rounded(values, dtype)


def states_of(name: str, dtype: str, batch: int = BATCH, directions: int = 2) -> Any:
    h0 = draw(dtype, 2 * directions, batch, 4 if name == "lstm_projected" else 10, seed=1)
    if not name.startswith("lstm"):
        return h0
    return h0, draw(dtype, 2 * directions, batch, 10, seed=2)


def flattened(results: Any) -> list[Any]:
    """(out, h_n) and (out, (h_n, c_n)) as lists."""
    out, last = results
    return [out, *(last if isinstance(last, tuple) else [last])]


def assert_layers_close(actual: Any, expected: Any, dtype: str) -> None:
    """States are of size 1 and rounded at each step of both layers, where errors live on."""
    eps = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    for array, other in zip(flattened(actual), flattened(expected), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, other, rtol=0, atol=2 * STEPS * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_padded_layers_equal_the_cpu(device, name, batch_first, dtype):
    options = {"batch_first": batch_first, "bidirectional": True}
    layer, on_cpu = layer_of(name, device, dtype, **options), layer_of(name, dtype=dtype, **options)
    x = draw(dtype, *((BATCH, STEPS) if batch_first else (STEPS, BATCH)), 6)
    hx = states_of(name, dtype)
    for lengths in (None, UNEVEN):
        expected = on_cpu(x, hx, lengths=lengths)
        results = layer(x, hx, lengths=lengths)
        assert_layers_close(results, expected, dtype)
        padding = np.ones((BATCH, STEPS), bool)
        padding[:] = np.arange(STEPS) >= np.array(lengths or (STEPS,) * BATCH)[:, None]
        assert not results[0][padding if batch_first else padding.T].any()
        there = softgate.Tensor(x).to(device, dtype)
        states = [softgate.Tensor(h).to(device, dtype) for h in (hx if name[0] == "l" else [hx])]
        given = tuple(states) if name[0] == "l" else states[0]
        for tensor, array in zip(
            flattened(layer(there, given, lengths=lengths)), flattened(results), strict=True
        ):
            assert (tensor.device, tensor.dtype) == (device, dtype)
            assert_same_bits(fetched(tensor), array)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", MAKES)
def test_packed_and_single_layers_equal_the_cpu(device, name, dtype):
    layer, on_cpu = layer_of(name, device, dtype), layer_of(name, dtype=dtype)
    x, starts = draw(dtype, 15, 6), np.array([0, 3, 10, 10, 15], np.int32)
    hx = states_of(name, dtype, directions=1)
    expected = on_cpu(x, hx, cu_seqlens=starts)
    there = softgate.Tensor(starts).to(device)
    for offsets in (starts, there, softgate.SequenceOffsets(starts, device)):
        assert_layers_close(layer(x, hx, cu_seqlens=offsets), expected, dtype)
    assert_layers_close(layer(x), on_cpu(x), dtype)


def test_packed_layers_copy_nothing(device):
    layer = layer_of("lstm", device, "float16", bidirectional=True)
    x = softgate.Tensor(draw("float16", 15, 6)).to(device, "float16")
    offsets = softgate.SequenceOffsets(np.array([0, 3, 10, 10, 15], np.int32), device)
    counts = transfers_of(lambda: layer(x, cu_seqlens=offsets))
    assert counts == dict.fromkeys(counts, 0)


def test_layers_want_their_device_and_dtype(device):
    layer = layer_of("gru", device)
    x = softgate.Tensor(draw("float32", 15, 6))
    with pytest.raises(ValueError, match=rf"^gru: weights is on {device}, expected cpu$"):
        layer(x)
    with pytest.raises(TypeError, match=r"^gru: x has dtype float16, expected float32$"):
        layer(x.to(device, "float16"))
    with pytest.raises(ValueError, match=r"^gru: h0 is on cpu, expected"):
        layer(x.to(device), softgate.Tensor(np.zeros((2, 10), np.float32)))


# ---- Graphs ----


@pytest.fixture
def only_cuda(device):
    if device != "cuda":
        pytest.skip("simt has no graphs")
    return device


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bert_in_a_graph(only_cuda, dtype):
    model = bert(only_cuda, dtype)
    offsets = softgate.SequenceOffsets(STARTS, only_cuda)
    ids = softgate.Tensor(flat(texts()[0])).to(only_cuda)
    stream = cuda.Stream()
    with cuda.capture(stream) as graph:
        output = model(ids, cu_seqlens=offsets)
    for seed in (1, 2):
        others = texts(seed)[0]
        with stream:
            ids.copy_(flat(others))
            graph.launch()
            state, pooled = fetched(output.last_hidden_state), fetched(output.pooler_output)
        expected = model(others)
        assert_same_bits(state, expected.last_hidden_state)
        assert_same_bits(pooled, expected.pooler_output)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_layers_in_a_graph(only_cuda, name):
    layer = layer_of(name, only_cuda, "float16", bidirectional=True)
    x = softgate.Tensor(draw("float16", STEPS, BATCH, 6)).to(only_cuda, "float16")
    stream = cuda.Stream()
    with cuda.capture(stream) as graph:
        results = flattened(layer(x, lengths=UNEVEN))
    for seed in (1, 2):
        other = draw("float16", STEPS, BATCH, 6, seed=seed)
        with stream:
            x.copy_(other)
            graph.launch()
            actual = [fetched(tensor) for tensor in results]
        for array, expected in zip(actual, flattened(layer(other, lengths=UNEVEN)), strict=True):
            assert_same_bits(array, expected)


@pytest.mark.parametrize("task", [None, "masked-lm", "sequence-classification"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_of_encoders_equals_the_cpu(device, model_type, task):
    on_cpu = Bert(BertConfig.from_dict(tiny_dict(model_type, task)), seed=None)
    on_cpu.init_weights(seed=1, std=0.2)
    model = Bert(on_cpu.config, seed=None)
    model.load_state_dict(on_cpu.state_dict())
    model.to(device)
    ids = [[5, 6, 7, 8], [9], [3] * 12]
    expected, output = on_cpu(ids), model(ids, output_attentions=True)
    scale = np.abs(expected.last_hidden_state).max()
    error = np.abs(output.last_hidden_state - expected.last_hidden_state).max()
    assert error <= STACK * max(1, scale)
    if task is not None:
        error = np.abs(output.logits - expected.logits).max()
        assert error <= STACK * max(1, np.abs(expected.logits).max())
    weights = on_cpu(ids, output_attentions=True).attentions
    for one, other in zip(output.attentions, weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=STACK)
