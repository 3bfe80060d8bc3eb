"""The kernels as typed functions.

Every function takes NumPy arrays, softgate Tensors or any DLPack array, without copying. When the
first argument is a NumPy array the results are NumPy arrays, otherwise Tensors. Inputs are never
cast: a wrong dtype is a TypeError, a wrong shape or value a ValueError, and both name the argument.
The last dimension of every array must be contiguous; outer strides are free. `out`, where a
function takes it, receives the result and is returned.

Batches of sequences are packed: `[total_tokens, ...]` with `cu_seqlens`, int32 `[batch + 1]`, the
offsets at which sequences start and the last one ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from softgate import _core
from softgate._core import PackedWeight
from softgate._typing import Array, SameArray

Activation = Literal["none", "gelu", "gelu_tanh", "relu", "silu"]
Pooling = Literal["mean", "cls", "max", "last"]


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
    cu_seqlens_q: Array,
    cu_seqlens_k: Array | None = None,
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
    x: SameArray, cu_seqlens: Array, mode: Pooling = "mean", *, out: Array | None = None
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
