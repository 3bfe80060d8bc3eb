// Products of 8-bit integers: rows of floats quantised on the way, and the register block.
#pragma once

#include "cpu/rows.h"

namespace softgate::cpu::SOFTGATE_ISA {

// From values of at most `largest` to integers of at most 127; what is so small that the factor
// would be infinite becomes zero.
SG_INLINE float int8_factor(float largest) { return largest > 1e-36f ? 127.0f / largest : 0.0f; }

struct Quantised {
  float scale;         // value = scale * integer; NaN once a value is not finite
  std::int32_t start;  // what takes kDotOffset of the weights away again
};

// x[n], symmetrically to its largest magnitude, as integers to `to`, and zeros up to `padded`, a
// multiple of kLanes. Their total is exact up to n = 2^17: 127 times that is less than 2^24.
SG_INLINE Quantised quantise(const float* x, std::int64_t n, DotElement* to, std::int64_t padded) {
  vf largest = zero(), total = zero();
  for_each_vector(
      n, [&](std::int64_t i, auto lanes) { largest = max(abs(load(x + i, lanes)), largest); });
  const float bound = hmax(largest);
  const vf factor = set1(int8_factor(bound));
  for_each_vector(n, [&](std::int64_t i, auto lanes) {
    const vf value = round(mul(load(x + i, lanes), factor));  // NaN for infinity, times zero
    store_integers(to + i, value);
    total = add(total, value);
  });
  for (std::int64_t i = ceil_div(n, kLanes) * kLanes; i < padded; i += kLanes)
    store_integers(to + i, zero());
  const float sum_of_all = sum(total);
  if (sum_of_all != sum_of_all) return {sum_of_all, 0};
  return {bound / 127.0f, -kDotOffset * static_cast<std::int32_t>(sum_of_all)};
}

// Where a row's integers go: kDepthStep of them side by side, the next ones `step` elements on.
inline constexpr std::int64_t kDepthStep = 64;  // a tile's row of bytes
struct RowPlace {
  DotElement* row;
  std::int64_t step;

  [[gnu::always_inline]] DotElement* at(std::int64_t k) const {
    return row + k + k / kDepthStep * (step - kDepthStep);
  }
};

// x[n] as scale * (integer + shift): 256 steps from its lowest number or zero to its highest or
// zero. Up to `padded`, a multiple of 4 * kLanes, follow integers that stand for zero.
struct QuantisedRow {
  float scale;         // NaN once a value is not finite
  std::int32_t shift;  // 0 where elements are wide enough to hold it
  std::int32_t start;  // what takes kDotOffset of the weights away again
};

SG_INLINE QuantisedRow quantise_row(const float* x, std::int64_t n, RowPlace to,
                                    std::int64_t padded) {
  constexpr std::int64_t kStep = 4 * kLanes;
  const std::int64_t whole = n / kStep * kStep;
  float last[kStep];
  for (std::int64_t j = 0; j < kStep; ++j) last[j] = j < n - whole ? x[whole + j] : 0.0f;
  const auto step_at = [=, &last](std::int64_t i)
                           __attribute__((always_inline)) { return i < whole ? x + i : last; };

  vf high[4], low[4], zeros[4];
  for (int j = 0; j < 4; ++j) high[j] = low[j] = zeros[j] = zero();
  for (std::int64_t i = 0; i <= whole; i += kStep) {
    const float* from = step_at(i);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const vf value = load(from + j * kLanes);
      high[j] = max(value, high[j]);
      low[j] = min(value, low[j]);
      zeros[j] = fma(value, zero(), zeros[j]);  // NaN once a value is not finite
    }
  }
  const float highest = hmax(max(max(high[0], high[1]), max(high[2], high[3])));
  const float lowest = -hmax(sub(zero(), min(min(low[0], low[1]), min(low[2], low[3]))));
  const float zero_or_nan = sum(add(add(zeros[0], zeros[1]), add(zeros[2], zeros[3])));
  if (zero_or_nan != 0.0f) {
    for (std::int64_t i = 0; i < padded; i += kStep)
      __builtin_memset(to.at(i), 0, kStep * sizeof(DotElement));
    return {.scale = zero_or_nan, .shift = 0, .start = 0};
  }
  const float scale = highest / 255.0f - lowest / 255.0f;
  const float factor = scale > 1e-36f ? 1.0f / scale : 0.0f;

