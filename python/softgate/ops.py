"""The kernels as typed functions.

Every function takes NumPy arrays, softgate Tensors or any array with DLPack or
`__cuda_array_interface__`, without copying. When the first argument is a NumPy array the results
are NumPy arrays, otherwise Tensors. Inputs are never cast: a wrong dtype is a TypeError, a wrong
shape or value a ValueError, and both name the argument. The last dimension of every array must be
contiguous; outer strides are free. `out`, where a function takes it, receives the result and is
returned.

Batches of sequences are packed: `[total_tokens, ...]` with `cu_seqlens`, int32 `[batch + 1]`, the
offsets at which sequences start and the last one ends. `SequenceOffsets` may stand for the array:
on a device other than the CPU, `attention` and the recurrent layers fetch an array at each call,
which waits for the device and cannot be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from softgate import _core
from softgate._core import PackedWeight, RecurrentWeight, SequenceOffsets
from softgate._typing import Array, SameArray

Activation = Literal["none", "gelu", "gelu_tanh", "relu", "silu", "tanh"]
Pooling = Literal["mean", "cls", "max", "last"]
RecurrentKind = Literal["rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before"]
Direction = Literal["forward", "reverse", "bidirectional"]
Offsets = SequenceOffsets | Array
RecurrentWeights = RecurrentWeight | tuple[RecurrentWeight, RecurrentWeight]


def pack(weight: Array) -> PackedWeight:
    """Lay out a weight for `linear` on its device, on the CPU for the ISA in use.

    weight: `[out_features, in_features]`, float32, or float16 or bfloat16 on a device other than
    the CPU; `PackedWeight.unpack()` gives it back bit for bit.
    """
    return _core.pack(weight)


def linear(
    x: SameArray,
    weight: PackedWeight,
    bias: Array | None = None,
    *,
    activation: Activation = "none",
    residual: Array | None = None,
    out: Array | None = None,
) -> SameArray:
    """`activation(x @ weight.T + bias) + residual`.

    x: `[..., in_features]`; bias: `[out_features]`; residual and the result:
    `[..., out_features]`; all of the weight's device and dtype. "gelu" is the exact form with erf,
    "gelu_tanh" the approximation of Hendrycks & Gimpel 2016. `out` may be `residual`, never `x`.

    A row's result does not depend on the other rows or on the number of threads.

    Raises ValueError on shapes that do not fit and when `weight` was packed for another ISA or
    device.
    """
    return _core.linear(x, weight, bias, activation, residual, out)


def attention(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Offsets,
    cu_seqlens_k: Offsets | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    mask: Array | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, ...]:
    """Scaled dot-product attention over a packed batch (Vaswani et al. 2017).

    q and the result: float32 `[total_q, num_heads, head_dim]`; k, v:
    `[total_k, num_kv_heads, head_dim]`, with `num_heads` a multiple of `num_kv_heads` and
    `head_dim` at most 256. `cu_seqlens_k` defaults to `cu_seqlens_q`; `scale` to
    `1 / sqrt(head_dim)`.

    Scores are `scale * q @ k.T`, then `softcap * tanh(scores / softcap)` unless softcap is 0, then
    the masks. Masks are aligned to the bottom right: query i of a sequence stands at key position
    `p = i + len_k - len_q`; `causal` keeps keys up to p, `window=(left, right)` those from
    `p - left` to `p + right` (a negative bound is no bound). `mask` is boolean (True attends) or
    float32 (added), `[batch or 1, num_heads or 1, max_q, max_k]`, where max_q and max_k are at
    least the longest lengths. A query that keeps no key gives zeros and a log-sum-exp of -inf.

    Returns the output, followed by the log-sum-exp of the scores, `[num_heads, total_q]`, if
    `return_lse`, and by the weights, `[batch, num_heads, max_q, max_k]` with zeros outside each
    sequence, if `return_weights`.
    """
    return _core.attention(
        q, k, v, cu_seqlens_q, cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k,
        scale, causal, window, mask, softcap, return_lse, return_weights, out,
    )  # fmt: skip


def add_layer_norm(
    x: SameArray,
    residual: Array | None,
    weight: Array,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
    sum_out: Array | None = None,
) -> SameArray:
    """Layer norm (Ba et al. 2016) of `x + residual` over the last dimension.

    x, residual and the result: float32 `[..., hidden]`; weight, bias: `[hidden]`. The variance is
    the biased one. `sum_out`, when given, receives `x + residual`; it and `out` may be `x` or
    `residual`.
    """
    return _core.add_layer_norm(x, residual, weight, bias, eps, out, sum_out)


def add_rms_norm(
    x: SameArray,
    residual: Array | None,
    weight: Array,
    *,
    eps: float = 1e-6,
    out: Array | None = None,
    sum_out: Array | None = None,
) -> SameArray:
    """RMS norm (Zhang & Sennrich 2019) of `x + residual` over the last dimension.

    Shapes and aliasing as in `add_layer_norm`.
    """
    return _core.add_rms_norm(x, residual, weight, eps, out, sum_out)


def embedding(
    ids: Sequence[SameArray],
    tables: Sequence[Array],
    norm_weight: Array | None = None,
    norm_bias: Array | None = None,
    *,
    eps: float = 1e-12,
    out: Array | None = None,
) -> SameArray:
    """Sum over t of `tables[t][ids[t]]`, then a layer norm when `norm_weight` is given.

    ids: one to four arrays, int32 or int64 `[tokens]`; tables: as many, float32
    `[rows, hidden]`; norm_weight, norm_bias: `[hidden]`; the result: `[tokens, hidden]`. It is a
    NumPy array when `ids[0]` is one.

    Raises ValueError for an id outside its table.
    """
    return _core.embedding(list(ids), list(tables), norm_weight, norm_bias, eps, out)


def softmax(x: SameArray, *, out: Array | None = None) -> SameArray:
    """Softmax over the last dimension; a row that is all -inf gives zeros.

    x and the result: float32 `[..., columns]`; `out` may be `x`.
    """
    return _core.softmax(x, out)


def pool(
    x: SameArray, cu_seqlens: Offsets, mode: Pooling = "mean", *, out: Array | None = None
) -> SameArray:
    """One vector per sequence: float32 `[total_tokens, hidden]` to `[batch, hidden]`.

    "mean" and "max" run over a sequence's tokens, "cls" takes the first, "last" the last. A
    sequence without tokens gives zeros.
    """
    return _core.pool(x, cu_seqlens, mode, out)


def normalize(x: SameArray, *, eps: float = 1e-12, out: Array | None = None) -> SameArray:
    """Rows divided by their L2 norm, or by `eps` where that is larger.

    x and the result: float32 `[..., hidden]`; `out` may be `x`.
    """
    return _core.normalize(x, eps, out)


def pack_recurrent(
    kind: RecurrentKind,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    weight_hr: Array | None = None,
    *,
    dtype: Literal["float32", "bfloat16", "int8"] = "float32",
) -> RecurrentWeight:
    """Lay out the weights of one direction of a recurrent layer for the ISA in use, or the device
    that they are on.

    In torch's shapes and gate order: weight_ih: `[gates * hidden_size, input_size]`, float32 or, on
    a device other than the CPU, also float16 or bfloat16, as all others;
    weight_hh: `[gates * hidden_size, output_size]`; bias_ih, bias_hh: `[gates * hidden_size]`;
    weight_hr, for "lstm" only: `[output_size, hidden_size]`. Without weight_hr, `output_size` is
    `hidden_size`. An RNN has one gate, an LSTM four (i, f, g, o), a GRU three (r, z, n): "gru"
    applies its reset gate after the product (torch; Keras' reset_after=True),
    "gru_reset_before" before it (Cho et al. 2014; ONNX's linear_before_reset=0).

    `dtype` is how weight_hh is stored on the CPU; everything else stays float32. On a device
    weights keep theirs, which is also that of x, states and results. "bfloat16" is rounded to
    nearest even and computed with in float32. "int8" has a scale per column, and the state is
    quantised for every row and step, symmetrically, to its largest magnitude; a state with a NaN or
    an infinity gives NaN.

    `RecurrentWeight.unpack()` gives the arrays back.

    Raises ValueError on shapes that do not fit the kind or each other.
    """
    return _core.pack_recurrent(kind, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, dtype)


def _as_list(weights: RecurrentWeights) -> list[RecurrentWeight]:
    return list(weights) if isinstance(weights, tuple | list) else [weights]


def rnn(
    x: SameArray,
    cu_seqlens: Offsets,
    weights: RecurrentWeights,
    h0: Array | None = None,
    *,
    direction: Direction = "forward",
    out: Array | None = None,
) -> tuple[SameArray, SameArray]:
    """An Elman RNN over a packed batch: `(out, h_n)`.

    `h = act(W_ih x + b_ih + W_hh h + b_hh)`, with the act of the weights' kind, "rnn_tanh" or
    "rnn_relu".

    x: float32 `[total_tokens, input_size]`; out: `[total_tokens, directions * output_size]`, of
    two directions the forward half first; h0 and h_n: `[directions, batch, output_size]`. weights:
    one, or for "bidirectional" a pair (forward, reverse) of equal kind, sizes and dtype. A missing
    h0 is zeros. `out` must not overlap the inputs.

    A reverse direction starts at each sequence's last token; its h_n is the state after the first
    one. A sequence without tokens gives its initial state back. NaN propagates, within its own
    sequence. A sequence's result does not depend on the others or on the number of threads.

    Raises ValueError on shapes that do not fit, weights of another kind or number, and when they
    were packed for another ISA.
    """
    result, h_n = _core.recurrent("rnn", x, cu_seqlens, _as_list(weights), h0, None, direction, out)
    return result, h_n


def gru(
    x: SameArray,
    cu_seqlens: Offsets,
    weights: RecurrentWeights,
    h0: Array | None = None,
    *,
    direction: Direction = "forward",
    out: Array | None = None,
) -> tuple[SameArray, SameArray]:
    """A GRU (Cho et al. 2014) over a packed batch: `(out, h_n)`.

    `r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh)`, each with its rows of the weights;
    `n = tanh(W_in x + b_in + r * (W_hn h + b_hn))` for the kind "gru",
    `n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)` for "gru_reset_before";
    `h = (1 - z) * n + z * h`.

    Arguments, results and errors as in `rnn`.
    """
    result, h_n = _core.recurrent("gru", x, cu_seqlens, _as_list(weights), h0, None, direction, out)
    return result, h_n


def lstm(
    x: SameArray,
    cu_seqlens: Offsets,
    weights: RecurrentWeights,
    h0: Array | None = None,
    c0: Array | None = None,
    *,
    direction: Direction = "forward",
    out: Array | None = None,
) -> tuple[SameArray, SameArray, SameArray]:
    """An LSTM (Hochreiter & Schmidhuber 1997) over a packed batch: `(out, h_n, c_n)`.

    `i, f, o = sigmoid(...)` and `g = tanh(...)` of their rows of `W_ih x + b_ih + W_hh h + b_hh`;
    `c = f * c + i * g`; `h = o * tanh(c)`, or `W_hr (o * tanh(c))` with a projection (Sak et al.
    2014).

    c0 and c_n: float32 `[directions, batch, hidden_size]`. Other arguments, results and errors as
    in `rnn`.
    """
    result, h_n, c_n = _core.recurrent(
        "lstm", x, cu_seqlens, _as_list(weights), h0, c0, direction, out
    )
    return result, h_n, c_n


def rnn_cell(x: SameArray, weight: RecurrentWeight, h: Array) -> SameArray:
    """One step of `rnn`, bit for bit: the next h.

    x: float32 `[batch, input_size]`; h and the result: `[batch, output_size]`.
    """
    result: SameArray = _core.recurrent_cell("rnn_cell", x, weight, h, None)
    return result


def gru_cell(x: SameArray, weight: RecurrentWeight, h: Array) -> SameArray:
    """One step of `gru`, bit for bit: the next h. Shapes as in `rnn_cell`."""
    result: SameArray = _core.recurrent_cell("gru_cell", x, weight, h, None)
    return result


def lstm_cell(
    x: SameArray, weight: RecurrentWeight, h: Array, c: Array
) -> tuple[SameArray, SameArray]:
    """One step of `lstm`, bit for bit: the next (h, c).

    x: float32 `[batch, input_size]`; h: `[batch, output_size]`; c: `[batch, hidden_size]`.
    """
    result: tuple[SameArray, SameArray] = _core.recurrent_cell("lstm_cell", x, weight, h, c)
    return result
