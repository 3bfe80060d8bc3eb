"""What gpu-report times: single kernels and whole stacks, each for softgate and for torch.

A case gets its arrays on the card, floats in its dtype, as the engine's own tensors, and gives back
the call to time. Its answer is held against `softgate.reference` in a part that takes the host a
moment: `part` picks it from the result.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bench import case
from bench.case import Array, Inputs
from bench.limits import Work

Run = Callable[[], Any]
DType = Literal["float32", "float16", "bfloat16"]
ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
# Largest difference from the reference, in units of its largest element: the op table on the card
# is the test of precision, this only tells a right answer from a wrong one.
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
CHECKED_ROWS = 64
EPS = 1e-5


@functools.lru_cache(maxsize=6)
def _normal(count: int, seed: int) -> Array:
    return case.normal(count, seed=seed)


def normal(*shape: int, seed: int = 0) -> Array:
    """As bench.case.normal; the large ones of many cases are the same numbers."""
    return _normal(math.prod(shape), seed).reshape(shape)


@dataclass(frozen=True)
class GpuCase(ABC):
    op: ClassVar[str]
    exact: ClassVar[tuple[str, ...]] = ()  # inputs that stay float32
    dtype: DType

    @property
    @abstractmethod
    def shape(self) -> str: ...

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype}"

    @property
    @abstractmethod
    def work(self) -> Work: ...

    @property
    def steps(self) -> int | None:
        """Of recurrent layers, which do them one after the other."""
        return None

    @property
    def depth(self) -> int:
        """Layers: errors grow with them."""
        return 1

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype] * self.depth**0.5

    @abstractmethod
    def inputs(self) -> Inputs: ...

    @abstractmethod
    def expected(self, inputs: Inputs) -> Array:
        """The right answer in float64, of the checked part."""

    def part(self, result: Array) -> Array:
        return result[:CHECKED_ROWS]

    @abstractmethod
    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        """`empty` makes a tensor of the case's dtype on the card, for results."""

    @abstractmethod
    def torch(self, given: Inputs) -> Run: ...

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Attention(GpuCase):
    """`batch` sequences of as many keys as `length`, and as many queries unless `queries` says."""

    op = "attention"

    batch: int
    heads: int
    length: int
    head_dim: int
    causal: bool = False
    queries: int | None = None

    @property
    def shape(self) -> str:
        of_keys = self.length if self.queries is None else f"{self.queries} of {self.length}"
        causal = " causal" if self.causal else ""
        return f"{self.batch}x{self.heads}x{of_keys}x{self.head_dim}{causal}"

    @property
    def num_queries(self) -> int:
        return self.length if self.queries is None else self.queries

    @property
    def work(self) -> Work:
        rows = self.batch * self.heads
        masked = self.num_queries * (self.num_queries - 1) // 2 if self.causal else 0
        pairs = self.num_queries * self.length - masked
        tokens = 2 * self.num_queries + 2 * self.length
        return Work(
            flops=4 * rows * pairs * self.head_dim,
            bytes=self.itemsize * rows * tokens * self.head_dim,
        )

    def inputs(self) -> Inputs:
        lengths = {"q": self.num_queries, "k": self.length, "v": self.length}
        starts = np.arange(self.batch + 1, dtype=np.int32)
        return {
            name: normal(self.batch * length, self.heads, self.head_dim, seed=seed)
            for seed, (name, length) in enumerate(lengths.items())
        } | {
            "cu_seqlens_q": starts * np.int32(self.num_queries),
            "cu_seqlens_k": starts * np.int32(self.length),
        }

    @property
    def checked(self) -> slice:
        """The last queries of the first sequence: masks are aligned to them."""
        return slice(max(0, self.num_queries - CHECKED_ROWS), self.num_queries)

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        q = inputs["q"][self.checked, :1]
        k, v = (inputs[name][: self.length, :1] for name in "kv")
        out: Array = reference.attention(q, k, v, [0, len(q)], [0, self.length], causal=self.causal)
        return out

    def part(self, result: Array) -> Array:
        return result.reshape(-1, self.heads, self.head_dim)[self.checked, :1]

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        out = empty(given["q"].shape)
        return lambda: ops.attention(**given, causal=self.causal, out=out)

    def torch(self, given: Inputs) -> Run:
        from torch.nn.functional import scaled_dot_product_attention

        # Views [batch, heads, length, head_dim]; the result goes back to [batch, length, ...].
        q, k, v = (
            given[name].view(self.batch, -1, self.heads, self.head_dim).transpose(1, 2)
            for name in "qkv"
        )
        return lambda: scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2)


