"""Layers: parameters with the operations of `softgate.ops`, composed as in torch.

Layers take and give packed activations, `[total_tokens, hidden_size]` Tensors, with `cu_seqlens`
where sequences matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import PackedWeight, Tensor

FloatArray = npt.NDArray[np.float32]


class Parameter:
    """A float32 array of known shape, which `load_state_dict` or `init_weights` fills.

    A packed one is laid out for `ops.linear` when it is filled, and only then kept.
    """

    def __init__(self, *shape: int, packed: bool = False, init: float | None = None) -> None:
        self.shape = shape
        self.packed = packed
        self.init = init  # a constant; None draws from a normal distribution
        self.value: Any = None  # Tensor, or PackedWeight when packed

    def fill(self, array: FloatArray) -> None:
        """Copy `array` in. It must have the parameter's shape."""
        if array.shape != self.shape:
            raise ValueError(
                f"parameter has shape {list(array.shape)}, expected {list(self.shape)}"
            )
        array = np.ascontiguousarray(array, dtype=np.float32)
        if self.packed:
            self.value = ops.pack(array)
        else:
            tensor = Tensor.empty(self.shape)
            tensor.numpy()[...] = array
            self.value = tensor

    def numpy(self) -> FloatArray:
        """The values, as they were filled in: a view, or a fresh array when packed."""
        value = self.value
        array: FloatArray = (value.unpack() if isinstance(value, PackedWeight) else value).numpy()
        return array

    @property
    def nbytes(self) -> int:
        """Bytes the values take, packing included."""
        return 0 if self.value is None else int(self.value.nbytes)


class Module:
    """A tree of parameters and further modules, found by their attribute names as in torch."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the module does."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(name, parameter) pairs, names joined by dots, lists by index."""
        for name, value in vars(self).items():
            for key, item in _numbered(prefix + name, value):
                if isinstance(item, Parameter):
                    yield key, item
                elif isinstance(item, Module):
                    yield from item.named_parameters(key + ".")

    def num_parameters(self) -> int:
        """Number of scalar weights."""
        return sum(math.prod(parameter.shape) for _, parameter in self.named_parameters())

    def nbytes(self) -> int:
        """Bytes the weights take in memory, packing included."""
        return sum(parameter.nbytes for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, FloatArray]:
        """All parameters by name."""
        return {name: parameter.numpy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, FloatArray]) -> None:
        """Fill every parameter from `state`, whose keys are those of `state_dict`.

        Raises ValueError that lists missing, unexpected and mis-shaped keys, before anything is
        changed.
        """
        parameters = dict(self.named_parameters())
        problems = [f"missing: {name}" for name in parameters if name not in state]
        problems += [f"unexpected: {name}" for name in state if name not in parameters]
        problems += [
            f"mis-shaped: {name} is {list(state[name].shape)}, expected {list(parameter.shape)}"
            for name, parameter in parameters.items()
            if name in state and tuple(state[name].shape) != parameter.shape
        ]
        if problems:
            raise ValueError("state does not fit the model:\n  " + "\n  ".join(problems))
        for name, parameter in parameters.items():
            parameter.fill(state[name])

    def init_weights(self, seed: int = 0, std: float = 0.02) -> None:
        """Fill every parameter: norms with 1, biases with 0, the rest from normal(0, std)."""
        rng = np.random.default_rng(seed)
        for _, parameter in self.named_parameters():
            if parameter.init is None:
                values = rng.standard_normal(parameter.shape, dtype=np.float32)
                values *= np.float32(std)
            else:
                values = np.full(parameter.shape, parameter.init, dtype=np.float32)
            parameter.fill(values)


def _numbered(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _numbered(f"{name}.{i}", item)
    else:
        yield name, value


class Linear(Module):
    """`activation(x @ weight.T + bias) + residual`, the weight packed for the CPU in use."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.weight = Parameter(out_features, in_features, packed=True)
        self.bias = Parameter(out_features, init=0.0) if bias else None

    def forward(
        self, x: Tensor, *, activation: ops.Activation = "none", residual: Tensor | None = None
    ) -> Tensor:
        """x: `[..., in_features]`; residual and the result: `[..., out_features]`."""
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
        self, x: Tensor, cu_seqlens: Tensor, return_weights: bool = False
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
    """Two products with an activation between them."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: ops.Activation
    ) -> None:
        self.activation = activation
        self.up = Linear(hidden_size, intermediate_size)
        self.down = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x and the result: `[total_tokens, hidden_size]`."""
        y: Tensor = self.down(self.up(x, activation=self.activation))
        return y
