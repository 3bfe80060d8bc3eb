"""`linear` against torch's `F.linear` and the activation after it, and on weights of fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bench.case import Array, Call, Case, Inputs, as_numpy, normal
from bench.limits import Work

if TYPE_CHECKING:
    from softgate import ops


@dataclass(frozen=True)
class Linear(Case):
    rows: int
    in_features: int
    out_features: int
    activation: ops.Activation = "none"

    @property
    def name(self) -> str:
        shape = f"{self.rows}x{self.in_features}x{self.out_features}"
        return shape if self.activation == "none" else f"{shape} {self.activation}"

    @property
    def work(self) -> Work:
        rows, k, n = self.rows, self.in_features, self.out_features
        return Work(
            flops=2 * rows * k * n, bytes=4 * (rows * k + n * k + n + rows * n), traffic="read"
        )

    def inputs(self) -> Inputs:
        return {
            "x": normal(self.rows, self.in_features, seed=1),
            "weight": normal(self.out_features, self.in_features, seed=2) / self.in_features**0.5,
            "bias": normal(self.out_features, seed=3),
        }

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        return reference.linear(**inputs, activation=self.activation)

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        x, bias = Tensor(inputs["x"]), Tensor(inputs["bias"])
        weight = ops.pack(inputs["weight"])
        return Call(lambda: ops.linear(x, weight, bias, activation=self.activation))

    def torch(self, inputs: Inputs) -> Call:
        import torch
        from torch.nn import functional

        x, weight, bias = (torch.from_numpy(inputs[name]) for name in ("x", "weight", "bias"))
        if self.activation == "gelu":
            return Call(lambda: functional.gelu(functional.linear(x, weight, bias)))
        return Call(lambda: functional.linear(x, weight, bias))


@dataclass(frozen=True)
class PackedLinear(Linear):
    """On a weight of fewer bits. torch: bfloat16 throughout, or weights in int8 and x quantised on
    the fly; it has nothing for int4 on a CPU.

    Work counts what is read of the weights as they are stored, and products of 8-bit integers as a
    quarter of a fused multiply-add each, which is what VNNI makes of them.
    """

    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch")

    dtype: ops.WeightType = "int8"

    @property
    def name(self) -> str:
        return f"{super().name} {self.dtype}"

    @property
    def group(self) -> str:
        return self.dtype

    @property
    def work(self) -> Work:
        rows, k, n = self.rows, self.in_features, self.out_features
        bits = {"bfloat16": 16, "int8": 8, "int4": 5}[self.dtype]
        return Work(
            flops=2 * rows * k * n / (1 if self.dtype == "bfloat16" else 4),
            bytes=4 * (rows * k + n + rows * n) + n * k * bits / 8,
            traffic="read",
        )

    def tolerance_of(self, engine: str) -> float:
        """Of results of size 1, how far rounding moves the worst of a million."""
        return {"bfloat16": 5e-2, "int8": 0.15, "int4": 0.6}[self.dtype]

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        x, bias = Tensor(inputs["x"]), Tensor(inputs["bias"])
        weight = ops.pack(inputs["weight"], dtype=self.dtype)
        return Call(lambda: ops.linear(x, weight, bias))

    def torch(self, inputs: Inputs) -> Call:
        import torch
        from torch.nn import functional

        x, weight, bias = (torch.from_numpy(inputs[name]) for name in ("x", "weight", "bias"))
        if self.dtype == "int8":
            scales = weight.abs().amax(1).double() / 127
            zeros = torch.zeros(len(weight), dtype=torch.long)
            integers = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            packed = torch.ops.quantized.linear_prepack(integers, bias)
            return Call(lambda: torch.ops.quantized.linear_dynamic(x, packed))
        x, weight, bias = (tensor.bfloat16() for tensor in (x, weight, bias))
        return Call(
            lambda: functional.linear(x, weight, bias), lambda y: as_numpy(y.to(torch.float32))
        )


@dataclass(frozen=True)
class Int4Linear(PackedLinear):
    engines: ClassVar[tuple[str, ...]] = ("softgate",)
    oracle: ClassVar[str] = "softgate"


def packed(rows: int, in_features: int, out_features: int) -> list[Linear]:
    return [
        PackedLinear(rows, in_features, out_features, dtype="bfloat16"),
        PackedLinear(rows, in_features, out_features, dtype="int8"),
        Int4Linear(rows, in_features, out_features, dtype="int4"),
    ]


SHAPES = ((512, 768, 3072), (128, 384, 1536), (16, 768, 3072), (16, 384, 1536), (1, 768, 3072))

CASES = [
    *(case for shape in SHAPES for case in (Linear(*shape), Linear(*shape, activation="gelu"))),
    *(case for rows in (1, 8, 256) for case in packed(rows, 768, 3072)),
    *(case for rows in (1, 8) for case in packed(rows, 576, 49152)),
    PackedLinear(512, 768, 3072, dtype="int8"),
]
