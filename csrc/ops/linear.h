// Matrix product on a prepacked weight with everything that follows it fused, and rows of one.
//
//   linear   out = activation(x @ weight^T + bias) + residual
//   gated    out = activation(x @ gate^T + bias_gate) * (x @ up^T + bias_up) + residual,
//            of a weight that stacks [gate; up], as does its bias
//   gather   out = scale * weight[ids] + residual
//
//   x: [rows, in_features]   weight: [out_features, in_features]   bias: [out_features]
//   residual, out: [rows, out_features], half of them for a gated weight; out may be residual,
//   never x.   ids: [tokens], then residual, out: [tokens, in_features]
//
// Floating-point weights: each output is one chain of fused multiply-adds over in_features in
// order, in float32, whatever the weight is stored in.
//
// Integer weights stand for scale * integer + minimum, with a scale per row, or a scale and perhaps
// a minimum per group of 32 in a row. Each row of x is quantised over the same stretch:
//
//   per row      between its lowest number and its highest, or zero: s = (high - low) / 255,
//                q = min(round(x / s), round(low / s) + 255)
//   per group    symmetrically: s = max |x| / 127, q = round(x / s)
//
// and q = 0 where s, or max |x|, is at most 1e-36. A stretch where x is not finite makes the whole
// row of out NaN. Then, with exact sums in 32-bit integers,
//
//   per row      sum = (scale * s) * dot(q, integers)
//   per group    sum = chain over groups of: + (s * total(q)) * minimum
//                                            + (scale * s) * dot(q, integers)
//
// The minimum meets the quantised x, not x itself: the error of q then counts times the weight,
// which a minimum moves close to zero, not times the integer's part of it.
//
// The order of a sum is the same whatever the number of rows and threads: results do not depend on
// the batch. But where Kernels::splits, products of many rows with floating-point weights are
// formed from parts of the numbers (cpu/bfloat16_parts.h), as accurately.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "core/half.h"
#include "core/tensor.h"

namespace softgate {

enum class Activation { none, gelu, gelu_tanh, relu, silu, tanh };

template <class T>
struct LinearArgs {
  const T* x;
  const T* weight;    // [out_features, in_features]; unused on the CPU and where integers
  const T* bias;      // or null
  const T* residual;  // or null
  T* out;
  std::int64_t rows, in_features, out_features;
  std::int64_t x_stride, residual_stride, out_stride;  // elements between rows
  Activation activation;
  bool gated = false;  // unused on the CPU
};

// int4: from 0 to 15.
enum class WeightType : std::uint8_t { float32, float16, bfloat16, int8, int4 };

constexpr const char* name(WeightType type) {
  switch (type) {
    case WeightType::float32: return "float32";
    case WeightType::float16: return "float16";
    case WeightType::bfloat16: return "bfloat16";
    case WeightType::int8: return "int8";
    case WeightType::int4: return "int4";
  }
  return "unknown";
}

inline constexpr std::int64_t kGroupSize = 32;

// 128 * 127 times it is less than 2^31, and 127 times it less than 2^24.
inline constexpr std::int64_t kMaxIntegerDepth = std::int64_t{1} << 16;

// How a weight is stored on the CPU. A panel is panel_width output features, the last one filled up
// with zeros; panels follow each other without gaps. Those of a gated weight hold panel_width / 2
// features of the gate, then as many of what it gates.
struct PanelFormat {
  WeightType type = WeightType::float32;
  bool grouped = false;   // integers: scales per group, not per row
  bool minimums = false;  // groups: always for int4
  bool gated = false;