@dataclass(frozen=True)
class AddNorm(GpuCase):
    """Layer norm of a sum."""

    op = "add_layer_norm"

    rows: int
    hidden: int

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.hidden}"

    @property
    def work(self) -> Work:
        elements = self.rows * self.hidden
        return Work(flops=8 * elements, bytes=self.itemsize * 3 * elements)

    def inputs(self) -> Inputs:
        return {
            "x": normal(self.rows, self.hidden, seed=1),
            "residual": normal(self.rows, self.hidden, seed=2),
            "weight": normal(self.hidden, seed=3),
            "bias": normal(self.hidden, seed=4),
        }

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        x, residual = (inputs[name][:CHECKED_ROWS] for name in ("x", "residual"))
        return reference.add_layer_norm(x, residual, inputs["weight"], inputs["bias"], eps=EPS)

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        out = empty(given["x"].shape)
        return lambda: ops.add_layer_norm(**given, eps=EPS, out=out)

    def torch(self, given: Inputs) -> Run:
        from torch.nn.functional import layer_norm

        x, residual, weight, bias = given.values()
        return lambda: layer_norm(x + residual, (self.hidden,), weight, bias, EPS)


@dataclass(frozen=True)
class Embedding(GpuCase):
    """Words, positions and types, summed and normalised, as BERT's."""

    op = "embedding"

    tokens: int
    hidden: int
    tables: tuple[int, ...] = (30522, 512, 2)

    @property
    def shape(self) -> str:
        return f"{self.tokens}x{self.hidden}"

    @property
    def work(self) -> Work:
        """The large table's rows and the result; the other tables stay in L2."""
        elements = self.tokens * self.hidden
        return Work(flops=10 * elements, bytes=self.itemsize * 2 * elements)

    def inputs(self) -> Inputs:
        random = np.random.default_rng(0)
        return {
            **{
                f"ids{i}": random.integers(0, rows, self.tokens).astype(np.int32)
                for i, rows in enumerate(self.tables)
            },
            **{
                f"table{i}": normal(rows, self.hidden, seed=i) for i, rows in enumerate(self.tables)
            },
            "norm_weight": normal(self.hidden, seed=7),
            "norm_bias": normal(self.hidden, seed=8),
        }

    def _lists(self, given: Inputs) -> tuple[list[Any], list[Any]]:
        indices = range(len(self.tables))
        return [given[f"ids{i}"] for i in indices], [given[f"table{i}"] for i in indices]

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        ids, tables = self._lists(inputs)
        some = [array[:CHECKED_ROWS] for array in ids]
        return reference.embedding(
            some, tables, inputs["norm_weight"], inputs["norm_bias"], eps=EPS
        )

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        ids, tables = self._lists(given)
        weight, bias = given["norm_weight"], given["norm_bias"]
        out = empty((self.tokens, self.hidden))
        return lambda: ops.embedding(ids, tables, weight, bias, eps=EPS, out=out)

    def torch(self, given: Inputs) -> Run:
        from torch.nn.functional import embedding, layer_norm

        ids, tables = self._lists(given)

        def run() -> Any:
            first, second, third = map(embedding, ids, tables)
            total = first + second + third
            return layer_norm(total, (self.hidden,), given["norm_weight"], given["norm_bias"], EPS)

        return run


@dataclass(frozen=True)
class Softmax(GpuCase):
    op = "softmax"

    rows: int
    columns: int

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def work(self) -> Work:
        elements = self.rows * self.columns
        return Work(flops=5 * elements, bytes=self.itemsize * 2 * elements)

    def inputs(self) -> Inputs:
        return {"x": normal(self.rows, self.columns)}

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        return reference.softmax(inputs["x"][:CHECKED_ROWS])

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        x = given["x"]
        out = empty(x.shape)
        return lambda: ops.softmax(x, out=out)

    def torch(self, given: Inputs) -> Run:
        import torch

        return lambda: torch.softmax(given["x"], dim=-1)


@dataclass(frozen=True)
class Linear(GpuCase):
    """With a bias and GELU in its epilogue."""

    op = "linear"

    rows: int
    in_features: int
    out_features: int

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.in_features}x{self.out_features}"

    @property
    def work(self) -> Work:
        of_x, of_weight = self.rows * self.in_features, self.in_features * self.out_features
        return Work(
            flops=2 * of_x * self.out_features,
            bytes=self.itemsize * (of_x + of_weight + self.rows * self.out_features),
        )

    def inputs(self) -> Inputs:
        weight = normal(self.out_features, self.in_features, seed=2)
        return {
            "x": normal(self.rows, self.in_features, seed=1),
            "weight": weight / np.float32(self.in_features**0.5),
            "bias": normal(self.out_features, seed=3),
        }

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        some = inputs | {"x": inputs["x"][:CHECKED_ROWS]}
        return reference.linear(**some, activation="gelu")

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        x, weight, bias = given["x"], ops.pack(given["weight"]), given["bias"]
        out = empty((self.rows, self.out_features))
        return lambda: ops.linear(x, weight, bias, activation="gelu", out=out)

    def torch(self, given: Inputs) -> Run:
        from torch.nn.functional import gelu, linear

        return lambda: gelu(linear(given["x"], given["weight"], given["bias"]))


