"""Recurrent weights of Keras and ONNX against both formats' equations and against each other."""

import numpy as np
import pytest
from cases import offsets
from cases.recurrent import GATES, RecurrentCase
from softgate import ops, reference
from softgate.checkpoint.recurrent import from_keras, from_onnx, to_keras, to_onnx, torch_names
from tolerances import assert_same_bits

INPUT, HIDDEN, STEPS = 3, 4, 5
KINDS = tuple(GATES)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def keras_layer(kind, x, kernel, recurrent_kernel, bias):
    """keras.layers.SimpleRNN, LSTM and GRU as their `call` states it, over one sequence."""
    h = c = np.zeros(HIDDEN)
    activation = np.tanh if kind != "rnn_relu" else lambda v: np.maximum(v, 0.0)
    outputs = []
    for x_t in x:
        if kind.startswith("rnn"):
            h = activation(x_t @ kernel + bias + h @ recurrent_kernel)
        elif kind == "lstm":
            z = x_t @ kernel + h @ recurrent_kernel + bias
            z0, z1, z2, z3 = np.split(z, 4)
            i, f = sigmoid(z0), sigmoid(z1)
            c = f * c + i * np.tanh(z2)
            h = sigmoid(z3) * np.tanh(c)
        else:
            reset_after = kind == "gru"
            x_z, x_r, x_h = np.split(x_t @ kernel + (bias[0] if reset_after else bias), 3)
            if reset_after:
                inner = h @ recurrent_kernel + bias[1]
                recurrent_z, recurrent_r, recurrent_h = np.split(inner, 3)
            else:
                u_z, u_r, u_h = np.split(recurrent_kernel, 3, axis=1)
                recurrent_z, recurrent_r = h @ u_z, h @ u_r
            z, r = sigmoid(x_z + recurrent_z), sigmoid(x_r + recurrent_r)
            recurrent_h = r * recurrent_h if reset_after else (r * h) @ u_h
            h = z * h + (1.0 - z) * np.tanh(x_h + recurrent_h)
        outputs.append(h)
    return np.array(outputs)


def onnx_node(kind, x, w, r, b):
    """The equations of ONNX' operators RNN, LSTM and GRU, for one direction and sequence."""
    wb, rb = np.split(b, 2)
    h = c = np.zeros(HIDDEN)
    outputs = []
    for x_t in x:
        gates = 1 if kind.startswith("rnn") else 4 if kind == "lstm" else 3
        from_x, from_h = np.split(w @ x_t + wb, gates), np.split(r @ h + rb, gates)
        if gates == 1:
            total = from_x[0] + from_h[0]
            h = np.tanh(total) if kind == "rnn_tanh" else np.maximum(total, 0.0)
        elif gates == 4:
            i, o, f, cell = (a + b for a, b in zip(from_x, from_h, strict=True))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(cell)
            h = sigmoid(o) * np.tanh(c)
        else:
            z, reset = (sigmoid(from_x[gate] + from_h[gate]) for gate in (0, 1))
            if kind == "gru":  # linear_before_reset != 0
                n = np.tanh(from_x[2] + reset * from_h[2])
            else:
                n = np.tanh(from_x[2] + np.split(r, 3)[2] @ (reset * h) + np.split(rb, 3)[2])
            h = (1.0 - z) * n + z * h
        outputs.append(h)
    return np.array(outputs)


def direction_weights(kind, seed=0, bias=True):
    case = RecurrentCase(kind, (seed,), INPUT, HIDDEN, bias=bias)
    (weights,) = case.arguments()["weights"]
    weights.pop("kind")
    return weights


def run(kind, x, weights):
    op = {"lstm": reference.lstm, "gru": reference.gru}.get(kind[:4].rstrip("_"), reference.rnn)
    return op(x, offsets((len(x),)), reference.RecurrentWeight(kind, **weights))[0]


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((STEPS, INPUT))


