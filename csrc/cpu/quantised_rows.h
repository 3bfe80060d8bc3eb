// Rows of x in integers, as linear on integer weights multiplies them.
#pragma once

#include "cpu/dot.h"
#include "cpu/linear_format.h"
#include "cpu/tile.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {  // what is not inlined needs internal linkage

// x in integers, in a workspace: a row is `stretches` stretches with a scale each. `tile` rows lie
// beside each other, kDepthStep of depth after the other.
class QuantisedRows {
 public:
  QuantisedRows(const PanelFormat& format, std::int64_t rows, std::int64_t in_features,
                std::int64_t tile = 1)
      : rows_(rows),
        in_features_(in_features),
        grouped_(format.grouped),
        stretches_(format.grouped ? in_features / kGroupSize : 1),
        depth_(ceil_div(in_features, kDepthStep) * kDepthStep),
        tile_(tile),
        // Rows that do not all fall into the same sets of the cache.
        row_elements_(depth_ + (tile > 1 ? 0 : kLineBytes)) {}

  std::int64_t bytes() const {
    return 3 * numbers() * kFloat + (rows_ + kRowsBeyond) * row_elements_ * kElement;
  }

  void fill(const LinearArgs<float>& args, void* workspace) {
    scales_ = static_cast<float*>(workspace);
    totals_ = scales_ + numbers();
    shifts_ = reinterpret_cast<std::int32_t*>(totals_);
    starts_ = shifts_ + numbers();
    values_ = reinterpret_cast<DotElement*>(starts_ + numbers());
    for_each_row_range(rows_, in_features_ * kFloat, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) fill_row(args.x + row * args.x_stride, row);
    });
  }

  std::int64_t depth() const { return depth_; }  // with the zeros that follow
  std::int64_t row_bytes() const { return row_elements_ * kElement; }
  // From a row to the next of its tile, and from a step of depth to the next.
  std::int64_t stride() const { return tile_ > 1 ? kDepthStep : row_elements_; }
  std::int64_t step() const { return tile_ * kDepthStep; }
  std::int64_t stretches() const { return stretches_; }
  DotElement* values(std::int64_t row) const {
    return values_ + (row - row % tile_) * row_elements_ + row % tile_ * kDepthStep;
  }
  const float* scales(std::int64_t row) const { return scales_ + row * stretches_; }
  const float* totals(std::int64_t row) const { return totals_ + row * stretches_; }
  std::int32_t shift(std::int64_t row) const { return shifts_[row]; }
  const std::int32_t* starts(std::int64_t row) const { return starts_ + row * stretches_; }

 private:
  static constexpr std::int64_t kRowsBeyond = 31;  // which tiles read, and nothing comes of it
  static constexpr std::int64_t kElement = sizeof(DotElement);

  std::int64_t numbers() const { return (rows_ + kRowsBeyond) * stretches_; }

  void fill_row(const float* x, std::int64_t row) {
    const RowPlace to = {values(row), step()};
    const std::int64_t i = row * stretches_;
    if (grouped_) {
      quantise_groups(x, stretches_, to, {scales_ + i, totals_ + i, starts_ + i});
      return;
    }
    const QuantisedRow result = quantise_row(x, in_features_, to, depth_);
    scales_[i] = result.scale;
    shifts_[i] = result.shift;
    starts_[i] = result.start;
  }

  std::int64_t rows_, in_features_;
  bool grouped_;
  std::int64_t stretches_, depth_, tile_, row_elements_;
  float *scales_ = nullptr, *totals_ = nullptr;         // of groups: scale * total
  std::int32_t *starts_ = nullptr, *shifts_ = nullptr;  // of rows
  DotElement* values_ = nullptr;
};

// What a panel of integers with a scale per row has for its columns.
struct RowHead {
  vf scales[2];
  vi totals[2];

  explicit RowHead(const char* head) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      scales[j] = load(reinterpret_cast<const float*>(head) + j * kLanes);
      totals[j] = load_wide(
          reinterpret_cast<const std::uint8_t*>(head + kPanel * kFloat + j * kLanes * kFloat));
    }
  }

  // sums: of products with a row's integers, which want `shift` more each.
  [[gnu::always_inline]] void finish(const vi (&sums)[2], std::int32_t shift, float scale,
                                     float* to) const {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const vi whole =
          sizeof(DotElement) > 1 ? sums[j] : add(sums[j], mul(totals[j], set1_int(shift)));
      store(to + j * kLanes, mul(to_float(whole), mul(scales[j], set1(scale))));
    }
  }
};

}  // namespace
}  // namespace softgate::cpu::SOFTGATE_ISA
