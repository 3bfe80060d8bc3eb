// Attention (ops/attention.h) of a packed batch to keys and values in a cache.
//
//   q, out: [total_q, num_heads, head_dim]     cu_seqlens_q: int32 [batch + 1]
//   k_cache, v_cache: [rows, capacity, num_kv_heads, head_dim]
//   lengths_k: int32 [batch]; cache_rows: int32 [batch], or null for row b of sequence b
//
// Sequence b reads the first lengths_k[b] keys of row cache_rows[b]; rows may repeat. Scores, soft
// cap, relative bias, bounds, grouped heads and queries without keys are attention's. Inputs may
// have any strides between tokens, rows and heads; out overlaps none.
//
// On a device other than the CPU, lengths_k and cache_rows are not looked at by the host: a length
// counts as the nearest one that the capacity has, and a row outside of the cache holds no keys.
// The kernel is attention's.
//
// On the CPU, sequences of up to kDecodeQueries queries are decoded: their keys are split at
// multiples of split_keys, which depends on the size of a key alone, so that several threads share
// one sequence; what the splits found is merged in their order.
#pragma once

#include <optional>
#include <utility>

#include "core/tensor.h"
#include "ops/attention.h"

namespace softgate {

inline constexpr std::int64_t kDecodeQueries = 4;

template <class T>
struct CachedAttentionArgs {
  AttentionArgs<T> attention;
  std::int64_t split_keys;
  // Of the decoded sequences before each, [batch + 1]: their splits, from the first one in which a
  // query sees a key, and their splits times queries.
  const std::int64_t *first_split, *first_partial;
  // [splits times queries, num_heads, head_dim + 2]: the sum of weighted values, the largest score
  // and the sum of weights that a query found in a split. Unused for a sequence with one split.
  float* partials;
};

struct CachedAttentionOptions {
  std::optional<Tensor> cache_rows;
  std::optional<Tensor> relative_bias;
  std::optional<double> scale;  // 1 / sqrt(head_dim) when absent
  std::pair<std::int64_t, std::int64_t> window{-1, -1};
  bool causal = true;
  double softcap = 0;
};

// Of attention's arguments too, with keys in cu_seqlens_k, but no mask, lse or weights.
void attend_on_cpu(const AttentionArgs<float>& attention);

Tensor cached_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                        const SequenceOffsets& cu_seqlens_q, const Tensor& lengths_k,
                        const CachedAttentionOptions& options, std::optional<Tensor> out);

}  // namespace softgate
