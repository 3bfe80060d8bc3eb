"""BERT's `embedding`, three tables and a norm, against torch's lookups and layer norm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.case import Array, Call, Case, Inputs, normal
from bench.limits import Work

TABLE_ROWS = (30522, 512, 2)
EPS = 1e-12


@dataclass(frozen=True)
class Embedding(Case):
    tokens: int
    hidden: int

    @property
    def name(self) -> str:
        return f"{self.tokens}x{self.hidden}"

    @property
    def work(self) -> Work:
        elements = self.tokens * self.hidden
        return Work(flops=10 * elements, bytes=4 * (len(TABLE_ROWS) + 1) * elements)

    def inputs(self) -> Inputs:
        random = np.random.default_rng(0)
        return {
            "ids": [random.integers(rows, size=self.tokens) for rows in TABLE_ROWS],
            "tables": [normal(rows, self.hidden, seed=rows) for rows in TABLE_ROWS],
            "norm_weight": normal(self.hidden, seed=1),
            "norm_bias": normal(self.hidden, seed=2),
        }

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        return reference.embedding(**inputs, eps=EPS)

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        ids = [Tensor(array) for array in inputs["ids"]]
        tables = [Tensor(array) for array in inputs["tables"]]
        weight, bias = Tensor(inputs["norm_weight"]), Tensor(inputs["norm_bias"])
        return Call(lambda: ops.embedding(ids, tables, weight, bias, eps=EPS))

    def torch(self, inputs: Inputs) -> Call:
        import torch
        from torch.nn import functional

        ids = [torch.from_numpy(array) for array in inputs["ids"]]
        tables = [torch.from_numpy(array) for array in inputs["tables"]]
        weight, bias = (
            torch.from_numpy(inputs["norm_weight"]),
            torch.from_numpy(inputs["norm_bias"]),
        )

        def embedding() -> torch.Tensor:
            rows = functional.embedding(ids[0], tables[0])
            rows = rows + functional.embedding(ids[1], tables[1])
            rows = rows + functional.embedding(ids[2], tables[2])
            return functional.layer_norm(rows, (self.hidden,), weight, bias, EPS)

        return Call(embedding)


CASES = [Embedding(128, 768), Embedding(4096, 384)]
