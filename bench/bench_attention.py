"""`attention` against torch's `scaled_dot_product_attention`.

A batch of unequal lengths reaches torch padded with a boolean mask, and softgate packed: that is
what each of them takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.case import Array, Call, Case, Inputs, as_numpy, normal
from bench.limits import Work

# The float64 reference of every head of the long cases takes minutes.
CHECKED_HEADS = 2


@dataclass(frozen=True)
class Attention(Case):
    """Of each sequence's `length` tokens, the first `valid_q` ask, the first `valid_k` answer."""

    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch")
    tolerance: ClassVar[float] = 1e-5

    batch: int
    heads: int
    length: int
    head_dim: int
    valid_q: int
    valid_k: int
    causal: bool = False

    @property
    def name(self) -> str:
        shape = f"{self.batch}x{self.heads}x{self.length}x{self.head_dim}"
        if self.causal:
            return f"{shape} causal"
        if self.valid_k == self.length:
            return shape
        return f"{shape} half of the {'tokens' if self.valid_q < self.length else 'keys'} masked"

    @property
    def work(self) -> Work:
        pairs = self.valid_q * self.valid_k
        if self.causal:
            pairs = self.length * (self.length + 1) // 2
        tokens = 2 * self.valid_q + 2 * self.valid_k  # of q, out, k and v
        rows = self.batch * self.heads
        return Work(flops=4 * rows * pairs * self.head_dim, bytes=4 * rows * tokens * self.head_dim)

    def inputs(self) -> Inputs:
        shape = (self.batch, self.length, self.heads, self.head_dim)
        return {name: normal(*shape, seed=seed) for seed, name in enumerate("qkv")}

    def packed(self, inputs: Inputs) -> Inputs:
        """q, k, v `[tokens, heads, head_dim]` without padding, and the offsets."""
        valid = {"q": self.valid_q, "k": self.valid_k, "v": self.valid_k}
        tokens = {
            name: np.ascontiguousarray(inputs[name][:, :count]).reshape(
                -1, self.heads, self.head_dim
            )
            for name, count in valid.items()
        }
        offsets = np.arange(self.batch + 1, dtype=np.int32)
        return tokens | {
            "cu_seqlens_q": offsets * np.int32(self.valid_q),
            "cu_seqlens_k": offsets * np.int32(self.valid_k),
        }

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        packed = self.packed(inputs)
        some = {name: packed[name][:, :CHECKED_HEADS] for name in "qkv"}
        out: Array = reference.attention(**(packed | some), causal=self.causal)
        return out

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        packed: Any = {name: Tensor(array) for name, array in self.packed(inputs).items()}
        return Call(
            lambda: ops.attention(**packed, causal=self.causal),
            lambda out: as_numpy(out)[:, :CHECKED_HEADS],
        )

    def torch(self, inputs: Inputs) -> Call:
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        # [batch, heads, length, head_dim], contiguous
        q, k, v = (torch.from_numpy(inputs[n]).transpose(1, 2).contiguous() for n in "qkv")
        mask = None
        if self.valid_k < self.length:
            mask = torch.arange(self.length).lt(self.valid_k).expand(self.batch, 1, 1, -1)
        return Call(
            lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal),
            lambda out: (
                out.transpose(1, 2)[:, : self.valid_q, :CHECKED_HEADS]
                .reshape(-1, CHECKED_HEADS, self.head_dim)
                .numpy()
            ),
        )


CASES = [
    Attention(8, 12, 128, 64, valid_q=64, valid_k=64),
    Attention(8, 12, 128, 64, valid_q=128, valid_k=64),
    Attention(8, 12, 128, 32, valid_q=128, valid_k=128),
    Attention(1, 12, 1024, 64, valid_q=1024, valid_k=1024, causal=True),
    Attention(1, 12, 4096, 64, valid_q=4096, valid_k=4096, causal=True),
]
