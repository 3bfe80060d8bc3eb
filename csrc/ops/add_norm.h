// Residual addition fused with layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019).
//
//   s   = x + residual                              (s = x without residual)
//   out = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias      layer norm
//   out = s / sqrt(mean(s^2) + eps) * weight                      RMS norm
//
//   x, residual, out, sum: [rows, hidden]     weight, bias: [hidden]
//
// All are of one dtype; s and the statistics over hidden are float32, in two passes. Where the
// squares (s - mean)^2, or s^2, overflow float32, the normalized row is 0: out is bias. out may be
// x or residual; sum, when given, receives s and may be x or residual too, but not out. Nothing is
// written where hidden is 0.
#pragma once

#include <optional>

#include "core/tensor.h"

namespace softgate {

template <class T>
struct AddNormArgs {
  const T* x;
  const T* residual;  // or null
  const T* weight;
  const T* bias;  // or null
  T* out;
  T* sum;  // or null
  std::int64_t rows, hidden;
  std::int64_t x_stride, residual_stride, out_stride, sum_stride;  // elements between rows
  float eps;
  bool center;  // layer norm when true, RMS norm when false
};

Tensor add_layer_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
                      const std::optional<Tensor>& bias, double eps, std::optional<Tensor> out,
                      std::optional<Tensor> sum_out);

Tensor add_rms_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
                    double eps, std::optional<Tensor> out, std::optional<Tensor> sum_out);

}  // namespace softgate
