#include "ops/rotary.h"

#include <algorithm>
#include <vector>

#include "ops/attention.h"
#include "ops/dispatch.h"

namespace softgate {
namespace {

constexpr const char* kOp = "rotary";

void check_caches(const Tensor& k_cache, const Tensor& v_cache, DType dtype, Device device) {
  check_tensor(kOp, "k_cache", k_cache, dtype, {-1, -1, -1, -1}, device);
  const std::int64_t head_dim = k_cache.size(3);
  check(k_cache.size(2) >= 1, kOp, ": k_cache has no heads");
  check(head_dim >= 1 && head_dim <= kMaxHeadDim, kOp, ": k_cache has head_dim ", head_dim,
        ", expected 1 to ", kMaxHeadDim);
  check_tensor(kOp, "v_cache", v_cache, dtype, k_cache.shape(), device);
  check_writable(kOp, "k_cache", k_cache);
  check_writable(kOp, "v_cache", v_cache);
  check(!overlap(k_cache, v_cache), kOp, ": k_cache shares memory with v_cache");
}

// Returns the number of positions needed; none of those that only a device knows.
std::int64_t check_starts(const SequenceOffsets& cu_seqlens, const Tensor& starts,
                          std::int64_t capacity, Device device) {
  const std::int64_t batch = cu_seqlens.batch();
  check_tensor(kOp, "starts", starts, DType::int32, {batch}, device);
  if (device.kind != DeviceKind::cpu) return 0;
  const auto *offset = cu_seqlens.host(), *start = starts.data<std::int32_t>();
  std::int64_t positions = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t length = offset[b + 1] - offset[b], end = start[b] + length;
    check(start[b] >= 0 && end <= capacity, kOp, ": starts[", b, "] is ", start[b],
          ", expected 0 to ", capacity - length, " for ", length, " tokens in a capacity of ",
          capacity);
    if (length > 0) positions = std::max(positions, end);
  }
  return positions;
}

void check_rows_differ(const Tensor& cache_rows) {
  const auto* first = cache_rows.data<std::int32_t>();
  std::vector<std::int32_t> rows(first, first + cache_rows.numel());
  std::sort(rows.begin(), rows.end());
  const auto twice = std::adjacent_find(rows.begin(), rows.end());
  if (twice != rows.end())
    check(false, kOp, ": cache_rows has row ", *twice, " twice, expected different rows");
}

// Returns rotary_dim.
std::int64_t check_angles(const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                          std::int64_t positions, std::int64_t head_dim, Device device) {
  check(cos.has_value() == sin.has_value(), kOp, ": ", cos ? "cos" : "sin", " is given without ",
        cos ? "sin" : "cos");
  if (!cos) return 0;
  check_tensor(kOp, "cos", *cos, DType::float32, {-1, -1}, device);
  check(cos->size(1) <= head_dim / 2, kOp, ": cos has ", cos->size(1),
        " angles, expected at most half of head_dim ", head_dim);
  check(cos->size(0) >= positions, kOp, ": cos has ", cos->size(0),
        " positions, expected at least ", positions);
  check_tensor(kOp, "sin", *sin, DType::float32, cos->shape(), device);
  return 2 * cos->size(1);
}

}  // namespace

