#include "cpu/kernels.h"
#include "cpu/row_norm.h"

namespace softgate::cpu::SOFTGATE_ISA {

void add_norm(const AddNormArgs& args);

namespace {

// An output this large has left the last-level cache before anyone reads it: a streaming store
// spares reading its lines first.
constexpr std::int64_t kStreamBytes = 32 << 20;

SG_INLINE float sum_row(const float* x, std::int64_t n) {
  return sum(accumulate(
      n, zero(), [=](vf& acc, std::int64_t i, auto lanes) { acc = add(acc, load(x + i, lanes)); }));
}

// s = x + residual into each of s and, unless null, copy.
SG_INLINE float add_rows(const float* x, const float* residual, std::int64_t n, float* s,
                         float* copy) {
  return sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    vf v = load(x + i, lanes);
    if (residual) v = add(v, load(residual + i, lanes));
    store(s + i, v, lanes);
    if (copy) store(copy + i, v, lanes);
    acc = add(acc, v);
  }));
}

template <class Store>
void norm_rows(const AddNormArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = args.hidden;
  const bool in_place = !args.residual && !args.sum;
  float* buffer = in_place ? nullptr : static_cast<float*>(scratch(n * kFloat));
  for (std::int64_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.x_stride;
    const float* residual = args.residual ? args.residual + row * args.residual_stride : nullptr;
    float* copy = args.sum ? args.sum + row * args.sum_stride : nullptr;
    const float* s = in_place ? x : buffer;
    const float total = in_place ? sum_row(x, n) : add_rows(x, residual, n, buffer, copy);
    const float mean = args.center ? total / static_cast<float>(n) : 0.0f;
    write_normalized(s, n, row_statistics(s, n, mean, args.eps), {args.weight, args.bias},
                     args.out + row * args.out_stride, Store{});
  }
}

bool is_aligned(const float* p, std::int64_t stride) {
  constexpr std::uintptr_t kVectorBytes = kLanes * kFloat;
  return reinterpret_cast<std::uintptr_t>(p) % kVectorBytes == 0 && stride % kLanes == 0;
}

bool should_stream(const AddNormArgs& args) {
  return args.rows * args.hidden * kFloat >= kStreamBytes && args.out != args.x &&
         args.out != args.residual && is_aligned(args.out, args.out_stride);
}

}  // namespace

void add_norm(const AddNormArgs& args) {
  const bool streams = should_stream(args);
  for_each_row_range(args.rows, 3 * kFloat * args.hidden,
                     [&](std::int64_t begin, std::int64_t end) {
                       if (streams) {
                         norm_rows<Streaming>(args, begin, end);
                         stream_fence();
                       } else {
                         norm_rows<Plain>(args, begin, end);
                       }
                     });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
