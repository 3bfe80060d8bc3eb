"""SequenceOffsets: what they say, refuse, and spare."""

from __future__ import annotations

import numpy as np
import pytest
import softgate
from cases.attention import AttentionCase
from cases.pool import PoolCase
from cases.recurrent import RecurrentCase
from devices import fetched, on_device
from softgate import cuda, ops
from tolerances import assert_same_bits

LENGTHS = (3, 0, 17, 1, 5)


def offsets_of(lengths=LENGTHS):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def test_what_they_say():
    array = offsets_of()
    offsets = softgate.SequenceOffsets(array)
    array[1] = 4  # they are a copy
    assert (offsets.batch, offsets.total, offsets.longest) == (5, 26, 17)
    assert offsets.device == offsets.cu_seqlens.device == "cpu"
    np.testing.assert_array_equal(offsets.numpy(), offsets_of())
    assert not offsets.numpy().flags.writeable
    assert repr(offsets) == "SequenceOffsets(batch=5, total=26, longest=17, device=cpu)"
    empty = softgate.SequenceOffsets(np.zeros(1, np.int32))
    assert (empty.batch, empty.total, empty.longest) == (0, 0, 0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.array([1, 3], np.int32), ValueError, "starts at 1, expected 0"),
        (np.array([0, 3, 2], np.int32), ValueError, "falls from 3 to 2 at 2"),
        (np.zeros(0, np.int32), ValueError, "is empty"),
        (np.zeros((1, 2), np.int32), ValueError, r"has shape \[1, 2\]"),
        (np.array([0, 3]), TypeError, "has dtype int64, expected int32"),
        ([0, 3], TypeError, "is a list"),
    ],
    ids=str,
)
def test_what_they_refuse(given, error, message):
    with pytest.raises(error, match=rf"^SequenceOffsets: cu_seqlens {message}"):
        softgate.SequenceOffsets(given)


def test_ops_on_the_cpu_take_them():
    a = AttentionCase(LENGTHS).arguments()
    kept = {n: softgate.SequenceOffsets(v) for n, v in a.items() if n[:2] == "cu" and v is not None}
    assert_same_bits(ops.attention(**(a | kept)), ops.attention(**a))
    a = PoolCase(LENGTHS, 9, "mean").arguments()
    offsets = softgate.SequenceOffsets(a["cu_seqlens"])
    assert_same_bits(ops.pool(**(a | {"cu_seqlens": offsets})), ops.pool(**a))
    with pytest.raises(ValueError, match=r"^pool: cu_seqlens ends at 26, expected the 25 tokens"):
        ops.pool(a["x"][1:], offsets)
    with pytest.raises(ValueError, match=r"^attention: cu_seqlens_q ends at 26, expected the 25"):
        x = np.zeros((25, 1, 8), np.float32)
        ops.attention(x, x, x, offsets)


def test_on_a_device(device):
    offsets = softgate.SequenceOffsets(offsets_of(), device)
    assert (offsets.device, offsets.cu_seqlens.device) == (device, device)
    np.testing.assert_array_equal(offsets.cu_seqlens.to("cpu").numpy(), offsets_of())
    with pytest.raises(ValueError, match="read-only"):
        offsets.cu_seqlens.copy_(np.zeros(6, np.int32))
    again = softgate.SequenceOffsets(offsets.cu_seqlens)
    np.testing.assert_array_equal(again.numpy(), offsets_of())


@pytest.mark.parametrize("op", ["attention", "lstm", "gru", "rnn", "pool"])
def test_ops_copy_nothing(device, op):
    """Neither way, once the arguments are there."""
    if op == "attention":
        a = AttentionCase(LENGTHS).arguments()
    elif op == "pool":
        a = PoolCase(LENGTHS, 9, "mean").arguments()
    else:
        kind = "rnn_tanh" if op == "rnn" else op
        a = RecurrentCase(kind, LENGTHS, direction="bidirectional").arguments()
    given = {n: on_device(v, device, "float32", "contiguous") for n, v in a.items()}
    if "weights" in a:
        given["weights"] = tuple(
            ops.pack_recurrent(
                **{n: on_device(v, device, "float32", "contiguous") for n, v in weight.items()}
            )
            for weight in a["weights"]
        )
    kept = {
        n: softgate.SequenceOffsets(v, device)
        for n, v in a.items()
        if n[:2] == "cu" and v is not None
    }
    before = cuda.transfers()
    results = getattr(ops, op)(**(given | kept))
    assert cuda.transfers() == before
    expected = getattr(ops, op)(**given)
    for result, other in zip(*map(as_list, (results, expected)), strict=True):
        assert_same_bits(fetched(result), fetched(other))


def as_list(results):
    return list(results) if isinstance(results, tuple) else [results]


def test_of_another_device(device):
    x = softgate.Tensor(np.zeros((26, 1, 8), np.float32))
    offsets = softgate.SequenceOffsets(offsets_of(), device)
    with pytest.raises(ValueError, match=rf"^attention: cu_seqlens_q is on {device}, expected cpu"):
        ops.attention(x, x, x, offsets)
    there = x.to(device)
    with pytest.raises(ValueError, match=rf"^attention: cu_seqlens_q is on cpu, expected {device}"):
        ops.attention(there, there, there, softgate.SequenceOffsets(offsets_of()))
