#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace softgate::cpu::SOFTGATE_ISA {

void pool(const PoolArgs<float>& args);

namespace {

// Columns of one task: a few lines of each token, so that one long sequence still splits.
constexpr std::int64_t kBlock = 128;

struct Sum {
  SG_INLINE vf combine(vf a, vf b) { return add(a, b); }
};

struct Max {  // NaN where either is
  SG_INLINE vf combine(vf a, vf b) { return select(is_nan(a), a, max(a, b)); }
};

void copy_row(const float* x, std::int64_t n, float* out) {
  for_each_vector(n,
                  [=](std::int64_t i, auto lanes) { store(out + i, load(x + i, lanes), lanes); });
}

template <class Op>
void reduce_rows(const float* x, std::int64_t rows, std::int64_t stride, std::int64_t n,
                 float* out) {
  copy_row(x, n, out);
  std::int64_t row = 1;
  for (; row + 4 <= rows; row += 4) {
    const float *a = x + row * stride, *b = a + stride, *c = b + stride, *d = c + stride;
    for_each_vector(n, [=](std::int64_t i, auto lanes) {
      const vf four = Op::combine(Op::combine(load(a + i, lanes), load(b + i, lanes)),
                                  Op::combine(load(c + i, lanes), load(d + i, lanes)));
      store(out + i, Op::combine(load(out + i, lanes), four), lanes);
    });
  }
  for (; row < rows; ++row) {
    const float* a = x + row * stride;
    for_each_vector(n, [=](std::int64_t i, auto lanes) {
      store(out + i, Op::combine(load(out + i, lanes), load(a + i, lanes)), lanes);
    });
  }
}

void divide_row(float* out, std::int64_t n, float divisor) {
  for_each_vector(n, [=](std::int64_t i, auto lanes) {
    store(out + i, div(load(out + i, lanes), set1(divisor)), lanes);
  });
}

void zero_row(float* out, std::int64_t n) {
  for_each_vector(n, [=](std::int64_t i, auto lanes) { store(out + i, zero(), lanes); });
}

void pool_columns(const PoolArgs<float>& args, std::int64_t sequence, std::int64_t column) {
  const std::int64_t first = args.cu_seqlens[sequence];
  const std::int64_t tokens = args.cu_seqlens[sequence + 1] - first;
  const std::int64_t n = min_int(kBlock, args.hidden - column);
  const float* x = args.x + first * args.x_stride + column;
  float* out = args.out + sequence * args.out_stride + column;
  if (tokens == 0) return zero_row(out, n);
  switch (args.mode) {
    case PoolMode::mean:
      reduce_rows<Sum>(x, tokens, args.x_stride, n, out);
      return divide_row(out, n, static_cast<float>(tokens));
    case PoolMode::max: return reduce_rows<Max>(x, tokens, args.x_stride, n, out);
    case PoolMode::cls: return copy_row(x, n, out);
    case PoolMode::last: return copy_row(x + (tokens - 1) * args.x_stride, n, out);
  }
}

}  // namespace

void pool(const PoolArgs<float>& args) {
  const std::int64_t blocks = ceil_div(args.hidden, kBlock);
  const std::int64_t mean_tokens = ceil_div(args.cu_seqlens[args.batch], max_int(1, args.batch));
  for_each_row_range(args.batch * blocks, kFloat * kBlock * mean_tokens,
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t i = begin; i < end; ++i)
                         pool_columns(args, i / blocks, i % blocks * kBlock);
                     });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
