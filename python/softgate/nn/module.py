"""Parameters and the modules that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import PackedWeight, Tensor

FloatArray = npt.NDArray[np.float32]


class Parameter:
    """A float32 array of known shape, which `load_state_dict` or `init_weights` fills.

    A packed one is laid out for `ops.linear` when it is filled, and only then kept.
    """

    def __init__(self, *shape: int, packed: bool = False, init: float | None = None) -> None:
        self.shape = shape
        self.packed = packed
        self.init = init  # a constant; None draws from a normal distribution
        self.value: Any = None  # Tensor, or PackedWeight when packed

    def fill(self, array: FloatArray) -> None:
        """Copy `array` in. It must have the parameter's shape."""
        array = self._checked(array)
        if self.packed:
            self.value = ops.pack(array)
        else:
            tensor = Tensor.empty(self.shape)
            tensor.numpy()[...] = array
            self.value = tensor

    def numpy(self) -> FloatArray:
        """The values, as they were filled in: a view, or a fresh array when packed."""
        value = self.value
        array: FloatArray = (value.unpack() if isinstance(value, PackedWeight) else value).numpy()
        return array

    def _checked(self, array: FloatArray) -> FloatArray:
        if array.shape != self.shape:
            raise ValueError(
                f"parameter has shape {list(array.shape)}, expected {list(self.shape)}"
            )
        return np.ascontiguousarray(array, dtype=np.float32)


class Module:
    """A tree of parameters and further modules, found by their attribute names as in torch."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the module does."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(name, parameter) pairs, names joined by dots, lists by index."""
        for name, value in vars(self).items():
            for key, item in _numbered(prefix + name, value):
                if isinstance(item, Parameter):
                    yield key, item
                elif isinstance(item, Module):
                    yield from item.named_parameters(key + ".")

    def num_parameters(self) -> int:
        """Number of scalar weights."""
        return sum(math.prod(parameter.shape) for _, parameter in self.named_parameters())

    def nbytes(self) -> int:
        """Bytes the weights take in memory, packing included."""
        values = (parameter.value for _, parameter in self.named_parameters())
        kept = {id(value): value for value in values if value is not None}  # some share theirs
        return sum(int(value.nbytes) for value in kept.values())

    def state_dict(self) -> dict[str, FloatArray]:
        """All parameters by name."""
        return {name: parameter.numpy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, FloatArray]) -> None:
        """Fill every parameter from `state`, whose keys are those of `state_dict`.

        Raises ValueError that lists missing, unexpected and mis-shaped keys, before anything is
        changed.
        """
        parameters = dict(self.named_parameters())
        problems = [f"missing: {name}" for name in parameters if name not in state]
        problems += [f"unexpected: {name}" for name in state if name not in parameters]
        problems += [
            f"mis-shaped: {name} is {list(state[name].shape)}, expected {list(parameter.shape)}"
            for name, parameter in parameters.items()
            if name in state and tuple(state[name].shape) != parameter.shape
        ]
        if problems:
            raise ValueError("state does not fit the model:\n  " + "\n  ".join(problems))
        for name, parameter in parameters.items():
            parameter.fill(state[name])

    def init_weights(self, seed: int = 0, std: float = 0.02) -> None:
        """Fill every parameter: norms with 1, biases with 0, the rest from normal(0, std)."""
        rng = np.random.default_rng(seed)
        for _, parameter in self.named_parameters():
            if parameter.init is None:
                values = rng.standard_normal(parameter.shape, dtype=np.float32)
                values *= np.float32(std)
            else:
                values = np.full(parameter.shape, parameter.init, dtype=np.float32)
            parameter.fill(values)


def _numbered(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _numbered(f"{name}.{i}", item)
    else:
        yield name, value
