"""The element types of GGUF tensors: how blocks of weights are packed into bytes.

Every quantised type is decoded into groups of 32 or 16 weights along a row that share a scale and,
for some types, a minimum: weight = scale * value + minimum. Layouts are those of ggml-common.h and
ggml-quants.c in https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate.checkpoint.errors import CheckpointError

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int8]

GROUP = 32  # of the run-time layouts
_CHUNK = 1 << 20  # weights decoded at a time: temporaries stay in the cache and small


@dataclass(frozen=True, slots=True)
class Groups:
    """Decoded rows: values `[rows, groups, group size]`, scales and minimums `[rows, groups]`."""

    values: Ints
    scales: Floats
    minimums: Floats | None = None

    def weights(self) -> Floats:
        """`[rows, groups, group size]`"""
        weights = self.values * self.scales[..., None]
        if self.minimums is not None:
            weights += self.minimums[..., None]
        return weights


@dataclass(frozen=True, slots=True)
class Quantized:
    """A weight in one of the run-time layouts: weight = scale * value + minimum.

    values: int8 `[out, in]`, 0 to 15 for bits=4, -128 to 127 for bits=8; scales, minimums: float32
    `[out, in / 32]`, each exactly a float16.
    """

    values: Ints
    scales: Floats
    minimums: Floats | None
    bits: int

    def dequantize(self) -> Floats:
        """`[out, in]`"""
        grouped = self.values.reshape(*self.scales.shape, GROUP)
        return Groups(grouped, self.scales, self.minimums).weights().reshape(self.values.shape)


@dataclass(frozen=True, slots=True)
class Block:
    """One type: `size` weights make a block of `dtype`.

    decode: from blocks `[rows, blocks]` to groups; None for float types, whose dtype is of one
    number. bits: of the run-time layout that holds the values, or comes nearest.
    """

    size: int
    dtype: np.dtype[Any]
    decode: Callable[[Array], Groups] | None = None
    bits: int = 0


# A hostile file's scales may be infinite: weights then are too, and that is no warning's matter.
_quietly = np.errstate(over="ignore", invalid="ignore", divide="ignore")


@_quietly
def dequantize(type_name: str, rows: Bytes) -> Floats:
    """Weights `[rows, row length]` of rows of bytes, in float32; a view where they are that."""
    block = BLOCKS[type_name]
    blocks = rows.view(block.dtype)
    if block.decode is None:
        if type_name == "BF16":
            return (blocks.astype(np.uint32) << 16).view(np.float32)
        return np.require(blocks, np.float32, "A")
    weights = np.empty((len(blocks), blocks.shape[1] * block.size), np.float32)
    for chunk in _chunks(weights.shape):
        part = weights[chunk]
        part[:] = block.decode(blocks[chunk]).weights().reshape(part.shape)
    return weights


@_quietly
def quantize(type_name: str, rows: Bytes) -> Quantized | None:
    """The run-time layout of rows of bytes; None for float types.

    Exact for Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0; to the rounding of scales and minimums to float16 for
    Q4_K and Q5_K. Q2_K, Q3_K and Q6_K, whose groups are of 16, are rounded anew in groups of 32:
    the first to 4 bits with minimum, the others to 8 bits.

    Raises CheckpointError when a scale does not fit in float16.
    """
    block = BLOCKS[type_name]
    if block.decode is None:
        return None
    blocks = rows.view(block.dtype)
    length = blocks.shape[1] * block.size
    if length % GROUP:
        return None
    values = np.empty((len(blocks), length), np.int8)
    scales = np.empty((len(blocks), length // GROUP), np.float32)
    minimums: Floats | None = np.empty_like(scales)
    for chunk in _chunks(values.shape):
        groups = block.decode(blocks[chunk])
        if groups.values.shape[-1] != GROUP:
            weights = groups.weights().reshape(*scales[chunk].shape, GROUP)
            groups = _to_4_bits(weights) if block.bits == 4 else _to_8_bits(weights)
        values[chunk] = groups.values.reshape(values[chunk].shape)
        scales[chunk] = _as_half(groups.scales)
        if groups.minimums is None:
            minimums = None
        elif minimums is not None:
            minimums[chunk] = _as_half(groups.minimums)
    if not np.isfinite(scales).all() or not (minimums is None or np.isfinite(minimums).all()):
        raise CheckpointError(f"a {type_name} tensor has a scale that is not finite in float16")
    return Quantized(values, scales, minimums, block.bits)


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Ranges of rows that hold about `_CHUNK` weights each."""
    rows, length = shape
    step = max(1, _CHUNK // length)
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def _as_half(numbers: Floats) -> Floats:
    return numbers.astype(np.float16).astype(np.float32)


def _divide(weights: Floats, scales: Floats) -> Floats:
    """`weights / scales`, 0 where the scale is."""
    return np.where(scales == 0, 0, weights / scales)


def _to_8_bits(weights: Floats) -> Groups:
    scales = _as_half(np.abs(weights).max(-1, keepdims=True) / 127)
    values = np.rint(_divide(weights, scales)).clip(-127, 127)
    return Groups(values.astype(np.int8), scales[..., 0])


def _to_4_bits(weights: Floats) -> Groups:
    minimums = _as_half(weights.min(-1, keepdims=True))
    scales = _as_half((weights.max(-1, keepdims=True) - minimums) / 15)
    values = np.rint(_divide(weights - minimums, scales)).clip(0, 15)
    return Groups(values.astype(np.int8), scales[..., 0], minimums[..., 0])


def _float32(halves: Array) -> Floats:
    return halves.astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """`[..., n]` bytes to `[..., 2, n]`: all low nibbles, then all high ones."""
    return np.stack((packed & 15, packed >> 4), axis=-2)


def _bit_pairs(packed: Bytes) -> Bytes:
    """`[..., n]` bytes to `[..., 4, n]`: the lowest two bits of all, then the next two."""
    return np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], axis=-2)


