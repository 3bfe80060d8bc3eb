"""Attention that knows how far tokens are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import SequenceOffsets, Tensor
from softgate.nn.layers import Attention
from softgate.nn.module import Module, Parameter


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

    Half of the buckets are for keys before the query, half for keys after it, or if causal all for
    keys before; half of those are for one distance each, the others for ranges that widen up to
    `reach`.
    """

    def __init__(
        self, rows: int, num_heads: int, num_buckets: int, reach: int, *, causal: bool = False
    ) -> None:
        """rows: of the table, of which the first num_buckets count."""
        self.weight = Parameter(rows, num_heads)
        self.num_buckets = num_buckets
        self.reach = reach
        self.causal = causal
        self._made: tuple[Any, Any] = (None, None)

    def forward(self) -> Tensor:
        """The `relative_bias` of `ops.attention`: float32 `[num_heads, 2 * reach + 1]`."""
        if self._made[0] is not self.weight.value:  # once, not in every forward
            distances = np.arange(-self.reach, self.reach + 1)
            table = np.ascontiguousarray(self.weight.numpy()[self.buckets(distances)].T)
            self._made = self.weight.value, Tensor(table).to(self.device)
        made: Tensor = self._made[1]
        return made

    def buckets(self, distances: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The row of the table for each distance, key minus query."""
        buckets = self.num_buckets if self.causal else self.num_buckets // 2
        exact = buckets // 2
        n = np.maximum(-distances, 0) if self.causal else np.abs(distances)
        # In float32, as Hugging Face does: rounding decides on which side of a border it falls.
        far = np.log(np.maximum(n, 1).astype(np.float32) / np.float32(exact))
        far = far / np.float32(math.log(self.reach / exact)) * np.float32(buckets - exact)
        wide = np.minimum(exact + far.astype(np.int64), buckets - 1)
        after = 0 if self.causal else np.where(distances > 0, buckets, 0)
        return after + np.where(n < exact, n, wide)


def _packed(rows: Tensor, cu_seqlens: SequenceOffsets) -> Tensor:
    """Rows of a cache, `[batch, longest, heads, head_dim]`, one after the other without gaps."""
    lengths = np.diff(cu_seqlens.numpy())
    array = rows.to("cpu").numpy()
    kept = np.arange(array.shape[1]) < lengths[:, None]
    return Tensor(array[kept]).to(rows.device)
