// Matrix product on a prepacked weight with everything that follows it fused.
//
//   out = activation(x @ weight^T + bias) + residual
//
//   x: [rows, in_features]   weight: [out_features, in_features]   bias: [out_features]
//   residual, out: [rows, out_features]; out may be residual, never x.
//
// Each output is one chain of fused multiply-adds over in_features in order, whatever the number
// of rows and threads: results do not depend on the batch.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/tensor.h"

namespace softgate {

enum class Activation { none, gelu, gelu_tanh, relu, silu, tanh };

template <class T>
struct LinearArgs {
  const T* x;
  const T* weight;    // CPU: panels, see PackArgs; elsewhere [out_features, in_features]
  const T* bias;      // or null
  const T* residual;  // or null
  T* out;
  std::int64_t rows, in_features, out_features;
  std::int64_t x_stride, residual_stride, out_stride;  // elements between rows
  Activation activation;
};

// A packed weight is a list of panels of `panel_width` output features, each [in_features,
// panel_width]; the last is filled up with zeros.
struct PackArgs {
  float* weight;  // [out_features, in_features]
  float* packed;
  std::int64_t in_features, out_features;
  std::int64_t weight_stride;  // elements between rows
};

// A weight in the layout that the kernels of its device read: on the CPU the panels of one ISA, of
// float32, elsewhere rows without gaps, of any floating dtype. Immutable and shared.
class PackedWeight {
 public:
  // weight: [out_features, in_features].
  explicit PackedWeight(const Tensor& weight);

  // The weight as given, bit for bit.
  Tensor unpack() const;

  std::int64_t in_features() const { return in_features_; }
  std::int64_t out_features() const { return out_features_; }
  DType dtype() const { return packed_.dtype(); }
  Device device() const { return packed_.device(); }
  std::size_t bytes() const { return packed_.bytes(); }
  const std::string& isa() const { return isa_; }  // empty but on the CPU
  template <class T>
  const T* data() const {
    return packed_.data<T>();
  }

 private:
  Tensor packed_;
  std::int64_t in_features_, out_features_;
  std::string isa_;
};

Tensor linear(const Tensor& x, const PackedWeight& weight, const std::optional<Tensor>& bias,
              const std::string& activation, const std::optional<Tensor>& residual,
              std::optional<Tensor> out);

}  // namespace softgate
