#include "ops/pool.h"

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "ops/arguments.h"

namespace softgate {
namespace {

PoolMode parse_mode(const std::string& text) {
  if (text == "mean") return PoolMode::mean;
  if (text == "cls") return PoolMode::cls;
  if (text == "max") return PoolMode::max;
  if (text == "last") return PoolMode::last;
  check(false, "pool: mode is '", text, "', expected 'mean', 'cls', 'max' or 'last'");
  return PoolMode::mean;
}

}  // namespace

Tensor pool(const Tensor& x, const Tensor& cu_seqlens, const std::string& mode,
            std::optional<Tensor> out) {
  const PoolMode parsed = parse_mode(mode);
  check_tensor("pool", "x", x, DType::float32, {-1, -1});
  check_cu_seqlens("pool", "cu_seqlens", cu_seqlens, x.size(0));
  const std::int64_t batch = cu_seqlens.size(0) - 1, hidden = x.size(1);
  const Tensor result = resolve_out("pool", std::move(out), DType::float32, {batch, hidden});
  check_overlap("pool", result, "x", x, false);
  check_overlap("pool", result, "cu_seqlens", cu_seqlens, false);
  if (result.numel() == 0) return result;
  cpu::kernels().pool({
      .x = x.data<float>(),
      .cu_seqlens = cu_seqlens.data<std::int32_t>(),
      .out = result.data<float>(),
      .batch = batch,
      .hidden = hidden,
      .x_stride = x.stride(0),
      .out_stride = result.stride(0),
      .mode = parsed,
  });
  return result;
}

}  // namespace softgate
