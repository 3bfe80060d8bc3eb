"""What gpu-report times of language models: the kernels of a decode step, and whole steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.case import Array, Inputs
from bench.gpu_cases import EPS, DType, GpuCase, Run, normal
from bench.gpu_stacks import on_host
from bench.limits import Work


def angles(positions: Array, head_dim: int) -> tuple[Array, Array]:
    """cos and sin of Llama's rotary embedding, float32 `[positions, head_dim / 2]`."""
    turned = positions[:, None] * 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)


def turned(x: Any, cos: Any, sin: Any) -> Any:
    """torch: the heads of x, `[tokens, heads, head_dim]`, rotated as pairs of their halves."""
    import torch

    first, second = x.float().chunk(2, dim=-1)
    both = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(both, dim=-1).to(x.dtype)


@dataclass(frozen=True)
class CachedAttention(GpuCase):
    """A query of each sequence to the keys in its row of a cache."""

    op = "cached_attention"

    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.heads}/{self.kv_heads}x1 of {self.length}x{self.head_dim}"

    @property
    def work(self) -> Work:
        keys = self.batch * self.kv_heads * self.length * self.head_dim
        return Work(
            flops=4 * self.batch * self.heads * self.length * self.head_dim,
            bytes=self.itemsize * 2 * keys,
            traffic="read",
        )

    def inputs(self) -> Inputs:
        cache = (self.batch, self.length, self.kv_heads, self.head_dim)
        return {
            "q": normal(self.batch, self.heads, self.head_dim),
            "k_cache": normal(*cache, seed=1),
            "v_cache": normal(*cache, seed=2),
            "cu_seqlens_q": np.arange(self.batch + 1, dtype=np.int32),
            "lengths_k": np.full(self.batch, self.length, np.int32),
        }

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        some = {name: inputs[name][:1] for name in ("q", "k_cache", "v_cache", "lengths_k")}
        return reference.cached_attention(**some, cu_seqlens_q=[0, 1])

    def part(self, result: Array) -> Array:
        return result.reshape(self.batch, self.heads, self.head_dim)[:1]

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        out = empty(given["q"].shape)
        return lambda: ops.cached_attention(**given, out=out)

    def torch(self, given: Inputs) -> Run:
        from torch.nn.functional import scaled_dot_product_attention

        q = given["q"][:, :, None]
        k, v = (given[name].transpose(1, 2) for name in ("k_cache", "v_cache"))
        gqa = self.heads != self.kv_heads
        return lambda: scaled_dot_product_attention(q, k, v, enable_gqa=gqa)


@dataclass(frozen=True)
class Rotary(GpuCase):
    """Tokens of one sequence, from projection to queries and cache."""

    op = "rotary"
    exact = ("cos", "sin")

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def shape(self) -> str:
        return f"{self.tokens}x{self.heads}/{self.kv_heads}x{self.head_dim}"

    @property
    def work(self) -> Work:
        elements = self.tokens * (self.heads + 2 * self.kv_heads) * self.head_dim
        return Work(flops=3 * elements, bytes=self.itemsize * 2 * elements)

    def inputs(self) -> Inputs:
        cos, sin = angles(np.arange(self.tokens), self.head_dim)
        cache = (1, self.tokens, self.kv_heads, self.head_dim)
        return {
            "qkv": normal(self.tokens, (self.heads + 2 * self.kv_heads) * self.head_dim),
            "cu_seqlens": np.array([0, self.tokens], np.int32),
            "starts": np.zeros(1, np.int32),
            "k_cache": np.zeros(cache, np.float32),
            "v_cache": np.zeros(cache, np.float32),
            "cos": cos,
            "sin": sin,
        }

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        q, _, _ = reference.rotary(**inputs, num_heads=self.heads)
        return self.part(q)

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        out = empty((self.tokens, self.heads, self.head_dim))
        return lambda: ops.rotary(**given, num_heads=self.heads, out=out)

    def torch(self, given: Inputs) -> Run:
        qkv = given["qkv"].view(self.tokens, -1, self.head_dim)
        cos, sin = given["cos"][:, None], given["sin"][:, None]

        def run() -> Any:
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            given["k_cache"][0].copy_(turned(k, cos, sin))
            given["v_cache"][0].copy_(v)
            return turned(q, cos, sin)

        return run


