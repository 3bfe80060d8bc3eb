// Kernels with one planted bug each, and some without, for tests/test_simt.py.
#include <cstring>
#include <exception>
#include <string>

#include "cuda/launch.h"

namespace faults {

using softgate::cuda::grid_sync;
using softgate::cuda::launch;
using softgate::cuda::shared_memory;
namespace simt = softgate::simt;

__device__ float* floats() { return reinterpret_cast<float*>(shared_memory()); }

__global__ void barrier_for_some(float*) {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void barrier_at_two_places(float*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_against_collective(float* out) {
  if (threadIdx.x == 3)
    __syncthreads();
  else
    out[0] = __shfl_sync(0xffffffffu, 1.0f, 0);
}

__global__ void collective_for_some(float* out) {
  if (threadIdx.x % 32 == 5) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void two_collectives(float* out) {
  if (threadIdx.x % 2 == 0)
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  else
    out[threadIdx.x] = static_cast<float>(__ballot_sync(0xffffffffu, 1));
}

__global__ void mask_without_own_lane(float*) { __syncwarp(0xfffffffeu); }

__global__ void shuffle_from_outside_mask(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);
}

__global__ void unwritten_shared(float* out) {
  float* s = floats();
  if (threadIdx.x != 9) s[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}

__global__ void shared_out_of_bounds(float* out) {
  float* s = floats();
  s[threadIdx.x + 1] = 1.0f;
  out[threadIdx.x] = s[threadIdx.x + 1];
}

__global__ void missing_barrier(float* out) {
  float* s = floats();
  s[threadIdx.x] = 1.0f;
  out[threadIdx.x] = s[(threadIdx.x + 63) % 64];  // already written, in one order
}

__global__ void missing_barrier_before_write(float* out) {
  float* s = floats();
  s[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = s[(threadIdx.x + 32) % 64];
  s[threadIdx.x] = 2.0f;
}

__global__ void missing_syncwarp(float* out) {
  float* s = floats();
  s[threadIdx.x] = 1.0f;
  out[threadIdx.x] = s[threadIdx.x & 32];
}

__global__ void missing_wait(float* out) {
  float* s = floats();
  simt::async_copy(s + 4 * threadIdx.x, out + 4 * threadIdx.x, 16, 16);
  simt::async_commit();
  simt::async_copy(s + 256 + 4 * threadIdx.x, out + 4 * threadIdx.x, 16, 16);
  simt::async_commit();
  simt::async_wait(1);
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
  out[threadIdx.x] = s[256 + threadIdx.x];
}

__global__ void misaligned_copy(float* out) { simt::async_copy(floats() + 1, out, 16, 16); }

__global__ void grid_sync_without_cooperation(float*) { grid_sync(nullptr); }

__global__ void out_of_bounds(float* out) { out[1 << 10] = 1.0f; }

__global__ void none(float* out) {
  float* s = floats();
  simt::async_copy(s + 4 * threadIdx.x, out + 4 * threadIdx.x, 16, 8);
  simt::async_commit();
  simt::async_wait(0);
  __syncwarp();
  const float v = s[4 * (threadIdx.x ^ 1)];
  __syncthreads();
  s[threadIdx.x] = v;
  __syncthreads();
  if (threadIdx.x < 32) out[threadIdx.x] = __shfl_down_sync(0xffffffffu, s[threadIdx.x + 32], 1);
}

struct Fault {
  const char* name;
  void (*kernel)(float*);
};

const Fault kFaults[] = {
#define FAULT(name) {#name, name}
    FAULT(barrier_for_some),
    FAULT(barrier_at_two_places),
    FAULT(barrier_against_collective),
    FAULT(collective_for_some),
    FAULT(two_collectives),
    FAULT(mask_without_own_lane),
    FAULT(shuffle_from_outside_mask),
    FAULT(unwritten_shared),
    FAULT(shared_out_of_bounds),
    FAULT(missing_barrier),
    FAULT(missing_barrier_before_write),
    FAULT(missing_syncwarp),
    FAULT(missing_wait),
    FAULT(misaligned_copy),
    FAULT(grid_sync_without_cooperation),
    FAULT(out_of_bounds),
    FAULT(none),
};

// Numbers the threads of two blocks of 64 in the order in which they run.
__global__ void number(unsigned* tickets, unsigned* next) {
  tickets[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1u);
}

// Every block adds its index to all blocks' sums, step after step.
__global__ void exchange(unsigned* sums, unsigned* arrivals, unsigned steps) {
  for (unsigned step = 0; step < steps; ++step) {
    const unsigned other = (blockIdx.x + step) % gridDim.x;
    if (threadIdx.x == 0) sums[other] += blockIdx.x + 1;
    grid_sync(arrivals);
  }
}

}  // namespace faults

// What the launch reports; empty when nothing, null when there is no such kernel.
extern "C" __attribute__((visibility("default"))) const char* simt_run(const char* name,
                                                                       unsigned threads,
                                                                       unsigned shared_bytes) {
  static std::string message;
  message.clear();
  auto* memory = new float[1 << 10]();
  bool found = false;
  for (const faults::Fault& fault : faults::kFaults) {
    if (std::strcmp(fault.name, name) != 0) continue;
    found = true;
    try {
      faults::launch(fault.kernel, {.grid = 2, .block = threads, .shared_bytes = shared_bytes},
                     memory);
    } catch (const std::exception& error) {
      message = error.what();
    }
  }
  delete[] memory;
  return found ? message.c_str() : nullptr;
}

extern "C" __attribute__((visibility("default"))) void simt_number(unsigned* tickets) {
  unsigned next = 0;
  faults::launch(faults::number, {.grid = 2, .block = 64}, tickets, &next);
}

extern "C" __attribute__((visibility("default"))) void simt_exchange(unsigned* sums,
                                                                     unsigned blocks,
                                                                     unsigned steps) {
  unsigned arrivals = 0;
  faults::launch(faults::exchange, {.grid = blocks, .block = 48, .cooperative = true}, sums,
                 &arrivals, steps);
}
