"""Layers: parameters with the operations of `softgate.ops`, composed as in torch.

Layers take and give packed activations, `[total_tokens, hidden_size]` Tensors, with `cu_seqlens`
where sequences matter. RNN, LSTM and GRU take NumPy arrays and padded batches as well, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import PackedWeight, RecurrentWeight, Tensor
from softgate._typing import Array, SameArray

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


class Linear(Module):
    """`activation(x @ weight.T + bias) + residual`, the weight packed for the CPU in use."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.weight = Parameter(out_features, in_features, packed=True)
        self.bias = Parameter(out_features, init=0.0) if bias else None

    def forward(
        self, x: Tensor, *, activation: ops.Activation = "none", residual: Tensor | None = None
    ) -> Tensor:
        """x: `[..., in_features]`; residual and the result: `[..., out_features]`."""
        bias = None if self.bias is None else self.bias.value
        return ops.linear(x, self.weight.value, bias, activation=activation, residual=residual)


class LayerNorm(Module):
    """The weight and bias of a layer norm."""

    def __init__(self, hidden_size: int) -> None:
        self.weight = Parameter(hidden_size, init=1.0)
        self.bias = Parameter(hidden_size, init=0.0)


class Embedding(Module):
    """The sum of one row from each table, normalised."""

    def __init__(self, num_embeddings: Sequence[int], hidden_size: int, eps: float) -> None:
        self.tables = [Parameter(rows, hidden_size) for rows in num_embeddings]
        self.norm = LayerNorm(hidden_size)
        self.eps = eps

    def forward(self, *ids: Tensor) -> Tensor:
        """ids: an integer `[total_tokens]` for each table. Gives `[total_tokens, hidden_size]`."""
        return ops.embedding(
            ids,
            [table.value for table in self.tables],
            self.norm.weight.value,
            self.norm.bias.value,
            eps=self.eps,
        )


class AddNorm(LayerNorm):
    """Layer norm of `x + residual`."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size)
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, residual and the result: `[total_tokens, hidden_size]`. `x` is overwritten."""
        return ops.add_layer_norm(
            x, residual, self.weight.value, self.bias.value, eps=self.eps, out=x
        )


