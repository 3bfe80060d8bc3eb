"""Attention of a decoder to what an encoder has made of the source."""

from __future__ import annotations

from dataclasses import dataclass

from softgate import ops
from softgate._core import SequenceOffsets, Tensor
from softgate.nn.layers import Linear
from softgate.nn.module import Module


@dataclass(frozen=True)
class Keys:
    """One layer's keys and values of the sources: k, v, `[total_tokens, num_heads, head_dim]`, and
    cu_seqlens, where each source starts."""

    k: Tensor
    v: Tensor
    cu_seqlens: SequenceOffsets


class CrossAttention(Module):
    """Multi-head attention of targets to sources, whose keys and values are computed once."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        bias: bool = True,
        scale: float | None = None,
    ) -> None:
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.scale = scale
        width = num_heads * head_dim
        self.q = Linear(hidden_size, width, bias)
        self.kv = Linear(hidden_size, 2 * width, bias)
        self.output = Linear(width, hidden_size, bias)

    def keys(self, memory: Tensor, cu_seqlens: SequenceOffsets) -> Keys:
        """memory: the encoder's result, `[total_tokens, hidden_size]`."""
        heads, dim = self.num_heads, self.head_dim
        # A gap of a head: tokens a power of two apart would share few lines of the CPU's caches.
        kv = Tensor.empty((len(memory), 2 * heads + 1, dim), memory.dtype, memory.device)
        rows = kv.reshape((len(memory), (2 * heads + 1) * dim))
        self.kv(memory, out=rows[:, : 2 * heads * dim])
        return Keys(kv[:, :heads], kv[:, heads : 2 * heads], cu_seqlens)

    def forward(
        self,
        x: Tensor,
        keys: Keys,
        cu_queries: SequenceOffsets,
        return_weights: bool = False,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x, residual, which is added, and the result: `[total_queries, hidden_size]`; weights:
        `[sources, num_heads, max_queries, max_source]`. cu_queries: where the tokens that look at
        each of the sources start; they may be of several targets, or none."""
        q = self.q(x).reshape((len(x), self.num_heads, self.head_dim))
        result = ops.attention(
            q,
            keys.k,
            keys.v,
            cu_queries,
            keys.cu_seqlens,
            scale=self.scale,
            return_weights=return_weights,
        )
        context, weights = result if return_weights else (result, None)
        context = context.reshape((len(x), self.num_heads * self.head_dim))
        return self.output(context, residual=residual), weights
