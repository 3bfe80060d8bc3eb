"""Layers of encoders whose attention knows how far tokens are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import SequenceOffsets, Tensor
from softgate.nn.layers import Attention
from softgate.nn.module import FloatArray, Module, Parameter


class RotaryAttention(Attention):
    """`Attention` whose queries and keys are rotated (Su et al. 2021)."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        cu_seqlens: SequenceOffsets,
        return_weights: bool = False,
        *,
        rope: Sequence[Tensor],
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `Attention`; rope: cos and sin, `[positions, rotary_dim / 2]`."""
        total_tokens, hidden_size = x.shape
        cos, sin = rope
        lengths = Tensor(np.diff(cu_seqlens.numpy())).to(x.device)
        starts = Tensor(np.zeros(cu_seqlens.batch, dtype=np.int32)).to(x.device)
        # What the op rotates goes into the rows of a cache, here one for this layer alone.
        shape = (cu_seqlens.batch, cu_seqlens.longest, self.num_heads, self.head_dim)
        k, v = (Tensor.empty(shape, x.dtype, x.device) for _ in range(2))
        q = ops.rotary(
            self.qkv(x), cu_seqlens, starts, k, v, num_heads=self.num_heads, cos=cos, sin=sin
        )
        weights: Tensor | None = None
        if return_weights:
            k, v = (_packed(rows, cu_seqlens) for rows in (k, v))
            context, weights = ops.attention(
                q, k, v, cu_seqlens, window=self.window, return_weights=True
            )
        else:
            context = ops.cached_attention(
                q, k, v, cu_seqlens, lengths, window=self.window, causal=False
            )
        context = context.reshape((total_tokens, hidden_size))
        return self.output(context, residual=residual), weights


class RelativeBias(Module):
    """What the scores of two tokens gain by their distance (Raffel et al. 2020), for each head.

    Half of the buckets are for keys before the query, half for keys after it; half of those are for
    one distance each, the others for ranges that widen up to `reach`.
    """

    def __init__(self, rows: int, num_heads: int, num_buckets: int, reach: int) -> None:
        """rows: of the table, of which the first num_buckets count."""
        self.weight = Parameter(rows, num_heads)
        self.num_buckets = num_buckets
        self.reach = reach
        self._fetched: tuple[Any, FloatArray] = (None, np.empty((0, 0), dtype=np.float32))

    def forward(self, length: int) -> Tensor:
        """A mask for `ops.attention` of sequences up to this length:
        float32 `[1, num_heads, length, length]`."""
        if self._fetched[0] is not self.weight.value:  # from a device once, not in every forward
            self._fetched = self.weight.value, self.weight.numpy()
        distances = np.arange(1 - length, length)
        by_distance = self._fetched[1][self.buckets(distances)].T
        # Row i is the distances from -i on: windows over them, the last one first.
        windows = np.lib.stride_tricks.sliding_window_view(by_distance, length, axis=1)[:, ::-1]
        mask = np.ascontiguousarray(windows[None], dtype=np.float32)
        return Tensor(mask).to(self.device)

    def buckets(self, distances: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The row of the table for each distance, key minus query."""
        half = self.num_buckets // 2
        exact = half // 2
        n = np.abs(distances)
        # In float32, as Hugging Face does: rounding decides on which side of a border it falls.
        far = np.log(np.maximum(n, 1).astype(np.float32) / np.float32(exact))
        far = far / np.float32(math.log(self.reach / exact)) * np.float32(half - exact)
        wide = np.minimum(exact + far.astype(np.int64), half - 1)
        return np.where(distances > 0, half, 0) + np.where(n < exact, n, wide)


def _packed(rows: Tensor, cu_seqlens: SequenceOffsets) -> Tensor:
    """Rows of a cache, `[batch, longest, heads, head_dim]`, one after the other without gaps."""
    lengths = np.diff(cu_seqlens.numpy())
    array = rows.to("cpu").numpy()
    kept = np.arange(array.shape[1]) < lengths[:, None]
    return Tensor(array[kept]).to(rows.device)