class Attention(Module):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.output = Linear(hidden_size, hidden_size)

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x: `[total_tokens, hidden_size]`; weights: `[batch, num_heads, max_len, max_len]`."""
        total_tokens, hidden_size = x.shape
        qkv = self.qkv(x).reshape((total_tokens, 3, self.num_heads, self.head_dim))
        result = ops.attention(
            qkv[:, 0], qkv[:, 1], qkv[:, 2], cu_seqlens, return_weights=return_weights
        )
        context, weights = result if return_weights else (result, None)
        return self.output(context.reshape((total_tokens, hidden_size))), weights


class FeedForward(Module):
    """Two products with an activation between them."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: ops.Activation
    ) -> None:
        self.activation = activation
        self.up = Linear(hidden_size, intermediate_size)
        self.down = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x and the result: `[total_tokens, hidden_size]`."""
        y: Tensor = self.down(self.up(x, activation=self.activation))
        return y


class _RecurrentParameter(Parameter):
    """One array of a RecurrentWeight, which is the value of all its parameters."""

    def __init__(self, pack: _RecurrentPack, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(*shape, packed=True, init=0.0 if name.startswith("bias") else None)
        self._pack = pack
        self._name = name

    def fill(self, array: FloatArray) -> None:
        self._pack.fill(self._name, self._checked(array))

    def numpy(self) -> FloatArray:
        return self._pack.arrays()[self._name]


class _RecurrentPack:
    """One direction's weights of one layer, packed when the last of them is filled in."""

    def __init__(self, kind: ops.RecurrentKind, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.kind = kind
        self.parameters = {n: _RecurrentParameter(self, n, shape) for n, shape in shapes.items()}
        self.value: RecurrentWeight | None = None
        self._waiting: dict[str, FloatArray] = {}  # until all are there

    def arrays(self) -> dict[str, FloatArray]:
        """What has been filled in, by `ops.pack_recurrent`'s names."""
        if self.value is None:
            return self._waiting
        return {name: tensor.numpy() for name, tensor in self.value.unpack().items()}

    def fill(self, name: str, array: FloatArray) -> None:
        arrays = self.arrays() | {name: array.copy()}
        if len(arrays) < len(self.parameters):
            self._waiting = arrays
            return
        self.value, self._waiting = ops.pack_recurrent(self.kind, **arrays), {}
        for parameter in self.parameters.values():
            parameter.value = self.value


class _Recurrent(Module):
    """What RNN, LSTM and GRU share."""

    def __init__(
        self,
        kind: ops.RecurrentKind,
        gates: int,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        bias: bool,
        batch_first: bool,
        bidirectional: bool,
        proj_size: int = 0,
    ) -> None:
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{type(self).__name__}: {name} is {size}, expected at least 1")
        if not 0 <= proj_size < hidden_size:
            raise ValueError(
                f"LSTM: proj_size is {proj_size}, expected less than hidden_size, {hidden_size}"
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._packs: list[list[_RecurrentPack]] = []  # of each layer, one for each direction

        rows, output_size = gates * hidden_size, proj_size or hidden_size
        suffixes = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            columns = len(suffixes) * output_size if layer else input_size
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (rows, columns),
                "weight_hh": (rows, output_size),
            }
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            if proj_size:
                shapes |= {"weight_hr": (proj_size, hidden_size)}
            packs = [_RecurrentPack(kind, shapes) for _ in suffixes]
            for pack, suffix in zip(packs, suffixes, strict=True):
                for name, parameter in pack.parameters.items():
                    setattr(self, f"{name}_l{layer}{suffix}", parameter)
            self._packs.append(packs)

    def _along(
        self,
        op: Callable[..., tuple[Any, ...]],
        x: Any,
        states: Mapping[str, Any],
        lengths: Any,
        cu_seqlens: Any,
    ) -> tuple[Any, ...]:
        """Output and last states of all layers. states: the first ones of all layers, by name."""
        single = x.ndim == 2 and cu_seqlens is None
        batch = _Sequences(self, _numpy(x), lengths, _numpy(cu_seqlens))
        first = self._first_states({n: _numpy(s) for n, s in states.items()}, batch.size, single)
        out, last = batch.packed, []
        for layer, packs in enumerate(self._packs):
            d = len(packs)
            of_layer = {n: s[d * layer : d * (layer + 1)] for n, s in first.items()}
            weights = tuple(self._weight(pack, layer) for pack in packs)
            out, *ends = op(
                out,
                batch.cu_seqlens,
                weights if d == 2 else weights[0],
                direction="bidirectional" if d == 2 else "forward",
                **of_layer,
            )
            last.append(ends)
        ends = [np.concatenate(state) for state in zip(*last, strict=True)]
        results = [batch.restore(out), *(state[:, 0] if single else state for state in ends)]
        return tuple(results if isinstance(x, np.ndarray) else map(Tensor, results))

    def _first_states(
        self, states: Mapping[str, Any], batch: int, single: bool
    ) -> dict[str, FloatArray]:
        """Those that are given, `[num_layers * directions, batch, size]`."""
        sizes = {"h0": self.proj_size or self.hidden_size, "c0": self.hidden_size}
        first = {}
        for name, state in states.items():
            if state is None:
                continue
            rows = self.num_layers * (2 if self.bidirectional else 1)
            shape = (rows, sizes[name]) if single else (rows, batch, sizes[name])
            if state.shape != shape:
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {list(state.shape)}, "
                    f"expected {list(shape)}"
                )
            first[name] = state[:, None] if single else state
        return first

    def _weight(self, pack: _RecurrentPack, layer: int) -> RecurrentWeight:
        if pack.value is None:
            missing = ", ".join(pack.parameters.keys() - pack.arrays().keys())
            raise ValueError(
                f"{type(self).__name__}: layer {layer} has no {missing}; load_state_dict or "
                "init_weights fills them in"
            )
        return pack.value


class _Sequences:
    """A batch as the kernels take it, and the way back to the form it came in."""

    def __init__(self, layer: _Recurrent, x: Any, lengths: Any, cu_seqlens: Any) -> None:
        self._kept: npt.NDArray[np.bool_] | None = None  # [batch, steps], of padded ones
        self._time_major = not layer.batch_first
        name = type(layer).__name__
        if x.ndim == 2:
            if lengths is not None:
                raise ValueError(f"{name}: lengths are for a padded x of three dimensions")
            self.packed = x
            self.cu_seqlens = np.array([0, len(x)], np.int32) if cu_seqlens is None else cu_seqlens
            self.size = max(len(self.cu_seqlens) - 1, 0)
            return
        if x.ndim != 3:
            raise ValueError(f"{name}: x has shape {list(x.shape)}, expected 2 or 3 dimensions")
        if cu_seqlens is not None:
            raise ValueError(f"{name}: cu_seqlens are for a packed x of two dimensions")
        if self._time_major:
            x = x.swapaxes(0, 1)
        self.size, steps, _ = x.shape
        lengths = np.full(self.size, steps) if lengths is None else np.asarray(lengths)
        if lengths.shape != (self.size,) or (lengths.dtype.kind not in "iu" and lengths.size):
            raise ValueError(
                f"{name}: lengths are {lengths.dtype} of shape {list(lengths.shape)}, expected "
                f"integers, one for each of {self.size} sequences"
            )
        if (wrong := (lengths < 0) | (lengths > steps)).any():
            i = int(np.argmax(wrong))
            raise ValueError(f"{name}: lengths[{i}] is {lengths[i]}, expected 0 to {steps} steps")
        self.cu_seqlens = np.zeros(self.size + 1, np.int32)
        np.cumsum(lengths, out=self.cu_seqlens[1:])
        self._kept = np.arange(steps) < lengths[:, None]
        self.packed = x[self._kept]

    def restore(self, out: FloatArray) -> FloatArray:
        """Packed `[total_tokens, size]` to padded with zeros, if the batch came so."""
        if self._kept is None:
            return out
        padded = np.zeros((*self._kept.shape, out.shape[1]), np.float32)
        padded[self._kept] = out
        return padded.swapaxes(0, 1) if self._time_major else padded