@pytest.mark.parametrize("kind", KINDS)
def test_keras_computes_the_same(kind, x):
    weights = direction_weights(kind)
    actual = keras_layer(kind, x, *to_keras(kind, weights))
    np.testing.assert_allclose(actual, run(kind, x, weights), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_computes_the_same(kind, x):
    both = [direction_weights(kind, seed) for seed in (1, 2)]
    w, r, b = to_onnx(kind, both)
    assert (w.shape[0], r.shape[0], b.shape[0]) == (2, 2, 2)
    for d, weights in enumerate(both):
        actual = onnx_node(kind, x, w[d], r[d], b[d])
        np.testing.assert_allclose(actual, run(kind, x, weights), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_bitwise(kind, bias):
    weights = direction_weights(kind, bias=bias)
    if bias and kind != "gru":
        weights["bias_hh"][:] = 0.0  # Keras keeps the sum
    for there_and_back in (
        from_keras(kind, *to_keras(kind, weights)),
        from_onnx(kind, *to_onnx(kind, [weights]))[0],
    ):
        ops.pack_recurrent(kind, **there_and_back)  # takes what is contiguous only
        assert there_and_back.keys() == weights.keys()
        for name, array in weights.items():
            assert_same_bits(there_and_back[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_from_keras_to_onnx_and_back(kind):
    weights = to_keras(kind, direction_weights(kind))
    onnx = to_onnx(kind, [from_keras(kind, *weights)])
    for array, expected in zip(to_keras(kind, from_onnx(kind, *onnx)[0]), weights, strict=True):
        assert_same_bits(array, expected)


def test_layouts_of_one_gate_each():
    """The tables, in numbers: the gates are 0, 1, 2, ... in torch's order."""
    for kind, keras, onnx in (
        ("lstm", [0, 1, 2, 3], [0, 3, 1, 2]),  # i f c o; i o f c
        ("gru", [1, 0, 2], [1, 0, 2]),  # z r h
        ("gru_reset_before", [1, 0, 2], [1, 0, 2]),
    ):
        gates = np.arange(GATES[kind], dtype=np.float32)
        weights = {"weight_ih": gates[:, None], "weight_hh": gates[:, None]}
        weights |= {"bias_ih": gates, "bias_hh": 0.0 * gates}
        kernel, recurrent_kernel, bias = to_keras(kind, weights)
        assert kernel.tolist() == recurrent_kernel.tolist() == [keras]
        assert bias.tolist() == ([keras, [0.0] * 3] if kind == "gru" else keras)
        w, r, b = to_onnx(kind, [weights])
        assert w.ravel().tolist() == r.ravel().tolist() == onnx
        assert b.tolist() == [onnx + [0.0] * len(onnx)]


def test_torch_names():
    weights = direction_weights("gru")
    assert torch_names(weights).keys() == {f"{name}_l0" for name in weights}
    assert "weight_hh_l2_reverse" in torch_names(weights, 2, reverse=True)


@pytest.mark.parametrize("absent", ["bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_bias_is_zeros(kind, absent):
    weights = direction_weights(kind)
    zeros = weights | {absent: np.zeros_like(weights[absent])}
    weights.pop(absent)
    for actual, expected in (
        (to_keras(kind, weights), to_keras(kind, zeros)),
        (to_onnx(kind, [weights]), to_onnx(kind, [zeros])),
    ):
        for array, other in zip(actual, expected, strict=True):
            assert_same_bits(array, other)


def shaped(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("kind", "arrays", "message"),
    [
        (
            "lstm",
            (shaped(3, 16), shaped(4, 12)),
            r"recurrent_kernel has shape \[4, 12\], .* \[4, 16\]",
        ),
        ("lstm", (shaped(3, 12), shaped(4, 16)), "kernel"),
        ("gru", (shaped(3, 12), shaped(4, 12), shaped(12)), r"bias .* expected \[2, 12\]"),
        ("gru_reset_before", (shaped(3, 12), shaped(4, 12), shaped(2, 12)), r"bias .*\[12\]"),
        ("rnn_tanh", (shaped(3, 4), shaped(4, 4), shaped(5)), "bias"),
    ],
)
def test_bad_keras_shapes(kind, arrays, message):
    with pytest.raises(ValueError, match=f"^from_keras: {message}"):
        from_keras(kind, *arrays)


@pytest.mark.parametrize(
    ("kind", "arrays", "message"),
    [
        (
            "lstm",
            (shaped(1, 16, 3), shaped(1, 12, 4)),
            r"r has shape \[1, 12, 4\], .* \[1, 16, 4\]",
        ),
        ("lstm", (shaped(1, 12, 3), shaped(1, 16, 4)), "w"),
        ("lstm", (shaped(2, 16, 3), shaped(1, 16, 4)), "w"),
        ("gru", (shaped(1, 12, 3), shaped(1, 12, 4), shaped(1, 12)), r"b .* expected \[1, 24\]"),
    ],
)
def test_bad_onnx_shapes(kind, arrays, message):
    with pytest.raises(ValueError, match=f"^from_onnx: {message}"):
        from_onnx(kind, *arrays)


def test_no_layout_for_projections():
    (weights,) = RecurrentCase("lstm", (), INPUT, HIDDEN, 2).arguments()["weights"]
    with pytest.raises(ValueError, match=r"^to_keras: .*weight_hr"):
        to_keras("lstm", weights)
    with pytest.raises(ValueError, match=r"^to_onnx: .*weight_hr"):
        to_onnx("lstm", [weights])
