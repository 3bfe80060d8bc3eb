"""Stacks of the library's own layers on a card: hidden states in, hidden states out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.case import Array, Inputs, ragged
from bench.gpu_cases import (
    GATES,
    DType,
    GpuCase,
    Run,
    normal,
    recurrent_weights,
    torch_layer,
)
from bench.limits import Work

INTERMEDIATE_FACTOR = 4
SOME_DTYPES: tuple[DType, ...] = ("float16", "float32")
RECURRENT_KINDS: tuple[Literal["lstm", "gru"], ...] = ("lstm", "gru")
LAYER_NORM_EPS = 1e-12


def on_host(tensors: Inputs) -> Inputs:
    """Weights as a model's `load_state_dict` takes them, wherever it is."""
    return {name: tensor.to("cpu", "float32").numpy() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class BertLayers(GpuCase):
    """softgate.models.bert's layers against torch.nn.TransformerEncoder, which takes a ragged batch
    padded and masked."""

    op = "bert"

    lengths: tuple[int, ...]
    hidden: int
    heads: int
    num_layers: int

    @property
    def shape(self) -> str:
        length = self.lengths[0] if len(set(self.lengths)) == 1 else "ragged"
        return f"{self.num_layers} layers, {len(self.lengths)}x{length}x{self.hidden}"

    @property
    def depth(self) -> int:
        return self.num_layers

    @property
    def work(self) -> Work:
        weights = self.num_layers * (4 + 2 * INTERMEDIATE_FACTOR) * self.hidden**2
        pairs = self.num_layers * sum(length**2 for length in self.lengths)
        return Work(
            flops=2 * sum(self.lengths) * weights + 4 * pairs * self.hidden,
            bytes=self.itemsize * weights,
            traffic="read",
        )

    def _layer(self) -> Any:
        from softgate.models.bert import BertConfig, BertLayer

        return BertLayer(
            BertConfig(
                hidden_size=self.hidden,
                num_attention_heads=self.heads,
                intermediate_size=INTERMEDIATE_FACTOR * self.hidden,
                layer_norm_eps=LAYER_NORM_EPS,
            )
        )

    def inputs(self) -> Inputs:
        given = {
            "x": normal(sum(self.lengths), self.hidden),
            "cu_seqlens": np.cumsum([0, *self.lengths], dtype=np.int32),
        }
        layer = self._layer()
        for i in range(self.num_layers):
            layer.init_weights(seed=i, std=0.05)
            given |= {f"{i}.{name}": array for name, array in layer.state_dict().items()}
        return given

    def of_layer(self, given: Inputs, i: int) -> Inputs:
        prefix = f"{i}."
        return {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}

    def expected(self, inputs: Inputs) -> Array:
        """Of the first sequence."""
        from softgate import reference

        x = inputs["x"][: self.lengths[0]].astype(np.float64)
        for i in range(self.num_layers):
            layer = {n: a.astype(np.float64) for n, a in self.of_layer(inputs, i).items()}

            def linear(name: str, x: Array, layer: Inputs = layer, **options: Any) -> Array:
                weight, bias = layer[f"{name}.weight"], layer[f"{name}.bias"]
                out: Array = reference.linear(x, weight, bias, **options)
                return out

            def norm(name: str, x: Array, residual: Array, layer: Inputs = layer) -> Array:
                weight, bias = layer[f"{name}.weight"], layer[f"{name}.bias"]
                out: Array = reference.add_layer_norm(x, residual, weight, bias, eps=LAYER_NORM_EPS)
                return out

            qkv = linear("attention.qkv", x).reshape(len(x), 3, self.heads, -1)
            context = reference.attention(qkv[:, 0], qkv[:, 1], qkv[:, 2], [0, len(x)])
            attended = linear("attention.output", context.reshape(x.shape))
            x = norm("attention_norm", attended, x)
            up = linear("feed_forward.up", x, activation="gelu")
            x = norm("feed_forward_norm", linear("feed_forward.down", up), x)
        return x

    def part(self, result: Array) -> Array:
        return result.reshape(-1, self.hidden)[: self.lengths[0]]

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        x = given["x"]
        layers = [self._layer().to(x.device, x.dtype) for _ in range(self.num_layers)]
        for i, layer in enumerate(layers):
            layer.load_state_dict(on_host(self.of_layer(given, i)))

        def run() -> Any:
            x = given["x"]
            for layer in layers:
                x, _ = layer(x, given["cu_seqlens"])
            return x

        return run

    def torch(self, given: Inputs) -> Run:
        import torch

        layer = torch.nn.TransformerEncoderLayer(
            self.hidden,
            self.heads,
            INTERMEDIATE_FACTOR * self.hidden,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=LAYER_NORM_EPS,
            batch_first=True,
        )
        x = given["x"]
        encoder = torch.nn.TransformerEncoder(layer, self.num_layers).to(x.device, x.dtype).eval()
        theirs = {
            "self_attn.in_proj_": "attention.qkv.",
            "self_attn.out_proj.": "attention.output.",
            "norm1.": "attention_norm.",
            "linear1.": "feed_forward.up.",
            "linear2.": "feed_forward.down.",
            "norm2.": "feed_forward_norm.",
        }
        encoder.load_state_dict(
            {
                f"layers.{i}.{name}{kind}": given[f"{i}.{ours}{kind}"]
                for i in range(self.num_layers)
                for name, ours in theirs.items()
                for kind in ("weight", "bias")
            }
        )
        batch = torch.nn.utils.rnn.pad_sequence(x.split(self.lengths), batch_first=True)
        mask = None
        if len(set(self.lengths)) > 1:
            lengths = torch.tensor(self.lengths, device=x.device)
            mask = torch.arange(batch.shape[1], device=x.device) >= lengths[:, None]
        return lambda: encoder(batch, src_key_padding_mask=mask)


@dataclass(frozen=True)
class RecurrentLayers(GpuCase):
    """Layers of one direction, each over the states of the one below."""

    kind: Literal["lstm", "gru"]
    batch: int
    length: int
    hidden: int
    num_layers: int

    @property
    def op(self) -> str:  # type: ignore[override]
        return f"{self.kind} stack"

    @property
    def shape(self) -> str:
        return f"{self.num_layers} layers, {self.batch}x{self.length}x{self.hidden}"

    @property
    def depth(self) -> int:
        return self.num_layers

    @property
    def work(self) -> Work:
        tokens = self.batch * self.length
        weights = self.num_layers * 2 * GATES[self.kind] * self.hidden**2
        return Work(flops=2 * tokens * weights, bytes=self.itemsize * weights, traffic="read")

    @property
    def steps(self) -> int:
        return self.length * self.num_layers

    def inputs(self) -> Inputs:
        given: Inputs = {
            "x": normal(self.batch * self.length, self.hidden, seed=1),
            "cu_seqlens": np.arange(self.batch + 1, dtype=np.int32) * np.int32(self.length),
        }
        for i in range(self.num_layers):
            weights = recurrent_weights(self.kind, self.hidden, seed=i)
            given |= {f"{i}.{name}": array for name, array in weights.items()}
        return given

    def weights(self, given: Inputs) -> list[Inputs]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [{name: given[f"{i}.{name}"] for name in names} for i in range(self.num_layers)]

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        x = inputs["x"][: self.length]
        for one in self.weights(inputs):
            arrays = {name: array.astype(np.float64) for name, array in one.items()}
            weight = reference.RecurrentWeight(self.kind, **arrays)
            x = getattr(reference, self.kind)(x, [0, self.length], weight)[0]
        return x

    def part(self, result: Array) -> Array:
        return result.reshape(-1, self.hidden)[: self.length]

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import nn

        x = given["x"]
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[self.kind](
            self.hidden, self.hidden, self.num_layers
        ).to(x.device, x.dtype)
        layer.load_state_dict(
            {
                f"{name}_l{i}": array
                for i, one in enumerate(self.weights(given))
                for name, array in on_host(one).items()
            }
        )
        return lambda: layer(x, cu_seqlens=given["cu_seqlens"])[0]

    def torch(self, given: Inputs) -> Run:
        x = given["x"]
        layer = torch_layer(self.kind, self.hidden, self.weights(given), x.dtype)
        batch = x.view(self.batch, self.length, self.hidden)
        return lambda: layer(batch)[0]


def stack_cases() -> list[GpuCase]:
    recurrent: list[GpuCase] = [
        RecurrentLayers(dtype, kind, batch, 128, 512, 2)
        for dtype in SOME_DTYPES
        for kind in RECURRENT_KINDS
        for batch in (1, 32)
    ]
    return [
        BertLayers("float16", (128,) * 32, 768, 12, 12),
        BertLayers("float16", ragged(64), 768, 12, 12),
        BertLayers("float16", (128,), 384, 12, 6),
        BertLayers("bfloat16", (512,) * 8, 768, 12, 12),
        BertLayers("float32", (128,) * 32, 768, 12, 12),
        *recurrent,
    ]


def smoke_stacks() -> list[GpuCase]:
    return [
        BertLayers("float16", (3, 5), 64, 2, 1),
        RecurrentLayers("float32", "lstm", 2, 2, 8, 2),
        RecurrentLayers("float16", "gru", 2, 2, 8, 2),
    ]