@dataclass(frozen=True)
class IntegerLinear(Linear):
    """On a weight of fewer bits, which torch has in the dtype of x. The limit's arithmetic is that
    dtype's too, where cards that multiply integers are faster."""

    op = "integer linear"

    packed: Literal["int8", "int4"]

    @property
    def shape(self) -> str:
        return f"{super().shape} {self.packed}"

    @property
    def work(self) -> Work:
        of_weight = self.in_features * self.out_features
        # int4: with a scale and a minimum of two bytes each for every 32.
        stored = of_weight if self.packed == "int8" else of_weight * 5 // 8
        of_others = self.rows * (self.in_features + self.out_features)
        flops = 2 * self.rows * of_weight
        return Work(flops=flops, bytes=stored + self.itemsize * of_others)

    @property
    def tolerance(self) -> float:
        return 2e-2  # torch does not round x to eight bits

    def inputs(self) -> Inputs:
        from softgate import reference

        inputs = super().inputs()
        weight = reference.quantize_weight(inputs["weight"], self.packed).dequantize()
        # In numbers that float16 has, so that they give the same integers on the card.
        return inputs | {"weight": weight.astype(np.float16).astype(np.float32)}

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        some = inputs | {
            "x": inputs["x"][:CHECKED_ROWS],
            "weight": reference.quantize_weight(inputs["weight"], self.packed),
        }
        return reference.linear(**some, activation="gelu")

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        x, bias, weight = given["x"], given["bias"], ops.pack(given["weight"], dtype=self.packed)
        out = empty((self.rows, self.out_features))
        return lambda: ops.linear(x, weight, bias, activation="gelu", out=out)


GATES = {"rnn_tanh": 1, "lstm": 4, "gru": 3}


def recurrent_weights(kind: str, hidden: int, seed: int = 0) -> Inputs:
    """As torch draws, names and shapes them."""
    random = np.random.default_rng(seed)
    rows, bound = GATES[kind] * hidden, hidden**-0.5
    return {
        f"{name}_{of}": random.uniform(-bound, bound, shape).astype(np.float32)
        for name, shape in {"weight": (rows, hidden), "bias": (rows,)}.items()
        for of in ("ih", "hh")
    }


def torch_layer(kind: str, hidden: int, weights: list[Inputs], dtype: Any) -> Any:
    """torch's module of as many layers as there are weights."""
    import torch

    name = {"rnn_tanh": "RNN", "lstm": "LSTM", "gru": "GRU"}[kind]
    layer = getattr(torch.nn, name)(hidden, hidden, len(weights), batch_first=True)
    device = weights[0]["weight_hh"].device
    layer = layer.to(device, dtype).eval()
    layer.load_state_dict(
        {f"{name}_l{i}": value for i, one in enumerate(weights) for name, value in one.items()}
    )
    return layer


@dataclass(frozen=True)
class Recurrent(GpuCase):
    """One layer over whole sequences, its input as wide as its state."""

    kind: Literal["rnn_tanh", "lstm", "gru"]
    batch: int
    length: int
    hidden: int

    @property
    def op(self) -> str:  # type: ignore[override]
        return self.kind.removesuffix("_tanh")

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.length}x{self.hidden}"

    @property
    def work(self) -> Work:
        """Both weights read once; a sequence's steps wait for each other, which no limit counts."""
        tokens = self.batch * self.length
        weights = 2 * GATES[self.kind] * self.hidden**2
        return Work(
            flops=2 * tokens * weights,
            bytes=self.itemsize * (2 * tokens * self.hidden + weights),
        )

    @property
    def steps(self) -> int:
        return self.length

    def inputs(self) -> Inputs:
        return {
            "x": normal(self.batch * self.length, self.hidden, seed=1),
            "cu_seqlens": np.arange(self.batch + 1, dtype=np.int32) * np.int32(self.length),
            **recurrent_weights(self.kind, self.hidden),
        }

    def expected(self, inputs: Inputs) -> Array:
        from softgate import reference

        x, _, *arrays = inputs.values()
        weight = reference.RecurrentWeight(self.kind, *(a.astype(np.float64) for a in arrays))
        op = getattr(reference, self.op)
        out: Array = op(x[: self.length], [0, self.length], weight)[0]
        return out

    def part(self, result: Array) -> Array:
        return result.reshape(-1, self.hidden)[: self.length]

    def softgate(self, given: Inputs, empty: Callable[[tuple[int, ...]], Any]) -> Run:
        from softgate import ops

        x, cu_seqlens, *arrays = given.values()
        weight = ops.pack_recurrent(self.kind, *arrays)
        out = empty(x.shape)
        op = getattr(ops, self.op)
        return lambda: op(x, cu_seqlens, weight, out=out)[0]

    def torch(self, given: Inputs) -> Run:
        x, _, *arrays = given.values()
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = dict(zip(names, arrays, strict=True))
        layer = torch_layer(self.kind, self.hidden, [weights], x.dtype)
        batch = x.view(self.batch, self.length, self.hidden)
        return lambda: layer(batch)[0]


