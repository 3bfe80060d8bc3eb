"""A case: one workload that several engines are given."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bench.limits import Work

Array = NDArray[Any]
Inputs = dict[str, Any]

ALIGNMENT = 16  # floats: a cache line

KERNELS = (
    "linear",
    "attention",
    "cached_attention",
    "add_norm",
    "embedding",
    "rotary",
    "sample",
    "softmax",
    "pool",
    "normalize",
)
MODELS = ("beam", "bert", "g2p", "gpt", "transformer")
RECURRENT = ("recurrent",)


def as_numpy(output: Any) -> Array:
    return output.numpy() if hasattr(output, "numpy") else np.asarray(output)


@dataclass(frozen=True)
class Call:
    """What is timed, `run`, and how its output becomes an array to compare, `result`."""

    run: Callable[[], Any]
    result: Callable[[Any], Array] = as_numpy


class Case(ABC):
    """A workload with one method per engine, named after it, that makes the engine ready.

    Those methods run in the engine's own process and import what they need themselves.
    """

    engines: ClassVar[tuple[str, ...]] = ("softgate", "torch", "torch_compile")
    # Largest difference from the reference, in any element, that is still the right answer.
    tolerance: ClassVar[float] = 1e-4
    # Without a float64 reference, the engine whose answer the others are held against.
    oracle: ClassVar[str] = "torch"

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def work(self) -> Work: ...

    @property
    def units(self) -> int:
        """Tokens that one run goes through, 0 where their rate says nothing."""
        return 0

    @property
    def group(self) -> str:
        """Cases of one group are summed up together."""
        return ""

    def tolerance_of(self, engine: str) -> float:
        """For an engine that stores its weights in fewer bits, a wider one."""
        return self.tolerance

    @abstractmethod
    def inputs(self) -> Inputs:
        """The same arrays in every process."""

    def reference(self, inputs: Inputs) -> Array | None:
        """The answer in float64, or None where the oracle's answer is the reference."""
        return None

    @abstractmethod
    def softgate(self, inputs: Inputs) -> Call: ...

    def torch(self, inputs: Inputs) -> Call:
        raise NotImplementedError(f"{self.name} names torch among its engines, and has none")

    def torch_compile(self, inputs: Inputs) -> Call:
        import torch

        call = self.torch(inputs)
        return Call(torch.compile(call.run, dynamic=False), call.result)


def load_cases(bench: str) -> dict[str, Case]:
    """The cases of bench/bench_<bench>.py by name."""
    module = importlib.import_module(f"bench.bench_{bench}")
    return {case.name: case for case in module.CASES}


def select(benches: tuple[str, ...], pattern: str) -> Iterator[tuple[str, Case]]:
    """Cases whose "bench name" contains `pattern`."""
    for bench in benches:
        for case in load_cases(bench).values():
            if pattern in f"{bench} {case.name}":
                yield bench, case


def normal(*shape: int, seed: int = 0) -> Array:
    """Standard normal float32 values, aligned as every engine's own tensors are."""
    count = math.prod(shape)
    buffer = np.empty(count + ALIGNMENT, np.float32)
    first = -buffer.ctypes.data // buffer.itemsize % ALIGNMENT
    array = buffer[first : first + count].reshape(shape)
    np.random.default_rng(seed).standard_normal(dtype=np.float32, out=array)
    return array


def ragged(count: int) -> tuple[int, ...]:
    """Lengths drawn evenly from 8 to 128, always the same ones."""
    return tuple(int(n) for n in np.random.default_rng(0).integers(8, 129, size=count))
