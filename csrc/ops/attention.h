// Softmax attention over a packed batch (Vaswani et al. 2017), tiled with an online softmax
// (Dao et al. 2022).
//
//   scores  = scale * q @ k^T, then softcap * tanh(scores / softcap), + relative bias, the masks
//   weights = softmax(scores) over the keys of the same sequence
//   out     = weights @ v
//
//   q, out: [total_q, num_heads, head_dim]    k, v: [total_k, num_kv_heads, head_dim]
//   cu_seqlens_q, cu_seqlens_k: int32 [batch + 1]
//   relative_bias: float32 [num_heads, 2 * reach + 1]
//   mask: boolean (true attends) or float32 (added), [batch or 1, num_heads or 1, max_q, max_k]
//   lse: [num_heads, total_q], log of the sum of exp(scores)
//   weights: [batch, num_heads, max_q, max_k], zero outside each sequence
//
// Masks are aligned to the bottom right: query i of a sequence stands at key position
// p = i + len_k - len_q. causal keeps keys j <= p, a window (left, right) keeps
// p - left <= j <= p + right, a negative bound being no bound. A query that keeps no key gives
// output 0 and lse -inf. Key j gains relative_bias[h, clamp(j - p, -reach, reach) + reach]. Query
// head h reads key-value head h / (num_heads / num_kv_heads). head_dim is at most 256. Inputs may
// have any strides between tokens and heads; out overlaps none.
#pragma once

#include <optional>
#include <utility>

#include "core/tensor.h"
#include "ops/sequence_offsets.h"

namespace softgate {

inline constexpr std::int64_t kMaxHeadDim = 256;

template <class T>
struct AttentionArgs {
  const T *q, *k, *v;
  T* out;
  float* lse;      // or null
  float* weights;  // or null; zeroed by the kernel where it writes no weight
  const std::int32_t *cu_seqlens_q, *cu_seqlens_k;
  // Of keys in a cache (ops/cached_attention.h), instead of cu_seqlens_k; else null.
  const std::int32_t *lengths_k, *cache_rows;
  const std::uint8_t* bool_mask;  // at most one of the masks
  const float* add_mask;
  const float* relative_bias;  // or null
  std::int64_t batch, num_heads, num_kv_heads, head_dim;
  std::int64_t total_q, total_k;
  std::int64_t max_q, max_k;  // of weights and masks, or a cache's capacity; no sequence is longer
  std::int64_t min_q;         // no sequence with queries is shorter
  std::int64_t q_stride, k_stride, v_stride, out_stride;  // elements between tokens
  std::int64_t q_head_stride, k_head_stride, v_head_stride, out_head_stride;
  std::int64_t k_row_stride, v_row_stride;  // between rows of a cache; elsewhere k_stride, v_stride
  std::int64_t num_rows;                    // of a cache
  std::int64_t lse_stride;                  // elements between heads
  std::int64_t mask_batch_stride, mask_head_stride, mask_row_stride;  // zero where broadcast
  std::int64_t bias_head_stride, bias_reach;
  float scale;
  float softcap;                           // 0: none
  std::int64_t window_left, window_right;  // negative: no bound; causal is right = 0
};

struct AttentionOptions {
  std::optional<double> scale;  // 1 / sqrt(head_dim) when absent
  bool causal = false;
  std::pair<std::int64_t, std::int64_t> window{-1, -1};
  std::optional<Tensor> mask;
  std::optional<Tensor> relative_bias;
  double softcap = 0;
  bool return_lse = false;
  bool return_weights = false;
};

struct AttentionResult {
  Tensor out;
  std::optional<Tensor> lse;
  std::optional<Tensor> weights;
};

// Raises unless it is float32 [num_heads, an odd number] on the device.
void check_relative_bias(const char* op, const Tensor* bias, std::int64_t num_heads, Device device);

// A window's bound, or -1 where it excludes nothing.
std::int64_t effective_bound(std::int64_t bound);

AttentionResult attention(const Tensor& q, const Tensor& k, const Tensor& v,
                          const SequenceOffsets& cu_seqlens_q, const SequenceOffsets& cu_seqlens_k,
                          const AttentionOptions& options, std::optional<Tensor> out);

}  // namespace softgate
