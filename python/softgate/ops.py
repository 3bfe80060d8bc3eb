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
WeightType = Literal["float32", "bfloat16", "float16", "int8", "int4"]
Pooling = Literal["mean", "cls", "max", "last"]
RecurrentKind = Literal["rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before"]
Direction = Literal["forward", "reverse", "bidirectional"]
Offsets = SequenceOffsets | Array
RecurrentWeights = RecurrentWeight | tuple[RecurrentWeight, RecurrentWeight]


def pack(weight: Array, *, dtype: WeightType | None = None, gated: bool = False) -> PackedWeight:
    """Lay out a weight for `linear` and `gather` on its device, on the CPU for the ISA in use.

    weight: `[out_features, in_features]`, float32, float16 or bfloat16. `dtype`, by default the
    weight's own, says how it is stored, on a device other than the CPU as that or as integers:

    - "float32";
    - "bfloat16", "float16": rounded to nearest even, widened when read, computed with in float32;
    - "int8": a scale for each row, symmetric to its largest magnitude. `linear` quantises each row
      of x in 256 steps from its lowest number to its highest;
    - "int4": 0 to 15, with a float16 scale and minimum for each group of 32 along in_features,
      which must be a multiple of 32. `linear` quantises x to 8 bits, symmetrically, per group.

    `gated`: the rows are [gate; up], half of them each; see `linear`.

    Raises ValueError for an unknown dtype, for one that is not the weight's on a device, for an odd
    number of rows where gated, and where integers cannot hold the weight: NaN, infinity, numbers
    beyond float16 in "int4", more than 2**16 columns.
    """
    return _core.pack(weight, dtype, gated)


def pack_groups(
    values: Array,
    scales: Array,
    minimums: Array | None = None,
    *,
    bits: Literal[4, 8],
    gated: bool = False,
) -> PackedWeight:
    """Lay out a weight that is quantised already: `scale * value + minimum`.

    values: int8 `[out_features, in_features]`, from 0 to 15 where bits is 4. scales, minimums:
    float32 or float16 `[out_features, in_features / 32]`, kept as float16 (rounded to nearest even
    if need be); where bits is 8, scales may also be float32 `[out_features]`, one for each row, and
    minimums None. All on the device that the weight is for. `PackedWeight.quantized()` gives all of
    them back, exactly as stored.

    Raises ValueError for values and scales out of range, an in_features that is not a multiple of
    32 where there are groups, and shapes that do not fit each other.
    """
    return _core.pack_groups(values, scales, minimums, bits, gated)


def linear(
    x: SameArray,
    weight: PackedWeight,
    bias: Array | None = None,
    *,
    activation: Activation = "none",
    residual: Array | None = None,
    out: Array | None = None,
) -> SameArray:
    """`activation(x @ weight.T + bias) + residual`, or for a gated weight
    `activation(x @ gate.T + gate_bias) * (x @ up.T + up_bias) + residual`.

    x: `[..., in_features]`; bias: `[out_features]`; residual and the result:
    `[..., out_features]`, half of that for a gated weight; all on the weight's device, on the CPU
    float32, elsewhere of the weight's dtype, or with an integer weight of any. "gelu" is the exact
    form with erf, "gelu_tanh" the approximation of Hendrycks & Gimpel 2016. `out` may be
    `residual`, never `x`.

    With an integer weight x is rounded to 8 bits: where the weight has a scale per row to 256 steps
    from a row's lowest number to its highest, where per group of 32 to multiples of a group's
    largest magnitude / 127. The integers' products are summed exactly (`csrc/ops/linear.h` has the
    formula). A NaN or an infinity in x makes its whole row NaN.

    A row's result does not depend on the other rows or on the number of threads, except that with
    ISA "amx" and floating-point weights fewer than 16 rows are rounded otherwise than more.

    Raises ValueError on shapes that do not fit and when `weight` was packed for another ISA or
    device.
    """
    return _core.linear(x, weight, bias, activation, residual, out)


