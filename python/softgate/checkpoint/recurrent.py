"""Weights of recurrent layers in the layouts of torch, Keras and ONNX.

softgate's is torch's: a dict with the names of `ops.pack_recurrent`, one for each direction.
`hidden` and `input` are the sizes, `gates` 1 for an RNN, 4 for an LSTM, 3 for a GRU.

           gates of LSTM, GRU    weights and biases
    torch  i f g o    r z n      weight_ih [gates * hidden, input], weight_hh [gates * hidden,
                                 hidden], bias_ih, bias_hh [gates * hidden]
    Keras  i f c o    z r h      kernel [input, gates * hidden], recurrent_kernel [hidden,
                                 gates * hidden], bias [gates * hidden], or [2, gates * hidden]
                                 for a GRU with reset_after=True
    ONNX   i o f c    z r h      W [directions, gates * hidden, input], R [directions,
                                 gates * hidden, hidden], B [directions, 2 * gates * hidden]

The kind "gru" is Keras' reset_after=True and ONNX's linear_before_reset=1, "gru_reset_before" is
reset_after=False and linear_before_reset=0. Peepholes and projections have no counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from softgate.ops import RecurrentKind

FloatArray = npt.NDArray[np.float32]
Weights = dict[str, FloatArray]

# Where each of torch's gates is among the others' gates.
_KERAS = {"rnn": (0,), "lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}
_ONNX = {"rnn": (0,), "lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}


def torch_names(
    weights: Mapping[str, FloatArray], layer: int = 0, reverse: bool = False
) -> Weights:
    """Entries of a `state_dict` of `nn.RNN`, `nn.LSTM` or `nn.GRU`: `weight_ih_l0` and so on."""
    suffix = f"_l{layer}_reverse" if reverse else f"_l{layer}"
    return {name + suffix: array for name, array in weights.items()}


def from_keras(
    kind: RecurrentKind,
    kernel: npt.ArrayLike,
    recurrent_kernel: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
) -> Weights:
    """What a Keras layer's `get_weights` lists, in float32.

    A bias that Keras keeps as one becomes `bias_ih`, with zeros for `bias_hh`. Raises ValueError
    for shapes that do not fit the kind.
    """
    order = _KERAS[_family(kind)]
    kernel, recurrent_kernel = _float32(kernel), _float32(recurrent_kernel)
    hidden = recurrent_kernel.shape[0]
    rows = len(order) * hidden
    _check("from_keras", "recurrent_kernel", recurrent_kernel, (hidden, rows))
    _check("from_keras", "kernel", kernel, (*kernel.shape[:1], rows))
    weights = {
        "weight_ih": _pick(kernel.T, order),
        "weight_hh": _pick(recurrent_kernel.T, order),
    }
    if bias is not None:
        bias = _float32(bias)
        _check("from_keras", "bias", bias, (2, rows) if kind == "gru" else (rows,))
        of_input, of_state = bias if kind == "gru" else (bias, np.zeros_like(bias))
        weights |= {"bias_ih": _pick(of_input, order), "bias_hh": _pick(of_state, order)}
    return weights


def to_keras(kind: RecurrentKind, weights: Mapping[str, FloatArray]) -> list[FloatArray]:
    """kernel, recurrent_kernel and, if there are biases, bias, for a Keras layer's `set_weights`.

    Where Keras keeps one bias it is the sum of both. Raises ValueError for a projection.
    """
    _refuse_projection("to_keras", weights)
    back = _inverse(_KERAS[_family(kind)])
    arrays = [_pick(weights[name], back).T for name in ("weight_ih", "weight_hh")]
    if biases := _biases(weights):
        biases = [_pick(bias, back) for bias in biases]
        arrays.append(np.stack(biases) if kind == "gru" else biases[0] + biases[1])
    return [np.ascontiguousarray(array) for array in arrays]


def from_onnx(
    kind: RecurrentKind, w: npt.ArrayLike, r: npt.ArrayLike, b: npt.ArrayLike | None = None
) -> list[Weights]:
    """The inputs W, R and B of an ONNX node, in float32: one dict for each direction.

    Raises ValueError for shapes that do not fit the kind.
    """
    order = _ONNX[_family(kind)]
    w, r = _float32(w), _float32(r)
    directions, hidden = r.shape[0], r.shape[-1]
    rows = len(order) * hidden
    _check("from_onnx", "r", r, (directions, rows, hidden))
    _check("from_onnx", "w", w, (directions, rows, *w.shape[2:3]))
    all_weights = [
        {"weight_ih": _pick(w[d], order), "weight_hh": _pick(r[d], order)}
        for d in range(directions)
    ]
    if b is not None:
        b = _float32(b)
        _check("from_onnx", "b", b, (directions, 2 * rows))
        for weights, biases in zip(all_weights, b, strict=True):
            weights["bias_ih"] = _pick(biases[:rows], order)
            weights["bias_hh"] = _pick(biases[rows:], order)
    return all_weights


def to_onnx(
    kind: RecurrentKind, directions: Sequence[Mapping[str, FloatArray]]
) -> list[FloatArray]:
    """The inputs W, R and, if there are biases, B of an ONNX node.

    Raises ValueError for a projection.
    """
    back = _inverse(_ONNX[_family(kind)])
    for weights in directions:
        _refuse_projection("to_onnx", weights)

    arrays = [
        np.stack([_pick(weights[name], back) for weights in directions])
        for name in ("weight_ih", "weight_hh")
    ]
    if biases := [_biases(weights) for weights in directions if _biases(weights)]:
        arrays.append(np.stack([np.concatenate([_pick(b, back) for b in pair]) for pair in biases]))
    return arrays


def _biases(weights: Mapping[str, FloatArray]) -> list[FloatArray]:
    """None of both, or both, with zeros for one that is absent."""
    given = [weights.get(name) for name in ("bias_ih", "bias_hh")]
    rows = weights["weight_hh"].shape[0]
    if all(bias is None for bias in given):
        return []
    return [np.zeros(rows, np.float32) if bias is None else bias for bias in given]


def _family(kind: RecurrentKind) -> str:
    return kind.split("_")[0]


def _float32(array: npt.ArrayLike) -> FloatArray:
    return np.asarray(array, dtype=np.float32)


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(gate) for gate in range(len(order))]


def _pick(array: FloatArray, order: Sequence[int]) -> FloatArray:
    """The gates along the first dimension, in another order."""
    gates = np.split(array, len(order))
    return np.ascontiguousarray(np.concatenate([gates[gate] for gate in order]))


def _check(function: str, name: str, array: FloatArray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(
            f"{function}: {name} has shape {list(array.shape)}, expected {list(shape)}"
        )


def _refuse_projection(function: str, weights: Mapping[str, Any]) -> None:
    if "weight_hr" in weights:
        raise ValueError(f"{function}: weights hold weight_hr, a projection, which it cannot say")
