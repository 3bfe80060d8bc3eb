"""Parameters and the modules that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import PackedWeight, RecurrentWeight, Tensor

FloatArray = npt.NDArray[np.float32]

_FLOATS = ("float32", "float16", "bfloat16")
_INTEGERS = ("int8", "int4")
_GROUP = 32  # of ops.pack_groups

# In the order of ops.pack_recurrent.
RECURRENT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class Parameter:
    """An array of known shape, which `load_state_dict` or `init_weights` fills with float32.

    It is kept on `device` in `dtype`, which `Module.to` changes. A packed one is laid out for
    `ops.linear` when it is filled, and only then kept: as `dtype`, which may have fewer bits, and
    with the rows [gate; up] when `gated`; see `ops.pack`. A `grouped` one has, as "int8", a scale
    for each group of 32 columns, if they are a multiple of that, and so has what it is multiplied
    by: for inputs with columns much larger than the others.
    """

    quantizable = True  # when packed

    def __init__(
        self,
        *shape: int,
        packed: bool = False,
        init: float | None = None,
        dtype: ops.WeightType = "float32",
        gated: bool = False,
        grouped: bool = False,
    ) -> None:
        self.shape = shape
        self.packed = packed
        self.init = init  # a constant; None draws from a normal distribution
        self.device = "cpu"
        self.dtype: str = dtype
        self.gated = gated
        self.grouped = grouped
        self.value: Any = None  # Tensor, or PackedWeight when packed

    def fill(self, array: FloatArray, dtype: ops.WeightType | None = None) -> None:
        """Copy `array` in. It must have the parameter's shape. dtype: instead of the parameter's,
        from now on, of a packed one."""
        array = self._checked(array)
        if self.packed:
            self.dtype = dtype or self.dtype
            self.value = self.pack(Tensor(array), self.device, self.dtype)
        else:
            self.value = Tensor.empty(self.shape, self.dtype, self.device).copy_(array)

    def pack(self, array: Tensor, device: str, dtype: str) -> PackedWeight:
        """Its value for `ops.linear`, elsewhere or in another dtype perhaps."""
        if device != "cpu" and dtype not in _INTEGERS:
            return ops.pack(array.to(device, dtype), gated=self.gated)
        array = array.to("cpu", "float32")
        if self.grouped and dtype == "int8" and array.shape[1] % _GROUP == 0:
            values, scales = map(Tensor, _in_groups(array.numpy()))
            return _pack_groups(values, scales, None, 8, device, self.gated)
        kind = cast(ops.WeightType, dtype)
        return ops.pack(array.to(device), dtype=kind, gated=self.gated)

    def fill_quantized(
        self,
        values: npt.NDArray[np.int8],
        scales: FloatArray,
        minimums: FloatArray | None = None,
        *,
        bits: Literal[4, 8],
    ) -> None:
        """Copy a quantised weight in, as `ops.pack_groups` takes it. For a packed one only."""
        if values.shape != self.shape:
            raise ValueError(
                f"parameter has shape {list(values.shape)}, expected {list(self.shape)}"
            )
        offsets = None if minimums is None else Tensor(minimums)
        self.value = _pack_groups(
            Tensor(values), Tensor(scales), offsets, bits, self.device, self.gated
        )
        self.dtype = "int4" if bits == 4 else "int8"

    def numpy(self) -> FloatArray:
        """The values in float32, or what fewer bits kept of them: a view, or a fresh array when
        packed or on another device."""
        value = self.value
        tensor = value.unpack() if isinstance(value, PackedWeight) else value
        array: FloatArray = tensor.to("cpu", "float32").numpy()
        return array

    @property
    def parts(self) -> tuple[str, ...]:
        """What may follow the parameter's name in a `state_dict`."""
        return ("", ".values", ".scales", ".minimums") if self.packed else ("",)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What `load_state` takes, by what follows the parameter's name: {"": values}, or of a
        quantised weight ".values", ".scales" and perhaps ".minimums", exactly as stored. 4-bit
        values are uint8 `[rows, columns / 2]`, the even column in the lower half.
        """
        if not _is_quantized(self.value):
            return {"": self.numpy()}
        values, scales, minimums = self.value.quantized()
        parts = {".values": values.numpy(), ".scales": scales.numpy()}
        if self.value.dtype == "int4":
            parts[".values"] = _to_nibbles(parts[".values"])
        return parts if minimums is None else parts | {".minimums": minimums.numpy()}

    def load_state(self, parts: Mapping[str, npt.NDArray[Any]]) -> None:
        """Fill from floats, rounded to the parameter's dtype, or from a quantised weight."""
        if "" in parts:
            self.fill(parts[""])
            return
        values = parts[".values"]
        bits: Literal[4, 8] = 4 if values.dtype == np.uint8 else 8
        if bits == 4:
            values = _from_nibbles(values)
        self.fill_quantized(values, parts[".scales"], parts.get(".minimums"), bits=bits)

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

    def __init_subclass__(cls) -> None:
        if "forward" in vars(cls):
            cls.__call__ = cls.forward  # type: ignore[method-assign]  # spares a frame a call

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
        """Of its first packed parameter, or of the first one if there is none, as `device`."""
        parameters = [parameter for _, parameter in self.named_parameters()]
        packed = [parameter for parameter in parameters if parameter.packed]
        return next((parameter.dtype for parameter in packed or parameters), "float32")

    def to(self, device: str | None = None, dtype: str | None = None) -> Self:
        """Move all parameters to "cpu", "cuda", "cuda:1" and so on, or to another dtype.

        The module itself is changed and returned. dtype says how packed parameters are kept, see
        `ops.pack`. On the CPU the others stay float32. On another device "float16", "bfloat16" and
        "float32" are for them and for activations too, while quantised weights keep their integers,
        bit for bit; "int8" and "int4" leave the others, and activations, as they are.

        Raises ValueError for an unknown device and for weights that are quantised already and
        would be anew, TypeError for a dtype that it does not compute in, MemoryError when there is
        no room and RuntimeError when this build or machine has no CUDA; the module is then as it
        was.
        """
        parameters = [parameter for _, parameter in self.named_parameters()]
        if dtype in _INTEGERS and any(_is_quantized(p.value) for p in parameters):
            raise ValueError(f"to: dtype is {dtype!r}, but weights are quantised already")
        quantizable = any(p.packed and p.quantizable for p in parameters)
        floats = dtype if dtype and dtype not in _INTEGERS else self._float_dtype()
        places = [_place(p, device, dtype, floats, quantizable) for p in parameters]
        moved: dict[int, Any] = {}  # some share their value
        for parameter, place in zip(parameters, places, strict=True):
            value = parameter.value
            if value is not None and id(value) not in moved:
                moved[id(value)] = _moved(parameter, *place)
        for parameter, place in zip(parameters, places, strict=True):
            parameter.device, parameter.dtype = place
            parameter.value = moved.get(id(parameter.value))
        return self

    def _float_dtype(self) -> str:
        """What all floats have on a device unless `to` says it: that of the packed ones, if any."""
        parameters = sorted((p for _, p in self.named_parameters()), key=lambda p: not p.packed)
        return next((p.dtype for p in parameters if p.dtype not in _INTEGERS), "float32")

    def num_parameters(self) -> int:
        """Number of scalar weights."""
        return sum(math.prod(parameter.shape) for _, parameter in self.named_parameters())

    def nbytes(self) -> int:
        """Bytes the weights take in memory, packing included."""
        values = (parameter.value for _, parameter in self.named_parameters())
        kept = {id(value): value for value in values if value is not None}  # some share theirs
        return sum(int(value.nbytes) for value in kept.values())

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """All parameters by name; a quantised weight is up to three arrays, `weight.values`,
        `weight.scales` and `weight.minimums` (see `Parameter.state`)."""
        return {
            name + part: array
            for name, parameter in self.named_parameters()
            for part, array in parameter.state().items()
        }

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Fill every parameter from `state`, whose keys are those of `state_dict`.

        A packed parameter takes floats, rounded to its dtype, or a quantised weight, bit for bit.

        Raises ValueError that lists missing, unexpected and mis-shaped keys, before anything is
        changed.
        """
        parameters = dict(self.named_parameters())

        def parts_of(name: str) -> dict[str, npt.NDArray[Any]]:
            """One parameter's at a time: a state may read its arrays when they are asked for."""
            keys = {part: name + part for part in parameters[name].parts}
            return {part: state[key] for part, key in keys.items() if key in state}

        known = {name + part for name, parameter in parameters.items() for part in parameter.parts}
        problems = [f"unexpected: {name}" for name in state if name not in known]
        for name, parameter in parameters.items():
            problems += _problems(name, parameter, parts_of(name))
        kinds = ("missing", "unexpected", "mis-shaped")
        problems.sort(key=lambda text: kinds.index(text.split(":")[0]))
        if problems:
            raise ValueError("state does not fit the model:\n  " + "\n  ".join(problems))
        for name, parameter in parameters.items():
            parameter.load_state(parts_of(name))

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


