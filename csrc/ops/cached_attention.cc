#include "ops/cached_attention.h"

#include <cmath>

#include "ops/dispatch.h"

namespace softgate {
namespace {

constexpr const char* kOp = "cached_attention";

void check_heads(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache) {
  check_tensor(kOp, "q", q, DType::float32, {-1, -1, -1});
  check(q.size(1) > 0, kOp, ": q has no heads");
  const std::int64_t head_dim = q.size(2);
  check(head_dim >= 1 && head_dim <= kMaxHeadDim, kOp, ": q has head_dim ", head_dim,
        ", expected 1 to ", kMaxHeadDim);
  check_tensor(kOp, "k_cache", k_cache, DType::float32, {-1, -1, -1, head_dim});
  check(k_cache.size(2) > 0 && q.size(1) % k_cache.size(2) == 0, kOp, ": k_cache has ",
        k_cache.size(2), " heads, expected a divisor of q's ", q.size(1));
  check_tensor(kOp, "v_cache", v_cache, DType::float32, k_cache.shape());
}

void check_lengths(const Tensor& lengths, std::int64_t batch, std::int64_t capacity) {
  check_tensor(kOp, "lengths_k", lengths, DType::int32, {batch});
  const auto* length = lengths.data<std::int32_t>();
  for (std::int64_t b = 0; b < batch; ++b) {
    check(length[b] >= 0 && length[b] <= capacity, kOp, ": lengths_k[", b, "] is ", length[b],
          ", expected 0 to the capacity ", capacity);
  }
}

}  // namespace

Tensor cached_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                        const Tensor& cu_seqlens_q, const Tensor& lengths_k,
                        const CachedAttentionOptions& options, std::optional<Tensor> out) {
  check_heads(q, k_cache, v_cache);
  const std::int64_t total_q = q.size(0), num_heads = q.size(1), head_dim = q.size(2);
  const std::int64_t capacity = k_cache.size(1);
  check_cu_seqlens(kOp, "cu_seqlens_q", cu_seqlens_q, total_q);
  const std::int64_t batch = cu_seqlens_q.size(0) - 1;
  check_lengths(lengths_k, batch, capacity);
  const Tensor* cache_rows = options.cache_rows ? &*options.cache_rows : nullptr;
  check_cache_rows(kOp, cache_rows, batch, k_cache.size(0));
  const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim)));
  check(std::isfinite(scale), kOp, ": scale is ", scale, ", expected a finite number");
  check(std::isfinite(options.softcap) && options.softcap >= 0, kOp, ": softcap is ",
        options.softcap, ", expected a finite number, 0 for none");

  Tensor result = resolve_out(kOp, std::move(out), DType::float32, q.shape());
  check_overlap(kOp, result, "q", q, false);
  check_overlap(kOp, result, "k_cache", k_cache, false);
  check_overlap(kOp, result, "v_cache", v_cache, false);
  check_overlap(kOp, result, "cu_seqlens_q", cu_seqlens_q, false);
  check_overlap(kOp, result, "lengths_k", lengths_k, false);
  if (cache_rows) check_overlap(kOp, result, "cache_rows", *cache_rows, false);

  const CachedAttentionArgs<float> args{
      .attention =
          {
              .q = q.data<float>(),
              .k = k_cache.data<float>(),
              .v = v_cache.data<float>(),
              .out = result.data<float>(),
              .lse = nullptr,
              .weights = nullptr,
              .cu_seqlens_q = cu_seqlens_q.data<std::int32_t>(),
              .cu_seqlens_k = nullptr,
              .lengths_k = lengths_k.data<std::int32_t>(),
              .cache_rows = cache_rows ? cache_rows->data<std::int32_t>() : nullptr,
              .bool_mask = nullptr,
              .add_mask = nullptr,
              .batch = batch,
              .num_heads = num_heads,
              .num_kv_heads = k_cache.size(2),
              .head_dim = head_dim,
              .total_q = total_q,
              .total_k = 0,
              .max_q = 0,
              .max_k = 0,
              .min_q = 0,
              .q_stride = q.stride(0),
              .k_stride = k_cache.stride(1),
              .v_stride = v_cache.stride(1),
              .out_stride = result.stride(0),
              .q_head_stride = q.stride(1),
              .k_head_stride = k_cache.stride(2),
              .v_head_stride = v_cache.stride(2),
              .out_head_stride = result.stride(1),
              .k_row_stride = k_cache.stride(0),
              .v_row_stride = v_cache.stride(0),
              .lse_stride = 0,
              .mask_batch_stride = 0,
              .mask_head_stride = 0,
              .mask_row_stride = 0,
              .scale = static_cast<float>(scale),
              .softcap = static_cast<float>(options.softcap),
              .window_left = effective_bound(options.window.first),
              .window_right = options.causal ? 0 : effective_bound(options.window.second),
          },
  };
  cpu::kernels().cached_attention(args);
  return result;
}

}  // namespace softgate
