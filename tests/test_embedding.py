"""Sums of embedding tables with an optional layer norm."""

import numpy as np
import pytest
import softgate
from cases.embedding import EMBEDDING, EmbeddingCase
from layouts import SPOILED, Guarded, read_only
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, embedding_scale

pytestmark = pytest.mark.usefixtures("isa")

SMALL = EmbeddingCase(4, 19, (50, 7), norm=True)


@pytest.mark.parametrize("case", EMBEDDING, ids=str)
def test_matches_reference(case):
    a = case.arguments()
    actual, expected = ops.embedding(**a), reference.embedding(**a)
    if not case.norm and len(case.tables) == 1:
        assert_same_bits(actual, expected.astype(np.float32))  # nothing to round
    terms = case.hidden if case.norm else 1
    assert_close(actual, expected, scale=embedding_scale(**a), terms=terms)


@pytest.mark.parametrize("case", EMBEDDING, ids=str)
def test_writes_out_and_nothing_else(case):
    a = case.arguments()
    expected = ops.embedding(**a)
    guarded = Guarded(expected.shape, np.float32, "strided")
    assert ops.embedding(**a, out=guarded.array) is guarded.array
    assert_same_bits(guarded.array, expected)
    guarded.assert_intact()


@pytest.mark.parametrize("case", EMBEDDING, ids=str)
def test_same_bits_on_any_thread_count(case, thread_counts):
    a = case.arguments()
    first, *others = [ops.embedding(**a) for _ in thread_counts]
    for other in others:
        assert_same_bits(other, first)


def test_a_token_does_not_depend_on_the_others():
    a = EmbeddingCase(60, 37, (50, 7), norm=True).arguments()
    whole = ops.embedding(**a)
    for i in range(60):
        one = {"ids": [ids[i : i + 1] for ids in a["ids"]]}
        assert_same_bits(ops.embedding(**(a | one)), whole[i : i + 1])


def test_same_as_sum_then_norm():
    a = SMALL.arguments()
    plain = ops.embedding(a["ids"], a["tables"])
    normed = ops.add_layer_norm(plain, None, a["norm_weight"], a["norm_bias"], eps=a["eps"])
    assert_same_bits(ops.embedding(**a), normed)


def test_tensors_in_tensor_out():
    a = SMALL.arguments()
    ids = [softgate.Tensor(array) for array in a["ids"]]
    actual = ops.embedding(**(a | {"ids": ids}))
    assert isinstance(actual, softgate.Tensor)
    assert_same_bits(actual.numpy(), ops.embedding(**a))


@pytest.mark.parametrize(("dtype", "bits"), [("int32", (31,)), ("int64", (31, 32, 40, 63))])
@pytest.mark.parametrize("table", [0, 1])
def test_id_outside_its_table(table, dtype, bits):
    a = SMALL.arguments()
    ids = a["ids"][table] = a["ids"][table].astype(dtype)
    extremes = [value for n in bits for value in (-(2**n), 2**n - 1)]
    for bad in (-1, len(a["tables"][table]), *extremes):
        ids[3] = bad
        with pytest.raises(ValueError, match=rf"^embedding: ids\b.*{bad}"):
            ops.embedding(**a)


def test_id_that_wraps_to_a_valid_one():
    a = SMALL.arguments()
    a["ids"][0] = a["ids"][0].astype("int64") + 2**32
    with pytest.raises(ValueError, match=r"^embedding: ids\b"):
        ops.embedding(**a)


def test_id_for_an_empty_table():
    table = np.zeros((0, 8), np.float32)
    with pytest.raises(ValueError, match=r"^embedding: ids\b"):
        ops.embedding([np.zeros(1, np.int32)], [table])
    assert ops.embedding([np.zeros(0, np.int32)], [table]).shape == (0, 8)


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("argument", ["norm_weight", "norm_bias", "out"])
def test_spoiled_argument(argument, spoiled):
    error, spoil = SPOILED[spoiled]
    a = SMALL.arguments() | {"out": np.empty((4, 19), np.float32)}
    a[argument] = spoil(a[argument])
    with pytest.raises(error, match=rf"^embedding: {argument}\b"):
        ops.embedding(**a)


@pytest.mark.parametrize("spoiled", SPOILED)
def test_spoiled_table(spoiled):
    error, spoil = SPOILED[spoiled]
    a = SMALL.arguments()
    a["tables"][1] = spoil(a["tables"][1])
    with pytest.raises(error, match=r"^embedding: tables\b"):
        ops.embedding(**a)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(lambda ids: ids.astype(np.float32), TypeError, id="float32"),
        pytest.param(lambda ids: ids.astype(np.uint8), TypeError, id="uint8"),
        pytest.param(lambda ids: ids.tolist(), TypeError, id="list"),
        pytest.param(lambda ids: np.repeat(ids, 2)[::2], ValueError, id="gapped"),
        pytest.param(lambda ids: ids[None], ValueError, id="two_dimensions"),
        pytest.param(lambda ids: ids[:-1], ValueError, id="one_fewer"),
    ],
)
def test_spoiled_ids(spoil, error):
    a = SMALL.arguments()
    a["ids"][1] = spoil(a["ids"][1])
    with pytest.raises(error, match=r"^embedding: ids\b"):
        ops.embedding(**a)


@pytest.mark.parametrize(
    ("ids", "tables"), [(0, 0), (1, 2), (2, 1), (5, 5)], ids=lambda count: str(count)
)
def test_wrong_count_of_tables(ids, tables):
    with pytest.raises(ValueError, match=r"^embedding: (ids|tables)\b"):
        ops.embedding([np.zeros(3, np.int32)] * ids, [np.zeros((4, 8), np.float32)] * tables)


def test_norm_bias_without_weight_is_refused():
    a = SMALL.arguments() | {"norm_weight": None}
    with pytest.raises(ValueError, match=r"^embedding: norm_bias\b"):
        ops.embedding(**a)


@pytest.mark.parametrize("eps", [-1e-6, float("nan")])
def test_bad_eps(eps):
    with pytest.raises(ValueError, match=r"^embedding: eps\b"):
        ops.embedding(**(SMALL.arguments() | {"eps": eps}))


def test_read_only_out_is_refused():
    with pytest.raises(ValueError, match=r"^embedding: out is read-only"):
        ops.embedding(**SMALL.arguments(), out=read_only(np.zeros((4, 19), np.float32)))


def test_out_may_not_overlap_a_table():
    a = SMALL.arguments()
    with pytest.raises(ValueError, match=r"^embedding: out .*tables"):
        ops.embedding(**a, out=a["tables"][0][:4])