def _problems(
    name: str, parameter: Parameter, parts: Mapping[str, npt.NDArray[Any]]
) -> Iterator[str]:
    """Why these parts do not fill the parameter."""
    shape = parameter.shape
    if "" in parts:
        expected = {"": [shape]}
    elif ".values" not in parts:
        yield f"missing: {name}"
        return
    else:
        rows, columns = shape
        nibbles = parts[".values"].dtype == np.uint8
        groups = (rows, columns // 32)
        expected = {
            ".values": [(rows, columns // 2)] if nibbles else [shape],
            ".scales": [groups] if nibbles or ".minimums" in parts else [(rows,), groups],
        }
        if ".minimums" in parts:
            expected[".minimums"] = [groups]
    yield from (f"unexpected: {name}{part}" for part in parts if part not in expected)
    for part, shapes in expected.items():
        if part not in parts:
            yield f"missing: {name}{part}"
        elif parts[part].shape not in shapes:
            wanted = " or ".join(str(list(one)) for one in shapes)
            yield f"mis-shaped: {name}{part} is {list(parts[part].shape)}, expected {wanted}"


def _is_quantized(value: Any) -> bool:
    return isinstance(value, PackedWeight) and value.dtype in _INTEGERS


def _to_nibbles(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    pairs = values.view(np.uint8)
    low, high = pairs[:, 0::2], pairs[:, 1::2]
    nibbles: npt.NDArray[np.uint8] = low | high << np.uint8(4)
    return nibbles


def _from_nibbles(pairs: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    values = np.empty((len(pairs), 2 * pairs.shape[1]), dtype=np.int8)
    values[:, 0::2] = pairs & 15
    values[:, 1::2] = pairs >> 4
    return values


def _numbered(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _numbered(f"{name}.{i}", item)
    else:
        yield name, value


def _place(
    parameter: Parameter, device: str | None, dtype: str | None, floats: str, quantizable: bool
) -> tuple[str, str]:
    """Where it goes, as tensors name that; raises for what there is not.

    floats: of what is not packed, on a device. quantizable: is that any of the module's parameters?
    """
    device = device or parameter.device
    place = Tensor.empty(0, device=device).device
    has_integers = parameter.packed and parameter.dtype in _INTEGERS
    if has_integers and dtype is None:
        return place, parameter.dtype
    wanted = dtype or (parameter.dtype if place == "cpu" else floats)
    dtypes = ("float32",) if place == "cpu" else _FLOATS
    if quantizable and parameter.quantizable:
        dtypes = get_args(ops.WeightType)
    if wanted not in dtypes:
        raise TypeError(f"to: dtype is {wanted!r} on {device}, expected one of {list(dtypes)}")
    if not parameter.packed:
        return place, "float32" if place == "cpu" else floats
    keeps = has_integers and place != "cpu" and wanted not in _INTEGERS
    return place, parameter.dtype if keeps else wanted


def _pack_groups(
    values: Tensor,
    scales: Tensor,
    minimums: Tensor | None,
    bits: Literal[4, 8],
    device: str,
    gated: bool,
) -> PackedWeight:
    """`ops.pack_groups` of tensors that are elsewhere, perhaps."""
    there = None if minimums is None else minimums.to(device)
    return ops.pack_groups(values.to(device), scales.to(device), there, bits=bits, gated=gated)


def _in_groups(weight: FloatArray) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """8-bit values, and the scale of each group, to whose largest magnitude it is symmetric."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // _GROUP, _GROUP)
    largest = np.abs(groups).max(axis=2, initial=0)
    if not (largest <= 127 * float(np.finfo(np.float16).max)).all():
        raise ValueError("parameter: its values are too large for int8, or not finite")
    scales = (largest / np.float32(127)).astype(np.float16)
    # Of tiny weights the scale may round to zero.
    steps = np.where(scales > 0, scales, np.inf).astype(np.float32)[:, :, None]
    values = np.clip(np.rint(groups / steps), -127, 127).astype(np.int8)
    return values.reshape(rows, columns), scales


def _moved(parameter: Parameter, device: str, dtype: str) -> Any:
    """A parameter's value in another place, itself where that is the old one."""
    value = parameter.value
    if (value.device, value.dtype) == (device, dtype):
        return value
    if _is_quantized(value) and value.dtype == dtype:
        values, scales, minimums = value.quantized()
        bits: Literal[4, 8] = 4 if dtype == "int4" else 8
        return _pack_groups(values, scales, minimums, bits, device, parameter.gated)
    if isinstance(value, PackedWeight):
        return parameter.pack(value.unpack(), device, dtype)
    if isinstance(value, RecurrentWeight):
        arrays = {name: array.to(device, dtype) for name, array in value.unpack().items()}
        return ops.pack_recurrent(value.kind, *map(arrays.get, RECURRENT_NAMES))  # type: ignore[arg-type]
    return value.to(device, dtype)
