"""The float64 reference against torch, which knows nothing of it."""

import itertools

import numpy as np
import pytest
from cases import offsets
from softgate import reference

torch = pytest.importorskip("torch", reason="torch is the independent oracle")
functional = torch.nn.functional


@pytest.fixture
def random():
    return np.random.default_rng(5)


def assert_equal(actual, expected):
    """To float64 rounding."""
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=1e-12, atol=1e-13)


def tensor(array):
    return None if array is None else torch.from_numpy(array)


TORCH_ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("activation", TORCH_ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_linear(random, activation, with_bias, with_residual):
    x, weight = 3.0 * random.standard_normal((2, 7, 5)), random.standard_normal((9, 5))
    bias = random.standard_normal(9) if with_bias else None
    residual = random.standard_normal((2, 7, 9)) if with_residual else None
    expected = functional.linear(tensor(x), tensor(weight), tensor(bias))
    expected = TORCH_ACTIVATIONS[activation](expected)
    if with_residual:
        expected = expected + tensor(residual)
    actual = reference.linear(x, weight, bias, activation=activation, residual=residual)
    assert_equal(actual, expected)


def test_activations_saturate():
    x = np.array([-1e30, -1e3, 1e3, 1e30])
    limits = dict.fromkeys(reference.ACTIVATIONS, np.where(x > 0.0, x, 0.0))
    limits |= {"none": x, "tanh": np.sign(x)}
    for activation, expected in limits.items():
        y = reference.linear(x[:, None], [[1.0]], activation=activation)[:, 0]
        assert_equal(y, expected)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_add_layer_norm(random, with_bias, with_residual):
    x, weight = random.standard_normal((2, 7, 12)), random.standard_normal(12)
    residual = random.standard_normal((2, 7, 12)) if with_residual else None
    bias = random.standard_normal(12) if with_bias else None
    total = x + residual if with_residual else x
    expected = functional.layer_norm(tensor(total), (12,), tensor(weight), tensor(bias), eps=1e-3)
    assert_equal(reference.add_layer_norm(x, residual, weight, bias, eps=1e-3), expected)


@pytest.mark.parametrize("with_residual", [False, True])
def test_add_rms_norm(random, with_residual):
    x, weight = random.standard_normal((2, 7, 12)), random.standard_normal(12)
    residual = random.standard_normal((2, 7, 12)) if with_residual else None
    total = x + residual if with_residual else x
    expected = functional.rms_norm(tensor(total), (12,), tensor(weight), eps=1e-3)
    assert_equal(reference.add_rms_norm(x, residual, weight, eps=1e-3), expected)


def test_embedding(random):
    tables = [random.standard_normal((rows, 12)) for rows in (30, 4)]
    ids = [random.integers(0, len(table), 9) for table in tables]
    weight, bias = random.standard_normal((2, 12))
    total = sum(
        functional.embedding(tensor(i), tensor(table)) for i, table in zip(ids, tables, strict=True)
    )
    assert_equal(reference.embedding(ids, tables), total)
    expected = functional.layer_norm(total, (12,), tensor(weight), tensor(bias), eps=1e-12)
    assert_equal(reference.embedding(ids, tables, weight, bias), expected)


def test_softmax(random):
    x = random.standard_normal((3, 4, 9)) * 30.0
    x[0, 0, 3] = -np.inf
    assert_equal(reference.softmax(x), torch.softmax(tensor(x), dim=-1))
    assert (reference.softmax(np.full((2, 5), -np.inf)) == 0.0).all()
    assert_equal(reference.log_sum_exp(x), torch.logsumexp(tensor(x), dim=-1))
    assert np.isneginf(reference.log_sum_exp(np.full((2, 5), -np.inf))).all()


def test_normalize(random):
    x = random.standard_normal((4, 9))
    x[2] = 0.0
    assert_equal(reference.normalize(x, eps=1e-12), functional.normalize(tensor(x), eps=1e-12))
    assert_equal(reference.normalize(x, eps=9.0), functional.normalize(tensor(x), eps=9.0))


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "last"])
def test_pool(random, mode):
    lengths = (3, 0, 1, 6)
    x = random.standard_normal((10, 5))
    reduce = {
        "mean": lambda tokens: tokens.mean(dim=0),
        "cls": lambda tokens: tokens[0],
        "max": lambda tokens: tokens.amax(dim=0),
        "last": lambda tokens: tokens[-1],
    }[mode]
    expected = [
        reduce(tokens) if len(tokens) else torch.zeros(5, dtype=torch.float64)
        for tokens in tensor(x).split(lengths)
    ]
    assert_equal(reference.pool(x, offsets(lengths), mode), torch.stack(expected))


