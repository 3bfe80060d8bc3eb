// Integer weights on a device other than the CPU, and x once it is quantised: in the order in which
// the tensor cores' m16n8k32 takes its operands, so that a lane loads its part of one as a vector.
//
// A weight is panels of 16 columns, each a feature; x is tiles of 8 rows; both are filled up with
// zeros, as is their depth up to units of 32. Lane 4 g + t of a warp has of a unit of x elements 8
// t to 8 t + 7 of row g, and of a unit of weight those of columns 2 g and 2 g + 1, the product's
// rows g and g + 8. In bytes,
//
//   panel   where scales are per row float32 scales and int32 totals of the integers, [16] each,
//           then units:
//           int8: [32 lanes, 2 columns, 8], int4: [32 lanes, 2 columns, 4] pairs of elements, the
//           second in the upper four bits and 4 of depth on;
//           where scales are per group, float16 scales [16], perhaps minimums [16]
//   tile    units [8 rows, 32]
//
// The workspace of a product is the tiles of x, aligned to 16 bytes, then pairs of eight, [tiles,
// 2, 8] per row or [tiles, groups, 2, 8]: float32 scales, and per row what the integers want added,
// int32, or per group a scale times the total of the integers.
#pragma once

#include "core/half.h"
#include "ops/linear.h"

namespace softgate::device_panel {

inline constexpr int kColumns = 16, kRows = 8, kDepth = 32, kLanes = 32;
inline constexpr int kTileBytes = kRows * kDepth;  // of one unit

SG_HOST_DEVICE constexpr int head_bytes(const PanelFormat& format) {
  return format.grouped ? 0 : kColumns * 8;
}

SG_HOST_DEVICE constexpr int scale_bytes(const PanelFormat& format) {
  return format.grouped ? kColumns * 2 * (format.minimums ? 2 : 1) : 0;
}

SG_HOST_DEVICE constexpr int value_bytes(const PanelFormat& format) {
  return kLanes * (format.type == WeightType::int4 ? 8 : 16);
}

SG_HOST_DEVICE constexpr int unit_bytes(const PanelFormat& format) {
  return value_bytes(format) + scale_bytes(format);
}

SG_HOST_DEVICE constexpr std::int64_t units_of(std::int64_t in_features) {
  return (in_features + kDepth - 1) / kDepth;
}

SG_HOST_DEVICE constexpr std::int64_t panel_bytes(const PanelFormat& format,
                                                  std::int64_t in_features) {
  return head_bytes(format) + units_of(in_features) * unit_bytes(format);
}

SG_HOST_DEVICE constexpr std::int64_t panels_of(std::int64_t out_features) {
  return (out_features + kColumns - 1) / kColumns;  // a gated weight's half fills half a panel
}

SG_HOST_DEVICE constexpr std::int64_t tiles_of(std::int64_t rows) {
  return (rows + kRows - 1) / kRows;
}

SG_HOST_DEVICE constexpr std::int64_t workspace_bytes(const PanelFormat& format, std::int64_t rows,
                                                      std::int64_t in_features) {
  const std::int64_t units = units_of(in_features), pairs = format.grouped ? units : 1;
  return tiles_of(rows) * (units * kTileBytes + pairs * 2 * kRows * 4);
}

struct Place {
  std::int64_t panel;
  int column;
};

// Of a feature. A gated weight has features of the gate in even columns, beside what they gate.
SG_HOST_DEVICE constexpr Place place_of(const PanelFormat& format, std::int64_t out_features,
                                        std::int64_t feature) {
  if (!format.gated) return {feature / kColumns, static_cast<int>(feature % kColumns)};
  const std::int64_t half = out_features / 2, gate = feature % half;
  return {gate / (kColumns / 2),
          static_cast<int>(gate % (kColumns / 2)) * 2 + (feature < half ? 0 : 1)};
}

// Tensors on the CPU: int8 [panels, panel_bytes] from what `format` describes, and back.
Tensor to_panels(const QuantizedTensors& tensors, const PanelFormat& format);
QuantizedTensors from_panels(const Tensor& panels, const PanelFormat& format,
                             std::int64_t out_features, std::int64_t in_features,
                             bool with_minimums);

}  // namespace softgate::device_panel