@dataclass(frozen=True)
class Sample(GpuCase):
    """A token of the 40 likeliest, of these of those that reach 0.95."""

    op = "sample"
    exact = ("random",)

    batch: int
    vocab: int
    top_k: int = 40
    top_p: float = 0.95

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.vocab}"

    @property
    def work(self) -> Work:
        elements = self.batch * self.vocab
        return Work(flops=4 * elements, bytes=self.itemsize * elements, traffic="read")

    def inputs(self) -> Inputs:
        # Multiples of a sixteenth, which 16 bits hold: both sides see the same ties.
        logits = np.round(normal(self.batch, self.vocab) * 48.0).astype(np.float32) / 16.0
        random = np.random.default_rng(3).random(self.batch).astype(np.float32)
        return {"logits": logits, "random": random}

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        return self.part(
            reference.sample(**inputs, top_k=self.top_k, top_p=self.top_p).astype(np.float64)
        )

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        return lambda: ops.sample(**given, top_k=self.top_k, top_p=self.top_p)

    def torch(self, given: Inputs) -> Run:
        """Hugging Face's warpers, and the id where the random number falls."""
        import torch

        random = given["random"][:, None]

        def run() -> Any:
            logits = given["logits"].float()
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
            ordered, order = logits.sort(descending=False)
            cut = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            logits = logits.masked_fill(cut.scatter(1, order, cut), -torch.inf)
            total = logits.softmax(dim=-1).cumsum(dim=-1)
            return (total > random * total[:, -1:]).int().argmax(dim=-1)

        return run


