"""GGUF's element types against the gguf package's own dequantisers."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType
from softgate.checkpoint import CheckpointError
from softgate.checkpoint.gguf.blocks import BLOCKS, TYPE_NAMES, dequantize, quantize

FLOATS = [name for name, block in BLOCKS.items() if block.decode is None]
QUANTIZED = [name for name in BLOCKS if name not in FLOATS]
EXACT = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def random_rows(name: str, rows: int = 7, blocks: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Every bit pattern is a block, but for scales: those are finite, of either sign, and small."""
    random = np.random.default_rng(seed)
    block = BLOCKS[name]
    raw = random.integers(0, 256, (rows, blocks * block.dtype.itemsize), np.uint8)
    view: Any = raw.view(block.dtype)
    if block.decode is None:
        view[:] = random.standard_normal(view.shape).astype(block.dtype) if name != "BF16" else view
        if name == "BF16":
            view &= 0xBFFF  # no infinities
        return raw
    for scale in {"d", "m", "dmin"} & set(block.dtype.names or ()):
        view[scale] = random.standard_normal(view.shape) * 0.01
    return raw


def oracle(name: str, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return gguf.dequantize(raw, GGMLQuantizationType[name])


def test_types_are_the_formats_own() -> None:
    for number, name in TYPE_NAMES.items():
        assert GGMLQuantizationType(number).name == name
    for name, block in BLOCKS.items():
        size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        assert (block.size, block.dtype.itemsize) == size


@pytest.mark.parametrize("name", BLOCKS)
def test_every_bit_pattern_dequantizes_as_the_oracle_says(name: str) -> None:
    for blocks, rows in ((1, 1), (3, 7), (2, 3000)):  # the last takes several chunks
        raw = random_rows(name, rows, blocks)
        np.testing.assert_array_equal(dequantize(name, raw), oracle(name, raw))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_what_the_oracle_quantizes_comes_back(name: str) -> None:
    weights = np.random.default_rng(1).standard_normal((5, 96)).astype(np.float32)
    raw = gguf.quantize(weights, GGMLQuantizationType[name])
    found = dequantize(name, raw.view(np.uint8))
    np.testing.assert_array_equal(found, gguf.dequantize(raw, GGMLQuantizationType[name]))
    np.testing.assert_allclose(found, weights, atol=0.3)


@pytest.mark.parametrize("name", QUANTIZED)
def test_run_time_layout(name: str) -> None:
    raw = random_rows(name, rows=9)
    found = quantize(name, raw)
    assert found is not None
    rows, length = oracle(name, raw).shape
    assert found.values.dtype == np.int8
    assert found.values.shape == (rows, length)
    assert found.scales.shape == (rows, length // 32)
    for numbers in (found.scales, found.minimums):
        if numbers is not None:
            assert numbers.dtype == np.float32
            np.testing.assert_array_equal(numbers, numbers.astype(np.float16))
    if found.bits == 4:
        assert found.minimums is not None
        assert found.values.min() >= 0
        assert found.values.max() <= 15


@pytest.mark.parametrize("name", EXACT)
def test_run_time_layout_is_exact(name: str) -> None:
    raw = random_rows(name)
    found = quantize(name, raw)
    assert found is not None
    np.testing.assert_array_equal(found.dequantize(), oracle(name, raw))


def half_steps(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The most that rounding each to float16 changes it."""
    return np.spacing(np.abs(numbers).astype(np.float16)).astype(np.float32) / 2


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K"])
def test_run_time_layout_rounds_scales_only(name: str) -> None:
    raw = random_rows(name)
    found = quantize(name, raw)
    assert found is not None
    assert found.minimums is not None
    error = np.abs(found.dequantize() - oracle(name, raw)).reshape(*found.scales.shape, 32)
    values = found.values.reshape(error.shape)
    bound = values * half_steps(found.scales)[..., None] + half_steps(found.minimums)[..., None]
    assert (error <= bound * (1 + 1e-5)).all()
    assert error.max() > 0


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q6_K"])
def test_run_time_layout_is_the_nearest(name: str) -> None:
    raw = random_rows(name)
    found = quantize(name, raw)
    assert found is not None
    exact = oracle(name, raw)
    grouped = exact.reshape(*found.scales.shape, 32)
    # Half a step of the layout's best grid, and what rounding scale and minimum to float16 adds.
    if found.bits == 4:
        assert found.minimums is not None
        step = np.ptp(grouped, axis=-1) / 15
        rounding = 15 * half_steps(step) + half_steps(found.minimums)
    else:
        assert found.minimums is None
        step = np.abs(grouped).max(axis=-1) / 127
        rounding = 127 * half_steps(step)
    error = np.abs(found.dequantize() - exact).reshape(grouped.shape).max(axis=-1)
    assert (error <= (0.5 * step + rounding) * 1.001).all()


@pytest.mark.parametrize("name", FLOATS)
def test_floats_have_no_run_time_layout(name: str) -> None:
    assert quantize(name, random_rows(name)) is None


@pytest.mark.parametrize("name", QUANTIZED)
def test_zero_blocks(name: str) -> None:
    raw = np.zeros_like(random_rows(name))
    found = quantize(name, raw)
    assert found is not None
    np.testing.assert_array_equal(dequantize(name, raw), 0)
    np.testing.assert_array_equal(found.dequantize(), 0)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_scales_that_are_not_finite(name: str, bad: float) -> None:
    raw = random_rows(name)
    view: Any = raw.view(BLOCKS[name].dtype)
    view["d"][2, 1] = bad
    for field in ("scales", "qs"):
        if field in BLOCKS[name].dtype.names:
            view[field][2, 1] |= 1
    with pytest.raises(CheckpointError, match=f"a {name} tensor has a scale that is not finite"):
        quantize(name, raw)


def test_minimum_beyond_float16() -> None:
    raw = random_rows("Q4_0")
    view: Any = raw.view(BLOCKS["Q4_0"].dtype)
    view["d"][0, 0] = 60000
    with pytest.raises(CheckpointError, match="not finite in float16"):
        quantize("Q4_0", raw)
