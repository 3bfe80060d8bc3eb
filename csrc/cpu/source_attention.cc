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

// Up to here e^2x and its inverse are normal numbers.
constexpr float kMostExponent = 43.0f;

// The same of e^(2 query) and e^(2 key), whose product p makes tanh 1 - 2 / (p + 1). total: of v.
float additive_of_exponentials(const float* query, const float* key, const float* v, float total,
                               std::int64_t n) {
  const float part = sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    const vf p = fma(load(query + i, lanes), load(key + i, lanes), set1(1.0f));
    // Far below infinity, whose reciprocal is NaN.
    acc = fma(load(v + i, lanes), reciprocal(min(set1(1e30f), p)), acc);
  }));
  return total - 2.0f * part;
}

// to = e^2x. Gives the largest magnitudes of x, in any lanes.
SG_INLINE vf exponentials(const float* x, std::int64_t n, float* to) {
  vf most = zero();
  for_each_vector(n, [&](std::int64_t i, auto lanes) {
    const vf value = load(x + i, lanes);
    most = max(most, abs(value));
    store(to + i, exp(add(value, value)), lanes);
  });
  return most;
}

// The scores of rows that follow each other. Those of one source share the exponentials of its
// keys, which take the most time.
class AdditiveScores {
 public:
  AdditiveScores(const SourceAttentionArgs& args, std::int64_t begin, std::int64_t end)
      : args_(args) {
    std::int64_t longest = 0;
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int32_t* source = args.cu_seqlens + args.sources[row];
      longest = max_int(longest, source[1] - source[0]);
    }
    total_ = sum(accumulate(args.size, zero(), [&](vf& acc, std::int64_t i, auto lanes) {
      acc = add(load(args.v + i, lanes), acc);
    }));
    query_ =
        static_cast<float*>(scratch(static_cast<std::size_t>((longest + 1) * args.size * kFloat)));
    keys_ = query_ + args.size;
  }

  void write(std::int64_t row, const float* keys, std::int64_t tokens, float* scores) {
    const std::int64_t n = args_.size;
    if (args_.sources[row] != source_) {
      source_ = args_.sources[row];
      vf most = zero();
      for (std::int64_t t = 0; t < tokens; ++t)
        most = max(most, exponentials(keys + t * args_.keys_stride, n, keys_ + t * n));
      is_small_ = hmax(most) <= kMostExponent;
    }
    const float* query = args_.query + row * args_.query_stride;
    const bool is_small = hmax(exponentials(query, n, query_)) <= kMostExponent && is_small_;
    for (std::int64_t t = 0; t < tokens; ++t)
      scores[t] = is_small ? additive_of_exponentials(query_, keys_ + t * n, args_.v, total_, n)
                           : additive(query, keys + t * args_.keys_stride, args_.v, n);
  }

 private:
  const SourceAttentionArgs& args_;
  float *query_, *keys_;  // exponentials: [size], [tokens, size]
  float total_;           // of v
  std::int32_t source_ = -1;
  bool is_small_ = false;
};

// weights: scores, which become weights.
void average(const SourceAttentionArgs& args, const float* values, std::int64_t tokens,
             float* weights, float* out) {
  softmax({.x = weights,
           .out = weights,
           .rows = 1,
           .columns = tokens,
           .x_stride = tokens,
           .out_stride = tokens});
  const std::int64_t stride = args.values_stride;
  std::int64_t first = 0;
  for (; first + 4 * kLanes <= args.columns; first += 4 * kLanes) {  // additions wait less
    vf total[4] = {zero(), zero(), zero(), zero()};
    for (std::int64_t t = 0; t < tokens; ++t)
      for (int j = 0; j < 4; ++j)
        total[j] = fma(set1(weights[t]), load(values + t * stride + first + j * kLanes), total[j]);
    for (int j = 0; j < 4; ++j) store(out + first + j * kLanes, total[j]);
  }
  for_each_vector(args.columns - first, [=](std::int64_t i, auto lanes) {
    vf total = zero();
    for (std::int64_t t = 0; t < tokens; ++t)
      total = fma(set1(weights[t]), load(values + t * stride + first + i, lanes), total);
    store(out + first + i, total, lanes);
  });
}

// score(row, keys, tokens, scores)
template <class Score>
void attend(const SourceAttentionArgs& args, std::int64_t begin, std::int64_t end, Score score) {
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t first = args.cu_seqlens[args.sources[row]];
    const std::int64_t tokens = args.cu_seqlens[args.sources[row] + 1] - first;
    float* weights = args.weights + args.first_weight[row];
    score(row, args.keys + first * args.keys_stride, tokens, weights);
    average(args, args.values + first * args.values_stride, tokens, weights,
            args.out + row * args.columns);
  }
}

void attend(const SourceAttentionArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.v) {
    AdditiveScores scores(args, begin, end);
    attend(args, begin, end,
           [&](std::int64_t row, const float* keys, std::int64_t tokens, float* to) {
             scores.write(row, keys, tokens, to);
           });
  } else {
    attend(args, begin, end,
           [&](std::int64_t row, const float* keys, std::int64_t tokens, float* to) {
             const float* query = args.query + row * args.query_stride;
             for (std::int64_t t = 0; t < tokens; ++t)
               to[t] = dot(query, keys + t * args.keys_stride, args.size);
           });
  }
}

}  // namespace

void source_attention(const SourceAttentionArgs& args) {
  const std::int64_t tokens = args.first_weight[args.rows] / max_int(1, args.rows);
  for_each_row_range(args.rows, kFloat * tokens * (args.size + args.columns),
                     [&](std::int64_t begin, std::int64_t end) { attend(args, begin, end); });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
