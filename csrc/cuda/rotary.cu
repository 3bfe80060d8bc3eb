// rotary with a warp for each head of a token.
#include "ops/rotary.h"

#include "core/half.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/sequences.cuh"

namespace softgate::cuda {
namespace {

constexpr int kHeads = 4;  // of a token, in a block

}  // namespace

template <class T>
__global__ void __launch_bounds__(kWarp* kHeads) rotary_kernel(const RotaryArgs<T> args) {
  const std::int64_t token = blockIdx.x;
  const auto lane = static_cast<int>(threadIdx.x), n = static_cast<int>(args.head_dim);
  const auto num_heads = static_cast<int>(args.num_heads);
  const auto num_kv_heads = static_cast<int>(args.num_kv_heads);
  const auto head = static_cast<int>(blockIdx.y * kHeads + threadIdx.y);
  if (head >= num_heads + 2 * num_kv_heads) return;
  const bool is_q = head < num_heads, is_k = !is_q && head < num_heads + num_kv_heads;

  const int sequence = find_sequence(static_cast<int>(args.batch), [&](int candidate) {
    return args.cu_seqlens[candidate + 1] > token;
  });
  const std::int64_t position = args.starts[sequence] + token - args.cu_seqlens[sequence];
  const std::int64_t row = args.cache_rows ? args.cache_rows[sequence] : sequence;
  // Nobody has checked these.
  const bool inside = position >= 0 && position < args.positions && row >= 0 && row < args.rows;
  if (!inside && !is_q) return;

  T* to;
  if (is_q)
    to = args.q + token * args.q_stride + head * args.q_head_stride;
  else if (is_k)
    to = args.k_cache + row * args.k_row_stride + position * args.k_stride +
         (head - num_heads) * args.k_head_stride;
  else
    to = args.v_cache + row * args.v_row_stride + position * args.v_stride +
         (head - num_heads - num_kv_heads) * args.v_head_stride;
  if (!inside) {
    for (int i = lane; i < n; i += kWarp) to[i] = T(NAN);
    return;
  }

  const T* const x = args.qkv + token * args.qkv_stride + std::int64_t{head} * n;
  const T* const weight = is_q ? args.q_norm : is_k ? args.k_norm : nullptr;
  float scale = 1.0f;
  if (weight != nullptr) {
    float squares = 0.0f;
    for (int i = 0; i < n; i += kWarp) {  // as often in every lane: the warp stays together
      const float value = i + lane < n ? static_cast<float>(x[i + lane]) : 0.0f;
      squares += value * value;
    }
    __syncwarp();
    squares = warp_reduce<Sum>(squares);
    scale = 1.0f / sqrtf(squares / static_cast<float>(n) + args.eps);
  }
  const auto normed = [&](int i) {
    const auto value = static_cast<float>(x[i]);
    return weight == nullptr ? value : value * scale * static_cast<float>(weight[i]);
  };

  const int half_dim = is_q || is_k ? static_cast<int>(args.rotary_dim) / 2 : 0;
  for (int i = lane; i < half_dim; i += kWarp) {
    const int first = args.interleaved ? 2 * i : i;
    const int second = args.interleaved ? 2 * i + 1 : i + half_dim;
    const float a = normed(first), b = normed(second);
    const float c = args.cos[position * args.cos_stride + i];
    const float s = args.sin[position * args.sin_stride + i];
    to[first] = static_cast<T>(a * c - b * s);
    to[second] = static_cast<T>(b * c + a * s);
  }
  for (int i = 2 * half_dim + lane; i < n; i += kWarp) to[i] = static_cast<T>(normed(i));
}

template <class T>
void rotary(const RotaryArgs<T>& args, Stream stream) {
  const std::int64_t heads = args.num_heads + 2 * args.num_kv_heads;
  launch(rotary_kernel<T>,
         {.grid = dim3(static_cast<unsigned>(args.total),
                       static_cast<unsigned>((heads + kHeads - 1) / kHeads)),
          .block = dim3(kWarp, kHeads),
          .stream = stream},
         args);
}

template void rotary(const RotaryArgs<float>&, Stream);
template void rotary(const RotaryArgs<half>&, Stream);
template void rotary(const RotaryArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
