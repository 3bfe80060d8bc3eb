#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/dispatch.h"

namespace softgate {
namespace {

void check_logits(const char* op, const Tensor& logits) {
  check_tensor(op, "logits", logits, DType::float32, {-1, -1});
  check(logits.size(1) <= std::numeric_limits<std::int32_t>::max(), op, ": logits has ",
        logits.size(1), " columns, more than int32 ids");
}

void check_ids(const char* op, const Tensor& ids, std::int64_t vocab) {
  const auto* id = ids.data<std::int32_t>();
  for (std::int64_t i = 0; i < ids.numel(); ++i) {
    if (id[i] < 0 || id[i] >= vocab) [[unlikely]]
      check(false, op, ": ids[", i, "] is ", id[i], ", expected 0 <= id < ", vocab);
  }
}

void check_sampling(const Sampling& sampling) {
  const auto [temperature, top_k, top_p, min_p] = sampling;
  check(std::isfinite(temperature) && temperature >= 0, "sample: temperature is ", temperature,
        ", expected a finite number, 0 for the largest logit");
  check(top_k >= 0, "sample: top_k is ", top_k, ", expected at least 1, or 0 for no limit");
  check(top_p > 0 && top_p <= 1, "sample: top_p is ", top_p, ", expected 0 < top_p <= 1");
  check(min_p >= 0 && min_p <= 1, "sample: min_p is ", min_p, ", expected 0 <= min_p <= 1");
}

}  // namespace

Tensor sample(const Tensor& logits, const Tensor& random, const Sampling& sampling) {
  check_logits("sample", logits);
  const std::int64_t batch = logits.size(0), vocab = logits.size(1);
  check(vocab >= 1 || batch == 0, "sample: logits has no columns");
  check_tensor("sample", "random", random, DType::float32, {batch});
  for (std::int64_t b = 0; b < batch; ++b) {
    const float r = random.data<float>()[b];
    check(r >= 0.0f && r < 1.0f, "sample: random[", b, "] is ", r, ", expected 0 <= random < 1");
  }
  check_sampling(sampling);
  const Tensor result = Tensor::empty({batch}, DType::int32);
  const SampleArgs args{
      .logits = logits.data<float>(),
      .random = random.data<float>(),
      .out = result.data<std::int32_t>(),
      .batch = batch,
      .vocab = vocab,
      .stride = logits.stride(0),
      .temperature = static_cast<float>(
          std::min<double>(sampling.temperature, std::numeric_limits<float>::max())),
      .top_k = std::min(sampling.top_k, vocab),
      .top_p = sampling.top_p,
      .min_p = sampling.min_p,
  };
  cpu::kernels().sample(args);
  for (std::int64_t b = 0; b < batch; ++b) {
    check(args.out[b] >= 0, "sample: logits[", b,
          "] has a NaN, +inf, or nothing above -inf, expected numbers to choose from");
  }
  return result;
}

void penalize(const Tensor& logits, const Tensor& ids, const Tensor& cu_ids, double penalty) {
  check_logits("penalize", logits);
  check_writable("penalize", "logits", logits);
  check_tensor("penalize", "ids", ids, DType::int32, {-1});
  check_cu_seqlens("penalize", "cu_ids", cu_ids, ids.size(0));
  const std::int64_t batch = logits.size(0), vocab = logits.size(1);
  check(cu_ids.size(0) == batch + 1, "penalize: cu_ids has ", cu_ids.size(0), " offsets, expected ",
        batch + 1, " for ", batch, " rows of logits");
  check_ids("penalize", ids, vocab);
  check(std::isfinite(penalty) && penalty > 0, "penalize: penalty is ", penalty,
        ", expected a positive number");
  check(!overlap(logits, ids), "penalize: logits shares memory with ids");
  check(!overlap(logits, cu_ids), "penalize: logits shares memory with cu_ids");
  cpu::kernels().penalize({
      .logits = logits.data<float>(),
      .ids = ids.data<std::int32_t>(),
      .cu_ids = cu_ids.data<std::int32_t>(),
      .batch = batch,
      .vocab = vocab,
      .stride = logits.stride(0),
      .penalty = static_cast<float>(penalty),
  });
}

Tensor token_logprobs(const Tensor& logits, const Tensor& ids) {
  check_logits("token_logprobs", logits);
  const std::int64_t rows = logits.size(0), vocab = logits.size(1);
  check_tensor("token_logprobs", "ids", ids, DType::int32, {rows});
  check_ids("token_logprobs", ids, vocab);
  const Tensor result = Tensor::empty({rows});
  cpu::kernels().token_logprobs({
      .logits = logits.data<float>(),
      .ids = ids.data<std::int32_t>(),
      .out = result.data<float>(),
      .rows = rows,
      .vocab = vocab,
      .stride = logits.stride(0),
  });
  return result;
}

}  // namespace softgate
