// How a launch runs its threads (executor.cc), for launch.h and the memory checks.
#pragma once

#include <cstddef>

#include "simt/simt.h"

namespace softgate::simt {

inline constexpr std::size_t kMaxSharedBytes = 163 << 10;  // as on 8.0
inline constexpr int kMultiprocessors = 4;
inline constexpr unsigned kMaxThreads = 1024;

struct Launch {
  const char* kernel;
  dim3 grid, block;
  std::size_t shared_bytes;
  bool cooperative;  // all blocks are resident and may call grid_sync
};

// Calls call(context) as every thread of the grid. Throws std::runtime_error for what a thread did
// wrong and std::invalid_argument for a shape that no card takes.
void run(const Launch& launch, void (*call)(void* context), void* context);

}  // namespace softgate::simt
