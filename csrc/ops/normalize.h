// L2 normalisation of rows: out = x / max(sqrt(sum(x^2)), eps).
//
//   x, out: [rows, hidden]; out may be x.
//
// Rows whose squares overflow or underflow float32 are scaled by a power of two first, so that any
// finite row gets its norm. A row with NaN gives NaN; one with infinities gives NaN there, else 0.
#pragma once

#include <optional>

#include "core/tensor.h"

namespace softgate {

template <class T>
struct NormalizeArgs {
  const T* x;
  T* out;
  std::int64_t rows, hidden;
  std::int64_t x_stride, out_stride;  // elements between rows
  float eps;
};

Tensor normalize(const Tensor& x, double eps, std::optional<Tensor> out);

}  // namespace softgate
