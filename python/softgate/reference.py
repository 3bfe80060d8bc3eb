"""What every op means: one float64 NumPy function per op, written to be read.

Names and arguments are those of `softgate.ops`, with three differences: everything is computed and
returned in float64, weights are plain arrays (those of recurrent ops a `RecurrentWeight`), and what
an op writes in place is returned. Nothing here is fast or saves memory, and nothing is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64: TypeAlias = NDArray[np.float64]
Bool: TypeAlias = NDArray[np.bool_]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _float64(array: ArrayLike) -> Float64:
    return np.asarray(array, dtype=np.float64)


def _sigmoid(x: Float64) -> Float64:
    return np.exp(-np.logaddexp(0.0, -x))  # cannot overflow, and exact where it is small


ACTIVATIONS: dict[str, Callable[[Float64], Float64]] = {
    "none": lambda x: x,
    "gelu": lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: np.maximum(x, 0.0),
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
}


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers that stand for `scale * value + minimum`, as `ops.pack_groups` takes them.

    values: `[out_features, in_features]`; scales: `[out_features]`, or `[out_features,
    in_features / 32]` as are minimums.
    """

    values: NDArray[np.int8]
    scales: NDArray[Any]
    minimums: NDArray[Any] | None = None

    @property
    def grouped(self) -> bool:
        """Whether 32 of a row share a scale, or all of it."""
        return self.scales.ndim == 2

    def dequantize(self) -> Float64:
        """`[out_features, in_features]`."""
        rows, columns = self.values.shape
        stretch = 32 if self.grouped else columns
        values = _float64(self.values).reshape(rows, columns // stretch, stretch)
        weight = values * _float64(self.scales).reshape(rows, columns // stretch, 1)
        if self.minimums is not None:
            weight = weight + _float64(self.minimums)[..., None]
        return weight.reshape(rows, columns)


def quantize_weight(weight: ArrayLike, dtype: str) -> QuantizedWeight:
    """What `ops.pack` makes of a weight for "int8" and "int4", in float32 as it does."""
    w = np.asarray(weight, dtype=np.float32)
    if dtype == "int8":
        values, scales = _symmetric(w, w.shape[1])
        return QuantizedWeight(values, scales[:, 0])
    groups = w.reshape(len(w), -1, 32)
    lowest, highest = groups.min(axis=-1), groups.max(axis=-1)
    minimums = lowest.astype(np.float16)
    scales = ((highest - lowest) / np.float32(15)).astype(np.float16)
    s, m = scales.astype(np.float32)[..., None], minimums.astype(np.float32)[..., None]
    steps = np.divide(groups - m, s, out=np.zeros_like(groups), where=s > 0)
    values = np.clip(np.rint(steps), 0, 15).astype(np.int8)
    return QuantizedWeight(values.reshape(w.shape), scales, minimums)


def _symmetric(x: NDArray[np.float32], stretch: int) -> tuple[NDArray[np.int8], Any]:
    """Integers from -127 to 127 and a scale for each `stretch` of a row; NaN where one is not
    finite, zeros where all are at most 1e-36. x: `[rows, columns]`."""
    parts = x.reshape(len(x), x.shape[1] // stretch, stretch)
    finite = np.isfinite(parts).all(axis=-1, keepdims=True)
    parts = np.where(finite, parts, np.float32(0))
    largest = np.abs(parts).max(axis=-1, keepdims=True, initial=0)
    usable = largest > np.float32(1e-36)
    factor = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=usable)
    values = np.rint(parts * factor).astype(np.int8).reshape(x.shape)
    return values, np.where(finite, largest / np.float32(127), np.float32(np.nan))[..., 0]


def _in_steps(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], Any, Any]:
    """Integers, a scale and a shift for each row, `scale * (integer + shift)`: 256 steps from its
    lowest number, or zero, to its highest, or zero. NaN where one is not finite, zeros where a step
    is at most 1e-36. x: `[rows, columns]`."""
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    x = np.where(finite, x, np.float32(0))
    lowest, highest = (of(x, axis=-1, keepdims=True, initial=0) for of in (np.min, np.max))
    scales = highest / np.float32(255) - lowest / np.float32(255)
    usable = scales > np.float32(1e-36)
    factor = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=usable)
    first = np.rint(lowest * factor)
    values = np.minimum(np.rint(x * factor), first + 255) - (first + 128)
    scales = np.where(finite, scales, np.float32(np.nan))
    return values.astype(np.int8), scales[:, 0], first[:, 0] + 128


