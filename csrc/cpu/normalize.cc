#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace softgate::cpu::SOFTGATE_ISA {

void normalize(const NormalizeArgs<float>& args);

namespace {

float scaled_squares(const float* x, std::int64_t n, float scale) {
  return sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    const vf v = mul(load(x + i, lanes), set1(scale));
    acc = fma(v, v, acc);
  }));
}

void normalize_row(const float* x, std::int64_t n, float eps, float* out) {
  // A row whose squares leave the range of a float is scaled by a power of two, which is exact.
  float scale = 1.0f;
  float squares = scaled_squares(x, n, scale);
  if (squares > 0x1p120f || squares < 0x1p-90f) {
    scale = squares > 1.0f ? 0x1p-96f : 0x1p96f;
    squares = scaled_squares(x, n, scale);
  }
  const float norm = __builtin_sqrtf(squares), floor = eps * scale;
  const vf factor = set1(scale), divisor = set1(norm < floor ? floor : norm);
  for_each_vector(n, [=](std::int64_t i, auto lanes) {
    store(out + i, div(mul(load(x + i, lanes), factor), divisor), lanes);
  });
}

}  // namespace

void normalize(const NormalizeArgs<float>& args) {
  for_each_row_range(args.rows, 2 * kFloat * args.hidden,
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t row = begin; row < end; ++row) {
                         normalize_row(args.x + row * args.x_stride, args.hidden, args.eps,
                                       args.out + row * args.out_stride);
                       }
                     });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
