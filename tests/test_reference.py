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
    for activation in reference.ACTIVATIONS.keys() - {"none"}:
        y = reference.linear(x[:, None], [[1.0]], activation=activation)[:, 0]
        assert_equal(y, np.where(x > 0.0, x, 0.0))


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
