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
inline constexpr std::int64_t kLineBytes = 64;
struct Prefetch {
  const char* next;
  int lines_per_step;  // a step is kPrefetchSteps of depth, or a group

  [[gnu::always_inline]] void step() {
    for (int i = 0; i < lines_per_step; ++i, next += kLineBytes) __builtin_prefetch(next, 0, 2);
  }
};
inline constexpr int kPrefetchSteps = 8;
inline constexpr int kLineFloats = 16;

// How a panel of floating-point weights is stored: kRow elements for each step of depth.
struct Float32 {
  using Element = float;
  static constexpr std::int64_t kRow = kPanel;
  SG_INLINE void load_row(const float* p, vf& b0, vf& b1) {
    b0 = load(p);
    b1 = load(p + kLanes);
  }
};
struct Float16 {
  using Element = std::uint16_t;
  static constexpr std::int64_t kRow = kPanel;
  SG_INLINE void load_row(const std::uint16_t* p, vf& b0, vf& b1) {
    b0 = load_half(p);
    b1 = load_half(p + kLanes);
  }
};
struct BFloat16 {
  using Element = std::uint32_t;  // two values, a vector apart
  static constexpr std::int64_t kRow = kLanes;
  SG_INLINE void load_row(const std::uint32_t* p, vf& b0, vf& b1) { load_bfloat16(p, b0, b1); }
};

// tile += A[R, depth] @ panel[depth, kPanel], one chain of fused multiply-adds per element in the
// order of depth. Rows of A are a_stride apart, those of the panel panel_stride elements.
template <class Stored = Float32, int R>
SG_INLINE void multiply(Tile<R>& tile, const float* a, std::int64_t a_stride,
                        const typename Stored::Element* panel, std::int64_t depth, Prefetch& ahead,
                        std::int64_t panel_stride = Stored::kRow) {
  // Three rows share an address register: base, base + stride, base + 2 * stride.
  constexpr int kGroups = (R + 2) / 3;
  const float* base[kGroups];
  for (int g = 0; g < kGroups; ++g) base[g] = a + 3 * g * a_stride;
  const auto step = [&](std::int64_t k) __attribute__((always_inline)) {
    vf b0, b1;
    Stored::load_row(panel, b0, b1);
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
    ahead.step();
#pragma GCC unroll 8
    for (int i = 0; i < kPrefetchSteps; ++i) step(k + i);
  }
  for (; k < depth; ++k) step(k);
}

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls f with the Constant n, in [1, N].
template <int N, class F>
SG_INLINE void with_constant(std::int64_t n, const F& f) {
  if constexpr (N > 1) {
    if (n < N) return with_constant<N - 1>(n, f);
  }
  f(Constant<N>{});
}

// Calls f with a Tile of `rows` rows, in [1, kTileRows].
template <class F>
SG_INLINE void with_rows(std::int64_t rows, const F& f) {
  with_constant<kTileRows>(rows, [&](auto n) { f(Tile<decltype(n)::value>{}); });
}

struct Range {
  std::int64_t begin, end;
};

// Splits [0, size) into `parts` ranges as even as possible.
SG_INLINE std::int64_t part_begin(std::int64_t size, std::int64_t parts, std::int64_t i) {
  return size * i / parts;
}

}  // namespace softgate::cpu::SOFTGATE_ISA
