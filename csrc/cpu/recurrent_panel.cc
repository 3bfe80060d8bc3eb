// Panels of recurrent weights in the dtypes they are stored in.
#include "cpu/dot.h"
#include "cpu/recurrent.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {

// The upper half of a float's bits, rounded to nearest even; a NaN stays one.
std::uint32_t to_bfloat16(float x) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  if (x != x) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

void store_bfloat16(const PanelArgs& args) {
  auto* words = static_cast<std::uint32_t*>(args.stored);
  for (std::int64_t k = 0; k < args.depth; ++k) {
    const float* row = args.panel + k * kPanel;
    for (int j = 0; j < kLanes; ++j)
      words[k * kLanes + j] = to_bfloat16(row[j]) | to_bfloat16(row[j + kLanes]) << 16;
  }
}

void restore_bfloat16(const PanelArgs& args) {
  const auto* words = static_cast<const std::uint32_t*>(args.stored);
  for (std::int64_t k = 0; k < args.depth; ++k) {
    vf b0, b1;
    load_bfloat16(words + k * kLanes, b0, b1);
    store(args.panel + k * kPanel, b0);
    store(args.panel + k * kPanel + kLanes, b1);
  }
}

// Where an int8 panel keeps a weight: kDotDepth of a column follow each other.
std::int64_t int8_place(std::int64_t k, int column) {
  return (k / kDotDepth * kPanel + column) * kDotDepth + k % kDotDepth;
}

void store_int8(const PanelArgs& args) {
  auto* stored = static_cast<std::uint8_t*>(args.stored);
  __builtin_memset(stored, kDotOffset,
                   static_cast<std::size_t>(stored_panel_bytes(args.dtype, args.depth)));
  for (int j = 0; j < kPanel; ++j) {
    float largest = 0.0f;
    bool finite = true;
    for (std::int64_t k = 0; k < args.depth; ++k) {
      const float magnitude = __builtin_fabsf(args.panel[k * kPanel + j]);
      finite = finite && magnitude < __builtin_inff();
      if (magnitude > largest) largest = magnitude;
    }
    args.scales[j] = finite ? largest / 127.0f : __builtin_nanf("");
    if (!finite) continue;
    for (std::int64_t k = 0; k < args.depth; ++k) {
      const float q = __builtin_rintf(args.panel[k * kPanel + j] * int8_factor(largest));
      stored[int8_place(k, j)] = static_cast<std::uint8_t>(static_cast<int>(q) + kDotOffset);
    }
  }
}

void restore_int8(const PanelArgs& args) {
  const auto* stored = static_cast<const std::uint8_t*>(args.stored);
  for (std::int64_t k = 0; k < args.depth; ++k) {
    for (int j = 0; j < kPanel; ++j) {
      const auto q = static_cast<std::int8_t>(stored[int8_place(k, j)] - kDotOffset);
      args.panel[k * kPanel + j] = static_cast<float>(q) * args.scales[j];
    }
  }
}

}  // namespace

std::int64_t stored_panel_bytes(DType dtype, std::int64_t depth) {
  if (dtype == DType::float32) return depth * kPanel * kFloat;
  if (dtype == DType::bfloat16) return depth * kPanel * kFloat / 2;
  return ceil_div(depth, kDotDepth) * kDotDepth * kPanel;
}

void store_panel(const PanelArgs& args) {
  if (args.dtype == DType::bfloat16) return store_bfloat16(args);
  if (args.dtype == DType::int8) return store_int8(args);
  __builtin_memcpy(args.stored, args.panel,
                   static_cast<std::size_t>(stored_panel_bytes(args.dtype, args.depth)));
}

void restore_panel(const PanelArgs& args) {
  if (args.dtype == DType::bfloat16) return restore_bfloat16(args);
  if (args.dtype == DType::int8) return restore_int8(args);
  __builtin_memcpy(args.panel, args.stored,
                   static_cast<std::size_t>(stored_panel_bytes(args.dtype, args.depth)));
}

}  // namespace softgate::cpu::SOFTGATE_ISA