def _bits(packed: Bytes) -> Bytes:
    """`[..., n]` bytes to `[..., 8, n]`: the lowest bit of all, then the next."""
    return np.stack([packed >> shift & 1 for shift in range(8)], axis=-2)


def _in_groups(values: Bytes, rows: int, size: int) -> Ints:
    return values.view(np.int8).reshape(rows, -1, size)


def _q4_0(blocks: Array) -> Groups:
    scales = _float32(blocks["d"])
    return Groups(_in_groups(_nibbles(blocks["qs"]), len(blocks), 32), scales, -8 * scales)


def _q4_1(blocks: Array) -> Groups:
    values = _in_groups(_nibbles(blocks["qs"]), len(blocks), 32)
    return Groups(values, _float32(blocks["d"]), _float32(blocks["m"]))


def _five_bits(blocks: Array) -> Bytes:
    fifth = np.unpackbits(blocks["qh"], axis=-1, bitorder="little")
    nibbles = _nibbles(blocks["qs"])
    return nibbles | fifth.reshape(nibbles.shape) << np.uint8(4)


def _q5_0(blocks: Array) -> Groups:
    values = _in_groups(_five_bits(blocks), len(blocks), 32)
    return Groups(values - np.int8(16), _float32(blocks["d"]))


def _q5_1(blocks: Array) -> Groups:
    values = _in_groups(_five_bits(blocks), len(blocks), 32)
    return Groups(values, _float32(blocks["d"]), _float32(blocks["m"]))


def _q8_0(blocks: Array) -> Groups:
    return Groups(blocks["qs"], _float32(blocks["d"]))


def _scaled(super_scales: Array, scales: Array) -> Floats:
    """`[rows, blocks]` times `[rows, blocks, groups]`, as `[rows, blocks * groups]`."""
    return (_float32(super_scales)[..., None] * scales).reshape(len(scales), -1)


def _q2_k(blocks: Array) -> Groups:
    halves = blocks["qs"].reshape(*blocks.shape, 2, 32)
    scales = blocks["scales"]
    return Groups(
        _in_groups(_bit_pairs(halves), len(blocks), 16),
        _scaled(blocks["d"], scales & 15),
        -_scaled(blocks["dmin"], scales >> 4),
    )


