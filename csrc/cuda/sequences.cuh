// Which sequence of a packed batch something belongs to.
#pragma once

#include "cuda/kernel.cuh"

namespace softgate::cuda {

// The first sequence that ends_behind holds for, or the last one; by a whole warp along x.
template <class EndsBehind>
__device__ __forceinline__ int find_sequence(int batch, EndsBehind ends_behind) {
  for (int first = 0;; first += kWarp) {
    const int sequence = first + static_cast<int>(threadIdx.x) % kWarp;
    const unsigned behind =
        __ballot_sync(kFullMask, sequence >= batch - 1 || ends_behind(sequence));
    if (behind != 0) return first + __ffs(static_cast<int>(behind)) - 1;
  }
}

}  // namespace softgate::cuda
