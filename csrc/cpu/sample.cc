// sample finds the logit down to which tokens are kept without sorting. The maxima of blocks of a
// row, taken once, let later passes skip the blocks in which nothing is kept, and bound the
// top_k-th largest logit from below; what remains is selected from by partitioning, as in
// quickselect.
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/simd_math.h"

namespace softgate::cpu::SOFTGATE_ISA {

void sample(const SampleArgs<float>& args);
void penalize(const PenalizeArgs<float>& args);
void softcap(const SoftcapArgs<float>& args);
void token_logprobs(const TokenLogprobsArgs<float>& args);
void top_continuations(const TopContinuationsArgs& args);

namespace {

constexpr float kInf = __builtin_inff();
constexpr std::int64_t kBlock = 128;

struct Token {
  float logit, weight;
};

// Of the tokens, the smallest logit above which lies less than `target` weight. Reorders them.
float smallest_kept(Token* tokens, std::int64_t count, double target) {
  float smallest = kInf;
  double above = 0;
  std::uint64_t random = 1;  // pivots that no order of the logits defeats
  while (count > 0) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    const auto choice =
        static_cast<std::int64_t>((random >> 33) % static_cast<std::uint64_t>(count));
    const float pivot = tokens[choice].logit;
    // Larger logits to the front, smaller ones to the back.
    std::int64_t larger = 0, next = 0, smaller = count;
    double weight_larger = 0, weight_equal = 0;
    while (next < smaller) {
      const Token token = tokens[next];
      if (token.logit > pivot) {
        weight_larger += static_cast<double>(token.weight);
        tokens[next++] = tokens[larger];
        tokens[larger++] = token;
      } else if (token.logit < pivot) {
        tokens[next] = tokens[--smaller];
        tokens[smaller] = token;
      } else {
        weight_equal += static_cast<double>(token.weight);
        ++next;
      }
    }
    if (above + weight_larger >= target) {
      count = larger;
    } else {
      smallest = pivot;
      above += weight_larger + weight_equal;
      if (above >= target) break;
      tokens += smaller;
      count -= smaller;
    }
  }
  return smallest;
}

class Row {
 public:
  Row(const SampleArgs<float>& args, std::int64_t row)
      : args_(args),
        logits_(args.logits + row * args.stride),
        random_(args.random[row]),
        blocks_(ceil_div(args.vocab, kBlock)),
        inverse_(min_float(1.0f / args.temperature, __FLT_MAX__)) {
    const std::int64_t tokens =
        max_int(args.vocab, blocks_) * static_cast<std::int64_t>(sizeof(Token));
    const std::int64_t sums = blocks_ * static_cast<std::int64_t>(sizeof(double));
    auto* block =
        static_cast<char*>(scratch(static_cast<std::size_t>(tokens + sums + blocks_ * kFloat)));
    tokens_ = reinterpret_cast<Token*>(block);
    sums_ = reinterpret_cast<double*>(block + tokens);
    maxima_ = reinterpret_cast<float*>(block + tokens + sums);
  }

  // The token, or -1 where there is none to choose.
  std::int32_t draw() {
    if (!find_maxima()) return -1;
    if (args_.temperature == 0.0f) return first_of_max();
    float least = args_.top_k > 0 ? top_k() : -kInf;
    const float probable = args_.min_p > 0.0 ? at_weight(args_.min_p) : -kInf;
    if (args_.top_p < 1.0) least = top_p(least);
    return pick(max_float(least, probable));
  }

 private:
  static float min_float(float a, float b) { return a < b ? a : b; }
  static float max_float(float a, float b) { return a > b ? a : b; }

  std::int64_t size_of(std::int64_t block) const {
    return min_int(kBlock, args_.vocab - block * kBlock);
  }

  // body(block, logits, count) for the blocks that reach `least`.
  template <class Body>
  void for_each_block(float least, Body body) const {
    for (std::int64_t b = 0; b < blocks_; ++b)
      if (maxima_[b] >= least) body(b, logits_ + b * kBlock, size_of(b));
  }

  // False where a logit is NaN or the largest one is infinite.
  bool find_maxima() {
    vf nan = zero();
    max_ = -kInf;
    for (std::int64_t b = 0; b < blocks_; ++b) {
      const float* x = logits_ + b * kBlock;
      const auto acc = accumulate(size_of(b), set1(-kInf), [&](vf& m, std::int64_t i, auto lanes) {
        const vf v = load(x + i, lanes);
        nan = select(is_nan(v), v, nan);
        m = max(keep(v, set1(-kInf), lanes), m);
      });
      maxima_[b] = hmax(max(max(acc.a, acc.b), max(acc.c, acc.d)));
      max_ = max_float(max_, maxima_[b]);
    }
    return sum(nan) == 0.0f && max_ > -kInf && max_ < kInf;
  }

  std::int32_t first_of_max() const {
    std::int64_t i = 0;
    while (maxima_[i] != max_) ++i;
    i *= kBlock;
    while (logits_[i] != max_) ++i;
    return static_cast<std::int32_t>(i);
  }

