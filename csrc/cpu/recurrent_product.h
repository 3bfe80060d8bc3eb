// The recurrent product: a state times panels of stored weights, added to sums.
#pragma once

#include "core/parallel.h"
#include "cpu/dot.h"
#include "cpu/recurrent.h"
#include "cpu/split_rows.h"
#include "cpu/tile.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {  // what is not inlined needs internal linkage

// Up to so many rows one panel's accumulators are too few to hide the latency of an addition, and
// several panels are multiplied at once: as many as there are registers for.
constexpr int kFewRows = 3;
constexpr int kPanelsAtOnce = 4;
template <int Rows>
constexpr int kPanelsFor = Rows == 1 || kLanes == 16 ? kPanelsAtOnce : 2;

// A panel and the sums it adds to.
struct Target {
  const void* panel;
  const float* scales;  // of an int8 panel's columns
  float* sums;          // [rows, kPanel]
  std::int64_t stride;  // elements between rows of sums
};

struct Operand {
  const float* a;  // [rows, depth]
  std::int64_t stride, rows, depth;
  std::int64_t slice_depth = kSliceDepth;  // at most
};

// Calls f(Constant rows, Constant panels, first target) for groups of the targets.
template <class F>
SG_INLINE void for_few_rows(std::int64_t rows, const Target* targets, int count, const F& f) {
  with_constant<kFewRows>(rows, [&](auto r) {
    constexpr int kPanels = kPanelsFor<decltype(r)::value>;
    for (int i = 0; i < count; i += kPanels)
      with_constant<kPanels>(min_int(kPanels, count - i), [&](auto p) { f(r, p, targets + i); });
  });
}

// A sum is built from slices of the depth, each a chain that starts at zero: a chain that starts at
// the input's part, which is often large, would round to that part's precision at every step.
SG_INLINE std::int64_t slices_of(const Operand& x) { return ceil_div(x.depth, x.slice_depth); }
SG_INLINE Range slice_of(const Operand& x, std::int64_t s) {
  const std::int64_t slices = slices_of(x);
  return {part_begin(x.depth, slices, s), part_begin(x.depth, slices, s + 1)};
}

// sums += a slice of a @ panel, for all R rows and P panels at once.
template <class Format, int R, int P>
SG_INLINE void add_slice(const Operand& x, const Target* targets, Range slice) {
  vf c[R][P][2];
  const typename Format::Element* panel[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    panel[p] = static_cast<const typename Format::Element*>(targets[p].panel);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) c[r][p][0] = c[r][p][1] = zero();
  }
  for (std::int64_t k = slice.begin; k < slice.end; ++k) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      vf b0, b1;
      Format::load_row(panel[p] + k * Format::kRow, b0, b1);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const vf value = set1(x.a[r * x.stride + k]);
        c[r][p][0] = fma(value, b0, c[r][p][0]);
        c[r][p][1] = fma(value, b1, c[r][p][1]);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* sums = targets[p].sums + r * targets[p].stride;
      store(sums, add(load(sums), c[r][p][0]));
      store(sums + kLanes, add(load(sums + kLanes), c[r][p][1]));
    }
  }
}

template <class Format, int R, int P>
void add_few(const Operand& x, const Target* targets) {
  for (std::int64_t s = 0; s < slices_of(x); ++s)
    add_slice<Format, R, P>(x, targets, slice_of(x, s));
}

// A slice of a panel as float32: in place, or widened for all the rows that pass over it.
SG_INLINE const float* widen(Float32, const float* panel, std::int64_t) { return panel; }
SG_INLINE const float* widen(BFloat16, const std::uint32_t* panel, std::int64_t depth) {
  auto* slice =
      static_cast<float*>(scratch(static_cast<std::size_t>(kSliceDepth * kPanel * kFloat)));
  for (std::int64_t k = 0; k < depth; ++k) {
    vf b0, b1;
    load_bfloat16(panel + k * kLanes, b0, b1);
    store(slice + k * kPanel, b0);
    store(slice + k * kPanel + kLanes, b1);
  }
  return slice;
}

// Many rows and one panel, a slice of which stays in L1 while rows pass over it.
template <class Format>
void add_many(const Operand& x, const Target& target) {
  const auto* panel = static_cast<const typename Format::Element*>(target.panel);
  const std::int64_t tiles = ceil_div(x.rows, kTileRows);
  for (std::int64_t s = 0; s < slices_of(x); ++s) {
    const Range part = slice_of(x, s);
    const std::int64_t depth = part.end - part.begin;
    const float* slice = widen(Format(), panel + part.begin * Format::kRow, depth);
    // The next slice, or the next panel: they follow each other.
    const auto* next = reinterpret_cast<const char*>(panel + part.end * Format::kRow);
    const std::int64_t lines =
        depth * Format::kRow * static_cast<std::int64_t>(sizeof *panel) / kLineBytes;
    const std::int64_t steps = max_int(1, depth / kPrefetchSteps) * tiles;
    Prefetch ahead{next, static_cast<int>(ceil_div(lines, steps))};
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t row = part_begin(x.rows, tiles, t);
      with_rows(part_begin(x.rows, tiles, t + 1) - row, [&](auto tile) {
        clear(tile);
        multiply(tile, x.a + row * x.stride + part.begin, x.stride, slice, depth, ahead);
        add_to(tile, target.sums + row * target.stride, target.stride);
      });
    }
  }
}

