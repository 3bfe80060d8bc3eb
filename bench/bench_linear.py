"""`linear` against torch's `F.linear` and the activation after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.case import Array, Call, Case, Inputs, normal
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


SHAPES = ((512, 768, 3072), (128, 384, 1536), (16, 768, 3072), (16, 384, 1536), (1, 768, 3072))

CASES = [case for shape in SHAPES for case in (Linear(*shape), Linear(*shape, activation="gelu"))]