def quantize_input(x: ArrayLike, *, grouped: bool) -> Float64:
    """What an integer weight sees of x: 256 steps from a row's lowest number to its highest, or
    each group of 32 in multiples of its largest magnitude / 127. Which step is decided in float32,
    as the kernels do."""
    x = np.asarray(x, dtype=np.float32)
    rows = x.reshape(-1, x.shape[-1])
    if grouped:
        return QuantizedWeight(*_symmetric(rows, 32)).dequantize().reshape(x.shape)
    values, scales, shifts = _in_steps(rows)
    seen: Float64 = (_float64(values) + shifts[:, None]) * scales[:, None]
    return seen.reshape(x.shape)


def linear(
    x: ArrayLike,
    weight: ArrayLike | QuantizedWeight,
    bias: ArrayLike | None = None,
    *,
    activation: str = "none",
    residual: ArrayLike | None = None,
    gated: bool = False,
) -> Float64:
    """`activation(x @ weight.T + bias) + residual`, or for `gated` and a weight [gate; up],
    `activation(x @ gate.T + gate_bias) * (x @ up.T + up_bias) + residual`.

    x: `[..., in_features]`; weight: `[out_features, in_features]`; bias: `[out_features]`;
    residual and the result: `[..., out_features]`, half of that where gated.
    """
    if isinstance(weight, QuantizedWeight):
        x, weight = quantize_input(x, grouped=weight.grouped), weight.dequantize()
    y = _float64(x) @ _float64(weight).T  # [..., out_features]
    if bias is not None:
        y = y + _float64(bias)
    if gated:
        gate, up = np.split(y, 2, axis=-1)
        y = _float64(ACTIVATIONS[activation](gate)) * up
    else:
        y = _float64(ACTIVATIONS[activation](y))
    if residual is not None:
        y = y + _float64(residual)
    return y


def gather(
    weight: ArrayLike | QuantizedWeight,
    ids: ArrayLike,
    *,
    scale: float = 1.0,
    residual: ArrayLike | None = None,
) -> Float64:
    """`scale * weight[ids] + residual`. weight: `[rows, n]`; ids: `[tokens]`; residual and the
    result: `[tokens, n]`."""
    if isinstance(weight, QuantizedWeight):
        weight = weight.dequantize()
    y = _float64(scale * _float64(weight)[np.asarray(ids)])
    return y if residual is None else y + _float64(residual)


