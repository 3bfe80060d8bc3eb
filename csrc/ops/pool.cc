#include "ops/pool.h"

#include "ops/dispatch.h"

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
  const DType dtype = check_float("pool", "x", x);
  const Device device = x.device();
  check_tensor("pool", "x", x, dtype, {-1, -1}, device);
  check_cu_seqlens("pool", "cu_seqlens", cu_seqlens, x.size(0), device);
  const std::int64_t batch = cu_seqlens.size(0) - 1, hidden = x.size(1);
  const Tensor result = resolve_out("pool", std::move(out), dtype, {batch, hidden}, device);
  check_overlap("pool", result, "x", x, false);
  check_overlap("pool", result, "cu_seqlens", cu_seqlens, false);
  if (result.numel() == 0) return result;
  dispatch(dtype, [&]<class T>(T) {
    const PoolArgs<T> args{
        .x = x.data<T>(),
        .cu_seqlens = cu_seqlens.data<std::int32_t>(),
        .out = result.data<T>(),
        .tokens = x.size(0),
        .batch = batch,
        .hidden = hidden,
        .x_stride = x.stride(0),
        .out_stride = result.stride(0),
        .mode = parsed,
    };
    run_kernel<T>(device, args, &cpu::Kernels::pool, &cuda::Kernels<T>::pool);
  });
  return result;
}

Tensor pool(const Tensor& x, const SequenceOffsets& cu_seqlens, const std::string& mode,
            std::optional<Tensor> out) {
  if (x.dim() > 0) cu_seqlens.check_fit("pool", "cu_seqlens", x.size(0), x.device());
  return pool(x, cu_seqlens.cu_seqlens(), mode, std::move(out));
}

}  // namespace softgate
