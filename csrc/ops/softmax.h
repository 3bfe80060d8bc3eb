// out = exp(x - max(x)) / sum(exp(x - max(x))) over the last dimension.
//
//   x, out: [..., columns]; out may be x. A row of -inf only gives zeros, one with NaN or
//   +inf gives NaN.
#pragma once

#include <optional>

#include "core/tensor.h"

namespace softgate {

template <class T>
struct SoftmaxArgs {
  const T* x;
  T* out;
  std::int64_t rows, columns;
  std::int64_t x_stride, out_stride;  // elements between rows
};

Tensor softmax(const Tensor& x, std::optional<Tensor> out);

}  // namespace softgate
