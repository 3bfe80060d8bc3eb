"""Attention on a device other than the CPU: pytest --device simt, or cuda."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import softgate
from cases.attention import ATTENTION, AttentionCase
from devices import DTYPES, fetched, naive, on_device, rounded
from softgate import ops, reference
from tolerances import assert_close, assert_same_bits, attention_scales

EVERYTHING = {"return_lse": True, "return_weights": True}
SIXTEEN_BIT = ("float16", "bfloat16")
HEAD_DIMS = (32, 64, 80, 96, 128, 256)

# The table's head sizes are small; these are those of the 16-bit kernels.
CASES_16_BIT = [
    *(
        AttentionCase((40, 0, 150), (170, 5, 33), num_heads=2, num_kv_heads=1, head_dim=d, **more)
        for d in HEAD_DIMS
        for more in ({}, {"causal": True}, {"window": (50, 9)}, {"mask": "bool"})
    ),
    *(
        AttentionCase((1, 3, 0, 2), (300, 5, 4, 0), num_heads=4, num_kv_heads=2, head_dim=d)
        for d in HEAD_DIMS
    ),
    *(
        AttentionCase((21, 6), (38, 40), mask=mask, softcap=softcap, head_dim=32)
        for mask in ("bias", "bool_empty_rows", "minus_inf_late", "lowest_empty_rows", None)
        for softcap in (0.0, 3.0)
    ),
    *(AttentionCase((40,), scale=scale, head_dim=32) for scale in (0.0, -0.5, 2.0)),
    *(
        AttentionCase(lengths, (300, 33), 4, 2, d, causal=True, reach=reach)
        for lengths in ((40, 9), (1, 3))
        for d in (32, 64)
        for reach in (0, 40, 500)
    ),
]


def arguments(case: AttentionCase, dtype: str) -> dict[str, Any]:
    return {
        name: rounded(value, dtype) if name in "qkv" else value
        for name, value in case.arguments().items()
    }


def placed(a: dict[str, Any], device: str, dtype: str, layout: str) -> dict[str, Any]:
    return {
        name: on_device(value, device, dtype if name in "qkv" else "float32", layout)
        for name, value in a.items()
    }


def run(case: AttentionCase, device: str, dtype: str) -> list[np.ndarray]:
    """Output, log-sum-exp and weights."""
    given = placed(arguments(case, dtype), device, dtype, case.layout)
    results = ops.attention(**given, **EVERYTHING)
    assert [result.dtype for result in results] == [dtype, "float32", "float32"]
    assert {result.device for result in results} == {device}
    return [fetched(result) for result in results]


def assert_matches_reference(case: AttentionCase, dtype: str, results: list[np.ndarray]) -> None:
    a = arguments(case, dtype)
    out, lse, weights = results
    expected_out, expected_lse, expected_weights = reference.attention(**a, **EVERYTHING)
    scale, lse_scale, weight_scale = attention_scales(**a)
    terms = max(case.key_lengths or case.lengths, default=1)
    assert_close(
        out,
        expected_out,
        scale=scale if dtype == "float32" else 0.0,
        terms=terms,
        dtype=dtype,
        naive=None if dtype == "float32" else naive("attention", dtype, **a),
    )
    assert_close(lse, expected_lse, scale=lse_scale, terms=terms)
    assert_close(weights, expected_weights, scale=weight_scale * expected_weights, terms=terms)
    assert (weights[expected_weights == 0.0] == 0.0).all()


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_matches_reference(device, case):
    assert_matches_reference(case, "float32", run(case, device, "float32"))


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("case", CASES_16_BIT, ids=str)
def test_matches_reference_in_16_bits(device, case, dtype):
    assert_matches_reference(case, dtype, run(case, device, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["reverse", "1"])
@pytest.mark.parametrize("lengths", [(1, 2), (40, 140)])
def test_same_bits_in_any_order_of_threads(device, lengths, order, dtype, monkeypatch):
    if device != "simt":
        pytest.skip("only simt can tell its threads when to run")
    case = AttentionCase(lengths, (300, 40), causal=True, head_dim=32)
    given = placed(arguments(case, dtype), device, dtype, "contiguous")
    expected = [fetched(result) for result in ops.attention(**given, **EVERYTHING)]
    monkeypatch.setenv("SOFTGATE_SIMT_ORDER", order)
    for result, before in zip(ops.attention(**given, **EVERYTHING), expected, strict=True):
        assert_same_bits(fetched(result), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_does_not_depend_on_the_others(device, dtype):
    a = arguments(AttentionCase((40, 3, 70), (60, 300, 90), causal=True, head_dim=32), dtype)
    whole = fetched(ops.attention(**placed(a, device, dtype, "contiguous")))
    for b in range(3):  # the second is short enough for a split over the keys
        rows_q, rows_k = (slice(*a[f"cu_seqlens_{x}"][b : b + 2]) for x in "qk")
        alone = a | {"q": a["q"][rows_q], "k": a["k"][rows_k], "v": a["v"][rows_k]}
        for x, rows in (("q", rows_q), ("k", rows_k)):
            alone[f"cu_seqlens_{x}"] = np.array([0, rows.stop - rows.start], np.int32)
        result = ops.attention(**placed(alone, device, dtype, "contiguous"))
        assert_same_bits(fetched(result), whole[rows_q])


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_head_size_that_is_not_built(device, dtype):
    a = placed(arguments(AttentionCase((4,), head_dim=72), dtype), device, dtype, "contiguous")
    with pytest.raises(ValueError, match=r"^attention: q has head_dim 72, expected 32, 64, 80, "):
        ops.attention(**a)


@pytest.mark.parametrize("argument", ["q", "k", "v"])
def test_rows_that_begin_anywhere(device, argument):
    a = arguments(AttentionCase((4,), head_dim=32), "float16")
    given = placed(a, device, "float16", "contiguous")
    given[argument] = on_device(a[argument], device, "float16", "misaligned")
    with pytest.raises(ValueError, match=rf"^attention: rows of {argument} begin anywhere, "):
        ops.attention(**given)


def test_mixed_devices(device):
    a = arguments(AttentionCase((4,)), "float32")
    given = placed(a, device, "float32", "contiguous")
    for argument in ("k", "v", "cu_seqlens_q"):
        with pytest.raises(
            ValueError, match=rf"^attention: {argument} is on cpu, expected {device}"
        ):
            ops.attention(**(given | {argument: softgate.Tensor(a[argument])}))
