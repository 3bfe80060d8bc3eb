#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cached_attention.h"
#include "ops/dispatch.h"

namespace softgate {
namespace {

void check_heads(const Tensor& q, const Tensor& k, const Tensor& v) {
  const DType dtype = check_float("attention", "q", q);
  const Device device = q.device();
  check_tensor("attention", "q", q, dtype, {-1, -1, -1}, device);
  check(q.size(1) > 0, "attention: q has no heads");
  const std::int64_t head_dim = q.size(2);
  check(head_dim >= 1 && head_dim <= kMaxHeadDim, "attention: q has head_dim ", head_dim,
        ", expected 1 to ", kMaxHeadDim);
  check_tensor("attention", "k", k, dtype, {-1, -1, head_dim}, device);
  check(k.size(1) > 0 && q.size(1) % k.size(1) == 0, "attention: k has ", k.size(1),
        " heads, expected a divisor of q's ", q.size(1));
  check_tensor("attention", "v", v, dtype, k.shape(), device);
}

void check_mask(const Tensor& mask, std::int64_t batch, std::int64_t num_heads, std::int64_t max_q,
                std::int64_t max_k, Device device) {
  check_device("attention", "mask", mask, device);
  check_type(mask.dtype() == DType::boolean || mask.dtype() == DType::float32,
             "attention: mask has dtype ", name(mask.dtype()), ", expected bool or float32");
  check(mask.dim() == 4 && (mask.size(0) == batch || mask.size(0) == 1) &&
            (mask.size(1) == num_heads || mask.size(1) == 1) && mask.size(2) >= max_q &&
            mask.size(3) >= max_k,
        "attention: mask has shape ", mask.shape(), ", expected [", batch, " or 1, ", num_heads,
        " or 1, at least ", max_q, ", at least ", max_k, "]");
}

}  // namespace

void check_relative_bias(const char* op, const Tensor* bias, std::int64_t num_heads,
                         Device device) {
  if (!bias) return;
  check_tensor(op, "relative_bias", *bias, DType::float32, {num_heads, -1}, device);
  check(bias->size(1) % 2 == 1, op, ": relative_bias has ", bias->size(1),
        " columns, expected an odd number, 2 * reach + 1");
}

std::int64_t effective_bound(std::int64_t bound) {
  return bound < 0 || bound > std::numeric_limits<std::int32_t>::max() ? -1 : bound;
}

AttentionResult attention(const Tensor& q, const Tensor& k, const Tensor& v,
                          const SequenceOffsets& cu_seqlens_q, const SequenceOffsets& cu_seqlens_k,
                          const AttentionOptions& options, std::optional<Tensor> out) {
  check_heads(q, k, v);
  const std::int64_t total_q = q.size(0), num_heads = q.size(1), head_dim = q.size(2);
  const DType dtype = q.dtype();
  const Device device = q.device();
  cu_seqlens_q.check_fit("attention", "cu_seqlens_q", total_q, device);
  cu_seqlens_k.check_fit("attention", "cu_seqlens_k", k.size(0), device);
  const std::int64_t batch = cu_seqlens_q.batch();
  check(cu_seqlens_k.batch() == batch, "attention: cu_seqlens_k has ", cu_seqlens_k.batch() + 1,
        " offsets, expected cu_seqlens_q's ", batch + 1);
  std::int64_t max_q = cu_seqlens_q.longest(), max_k = cu_seqlens_k.longest();
  const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim)));
  check(std::isfinite(scale), "attention: scale is ", scale, ", expected a finite number");
  check(std::isfinite(options.softcap) && options.softcap >= 0, "attention: softcap is ",
        options.softcap, ", expected a finite number, 0 for none");

  const Tensor* mask = options.mask ? &*options.mask : nullptr;
  if (mask) {
    check_mask(*mask, batch, num_heads, max_q, max_k, device);
    max_q = mask->size(2);
    max_k = mask->size(3);
  }
  const Tensor* bias = options.relative_bias ? &*options.relative_bias : nullptr;
  check_relative_bias("attention", bias, num_heads, device);
  const bool bool_mask = mask && mask->dtype() == DType::boolean;
  const auto mask_stride = [&](int i) { return mask && mask->size(i) > 1 ? mask->stride(i) : 0; };

  AttentionResult result;
  result.out = resolve_out("attention", std::move(out), dtype, q.shape(), device);
  check_overlap("attention", result.out, "q", q, false);
  check_overlap("attention", result.out, "k", k, false);
  check_overlap("attention", result.out, "v", v, false);
  check_overlap("attention", result.out, "cu_seqlens_q", cu_seqlens_q.cu_seqlens(), false);
  check_overlap("attention", result.out, "cu_seqlens_k", cu_seqlens_k.cu_seqlens(), false);
  if (mask) check_overlap("attention", result.out, "mask", *mask, false);
  if (bias) check_overlap("attention", result.out, "relative_bias", *bias, false);
  if (options.return_lse) result.lse = Tensor::empty({num_heads, total_q}, DType::float32, device);
  if (options.return_weights)
    result.weights = Tensor::empty({batch, num_heads, max_q, max_k}, DType::float32, device);

  dispatch(dtype, [&]<class T>(T) {
    const AttentionArgs<T> args{
        .q = q.data<T>(),
        .k = k.data<T>(),
        .v = v.data<T>(),
        .out = result.out.data<T>(),
        .lse = result.lse ? result.lse->data<float>() : nullptr,
        .weights = result.weights ? result.weights->data<float>() : nullptr,
        .cu_seqlens_q = cu_seqlens_q.data(),
        .cu_seqlens_k = cu_seqlens_k.data(),
        .lengths_k = nullptr,
        .cache_rows = nullptr,
        .bool_mask = bool_mask ? mask->data<std::uint8_t>() : nullptr,
        .add_mask = mask && !bool_mask ? mask->data<float>() : nullptr,
        .relative_bias = bias ? bias->data<float>() : nullptr,
        .batch = batch,
        .num_heads = num_heads,
        .num_kv_heads = k.size(1),
        .head_dim = head_dim,
        .total_q = total_q,
        .total_k = k.size(0),
        .max_q = max_q,
        .max_k = max_k,
        .min_q = cu_seqlens_q.shortest(),
        .q_stride = q.stride(0),
        .k_stride = k.stride(0),
        .v_stride = v.stride(0),
        .out_stride = result.out.stride(0),
        .q_head_stride = q.stride(1),
        .k_head_stride = k.stride(1),
        .v_head_stride = v.stride(1),
        .out_head_stride = result.out.stride(1),
        .k_row_stride = k.stride(0),
        .v_row_stride = v.stride(0),
        .num_rows = 0,
        .lse_stride = total_q,
        .mask_batch_stride = mask_stride(0),
        .mask_head_stride = mask_stride(1),
        .mask_row_stride = mask ? mask->stride(2) : 0,
        .bias_head_stride = bias ? bias->stride(0) : 0,
        .bias_reach = bias ? bias->size(1) / 2 : 0,
        .scale = static_cast<float>(scale),
        .softcap = static_cast<float>(options.softcap),
        .window_left = effective_bound(options.window.first),
        .window_right = options.causal ? 0 : effective_bound(options.window.second),
    };
    if constexpr (std::is_same_v<T, float>) {
      const bool plain = !mask && !options.return_lse && !options.return_weights;
      if (plain && device.kind == DeviceKind::cpu) return attend_on_cpu(args);
    }
    run_kernel<T>(device, args, &cpu::Kernels::attention, &cuda::Kernels<T>::attention);
  });
  return result;
}

}  // namespace softgate
