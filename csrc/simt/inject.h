// Faults on demand: while the n-th point of a kind is injected into a kernel, its launches behave
// as if the line of source behind that point were missing or wrong. tests/test_injected_faults.py
// uses the functions at the end of inject.cc to show that such a line would be noticed.
#pragma once

#include <array>
#include <cstddef>

namespace softgate::simt {

// What is counted, and what happens at the n-th one. Of each thread:
enum class Point {
  barrier,       // __syncthreads: it does not happen
  grid_barrier,  // grid_sync: likewise
  warp_barrier,  // __syncwarp: likewise
  wait,          // for asynchronous copies: likewise
  copy,          // asynchronous: it lands a chunk further on
  mask,          // of a warp function: its last lane is flipped
  // Of each block:
  thread,  // it has its neighbour's threadIdx
  // Of the grid:
  block,  // it has its neighbour's blockIdx
};
inline constexpr std::size_t kPoints = 8;
using PointCounts = std::array<int, kPoints>;

// The number of the point to fail in launches of this kernel, or -1.
int injected(const char* kernel, Point point);

// Keeps the largest that this kernel's launches come to.
void record_launch(const char* kernel, const PointCounts& points, std::size_t shared_bytes);

}  // namespace softgate::simt
