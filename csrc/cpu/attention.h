// What the tile kernel (attention.cc) and the decode kernel (cached_attention.cc) share: where keys
// lie, which of them a query sees, and the steps of the softmax on rows of scores.
#pragma once

#include "cpu/rows.h"
#include "cpu/simd_math.h"
#include "cpu/tile.h"
#include "ops/attention.h"

namespace softgate::cpu::SOFTGATE_ISA {

// All but the sequences with fewer than `min_queries`.
void attend_in_tiles(const AttentionArgs<float>& args, std::int64_t min_queries);

inline constexpr float kInf = __builtin_inff();

SG_INLINE std::int64_t clamp(std::int64_t x, std::int64_t low, std::int64_t high) {
  return min_int(max_int(x, low), high);
}
SG_INLINE std::int64_t round_up(std::int64_t x, std::int64_t multiple) {
  return ceil_div(x, multiple) * multiple;
}

// Of one sequence: its first key and value, of head 0, and how many there are.
struct Keys {
  const float *k, *v;
  std::int64_t length;
};

SG_INLINE Keys keys_of_sequence(const AttentionArgs<float>& args, std::int64_t sequence) {
  if (args.lengths_k) {
    const std::int64_t row = args.cache_rows ? args.cache_rows[sequence] : sequence;
    return {args.k + row * args.k_row_stride, args.v + row * args.v_row_stride,
            args.lengths_k[sequence]};
  }
  const std::int64_t first = args.cu_seqlens_k[sequence];
  return {args.k + first * args.k_stride, args.v + first * args.v_stride,
          args.cu_seqlens_k[sequence + 1] - first};
}

// Of `count` keys, those that the causal bound and the window leave to a query at `position`.
SG_INLINE Range keys_in_sight(const AttentionArgs<float>& args, std::int64_t position,
                              std::int64_t count) {
  const std::int64_t begin =
      args.window_left < 0 ? 0 : clamp(position - args.window_left, 0, count);
  const std::int64_t end =
      args.window_right < 0 ? count : clamp(position + args.window_right + 1, begin, count);
  return {begin, end};
}

// What q is multiplied by: with a soft cap, scores come divided by it.
SG_INLINE float query_scale(const AttentionArgs<float>& args) {
  return args.softcap > 0.0f ? args.scale / args.softcap : args.scale;
}

SG_INLINE void cap(float* s, Range columns, float softcap) {
  for (std::int64_t j = columns.begin; j < columns.end; j += kLanes)
    store(s + j, mul(tanh(load(s + j)), set1(softcap)));
}

// s[j] gains the bias of a key at `distance` + j from the query.
SG_INLINE void add_relative_bias(const AttentionArgs<float>& args, float* s, Range columns,
                                 std::int64_t head, std::int64_t distance) {
  const std::int64_t reach = args.bias_reach;
  const float* zero_distance = args.relative_bias + head * args.bias_head_stride + reach;
  for (std::int64_t j = columns.begin; j < columns.end; j += kLanes) {
    const std::int64_t first = distance + j, last = first + kLanes - 1;
    vf bias;
    if (first >= reach || last <= -reach) {
      bias = set1(zero_distance[first >= reach ? reach : -reach]);
    } else if (first >= -reach && last <= reach) {
      bias = load(zero_distance + first);
    } else {
      alignas(64) float some[kLanes];
      for (int i = 0; i < kLanes; ++i) some[i] = zero_distance[clamp(first + i, -reach, reach)];
      bias = load(some);
    }
    store(s + j, add(load(s + j), bias));
  }
}

// Scores outside of `keys` become -inf; s begins at first_key.
SG_INLINE void bound(float* s, Range keys, Range columns, std::int64_t first_key) {
  const vf begin = set1(static_cast<float>(clamp(keys.begin - first_key, 0, columns.end)));
  const vf end = set1(static_cast<float>(clamp(keys.end - first_key, 0, columns.end)));
  for (std::int64_t j = columns.begin; j < columns.end; j += kLanes) {
    const vf index = add(iota(), set1(static_cast<float>(j)));
    const vf x = select(less(index, begin), set1(-kInf), load(s + j));
    store(s + j, select(less(index, end), x, set1(-kInf)));
  }
}

// What to subtract from a row's scores: nothing while all of them are -inf.
SG_INLINE vf shift_of(vf maxima) { return select(less(set1(-kInf), maxima), maxima, zero()); }

// s = exp(s - shift), kPanel scores or a multiple of them; returns the sum.
SG_INLINE float exponentiate_row(float* s, std::int64_t begin, std::int64_t end, vf shift) {
  vf total[2] = {zero(), zero()};
  const auto step = [&]<int N>(vf(&x)[N], std::int64_t j) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) x[i] = sub(load(s + j + i * kLanes), shift);
    exp_nonpositive(x);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      store(s + j + i * kLanes, x[i]);
      total[i % 2] = add(total[i % 2], x[i]);
    }
  };
  vf four[4], two[2];
  std::int64_t j = begin;
  for (; j + 4 * kLanes <= end; j += 4 * kLanes) step(four, j);
  if (j < end) step(two, j);
  return sum(add(total[0], total[1]));
}

}  // namespace softgate::cpu::SOFTGATE_ISA
