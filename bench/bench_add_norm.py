"""`add_layer_norm` and `add_rms_norm` against torch's addition and norm, into a given output."""

from __future__ import annotations

from dataclasses import dataclass

from bench.case import Array, Call, Case, Inputs, normal
from bench.limits import Work

EPS = 1e-5


@dataclass(frozen=True)
class AddNorm(Case):
    norm: str
    rows: int
    hidden: int

    @property
    def name(self) -> str:
        return f"{self.norm} {self.rows}x{self.hidden}"

    @property
    def work(self) -> Work:
        elements = self.rows * self.hidden
        return Work(flops=8 * elements, bytes=4 * 3 * elements)

    def inputs(self) -> Inputs:
        inputs = {
            "x": normal(self.rows, self.hidden, seed=1),
            "residual": normal(self.rows, self.hidden, seed=2),
            "weight": normal(self.hidden, seed=3),
        }
        if self.norm == "layer":
            inputs["bias"] = normal(self.hidden, seed=4)
        return inputs

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        norm = reference.add_layer_norm if self.norm == "layer" else reference.add_rms_norm
        return norm(**inputs, eps=EPS)

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        tensors = {name: Tensor(array) for name, array in inputs.items()}
        out = Tensor.empty((self.rows, self.hidden))
        norm = ops.add_layer_norm if self.norm == "layer" else ops.add_rms_norm
        return Call(lambda: norm(**tensors, eps=EPS, out=out))

    def torch(self, inputs: Inputs) -> Call:
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        x, residual, weight = (tensors[name] for name in ("x", "residual", "weight"))
        if self.norm == "rms":
            return Call(
                lambda: torch.nn.functional.rms_norm(x + residual, (self.hidden,), weight, EPS)
            )
        total, out = torch.empty_like(x), torch.empty_like(x)
        mean, rstd = torch.empty(self.rows, 1), torch.empty(self.rows, 1)

        def add_layer_norm() -> torch.Tensor:
            torch.add(x, residual, out=total)
            torch.ops.aten.native_layer_norm.out(
                total, (self.hidden,), weight, tensors["bias"], EPS, out0=out, out1=mean, out2=rstd
            )
            return out

        return Call(add_layer_norm)

    def torch_compile(self, inputs: Inputs) -> Call:
        import torch
        from torch.nn import functional

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        x, residual, weight = (tensors[name] for name in ("x", "residual", "weight"))
        out = torch.empty_like(x)

        def add_norm() -> torch.Tensor:
            total = x + residual
            if self.norm == "layer":
                bias = tensors["bias"]
                out.copy_(functional.layer_norm(total, (self.hidden,), weight, bias, EPS))
            else:
                out.copy_(functional.rms_norm(total, (self.hidden,), weight, EPS))
            return out

        return Call(torch.compile(add_norm, dynamic=False))


CASES = [
    AddNorm("layer", 128, 768),
    AddNorm("layer", 4096, 768),
    AddNorm("layer", 4096, 4096),
    AddNorm("rms", 128, 768),
    AddNorm("rms", 4096, 768),
]
