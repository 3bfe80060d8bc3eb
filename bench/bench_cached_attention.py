"""`cached_attention` of one token per sequence against torch's `scaled_dot_product_attention`.

torch gets the same keys and values in the layout that it reads fastest, heads first. Each case runs
through as many caches as a model has layers: a layer's keys have left the near caches when their
turn comes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.case import Array, Call, Case, Inputs, as_numpy, normal
from bench.limits import Work


@dataclass(frozen=True)
class CachedAttention(Case):
    """The last layer's answer is the one that is checked."""

    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch")
    tolerance: ClassVar[float] = 1e-5

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    layers: int
    queries: int = 1

    @property
    def name(self) -> str:
        heads = f"{self.heads}/{self.kv_heads} heads of {self.head_dim}"
        return f"{self.batch}x{self.queries} queries, {self.context} keys, {heads}"

    @property
    def work(self) -> Work:
        tokens = self.batch * self.context * self.layers
        cache = 4 * 2 * tokens * self.kv_heads * self.head_dim
        return Work(
            flops=4 * tokens * self.queries * self.heads * self.head_dim,
            bytes=cache,
            traffic="read",
        )

    def inputs(self) -> Inputs:
        shape = (self.layers, self.batch, self.context, self.kv_heads, self.head_dim)
        return {
            "q": normal(self.batch * self.queries, self.heads, self.head_dim),
            "k": normal(*shape, seed=1),
            "v": normal(*shape, seed=2),
        }

    def packed(self, inputs: Inputs, layer: int) -> Inputs:
        return {
            "q": inputs["q"],
            "k_cache": inputs["k"][layer],
            "v_cache": inputs["v"][layer],
            "cu_seqlens_q": np.arange(self.batch + 1, dtype=np.int32) * np.int32(self.queries),
            "lengths_k": np.full(self.batch, self.context, np.int32),
        }

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        out: Array = reference.cached_attention(**self.packed(inputs, self.layers - 1))
        return out

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        layers: list[Any] = [
            {name: Tensor(array) for name, array in self.packed(inputs, layer).items()}
            for layer in range(self.layers)
        ]
        out = Tensor.empty(inputs["q"].shape)

        def run() -> Tensor:
            for layer in layers:
                ops.cached_attention(**layer, out=out)
            return out

        return Call(run)

    def torch(self, inputs: Inputs) -> Call:
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        # [batch, heads, length, head_dim], contiguous
        q = torch.from_numpy(inputs["q"])
        q = q.reshape(self.batch, self.queries, self.heads, -1).transpose(1, 2).contiguous()
        caches = [
            [torch.from_numpy(inputs[n][i]).transpose(1, 2).contiguous() for n in "kv"]
            for i in range(self.layers)
        ]
        grouped = self.heads != self.kv_heads
        # Bottom right, which its own causal flag is not.
        mask = torch.ones(self.queries, self.context, dtype=torch.bool)
        mask = mask.tril(self.context - self.queries) if self.queries > 1 else None

        def run() -> Any:
            for k, v in caches:
                out = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
            return out

        return Call(run, lambda out: as_numpy(out.transpose(1, 2).flatten(0, 1)))


CASES = [
    CachedAttention(1, 9, 3, 64, context=4096, layers=10),
    CachedAttention(1, 9, 3, 64, context=512, layers=30),
    CachedAttention(1, 12, 12, 64, context=1024, layers=12),
    CachedAttention(1, 32, 8, 128, context=4096, layers=4),
    CachedAttention(8, 9, 3, 64, context=512, layers=10),
    CachedAttention(1, 8, 1, 256, context=4096, layers=10),
    CachedAttention(1, 9, 3, 64, context=4096, layers=10, queries=4),
]
