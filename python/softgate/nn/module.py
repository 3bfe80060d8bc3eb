"""Parameters and the modules that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import PackedWeight, RecurrentWeight, Tensor

FloatArray = npt.NDArray[np.float32]

# In the order of ops.pack_recurrent.
RECURRENT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class Parameter:
    """An array of known shape, which `load_state_dict` or `init_weights` fills with float32.

    It is kept on `device` in `dtype`, and a packed one as `ops.linear` takes it; `Module.to`
    changes both.
    """

    def __init__(self, *shape: int, packed: bool = False, init: float | None = None) -> None:
        self.shape = shape
        self.packed = packed
        self.init = init  # a constant; None draws from a normal distribution
        self.device = "cpu"
        self.dtype = "float32"
        self.value: Any = None  # Tensor, or PackedWeight when packed

    def fill(self, array: FloatArray) -> None:
        """Copy `array` in. It must have the parameter's shape."""
        array = self._checked(array)
        if self.packed:
            self.value = ops.pack(Tensor(array).to(self.device, self.dtype))
        else:
            self.value = Tensor.empty(self.shape, self.dtype, self.device).copy_(array)

    def numpy(self) -> FloatArray:
        """The values in float32: a view, or a fresh array when packed or on another device."""
        value = self.value
        tensor = value.unpack() if isinstance(value, PackedWeight) else value
        array: FloatArray = tensor.to("cpu", "float32").numpy()
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

    @property
    def device(self) -> str:
        """Of its first parameter, which is that of all unless `to` was called on a part."""
        return next((p.device for _, p in self.named_parameters()), "cpu")

    @property
    def dtype(self) -> str:
        """Of its first parameter, as `device`."""
        return next((p.dtype for _, p in self.named_parameters()), "float32")

    def to(self, device: str | None = None, dtype: str | None = None) -> Self:
        """Move all parameters to "cpu", "cuda", "cuda:1" and so on, or to another dtype.

        The module itself is changed and returned. On a device other than the CPU dtype may be
        "float16" or "bfloat16", which activations then have too.

        Raises ValueError for an unknown device, TypeError for a dtype that it does not compute in,
        MemoryError when there is no room and RuntimeError when this build or machine has no CUDA;
        the module is then as it was.
        """
        parameters = [parameter for _, parameter in self.named_parameters()]
        places = [_place(device or p.device, dtype or p.dtype) for p in parameters]
        moved: dict[int, Any] = {}  # some share their value
        for parameter, place in zip(parameters, places, strict=True):
            value = parameter.value
            if value is not None and id(value) not in moved:
                moved[id(value)] = _moved(value, *place)
        for parameter, place in zip(parameters, places, strict=True):
            parameter.device, parameter.dtype = place
            parameter.value = moved.get(id(parameter.value))
        return self

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


def _place(device: str, dtype: str) -> tuple[str, str]:
    """As tensors name them; raises for what there is not."""
    probe = Tensor.empty(0, dtype, device)
    dtypes = ["float32"] if probe.device == "cpu" else ["float32", "float16", "bfloat16"]
    if dtype not in dtypes:
        raise TypeError(f"to: dtype is {dtype!r} on {device}, expected one of {dtypes}")
    return probe.device, dtype


def _moved(value: Any, device: str, dtype: str) -> Any:
    """A parameter's value in another place, itself where that is the old one."""
    if (value.device, value.dtype) == (device, dtype):
        return value
    if isinstance(value, PackedWeight):
        return ops.pack(value.unpack().to(device, dtype))
    if isinstance(value, RecurrentWeight):
        arrays = {name: array.to(device, dtype) for name, array in value.unpack().items()}
        return ops.pack_recurrent(value.kind, *map(arrays.get, RECURRENT_NAMES))  # type: ignore[arg-type]
    return value.to(device, dtype)
