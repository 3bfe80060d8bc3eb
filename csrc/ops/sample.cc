#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/dispatch.h"

namespace softgate {
namespace {

// On a device a count of tokens is a float32, which holds it exactly up to here.
constexpr std::int64_t kMaxVocabOnDevice = std::int64_t{1} << 24;

DType check_logits(const char* op, const Tensor& logits) {
  const DType dtype = check_float(op, "logits", logits);
  check_tensor(op, "logits", logits, dtype, {-1, -1}, logits.device());
  const std::int64_t most = logits.device().kind == DeviceKind::cpu
                                ? std::numeric_limits<std::int32_t>::max()
                                : kMaxVocabOnDevice;
  check(logits.size(1) <= most, op, ": logits has ", logits.size(1), " columns, expected at most ",
        most);
  return dtype;
}

void check_ids(const char* op, const Tensor& ids, std::int64_t vocab, const char* name = "ids") {
  if (ids.device().kind != DeviceKind::cpu) return;
  const auto* id = ids.data<std::int32_t>();
  for (std::int64_t i = 0; i < ids.numel(); ++i) {
    if (id[i] < 0 || id[i] >= vocab) [[unlikely]]
      check(false, op, ": ", name, "[", i, "] is ", id[i], ", expected 0 <= id < ", vocab);
  }
}

void check_random(const Tensor& random, std::int64_t batch, Device device) {
  check_tensor("sample", "random", random, DType::float32, {batch}, device);
  if (device.kind != DeviceKind::cpu) return;
  for (std::int64_t b = 0; b < batch; ++b) {
    const float r = random.data<float>()[b];
    check(r >= 0.0f && r < 1.0f, "sample: random[", b, "] is ", r, ", expected 0 <= random < 1");
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
  const DType dtype = check_logits("sample", logits);
  const Device device = logits.device();
  const std::int64_t batch = logits.size(0), vocab = logits.size(1);
  check(vocab >= 1 || batch == 0, "sample: logits has no columns");
  check_random(random, batch, device);
  check_sampling(sampling);
  const Tensor result = Tensor::empty({batch}, DType::int32, device);
  if (batch == 0) return result;
  dispatch(dtype, [&]<class T>(T) {
    const SampleArgs<T> args{
        .logits = logits.data<T>(),
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
    run_kernel<T>(device, args, &cpu::Kernels::sample, &cuda::Kernels<T>::sample);
  });
  if (device.kind != DeviceKind::cpu) return result;
  for (std::int64_t b = 0; b < batch; ++b) {
    check(result.data<std::int32_t>()[b] >= 0, "sample: logits[", b,
          "] has a NaN, +inf, or nothing above -inf, expected numbers to choose from");
  }
  return result;
}

void penalize(const Tensor& logits, const Tensor& ids, const Tensor& cu_ids, double penalty) {
  const DType dtype = check_logits("penalize", logits);
  const Device device = logits.device();
  check_writable("penalize", "logits", logits);
  check_tensor("penalize", "ids", ids, DType::int32, {-1}, device);
  check_cu_seqlens("penalize", "cu_ids", cu_ids, ids.size(0), device);
  const std::int64_t batch = logits.size(0), vocab = logits.size(1);
  check(cu_ids.size(0) == batch + 1, "penalize: cu_ids has ", cu_ids.size(0), " offsets, expected ",
        batch + 1, " for ", batch, " rows of logits");
  check_ids("penalize", ids, vocab);
  check(std::isfinite(penalty) && penalty > 0, "penalize: penalty is ", penalty,
        ", expected a positive number");
  check(!overlap(logits, ids), "penalize: logits shares memory with ids");
  check(!overlap(logits, cu_ids), "penalize: logits shares memory with cu_ids");
  if (logits.numel() == 0) return;
  dispatch(dtype, [&]<class T>(T) {
    const PenalizeArgs<T> args{
        .logits = logits.data<T>(),
        .ids = ids.data<std::int32_t>(),
        .cu_ids = cu_ids.data<std::int32_t>(),
        .batch = batch,
        .vocab = vocab,
        .num_ids = ids.size(0),
        .stride = logits.stride(0),
        .penalty = static_cast<float>(penalty),
    };
    run_kernel<T>(device, args, &cpu::Kernels::penalize, &cuda::Kernels<T>::penalize);
  });
}

void softcap(const Tensor& logits, double cap) {
  const DType dtype = check_logits("softcap", logits);
  check_writable("softcap", "logits", logits);
  check(std::isfinite(cap) && cap > 0, "softcap: cap is ", cap, ", expected a positive number");
  if (logits.numel() == 0) return;
  dispatch(dtype, [&]<class T>(T) {
    const SoftcapArgs<T> args{
        .logits = logits.data<T>(),
        .rows = logits.size(0),
        .vocab = logits.size(1),
        .stride = logits.stride(0),
        .cap = static_cast<float>(cap),
    };
    run_kernel<T>(logits.device(), args, &cpu::Kernels::softcap, &cuda::Kernels<T>::softcap);
  });
}

Tensor token_logprobs(const Tensor& logits, const Tensor& ids) {
  const DType dtype = check_logits("token_logprobs", logits);
  const Device device = logits.device();
  const std::int64_t rows = logits.size(0), vocab = logits.size(1);
  check_tensor("token_logprobs", "ids", ids, DType::int32, {rows}, device);
  check_ids("token_logprobs", ids, vocab);
  const Tensor result = Tensor::empty({rows}, DType::float32, device);
  if (rows == 0) return result;
  dispatch(dtype, [&]<class T>(T) {
    const TokenLogprobsArgs<T> args{
        .logits = logits.data<T>(),
        .ids = ids.data<std::int32_t>(),
        .out = result.data<float>(),
        .rows = rows,
        .vocab = vocab,
        .stride = logits.stride(0),
    };
    run_kernel<T>(device, args, &cpu::Kernels::token_logprobs, &cuda::Kernels<T>::token_logprobs);
  });
  return result;
}

Continuations top_continuations(const Tensor& logits, const Tensor& scores, std::int64_t count,
                                const Tensor& banned, const Tensor& cu_banned) {
  const char* op = "top_continuations";
  check_tensor(op, "scores", scores, DType::float32, {-1, -1}, Device{});
  const std::int64_t prompts = scores.size(0), beams = scores.size(1), rows = prompts * beams;
  check(beams >= 1, op, ": scores has no columns, expected one for each text of a prompt");
  check_tensor(op, "logits", logits, DType::float32, {rows, -1}, Device{});
  check_logits(op, logits);
  const std::int64_t vocab = logits.size(1);
  check(rows <= std::numeric_limits<std::int32_t>::max(), op, ": logits has ", rows,
        " rows, expected at most ", std::numeric_limits<std::int32_t>::max());
  check(count >= 1, op, ": count is ", count, ", expected at least 1");
  check_tensor(op, "banned", banned, DType::int32, {-1}, Device{});
  check_cu_seqlens(op, "cu_banned", cu_banned, banned.size(0), Device{});
  check(cu_banned.size(0) == rows + 1, op, ": cu_banned has ", cu_banned.size(0),
        " offsets, expected ", rows + 1, " for ", rows, " rows of logits");
  check_ids(op, banned, vocab, "banned");
  const Dims shape = {prompts, count};
  Continuations result{Tensor::empty(shape), Tensor::empty(shape, DType::int32),
                       Tensor::empty(shape, DType::int32)};
  if (prompts == 0) return result;
  cpu::kernels().top_continuations({
      .logits = logits.data<float>(),
      .scores = scores.data<float>(),
      .banned = banned.data<std::int32_t>(),
      .cu_banned = cu_banned.data<std::int32_t>(),
      .sums = result.sums.data<float>(),
      .rows = result.rows.data<std::int32_t>(),
      .ids = result.ids.data<std::int32_t>(),
      .prompts = prompts,
      .beams = beams,
      .vocab = vocab,
      .count = count,
      .logits_stride = logits.stride(0),
      .scores_stride = scores.stride(0),
  });
  return result;
}

}  // namespace softgate
