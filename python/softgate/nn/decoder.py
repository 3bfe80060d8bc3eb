"""Layers of decoders, which keep the keys and values of the tokens they have seen."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from softgate import cuda, ops
from softgate._core import SequenceOffsets, Tensor
from softgate.nn.layers import Linear
from softgate.nn.module import Module, Parameter
from softgate.ops import Offsets

IntArray = npt.NDArray[np.int32]
Rows = Sequence[int] | npt.NDArray[np.integer]


class Norm(Module):
    """Layer norm or RMS norm, of which scale multiplies the weight."""

    def __init__(
        self, hidden_size: int, eps: float, kind: Literal["rms", "layer"], scale: float = 1.0
    ) -> None:
        self.weight = Parameter(hidden_size, init=1.0)
        self.bias = Parameter(hidden_size, init=0.0) if kind == "layer" else None
        self.eps = eps
        self.scale = scale
        self._scaled: tuple[Any, Any] = (None, None)

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor:
        """x, branch, which is first added to x in place, and the result:
        `[total_tokens, hidden_size]`."""
        weight, eps = self.weight.value, self.eps
        if self.scale != 1:
            if self._scaled[0] is not weight:
                scaled = Tensor(self.weight.numpy() * np.float32(self.scale))
                self._scaled = weight, scaled.to(weight.device, weight.dtype)
            weight = self._scaled[1]
        sum_out = None if branch is None else x
        if self.bias is None:
            return ops.add_rms_norm(x, branch, weight, eps=eps, sum_out=sum_out)
        return ops.add_layer_norm(x, branch, weight, self.bias.value, eps=eps, sum_out=sum_out)


class KVCache:
    """Keys and values of the tokens that each layer has seen, for a batch of sequences.

    lengths: int32 `[batch]`, how many tokens each row holds. k, v: for each layer, float32 or, on a
    device other than the CPU, also float16 or bfloat16 `[batch, capacity, num_kv_heads, head_dim]`,
    of which the first `lengths[row]` tokens count. graphs: captured steps that use this memory, by
    how many sequences they are for.
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """Memory is reserved at once and touched as it fills."""
        shape = (batch, capacity, num_kv_heads, head_dim)
        self.capacity = capacity
        self.lengths: IntArray = np.zeros(batch, dtype=np.int32)
        self.k = [Tensor.empty(shape, dtype, device) for _ in range(num_layers)]
        self.v = [Tensor.empty(shape, dtype, device) for _ in range(num_layers)]
        self.graphs: dict[int, StepGraph] = {}

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """A layer's k and v. Layers share them in a cache of fewer: nothing can follow then."""
        return self.k[index % len(self.k)], self.v[index % len(self.v)]

    @property
    def device(self) -> str:
        """Where keys and values are."""
        return self.k[0].device

    @property
    def batch(self) -> int:
        """How many rows there are."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values take at full capacity."""
        return sum(tensor.nbytes for tensor in (*self.k, *self.v))

    def truncate(self, row: int, length: int) -> None:
        """Forget the tokens of a row after its first `length`.

        Raises IndexError for a row that is not there, ValueError for a length that it has not.
        """
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(
                f"truncate: length is {length}, expected 0 to {self.lengths[row]}, the row's own"
            )
        self.lengths[row] = length

    def copy_rows(self, sources: Rows, targets: Rows, starts: Rows | None = None) -> None:
        """Make each row of `targets` hold what that of `sources` does. None may be both.

        starts: how many tokens each target has of its source already, by default none. Raises
        IndexError for a row that is not there.
        """
        lengths = self.lengths[sources]
        starts = np.zeros(len(lengths), np.int32) if starts is None else np.asarray(starts)
        self.lengths[targets] = 0  # until all of it is there
        if self.device == "cpu":
            counts = lengths - starts
            ends = np.cumsum(counts)
            places = np.arange(counts.sum()) + np.repeat(starts - ends + counts, counts)
            source = np.repeat(np.multiply(sources, self.capacity), counts) + places
            target = np.repeat(np.multiply(targets, self.capacity), counts) + places
            for tensor in (*self.k, *self.v):
                tokens = tensor.numpy().reshape(self.batch * self.capacity, -1)
                tokens[target] = tokens[source]
        else:
            for row, to, start, end in zip(sources, targets, starts, lengths, strict=True):
                for tensor in (*self.k, *self.v):
                    tensor[to, start:end].copy_(tensor[row, start:end])
        self.lengths[targets] = lengths


@dataclass(frozen=True)
class Step:
    """The tokens that a batch gains: cu_seqlens, int32 `[batch + 1]`; starts and lengths, int32
    `[batch]`: the tokens that a sequence's row of the cache holds before and after; rows, int32
    `[batch]`: which one that is, None where sequence b has row b."""

    cu_seqlens: Offsets
    starts: Tensor
    lengths: Tensor
    rows: Tensor | None = None


