// Reductions over the threads of a warp or a block, always in the same order.
#pragma once

#include "cuda/kernel.cuh"

namespace softgate::cuda {

struct Sum {
  static constexpr float kIdentity = 0.0f;
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// NaN wins, as in the CPU's kernels.
struct Max {
  static constexpr float kIdentity = -INFINITY;
  __device__ __forceinline__ float operator()(float a, float b) const {
    return a > b || a != a ? a : b;
  }
};

// Over kWidth neighbouring lanes, a power of two; every lane gets the result.
template <class Op, int kWidth = kWarp>
__device__ __forceinline__ float warp_reduce(float value, Op op = {}) {
#pragma unroll
  for (int step = kWidth / 2; step > 0; step /= 2)
    value = op(value, __shfl_xor_sync(kFullMask, value, step));
  return value;
}

// Over the `threads` threads of a one-dimensional block, a multiple of 32; every thread gets the
// result. `scratch` is shared memory for 32 floats; it may be used again after the next barrier.
template <class Op>
__device__ __forceinline__ float block_reduce(float value, float* scratch, int threads,
                                              Op op = {}) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  value = warp_reduce(value, op);
  if (lane == 0) scratch[warp] = value;
  __syncwarp();  // bar.sync wants the warp together
  __syncthreads();
  return warp_reduce(lane < threads / kWarp ? scratch[lane] : Op::kIdentity, op);
}

}  // namespace softgate::cuda
