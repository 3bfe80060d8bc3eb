#include "cpu/kernels.h"
#include "cpu/row_norm.h"

namespace softgate::cpu::SOFTGATE_ISA {

void add_norm(const AddNormArgs<float>& args);

namespace {

// An output this large has left the last-level cache before anyone reads it: a streaming store
// spares reading its lines first.
constexpr std::int64_t kStreamBytes = 32 << 20;

struct Row {
  const float *x, *residual;
  float *out, *sum;
};

Row row_at(const AddNormArgs<float>& args, std::int64_t row) {
  return {args.x + row * args.x_stride,
          args.residual ? args.residual + row * args.residual_stride : nullptr,
          args.out + row * args.out_stride, args.sum ? args.sum + row * args.sum_stride : nullptr};
}

// s = x + residual, in the same steps as `before`, which may still read s; the sum over s.
template <class Before>
SG_INLINE float add_rows(const Row& row, std::int64_t n, float* s, Before before) {
  return sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    before(i, lanes);
    vf v = load(row.x + i, lanes);
    if (row.residual) v = add(v, load(row.residual + i, lanes));
    store(s + i, v, lanes);
    if (row.sum) store(row.sum + i, v, lanes);
    acc = add(acc, v);
  }));
}

// A row is written while the next is read, which hides one's latencies behind the other.
template <class Store>
void norm_rows(const AddNormArgs<float>& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = args.hidden;
  float* s = static_cast<float*>(scratch(n * kFloat));
  Row row = row_at(args, begin);
  float total = add_rows(row, n, s, [](std::int64_t, auto) {});
  for (std::int64_t next = begin + 1; next <= end; ++next) {
    const float mean = args.center ? total / static_cast<float>(n) : 0.0f;
    const auto write = row_writer<Store>(s, row_statistics(s, n, mean, args.eps),
                                         {args.weight, args.bias}, row.out);
    if (next == end) return for_each_vector(n, write);
    row = row_at(args, next);
    total = add_rows(row, n, s, write);
  }
}

bool is_aligned(const float* p, std::int64_t stride) {
  constexpr std::uintptr_t kVectorBytes = kLanes * kFloat;
  return reinterpret_cast<std::uintptr_t>(p) % kVectorBytes == 0 && stride % kLanes == 0;
}

bool should_stream(const AddNormArgs<float>& args) {
  return args.rows * args.hidden * kFloat >= kStreamBytes && args.out != args.x &&
         args.out != args.residual && is_aligned(args.out, args.out_stride);
}

}  // namespace

void add_norm(const AddNormArgs<float>& args) {
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