  constexpr bool is_integer() const { return type == WeightType::int8 || type == WeightType::int4; }
};

struct PanelLinearArgs {
  LinearArgs<float> linear;
  PanelFormat format;
  const void* panels;
  void* workspace;  // linear_workspace bytes
  bool splits;      // what Kernels::splits said of the weight
};

// Integers on a device other than the CPU (ops/device_panel.h).
template <class T>
struct IntegerLinearArgs {
  LinearArgs<T> linear;
  PanelFormat format;
  const void* panels;
  void* workspace;  // device_panel::workspace_bytes
};

// To or from panels.
struct PackArgs {
  void* weight;  // [out_features, in_features]: float32, 16-bit, or integers as int8
  void* packed;
  std::int64_t in_features, out_features;
  std::int64_t weight_stride;  // elements between rows
  PanelFormat format = {};
  // Integers, contiguous.
  float* row_scales = nullptr;        // [out_features]
  std::uint16_t* scales = nullptr;    // float16 [out_features, in_features / 32]
  std::uint16_t* minimums = nullptr;  // likewise
};

// T: of residual and out, and on a device of a floating-point weight.
template <class T>
struct GatherArgs {
  const void* packed;
  PanelFormat format;
  std::int64_t in_features, out_features;
  const void* ids;  // [tokens], or null: 0, 1, 2, ...
  bool ids_are_int64;
  float scale;
  const T* residual;  // or null
  T* out;
  std::int64_t tokens;
  std::int64_t residual_stride, out_stride;
};

// A quantised weight as it is stored.
struct QuantizedTensors {
  Tensor values;                   // int8 [out_features, in_features]
  Tensor scales;                   // float32 [out_features], or float16 [out_features, groups]
  std::optional<Tensor> minimums;  // float16 [out_features, groups]
};

// A weight in the layout that the kernels of its device read: on the CPU panels for one ISA,
// elsewhere rows without gaps, of any floating dtype, or the panels of ops/device_panel.h.
// Immutable and shared.
class PackedWeight {
 public:
  // weight: [out_features, in_features], float32, float16 or bfloat16, on the device that the pack
  // is for. Without a dtype it keeps its own; with one of WeightType's names it is rounded to it,
  // on a device only to integers.
  explicit PackedWeight(const Tensor& weight, const std::optional<std::string>& dtype = {},
                        bool gated = false);

  // values: int8 [out_features, in_features]; scales: float32 [out_features] where bits is 8, or
  // float32 or float16 [out_features, in_features / 32], as are minimums. All on one device.
  PackedWeight(const Tensor& values, const Tensor& scales, const std::optional<Tensor>& minimums,
               int bits, bool gated);

  // float32 [out_features, in_features], or on a device as given: bit for bit what was packed,
  // where that loses no bits; of integers what they stand for, as float32.
  Tensor unpack() const;

  // On the CPU, wherever the weight is. Throws unless the type is int8 or int4.
  QuantizedTensors quantized() const;

  std::int64_t in_features() const { return in_features_; }
  std::int64_t out_features() const { return out_features_; }
  WeightType type() const { return format_.type; }
  const PanelFormat& format() const { return format_; }
  Device device() const { return packed_.device(); }
  std::size_t bytes() const { return packed_.bytes(); }
  // Of such magnitudes that kernels may compute with parts of its numbers (cpu/bfloat16_parts.h).
  bool splits() const { return splits_; }
  const std::string& isa() const { return isa_; }  // empty but on the CPU
  template <class T>
  const T* data() const {
    return packed_.data<T>();
  }

  // Throws, naming `op`, when the CPU's kernels in use read another layout.
  void check_isa(const char* op) const;

 private:
  void allocate_panels();
  PackArgs pack_args(const Tensor& weight) const;
  void quantize(const Tensor& weight, Device device);
  void store(const QuantizedTensors& tensors, Device device);

  Tensor packed_;  // bytes of panels, or the weight on its device
  std::int64_t in_features_ = 0, out_features_ = 0;
  PanelFormat format_;
  bool has_minimums_ = false;
  std::string isa_;
  bool splits_ = false;
};

Tensor linear(const Tensor& x, const PackedWeight& weight, const std::optional<Tensor>& bias,
              const std::string& activation, const std::optional<Tensor>& residual,
              std::optional<Tensor> out);

// On a device, which nobody waits for, an id outside the weight makes NaN of its row.
Tensor gather(const PackedWeight& weight, const Tensor& ids, double scale,
              const std::optional<Tensor>& residual, std::optional<Tensor> out);

}  // namespace softgate
