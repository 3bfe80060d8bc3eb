// Where a packed weight's elements lie. A panel is a head and units of depth; a unit of
//
//   float32, float16   [kPanel]
//   bfloat16           [kLanes] pairs, the second kLanes columns on: one load gives two vectors
//   int8 per row       [kDepthStep / kDotDepth, kPanel, kDotDepth], after a head of float32 scales
//                      and int32 totals of the integers, [kPanel] each
//   int8 groups        float16 scales [kPanel], perhaps minimums [kPanel],
//                      [32 / kDotDepth, kPanel, kDotDepth]
//   int4 groups        float16 scales, minimums, [32 / kDotDepth, kLanes, kDotDepth] pairs, the
//                      second in the upper four bits and kLanes columns on
//
// 8-bit integers are stored plus kDotOffset.
#pragma once

#include "cpu/dot.h"
#include "ops/linear.h"

namespace softgate::cpu::SOFTGATE_ISA {

inline constexpr std::int64_t kRowHeadBytes = kPanel * 8;

struct Geometry {
  std::int64_t head_bytes, unit_depth, unit_bytes;
};

SG_INLINE Geometry geometry(const PanelFormat& format) {
  const std::int64_t scales = kPanel * 2 * (format.minimums ? 2 : 1);
  switch (format.type) {
    case WeightType::float32: return {0, 1, kPanel * 4};
    case WeightType::float16:
    case WeightType::bfloat16: return {0, 1, kPanel * 2};
    case WeightType::int4: return {0, kGroupSize, scales + kGroupSize * kLanes};
    case WeightType::int8: break;
  }
  if (format.grouped) return {0, kGroupSize, scales + kGroupSize * kPanel};
  return {kRowHeadBytes, kDepthStep, kDepthStep * kPanel};
}

SG_INLINE std::int64_t bytes_of_panel(const Geometry& g, std::int64_t in_features) {
  return g.head_bytes + ceil_div(in_features, g.unit_depth) * g.unit_bytes;
}

// The output feature of a panel's column, or -1 for one that fills the last panel up.
SG_INLINE std::int64_t feature_of(const PanelFormat& format, std::int64_t out_features,
                                  std::int64_t panel, int column) {
  if (!format.gated) {
    const std::int64_t feature = panel * kPanel + column;
    return feature < out_features ? feature : -1;
  }
  const std::int64_t half = out_features / 2, feature = panel * kLanes + column % kLanes;
  if (feature >= half) return -1;
  return column < kLanes ? feature : half + feature;
}

struct Place {
  std::int64_t panel;
  int column;
};

SG_INLINE Place place_of(const PanelFormat& format, std::int64_t out_features,
                         std::int64_t feature) {
  if (!format.gated) return {feature / kPanel, static_cast<int>(feature % kPanel)};
  const std::int64_t half = out_features / 2, gate = feature % half;
  return {gate / kLanes, static_cast<int>(gate % kLanes) + (feature < half ? 0 : kLanes)};
}

SG_INLINE std::int64_t panels_of(const PanelFormat& format, std::int64_t out_features) {
  return format.gated ? ceil_div(out_features / 2, kLanes) : ceil_div(out_features, kPanel);
}

}  // namespace softgate::cpu::SOFTGATE_ISA