// The product of a state with panels of floating-point weights.
template <class Format>
class FloatProduct {
 public:
  explicit FloatProduct(const Operand& x) : x_(x) {
    // Other cores have just written most of it; many rows wait less for it.
    for (std::int64_t r = 0; x.rows <= kFewRows && r < x.rows; ++r)
      for (std::int64_t k = 0; k < x.depth; k += kLineFloats)
        __builtin_prefetch(x.a + r * x.stride + k, 0, 3);
  }

  void add(const Target* targets, int count) const {
    if (x_.rows > kFewRows) {
      for (int i = 0; i < count; ++i) add_many<Format>(x_, targets[i]);
      return;
    }
    for_few_rows(x_.rows, targets, count, [&](auto rows, auto panels, const Target* group) {
      add_few<Format, decltype(rows)::value, decltype(panels)::value>(x_, group);
    });
  }

 private:
  Operand x_;
};

#if defined(SOFTGATE_ISA_AVX512)
// The product of a state with panels of float32 weights, from parts of both.
class SplitProduct {
 public:
  explicit SplitProduct(const Operand& x)
      : rows_{x.a, x.stride, x.rows, x.depth,
              scratch(static_cast<std::size_t>(split_bytes(x.rows, x.depth)))} {
    split(rows_);
  }

  void add(const Target* targets, int count) const {
    for (int i = 0; i < count; ++i)
      add_split_product(rows_, static_cast<const float*>(targets[i].panel), targets[i].sums,
                        targets[i].stride);
  }

 private:
  SplitRows rows_;
};
#endif

// The product of a state with panels of int8 weights, exact in integers but for the rounding of
// each row of the state to multiples of its largest magnitude / 127.
class Int8Product {
 public:
  explicit Int8Product(const Operand& x)
      : rows_(x.rows), depth_(ceil_div(x.depth, kDotDepth) * kDotDepth) {
    const std::int64_t element = sizeof(DotElement);
    auto* block = static_cast<char*>(
        scratch(static_cast<std::size_t>(rows_ * (stride() * element + 2 * kFloat))));
    quantised_ = reinterpret_cast<DotElement*>(block);
    scales_ = reinterpret_cast<float*>(block + rows_ * stride() * element);
    starts_ = reinterpret_cast<std::int32_t*>(scales_ + rows_);
    for (std::int64_t row = 0; row < rows_; ++row) quantise(x.a + row * x.stride, x.depth, row);
  }

  void add(const Target* targets, int count) const {
    if (rows_ <= kFewRows) {
      for_few_rows(rows_, targets, count, [&](auto rows, auto panels, const Target* group) {
        add_tile<decltype(rows)::value, decltype(panels)::value>(0, group);
      });
      return;
    }
    const std::int64_t tiles = ceil_div(rows_, kTileRows);
    for (int i = 0; i < count; ++i) {
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t row = part_begin(rows_, tiles, t);
        with_constant<kTileRows>(part_begin(rows_, tiles, t + 1) - row, [&](auto rows) {
          add_tile<decltype(rows)::value, 1>(row, targets + i);
        });
      }
    }
  }

 private:
  // Between rows, such that a whole vector can be written at a row's end.
  std::int64_t stride() const { return ceil_div(depth_, kLanes) * kLanes + kLineBytes; }

  void quantise(const float* x, std::int64_t depth, std::int64_t row) {
    const Quantised result = softgate::cpu::SOFTGATE_ISA::quantise(
        x, depth, quantised_ + row * stride(), ceil_div(depth_, kLanes) * kLanes);
    scales_[row] = result.scale;
    starts_[row] = result.start;
  }

  template <int R, int P>
  void add_tile(std::int64_t row, const Target* targets) const {
    vi c[R][P][2];
    const std::uint8_t* panel[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      panel[p] = static_cast<const std::uint8_t*>(targets[p].panel);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) c[r][p][0] = c[r][p][1] = set1_int(starts_[row + r]);
    }
    const DotElement* x = quantised_ + row * stride();
    for (std::int64_t k = 0; k < depth_; k += kDotDepth) {
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        const vw w0 = load_weights(panel[p] + k * kPanel);
        const vw w1 = load_weights(panel[p] + k * kPanel + kDotDepth * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const DotElement* values = x + r * stride() + k;
          c[r][p][0] = dot(c[r][p][0], w0, values);
          c[r][p][1] = dot(c[r][p][1], w1, values);
        }
      }
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const vf scale = set1(scales_[row + r]);
        float* sums = targets[p].sums + (row + r) * targets[p].stride;
        for (int j = 0; j < 2; ++j) {
          const vf column_scale = load(targets[p].scales + j * kLanes);
          store(sums + j * kLanes,
                fma(to_float(c[r][p][j]), mul(column_scale, scale), load(sums + j * kLanes)));
        }
      }
    }
  }

  std::int64_t rows_, depth_;
  DotElement* quantised_;  // [rows, stride]
  float* scales_;          // [rows]
  std::int32_t* starts_;   // [rows], what takes the weights' offset away again
};

}  // namespace
}  // namespace softgate::cpu::SOFTGATE_ISA
