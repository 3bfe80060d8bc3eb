// Weights to integers, once, at load; what the integers mean is in ops/linear.h.
#pragma once

#include <cstdint>

#include "core/half.h"

namespace softgate {

// weight: [rows, columns], weight_stride elements between rows; values: [rows, columns].
struct QuantizeArgs {
  const float* weight;
  std::int64_t rows, columns, weight_stride;
  std::int8_t* values;
};

// Symmetric, a scale per row: scale = max |w| / 127, value = round(w * (127 / max |w|)), both zero
// where max |w| is at most 1e-36. A row that is not finite gets the scale NaN.
void quantize_rows(const QuantizeArgs& args, float* scales);

// 4 bits, for each `group` of a row: minimum = min w, scale = (max w - min w) / 15, both rounded to
// float16; value = round((w - minimum) / scale), at least 0 and at most 15. A group that is not
// finite, or beyond float16, gets a scale or minimum that is not finite either.
void quantize_groups(const QuantizeArgs& args, std::int64_t group, half* scales, half* minimums);

}  // namespace softgate