def torch_attention(q, k, v, attn_mask=None, **options):
    """One sequence, heads second, as the reference has it."""
    q, k, v = (tensor(array).transpose(0, 1) for array in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, tensor(attn_mask), **options)
    return out.transpose(0, 1)


def draw(random, len_q, len_k, num_heads=4, num_kv_heads=4, head_dim=6):
    shapes = [(len_q, num_heads), (len_k, num_kv_heads), (len_k, num_kv_heads)]
    return [random.standard_normal((*shape, head_dim)) for shape in shapes]


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("causal", [False, True])
def test_square_attention(random, causal, scale):
    q, k, v = draw(random, 11, 11)
    actual = reference.attention(q, k, v, [0, 11], causal=causal, scale=scale)
    assert_equal(actual, torch_attention(q, k, v, is_causal=causal, scale=scale))


def test_packed_attention_is_attention_of_each_sequence(random):
    lengths_q, lengths_k = (3, 0, 7, 2), (4, 5, 1, 6)
    q, k, v = draw(random, sum(lengths_q), sum(lengths_k))
    starts_q, starts_k = offsets(lengths_q), offsets(lengths_k)
    out = reference.attention(q, k, v, starts_q, starts_k)
    sequences = zip(itertools.pairwise(starts_q), itertools.pairwise(starts_k), strict=True)
    for (begin_q, end_q), (begin_k, end_k) in sequences:
        if end_q > begin_q:
            keys = slice(begin_k, end_k)
            expected = torch_attention(q[begin_q:end_q], k[keys], v[keys])
            assert_equal(out[begin_q:end_q], expected)


def test_grouped_heads(random):
    q, k, v = draw(random, 5, 8, num_heads=6, num_kv_heads=2)
    expected = torch_attention(q, k, v, enable_gqa=True)
    assert_equal(reference.attention(q, k, v, [0, 5], [0, 8]), expected)


@pytest.mark.parametrize("boolean", [False, True])
def test_mask(random, boolean):
    q, k, v = draw(random, 5, 8)
    values = random.standard_normal((1, 4, 5, 8))
    mask = (values > -0.5) | (np.arange(8) == 3) if boolean else values
    actual = reference.attention(q, k, v, [0, 5], [0, 8], mask=mask)
    assert_equal(actual, torch_attention(q, k, v, mask[0]))


@pytest.mark.parametrize(("len_q", "len_k"), [(5, 5), (3, 8), (8, 3)])
def test_bottom_right_alignment(random, len_q, len_k):
    """Against a mask written out by hand: the last query always stands at the last key."""
    q, k, v = draw(random, len_q, len_k)
    for left, right, causal in [(-1, -1, True), (2, 1, False), (2, 1, True), (0, -1, False)]:
        keep = np.zeros((len_q, len_k), dtype=bool)
        for i, j in itertools.product(range(len_q), range(len_k)):
            ahead = (j - (len_k - 1)) - (i - (len_q - 1))
            keep[i, j] = (
                (left < 0 or ahead >= -left)
                and (right < 0 or ahead <= right)
                and (not causal or ahead <= 0)
            )
        actual = reference.attention(
            q, k, v, [0, len_q], [0, len_k], causal=causal, window=(left, right)
        )
        some = keep.any(axis=1)
        expected = np.zeros_like(actual)
        expected[some] = torch_attention(q[some], k, v, keep[some])
        assert_equal(actual, expected)


def test_soft_cap_bounds_the_scores(random):
    q, k, v = draw(random, 4, 6)
    scores = torch.einsum("qhd,khd->hqk", tensor(10.0 * q), tensor(k)) / 6**0.5
    weights = torch.softmax(5.0 * torch.tanh(scores / 5.0), dim=-1)
    expected = torch.einsum("hqk,khd->qhd", weights, tensor(v))
    assert_equal(reference.attention(10.0 * q, k, v, [0, 4], [0, 6], softcap=5.0), expected)


