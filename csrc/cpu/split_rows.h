// Rows that are split into parts once (cpu/bfloat16_parts.h) and multiplied with several panels.
#pragma once

#include <cstdint>

namespace softgate::cpu::SOFTGATE_ISA {

struct SplitRows {
  const float* x;  // [rows, depth]
  std::int64_t stride, rows, depth;
  void* memory;  // split_bytes(rows, depth)
};

std::int64_t split_bytes(std::int64_t rows, std::int64_t depth);
void split(const SplitRows& rows);

// sums += rows @ panel, of float32; rows of sums are sums_stride apart.
void add_split_product(const SplitRows& rows, const float* panel, float* sums,
                       std::int64_t sums_stride);

}  // namespace softgate::cpu::SOFTGATE_ISA
