#include "ops/cached_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/dispatch.h"

namespace softgate {
namespace {

constexpr const char* kOp = "cached_attention";

void check_heads(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache) {
  const DType dtype = check_float(kOp, "q", q);
  const Device device = q.device();
  check_tensor(kOp, "q", q, dtype, {-1, -1, -1}, device);
  check(q.size(1) > 0, kOp, ": q has no heads");
  const std::int64_t head_dim = q.size(2);
  check(head_dim >= 1 && head_dim <= kMaxHeadDim, kOp, ": q has head_dim ", head_dim,
        ", expected 1 to ", kMaxHeadDim);
  check_tensor(kOp, "k_cache", k_cache, dtype, {-1, -1, -1, head_dim}, device);
  check(k_cache.size(2) > 0 && q.size(1) % k_cache.size(2) == 0, kOp, ": k_cache has ",
        k_cache.size(2), " heads, expected a divisor of q's ", q.size(1));
  check_tensor(kOp, "v_cache", v_cache, dtype, k_cache.shape(), device);
}

void check_lengths(const Tensor& lengths, std::int64_t batch, std::int64_t capacity,
                   Device device) {
  check_tensor(kOp, "lengths_k", lengths, DType::int32, {batch}, device);
  if (device.kind != DeviceKind::cpu) return;
  const auto* length = lengths.data<std::int32_t>();
  for (std::int64_t b = 0; b < batch; ++b) {
    check(length[b] >= 0 && length[b] <= capacity, kOp, ": lengths_k[", b, "] is ", length[b],
          ", expected 0 to the capacity ", capacity);
  }
}

// Of keys and values, in a split: enough to keep a thread busy for much longer than handing it over
// takes.
constexpr std::int64_t kSplitBytes = 128 << 10;
constexpr std::int64_t kSplitMultiple = 64;

std::int64_t split_keys_of(const AttentionArgs<float>& args) {
  const std::int64_t key_bytes = 2 * 4 * args.num_kv_heads * args.head_dim;
  return std::max<std::int64_t>(1, kSplitBytes / key_bytes / kSplitMultiple) * kSplitMultiple;
}

struct Splits {
  std::vector<std::int64_t> first_split{0}, first_partial{0};

  Splits(const AttentionArgs<float>& args, std::int64_t split_keys) {
    for (std::int64_t b = 0; b < args.batch; ++b) {
      const std::int64_t queries = args.cu_seqlens_q[b + 1] - args.cu_seqlens_q[b];
      const std::int64_t keys =
          args.lengths_k ? args.lengths_k[b] : args.cu_seqlens_k[b + 1] - args.cu_seqlens_k[b];
      const std::int64_t unseen =
          args.window_left < 0
              ? 0
              : std::clamp<std::int64_t>(keys - queries - args.window_left, 0, keys);
      const bool decoded = queries <= kDecodeQueries;
      const std::int64_t splits =
          decoded ? (keys + split_keys - 1) / split_keys - unseen / split_keys : 0;
      first_split.push_back(first_split.back() + splits);
      first_partial.push_back(first_partial.back() + splits * queries);
    }
  }
};

}  // namespace

void attend_on_cpu(const AttentionArgs<float>& attention) {
  const std::int64_t split_keys = split_keys_of(attention);
  const Splits splits(attention, split_keys);
  const Tensor partials =
      Tensor::empty({splits.first_partial.back(), attention.num_heads, attention.head_dim + 2});
  cpu::kernels().cached_attention({
      .attention = attention,
      .split_keys = split_keys,
      .first_split = splits.first_split.data(),
      .first_partial = splits.first_partial.data(),
      .partials = partials.data<float>(),
  });
}

Tensor cached_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                        const SequenceOffsets& cu_seqlens_q, const Tensor& lengths_k,
                        const CachedAttentionOptions& options, std::optional<Tensor> out) {
  check_heads(q, k_cache, v_cache);
  const std::int64_t total_q = q.size(0), num_heads = q.size(1), head_dim = q.size(2);
  const std::int64_t capacity = k_cache.size(1);
  const DType dtype = q.dtype();
  const Device device = q.device();
  cu_seqlens_q.check_fit(kOp, "cu_seqlens_q", total_q, device);
  const std::int64_t batch = cu_seqlens_q.batch();
  check_lengths(lengths_k, batch, capacity, device);
  const Tensor* cache_rows = options.cache_rows ? &*options.cache_rows : nullptr;
  check_cache_rows(kOp, cache_rows, batch, k_cache.size(0), device);
  const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim)));
  check(std::isfinite(scale), kOp, ": scale is ", scale, ", expected a finite number");
  check(std::isfinite(options.softcap) && options.softcap >= 0, kOp, ": softcap is ",
        options.softcap, ", expected a finite number, 0 for none");

  const Tensor* bias = options.relative_bias ? &*options.relative_bias : nullptr;
  check_relative_bias(kOp, bias, num_heads, device);
  Tensor result = resolve_out(kOp, std::move(out), dtype, q.shape(), device);
  check_overlap(kOp, result, "q", q, false);
  check_overlap(kOp, result, "k_cache", k_cache, false);
  check_overlap(kOp, result, "v_cache", v_cache, false);
  check_overlap(kOp, result, "cu_seqlens_q", cu_seqlens_q.cu_seqlens(), false);
  check_overlap(kOp, result, "lengths_k", lengths_k, false);
  if (cache_rows) check_overlap(kOp, result, "cache_rows", *cache_rows, false);
  if (bias) check_overlap(kOp, result, "relative_bias", *bias, false);

  dispatch(dtype, [&]<class T>(T) {
    const AttentionArgs<T> args{
        .q = q.data<T>(),
        .k = k_cache.data<T>(),
        .v = v_cache.data<T>(),
        .out = result.data<T>(),
        .lse = nullptr,
        .weights = nullptr,
        .cu_seqlens_q = cu_seqlens_q.data(),
        .cu_seqlens_k = nullptr,
        .lengths_k = lengths_k.data<std::int32_t>(),
        .cache_rows = cache_rows ? cache_rows->data<std::int32_t>() : nullptr,
        .bool_mask = nullptr,
        .add_mask = nullptr,
        .relative_bias = bias ? bias->data<float>() : nullptr,
        .batch = batch,
        .num_heads = num_heads,
        .num_kv_heads = k_cache.size(2),
        .head_dim = head_dim,
        .total_q = total_q,
        .total_k = 0,
        .max_q = cu_seqlens_q.longest(),
        .max_k = capacity,
        .min_q = cu_seqlens_q.shortest(),
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
        .num_rows = k_cache.size(0),
        .lse_stride = 0,
        .mask_batch_stride = 0,
        .mask_head_stride = 0,
        .mask_row_stride = 0,
        .bias_head_stride = bias ? bias->stride(0) : 0,
        .bias_reach = bias ? bias->size(1) / 2 : 0,
        .scale = static_cast<float>(scale),
        .softcap = static_cast<float>(options.softcap),
        .window_left = effective_bound(options.window.first),
        .window_right = options.causal ? 0 : effective_bound(options.window.second),
    };
    if constexpr (std::is_same_v<T, float>) {
      if (device.kind == DeviceKind::cpu) return attend_on_cpu(args);
    }
    cuda::kernels<T>(device).attention(args, current_stream(device));
  });
  return result;
}

}  // namespace softgate
