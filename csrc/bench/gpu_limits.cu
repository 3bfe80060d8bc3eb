// What the card can do at most, printed as JSON: copy bandwidth and, by dtype, the rate of
// multiply-adds, those of 16-bit types on tensor cores. bench/gpu_report.py compiles it.
//
//   gpu_limits card      its name and sizes; on standard error, and exit status 1, why there is none
//   gpu_limits measure
//   gpu_limits smoke     as measure, in sizes that an interpreter can do
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/vec.cuh"

namespace softgate::cuda {
namespace {

// Enough independent chains to hide the latency of an instruction.
constexpr int kChains = 8;
constexpr int kThreads = 256;

struct CopyArgs {
  const uint4* from;
  uint4* to;
  long long count;
};

__global__ void copy_kernel(CopyArgs args) {
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (long long i = first; i < args.count; i += stride) args.to[i] = args.from[i];
}

struct RateArgs {
  float* sink;  // keeps the results alive
  int steps;
};

__global__ void fma_kernel(RateArgs args) {
  float sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
  const float factor = 1.0f - 1.0f / static_cast<float>(threadIdx.x + 3);
  for (int step = 0; step < args.steps; ++step) {
#pragma unroll
    for (int repeat = 0; repeat < 8; ++repeat) {
#pragma unroll
      for (int i = 0; i < kChains; ++i) sums[i] = fmaf(sums[i], factor, 0.5f);
    }
  }
  float sum = 0.0f;
  for (int i = 0; i < kChains; ++i) sum += sums[i];
  if (sum == -1.0f) *args.sink = sum;
}

// Numbers of both signs and all mantissas: clocks fall with the bits that change.
template <class T>
__device__ std::uint32_t random_pair(std::uint32_t seed) {
  std::uint32_t bits = (seed + 1) * 2654435761u;
  bits ^= bits >> 15;
  const auto number = [](std::uint32_t x) {
    return static_cast<float>(x & 0x7ff) / 1024.0f - 1.0f;
  };
  return std::uint32_t{T(number(bits)).bits} | std::uint32_t{T(number(bits >> 16)).bits} << 16;
}

template <class T>
__global__ void mma_kernel(RateArgs args) {
  float sums[kChains][4] = {};
  ptx::Fragment a;
  std::uint32_t b[2];
  for (std::uint32_t i = 0; i < 4; ++i) a.x[i] = random_pair<T>(threadIdx.x * 8 + i);
  for (std::uint32_t i = 0; i < 2; ++i) b[i] = random_pair<T>(threadIdx.x * 8 + 4 + i);
  for (int step = 0; step < args.steps; ++step) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
      if constexpr (std::is_same_v<T, half>) {
        ptx::mma_m16n8k16_f32_f16(sums[i], a, b[0], b[1]);
      } else {
        ptx::mma_m16n8k16_f32_bf16(sums[i], a, b[0], b[1]);
      }
    }
  }
  float sum = 0.0f;
  for (int i = 0; i < kChains; ++i) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  if (sum == -1.0f) *args.sink = sum;
}

void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

void require_card() {
  int count = 0, driver = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  check_cuda(cudaDriverGetVersion(&driver));
  if (error == cudaSuccess && count > 0) return;
  if (driver == 0) throw std::runtime_error("this machine has no NVIDIA driver");
  if (error == cudaErrorInsufficientDriver)
    throw std::runtime_error("the NVIDIA driver serves CUDA " + version(driver) +
                             ", this nvcc makes programs for " + version(CUDART_VERSION));
  if (error == cudaSuccess || error == cudaErrorNoDevice)
    throw std::runtime_error("the NVIDIA driver sees no card");
  check_cuda(error);
}

cudaDeviceProp properties() {
  cudaDeviceProp found{};
  check_cuda(cudaGetDeviceProperties(&found, 0));
  return found;
}

void print_card() {
  const cudaDeviceProp card = properties();
  int driver = 0;
  check_cuda(cudaDriverGetVersion(&driver));
  std::printf(
      "{\"name\": \"%s\", \"capability\": [%d, %d], \"multiprocessors\": %d, \"memory\": %zu, "
      "\"l2\": %d, \"driver_cuda\": \"%s\", \"runtime_cuda\": \"%s\"}\n",
      card.name, card.major, card.minor, card.multiProcessorCount, card.totalGlobalMem,
      card.l2CacheSize, version(driver).c_str(), version(CUDART_VERSION).c_str());
}

