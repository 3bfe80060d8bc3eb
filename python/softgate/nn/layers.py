"""Layers of encoders and decoders.

They take and give packed activations, `[total_tokens, hidden_size]` Tensors, with `cu_seqlens`
where sequences matter.
"""

from __future__ import annotations

from collections.abc import Sequence

from softgate import ops
from softgate._core import Tensor
from softgate.nn.module import Module, Parameter
from softgate.ops import Offsets


class Linear(Module):
    """`activation(x @ weight.T + bias) + residual`, the weight packed for its device.

    dtype: how it is stored, see `ops.pack`. gated: the weight's rows, and the bias, are [gate; up],
    half of out_features each, and the result is `activation(gate) * up + residual`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: ops.WeightType = "float32",
        gated: bool = False,
    ) -> None:
        self.weight = Parameter(out_features, in_features, packed=True, dtype=dtype, gated=gated)
        self.bias = Parameter(out_features, init=0.0) if bias else None

    def forward(
        self, x: Tensor, *, activation: ops.Activation = "none", residual: Tensor | None = None
    ) -> Tensor:
        """x: `[..., in_features]`; residual and the result: `[..., out_features]`, or half."""
        bias = None if self.bias is None else self.bias.value
        return ops.linear(x, self.weight.value, bias, activation=activation, residual=residual)


class LayerNorm(Module):
    """The weight and bias of a layer norm."""

    def __init__(self, hidden_size: int) -> None:
        self.weight = Parameter(hidden_size, init=1.0)
        self.bias = Parameter(hidden_size, init=0.0)


class Embedding(Module):
    """The sum of one row from each table, normalised."""

    def __init__(self, num_embeddings: Sequence[int], hidden_size: int, eps: float) -> None:
        self.tables = [Parameter(rows, hidden_size) for rows in num_embeddings]
        self.norm = LayerNorm(hidden_size)
        self.eps = eps

    def forward(self, *ids: Tensor) -> Tensor:
        """ids: an integer `[total_tokens]` for each table. Gives `[total_tokens, hidden_size]`."""
        return ops.embedding(
            ids,
            [table.value for table in self.tables],
            self.norm.weight.value,
            self.norm.bias.value,
            eps=self.eps,
        )


class AddNorm(LayerNorm):
    """Layer norm of `x + residual`."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size)
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, residual and the result: `[total_tokens, hidden_size]`. `x` is overwritten."""
        return ops.add_layer_norm(
            x, residual, self.weight.value, self.bias.value, eps=self.eps, out=x
        )


class Attention(Module):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.output = Linear(hidden_size, hidden_size)

    def forward(
        self, x: Tensor, cu_seqlens: Offsets, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x: `[total_tokens, hidden_size]`; weights: `[batch, num_heads, max_len, max_len]`."""
        total_tokens, hidden_size = x.shape
        qkv = self.qkv(x).reshape((total_tokens, 3, self.num_heads, self.head_dim))
        result = ops.attention(
            qkv[:, 0], qkv[:, 1], qkv[:, 2], cu_seqlens, return_weights=return_weights
        )
        context, weights = result if return_weights else (result, None)
        return self.output(context.reshape((total_tokens, hidden_size))), weights


class FeedForward(Module):
    """Two products with an activation between them, or `down(activation(gate(x)) * up(x))`."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: ops.Activation,
        *,
        gated: bool = False,
        bias: bool = True,
    ) -> None:
        self.activation = activation
        width = 2 * intermediate_size if gated else intermediate_size
        self.up = Linear(hidden_size, width, bias, gated=gated)
        self.down = Linear(intermediate_size, hidden_size, bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, residual, which is added, and the result: `[total_tokens, hidden_size]`."""
        y: Tensor = self.down(self.up(x, activation=self.activation), residual=residual)
        return y
