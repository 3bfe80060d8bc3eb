// The register block of every matrix product: R rows of A times one panel of B.
#pragma once

#include "cpu/simd.h"

namespace softgate::cpu::SOFTGATE_ISA {

static_assert(kPanel == 2 * kLanes);

template <int R>
struct Tile {
  vf c[R][2];
};

template <int R>
SG_INLINE void clear(Tile<R>& tile) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) tile.c[r][0] = tile.c[r][1] = zero();
}

template <int R>
SG_INLINE void load(Tile<R>& tile, const float* p, std::int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    tile.c[r][0] = load(p + r * stride);
    tile.c[r][1] = load(p + r * stride + kLanes);
  }
}

// Row r times factors[r].
template <int R>
SG_INLINE void load_scaled(Tile<R>& tile, const float* p, std::int64_t stride,
                           const float* factors) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const vf factor = set1(factors[r]);
    tile.c[r][0] = mul(load(p + r * stride), factor);
    tile.c[r][1] = mul(load(p + r * stride + kLanes), factor);
  }
}

template <int R>
SG_INLINE void store(const Tile<R>& tile, float* p, std::int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    store(p + r * stride, tile.c[r][0]);
    store(p + r * stride + kLanes, tile.c[r][1]);
  }
}

template <int R>
SG_INLINE void add_to(const Tile<R>& tile, float* p, std::int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    store(p + r * stride, add(load(p + r * stride), tile.c[r][0]));
    store(p + r * stride + kLanes, add(load(p + r * stride + kLanes), tile.c[r][1]));
  }
}

// Cache lines to fetch towards L2 while a tile is computed: the next slice of B comes from L3 or
// memory, and the hardware's prefetchers start too late for it.
struct Prefetch {
  const float* next;
  int lines_per_step;  // a step is kPrefetchSteps of depth
};
inline constexpr int kPrefetchSteps = 8;
inline constexpr int kLineFloats = 16;

// tile += A[R, depth] @ panel[depth, kPanel], one chain of fused multiply-adds per element in the
// order of depth. Rows of A are a_stride apart, those of the panel panel_stride.
template <int R>
SG_INLINE void multiply(Tile<R>& tile, const float* a, std::int64_t a_stride, const float* panel,
                        std::int64_t depth, Prefetch& ahead, std::int64_t panel_stride = kPanel) {
  // Three rows share an address register: base, base + stride, base + 2 * stride.
  constexpr int kGroups = (R + 2) / 3;
  const float* base[kGroups];
  for (int g = 0; g < kGroups; ++g) base[g] = a + 3 * g * a_stride;
  const auto step = [&](std::int64_t k) __attribute__((always_inline)) {
    const vf b0 = load(panel);
    const vf b1 = load(panel + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const vf x = set1(base[r / 3][(r % 3) * a_stride + k]);
      tile.c[r][0] = fma(x, b0, tile.c[r][0]);
      tile.c[r][1] = fma(x, b1, tile.c[r][1]);
    }
    panel += panel_stride;
  };
  std::int64_t k = 0;
  for (; k + kPrefetchSteps <= depth; k += kPrefetchSteps) {
    for (int i = 0; i < ahead.lines_per_step; ++i, ahead.next += kLineFloats)
      __builtin_prefetch(ahead.next, 0, 2);
#pragma GCC unroll 8
    for (int i = 0; i < kPrefetchSteps; ++i) step(k + i);
  }
  for (; k < depth; ++k) step(k);
}

// Calls f with a Tile of `rows` rows, in [1, kTileRows].
template <int R = kTileRows, class F>
SG_INLINE void with_rows(std::int64_t rows, const F& f) {
  if constexpr (R > 1) {
    if (rows < R) return with_rows<R - 1>(rows, f);
  }
  f(Tile<R>{});
}

struct Range {
  std::int64_t begin, end;
};

}  // namespace softgate::cpu::SOFTGATE_ISA