struct Events {
  cudaEvent_t begin, end;
  Events() {
    check_cuda(cudaEventCreate(&begin));
    check_cuda(cudaEventCreate(&end));
  }
};

template <class Body>
double seconds(Events& events, Body body) {
  check_cuda(cudaEventRecord(events.begin));
  body();
  check_cuda(cudaEventRecord(events.end));
  check_cuda(cudaEventSynchronize(events.end));
  float milliseconds = 0.0f;
  check_cuda(cudaEventElapsedTime(&milliseconds, events.begin, events.end));
  return std::max(milliseconds, 1e-6f) / 1e3;
}

// The best of several trials: what disturbs them only slows.
template <class Body>
double best_seconds(Events& events, int trials, Body body) {
  body();  // warm-up
  double best = seconds(events, body);
  for (int trial = 1; trial < trials; ++trial) best = std::min(best, seconds(events, body));
  return best;
}

// Multiply-adds of `blocks` blocks, in GFLOP/s: long enough that starting them is nothing.
template <class Kernel>
double gflops(Events& events, Kernel kernel, double flops_of_step, int blocks, bool smoke) {
  float* sink = nullptr;
  check_cuda(cudaMalloc(&sink, sizeof *sink));
  int steps = 2;
  const auto run = [&] {
    launch(kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, RateArgs{sink, steps});
  };
  if (!smoke)
    while (steps < 1 << 24 && seconds(events, run) < 20e-3) steps *= 2;
  const double taken = best_seconds(events, smoke ? 1 : 10, run);
  check_cuda(cudaFree(sink));
  return flops_of_step * steps * blocks / taken / 1e9;
}

// Bytes read and bytes written, in GB/s, of a copy far larger than L2; ours or the driver's.
double copy_bandwidth(Events& events, const cudaDeviceProp& card, bool smoke) {
  const std::size_t wanted = std::max<std::size_t>(std::size_t{1} << 29, 4 * card.l2CacheSize);
  const std::size_t bytes = smoke ? 1 << 14 : std::min(wanted, card.totalGlobalMem / 8) / 16 * 16;
  void *from = nullptr, *to = nullptr;
  check_cuda(cudaMalloc(&from, bytes));
  check_cuda(cudaMalloc(&to, bytes));
  check_cuda(cudaMemset(from, 1, bytes));
  const CopyArgs args{static_cast<const uint4*>(from), static_cast<uint4*>(to),
                      static_cast<long long>(bytes / sizeof(uint4))};
  const int trials = smoke ? 1 : 10;
  double best = best_seconds(events, trials, [&] {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice));
  });
  for (int blocks : {8, 16, 32}) {
    const auto grid = static_cast<unsigned>(smoke ? 2 : blocks * card.multiProcessorCount);
    best = std::min(best, best_seconds(events, trials, [&] {
                      launch(copy_kernel, {dim3(grid), dim3(kThreads)}, args);
                    }));
  }
  check_cuda(cudaFree(from));
  check_cuda(cudaFree(to));
  return 2.0 * static_cast<double>(bytes) / best / 1e9;
}

void print_limits(bool smoke) {
  const cudaDeviceProp card = properties();
  Events events;
  const int blocks = smoke ? 1 : card.multiProcessorCount * (2048 / kThreads);
  const double fma_flops = 2.0 * 8 * kChains * kThreads;
  const double mma_flops = 2.0 * 16 * 8 * 16 * kChains * kThreads / kWarp;
  std::printf("{\"copy\": %.6g, \"rates\": {\"float32\": %.6g, \"float16\": %.6g",
              copy_bandwidth(events, card, smoke),
              gflops(events, fma_kernel, fma_flops, blocks, smoke),
              gflops(events, mma_kernel<half>, mma_flops, blocks, smoke));
  if (card.major >= 8)
    std::printf(", \"bfloat16\": %.6g",
                gflops(events, mma_kernel<bfloat16>, mma_flops, blocks, smoke));
  std::printf("}}\n");
}

}  // namespace
}  // namespace softgate::cuda

int main(int count, char** arguments) {
  using namespace softgate::cuda;
  const std::string what = count == 2 ? arguments[1] : "";
  try {
    if (what != "card" && what != "measure" && what != "smoke")
      throw std::runtime_error("usage: gpu_limits card|measure|smoke");
    require_card();
    if (what == "card") {
      print_card();
    } else {
      print_limits(what == "smoke");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
