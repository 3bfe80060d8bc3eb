"""`normalize` against torch's `F.normalize`, into a given output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.case import Array, Call, Case, Inputs, normal
from bench.limits import Work


@dataclass(frozen=True)
class Normalize(Case):
    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch")
    tolerance: ClassVar[float] = 1e-6

    rows: int
    hidden: int

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.hidden}"

    @property
    def work(self) -> Work:
        elements = self.rows * self.hidden
        return Work(flops=3 * elements, bytes=4 * 2 * elements)

    def inputs(self) -> Inputs:
        return {"x": normal(self.rows, self.hidden)}

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        return reference.normalize(**inputs)

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        x, out = Tensor(inputs["x"]), Tensor.empty((self.rows, self.hidden))
        return Call(lambda: ops.normalize(x, out=out))

    def torch(self, inputs: Inputs) -> Call:
        import torch
        from torch.nn import functional

        x = torch.from_numpy(inputs["x"])
        out = torch.empty_like(x)
        return Call(lambda: functional.normalize(x, dim=-1, out=out))


CASES = [Normalize(32, 384), Normalize(4096, 768)]
