"""Batches of token ids as models of recurrent layers take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float32]

Batch = Sequence[Sequence[int]] | IntArray


@dataclass(frozen=True)
class PackedIds:
    """Sequences one after another: ids, int32 `[total_tokens]`, and cu_seqlens, `[batch + 1]`.

    kept: bool `[batch, length]`, where they stood in a padded array; None when they were lists.
    """

    ids: npt.NDArray[np.int32]
    cu_seqlens: npt.NDArray[np.int32]
    kept: npt.NDArray[np.bool_] | None = None

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.cu_seqlens)

    def restore(self, packed: FloatArray) -> FloatArray:
        """`[total_tokens, size]` as it is, or `[batch, length, size]` with zeros in the padding."""
        if self.kept is None:
            return packed
        padded = np.zeros((*self.kept.shape, packed.shape[-1]), dtype=np.float32)
        padded[self.kept] = packed
        return padded


def pack_ids(name: str, batch: Batch, mask: npt.NDArray[Any] | None, vocab_size: int) -> PackedIds:
    """A list of lists of ids, or an integer array `[batch, length]` with a mask (nonzero keeps).

    Raises TypeError or ValueError for anything else, ids outside the vocabulary and empty
    sequences.
    """
    if isinstance(batch, np.ndarray):
        if batch.ndim != 2 or batch.dtype.kind not in "iu":
            raise ValueError(
                f"{name}: {batch.dtype} array of shape {list(batch.shape)}, expected integers of "
                "[batch, length]"
            )
        kept = np.ones(batch.shape, dtype=bool) if mask is None else np.asarray(mask) != 0
        if kept.shape != batch.shape:
            raise ValueError(
                f"{name}: its mask has shape {list(kept.shape)}, expected {list(batch.shape)}"
            )
        ids, lengths = batch[kept], kept.sum(axis=1)
    else:
        if mask is not None:
            raise ValueError(f"{name}: a mask is for an array, not for a list of lists")
        if isinstance(batch, str) or not all(
            isinstance(row, Sequence | np.ndarray) and not isinstance(row, str) for row in batch
        ):
            raise TypeError(f"{name}: expected a list of lists of token ids")
        kept = None
        ids = np.array([token for row in batch for token in row])
        lengths = np.array([len(row) for row in batch], dtype=np.int64)
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
        raise TypeError(f"{name}: expected a list of lists of token ids")
    if (empty := np.flatnonzero(lengths == 0)).size:
        raise ValueError(f"{name}[{empty[0]}] has no tokens")
    _check_ids(name, ids, vocab_size)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return PackedIds(ids.astype(np.int32), cu_seqlens, kept)


def check_packed(
    input_ids: npt.ArrayLike, cu_seqlens: npt.ArrayLike | None, vocab_size: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Ids of sequences one after another, and where each starts, by default one.

    Raises ValueError for ids outside the vocabulary, offsets that make no sense and sequences
    without tokens.
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(
            f"input_ids: {ids.dtype} array of shape {list(ids.shape)}, expected integers in one "
            "dimension"
        )
    offsets = np.asarray([0, len(ids)] if cu_seqlens is None else cu_seqlens)
    if (
        offsets.ndim != 1
        or offsets.dtype.kind not in "iu"
        or offsets[0] != 0
        or offsets[-1] != len(ids)
        or (np.diff(offsets) < 1).any()
    ):
        raise ValueError(
            f"cu_seqlens: expected offsets from 0 to the {len(ids)} tokens, each above the one "
            "before"
        )
    _check_ids("input_ids", ids, vocab_size)
    return ids.astype(np.int32), offsets.astype(np.int32)


def _check_ids(name: str, ids: IntArray, vocab_size: int) -> None:
    if (wrong := ids[(ids < 0) | (ids >= vocab_size)]).size:
        raise ValueError(f"{name} holds {wrong[0]}, expected ids below {vocab_size}")
