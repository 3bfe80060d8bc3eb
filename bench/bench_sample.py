"""`sample` against torch with the code of Hugging Face's warpers: sorts and cumulative sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.case import Array, Call, Case, Inputs, normal
from bench.limits import Work


@dataclass(frozen=True)
class Sample(Case):
    """Engines are given the random numbers, and must draw the same tokens."""

    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch")
    tolerance: ClassVar[float] = 0.0

    batch: int
    vocab: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def name(self) -> str:
        settings = f"temperature {self.temperature:g}"
        settings += f" top_k {self.top_k}" if self.top_k else ""
        settings += f" top_p {self.top_p:g}" if self.top_p < 1.0 else ""
        return f"{self.batch}x{self.vocab} {settings}"

    @property
    def work(self) -> Work:
        elements = self.batch * self.vocab
        return Work(flops=elements, bytes=4 * elements, traffic="read")

    def inputs(self) -> Inputs:
        random = np.random.default_rng(1).random(self.batch, np.float32)
        return {"logits": 3.0 * normal(self.batch, self.vocab), "random": random}

    @property
    def settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    def reference(self, inputs: Inputs) -> Array:
        from softgate import reference

        return reference.sample(**inputs, **self.settings)

    def softgate(self, inputs: Inputs) -> Call:
        from softgate import Tensor, ops

        logits, random = (Tensor(inputs[name]) for name in ("logits", "random"))
        return Call(lambda: ops.sample(logits, random, **self.settings))

    def torch(self, inputs: Inputs) -> Call:
        import torch

        logits, random = (torch.from_numpy(inputs[name]) for name in ("logits", "random"))

        def run() -> Any:
            if self.temperature == 0.0:
                return logits.argmax(dim=-1)
            scores = logits / self.temperature
            if self.top_k:
                least = torch.topk(scores, self.top_k)[0][..., -1, None]
                scores = scores.masked_fill(scores < least, -torch.inf)
            if self.top_p < 1.0:
                rising, order = torch.sort(scores, descending=False)
                rare = rising.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - self.top_p
                scores = scores.masked_fill(rare.scatter(1, order, rare), -torch.inf)
            cumulative = scores.softmax(dim=-1).cumsum(dim=-1)
            return torch.searchsorted(cumulative, random[:, None] * cumulative[:, -1:])[:, 0]

        return Call(run)


CASES = [
    Sample(1, 49152, temperature=0.0),
    Sample(1, 49152),
    Sample(1, 49152, 0.8, top_k=50, top_p=0.95),
    Sample(1, 49152, 0.8, top_p=0.95),
    Sample(8, 49152, 0.8, top_p=0.95),
    Sample(1, 262144, 1.0, top_k=64, top_p=0.95),
]
