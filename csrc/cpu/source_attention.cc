#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/simd_math.h"

namespace softgate::cpu::SOFTGATE_ISA {

void softmax(const SoftmaxArgs<float>& args);
void source_attention(const SourceAttentionArgs& args);

namespace {

float dot(const float* a, const float* b, std::int64_t n) {
  return sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    acc = fma(load(a + i, lanes), load(b + i, lanes), acc);
  }));
}

float additive(const float* query, const float* key, const float* v, std::int64_t n) {
  return sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    const vf hidden = tanh(add(load(query + i, lanes), load(key + i, lanes)));
    acc = fma(load(v + i, lanes), hidden, acc);
  }));
}

void attend(const SourceAttentionArgs& args, std::int64_t row) {
  const std::int64_t first = args.cu_seqlens[args.sources[row]];
  const std::int64_t tokens = args.cu_seqlens[args.sources[row] + 1] - first;
  const float* query = args.query + row * args.query_stride;
  const float* keys = args.keys + first * args.keys_stride;
  const float* values = args.values + first * args.values_stride;
  float* weights = args.weights + args.first_weight[row];
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* key = keys + t * args.keys_stride;
    weights[t] = args.v ? additive(query, key, args.v, args.size) : dot(query, key, args.size);
  }
  softmax({.x = weights,
           .out = weights,
           .rows = 1,
           .columns = tokens,
           .x_stride = tokens,
           .out_stride = tokens});
  float* out = args.out + row * args.columns;
  for_each_vector(args.columns, [=](std::int64_t i, auto lanes) {
    vf total = zero();
    for (std::int64_t t = 0; t < tokens; ++t)
      total = fma(set1(weights[t]), load(values + t * args.values_stride + i, lanes), total);
    store(out + i, total, lanes);
  });
}

}  // namespace

void source_attention(const SourceAttentionArgs& args) {
  const std::int64_t tokens = args.first_weight[args.rows] / max_int(1, args.rows);
  for_each_row_range(args.rows, kFloat * tokens * (args.size + args.columns),
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t row = begin; row < end; ++row) attend(args, row);
                     });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
