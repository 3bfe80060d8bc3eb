// linear on integer weights: rows of x are quantised first, then multiplied in integers.
#include "cpu/kernels.h"
#include "cpu/linear_groups.h"
#include "cpu/linear_task.h"
#include "cpu/quantised_rows.h"

namespace softgate::cpu::SOFTGATE_ISA {

std::int64_t linear_workspace(const PanelFormat& format, std::int64_t rows,
                              std::int64_t in_features);

namespace {

// Two integer and two float sums a row, two vectors of weights and one of x stay in registers.
constexpr int kGroupRows = kLanes == 16 ? 6 : kLanes == 8 ? 3 : 2;

// int8 with a scale per row: integer sums over the whole depth.
class RowProduct : public VectorProduct {
 public:
  static constexpr int kManyRows = kTileRows;
  static constexpr std::int64_t kHeadBytes = kRowHeadBytes;
  static constexpr std::int64_t kUnitBytes = kStepBytes;
  static constexpr std::int64_t kWideUnitBytes = 0;
  static constexpr std::int64_t kStepUnits = 8;
  static constexpr std::int64_t kSliceUnits = kSliceBytes / kUnitBytes;

  explicit RowProduct(const QuantisedRows& x) : x_(x) {}

  std::int64_t units() const { return x_.depth() / kDotDepth; }
  std::int64_t row_bytes() const { return x_.row_bytes(); }

  template <bool>
  void multiply(const Part& part, Prefetch& ahead) const {
    with_constant<kTileRows>(part.rows, [&](auto n) { add_rows<decltype(n)::value>(part, ahead); });
  }

 private:
  template <int R>
  [[gnu::noinline]] void add_rows(const Part& part, Prefetch& ahead) const {
    vi sums[R][2];
    auto* carried = reinterpret_cast<std::uint8_t*>(part.sums);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      sums[r][0] = part.is_first ? set1_int(*x_.starts(part.row + r))
                                 : load_wide(carried + 2 * r * kWideBytes);
      sums[r][1] = part.is_first ? sums[r][0] : load_wide(carried + (2 * r + 1) * kWideBytes);
    }
    const DotElement* x = x_.values(part.row) + part.range.begin * kDotDepth;
    const std::int64_t count = part.range.end - part.range.begin;
    const char* units = part.units;
    const auto load_step = [&](std::int64_t step, vw& w0, vw& w1) __attribute__((always_inline)) {
      w0 = load_weights(as_bytes(units) + step * kStepBytes);
      w1 = load_weights(as_bytes(units) + step * kStepBytes + kHalfStepBytes);
    };
    std::int64_t i = 0;
    for (; i + kStepUnits <= count; i += kStepUnits) {
      ahead.step();
      add_dots(sums, x, x_.stride(), kStepUnits, load_step);
      x += kStepUnits * kDotDepth;
      units += kStepUnits * kUnitBytes;
    }
    for (; i < count; ++i, x += kDotDepth, units += kUnitBytes)
      add_dots(sums, x, x_.stride(), 1, load_step);
    if (part.is_last) {
      const RowHead head(part.head);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        head.finish(sums[r], x_.shift(part.row + r), *x_.scales(part.row + r),
                    part.sums + r * kPanel);
      return;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      store_wide(carried + 2 * r * kWideBytes, sums[r][0]);
      store_wide(carried + (2 * r + 1) * kWideBytes, sums[r][1]);
    }
  }

  const QuantisedRows& x_;
};

// As the arithmetic wants them: scales and minimums in float32, integers as vectors.
struct WideGroups {
  static constexpr bool kMinimums = true;
  static constexpr std::int32_t kOffset = 0;
  static constexpr std::int64_t kScaleBytes = 2 * kPanel * kFloat;
  static constexpr std::int64_t kBytes = kScaleBytes + kGroupSize / kDotDepth * 2 * kWideBytes;

  SG_INLINE vf scale(const char* unit, int j) {
    return load(reinterpret_cast<const float*>(unit) + j * kLanes);
  }
  SG_INLINE vf minimum(const char* unit, int j) { return scale(unit, j + 2); }
  SG_INLINE void weights(const char* unit, std::int64_t step, vw& w0, vw& w1) {
    const std::uint8_t* p = as_bytes(unit) + kScaleBytes + step * 2 * kWideBytes;
    w0 = load_wide(p);
    w1 = load_wide(p + kWideBytes);
  }

