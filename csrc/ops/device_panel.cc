#include "ops/device_panel.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/parallel.h"

namespace softgate::device_panel {
namespace {

// One feature in its panel.
class Column {
 public:
  Column(std::uint8_t* panels, const PanelFormat& format, std::int64_t in_features, Place place)
      : panel_(panels + place.panel * panel_bytes(format, in_features)),
        column_(place.column),
        four_bits_(format.type == WeightType::int4),
        unit_bytes_(unit_bytes(format)),
        head_bytes_(head_bytes(format)),
        value_bytes_(value_bytes(format)) {}

  float& row_scale() const { return reinterpret_cast<float*>(panel_)[column_]; }
  std::int32_t& row_total() const {
    return reinterpret_cast<std::int32_t*>(panel_)[kColumns + column_];
  }
  std::uint16_t& scale(std::int64_t group) const {
    return reinterpret_cast<std::uint16_t*>(unit(group) + value_bytes_)[column_];
  }
  std::uint16_t& minimum(std::int64_t group) const { return (&scale(group))[kColumns]; }

  std::int8_t get(std::int64_t k) const {
    return static_cast<std::int8_t>(four_bits_ ? *byte(k) >> shift(k) & 15 : *byte(k));
  }
  // Four bits only once, into zeros.
  void set(std::int64_t k, std::int8_t value) const {
    const auto bits = static_cast<std::uint8_t>(value);
    *byte(k) = four_bits_ ? static_cast<std::uint8_t>(*byte(k) | bits << shift(k)) : bits;
  }

 private:
  static int shift(std::int64_t k) { return k % 8 < 4 ? 0 : 4; }

  std::uint8_t* byte(std::int64_t k) const {
    const std::int64_t lane = column_ / 2 * 4 + k % kDepth / 8, part = lane * 2 + column_ % 2;
    return unit(k / kDepth) + (four_bits_ ? part * 4 + k % 4 : part * 8 + k % 8);
  }
  std::uint8_t* unit(std::int64_t i) const { return panel_ + head_bytes_ + i * unit_bytes_; }

  std::uint8_t* panel_;
  int column_;
  bool four_bits_;
  std::int64_t unit_bytes_, head_bytes_, value_bytes_;
};

// body(feature, its column), over threads that share no panel.
template <class Body>
void for_each_feature(std::uint8_t* panels, const PanelFormat& format, std::int64_t out_features,
                      std::int64_t in_features, const Body& body) {
  const std::int64_t half = format.gated ? out_features / 2 : out_features;
  const std::int64_t step = format.gated ? kColumns / 2 : kColumns;
  parallel_for((half + step - 1) / step, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t feature = begin * step; feature < std::min(end * step, half); ++feature)
      for (std::int64_t f = feature; f < out_features; f += half)
        body(f, Column(panels, format, in_features, place_of(format, out_features, f)));
  });
}

}  // namespace

Tensor to_panels(const QuantizedTensors& tensors, const PanelFormat& format) {
  const Tensor& values = tensors.values;
  const std::int64_t out_features = values.size(0), in_features = values.size(1);
  const std::int64_t groups = in_features / kGroupSize;
  const Tensor panels =
      Tensor::empty({panels_of(out_features), panel_bytes(format, in_features)}, DType::int8);
  std::memset(panels.raw(), 0, panels.bytes());
  for_each_feature(panels.data<std::uint8_t>(), format, out_features, in_features,
                   [&](std::int64_t feature, const Column& column) {
                     const auto* value = values.data<std::int8_t>() + feature * values.stride(0);
                     for (std::int64_t k = 0; k < in_features; ++k) column.set(k, value[k]);
                     if (!format.grouped) {
                       column.row_scale() = tensors.scales.data<float>()[feature];
                       column.row_total() = std::accumulate(value, value + in_features, 0);
                     }
                     for (std::int64_t g = 0; format.grouped && g < groups; ++g) {
                       const std::int64_t i = feature * groups + g;
                       column.scale(g) = tensors.scales.data<std::uint16_t>()[i];
                       if (tensors.minimums)
                         column.minimum(g) = tensors.minimums->data<std::uint16_t>()[i];
                     }
                   });
  return panels;
}

QuantizedTensors from_panels(const Tensor& panels, const PanelFormat& format,
                             std::int64_t out_features, std::int64_t in_features,
                             bool with_minimums) {
  const std::int64_t groups = in_features / kGroupSize;
  const Dims of_groups = {out_features, groups};
  QuantizedTensors tensors;
  tensors.values = Tensor::empty({out_features, in_features}, DType::int8);
  tensors.scales = format.grouped ? Tensor::empty(of_groups, DType::float16)
                                  : Tensor::empty({out_features}, DType::float32);
  if (with_minimums) tensors.minimums = Tensor::empty(of_groups, DType::float16);
  for_each_feature(panels.data<std::uint8_t>(), format, out_features, in_features,
                   [&](std::int64_t feature, const Column& column) {
                     auto* value = tensors.values.data<std::int8_t>() + feature * in_features;
                     for (std::int64_t k = 0; k < in_features; ++k) value[k] = column.get(k);
                     if (!format.grouped)
                       tensors.scales.data<float>()[feature] = column.row_scale();
                     for (std::int64_t g = 0; format.grouped && g < groups; ++g) {
                       const std::int64_t i = feature * groups + g;
                       tensors.scales.data<std::uint16_t>()[i] = column.scale(g);
                       if (with_minimums)
                         tensors.minimums->data<std::uint16_t>()[i] = column.minimum(g);
                     }
                   });
  return tensors;
}

}  // namespace softgate::device_panel
