#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/simd_math.h"

namespace softgate::cpu::SOFTGATE_ISA {

void softmax(const SoftmaxArgs<float>& args);

namespace {

constexpr float kInf = __builtin_inff();

// Ignores NaN; the exponentials carry it into the sum.
float row_max(const float* x, std::int64_t n) {
  const auto acc = accumulate(n, set1(-kInf), [=](vf& m, std::int64_t i, auto lanes) {
    m = max(keep(load(x + i, lanes), set1(-kInf), lanes), m);
  });
  return hmax(max(max(acc.a, acc.b), max(acc.c, acc.d)));
}

void softmax_row(const float* x, std::int64_t n, float* out) {
  const float largest = row_max(x, n);
  // Nothing to subtract from -inf: its exponential is 0 as it stands.
  const vf shift = set1(largest == -kInf ? 0.0f : largest);
  const float total = sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    const vf e = exp(sub(load(x + i, lanes), shift));
    store(out + i, e, lanes);
    acc = add(acc, keep(e, zero(), lanes));
  }));
  const vf scale = set1(total == 0.0f ? 0.0f : 1.0f / total);
  for_each_vector(n, [=](std::int64_t i, auto lanes) {
    store(out + i, mul(load(out + i, lanes), scale), lanes);
  });
}

}  // namespace

void softmax(const SoftmaxArgs<float>& args) {
  for_each_row_range(
      args.rows, 4 * kFloat * args.columns, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row)
          softmax_row(args.x + row * args.x_stride, args.columns, args.out + row * args.out_stride);
      });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
