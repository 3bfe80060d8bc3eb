// Layer and RMS norm of a row that lies in the nearest cache.
#pragma once

#include "cpu/rows.h"

namespace softgate::cpu::SOFTGATE_ISA {

struct Affine {
  const float* weight;
  const float* bias;  // or null
};

struct Plain {
  template <class Lanes>
  SG_INLINE void put(float* p, vf v, Lanes lanes) {
    store(p, v, lanes);
  }
};

// Past the caches; the rows must be aligned to a vector.
struct Streaming {
  SG_INLINE void put(float* p, vf v, Full) { stream(p, v); }
  SG_INLINE void put(float* p, vf v, Part part) { store_n(p, v, part.n); }
};

// A stored row becomes (s - mean) * scale.
struct RowStatistics {
  float mean, scale;
};

SG_INLINE float sum_of_squares(const float* s, std::int64_t n, float mean) {
  return sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    const vf d = keep(sub(load(s + i, lanes), set1(mean)), zero(), lanes);
    acc = fma(d, d, acc);
  }));
}

SG_INLINE RowStatistics row_statistics(const float* s, std::int64_t n, float mean, float eps) {
  const float variance = sum_of_squares(s, n, mean) / static_cast<float>(n);
  return {mean, 1.0f / __builtin_sqrtf(variance + eps)};
}

// write(offset, lanes): out = (s - mean) * scale * weight + bias, stored by Store::put.
template <class Store>
SG_INLINE auto row_writer(const float* s, RowStatistics statistics, Affine affine, float* out) {
  const vf mean = set1(statistics.mean), scale = set1(statistics.scale);
  return [=](std::int64_t i, auto lanes) {
    const vf normed = mul(sub(load(s + i, lanes), mean), scale);
    const vf weight = load(affine.weight + i, lanes);
    Store::put(
        out + i,
        affine.bias ? fma(normed, weight, load(affine.bias + i, lanes)) : mul(normed, weight),
        lanes);
  };
}

}  // namespace softgate::cpu::SOFTGATE_ISA