def visible(
    len_q: int, len_k: int, *, causal: bool = False, window: tuple[int, int] = (-1, -1)
) -> Bool:
    """Which keys each query of one sequence may see by position: `[len_q, len_k]`.

    Queries stand at the end of the keys: query i is at key position `i + len_k - len_q`.
    """
    left, right = window
    position = np.arange(len_q)[:, None] + len_k - len_q  # [len_q, 1]
    key = np.arange(len_k)[None, :]  # [1, len_k]
    keep = np.ones((len_q, len_k), dtype=np.bool_)
    if causal:
        keep &= key <= position
    if left >= 0:
        keep &= key >= position - left
    if right >= 0:
        keep &= key <= position + right
    return keep


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    mask: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
    return_weights: bool = False,
) -> Any:
    """Scaled dot-product attention over a packed batch, one sequence and one head at a time.

    q: `[total_q, num_heads, head_dim]`; k, v: `[total_k, num_kv_heads, head_dim]`; cu_seqlens:
    `[batch + 1]`; mask: boolean (True attends) or additive, `[batch or 1, num_heads or 1, max_q,
    max_k]`; relative_bias: `[num_heads, 2 * reach + 1]`, by the distance from query to key. Returns
    out `[total_q, num_heads, head_dim]`, then lse `[num_heads, total_q]` and
    weights `[batch, num_heads, max_q, max_k]` where asked for.
    """
    q, k, v = _float64(q), _float64(k), _float64(v)
    starts_q = np.asarray(cu_seqlens_q)  # [batch + 1]
    starts_k = starts_q if cu_seqlens_k is None else np.asarray(cu_seqlens_k)
    batch = len(starts_q) - 1
    total_q, num_heads, head_dim = q.shape
    queries_per_kv_head = num_heads // k.shape[1]
    if scale is None:
        scale = 1.0 / math.sqrt(head_dim)
    max_q = int(np.diff(starts_q).max(initial=0))
    max_k = int(np.diff(starts_k).max(initial=0))
    if mask is not None:
        mask = np.asarray(mask)
        max_q, max_k = mask.shape[-2:]
        mask = np.broadcast_to(mask, (batch, num_heads, max_q, max_k))

    out = np.zeros((total_q, num_heads, head_dim))
    lse = np.full((num_heads, total_q), -np.inf)
    weights = np.zeros((batch, num_heads, max_q, max_k))
    for b in range(batch):
        rows_q = slice(starts_q[b], starts_q[b + 1])
        rows_k = slice(starts_k[b], starts_k[b + 1])
        len_q, len_k = rows_q.stop - rows_q.start, rows_k.stop - rows_k.start
        if len_k == 0:
            continue
        keep = visible(len_q, len_k, causal=causal, window=window)
        for h in range(num_heads):
            kv_head = h // queries_per_kv_head
            scores = scale * (q[rows_q, h] @ k[rows_k, kv_head].T)  # [len_q, len_k]
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if relative_bias is not None:
                bias = _float64(relative_bias)[h]  # [2 * reach + 1]
                reach = len(bias) // 2
                positions = np.arange(len_q) + len_k - len_q
                distances = np.arange(len_k) - positions[:, None]  # [len_q, len_k]
                scores = scores + bias[np.clip(distances, -reach, reach) + reach]
            if mask is not None:
                part = mask[b, h, :len_q, :len_k]
                scores = np.where(part, scores, -np.inf) if part.dtype == bool else scores + part
            scores = np.where(keep, scores, -np.inf)

            p = softmax(scores)  # [len_q, len_k]
            out[rows_q, h] = p @ v[rows_k, kv_head]
            lse[h, rows_q] = log_sum_exp(scores)
            weights[b, h, :len_q, :len_k] = p

    extras = [result for result, wanted in ((lse, return_lse), (weights, return_weights)) if wanted]
    return (out, *extras) if extras else out


def cached_attention(
    q: ArrayLike,
    k_cache: ArrayLike,
    v_cache: ArrayLike,
    cu_seqlens_q: ArrayLike,
    lengths_k: ArrayLike,
    *,
    cache_rows: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    scale: float | None = None,
    window: tuple[int, int] = (-1, -1),
    causal: bool = True,
    softcap: float = 0.0,
) -> Float64:
    """`attention` to the first `lengths_k[b]` keys of row `cache_rows[b]` of a cache.

    q and the result: `[total_q, num_heads, head_dim]`; k_cache, v_cache:
    `[rows, capacity, num_kv_heads, head_dim]`; lengths_k, cache_rows: `[batch]`.
    """
    lengths = np.asarray(lengths_k)
    rows = np.arange(len(lengths)) if cache_rows is None else np.asarray(cache_rows)
    k, v = (
        np.concatenate(
            [cache[:0, 0], *(cache[row, :n] for row, n in zip(rows, lengths, strict=True))]
        )
        for cache in (_float64(k_cache), _float64(v_cache))
    )
    cu_seqlens_k = np.cumsum([0, *lengths])
    out: Float64 = attention(
        q, k, v, cu_seqlens_q, cu_seqlens_k,
        scale=scale, causal=causal, window=window, relative_bias=relative_bias, softcap=softcap,
    )  # fmt: skip
    return out


