// Groups of 32 integers of depth with a scale each, in the layouts that linear multiplies.
#pragma once

#include "cpu/dot.h"
#include "cpu/linear_format.h"
#include "cpu/tile.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {  // what is not inlined needs internal linkage

inline constexpr std::int64_t kStepBytes = kPanel * kDotDepth;
inline constexpr std::int64_t kHalfStepBytes = kStepBytes / 2;
inline constexpr std::int64_t kWideBytes = sizeof(vw);
inline constexpr std::int64_t kSliceBytes = 20 * 1024;

SG_INLINE const std::uint8_t* as_bytes(const char* p) {
  return reinterpret_cast<const std::uint8_t*>(p);
}

// A group's scales, minimums and integers, as they are stored.
template <bool Minimums>
struct ByteGroups {
  static constexpr bool kMinimums = Minimums;
  static constexpr std::int32_t kOffset = kDotOffset;
  static constexpr std::int64_t kScaleBytes = kPanel * 2 * (Minimums ? 2 : 1);
  static constexpr std::int64_t kBytes = kScaleBytes + kGroupSize * kPanel;

  SG_INLINE vf scale(const char* unit, int j) {
    return load_half(reinterpret_cast<const std::uint16_t*>(unit) + j * kLanes);
  }
  SG_INLINE vf minimum(const char* unit, int j) { return scale(unit, j + 2); }
  SG_INLINE void weights(const char* unit, std::int64_t step, vw& w0, vw& w1) {
    const std::uint8_t* p = as_bytes(unit) + kScaleBytes + step * kStepBytes;
    w0 = load_weights(p);
    w1 = load_weights(p + kHalfStepBytes);
  }
};

struct NibbleGroups : ByteGroups<true> {
  static constexpr std::int32_t kOffset = 0;
  static constexpr std::int64_t kBytes = kScaleBytes + kGroupSize * kLanes;

  SG_INLINE void weights(const char* unit, std::int64_t step, vw& w0, vw& w1) {
    load_nibbles(as_bytes(unit) + kScaleBytes + step * kHalfStepBytes, w0, w1);
  }
};

// Calls f with the groups of a format.
template <class F>
void with_groups(const PanelFormat& format, const F& f) {
  if (format.type == WeightType::int4)
    f(NibbleGroups{});
  else if (format.minimums)
    f(ByteGroups<true>{});
  else
    f(ByteGroups<false>{});
}

}  // namespace
}  // namespace softgate::cpu::SOFTGATE_ISA
