#include "core/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/parallel.h"

namespace softgate {
namespace {

constexpr std::int64_t kRowsAtOnce = 16;

struct Range {
  float lowest, highest;  // NaN once a value is not finite
};

Range range_of(const float* w, std::int64_t n) {
  float lowest = w[0], highest = w[0], check = 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    lowest = std::min(lowest, w[i]);
    highest = std::max(highest, w[i]);
    check += w[i] * 0.0f;
  }
  return {lowest + check, highest + check};
}

template <class Body>
void for_each_row(const QuantizeArgs& args, const Body& body) {
  parallel_for(args.rows, kRowsAtOnce, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row)
      body(row, args.weight + row * args.weight_stride, args.values + row * args.columns);
  });
}

void quantize_group(const float* w, std::int64_t n, std::int8_t* values, half& scale,
                    half& minimum) {
  const Range range = range_of(w, n);
  minimum = half(range.lowest);
  scale = half((range.highest - range.lowest) / 15.0f);
  const auto s = static_cast<float>(scale), m = static_cast<float>(minimum);
  const bool usable = s > 0.0f && std::isfinite(s) && std::isfinite(m);
  for (std::int64_t i = 0; i < n; ++i) {
    const float q = usable ? std::nearbyint((w[i] - m) / s) : 0.0f;
    values[i] = static_cast<std::int8_t>(std::clamp(q, 0.0f, 15.0f));
  }
}

}  // namespace

void quantize_rows(const QuantizeArgs& args, float* scales) {
  for_each_row(args, [&](std::int64_t row, const float* w, std::int8_t* values) {
    const Range range = range_of(w, args.columns);
    const float largest = std::max(std::fabs(range.lowest), std::fabs(range.highest));
    const bool usable = largest > 1e-36f;  // false for NaN
    scales[row] = usable || largest != largest ? largest / 127.0f : 0.0f;
    const float factor = usable ? 127.0f / largest : 0.0f;
    for (std::int64_t i = 0; i < args.columns; ++i)
      values[i] = static_cast<std::int8_t>(usable ? std::nearbyint(w[i] * factor) : 0.0f);
  });
}

void quantize_groups(const QuantizeArgs& args, std::int64_t group, half* scales, half* minimums) {
  const std::int64_t groups = args.columns / group;
  for_each_row(args, [&](std::int64_t row, const float* w, std::int8_t* values) {
    for (std::int64_t g = 0; g < groups; ++g)
      quantize_group(w + g * group, group, values + g * group, scales[row * groups + g],
                     minimums[row * groups + g]);
  });
}

}  // namespace softgate