  constexpr bool kWide = sizeof(DotElement) > 1;
  const auto bottom = static_cast<std::int32_t>(__builtin_rintf(lowest * factor));
  const std::int32_t shift = kWide ? 0 : bottom + 128;
  const vi top = set1_int(bottom + 255), away = set1_int(shift);
  vi totals[4];
  for (int j = 0; j < 4; ++j) totals[j] = set1_int(0);
  for (std::int64_t i = 0; i < padded; i += kStep) {
    const float* from = step_at(i);
    vi elements[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      elements[j] = sub(min(to_int(mul(load(from + j * kLanes), set1(factor))), top), away);
      totals[j] = add(totals[j], elements[j]);
    }
    store_integers(to.at(i), elements);
  }
  const vi all = add(add(totals[0], totals[1]), add(totals[2], totals[3]));
  return {.scale = scale,
          .shift = shift,
          .start = -kDotOffset * static_cast<std::int32_t>(sum(to_float(all)))};
}

// x[groups, 32], symmetrically, each group to its largest magnitude, kLanes of them at a time;
// totals come times their scale.
struct QuantisedGroups {
  float *scales, *totals;
  std::int32_t* starts;
};

SG_INLINE void quantise_groups(const float* x, std::int64_t groups, RowPlace to,
                               const QuantisedGroups& results) {
  constexpr int kVectors = 32 / kLanes;
  for (std::int64_t first = 0; first < groups; first += kLanes) {
    const int n = static_cast<int>(min_int(kLanes, groups - first));
    float bounds[kLanes] = {}, factors[kLanes], sums[kLanes] = {};
    for (int g = 0; g < n; ++g) {
      const float* group = x + (first + g) * 32;
      vf largest = zero();
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) largest = max(abs(load(group + i * kLanes)), largest);
      bounds[g] = hmax(largest);
    }
    const vf bound = load(bounds);
    store(factors, select(less(set1(1e-36f), bound), div(set1(127.0f), bound), zero()));
    for (int g = 0; g < n; ++g) {
      const float* group = x + (first + g) * 32;
      const vf factor = set1(factors[g]);
      vf total = zero();
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        const vf value = round(mul(load(group + i * kLanes), factor));
        store_integers(to.at((first + g) * 32) + i * kLanes, value);
        total = add(total, value);
      }
      sums[g] = sum(total);
    }
    const vf total = load(sums);  // NaN where a value is not finite
    const vf scale = select(is_nan(total), total, div(bound, set1(127.0f)));
    store_n(results.scales + first, scale, n);
    store_n(results.totals + first, mul(scale, total), n);
    float starts[kLanes];
    store_wide(reinterpret_cast<std::uint8_t*>(starts), to_int(mul(total, set1(-kDotOffset))));
    store_n(reinterpret_cast<float*>(results.starts + first), load(starts), n);
  }
}

// sums[R][2] += R rows of x, `stride` elements apart, times `steps` steps of a panel, each of
// kDotDepth. load(step, w0, w1) gives a step's weights.
template <int R, class Load>
SG_INLINE void add_dots(vi (&sums)[R][2], const DotElement* x, std::int64_t stride,
                        std::int64_t steps, const Load& load_step) {
  // Three rows share an address register: base, base + stride, base + 2 * stride.
  constexpr int kGroups = (R + 2) / 3;
  const DotElement* base[kGroups];
#pragma GCC unroll 16
  for (int g = 0; g < kGroups; ++g) base[g] = x + 3 * g * stride;
#pragma GCC unroll 8
  for (std::int64_t step = 0; step < steps; ++step) {
    vw w0, w1;
    load_step(step, w0, w1);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const DotElement* elements = base[r / 3] + (r % 3) * stride + step * kDotDepth;
      sums[r][0] = dot(sums[r][0], w0, elements);
      sums[r][1] = dot(sums[r][1], w1, elements);
    }
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