def _q3_k(blocks: Array) -> Groups:
    low = _bit_pairs(blocks["qs"].reshape(*blocks.shape, 2, 32))
    third = _bits(blocks["hmask"]).reshape(low.shape)  # set: nothing is to be subtracted
    values = _in_groups(low | third << np.uint8(2), len(blocks), 16) - np.int8(4)
    # Scales of 6 bits: 16 low nibbles in 8 bytes, then 16 pairs of high bits in 4 bytes.
    packed = blocks["scales"]
    nibbles = _nibbles(packed[..., :8]).reshape(*blocks.shape, 16)
    pairs = _bit_pairs(packed[..., 8:]).reshape(*blocks.shape, 16)
    scales = (nibbles | pairs << np.uint8(4)).view(np.int8) - np.int8(32)
    return Groups(values, _scaled(blocks["d"], scales))


def _six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """8 scales and 8 minimums from 12 bytes.

    The first four of each are the low 6 bits of bytes 0 to 3 and 4 to 7; of the last four, bytes 8
    to 11 have the low nibbles and the upper two bits of bytes 0 to 7 the rest.
    """
    scales, minimums, nibbles = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    return (
        np.concatenate((scales & 63, nibbles & 15 | scales >> 6 << 4), axis=-1),
        np.concatenate((minimums & 63, nibbles >> 4 | minimums >> 6 << 4), axis=-1),
    )


def _q4_k(blocks: Array) -> Groups:
    values = _nibbles(blocks["qs"].reshape(*blocks.shape, 4, 32))
    scales, minimums = _six_bit_scales(blocks["scales"])
    return Groups(
        _in_groups(values, len(blocks), 32),
        _scaled(blocks["d"], scales),
        -_scaled(blocks["dmin"], minimums),
    )


def _q5_k(blocks: Array) -> Groups:
    nibbles = _nibbles(blocks["qs"].reshape(*blocks.shape, 4, 32))
    fifth = _bits(blocks["qh"]).reshape(nibbles.shape)
    scales, minimums = _six_bit_scales(blocks["scales"])
    return Groups(
        _in_groups(nibbles | fifth << np.uint8(4), len(blocks), 32),
        _scaled(blocks["d"], scales),
        -_scaled(blocks["dmin"], minimums),
    )


def _q6_k(blocks: Array) -> Groups:
    low = _nibbles(blocks["ql"].reshape(*blocks.shape, 2, 64))
    high = _bit_pairs(blocks["qh"].reshape(*blocks.shape, 2, 32)).reshape(low.shape)
    values = _in_groups(low | high << np.uint8(4), len(blocks), 16) - np.int8(32)
    return Groups(values, _scaled(blocks["d"], blocks["scales"]))


def _layout(*fields: tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype([(n, kind, (count,)) if count > 1 else (n, kind) for n, kind, count in fields])


_D, _M, _DMIN = ("d", "<f2", 1), ("m", "<f2", 1), ("dmin", "<f2", 1)
_LAYOUT_Q3_K = _layout(("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), _D)
_LAYOUT_Q5_K = _layout(_D, _DMIN, ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128))
_LAYOUT_Q6_K = _layout(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D)

BLOCKS = {
    "F32": Block(1, np.dtype("<f4")),
    "F16": Block(1, np.dtype("<f2")),
    "BF16": Block(1, np.dtype("<u2")),  # NumPy has no bfloat16: its bits are widened
    "Q4_0": Block(32, _layout(_D, ("qs", "u1", 16)), _q4_0, 4),
    "Q4_1": Block(32, _layout(_D, _M, ("qs", "u1", 16)), _q4_1, 4),
    "Q5_0": Block(32, _layout(_D, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_0, 8),
    "Q5_1": Block(32, _layout(_D, _M, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_1, 8),
    "Q8_0": Block(32, _layout(_D, ("qs", "i1", 32)), _q8_0, 8),
    "Q2_K": Block(256, _layout(("scales", "u1", 16), ("qs", "u1", 64), _D, _DMIN), _q2_k, 4),
    "Q3_K": Block(256, _LAYOUT_Q3_K, _q3_k, 8),
    "Q4_K": Block(256, _layout(_D, _DMIN, ("scales", "u1", 12), ("qs", "u1", 128)), _q4_k, 4),
    "Q5_K": Block(256, _LAYOUT_Q5_K, _q5_k, 8),
    "Q6_K": Block(256, _LAYOUT_Q6_K, _q6_k, 8),
}

# Also those that softgate does not read, for the message that says so.
TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