def _numpy(array: Any) -> Any:
    """The same memory as an array; None stays None."""
    return array if array is None or isinstance(array, np.ndarray) else Tensor(array).numpy()


class RNN(_Recurrent):
    """Elman RNN layers (Elman 1990), with the names of torch.nn.RNN.

    Called with x and, if they are not zeros, the first states `hx`; gives (out, h_n).

    x, float32, in one of these forms:
    - padded, `[steps, batch, input_size]`, or `[batch, steps, input_size]` if `batch_first`, with
      `lengths`, integers `[batch]` (absent: all steps); out is padded alike, with zeros;
    - packed, `[total_tokens, input_size]`, with `cu_seqlens`, int32 `[batch + 1]`;
    - one sequence, `[steps, input_size]`, whose states have no batch dimension.

    out: x's form with `directions * hidden_size` columns, of two directions the forward half first.
    hx, h_n: `[num_layers * directions, batch, hidden_size]`, the directions of a layer next to each
    other, sequences in x's order. h_n is the state after a sequence's last token, or after its
    first where a direction runs in reverse; a sequence without tokens gives its hx back. NumPy
    gives NumPy, anything else Tensors.

    Raises ValueError for shapes that do not fit, lengths that are negative or exceed the steps, and
    weights that have not been filled in.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity is {nonlinearity!r}, expected 'tanh' or 'relu'")
        super().__init__(
            "rnn_tanh" if nonlinearity == "tanh" else "rnn_relu",
            1,
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
        )
        self.nonlinearity = nonlinearity

    def forward(
        self,
        x: SameArray,
        hx: Array | None = None,
        *,
        lengths: Sequence[int] | npt.NDArray[np.integer] | None = None,
        cu_seqlens: Array | None = None,
    ) -> tuple[SameArray, SameArray]:
        """(out, h_n); see the class."""
        out, h_n = self._along(ops.rnn, x, {"h0": hx}, lengths, cu_seqlens)
        return out, h_n


class GRU(_Recurrent):
    """GRU layers (Cho et al. 2014), with the names of torch.nn.GRU; called as RNN.

    reset_after: whether the reset gate acts after the state's product, as torch has it and Keras by
    default, or before it, as published.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        reset_after: bool = True,
    ) -> None:
        super().__init__(
            "gru" if reset_after else "gru_reset_before",
            3,
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
        )
        self.reset_after = reset_after

    def forward(
        self,
        x: SameArray,
        hx: Array | None = None,
        *,
        lengths: Sequence[int] | npt.NDArray[np.integer] | None = None,
        cu_seqlens: Array | None = None,
    ) -> tuple[SameArray, SameArray]:
        """(out, h_n); see RNN."""
        out, h_n = self._along(ops.gru, x, {"h0": hx}, lengths, cu_seqlens)
        return out, h_n


class LSTM(_Recurrent):
    """LSTM layers (Hochreiter & Schmidhuber 1997), with the names of torch.nn.LSTM.

    Called as RNN, but `hx` is a pair (h0, c0), and the result is (out, (h_n, c_n)). c0, c_n:
    `[num_layers * directions, batch, hidden_size]`.

    proj_size: if not 0, the size to which a product brings each output (Sak et al. 2014); out, h0
    and h_n have it in the place of hidden_size.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        proj_size: int = 0,
    ) -> None:
        super().__init__(
            "lstm",
            4,
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            proj_size=proj_size,
        )

    def forward(
        self,
        x: SameArray,
        hx: tuple[Array, Array] | None = None,
        *,
        lengths: Sequence[int] | npt.NDArray[np.integer] | None = None,
        cu_seqlens: Array | None = None,
    ) -> tuple[SameArray, tuple[SameArray, SameArray]]:
        """(out, (h_n, c_n)); see the class."""
        if hx is not None and (not isinstance(hx, tuple | list) or len(hx) != 2):
            raise TypeError(f"LSTM: hx is a {type(hx).__name__}, expected a pair (h0, c0)")
        h0, c0 = (None, None) if hx is None else hx
        out, h_n, c_n = self._along(ops.lstm, x, {"h0": h0, "c0": c0}, lengths, cu_seqlens)
        return out, (h_n, c_n)