def _finite_peak(x: Float64) -> Float64:
    """The largest entry of each row, or 0 where all are -inf, so that `x - peak` is never NaN."""
    peak = x.max(axis=-1, keepdims=True, initial=-np.inf)
    return np.where(peak == -np.inf, 0.0, peak)


def softmax(x: ArrayLike) -> Float64:
    """Softmax over the last dimension; a row that is all -inf gives zeros. x: `[..., n]`."""
    x = _float64(x)
    e = np.exp(x - _finite_peak(x))
    total = e.sum(axis=-1, keepdims=True)
    return _float64(e / np.where(total == 0.0, 1.0, total))


def source_attention(
    query: ArrayLike,
    keys: ArrayLike,
    values: ArrayLike,
    cu_seqlens: ArrayLike,
    sources: ArrayLike,
    v: ArrayLike | None = None,
) -> tuple[Float64, Float64]:
    """Additive attention with v, else by dot products; shapes as in `softgate.ops`."""
    k, values, starts = _float64(keys), _float64(values), np.asarray(cu_seqlens)
    out, weights = [np.empty((0, values.shape[1]))], [np.empty(0)]
    for q, source in zip(_float64(query), np.asarray(sources), strict=True):
        tokens = slice(starts[source], starts[source + 1])
        scores = k[tokens] @ q if v is None else np.tanh(q + k[tokens]) @ _float64(v)
        weights.append(softmax(scores))
        out.append(weights[-1][None] @ values[tokens])
    return _float64(np.concatenate(out)), _float64(np.concatenate(weights))


def log_sum_exp(x: Float64) -> Float64:
    """`log(sum(exp(x)))` over the last dimension; -inf for a row that is all -inf."""
    peak = _finite_peak(x)
    total = np.exp(x - peak).sum(axis=-1)
    log_total = np.log(total, out=np.full_like(total, -np.inf), where=total != 0.0)
    return _float64(peak[..., 0] + log_total)


def add_layer_norm(
    x: ArrayLike,
    residual: ArrayLike | None,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
) -> Float64:
    """Layer norm of `x + residual` over the last dimension, with the biased variance.

    x, residual and the result: `[..., hidden]`; weight, bias: `[hidden]`.
    """
    s = _float64(x)
    if residual is not None:
        s = s + _float64(residual)
    centered = s - s.mean(axis=-1, keepdims=True)
    variance = (centered**2).mean(axis=-1, keepdims=True)  # [..., 1]
    y = centered / np.sqrt(variance + eps) * _float64(weight)
    if bias is not None:
        y = y + _float64(bias)
    return _float64(y)


def add_rms_norm(
    x: ArrayLike, residual: ArrayLike | None, weight: ArrayLike, *, eps: float = 1e-6
) -> Float64:
    """RMS norm of `x + residual` over the last dimension. Shapes as in `add_layer_norm`."""
    s = _float64(x)
    if residual is not None:
        s = s + _float64(residual)
    mean_square = (s**2).mean(axis=-1, keepdims=True)  # [..., 1]
    return _float64(s / np.sqrt(mean_square + eps) * _float64(weight))


def embedding(
    ids: Sequence[ArrayLike],
    tables: Sequence[ArrayLike],
    norm_weight: ArrayLike | None = None,
    norm_bias: ArrayLike | None = None,
    *,
    eps: float = 1e-12,
) -> Float64:
    """Sum over t of `tables[t][ids[t]]`, then a layer norm when `norm_weight` is given.

    ids[t]: `[tokens]`; tables[t]: `[rows, hidden]`; the result: `[tokens, hidden]`.
    """
    total = _float64(tables[0])[np.asarray(ids[0])]
    for table_ids, table in zip(ids[1:], tables[1:], strict=True):
        total = total + _float64(table)[np.asarray(table_ids)]
    if norm_weight is None:
        return _float64(total)
    return add_layer_norm(total, None, norm_weight, norm_bias, eps=eps)