Tensor rotary(const Tensor& qkv, const SequenceOffsets& cu_seqlens, const Tensor& starts,
              const Tensor& k_cache, const Tensor& v_cache, const RotaryOptions& options,
              std::optional<Tensor> out) {
  const DType dtype = check_float(kOp, "qkv", qkv);
  const Device device = qkv.device();
  check_caches(k_cache, v_cache, dtype, device);
  const std::int64_t capacity = k_cache.size(1), num_kv_heads = k_cache.size(2);
  const std::int64_t head_dim = k_cache.size(3), num_heads = options.num_heads;
  // A bound that no tensor passes, so that the columns do not overflow.
  check(num_heads >= 1 && num_heads <= std::int64_t{1} << 32, kOp, ": num_heads is ", num_heads,
        ", expected at least 1");
  check_tensor(kOp, "qkv", qkv, dtype, {-1, (num_heads + 2 * num_kv_heads) * head_dim}, device);
  const std::int64_t total = qkv.size(0);
  cu_seqlens.check_fit(kOp, "cu_seqlens", total, device);
  const std::int64_t batch = cu_seqlens.batch();
  const std::int64_t positions = check_starts(cu_seqlens, starts, capacity, device);
  const Tensor* cache_rows = options.cache_rows ? &*options.cache_rows : nullptr;
  check_cache_rows(kOp, cache_rows, batch, k_cache.size(0), device);
  if (cache_rows && device.kind == DeviceKind::cpu) check_rows_differ(*cache_rows);
  const std::int64_t rotary_dim =
      check_angles(options.cos, options.sin, positions, head_dim, device);
  if (options.q_norm) check_tensor(kOp, "q_norm", *options.q_norm, dtype, {head_dim}, device);
  if (options.k_norm) check_tensor(kOp, "k_norm", *options.k_norm, dtype, {head_dim}, device);
  check(options.eps >= 0, kOp, ": eps is ", options.eps, ", expected at least 0");

  Tensor q = resolve_out(kOp, std::move(out), dtype, {total, num_heads, head_dim}, device);
  const struct {
    const char* name;
    const Tensor* tensor;
  } inputs[] = {
      {"qkv", &qkv},
      {"cu_seqlens", &cu_seqlens.cu_seqlens()},
      {"starts", &starts},
      {"cache_rows", cache_rows},
      {"cos", options.cos ? &*options.cos : nullptr},
      {"sin", options.sin ? &*options.sin : nullptr},
      {"q_norm", options.q_norm ? &*options.q_norm : nullptr},
      {"k_norm", options.k_norm ? &*options.k_norm : nullptr},
  };
  for (const auto& input : inputs) {
    if (!input.tensor) continue;
    check_overlap(kOp, q, input.name, *input.tensor, false);
    for (const Tensor* cache : {&k_cache, &v_cache}) {
      check(!overlap(*cache, *input.tensor), kOp, ": ", cache == &k_cache ? "k_cache" : "v_cache",
            " shares memory with ", input.name);
    }
  }
  check_overlap(kOp, q, "k_cache", k_cache, false);
  check_overlap(kOp, q, "v_cache", v_cache, false);
  if (total == 0) return q;

  dispatch(dtype, [&]<class T>(T) {
    const auto weight = [](const std::optional<Tensor>& tensor) {
      return tensor ? tensor->data<T>() : nullptr;
    };
    const RotaryArgs<T> args{
        .qkv = qkv.data<T>(),
        .q_norm = weight(options.q_norm),
        .k_norm = weight(options.k_norm),
        .cos = options.cos ? options.cos->data<float>() : nullptr,
        .sin = options.sin ? options.sin->data<float>() : nullptr,
        .q = q.data<T>(),
        .k_cache = k_cache.data<T>(),
        .v_cache = v_cache.data<T>(),
        .cu_seqlens = cu_seqlens.data(),
        .starts = starts.data<std::int32_t>(),
        .cache_rows = cache_rows ? cache_rows->data<std::int32_t>() : nullptr,
        .batch = batch,
        .total = total,
        .num_heads = num_heads,
        .num_kv_heads = num_kv_heads,
        .head_dim = head_dim,
        .rotary_dim = rotary_dim,
        .positions = options.cos ? std::min(capacity, options.cos->size(0)) : capacity,
        .rows = k_cache.size(0),
        .qkv_stride = qkv.stride(0),
        .q_stride = q.stride(0),
        .q_head_stride = q.stride(1),
        .cos_stride = options.cos ? options.cos->stride(0) : 0,
        .sin_stride = options.sin ? options.sin->stride(0) : 0,
        .k_row_stride = k_cache.stride(0),
        .k_stride = k_cache.stride(1),
        .k_head_stride = k_cache.stride(2),
        .v_row_stride = v_cache.stride(0),
        .v_stride = v_cache.stride(1),
        .v_head_stride = v_cache.stride(2),
        .eps = static_cast<float>(options.eps),
        .interleaved = options.interleaved,
    };
    run_kernel<T>(device, args, &cpu::Kernels::rotary, &cuda::Kernels<T>::rotary);
  });
  return q;
}

}  // namespace softgate
