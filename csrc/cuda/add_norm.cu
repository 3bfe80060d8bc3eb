#include "ops/add_norm.h"

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace softgate::cuda {

constexpr int kMaxThreads = 1024;
constexpr int kPerThread = 16;    // elements of a row that a thread keeps in registers
constexpr int kRowsPerBlock = 4;  // where a warp takes a row
constexpr std::int64_t kLongest = kMaxThreads * kPerThread;
constexpr std::size_t kScratchBytes = 2 * kWarp * sizeof(float);

// Over the blockDim.x threads of a row.
__device__ __forceinline__ float row_sum(float value, float* scratch) {
  if (blockDim.x == kWarp) return warp_reduce<Sum>(value);
  return block_reduce<Sum>(value, scratch, blockDim.x);
}

// A row lies in registers from its only read to its only write. kWidth elements move at a time.
template <class T, int kWidth>
__global__ void __launch_bounds__(kMaxThreads) add_norm_kernel(const AddNormArgs<T> args) {
  constexpr int kSteps = kPerThread / kWidth;
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= args.rows) return;
  auto* scratch = reinterpret_cast<float*>(shared_memory());
  const T* x = args.x + row * args.x_stride;
  const T* residual = args.residual + row * args.residual_stride;
  const int n = static_cast<int>(args.hidden);
  const int first = threadIdx.x * kWidth, stride = blockDim.x * kWidth;

  float s[kSteps][kWidth];
  float total = 0.0f;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int i = first + step * stride;
    if (i >= n) break;
    const Vec<T, kWidth> from = load_vec<kWidth>(x + i);
    Vec<T, kWidth> other, to;
    if (args.residual != nullptr) other = load_vec<kWidth>(residual + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      s[step][j] = static_cast<float>(from[j]);
      if (args.residual != nullptr) s[step][j] += static_cast<float>(other[j]);
      to[j] = static_cast<T>(s[step][j]);
      total += s[step][j];
    }
    if (args.sum != nullptr) store_vec(args.sum + row * args.sum_stride + i, to);
  }
  const float mean = args.center ? row_sum(total, scratch) / static_cast<float>(n) : 0.0f;

  float squares = 0.0f;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (first + step * stride >= n) break;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) squares += (s[step][j] - mean) * (s[step][j] - mean);
  }
  const float variance = row_sum(squares, scratch + kWarp) / static_cast<float>(n);
  const float scale = 1.0f / sqrtf(variance + args.eps);

#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int i = first + step * stride;
    if (i >= n) break;
    const Vec<T, kWidth> weight = load_vec<kWidth>(args.weight + i);
    Vec<T, kWidth> bias, to;
    if (args.bias != nullptr) bias = load_vec<kWidth>(args.bias + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      float y = (s[step][j] - mean) * scale * static_cast<float>(weight[j]);
      if (args.bias != nullptr) y += static_cast<float>(bias[j]);
      to[j] = static_cast<T>(y);
    }
    store_vec(args.out + row * args.out_stride + i, to);
  }
}

// A block for a row that its registers cannot hold: three reads and one write.
template <class T>
__global__ void __launch_bounds__(kMaxThreads) add_norm_long_kernel(const AddNormArgs<T> args) {
  const std::int64_t row = blockIdx.x;
  auto* scratch = reinterpret_cast<float*>(shared_memory());
  const auto s = [&](std::int64_t i) {
    const float x = static_cast<float>(args.x[row * args.x_stride + i]);
    if (args.residual == nullptr) return x;
    return x + static_cast<float>(args.residual[row * args.residual_stride + i]);
  };
  const auto n = static_cast<float>(args.hidden);

  float mean = 0.0f;
  if (args.center) {
    float total = 0.0f;
    for (std::int64_t i = threadIdx.x; i < args.hidden; i += blockDim.x) total += s(i);
    mean = row_sum(total, scratch) / n;
  }
  float squares = 0.0f;
  for (std::int64_t i = threadIdx.x; i < args.hidden; i += blockDim.x)
    squares += (s(i) - mean) * (s(i) - mean);
  const float scale = 1.0f / sqrtf(row_sum(squares, scratch + kWarp) / n + args.eps);

  for (std::int64_t i = threadIdx.x; i < args.hidden; i += blockDim.x) {
    const float value = s(i);
    float y = (value - mean) * scale * static_cast<float>(args.weight[i]);
    if (args.bias != nullptr) y += static_cast<float>(args.bias[i]);
    if (args.sum != nullptr) args.sum[row * args.sum_stride + i] = static_cast<T>(value);
    args.out[row * args.out_stride + i] = static_cast<T>(y);
  }
}

// Can every access of every row be one of kVec<T> elements?
template <class T>
bool is_vectorizable(const AddNormArgs<T>& args) {
  const void* pointers[] = {args.x, args.residual, args.weight, args.bias, args.out, args.sum};
  for (const void* p : pointers) {
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) return false;
  }
  const std::int64_t counts[] = {args.hidden, args.x_stride, args.residual_stride, args.out_stride,
                                 args.sum_stride};
  for (const std::int64_t count : counts) {
    if (count % kVec<T> != 0) return false;
  }
  return true;
}

template <class T>
void add_norm(const AddNormArgs<T>& args, Stream stream) {
  const auto rows = static_cast<unsigned>(args.rows);
  if (args.hidden > kLongest) {
    launch(add_norm_long_kernel<T>,
           {.grid = rows, .block = kMaxThreads, .shared_bytes = kScratchBytes, .stream = stream},
           args);
    return;
  }
  const auto kernel = is_vectorizable(args) ? add_norm_kernel<T, kVec<T>> : add_norm_kernel<T, 1>;
  const auto warps =
      static_cast<unsigned>((args.hidden + kWarp * kPerThread - 1) / (kWarp * kPerThread));
  if (warps == 1) {
    launch(kernel,
           {.grid = (rows + kRowsPerBlock - 1) / kRowsPerBlock,
            .block = dim3(kWarp, kRowsPerBlock),
            .stream = stream},
           args);
  } else {
    launch(kernel,
           {.grid = rows, .block = warps * kWarp, .shared_bytes = kScratchBytes, .stream = stream},
           args);
  }
}

template void add_norm(const AddNormArgs<float>&, Stream);
template void add_norm(const AddNormArgs<half>&, Stream);
template void add_norm(const AddNormArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