def penalize(logits: ArrayLike, ids: ArrayLike, cu_ids: ArrayLike, penalty: float) -> Float64:
    """Logits of the ids that row b has seen, `ids[cu_ids[b]:cu_ids[b + 1]]`, made less likely.

    logits and the result: `[batch, vocab]`.
    """
    x, seen, starts = _float64(logits).copy(), np.asarray(ids), np.asarray(cu_ids)
    for b in range(len(x)):
        once = np.unique(seen[starts[b] : starts[b + 1]])
        x[b, once] = np.where(x[b, once] < 0.0, x[b, once] * penalty, x[b, once] / penalty)
    return x


def pool(x: ArrayLike, cu_seqlens: ArrayLike, mode: str = "mean") -> Float64:
    """One vector per sequence, zeros for an empty one.

    x: `[total_tokens, hidden]`; cu_seqlens: `[batch + 1]`; the result: `[batch, hidden]`.
    """
    x, starts = _float64(x), np.asarray(cu_seqlens)
    out = np.zeros((len(starts) - 1, x.shape[1]))
    for b in range(len(starts) - 1):
        tokens = x[starts[b] : starts[b + 1]]  # [length, hidden]
        if len(tokens) == 0:
            continue
        if mode == "mean":
            out[b] = tokens.mean(axis=0)
        elif mode == "max":
            out[b] = tokens.max(axis=0)
        elif mode == "cls":
            out[b] = tokens[0]
        else:
            out[b] = tokens[-1]
    return out


def normalize(x: ArrayLike, *, eps: float = 1e-12) -> Float64:
    """Rows divided by their L2 norm, or by `eps` where that is larger. x: `[..., hidden]`."""
    x = _float64(x)
    norm = np.sqrt((x**2).sum(axis=-1, keepdims=True))  # [..., 1]
    return _float64(x / np.maximum(norm, eps))


@dataclass(frozen=True)
class RecurrentWeight:
    """The weights of one direction of a recurrent layer, as `ops.pack_recurrent` takes them.

    kind: "rnn_tanh", "rnn_relu", "lstm", "gru" or "gru_reset_before". weight_ih:
    `[gates * hidden, input_size]`; weight_hh: `[gates * hidden, output_size]`; biases:
    `[gates * hidden]`; weight_hr: `[output_size, hidden]` (lstm only; without it output_size is
    hidden). Gates come in torch's order: lstm i f g o, gru r z n.
    """

    kind: str
    weight_ih: ArrayLike
    weight_hh: ArrayLike
    bias_ih: ArrayLike | None = None
    bias_hh: ArrayLike | None = None
    weight_hr: ArrayLike | None = None

    def of_input(self, x: ArrayLike) -> Float64:
        """`[..., input_size]` to `[..., gates * hidden]`."""
        return linear(x, self.weight_ih, self.bias_ih)

    def of_state(self, h: ArrayLike) -> Float64:
        """`[..., output_size]` to `[..., gates * hidden]`."""
        return linear(h, self.weight_hh, self.bias_hh)


def rnn_cell(x: ArrayLike, weight: RecurrentWeight, h: ArrayLike) -> Float64:
    """One step (Elman 1990). x: `[..., input_size]`; h and the result: `[..., hidden]`."""
    total = weight.of_input(x) + weight.of_state(h)
    return _float64(np.tanh(total) if weight.kind == "rnn_tanh" else np.maximum(total, 0.0))


def lstm_cell(
    x: ArrayLike, weight: RecurrentWeight, h: ArrayLike, c: ArrayLike
) -> tuple[Float64, Float64]:
    """One step (Hochreiter & Schmidhuber 1997, projection of Sak et al. 2014).

    x: `[..., input_size]`; h and the first result: `[..., output_size]`; c and the second:
    `[..., hidden]`.
    """
    i, f, g, o = np.split(weight.of_input(x) + weight.of_state(h), 4, axis=-1)
    c = _sigmoid(f) * _float64(c) + _sigmoid(i) * np.tanh(g)
    h = _sigmoid(o) * np.tanh(c)
    return (h if weight.weight_hr is None else linear(h, weight.weight_hr)), c


