"""Recurrent layers with the names of torch: packed, padded and single sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from softgate import ops
from softgate._core import RecurrentWeight, SequenceOffsets, Tensor
from softgate._typing import Array, SameArray
from softgate.nn.module import RECURRENT_NAMES, FloatArray, Module, Parameter

# Floats that the product of a table and the weights may have that is kept instead of formed anew.
_MOST_FOLDED = 1 << 22


class _RecurrentParameter(Parameter):
    """One array of a RecurrentWeight, which is the value of all its parameters."""

    quantizable = False

    def __init__(self, pack: _RecurrentPack, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(*shape, packed=True, init=0.0 if name.startswith("bias") else None)
        self._pack = pack
        self._name = name

    def fill(self, array: FloatArray, dtype: ops.WeightType | None = None) -> None:
        if dtype not in (None, "float32"):
            raise ValueError(
                f"parameter of a recurrent layer: dtype is {dtype!r}, expected float32"
            )
        self._pack.fill(self._name, self._checked(array))

    @property
    def parts(self) -> tuple[str, ...]:
        return ("",)

    def numpy(self) -> FloatArray:
        return self._pack.arrays()[self._name]


class _RecurrentPack:
    """One direction's weights of one layer, packed when the last of them is filled in."""

    def __init__(self, kind: ops.RecurrentKind, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.kind = kind
        self.parameters = {n: _RecurrentParameter(self, n, shape) for n, shape in shapes.items()}
        self._waiting: dict[str, FloatArray] = {}  # until all are there

    @property
    def value(self) -> RecurrentWeight | None:
        """That of all parameters."""
        value: RecurrentWeight | None = self.parameters["weight_ih"].value
        return value

    def arrays(self) -> dict[str, FloatArray]:
        """What has been filled in, by `ops.pack_recurrent`'s names."""
        if self.value is None:
            return self._waiting
        arrays = self.value.unpack()
        return {name: tensor.to("cpu", "float32").numpy() for name, tensor in arrays.items()}

    def fill(self, name: str, array: FloatArray) -> None:
        arrays = self.arrays() | {name: array.copy()}
        if len(arrays) < len(self.parameters):
            self._waiting = arrays
            return
        there = {
            name: Tensor(array).to(self.parameters[name].device, self.parameters[name].dtype)
            for name, array in arrays.items()
        }
        value = ops.pack_recurrent(self.kind, *map(there.get, RECURRENT_NAMES))
        self._waiting = {}
        for parameter in self.parameters.values():
            parameter.value = value


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
        # A table's value and the first layer's weights, then those weights times the table.
        self._folded: tuple[tuple[Any, ...], tuple[RecurrentWeight, ...]] = ((), ())

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

    @property
    def device(self) -> str:
        """As of any module, but without a walk over its parameters at every step."""
        return self._packs[0][0].parameters["weight_ih"].device

    def _along(
        self,
        op: Callable[..., tuple[Any, ...]],
        x: Any,
        states: Mapping[str, Any],
        h0_rows: Any,
        lengths: Any,
        cu_seqlens: Any,
        table: Parameter | None,
    ) -> tuple[Any, ...]:
        """Output and last states of all layers. states: the first ones of all layers, by name."""
        from_numpy = isinstance(x, np.ndarray)
        weights = [
            tuple(self._weight(pack, layer) for pack in packs)
            for layer, packs in enumerate(self._packs)
        ]
        if table is None:
            given = self._placed("x", x, from_numpy)
        else:
            given, weights[0] = self._looked_up(x, table, weights[0])
        single = given.ndim == 2 and cu_seqlens is None
        if not (cu_seqlens is None or isinstance(cu_seqlens, SequenceOffsets)):
            cu_seqlens = self._tensor("cu_seqlens", cu_seqlens)
        batch = _Sequences(self, given, lengths, cu_seqlens)
        size = None if h0_rows is not None else batch.size
        first = {
            name: self._first_state(name, self._placed(name, state, from_numpy), size, single)
            for name, state in states.items()
            if state is not None
        }
        out, last = batch.pack(given), []
        for layer, both in enumerate(weights):
            d = len(both)
            is_last = layer == self.num_layers - 1
            columns = d * (self.proj_size or self.hidden_size)
            out, *ends = op(
                out,
                batch.cu_seqlens,
                both if d == 2 else both[0],
                direction="bidirectional" if d == 2 else "forward",
                h0_rows=h0_rows,
                **{name: state[d * layer : d * (layer + 1)] for name, state in first.items()},
                out=batch.output(columns, out) if is_last else None,
            )
            last.append(ends)
        ends = [_concatenated(state) for state in zip(*last, strict=True)]
        results = (batch.restore(out), *(state[:, 0] if single else state for state in ends))
        if not from_numpy:
            return results
        return tuple(tensor.to("cpu", "float32").numpy() for tensor in results)

    def _looked_up(
        self, ids: Any, table: Parameter, weights: tuple[RecurrentWeight, ...]
    ) -> tuple[Tensor, tuple[RecurrentWeight, ...]]:
        """What the first layer takes for rows of a table, and its weights for that: the ids, where
        the table's product with the weights is formed once, or else the rows."""
        rows = sum(pack.parameters["weight_ih"].shape[0] for pack in self._packs[0])
        if self.device != "cpu" or table.shape[0] * rows > _MOST_FOLDED:
            return ops.embedding([Tensor(ids)], [table.value]), weights
        made_of = (table.value, *weights)
        if not all(a is b for a, b in zip_longest(made_of, self._folded[0])):
            columns = table.numpy().T.astype(np.float64)
            products = (weight.unpack()["weight_ih"].numpy() @ columns for weight in weights)
            folded = (
                weight.with_inputs(product.astype(np.float32))
                for weight, product in zip(weights, products, strict=True)
            )
            self._folded = made_of, tuple(folded)
        return Tensor(np.asarray(ids, np.int32)), self._folded[1]

    def _tensor(self, name: str, array: Any) -> Tensor:
        try:
            return Tensor(array)
        except (TypeError, ValueError) as error:
            problem = str(error).removeprefix("Tensor: array ").removeprefix("Tensor: ")
            raise type(error)(f"{type(self).__name__}: {name} {problem}") from None

    def _placed(self, name: str, array: Any, from_numpy: bool) -> Tensor:
        """As a Tensor. With NumPy arrays come and go all others too, so they may be elsewhere."""
        if isinstance(array, np.ndarray):
            if array.dtype != np.float32:
                raise TypeError(
                    f"{type(self).__name__}: {name} has dtype {array.dtype}, expected float32"
                )
            array = np.ascontiguousarray(array)
        tensor = self._tensor(name, array)
        if from_numpy and tensor.device == "cpu" and self.device != "cpu":
            return tensor.to(self.device, self.dtype)
        return tensor

    def _first_state(self, name: str, state: Tensor, batch: int | None, single: bool) -> Tensor:
        """`[num_layers * directions, batch, size]`, of any batch if None."""
        size = self.hidden_size if name == "c0" else self.proj_size or self.hidden_size
        rows = self.num_layers * (2 if self.bidirectional else 1)
        if batch is None:
            batch = state.shape[-2] if state.ndim > 1 else 1
        shape = (rows, size) if single else (rows, batch, size)
        if state.shape != shape:
            raise ValueError(
                f"{type(self).__name__}: {name} has shape {list(state.shape)}, "
                f"expected {list(shape)}"
            )
        return state.reshape((rows, 1, size)) if single else state

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

    cu_seqlens: Any

    def __init__(self, layer: _Recurrent, x: Tensor, lengths: Any, cu_seqlens: Any) -> None:
        self._kept: npt.NDArray[np.bool_] | None = None  # [batch, steps], of padded ones
        self._time_major = not layer.batch_first
        name = type(layer).__name__
        if x.ndim == 2 or (x.ndim == 1 and x.dtype == "int32"):  # rows or ids
            if lengths is not None:
                raise ValueError(f"{name}: lengths are for a padded x of three dimensions")
            if cu_seqlens is None:
                cu_seqlens = Tensor(np.array([0, len(x)], np.int32))
            if isinstance(cu_seqlens, SequenceOffsets):
                self.size = cu_seqlens.batch
            else:
                self.size = max(math.prod(cu_seqlens.shape) - 1, 0)
                if x.device != "cpu" and cu_seqlens.device == "cpu":
                    cu_seqlens = SequenceOffsets(cu_seqlens, x.device)
            self.cu_seqlens = cu_seqlens
            return
        if x.ndim != 3:
            raise ValueError(f"{name}: x has shape {list(x.shape)}, expected 2 or 3 dimensions")
        if cu_seqlens is not None:
            raise ValueError(f"{name}: cu_seqlens are for a packed x of two dimensions")
        self.size, steps = x.shape[1::-1] if self._time_major else x.shape[:2]
        lengths = np.full(self.size, steps) if lengths is None else np.asarray(lengths)
        if lengths.shape != (self.size,) or (lengths.dtype.kind not in "iu" and lengths.size):
            raise ValueError(
                f"{name}: lengths are {lengths.dtype} of shape {list(lengths.shape)}, expected "
                f"integers, one for each of {self.size} sequences"
            )
        if (wrong := (lengths < 0) | (lengths > steps)).any():
            i = int(np.argmax(wrong))
            raise ValueError(f"{name}: lengths[{i}] is {lengths[i]}, expected 0 to {steps} steps")
        cu_seqlens = np.zeros(self.size + 1, np.int32)
        np.cumsum(lengths, out=cu_seqlens[1:])
        self.cu_seqlens = SequenceOffsets(cu_seqlens, x.device)
        self._kept = np.arange(steps) < lengths[:, None]

    def pack(self, x: Tensor) -> Tensor:
        """`[total_tokens, size]`."""
        if self._kept is None:
            return x
        places = np.arange(self._kept.size)  # in x, of each token
        if self._time_major:
            places = places.reshape(self._kept.shape[::-1]).T.ravel()
        rows = places[self._kept.ravel()]
        flat = (self._kept.size, x.shape[2])
        try:
            table = x.reshape(flat)
        except ValueError:  # strides that allow no such view
            table = Tensor.empty(x.shape, x.dtype, x.device).copy_(x).reshape(flat)
        return _gather(table, rows)

    def output(self, size: int, x: Tensor) -> Tensor | None:
        """Where the last layer writes, if `restore` needs it."""
        if self._kept is None:
            return None
        # A row of zeros for the padding follows the tokens.
        self._rows = Tensor.empty((len(x) + 1, size), x.dtype, x.device)
        self._rows[len(x)].copy_(np.zeros(size, np.float32))
        return self._rows[: len(x)]

    def restore(self, out: Tensor) -> Tensor:
        """Packed `[total_tokens, size]` to padded with zeros, if the batch came so."""
        if self._kept is None:
            return out
        index: npt.NDArray[np.int64] = np.full(self._kept.shape, len(out))
        index[self._kept] = np.arange(len(out))
        rows = index.T if self._time_major else index
        return _gather(self._rows, rows.ravel()).reshape((*rows.shape, out.shape[1]))


def _gather(table: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
    """Rows of a table."""
    return ops.embedding([Tensor(rows).to(table.device)], [table])


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    """Along the first dimension."""
    if len(parts) == 1:
        return parts[0]
    rows = len(parts[0])
    shape = (rows * len(parts), *parts[0].shape[1:])
    whole = Tensor.empty(shape, parts[0].dtype, parts[0].device)
    for i, part in enumerate(parts):
        whole[i * rows : (i + 1) * rows].copy_(part)
    return whole


class RNN(_Recurrent):
    """Elman RNN layers (Elman 1990), with the names of torch.nn.RNN.

    Called with x and, if they are not zeros, the first states `hx`; gives (out, h_n).

    x, float32, in one of these forms:
    - padded, `[steps, batch, input_size]`, or `[batch, steps, input_size]` if `batch_first`, with
      `lengths`, integers `[batch]` (absent: all steps); out is padded alike, with zeros;
    - packed, `[total_tokens, input_size]`, with `cu_seqlens`, int32 `[batch + 1]` or
      SequenceOffsets;
    - one sequence, `[steps, input_size]`, whose states have no batch dimension;
    - ids of a `table`'s rows, integers `[total_tokens]`, with `cu_seqlens`. A small table's product
      with the weights is formed once.

    out: x's form with `directions * hidden_size` columns, of two directions the forward half first.
    hx, h_n: `[num_layers * directions, batch, hidden_size]`, the directions of a layer next to each
    other, sequences in x's order. h_n is the state after a sequence's last token, or after its
    first where a direction runs in reverse; a sequence without tokens gives its hx back. On the CPU
    hx may have any number of rows with h0_rows, int32 `[batch]`, those that sequences start from;
    the weights' product with a row from which several start is formed once. NumPy
    arrays in float32 go to the layer's device and give such arrays; anything else must be there, in
    the layer's dtype, and gives Tensors.

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
        h0_rows: Array | None = None,
        lengths: Sequence[int] | npt.NDArray[np.integer] | None = None,
        cu_seqlens: ops.Offsets | None = None,
        table: Parameter | None = None,
    ) -> tuple[SameArray, SameArray]:
        """(out, h_n); see the class."""
        out, h_n = self._along(ops.rnn, x, {"h0": hx}, h0_rows, lengths, cu_seqlens, table)
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
        h0_rows: Array | None = None,
        lengths: Sequence[int] | npt.NDArray[np.integer] | None = None,
        cu_seqlens: ops.Offsets | None = None,
        table: Parameter | None = None,
    ) -> tuple[SameArray, SameArray]:
        """(out, h_n); see RNN."""
        out, h_n = self._along(ops.gru, x, {"h0": hx}, h0_rows, lengths, cu_seqlens, table)
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
        h0_rows: Array | None = None,
        lengths: Sequence[int] | npt.NDArray[np.integer] | None = None,
        cu_seqlens: ops.Offsets | None = None,
        table: Parameter | None = None,
    ) -> tuple[SameArray, tuple[SameArray, SameArray]]:
        """(out, (h_n, c_n)); see the class."""
        if hx is not None and (not isinstance(hx, tuple | list) or len(hx) != 2):
            raise TypeError(f"LSTM: hx is a {type(hx).__name__}, expected a pair (h0, c0)")
        h0, c0 = (None, None) if hx is None else hx
        states = {"h0": h0, "c0": c0}
        out, h_n, c_n = self._along(ops.lstm, x, states, h0_rows, lengths, cu_seqlens, table)
        return out, (h_n, c_n)