  // The logit at which a token weighs `weight` times the most probable one.
  float at_weight(double weight) const {
    return static_cast<float>(static_cast<double>(max_) +
                              static_cast<double>(args_.temperature) * __builtin_log(weight));
  }

  // Weights of a block's tokens from `least` on, in to[kBlock]; the others weigh 0.
  void weigh(const float* x, std::int64_t count, float least, float* to) const {
    const vf shift = set1(max_), inverse = set1(inverse_), bound = set1(least);
    vf w[4];
    for (std::int64_t i = 0; i < kBlock; i += 4 * kLanes) {
      vf v[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const std::int64_t first = i + j * kLanes, left = count - first;
        v[j] = left >= kLanes ? load(x + first)
               : left > 0     ? keep(load_n(x + first, static_cast<int>(left)), set1(-kInf),
                                     Part{static_cast<int>(left)})
                              : set1(-kInf);
        w[j] = mul(sub(v[j], shift), inverse);
      }
      exp_nonpositive(w);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        store(to + i + j * kLanes, select(less(v[j], bound), zero(), w[j]));
    }
  }

  static float sum_of(const float (&weights)[kBlock]) {
    return sum(accumulate(kBlock, zero(), [&](vf& acc, std::int64_t i, auto lanes) {
      acc = add(acc, load(weights + i, lanes));
    }));
  }

  // Fills sums_ for the blocks that reach `least`; returns their total.
  double sum_blocks(float least) {
    double total = 0;
    for_each_block(least, [&](std::int64_t b, const float* x, std::int64_t count) {
      alignas(64) float weights[kBlock];
      weigh(x, count, least, weights);
      sums_[b] = static_cast<double>(sum_of(weights));
      total += sums_[b];
    });
    return total;
  }

  // Tokens from `least` on, to tokens_; returns their number.
  std::int64_t collect(float least) {
    std::int64_t found = 0;
    for_each_block(least, [&](std::int64_t, const float* x, std::int64_t count) {
      alignas(64) float weights[kBlock];
      weigh(x, count, least, weights);
      for (std::int64_t i = 0; i < count; ++i) {
        tokens_[found] = {x[i], weights[i]};
        found += x[i] >= least;
      }
    });
    return found;
  }

  // The top_k-th largest logit.
  float top_k() {
    const auto target = static_cast<double>(args_.top_k);
    float least = -kInf;
    if (args_.top_k < blocks_) {  // as many blocks hold one each from here on
      for (std::int64_t b = 0; b < blocks_; ++b) tokens_[b] = {maxima_[b], 1.0f};
      least = smallest_kept(tokens_, blocks_, target);
    }
    const std::int64_t count = collect(least);
    for (std::int64_t i = 0; i < count; ++i) tokens_[i].weight = 1.0f;
    return smallest_kept(tokens_, count, target);
  }

  // The smallest logit of the nucleus among the tokens from `least` on.
  float top_p(float least) {
    const double total = sum_blocks(least);
    // All tokens lighter than this together do not weigh what may be left out; the factor covers
    // rounding.
    const double light = 0.9 * (1.0 - args_.top_p) * total / static_cast<double>(args_.vocab);
    const std::int64_t count = collect(max_float(least, at_weight(light)));
    return smallest_kept(tokens_, count, args_.top_p * total);
  }

  std::int32_t pick(float least) {
    double target = static_cast<double>(random_) * sum_blocks(least);
    // Rounding may leave the target just beyond the end.
    std::int64_t last = -1;
    for (std::int64_t b = 0; b < blocks_; ++b) {
      if (maxima_[b] < least) continue;
      last = b;
      if (sums_[b] > target) break;
      target -= sums_[b];
    }
    alignas(64) float weights[kBlock];
    weigh(logits_ + last * kBlock, size_of(last), least, weights);
    std::int64_t token = 0;
    for (std::int64_t i = 0; i < size_of(last); ++i) {
      if (weights[i] == 0.0f) continue;
      token = i;
      if (static_cast<double>(weights[i]) > target) break;
      target -= static_cast<double>(weights[i]);
    }
    return static_cast<std::int32_t>(last * kBlock + token);
  }

  const SampleArgs<float>& args_;
  const float* logits_;
  float random_;
  std::int64_t blocks_;
  float inverse_;  // of the temperature
  float max_ = -kInf;
  Token* tokens_;
  double* sums_;   // of the weights in each block
  float* maxima_;  // of each block
};

float row_max(const float* x, std::int64_t n) {
  const auto acc = accumulate(n, set1(-kInf), [=](vf& m, std::int64_t i, auto lanes) {
    m = max(keep(load(x + i, lanes), set1(-kInf), lanes), m);
  });
  return hmax(max(max(acc.a, acc.b), max(acc.c, acc.d)));
}

// Sum of the exponentials relative to the largest.
float sum_of_exponentials(const float* x, std::int64_t n, float largest) {
  return sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    const vf e = exp_nonpositive(sub(load(x + i, lanes), set1(largest)));
    acc = add(acc, keep(e, zero(), lanes));
  }));
}