@dataclass(frozen=True)
class DecodeStep(GpuCase):
    """A token for each sequence through softgate.models.gpt, of Llama's family, down to logits."""

    op = "decode"

    batch: int
    context: int
    num_layers: int = 30
    hidden: int = 576
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    intermediate: int = 1536
    vocab: int = 49152

    @property
    def shape(self) -> str:
        return f"{self.num_layers} layers, {self.batch}x1 of {self.context}x{self.hidden}"

    @property
    def depth(self) -> int:
        return self.num_layers

    @property
    def work(self) -> Work:
        width = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        of_layer = self.hidden * (width + 3 * self.intermediate)
        weights = self.num_layers * of_layer + self.vocab * self.hidden
        keys = self.num_layers * self.batch * self.context * self.head_dim
        return Work(
            flops=2 * self.batch * weights + 4 * keys * self.heads,
            bytes=self.itemsize * (weights + 2 * keys * self.kv_heads),
            traffic="read",
        )

    def _model(self) -> Any:
        from softgate.models.gpt import Gpt, GptConfig

        sizes = {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rms_norm_eps": EPS,
            "tie_word_embeddings": True,
        }
        return Gpt(GptConfig.from_dict({"model_type": "llama"} | sizes), seed=None)

    def inputs(self) -> Inputs:
        """The cache holds all but the step's own tokens."""
        model = self._model()
        model.init_weights(seed=0, std=0.05)
        shape = (self.num_layers, self.batch, self.context, self.kv_heads, self.head_dim)
        random = np.random.default_rng(0)
        return model.state_dict() | {
            "k": normal(*shape, seed=1),
            "v": normal(*shape, seed=2),
            "ids": random.integers(0, self.vocab, self.batch).astype(np.int32),
        }

    def of_layer(self, given: Inputs, i: int) -> Inputs:
        prefix = f"layers.{i}."
        return {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}

    def expected(self, inputs: Inputs) -> Array:
        """Of the first sequence."""
        from softgate import reference

        norm = functools.partial(reference.add_rms_norm, residual=None, eps=EPS)
        cos, sin = (table[:, None] for table in angles(np.array([self.context - 1]), self.head_dim))
        x = inputs["embedding"][inputs["ids"][:1]].astype(np.float64)
        for i in range(self.num_layers):
            w = self.of_layer(inputs, i)
            y = norm(x, weight=w["attention_norm.weight"])
            heads = reference.linear(y, w["attention.qkv.weight"]).reshape(1, -1, self.head_dim)
            q, k, v = np.split(heads, [self.heads, self.heads + self.kv_heads], axis=1)
            q, k = (reference.rotate(each, cos, sin, False) for each in (q, k))
            keys, values = (
                np.concatenate([inputs[name][i, 0, :-1], new]) for name, new in (("k", k), ("v", v))
            )
            context = reference.attention(q, keys, values, [0, 1], [0, self.context])
            x = x + reference.linear(context.reshape(1, -1), w["attention.output.weight"])
            y = norm(x, weight=w["feed_forward_norm.weight"])
            up = reference.linear(y, w["feed_forward.up.weight"], activation="silu", gated=True)
            x = x + reference.linear(up, w["feed_forward.down.weight"])
        return reference.linear(norm(x, weight=inputs["norm.weight"]), inputs["embedding"])

    def part(self, result: Array) -> Array:
        return result[:1]

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import SequenceOffsets, Tensor

        ids, dtype = given["ids"], given["k"].dtype
        model = self._model().to(ids.device, dtype)
        names = (name for name, _ in model.named_parameters())
        model.load_state_dict(on_host({name: given[name] for name in names}))
        cache = model.new_cache(self.batch, self.context)
        for i in range(self.num_layers):
            cache.k[i].copy_(given["k"][i])
            cache.v[i].copy_(given["v"][i])
        last = np.full(self.batch, self.context - 1)
        rows = np.arange(self.batch)
        host = np.concatenate([ids.to("cpu").numpy(), last, last, last + 1, rows], dtype=np.int32)
        inputs = Tensor(host).to(ids.device)
        offsets = SequenceOffsets(np.arange(self.batch + 1, dtype=np.int32), ids.device)
        return lambda: model.device_forward(inputs, offsets, cache, "last")

    def torch(self, given: Inputs) -> Run:
        import torch
        from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

        device = given["ids"].device
        cos, sin = (
            torch.from_numpy(table)[:, None].to(device)
            for table in angles(np.array([self.context - 1]), self.head_dim)
        )
        layers = [self.of_layer(given, i) for i in range(self.num_layers)]
        sizes = [self.heads, self.kv_heads, self.kv_heads]

        def norm(x: Any, weight: Any) -> Any:
            return rms_norm(x, (self.hidden,), weight, EPS)

        def run() -> Any:
            x = given["embedding"][given["ids"]]
            for i, w in enumerate(layers):
                heads = linear(norm(x, w["attention_norm.weight"]), w["attention.qkv.weight"])
                q, k, v = heads.view(self.batch, -1, self.head_dim).split(sizes, dim=1)
                given["k"][i, :, -1] = turned(k, cos, sin)
                given["v"][i, :, -1] = v
                context = scaled_dot_product_attention(
                    turned(q, cos, sin)[:, :, None],
                    given["k"][i].transpose(1, 2),
                    given["v"][i].transpose(1, 2),
                    enable_gqa=True,
                )
                x = x + linear(context.reshape(self.batch, -1), w["attention.output.weight"])
                y = linear(norm(x, w["feed_forward_norm.weight"]), w["feed_forward.up.weight"])
                gate, up = y.chunk(2, dim=-1)
                x = x + linear(silu(gate) * up, w["feed_forward.down.weight"])
            return linear(norm(x, given["norm.weight"]), given["embedding"])

        return run


def decode_cases() -> list[GpuCase]:
    some: tuple[DType, ...] = ("float16", "float32")
    return [
        *(DecodeStep(dtype, batch, 512) for dtype in some for batch in (1, 16)),
        DecodeStep("bfloat16", 1, 4096),
        *(CachedAttention("float16", batch, 32, 8, 4096, 128) for batch in (1, 16)),
        CachedAttention("bfloat16", 1, 9, 3, 4096, 64),
        CachedAttention("float32", 1, 32, 8, 4096, 128),
        *(Rotary("float16", tokens, 32, 8, 128) for tokens in (1, 2048)),
        *(Sample(dtype, batch, 128256) for dtype in some for batch in (1, 16)),
    ]


def smoke_decode() -> list[GpuCase]:
    """Every kind once, as small as an interpreter needs it."""
    return [
        CachedAttention("float16", 2, 4, 2, 20, 32),
        Rotary("float32", 3, 2, 1, 8),
        Sample("float16", 2, 300),
        DecodeStep("float16", 2, 6, 1, 64, 2, 1, 32, 72, 99),
    ]
