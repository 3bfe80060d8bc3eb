// L2 normalisation of rows: out = x / max(sqrt(sum(x^2)), eps).
//
//   x, out: [rows, hidden]; out may be x.
#pragma once

#include <optional>

#include "core/tensor.h"

namespace softgate {

struct NormalizeArgs {
  const float* x;
  float* out;
  std::int64_t rows, hidden;
  std::int64_t x_stride, out_stride;  // elements between rows
  float eps;
};

Tensor normalize(const Tensor& x, double eps, std::optional<Tensor> out);

}  // namespace softgate
