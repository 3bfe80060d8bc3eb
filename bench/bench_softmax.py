"""`softmax` against torch's, into a given output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.case import Array, Call, Case, Inputs, normal
from bench.limits import Work


@dataclass(frozen=True)
class Softmax(Case):
    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch")
    tolerance: ClassVar[float] = 1e-6

    rows: int
    columns: int

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def work(self) -> Work:
        elements = self.rows * self.columns
        return Work(flops=20 * elements, bytes=4 * 2 * elements)

    def inputs(self) -> Inputs:
        return {"x": normal(self.rows, self.columns)}

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        return reference.softmax(**inputs)

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        x, out = Tensor(inputs["x"]), Tensor.empty((self.rows, self.columns))
        return Call(lambda: ops.softmax(x, out=out))

    def torch(self, inputs: Inputs) -> Call:
        import torch

        x = torch.from_numpy(inputs["x"])
        out = torch.empty_like(x)
        return Call(lambda: torch.softmax(x, dim=-1, out=out))


CASES = [Softmax(1536, 128), Softmax(4096, 1024), Softmax(16, 30522)]
