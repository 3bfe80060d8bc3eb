// What lies between an attention layer's projection and its attention, for a packed batch: split
// into heads, RMS norm per head (Zhang & Sennrich 2019), rotary embedding (Su et al. 2021), append
// to the cache.
//
//   qkv: [total, (num_heads + 2 * num_kv_heads) * head_dim], the heads of q, of k, of v
//   q: [total, num_heads, head_dim]
//   k_cache, v_cache: [rows, capacity, num_kv_heads, head_dim]
//   cu_seqlens: int32 [batch + 1]; starts, cache_rows: int32 [batch]
//   cos, sin: [max_positions, rotary_dim / 2]; q_norm, k_norm: [head_dim]
//
// Token i of sequence b stands at p = starts[b] + i. Its heads of q and k are normed where there is
// a weight for it; a pair (a, b) of their first rotary_dim elements becomes
// (a cos[p] - b sin[p], b cos[p] + a sin[p]); k and v go to place p of row cache_rows[b]. Pairs are
// elements (i, i + rotary_dim / 2), interleaved ones (2i, 2i + 1).
//
// No two sequences have one row. q and the caches overlap nothing. Positions and rows are checked
// before anything is written: on the CPU a wrong one is an error, on another device, which nobody
// waits for, the token's q becomes NaN and its k and v are not kept.
//
// cos and sin are float32, all else has one dtype.
#pragma once

#include <optional>

#include "core/tensor.h"
#include "ops/sequence_offsets.h"

namespace softgate {

template <class T>
struct RotaryArgs {
  const T* qkv;
  const T *q_norm, *k_norm;  // or null
  const float *cos, *sin;    // or both null
  T *q, *k_cache, *v_cache;
  const std::int32_t *cu_seqlens, *starts;
  const std::int32_t* cache_rows;  // or null: row b
  std::int64_t batch, total, num_heads, num_kv_heads, head_dim;
  std::int64_t rotary_dim;       // even, at most head_dim
  std::int64_t positions, rows;  // that there are, of the caches and of cos
  std::int64_t qkv_stride, q_stride, q_head_stride, cos_stride, sin_stride;
  // Of the caches, elements between rows, tokens and heads.
  std::int64_t k_row_stride, k_stride, k_head_stride;
  std::int64_t v_row_stride, v_stride, v_head_stride;
  float eps;
  bool interleaved;
};

struct RotaryOptions {
  std::int64_t num_heads = 0;
  std::optional<Tensor> cos, sin;
  std::optional<Tensor> q_norm, k_norm;
  double eps = 1e-6;
  bool interleaved = false;
  std::optional<Tensor> cache_rows;
};

// Returns q.
Tensor rotary(const Tensor& qkv, const SequenceOffsets& cu_seqlens, const Tensor& starts,
              const Tensor& k_cache, const Tensor& v_cache, const RotaryOptions& options,
              std::optional<Tensor> out);

}  // namespace softgate