  template <class Packed>
  SG_INLINE void fill(const char* unit, char* to) {
    auto* scales = reinterpret_cast<float*>(to);
    for (int j = 0; j < 2; ++j) {
      store(scales + j * kLanes, Packed::scale(unit, j));
      store(scales + (j + 2) * kLanes, Packed::minimum(unit, j));
    }
    auto* wide = reinterpret_cast<std::uint8_t*>(to) + kScaleBytes;
    for (std::int64_t step = 0; step < kGroupSize / kDotDepth; ++step) {
      vw w0, w1;
      Packed::weights(unit, step, w0, w1);
      store_wide(wide + step * 2 * kWideBytes, w0);
      store_wide(wide + step * 2 * kWideBytes + kWideBytes, w1);
    }
  }
};

// Integers with a scale per group: a chain of fused multiply-adds over the groups.
template <class Packed>
class GroupProduct : public VectorProduct {
 public:
  static constexpr int kManyRows = kGroupRows;
  // Only what is not stored as vectors read it is worth widening.
  static constexpr bool kWidens = Packed::kOffset == 0 && Packed::kMinimums;
  static constexpr std::int64_t kHeadBytes = 0;
  static constexpr std::int64_t kUnitBytes = Packed::kBytes;
  static constexpr std::int64_t kWideUnitBytes = kWidens ? WideGroups::kBytes : 0;
  static constexpr std::int64_t kStepUnits = 1;
  static constexpr std::int64_t kSliceUnits = kSliceBytes / WideGroups::kBytes;

  explicit GroupProduct(const QuantisedRows& x) : x_(x) {}

  std::int64_t units() const { return x_.stretches(); }
  std::int64_t row_bytes() const { return x_.row_bytes(); }

  void widen(const char* units, std::int64_t count, char* to) const {
    for (std::int64_t g = 0; g < count; ++g)
      WideGroups::fill<Packed>(units + g * kUnitBytes, to + g * WideGroups::kBytes);
  }

  template <bool Wide>
  void multiply(const Part& part, Prefetch& ahead) const {
    with_constant<Wide ? kGroupRows : kTileRows>(part.rows, [&](auto n) {
      if constexpr (Wide)
        add_groups<WideGroups, decltype(n)::value>(part, ahead);
      else
        add_groups<Packed, decltype(n)::value>(part, ahead);
    });
  }

 private:
  template <class Stored, int R>
  [[gnu::noinline]] void add_groups(const Part& part, Prefetch& ahead) const {
    // Sums of few rows stay in registers.
    constexpr bool kKept = R <= kGroupRows;
    float* const memory = part.sums;
    vf kept[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      kept[r][0] = part.is_first ? zero() : load(memory + r * kPanel);
      kept[r][1] = part.is_first ? zero() : load(memory + r * kPanel + kLanes);
      if constexpr (!kKept) {
        store(memory + r * kPanel, kept[r][0]);
        store(memory + r * kPanel + kLanes, kept[r][1]);
      }
    }
    const float *scales = x_.scales(part.row), *totals = x_.totals(part.row);
    const std::int32_t* starts = x_.starts(part.row);
    const DotElement* x = x_.values(part.row);
    const std::int64_t stretches = x_.stretches(), stride = x_.stride();
    const char* unit = part.units;
    for (std::int64_t g = part.range.begin; g < part.range.end; ++g, unit += Stored::kBytes) {
      ahead.step();
      vi dots[R][2];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        dots[r][0] = dots[r][1] = set1_int(Stored::kOffset == 0 ? 0 : starts[r * stretches + g]);
      add_dots(dots, x + g * kGroupSize, stride, kGroupSize / kDotDepth,
               [&](std::int64_t step, vw& w0, vw& w1)
                   __attribute__((always_inline)) { Stored::weights(unit, step, w0, w1); });
      const vf scale0 = Stored::scale(unit, 0), scale1 = Stored::scale(unit, 1);
      vf minimum0 = zero(), minimum1 = zero();
      if constexpr (Stored::kMinimums) {
        minimum0 = Stored::minimum(unit, 0);
        minimum1 = Stored::minimum(unit, 1);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        float* to = memory + r * kPanel;
        vf sum0 = kKept ? kept[r][0] : load(to), sum1 = kKept ? kept[r][1] : load(to + kLanes);
        if constexpr (Stored::kMinimums) {
          const vf total = set1(totals[r * stretches + g]);
          sum0 = fma(minimum0, total, sum0);
          sum1 = fma(minimum1, total, sum1);
        }
        const vf scale = set1(scales[r * stretches + g]);
        kept[r][0] = fma(to_float(dots[r][0]), mul(scale0, scale), sum0);
        kept[r][1] = fma(to_float(dots[r][1]), mul(scale1, scale), sum1);
        if constexpr (!kKept) {
          store(to, kept[r][0]);
          store(to + kLanes, kept[r][1]);
        }
      }
    }
    if constexpr (kKept) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        store(memory + r * kPanel, kept[r][0]);
        store(memory + r * kPanel + kLanes, kept[r][1]);
      }
    }
  }

  const QuantisedRows& x_;
};

}  // namespace

std::int64_t linear_workspace(const PanelFormat& format, std::int64_t rows,
                              std::int64_t in_features) {
  return format.is_integer() ? QuantisedRows(format, rows, in_features).bytes() : 0;
}

void linear_integers(const PanelLinearArgs& args) {
  const LinearArgs<float>& linear = args.linear;
  QuantisedRows x(args.format, linear.rows, linear.in_features);
  x.fill(linear, args.workspace);
  if (!args.format.grouped) return run_linear(args, RowProduct(x));
  with_groups(args.format,
              [&]<class Groups>(Groups) { run_linear(args, GroupProduct<Groups>(x)); });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