def gather(
    weight: PackedWeight,
    ids: SameArray,
    *,
    scale: float = 1.0,
    residual: Array | None = None,
    out: Array | None = None,
) -> SameArray:
    """`scale * weight[ids] + residual`: rows of a packed weight, such as tied embeddings.

    ids: int32 or int64 `[tokens]`; residual and the result: float32 `[tokens, in_features]`, on a
    device other than the CPU of the weight's dtype, or with an integer weight of any, float32 where
    neither `residual` nor `out` says it. Rows come as `PackedWeight.unpack()` gives them. `out` may
    be `residual`. The result is a NumPy array when `ids` is one.

    An id outside the weight gives NaN on a device other than the CPU, whose ids nobody waits for.

    Raises ValueError for an id outside the weight on the CPU and when `weight` was packed for
    another ISA or device.
    """
    return _core.gather(weight, ids, scale, residual, out)


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
    relative_bias: Array | None = None,
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
    the relative bias is added, then come the masks. They are aligned to the bottom right: query i
    of a sequence stands at key position `p = i + len_k - len_q`. `relative_bias`, float32
    `[num_heads, 2 * reach + 1]`, is for key j `relative_bias[head, clip(j - p, -reach, reach) +
    reach]` (Raffel et al. 2020). `causal` keeps keys up to p, `window=(left, right)` those from
    `p - left` to `p + right` (a negative bound is no bound). `mask` is boolean (True attends) or
    float32 (added), `[batch or 1, num_heads or 1, max_q, max_k]`, where max_q and max_k are at
    least the longest lengths. A query that keeps no key gives zeros and a log-sum-exp of -inf.

    Returns the output, followed by the log-sum-exp of the scores, `[num_heads, total_q]`, if
    `return_lse`, and by the weights, `[batch, num_heads, max_q, max_k]` with zeros outside each
    sequence, if `return_weights`.
    """
    return _core.attention(
        q, k, v, cu_seqlens_q, cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k,
        scale, causal, window, mask, relative_bias, softcap, return_lse, return_weights, out,
    )  # fmt: skip


def cached_attention(
    q: SameArray,
    k_cache: Array,
    v_cache: Array,
    cu_seqlens_q: Offsets,
    lengths_k: Array,
    *,
    cache_rows: Array | None = None,
    relative_bias: Array | None = None,
    scale: float | None = None,
    window: tuple[int, int] = (-1, -1),
    causal: bool = True,
    softcap: float = 0.0,
    out: Array | None = None,
) -> SameArray:
    """`attention` of a packed batch to the keys and values in a cache.

    q and the result: float32 `[total_q, num_heads, head_dim]`; k_cache, v_cache:
    `[rows, capacity, num_kv_heads, head_dim]`; lengths_k: int32 `[batch]`, the keys of each
    sequence, those of its queries among them. Sequence b reads the first `lengths_k[b]` keys of row
    `cache_rows[b]` (int32 `[batch]`, in which rows may repeat; row b when not given); what lies
    behind them may be anything. Heads, head_dim, relative_bias, scale, window, causal and softcap
    are as in `attention`: the last query of a sequence stands at its last key.

    A sequence's result does not depend on the others or on the number of threads.

    Raises ValueError for a length beyond the capacity and a row outside the cache. On a device
    other than the CPU nobody waits for these: a length counts as the nearest possible one, a row
    outside has no keys.
    """
    return _core.cached_attention(
        q, k_cache, v_cache, cu_seqlens_q, lengths_k, cache_rows, relative_bias, scale, window,
        causal, softcap, out,
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


def penalize(logits: SameArray, ids: Array, cu_ids: Array, penalty: float) -> SameArray:
    """Repetition penalty (Keskar et al. 2019), in place: logits of the ids that row b has seen,
    `ids[cu_ids[b]:cu_ids[b + 1]]`, are divided by `penalty` if positive, else multiplied by it.

    logits, which are returned: float32 `[batch, vocab]`; ids: int32, each counted once in a row;
    cu_ids: int32 `[batch + 1]`. A penalty above 1 makes the ids less likely.

    Raises ValueError for an id outside the vocabulary, which on a device is passed over, and a
    penalty that is not positive.
    """
    return _core.penalize(logits, ids, cu_ids, penalty)


def pool(
    x: SameArray, cu_seqlens: Offsets, mode: Pooling = "mean", *, out: Array | None = None
) -> SameArray:
    """One vector per sequence: float32 `[total_tokens, hidden]` to `[batch, hidden]`.

    "mean" and "max" run over a sequence's tokens, "cls" takes the first, "last" the last. A
    sequence without tokens gives zeros.
    """
    return _core.pool(x, cu_seqlens, mode, out)


def source_attention(
    query: SameArray,
    keys: Array,
    values: Array,
    cu_seqlens: Array,
    sources: Array,
    v: Array | None = None,
) -> tuple[SameArray, SameArray]:
    """Means of the values of a source's tokens, by how their keys suit a query, on the CPU.

    query: float32 `[rows, size]`; keys: `[total_tokens, size]`; values: `[total_tokens, columns]`;
    cu_seqlens: int32 `[batch + 1]`, where each source starts; sources: int32 `[rows]`, the one that
    a row looks at. The weights are the softmax over its tokens of `v . tanh(query + key)`, v of
    `[size]`, or without v of `query . key`. Gives the means, `[rows, columns]`, and the weights,
    as many as a row's source has tokens, after those of the row before.

    Raises ValueError or TypeError for shapes, dtypes and offsets that do not fit and sources
    outside the batch.
    """
    return _core.source_attention(query, keys, values, cu_seqlens, sources, v)


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
    h0_rows: Array | None = None,
    direction: Direction = "forward",
    out: Array | None = None,
) -> tuple[SameArray, SameArray]:
    """An Elman RNN over a packed batch: `(out, h_n)`.

    `h = act(W_ih x + b_ih + W_hh h + b_hh)`, with the act of the weights' kind, "rnn_tanh" or
    "rnn_relu".

    x: float32 `[total_tokens, input_size]`, or on the CPU int32 `[total_tokens]`, ids of rows of
    the identity matrix, whose product is a column of weight_ih; out: float32 `[total_tokens,
    directions * output_size]`, of two directions the forward half first; h0 and h_n: `[directions,
    batch, output_size]`. weights: one, or for "bidirectional" a pair (forward, reverse) of equal
    kind, sizes and dtype. A missing h0 is zeros. `out` must not overlap the inputs.

    h0_rows, on the CPU: int32 `[batch]`, the row of h0 that each sequence starts from, for an h0 of
    any number of rows, `[directions, rows, output_size]`. The weights' product with a row from
    which several start is formed once, which rounds otherwise than without h0_rows.

    A reverse direction starts at each sequence's last token; its h_n is the state after the first
    one. A sequence without tokens gives its initial state back. NaN propagates, within its own
    sequence. A sequence's result does not depend on the others or on the number of threads, except
    that with the ISA "amx" steps of at least 24 sequences round otherwise than those of fewer.

    Raises ValueError on shapes that do not fit, ids outside input_size, h0_rows outside h0 or
    without it, weights of another kind or number, and when they were packed for another ISA.
    """
    result, h_n = _core.recurrent(
        "rnn", x, cu_seqlens, _as_list(weights), h0, None, h0_rows, direction, out
    )
    return result, h_n


def gru(
    x: SameArray,
    cu_seqlens: Offsets,
    weights: RecurrentWeights,
    h0: Array | None = None,
    *,
    h0_rows: Array | None = None,
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
    result, h_n = _core.recurrent(
        "gru", x, cu_seqlens, _as_list(weights), h0, None, h0_rows, direction, out
    )
    return result, h_n


def lstm(
    x: SameArray,
    cu_seqlens: Offsets,
    weights: RecurrentWeights,
    h0: Array | None = None,
    c0: Array | None = None,
    *,
    h0_rows: Array | None = None,
    direction: Direction = "forward",
    out: Array | None = None,
) -> tuple[SameArray, SameArray, SameArray]:
    """An LSTM (Hochreiter & Schmidhuber 1997) over a packed batch: `(out, h_n, c_n)`.

    `i, f, o = sigmoid(...)` and `g = tanh(...)` of their rows of `W_ih x + b_ih + W_hh h + b_hh`;
    `c = f * c + i * g`; `h = o * tanh(c)`, or `W_hr (o * tanh(c))` with a projection (Sak et al.
    2014).

    c0 and c_n: float32 `[directions, batch, hidden_size]`; h0_rows are rows of c0 too. Other
    arguments, results and errors as in `rnn`.
    """
    result, h_n, c_n = _core.recurrent(
        "lstm", x, cu_seqlens, _as_list(weights), h0, c0, h0_rows, direction, out
    )
    return result, h_n, c_n


def rnn_cell(x: SameArray, weight: RecurrentWeight, h: Array) -> SameArray:
    """One step of `rnn`, bit for bit: the next h.

    x: float32 `[batch, input_size]`, or ids as in `rnn`; h and the result: `[batch, output_size]`.
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

    x: float32 `[batch, input_size]`, or ids as in `rnn`; h: `[batch, output_size]`; c: `[batch,
    hidden_size]`.
    """
    result: tuple[SameArray, SameArray] = _core.recurrent_cell("lstm_cell", x, weight, h, c)
    return result


def rotary(
    qkv: SameArray,
    cu_seqlens: Offsets,
    starts: Array,
    k_cache: Array,
    v_cache: Array,
    *,
    num_heads: int,
    cos: Array | None = None,
    sin: Array | None = None,
    q_norm: Array | None = None,
    k_norm: Array | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
    cache_rows: Array | None = None,
    out: Array | None = None,
) -> SameArray:
    """The step between an attention layer's projection and its attention: split into heads, norm
    and rotate queries and keys, append keys and values to the cache. Returns the queries.

    qkv: float32 `[total, (num_heads + 2 * num_kv_heads) * head_dim]`, the heads of q, of k, of v;
    k_cache, v_cache: `[rows, capacity, num_kv_heads, head_dim]`; the result:
    `[total, num_heads, head_dim]`. starts: int32 `[batch]`, the tokens that each sequence has in
    the cache: its token i stands at position `p = starts[b] + i` and is written to
    `k_cache[r, p]` and `v_cache[r, p]`, r being `cache_rows[b]` (int32 `[batch]`), or b when not
    given.

    With q_norm or k_norm, `[head_dim]`, every head of q or k gets that RMS norm first. With cos and
    sin, `[max_positions, rotary_dim / 2]`, the first rotary_dim elements of a head of q and k are
    then rotated (Su et al. 2021): a pair (a, b) becomes `(a cos[p] - b sin[p],
    b cos[p] + a sin[p])`. Pairs are elements (i, i + rotary_dim / 2), or (2i, 2i + 1) if
    `interleaved`.

    On a device other than the CPU qkv may be float16 or bfloat16, as then are all others but cos
    and sin, which stay float32.

    Raises ValueError for positions beyond the capacity or beyond cos, for rows outside the cache
    and for one that two sequences would write. On a device nobody waits for positions and rows: a
    token outside has NaN for a query and is not kept.
    """
    return _core.rotary(
        qkv, cu_seqlens, starts, k_cache, v_cache, num_heads, cos, sin, q_norm, k_norm, eps,
        interleaved, cache_rows, out,
    )  # fmt: skip


def sample(
    logits: SameArray,
    random: Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> SameArray:
    """Draw a token for each row: int32 `[batch]`.

    logits: float32 `[batch, vocab]`; random: float32 `[batch]`, in [0, 1). Logits are divided by
    `temperature`, then tokens are left out, in this order, as Hugging Face's `generate` does:

    - all but the `top_k` largest, unless 0;
    - all but the fewest of the most probable ones that together reach `top_p` (Holtzman et al.
      2020), in terms of what top_k left, unless 1;
    - those less than `min_p` times as probable as the most probable one (Nguyen et al. 2024).

    Tokens equal to the last one kept are kept too. Of the rest, in the order of ids, the first one
    is taken at which the summed probability exceeds `random`. Temperature 0 takes the largest
    logit, the lowest id of equals, and looks at nothing else.

    On a device other than the CPU logits may be float16 or bfloat16.

    Raises ValueError for settings or random numbers outside their ranges, and for a row with a NaN
    or a logit of +inf, or with no logit above -inf: on a device, which nobody waits for, such a row
    gives -1.
    """
    return _core.sample(logits, random, temperature, top_k, top_p, min_p)


def softcap(logits: SameArray, cap: float) -> SameArray:
    """`cap * tanh(logits / cap)` (Gemma Team 2024), in place.

    logits, which are returned: float32 `[rows, vocab]`, on a device other than the CPU also float16
    or bfloat16. Raises ValueError for a cap that is not positive.
    """
    return _core.softcap(logits, cap)


def token_logprobs(logits: SameArray, ids: Array) -> SameArray:
    """The log-probability of one token for each row: float32 `[rows]`.

    logits: float32 `[rows, vocab]`; ids: int32 `[rows]`. A row with a NaN or +inf, or with nothing
    above -inf, gives NaN.

    Raises ValueError for an id outside the vocabulary; on a device it gives NaN.
    """
    return _core.token_logprobs(logits, ids)


def top_continuations(
    logits: SameArray, scores: Array, count: int, banned: Array, cu_banned: Array
) -> tuple[SameArray, SameArray, SameArray]:
    """A step of beam search: of each prompt, the `count` continuations of its texts with the
    largest sums of a text's score and a token's log-probability.

    logits: float32 `[prompts * beams, vocab]`, on the CPU, what may follow each text; scores:
    float32 `[prompts, beams]`, of the texts. banned: int32, the ids that may not follow text r,
    `banned[cu_banned[r]:cu_banned[r + 1]]`; cu_banned: int32 `[prompts * beams + 1]`. They still
    count in the sum of the probabilities.

    Gives the sums, float32, the rows of `logits` that are continued, int32, and the ids that do it,
    int32, all `[prompts, count]`, the largest sum first; of equals the first text's, then the
    lowest id. Where a prompt has no more continuations above -inf, sums are -inf, rows its first
    one and ids 0. A row of logits with a NaN or +inf, or with nothing above -inf, has none, and
    neither has a text whose score is NaN or -inf.

    Raises ValueError for shapes that do not fit, an id outside the vocabulary, prompts without
    texts and a count below 1, TypeError for other dtypes.
    """
    return _core.top_continuations(logits, scores, count, banned, cu_banned)