def test_attention_lse_and_weights(random):
    q, k, v = draw(random, 7, 9)
    keep = np.ones((2, 1, 4, 6), dtype=bool)
    keep[1, 0, 1] = False
    out, lse, weights = reference.attention(
        q, k, v, [0, 3, 7], [0, 6, 9], mask=keep, return_lse=True, return_weights=True
    )
    assert weights.shape == (2, 4, 4, 6)
    scores = torch.einsum("qhd,khd->hqk", tensor(q[3:]), tensor(k[6:])) / 6**0.5
    expected = torch.softmax(scores, dim=-1)
    expected[:, 1] = 0.0
    assert_equal(weights[1, :, :, :3], expected)
    assert (weights[1, :, :, 3:] == 0.0).all()
    assert (weights[0, :, 3:] == 0.0).all()
    assert_equal(out[3:], torch.einsum("hqk,khd->qhd", expected, tensor(v[6:])))
    expected_lse = torch.logsumexp(scores, dim=-1)
    expected_lse[:, 1] = -torch.inf
    assert_equal(lse[:, 3:], expected_lse)


RECURRENT = {
    "rnn_tanh": (reference.rnn, torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (reference.rnn, torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (reference.lstm, torch.nn.LSTM, {}),
    "lstm_projected": (reference.lstm, torch.nn.LSTM, {"proj_size": 3}),
    "gru": (reference.gru, torch.nn.GRU, {}),
}


def torch_layer(make, input_size, hidden_size, **options):
    layer = make(input_size, hidden_size, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5)
    return layer


def direction_weight(layer, kind, suffix="_l0"):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    state = {name: array.numpy() for name, array in layer.state_dict().items()}
    return reference.RecurrentWeight(kind, *(state.get(name + suffix) for name in names))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent(random, name, with_state, bias, direction):
    """torch has no reverse direction alone: it is the second half of both."""
    op, make, options = RECURRENT[name]
    torch.manual_seed(3)
    layer = torch_layer(make, 4, 5, bias=bias, bidirectional=direction != "forward", **options)
    weights = [direction_weight(layer, name.removesuffix("_projected"))]
    if direction != "forward":
        weights.append(direction_weight(layer, weights[0].kind, "_l0_reverse"))
    directions = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[direction]

    lengths = (3, 0, 7, 1)
    x = random.standard_normal((sum(lengths), 4))
    sizes = (options.get("proj_size", 5), 5)[: 2 if make is torch.nn.LSTM else 1]
    first = [random.standard_normal((len(weights), len(lengths), size)) for size in sizes]
    if not with_state:
        first = [np.zeros_like(state) for state in first]

    given = [state[directions] for state in first] if with_state else []
    chosen = [weights[d] for d in directions]
    out, *last = op(x, offsets(lengths), chosen, *given, direction=direction)
    for b, (begin, end) in enumerate(itertools.pairwise(offsets(lengths))):
        states = [tensor(state[:, b].copy()) for state in first]
        if begin == end:
            for actual, state in zip(last, states, strict=True):
                assert_equal(actual[:, b], state[directions])
            continue
        hx = tuple(states) if make is torch.nn.LSTM else states[0]
        with torch.no_grad():
            expected, expected_last = layer(tensor(x[begin:end]), hx)
        if make is not torch.nn.LSTM:
            expected_last = (expected_last,)
        halves = expected.reshape(end - begin, len(weights), -1)[:, directions]
        assert_equal(out[begin:end], halves.reshape(end - begin, -1))
        for actual, state in zip(last, expected_last, strict=True):
            assert_equal(actual[:, b], state[directions])


def test_gru_that_resets_before_the_product(random):
    """torch lacks it: against the equations of Cho et al. 2014, written out."""
    weights = [random.standard_normal(shape) for shape in ((15, 4), (15, 5), (15,), (15,))]
    x, h = random.standard_normal(4), random.standard_normal(5)
    actual = reference.gru_cell(x, reference.RecurrentWeight("gru_reset_before", *weights), h)
    of_x, of_h, bias_x, bias_h = (tensor(array).reshape(3, 5, -1) for array in weights)

    def gate(g, state):
        return (of_x[g] @ tensor(x) + of_h[g] @ state + bias_x[g, :, 0]) + bias_h[g, :, 0]

    r, z = (torch.sigmoid(gate(g, tensor(h))) for g in (0, 1))
    n = torch.tanh(gate(2, r * tensor(h)))
    assert_equal(actual, (1 - z) * n + z * tensor(h))
