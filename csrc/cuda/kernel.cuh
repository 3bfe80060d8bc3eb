// What every kernel file includes: the CUDA language, from nvcc or from simt.
#pragma once

#ifdef SOFTGATE_SIMT
#include "simt/simt.h"
#endif

namespace softgate::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kFullMask = 0xffffffffu;

// This block's dynamic shared memory, aligned to 128 bytes. The only way to shared memory.
#ifdef SOFTGATE_SIMT
inline unsigned char* shared_memory() { return simt::shared_memory(); }
#else
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}
#endif

// Waits for all threads of all blocks of a cooperative launch; what they wrote before is visible
// after. `arrivals` is one counter in global memory, zero before the launch, for this grid alone.
#ifdef SOFTGATE_SIMT
inline void grid_sync(unsigned*) { simt::grid_sync(); }
#else
__device__ __forceinline__ void grid_sync(unsigned* arrivals) {
  const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
  // A barrier needs whole warps, and PTX promises no reconvergence after a branch.
  __syncwarp();
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    __threadfence();
    const unsigned goal = (atomicAdd(arrivals, 1u) / blocks + 1) * blocks;
    while (static_cast<int>(*static_cast<volatile unsigned*>(arrivals) - goal) < 0) {
    }
    __threadfence();
  }
  __syncwarp();
  __syncthreads();
}
#endif

}  // namespace softgate::cuda
