#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace softgate::cpu::SOFTGATE_ISA {

void rotary(const RotaryArgs<float>& args);

namespace {

// Of one token.
struct Angles {
  const float *cos, *sin;
  std::int64_t half;  // pairs; 0: no rotation
  bool interleaved;
};

// to = x / rms(x) * weight
SG_INLINE void norm(const float* x, const float* weight, std::int64_t n, float eps, float* to) {
  const float squares = sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    const vf v = load(x + i, lanes);
    acc = fma(v, v, acc);
  }));
  const vf scale = set1(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps));
  for_each_vector(n, [=](std::int64_t i, auto lanes) {
    store(to + i, mul(mul(load(x + i, lanes), scale), load(weight + i, lanes)), lanes);
  });
}

SG_INLINE void copy(const float* from, std::int64_t n, float* to) {
  for_each_vector(n,
                  [=](std::int64_t i, auto lanes) { store(to + i, load(from + i, lanes), lanes); });
}

SG_INLINE void rotate(const float* x, const Angles& angles, float* to) {
  const std::int64_t half = angles.half;
  if (angles.interleaved) {
    for (std::int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1], c = angles.cos[i], s = angles.sin[i];
      to[2 * i] = a * c - b * s;
      to[2 * i + 1] = b * c + a * s;
    }
    return;
  }
  for_each_vector(half, [&](std::int64_t i, auto lanes) {
    const vf a = load(x + i, lanes), b = load(x + half + i, lanes);
    const vf c = load(angles.cos + i, lanes), s = load(angles.sin + i, lanes);
    store(to + i, sub(mul(a, c), mul(b, s)), lanes);
    store(to + half + i, add(mul(b, c), mul(a, s)), lanes);
  });
}

// Heads of q or of k of one token.
void put_heads(const float* x, std::int64_t heads, const RotaryArgs<float>& args,
               const float* weight, const Angles& angles, float* to, std::int64_t head_stride) {
  const std::int64_t n = args.head_dim, turned = 2 * angles.half;
  alignas(64) float normed[kMaxHeadDim];
  for (std::int64_t h = 0; h < heads; ++h, x += n, to += head_stride) {
    const float* from = x;
    if (weight) {
      norm(x, weight, n, args.eps, normed);
      from = normed;
    }
    rotate(from, angles, to);
    copy(from + turned, n - turned, to + turned);
  }
}

void put_token(const RotaryArgs<float>& args, std::int64_t token, std::int64_t sequence) {
  const std::int64_t n = args.head_dim, kv_heads = args.num_kv_heads;
  const std::int64_t position = args.starts[sequence] + token - args.cu_seqlens[sequence];
  const std::int64_t row = args.cache_rows ? args.cache_rows[sequence] : sequence;
  const Angles angles{args.cos + position * args.cos_stride, args.sin + position * args.sin_stride,
                      args.rotary_dim / 2, args.interleaved};
  const float* x = args.qkv + token * args.qkv_stride;
  put_heads(x, args.num_heads, args, args.q_norm, angles, args.q + token * args.q_stride,
            args.q_head_stride);
  x += args.num_heads * n;
  put_heads(x, kv_heads, args, args.k_norm, angles,
            args.k_cache + row * args.k_row_stride + position * args.k_stride, args.k_head_stride);
  x += kv_heads * n;
  float* v = args.v_cache + row * args.v_row_stride + position * args.v_stride;
  for (std::int64_t h = 0; h < kv_heads; ++h) copy(x + h * n, n, v + h * args.v_head_stride);
}

}  // namespace

void rotary(const RotaryArgs<float>& args) {
  const std::int64_t columns = (args.num_heads + 2 * args.num_kv_heads) * args.head_dim;
  for_each_row_range(args.total, 2 * kFloat * columns, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t sequence = 0;
    for (std::int64_t beyond = args.batch; beyond - sequence > 1;) {
      const std::int64_t middle = (sequence + beyond) / 2;
      (args.cu_seqlens[middle] <= begin ? sequence : beyond) = middle;
    }
    for (std::int64_t token = begin; token < end; ++token) {
      while (token >= args.cu_seqlens[sequence + 1]) ++sequence;
      put_token(args, token, sequence);
    }
  });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
