"""`rotary` against the same steps in torch: split, norm, rotate, and copies into the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.case import Array, Call, Case, Inputs, normal
from bench.limits import Work


@dataclass(frozen=True)
class Rotary(Case):
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: bool = False

    @property
    def name(self) -> str:
        norm = " normed" if self.norm else ""
        return f"{self.tokens} tokens, {self.heads}/{self.kv_heads} heads of {self.head_dim}{norm}"

    @property
    def work(self) -> Work:
        elements = self.tokens * (self.heads + 2 * self.kv_heads) * self.head_dim
        return Work(flops=(7 if self.norm else 3) * elements, bytes=4 * 2 * elements)

    def inputs(self) -> Inputs:
        angles = np.arange(self.tokens)[:, None] * 1e-4 ** np.linspace(0, 1, self.head_dim // 2)
        weights = 1.0 + 0.1 * normal(2, self.head_dim, seed=1)
        return {
            "qkv": normal(self.tokens, (self.heads + 2 * self.kv_heads) * self.head_dim),
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
            **({"q_norm": weights[0], "k_norm": weights[1]} if self.norm else {}),
        }

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        shape = (1, self.tokens, self.kv_heads, self.head_dim)
        return inputs | {
            "cu_seqlens": np.array([0, self.tokens], np.int32),
            "starts": np.zeros(1, np.int32),
            "k_cache": np.zeros(shape, np.float32),
            "v_cache": np.zeros(shape, np.float32),
            "num_heads": self.heads,
        }

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        return _joined(*reference.rotary(**self.arguments(inputs)))

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        a = {
            name: Tensor(value) if isinstance(value, np.ndarray) else value
            for name, value in self.arguments(inputs).items()
        }
        out = Tensor.empty((self.tokens, self.heads, self.head_dim))
        caches = [a[name] for name in ("k_cache", "v_cache")]
        return Call(
            lambda: ops.rotary(**a, out=out),
            lambda q: _joined(q.numpy(), *(cache.numpy() for cache in caches)),
        )

    def torch(self, inputs: Inputs) -> Call:
        import torch
        from torch.nn.functional import rms_norm

        x = {name: torch.from_numpy(array) for name, array in inputs.items()}
        qkv = x["qkv"].view(self.tokens, -1, self.head_dim)
        cos, sin = (torch.cat([x[name]] * 2, dim=-1)[:, None] for name in ("cos", "sin"))
        caches = [torch.zeros(self.tokens, self.kv_heads, self.head_dim) for _ in "kv"]

        def rotate(heads: Any) -> Any:
            first, second = heads.chunk(2, dim=-1)
            return heads * cos + torch.cat((-second, first), dim=-1) * sin

        def run() -> Any:
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            if self.norm:
                q = rms_norm(q, (self.head_dim,), x["q_norm"], 1e-6)
                k = rms_norm(k, (self.head_dim,), x["k_norm"], 1e-6)
            caches[0].copy_(rotate(k))
            caches[1].copy_(v)
            return rotate(q)

        return Call(run, lambda q: _joined(q.numpy(), *(cache.numpy() for cache in caches)))


def _joined(q: Array, k_cache: Array, v_cache: Array) -> Array:
    return np.concatenate([array.ravel() for array in (q, k_cache, v_cache)])


CASES = [
    Rotary(1, 9, 3, 64),
    Rotary(512, 9, 3, 64),
    Rotary(512, 32, 8, 128),
    Rotary(512, 16, 8, 128, norm=True),
]
