"""`pool` over packed tokens against sentence-transformers' pooling of padded ones, in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.case import Array, Call, Case, Inputs, normal
from bench.limits import Work

if TYPE_CHECKING:
    from softgate import ops


@dataclass(frozen=True)
class Pool(Case):
    """Sequences of `length` tokens, of which every other one has only half."""

    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch")
    tolerance: ClassVar[float] = 1e-5

    mode: ops.Pooling
    batch: int
    length: int
    hidden: int

    @property
    def name(self) -> str:
        return f"{self.mode} {self.batch}x{self.length}x{self.hidden} ragged"

    @property
    def lengths(self) -> Array:
        return np.where(np.arange(self.batch) % 2 == 0, self.length, self.length // 2)

    @property
    def work(self) -> Work:
        elements = int(self.lengths.sum()) * self.hidden
        return Work(flops=elements, bytes=4 * elements, traffic="read")

    def inputs(self) -> Inputs:
        x = normal(self.batch, self.length, self.hidden)
        mask = np.arange(self.length) < self.lengths[:, None]
        return {"x": x, "mask": mask}

    def packed(self, inputs: Inputs) -> tuple[Array, Array]:
        return inputs["x"][inputs["mask"]], np.cumsum([0, *self.lengths], dtype=np.int32)

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        return reference.pool(*self.packed(inputs), self.mode)

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        x, offsets = (Tensor(array) for array in self.packed(inputs))
        return Call(lambda: ops.pool(x, offsets, self.mode))

    def torch(self, inputs: Inputs) -> Call:
        import torch

        x, mask = (torch.from_numpy(inputs[name]) for name in ("x", "mask"))

        def mean() -> torch.Tensor:
            weight = mask.unsqueeze(-1).expand(x.size()).to(x.dtype)
            return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)

        def largest() -> torch.Tensor:
            return x.masked_fill(~mask.unsqueeze(-1), -torch.inf).max(1).values

        return Call(mean if self.mode == "mean" else largest)


CASES = [Pool("mean", 32, 128, 384), Pool("max", 32, 128, 384)]