// The best continuations of one prompt so far, in order. Rows and their ids come in theirs, so that
// of equals the first is found first and stays in front.
class Best {
 public:
  Best(const TopContinuationsArgs& args, std::int64_t prompt)
      : args_(args),
        sums_(args.sums + prompt * args.count),
        rows_(args.rows + prompt * args.count),
        ids_(args.ids + prompt * args.count) {
    for (std::int64_t i = 0; i < args.count; ++i) {
      sums_[i] = -kInf;
      rows_[i] = static_cast<std::int32_t>(prompt * args.beams);
      ids_[i] = 0;
    }
  }

  void add(std::int64_t row, float score) {
    if (!(score > -kInf)) return;
    const std::int64_t n = args_.vocab;
    const float* x = args_.logits + row * args_.logits_stride;
    const float largest = row_max(x, n);
    const float log_total = __builtin_logf(sum_of_exponentials(x, n, largest));
    const auto sum_of = [=](float logit) { return score + ((logit - largest) - log_total); };
    for (std::int64_t first = 0; first < n; first += kBlock) {
      const std::int64_t count = min_int(kBlock, n - first);
      // Sums do not fall as logits rise, rounded or not.
      if (!(sum_of(n <= kBlock ? largest : row_max(x + first, count)) > least())) continue;
      for (std::int64_t i = first; i < first + count; ++i)
        if (const float sum = sum_of(x[i]); sum > least()) offer(sum, row, i);
    }
  }

 private:
  // A sum must be larger to be kept.
  float least() const { return sums_[args_.count - 1]; }

  void offer(float sum, std::int64_t row, std::int64_t id) {
    for (std::int64_t i = args_.cu_banned[row]; i < args_.cu_banned[row + 1]; ++i)
      if (args_.banned[i] == id) return;
    std::int64_t place = args_.count - 1;
    for (; place > 0 && sums_[place - 1] < sum; --place) {
      sums_[place] = sums_[place - 1];
      rows_[place] = rows_[place - 1];
      ids_[place] = ids_[place - 1];
    }
    sums_[place] = sum;
    rows_[place] = static_cast<std::int32_t>(row);
    ids_[place] = static_cast<std::int32_t>(id);
  }

  const TopContinuationsArgs& args_;
  float* sums_;
  std::int32_t *rows_, *ids_;
};

}  // namespace

void sample(const SampleArgs<float>& args) {
  parallel_for(args.batch, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) args.out[row] = Row(args, row).draw();
  });
}

void penalize(const PenalizeArgs<float>& args) {
  const std::int64_t words = ceil_div(args.vocab, 64);
  parallel_for(args.batch, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::size_t bytes = static_cast<std::size_t>(words) * sizeof(std::uint64_t);
    auto* seen = static_cast<std::uint64_t*>(scratch(bytes));
    for (std::int64_t row = begin; row < end; ++row) {
      __builtin_memset(seen, 0, bytes);
      float* x = args.logits + row * args.stride;
      for (std::int64_t i = args.cu_ids[row]; i < args.cu_ids[row + 1]; ++i) {
        const std::int32_t id = args.ids[i];
        const std::uint64_t bit = std::uint64_t{1} << (id % 64);
        if (seen[id / 64] & bit) continue;
        seen[id / 64] |= bit;
        x[id] = x[id] > 0.0f ? x[id] / args.penalty : x[id] * args.penalty;
      }
    }
  });
}

void softcap(const SoftcapArgs<float>& args) {
  const vf cap = set1(args.cap), inverse = set1(1.0f / args.cap);
  for_each_row_range(args.rows, 2 * kFloat * args.vocab, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      float* x = args.logits + row * args.stride;
      for_each_vector(args.vocab, [=](std::int64_t i, auto lanes) {
        store(x + i, mul(cap, tanh(mul(load(x + i, lanes), inverse))), lanes);
      });
    }
  });
}

void token_logprobs(const TokenLogprobsArgs<float>& args) {
  const std::int64_t n = args.vocab;
  for_each_row_range(args.rows, 2 * kFloat * n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* x = args.logits + row * args.stride;
      const float largest = row_max(x, n);
      const float total = sum_of_exponentials(x, n, largest);
      args.out[row] = (x[args.ids[row]] - largest) - __builtin_logf(total);
    }
  });
}

void top_continuations(const TopContinuationsArgs& args) {
  const std::int64_t bytes = 2 * kFloat * args.beams * args.vocab;
  for_each_row_range(args.prompts, bytes, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t prompt = begin; prompt < end; ++prompt) {
      Best best(args, prompt);
      for (std::int64_t beam = 0; beam < args.beams; ++beam)
        best.add(prompt * args.beams + beam, args.scores[prompt * args.scores_stride + beam]);
    }
  });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