def kernel_cases() -> list[GpuCase]:
    """In an order in which every kind has its turn early: time may run out."""
    attention = [
        # As FlashAttention's benchmarks: 16,384 tokens of 2,048 features.
        *(
            Attention("float16", 16384 // n, 2048 // d, n, d)
            for n in (512, 2048, 8192)
            for d in (64, 128)
        ),
        *(Attention("float16", 8, 2048 // d, 2048, d) for d in (32, 80, 96, 256)),
        *(
            Attention("float16", 16384 // n, 2048 // d, n, d, causal=True)
            for n in (2048, 8192)
            for d in (64, 128)
        ),
        *(Attention(dtype, 8, 16, 2048, 128) for dtype in ("bfloat16", "float32")),
        Attention("float32", 8, 32, 2048, 64),
        Attention("float16", 128, 12, 128, 64),
        *(Attention("float16", batch, 32, 8192, 128, queries=1) for batch in (1, 16)),
    ]
    rows: list[GpuCase] = [
        *(
            AddNorm(dtype, n, hidden)
            for dtype in ("float16", "float32")
            for n, hidden in ((16384, 768), (16384, 4096), (512, 768))
        ),
        AddNorm("bfloat16", 16384, 4096),
        Embedding("float16", 32768, 768),
        Embedding("float32", 32768, 768),
        *(
            Softmax(dtype, n, columns)
            for dtype in ("float16", "float32")
            for n, columns in ((32768, 1024), (2048, 32000))
        ),
    ]
    linear = [
        *(
            Linear("float16", *sizes)
            for sizes in ((8192, 4096, 4096), (1024, 768, 3072), (16, 4096, 4096))
        ),
        *(Linear(dtype, 8192, 1024, 4096) for dtype in ("bfloat16", "float32")),
        *(
            IntegerLinear("float16", rows, 4096, 4096, packed)
            for rows in (1, 16, 8192)
            for packed in ("int8", "int4")
        ),
    ]
    recurrent = [
        *(
            Recurrent("float16", kind, batch, 128, hidden)
            for batch, hidden in ((1, 512), (64, 512), (16, 1024))
            for kind in ("lstm", "gru")
        ),
        *(Recurrent("float32", kind, 1, 128, 512) for kind in ("lstm", "gru", "rnn_tanh")),
        Recurrent("float32", "lstm", 64, 128, 512),
        Recurrent("float16", "rnn_tanh", 64, 128, 512),
    ]
    return interleaved(attention, rows, linear, recurrent)


def smoke_cases() -> list[GpuCase]:
    """Every kind once, as small as an interpreter needs it."""
    return [
        Attention("float16", 2, 2, 20, 32),
        Attention("float32", 1, 1, 9, 8, causal=True),
        AddNorm("bfloat16", 3, 40),
        Embedding("float16", 3, 40, (9, 5, 2)),
        Softmax("float32", 3, 40),
        Linear("float16", 5, 24, 16),
        IntegerLinear("float16", 5, 32, 16, "int4"),
        Recurrent("float32", "lstm", 2, 2, 8),
        Recurrent("float16", "gru", 1, 2, 8),
        Recurrent("float32", "rnn_tanh", 1, 2, 8),
    ]


def interleaved(*groups: list[Any]) -> list[GpuCase]:
    places = [
        ((i + 0.5) / len(group), number, case)
        for number, group in enumerate(groups)
        for i, case in enumerate(group)
    ]
    return [case for *_, case in sorted(places, key=lambda place: place[:2])]
