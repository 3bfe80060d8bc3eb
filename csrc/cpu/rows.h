// What the row-wise kernels share: the loop over one row's vectors and the split of rows over
// threads.
#pragma once

#include "core/parallel.h"
#include "cpu/simd.h"

namespace softgate::cpu::SOFTGATE_ISA {

// The lanes of one step: all, or the first n at a row's end.
struct Full {};
struct Part {
  int n;
};

SG_INLINE vf load(const float* p, Full) { return load(p); }
SG_INLINE vf load(const float* p, Part part) { return load_n(p, part.n); }
SG_INLINE void store(float* p, vf v, Full) { store(p, v); }
SG_INLINE void store(float* p, vf v, Part part) { store_n(p, v, part.n); }

// v in the lanes of the row, `other` in the rest.
SG_INLINE vf keep(vf v, vf, Full) { return v; }
SG_INLINE vf keep(vf v, vf other, Part part) {
  return select(less(iota(), set1(static_cast<float>(part.n))), v, other);
}

// body(offset, Full or Part) over n floats.
template <class Body>
SG_INLINE void for_each_vector(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, Full{});
  if (i < n) body(i, Part{static_cast<int>(n - i)});
}

// Enough to hide the latency of an addition. Which vector meets which accumulator depends on the
// row's length alone.
struct Accumulators {
  vf a, b, c, d;
};

// body(accumulator, offset, Full or Part) over n floats.
template <class Body>
SG_INLINE Accumulators accumulate(std::int64_t n, vf start, Body body) {
  Accumulators acc{start, start, start, start};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    body(acc.a, i, Full{});
    body(acc.b, i + kLanes, Full{});
    body(acc.c, i + 2 * kLanes, Full{});
    body(acc.d, i + 3 * kLanes, Full{});
  }
  for (; i + kLanes <= n; i += kLanes) body(acc.a, i, Full{});
  if (i < n) body(acc.b, i, Part{static_cast<int>(n - i)});
  return acc;
}

SG_INLINE float sum(const Accumulators& acc) {
  return sum(add(add(acc.a, acc.b), add(acc.c, acc.d)));
}

// body(begin, end) over equal ranges of rows. Each moves kRangeBytes or more, which takes several
// times as long as handing it to another thread; kRangesPerThread of them even out the threads.
inline constexpr std::int64_t kRangeBytes = 64 << 10;
inline constexpr std::int64_t kRangesPerThread = 16;

template <class Body>
SG_INLINE void for_each_row_range(std::int64_t rows, std::int64_t bytes_per_row, const Body& body) {
  const std::int64_t ranges =
      min_int(rows * bytes_per_row / kRangeBytes, kRangesPerThread * num_threads());
  parallel_for(rows, ceil_div(rows, max_int(1, ranges)), body);
}

inline constexpr std::int64_t kFloat = sizeof(float);

}  // namespace softgate::cpu::SOFTGATE_ISA
