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
    half of out_features each, and the result is `activation(gate) * up + residual`. grouped: see
    `Parameter`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: ops.WeightType = "float32",
        gated: bool = False,
        grouped: bool = False,
    ) -> None:
        self.weight = Parameter(
            out_features, in_features, packed=True, dtype=dtype, gated=gated, grouped=grouped
        )
        self.bias = Parameter(out_features, init=0.0) if bias else None

    def forward(
        self,
        x: Tensor,
        *,
        activation: ops.Activation = "none",
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """x: `[..., in_features]`; residual and the result, out: `[..., out_features]`, or half."""
        bias = None if self.bias is None else self.bias.value
        return ops.linear(
            x, self.weight.value, bias, activation=activation, residual=residual, out=out
        )


class LayerNorm(Module):
    """The weight and bias of a layer norm."""

    def __init__(self, hidden_size: int, bias: bool = True) -> None:
        self.weight = Parameter(hidden_size, init=1.0)
        self.bias = Parameter(hidden_size, init=0.0) if bias else None

    @property
    def values(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        return self.weight.value, None if self.bias is None else self.bias.value


class Embedding(Module):
    """The sum of one row from each table, normalised.

    packed: the first table is kept for `ops.linear`, as `word`, for a head that is tied to it.
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        hidden_size: int,
        eps: float,
        *,
        norm_bias: bool = True,
        packed: bool = False,
    ) -> None:
        rows = list(num_embeddings)
        self.word = Parameter(rows.pop(0), hidden_size, packed=True) if packed else None
        self.tables = [Parameter(count, hidden_size) for count in rows]
        self.norm = LayerNorm(hidden_size, norm_bias)
        self.eps = eps

    def forward(self, *ids: Tensor) -> Tensor:
        """ids: an integer `[total_tokens]` for each table. Gives `[total_tokens, hidden_size]`."""
        tables = [table.value for table in self.tables]
        weight, bias = self.norm.values
        if self.word is None:
            return ops.embedding(ids, tables, weight, bias, eps=self.eps)
        others = ops.embedding(ids[1:], tables) if tables else None
        x = ops.gather(self.word.value, ids[0], residual=others)
        return ops.add_layer_norm(x, None, weight, bias, eps=self.eps, out=x)


class AddNorm(LayerNorm):
    """Layer norm of `x + residual`."""

    def __init__(self, hidden_size: int, eps: float, bias: bool = True) -> None:
        super().__init__(hidden_size, bias)
        self.eps = eps

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, in_place: bool = True
    ) -> Tensor:
        """x, residual and the result: `[total_tokens, hidden_size]`. `x` is overwritten if
        in_place."""
        weight, bias = self.values
        out = x if in_place else None
        return ops.add_layer_norm(x, residual, weight, bias, eps=self.eps, out=out)


class Attention(Module):
    """Multi-head self-attention with one product for queries, keys and values.

    head_dim: by default hidden_size / num_heads. bias: of the products. scale, window: as in
    `ops.attention`. grouped: of the first product's weight, see `Parameter`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int | None = None,
        *,
        bias: bool = True,
        scale: float | None = None,
        window: tuple[int, int] = (-1, -1),
        grouped: bool = False,
    ) -> None:
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.scale = scale
        self.window = window
        width = num_heads * self.head_dim
        self.qkv = Linear(hidden_size, 3 * width, bias, grouped=grouped)
        self.output = Linear(width, hidden_size, bias)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Offsets,
        return_weights: bool = False,
        *,
        relative_bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x, residual, which is added, and the result: `[total_tokens, hidden_size]`;
        relative_bias: as in `ops.attention`; weights: `[batch, num_heads, max_len, max_len]`."""
        total_tokens = len(x)
        qkv = self.qkv(x).reshape((total_tokens, 3, self.num_heads, self.head_dim))
        result = ops.attention(
            qkv[:, 0],
            qkv[:, 1],
            qkv[:, 2],
            cu_seqlens,
            scale=self.scale,
            window=self.window,
            relative_bias=relative_bias,
            return_weights=return_weights,
        )
        context, weights = result if return_weights else (result, None)
        context = context.reshape((total_tokens, self.num_heads * self.head_dim))
        return self.output(context, residual=residual), weights


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