def gru_cell(x: ArrayLike, weight: RecurrentWeight, h: ArrayLike) -> Float64:
    """One step (Cho et al. 2014). x: `[..., input_size]`; h and the result: `[..., hidden]`.

    The reset gate r acts on the state before its product in "gru_reset_before", as published, and
    after it in "gru", as in cuDNN.
    """
    h = _float64(h)
    r_x, z_x, n_x = np.split(weight.of_input(x), 3, axis=-1)
    r_h, z_h, n_h = np.split(weight.of_state(h), 3, axis=-1)
    r = _sigmoid(r_x + r_h)
    z = _sigmoid(z_x + z_h)
    if weight.kind == "gru":
        n = np.tanh(n_x + r * n_h)
    else:
        n = np.tanh(n_x + np.split(weight.of_state(r * h), 3, axis=-1)[2])
    return _float64((1.0 - z) * n + z * h)


def rnn(
    x: ArrayLike,
    cu_seqlens: ArrayLike,
    weights: RecurrentWeight | Sequence[RecurrentWeight],
    h0: ArrayLike | None = None,
    *,
    h0_rows: ArrayLike | None = None,
    direction: str = "forward",
) -> tuple[Float64, Float64]:
    """`rnn_cell` along every sequence of a packed batch.

    x: `[total_tokens, input_size]`; cu_seqlens: `[batch + 1]`; weights: one, or a pair (forward,
    reverse) when `direction` is "bidirectional". Returns out,
    `[total_tokens, directions * output_size]`, and the last states, `[directions, batch,
    output_size]`, shaped as the first ones h0 (zeros unless given). "reverse" runs from each
    sequence's last token to its first. h0_rows: `[batch]`, the rows of h0 (and of c0, in `lstm`)
    that sequences start from, by default one after another.
    """
    out, (h_n,) = _along_sequences(rnn_cell, x, cu_seqlens, weights, [h0], h0_rows, direction)
    return out, h_n


def gru(
    x: ArrayLike,
    cu_seqlens: ArrayLike,
    weights: RecurrentWeight | Sequence[RecurrentWeight],
    h0: ArrayLike | None = None,
    *,
    h0_rows: ArrayLike | None = None,
    direction: str = "forward",
) -> tuple[Float64, Float64]:
    """`gru_cell` along every sequence of a packed batch; shapes as in `rnn`."""
    out, (h_n,) = _along_sequences(gru_cell, x, cu_seqlens, weights, [h0], h0_rows, direction)
    return out, h_n


def lstm(
    x: ArrayLike,
    cu_seqlens: ArrayLike,
    weights: RecurrentWeight | Sequence[RecurrentWeight],
    h0: ArrayLike | None = None,
    c0: ArrayLike | None = None,
    *,
    h0_rows: ArrayLike | None = None,
    direction: str = "forward",
) -> tuple[Float64, Float64, Float64]:
    """`lstm_cell` along every sequence of a packed batch; shapes as in `rnn`.

    c0 and the third result, the last cell states: `[directions, batch, hidden]`.
    """
    out, (h_n, c_n) = _along_sequences(
        lstm_cell, x, cu_seqlens, weights, [h0, c0], h0_rows, direction
    )
    return out, h_n, c_n


