"""sample.cu as nvcc compiles it, run by ptxrun."""

from __future__ import annotations

from typing import Any

import numpy as np
import ptx
import pytest
from cases.sample import PenalizeCase, SampleCase, SoftcapCase, TokenLogprobsCase
from devices import rounded
from softgate import reference
from test_sample import assert_drawn, logprobs_scale
from tolerances import assert_close

SOURCE = "cuda/sample.cu"
SHARED_BYTES = 4 * (2 * 32 + 32)
ORDERS = ({"seed": 0}, {"seed": 1}, {"strict_warp": True})

every_order = pytest.mark.parametrize("order", ORDERS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", ptx.ELEMENTS)


def frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def start(name: str, dtype: str, grid: Any, block: int, *structs: Any, **options: Any) -> Any:
    kernel = ptx.kernel(SOURCE, f"{name}_kernel<{ptx.ELEMENTS[dtype]}>")
    report = ptx.launch(kernel, grid, block, *structs, **options)
    assert not report.errors, "\n".join(report.errors)
    return report


def threads(vocab: int) -> int:
    return min(max(32 * -(-vocab // 128), 32), 512)


def run_sample(a: dict[str, Any], dtype: str, **options: Any) -> np.ndarray:
    batch, vocab = a["logits"].shape
    ids = np.full(batch, -7, np.int32)
    with np.errstate(all="ignore"):
        reach = np.float64(a["temperature"]) * np.log(np.float64(a["min_p"]))
    fields = [
        frozen(ptx.to_bits(a["logits"], dtype)), frozen(a["random"]), ids,
        *map(np.int64, (batch, vocab, vocab)), np.float32(a["temperature"]),
        np.int64(min(a["top_k"], vocab)), np.float64(a["top_p"]), np.float64(a["min_p"]),
    ]  # fmt: skip
    options["shared_bytes"] = SHARED_BYTES
    start("sample", dtype, batch, threads(vocab), fields, [reach], **options)
    return ids


@every_order
@every_dtype
@pytest.mark.parametrize(
    "case",
    [
        SampleCase(3, 20, top_k=3, top_p=0.7),
        SampleCase(2, 300, 0.7, min_p=0.05),
        SampleCase(2, 1037, 1.3, top_k=40, top_p=0.9, min_p=0.01),
        SampleCase(1, 2500, top_p=0.95, minus_inf=True),
        SampleCase(3, 333, 0.0),
        SampleCase(2, 1),
    ],
    ids=str,
)
def test_sample(case, dtype, order):
    a = case.arguments()
    a["logits"] = rounded(a["logits"], dtype)
    ids = run_sample(a, dtype, **order)
    if case.temperature == 0.0:
        assert ids.tolist() == a["logits"].argmax(axis=-1).tolist()
    else:
        assert_drawn(ids, a)


@every_dtype
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sample_from_what_cannot_be_chosen_from(temperature, dtype):
    a = SampleCase(4, 200, temperature, top_k=0 if temperature == 0.0 else 5).arguments()
    a["logits"][0, 150], a["logits"][1, 7], a["logits"][2] = np.nan, np.inf, -np.inf
    a["logits"][3, 90] = 99.0
    assert run_sample(a, dtype).tolist() == [-1, -1, -1, 90]


@every_order
@every_dtype
@pytest.mark.parametrize("bad_id", [None, -1, 70])
def test_penalize(bad_id, dtype, order):
    a = PenalizeCase((300, 0, 9), 70).arguments()
    a["logits"] = rounded(a["logits"], dtype)
    expected = reference.penalize(**a)
    if bad_id is not None:
        a["ids"][[5, 302]] = bad_id
        kept = np.delete(a["ids"], [5, 302])
        shorter = a | {"ids": kept, "cu_ids": np.array([0, 299, 299, 307], np.int32)}
        expected = reference.penalize(**shorter)
    logits = ptx.to_bits(a["logits"], dtype)
    seen = np.zeros((3, 3), np.uint32)
    fields = [
        logits, frozen(a["ids"]), frozen(a["cu_ids"]),
        *map(np.int64, (3, 70, len(a["ids"]), 70)), np.float32(a["penalty"]),
    ]  # fmt: skip
    start("penalize", dtype, 3, 256, fields, [seen], [np.int64(3)], **order)
    assert_close(ptx.to_float64(logits, dtype), expected, dtype=dtype)


@every_order
@every_dtype
@pytest.mark.parametrize(
    "case",
    [
        TokenLogprobsCase(3, 40),
        TokenLogprobsCase(2, 2500),
        TokenLogprobsCase(5, 70, minus_inf=True),
    ],
    ids=str,
)
def test_token_logprobs(case, dtype, order):
    a = case.arguments()
    a["logits"] = rounded(a["logits"], dtype)
    a["ids"][-1] = case.vocab  # outside
    out = np.zeros(case.rows, np.float32)
    fields = [
        frozen(ptx.to_bits(a["logits"], dtype)), frozen(a["ids"]), out,
        *map(np.int64, (case.rows, case.vocab, case.vocab)),
    ]  # fmt: skip
    options = order | {"shared_bytes": SHARED_BYTES}
    start("token_logprobs", dtype, case.rows, threads(case.vocab), fields, **options)
    inside = {name: array[:-1] for name, array in a.items()}
    expected, scale = reference.token_logprobs(**inside), logprobs_scale(**inside)
    assert_close(out[:-1], expected, scale=scale, terms=case.vocab)
    assert np.isnan(out[-1])


@every_order
@every_dtype
@pytest.mark.parametrize("vocab", [40, 2500])
def test_softcap(vocab, dtype, order):
    a = SoftcapCase(3, vocab).arguments()
    a["logits"] = rounded(a["logits"], dtype)
    logits = ptx.to_bits(a["logits"], dtype)
    fields = [logits, *map(np.int64, (3, vocab, vocab)), np.float32(a["cap"])]
    start("softcap", dtype, (3, -(-vocab // 1024)), 256, fields, **order)
    assert_close(ptx.to_float64(logits, dtype), reference.softcap(**a), dtype=dtype)


def test_no_instance_is_left_out():
    names = ("sample", "penalize", "softcap", "token_logprobs")
    expected = {f"{name}_kernel<{t}>" for name in names for t in ptx.ELEMENTS.values()}
    assert ptx.kernels(SOURCE).keys() == expected
