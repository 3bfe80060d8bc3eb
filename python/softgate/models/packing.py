"""Batches of token ids without padding, and results with it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate._core import Tensor
from softgate.models.bert_config import MAX_SIZE

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.integer[Any]]


@dataclass
class Packed:
    """A batch without padding."""

    input_ids: IntArray
    token_type_ids: IntArray
    position_ids: IntArray
    cu_seqlens: npt.NDArray[np.int32]
    kept: npt.NDArray[np.bool_] | None = field(default=None)  # [batch, length], None when packed

    @property
    def has_holes(self) -> bool:
        """Is padding between tokens of a sequence?"""
        if self.kept is None:
            return False
        edges = np.diff(self.kept.astype(np.int8), axis=1, prepend=0) == 1
        return bool((edges.sum(axis=1) > 1).any())

    def states(self, tensor: Tensor) -> FloatArray:
        """[total_tokens, hidden] to [batch, length, hidden], when the batch came padded."""
        values = fetched(tensor)
        if self.kept is None:
            return values
        padded = np.zeros((*self.kept.shape, values.shape[-1]), dtype=np.float32)
        padded[self.kept] = values
        return padded

    def weights(self, tensor: Tensor) -> FloatArray:
        """Attention weights between kept tokens to weights between all."""
        weights = fetched(tensor)
        if self.kept is None:
            return weights
        batch, length = self.kept.shape
        padded = np.zeros((batch, weights.shape[1], length, length), dtype=np.float32)
        for i, kept in enumerate(self.kept):
            (index,) = kept.nonzero()
            n = len(index)
            padded[i][:, index[:, None], index] = weights[i, :, :n, :n]
        return padded


def fetched(tensor: Tensor) -> FloatArray:
    """On the host, in float32."""
    array: FloatArray = tensor.to("cpu", "float32").numpy()
    return array


def positions(lengths: Sequence[int] | IntArray) -> npt.NDArray[np.int64]:
    """Of the tokens in their sequences."""
    each = [np.arange(n, dtype=np.int64) for n in lengths]
    return np.concatenate(each) if each else np.empty(0, dtype=np.int64)


def pack_lists(
    input_ids: Sequence[Sequence[int]],
    token_type_ids: Sequence[Sequence[int]] | IntArray | None,
    pad_id: int | None = None,
) -> Packed:
    """Lists of ids of any lengths. pad_id: see `BertConfig.position_pad_id`."""
    ids = _flatten("input_ids", input_ids)
    lengths = [len(row) for row in input_ids]
    if token_type_ids is None:
        types = np.zeros_like(ids)
    else:
        if [len(row) for row in token_type_ids] != lengths:
            raise ValueError("token_type_ids: lengths differ from those of input_ids")
        types = _flatten("token_type_ids", token_type_ids)
    offsets = _cu_seqlens(lengths)
    places = positions(lengths)
    if pad_id is not None:
        counts = np.cumsum(ids != pad_id)
        before = np.concatenate([[0], counts])[offsets[:-1]]
        places = np.where(ids == pad_id, 0, counts - np.repeat(before, lengths)) + pad_id
    return Packed(ids, types, places, offsets)


def pack_padded(
    input_ids: IntArray,
    attention_mask: npt.NDArray[Any] | None,
    token_type_ids: Sequence[Sequence[int]] | IntArray | None,
    pad_id: int | None = None,
) -> Packed:
    """Integers `[batch, length]`, of which a nonzero mask keeps."""
    types = np.zeros_like(input_ids) if token_type_ids is None else np.asarray(token_type_ids)
    for name, ids in (("input_ids", input_ids), ("token_type_ids", types)):
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"{name}: {ids.dtype} array of shape {list(ids.shape)}, expected integers of "
                "[batch, length]"
            )
    kept: npt.NDArray[np.bool_] = np.ones(input_ids.shape, dtype=bool)
    if attention_mask is not None:
        kept = np.asarray(attention_mask) != 0
    for name, array in (("attention_mask", kept), ("token_type_ids", types)):
        if array.shape != input_ids.shape:
            raise ValueError(
                f"{name}: shape {list(array.shape)}, expected that of input_ids, "
                f"{list(input_ids.shape)}"
            )
    if pad_id is None:
        places = np.broadcast_to(np.arange(kept.shape[-1]), kept.shape)
    else:
        real = input_ids != pad_id
        places = np.cumsum(real, axis=1) * real + pad_id
    return Packed(
        input_ids[kept].astype(np.int64),
        types[kept].astype(np.int64),
        places[kept],
        _cu_seqlens(kept.sum(axis=1)),
        kept,
    )


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of texts with at most batch_tokens tokens in all, or one text."""
    start = tokens = 0
    for i, length in enumerate(lengths):
        if i > start and tokens + length > batch_tokens:
            yield start, i
            start = i
            tokens = 0
        tokens += length
    if start < len(lengths):
        yield start, len(lengths)


def _cu_seqlens(lengths: Sequence[int] | IntArray) -> npt.NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > MAX_SIZE:
        raise ValueError(f"input_ids: {offsets[-1]} tokens, expected at most {MAX_SIZE}")
    return offsets.astype(np.int32)


def _flatten(name: str, rows: Sequence[Sequence[int]] | IntArray) -> npt.NDArray[np.int64]:
    if not all(isinstance(row, Sequence | np.ndarray) for row in rows):
        raise TypeError(f"{name}: expected a list of lists of integers")
    flat = [token for row in rows for token in row]
    ids = np.asarray(flat) if flat else np.empty(0, dtype=np.int64)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise TypeError(f"{name}: expected a list of lists of integers")
    return ids.astype(np.int64, copy=False)