def _along_sequences(
    cell: Callable[..., Any],
    x: ArrayLike,
    cu_seqlens: ArrayLike,
    weights: RecurrentWeight | Sequence[RecurrentWeight],
    first: Sequence[ArrayLike | None],
    h0_rows: ArrayLike | None,
    direction: str,
) -> tuple[Float64, list[Float64]]:
    """Outputs and last states, one direction, one sequence and one token at a time."""
    x, starts = _float64(x), np.asarray(cu_seqlens)
    if isinstance(weights, RecurrentWeight):
        weights = [weights]
    strides = {"forward": [1], "reverse": [-1], "bidirectional": [1, -1]}[direction]
    batch, output_size = len(starts) - 1, np.shape(weights[0].weight_hh)[1]
    sizes = [output_size, _hidden_size(weights[0])]  # of h and c
    rows = np.arange(batch) if h0_rows is None else np.asarray(h0_rows)
    states = [
        np.zeros((len(strides), batch, size)) if state is None else _float64(state)[:, rows]
        for state, size in zip(first, sizes, strict=False)
    ]
    out = np.zeros((len(x), len(strides), output_size))
    for d, stride in enumerate(strides):
        for b in range(batch):
            state = [s[d, b] for s in states]
            for token in range(starts[b], starts[b + 1])[::stride]:
                result = cell(x[token], weights[d], *state)
                state = [result] if len(states) == 1 else list(result)
                out[token, d] = state[0]
            for s, last in zip(states, state, strict=True):
                s[d, b] = last
    return out.reshape(len(x), len(strides) * output_size), states


def _hidden_size(weight: RecurrentWeight) -> int:
    return int(np.shape(weight.weight_hh if weight.weight_hr is None else weight.weight_hr)[1])


def rotary(
    qkv: ArrayLike,
    cu_seqlens: ArrayLike,
    starts: ArrayLike,
    k_cache: ArrayLike,
    v_cache: ArrayLike,
    *,
    num_heads: int,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    q_norm: ArrayLike | None = None,
    k_norm: ArrayLike | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
    cache_rows: ArrayLike | None = None,
) -> tuple[Float64, Float64, Float64]:
    """Split into heads, norm and rotate q and k, append k and v: (q, k_cache, v_cache).

    qkv: `[total, (num_heads + 2 * num_kv_heads) * head_dim]`; k_cache, v_cache:
    `[rows, capacity, num_kv_heads, head_dim]`; starts, cache_rows: `[batch]`; cos, sin:
    `[max_positions, rotary_dim / 2]`; q_norm, k_norm: `[head_dim]`; q:
    `[total, num_heads, head_dim]`.
    """
    k_cache, v_cache = _float64(k_cache).copy(), _float64(v_cache).copy()
    num_kv_heads, head_dim = k_cache.shape[2:]
    offsets, first = np.asarray(cu_seqlens), np.asarray(starts)
    heads = _float64(qkv).reshape(-1, num_heads + 2 * num_kv_heads, head_dim)
    q, k, v = np.split(heads, [num_heads, num_heads + num_kv_heads], axis=1)
    if q_norm is not None:
        q = add_rms_norm(q, None, q_norm, eps=eps)
    if k_norm is not None:
        k = add_rms_norm(k, None, k_norm, eps=eps)
    sequence = np.repeat(np.arange(len(first)), np.diff(offsets))  # [total]
    positions = np.arange(len(heads)) - offsets[sequence] + first[sequence]  # [total]
    if cos is not None and sin is not None:
        angles = _float64(cos)[positions, None], _float64(sin)[positions, None]
        q, k = rotate(q, *angles, interleaved), rotate(k, *angles, interleaved)
    rows = sequence if cache_rows is None else np.asarray(cache_rows)[sequence]
    k_cache[rows, positions] = k
    v_cache[rows, positions] = v
    return q, k_cache, v_cache


def rotate(x: Float64, cos: Float64, sin: Float64, interleaved: bool) -> Float64:
    """Pairs of the first elements turned by an angle (Su et al. 2021): `(a, b)` becomes
    `(a cos - b sin, b cos + a sin)`.

    x: `[..., head_dim]`; cos, sin: `[..., rotary_dim / 2]`. A pair is elements (2i, 2i + 1) if
    `interleaved`, else (i, i + rotary_dim / 2).
    """
    half = cos.shape[-1]
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if interleaved
        else (slice(0, half), slice(half, 2 * half))
    )
    turned = x.copy()
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., second] * cos + x[..., first] * sin
    return turned