class StepGraph:
    """A step of so many sequences, a token each, in a CUDA graph.

    run: from int32 inputs on the device to logits, which copies nothing between it and the host.
    uses: what the graph reads and must outlive it; where it is replaced, `is_of` no longer holds.
    """

    def __init__(
        self, run: Callable[[Tensor], Tensor], inputs: IntArray, device: str, uses: Sequence[Any]
    ) -> None:
        self._uses = list(uses)
        self._inputs = Tensor(inputs).to(device)
        with cuda.capture(cuda.Stream(device)) as self._graph:
            self._logits = run(self._inputs)

    def is_of(self, uses: Iterable[Any]) -> bool:
        """Does the graph read these very objects?"""
        return all(map(operator.is_, self._uses, uses))

    def __call__(self, inputs: IntArray) -> Tensor:
        self._inputs.copy_(inputs)
        self._graph.launch()
        # The next launch writes the graph's own anew.
        logits = Tensor.empty(self._logits.shape, self._logits.dtype, self._logits.device)
        return logits.copy_(self._logits)


class CachedAttention(Module):
    """Causal self-attention whose keys and values go into a cache.

    qk_norm: an RMS norm of each head of queries and keys, with this epsilon.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        output_bias: bool = False,
        qk_norm: float | None = None,
        scale: float | None = None,
        window: int | None = None,
        softcap: float = 0.0,
    ) -> None:
        """window: how many tokens one sees, itself among them; None is all before it."""
        self.num_heads = num_heads
        self.scale = scale
        self.window = (-1 if window is None else window - 1, 0)
        self.softcap = softcap
        self.width = width = num_heads * head_dim
        self.qkv = Linear(hidden_size, width + 2 * num_kv_heads * head_dim, qkv_bias)
        self.output = Linear(width, hidden_size, output_bias)
        self.q_norm = None if qk_norm is None else Norm(head_dim, qk_norm, "rms")
        self.k_norm = None if qk_norm is None else Norm(head_dim, qk_norm, "rms")

    def forward(
        self,
        x: Tensor,
        step: Step,
        cache: tuple[Tensor, Tensor],
        rope: Sequence[Tensor] | None = None,
        residual: Tensor | None = None,
        *,
        relative_bias: Tensor | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x, residual and the result: `[total_tokens, hidden_size]`.

        cache: this layer's k and v, which gain the tokens. rope: cos and sin,
        `[positions, rotary_dim / 2]`. relative_bias: as in `ops.attention`. weights: `[batch,
        num_heads, max_tokens, max_keys]`, for which keys and values are copied.
        """
        k, v = cache
        cos, sin = (None, None) if rope is None else rope
        q = ops.rotary(
            self.qkv(x),
            step.cu_seqlens,
            step.starts,
            k,
            v,
            num_heads=self.num_heads,
            cos=cos,
            sin=sin,
            q_norm=None if self.q_norm is None else self.q_norm.weight.value,
            k_norm=None if self.k_norm is None else self.k_norm.weight.value,
            eps=1e-6 if self.q_norm is None else self.q_norm.eps,
            cache_rows=step.rows,
        )
        weights: Any = None
        if return_weights:
            k, v, cu_seqlens_k = _packed_rows(k, v, step)
            attended, weights = ops.attention(
                q,
                k,
                v,
                step.cu_seqlens,
                cu_seqlens_k,
                scale=self.scale,
                window=self.window,
                softcap=self.softcap,
                relative_bias=relative_bias,
                return_weights=True,
            )
        else:
            attended = ops.cached_attention(
                q,
                k,
                v,
                step.cu_seqlens,
                step.lengths,
                cache_rows=step.rows,
                scale=self.scale,
                window=self.window,
                softcap=self.softcap,
                relative_bias=relative_bias,
            )
        y: Tensor = self.output(attended.reshape((len(x), self.width)), residual=residual)
        return y, weights


def _packed_rows(k: Tensor, v: Tensor, step: Step) -> tuple[Tensor, Tensor, SequenceOffsets]:
    """The keys and values that a step's sequences have in the cache, without the gaps."""
    lengths = step.lengths.to("cpu").numpy()
    rows = np.arange(len(lengths)) if step.rows is None else step.rows.to("cpu").numpy()
    packed = []
    for cache in (k, v):
        array = cache.to("cpu", "float32").numpy()
        parts = [array[row, :length] for row, length in zip(rows, lengths, strict=True)]
        together = Tensor(np.concatenate(parts))
        packed.append(together.to(cache.device, cache.dtype))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return packed[0], packed[1], SequenceOffsets(offsets, k.device)
