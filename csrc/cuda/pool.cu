#include "ops/pool.h"

#include "cuda/rows.cuh"

namespace softgate::cuda {
namespace {

constexpr int kTokenLanes = 8;    // threads that share the tokens of a sequence,
constexpr int kColumnLanes = 16;  // in each of so many columns of vectors
constexpr int kPoolThreads = kTokenLanes * kColumnLanes;

struct Tokens {
  std::int64_t begin, end;
};

template <class T>
__device__ __forceinline__ Tokens pooled_tokens(const PoolArgs<T>& args, std::int64_t sequence) {
  // Nobody has checked the offsets.
  std::int64_t begin = max(args.cu_seqlens[sequence], 0);
  std::int64_t end = min(static_cast<std::int64_t>(args.cu_seqlens[sequence + 1]), args.tokens);
  if (begin >= end) return {0, 0};
  if (args.mode == PoolMode::cls) end = begin + 1;
  if (args.mode == PoolMode::last) begin = end - 1;
  return {begin, end};
}

}  // namespace

// A block has one sequence and blockDim.x vectors of columns. Its threads in y take turns with the
// tokens; the first of them combines what each has found.
template <class T, int kWidth, class Op>
__global__ void __launch_bounds__(kPoolThreads) pool_kernel(const PoolArgs<T> args) {
  const std::int64_t sequence = blockIdx.x;
  const std::int64_t column =
      (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kWidth;
  const Tokens tokens = pooled_tokens(args, sequence);
  const Op op;

  Vec<float, kWidth> found;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) found[j] = Op::kIdentity;
  if (column < args.hidden) {
#pragma unroll 4
    for (std::int64_t token = tokens.begin + threadIdx.y; token < tokens.end; token += blockDim.y) {
      const auto values = load_floats<kWidth>(args.x + token * args.x_stride + column);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) found[j] = op(found[j], values[j]);
    }
  }

  __syncwarp();  // bar.sync wants the warp together, and the loop parts it
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  float* shared = reinterpret_cast<float*>(shared_memory()) + threadIdx.x;  // [kWidth, y, x]
#pragma unroll
  for (int j = 0; j < kWidth; ++j) shared[j * threads + threadIdx.y * blockDim.x] = found[j];
  __syncthreads();
  if (threadIdx.y != 0 || column >= args.hidden) return;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    for (unsigned y = 1; y < blockDim.y; ++y)
      found[j] = op(found[j], shared[j * threads + y * blockDim.x]);
    if (tokens.begin == tokens.end)
      found[j] = 0.0f;
    else if (args.mode == PoolMode::mean)
      found[j] /= static_cast<float>(tokens.end - tokens.begin);
  }
  store_floats(args.out + sequence * args.out_stride + column, found);
}

namespace {

template <class T, int kWidth>
void launch_pool(const PoolArgs<T>& args, Stream stream) {
  const bool one_token = args.mode == PoolMode::cls || args.mode == PoolMode::last;
  const dim3 block = one_token ? dim3(kPoolThreads, 1) : dim3(kColumnLanes, kTokenLanes);
  const std::int64_t columns = static_cast<std::int64_t>(block.x) * kWidth;
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(args.batch),
                   static_cast<unsigned>((args.hidden + columns - 1) / columns)),
      .block = block,
      .shared_bytes = kPoolThreads * kWidth * sizeof(float),
      .stream = stream,
  };
  // The largest of one token is that token.
  if (args.mode == PoolMode::mean)
    launch(pool_kernel<T, kWidth, Sum>, shape, args);
  else
    launch(pool_kernel<T, kWidth, Max>, shape, args);
}

}  // namespace

template <class T>
void pool(const PoolArgs<T>& args, Stream stream) {
  const bool vectors = takes_vectors(args.x, args.x_stride) &&
                       takes_vectors(args.out, args.out_stride) && args.hidden % kVec<T> == 0;
  if (vectors)
    launch_pool<T, kVec<T>>(args, stream);
  else
    launch_pool<T, 1>(args, stream);
}

template void pool(const PoolArgs<float>&, Stream);
template void pool(const PoolArgs<half>&, Stream);
template void pool(const PoolArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