def kept(
    logits: ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Bool:
    """Which tokens `sample` may draw: `[batch, vocab]`.

    First the `top_k` largest logits (0: all); of these the fewest of the most probable that
    together reach `top_p` (Holtzman et al. 2020), their probabilities renormalised; of these the
    ones at least `min_p` times as probable as the most probable one (Nguyen et al. 2024). Tokens
    equal to the last one kept are kept too.
    """
    x = _float64(logits)
    keep = np.ones(x.shape, dtype=np.bool_)
    if top_k:
        keep &= x >= np.sort(x, axis=-1)[:, -min(top_k, x.shape[1]), None]
    p = softmax(np.where(keep, x / temperature, -np.inf))  # [batch, vocab]
    for b in range(len(x)):
        order = np.argsort(-x[b])
        before = np.cumsum([0.0, *p[b, order]])
        above = before[np.searchsorted(-x[b, order], -x[b])]  # of the tokens with a larger logit
        keep[b] &= (above < top_p) | (top_p == 1.0)
    keep &= p >= min_p * p.max(axis=-1, keepdims=True, initial=0.0)
    return keep


def sample(
    logits: ArrayLike,
    random: ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> NDArray[np.int32]:
    """The first id at which the kept tokens' summed probability exceeds `random`: `[batch]`.

    logits: `[batch, vocab]`; random: `[batch]`, in [0, 1). Temperature 0 takes the largest logit,
    the lowest id of equals.
    """
    x = _float64(logits)
    if temperature == 0.0:
        largest: NDArray[np.int32] = x.argmax(axis=-1).astype(np.int32)
        return largest
    keep = kept(x, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    cumulative = softmax(np.where(keep, x / temperature, -np.inf)).cumsum(axis=-1)
    beyond = cumulative > _float64(random)[:, None] * cumulative[:, -1:]
    first: NDArray[np.int32] = beyond.argmax(axis=-1).astype(np.int32)
    return first


def softcap(logits: ArrayLike, cap: float) -> Float64:
    """Logits squeezed into (-cap, cap). logits and the result: `[rows, vocab]`."""
    return _float64(cap * np.tanh(_float64(logits) / cap))


def token_logprobs(logits: ArrayLike, ids: ArrayLike) -> Float64:
    """The logarithm of each row's softmax at its id: `[rows]`. logits: `[rows, vocab]`."""
    x = _float64(logits)
    return _float64(x[np.arange(len(x)), np.asarray(ids)] - log_sum_exp(x))


def top_continuations(
    logits: ArrayLike, scores: ArrayLike, count: int, banned: ArrayLike, cu_banned: ArrayLike
) -> tuple[Float64, Any, Any]:
    """Of each prompt, the `count` largest sums of a text's score and the logarithm of the softmax
    of what follows it, without what is banned; their rows of logits, and their ids.

    logits: `[prompts * beams, vocab]`; scores: `[prompts, beams]`; cu_banned:
    `[prompts * beams + 1]`; results: `[prompts, count]`, the largest first, filled up with -inf.
    """
    x, starts = _float64(logits), np.asarray(cu_banned)
    prompts, beams = np.shape(scores)
    sums = _float64(scores).reshape(-1, 1) + (x - log_sum_exp(x)[:, None])
    for row in range(len(x)):
        sums[row, np.asarray(banned)[starts[row] : starts[row + 1]]] = -np.inf
    sums = sums.reshape(prompts, beams * x.shape[1])
    sums = np.pad(sums, ((0, 0), (0, count)), constant_values=-np.inf)
    places = np.argsort(-sums, axis=1, kind="stable")[:, :count]
    found = np.take_along_axis(sums, places, axis=1)
    places = np.where(found == -np.inf, 0, places)
    first = beams * np.arange(prompts)[:, None]
    vocab = x.shape[1]
    return _float64(found), first + places // vocab, places % vocab
