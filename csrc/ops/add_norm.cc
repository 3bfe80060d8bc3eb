#include "ops/add_norm.h"

#include "ops/dispatch.h"

namespace softgate {
namespace {

template <class T>
T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->data<T>() : nullptr;
}

// sum_out may be x or residual, like out, and shares memory with nothing else.
void check_sum_out(const char* op, const Tensor& sum_out, const Tensor& x,
                   const std::optional<Tensor>& residual, const Tensor& weight,
                   const std::optional<Tensor>& bias, const Tensor& out) {
  check_tensor(op, "sum_out", sum_out, x.dtype(), x.shape(), x.device());
  check_writable(op, "sum_out", sum_out);
  const auto refuse = [&](bool overlaps, const char* argument) {
    check(!overlaps, op, ": sum_out shares memory with ", argument);
  };
  refuse(overlap(sum_out, out), "out");
  refuse(overlap(sum_out, weight), "weight");
  refuse(bias && overlap(sum_out, *bias), "bias");
  refuse(overlap(sum_out, x) && !same_view(sum_out, x), "a part of x");
  refuse(residual && overlap(sum_out, *residual) && !same_view(sum_out, *residual),
         "a part of residual");
}

Tensor add_norm(const char* op, bool center, const Tensor& x, const std::optional<Tensor>& residual,
                const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                std::optional<Tensor> out, const std::optional<Tensor>& sum_out) {
  const DType dtype = check_float(op, "x", x);
  const Device device = x.device();
  const Rows in = as_rows(op, "x", x);
  if (residual) check_tensor(op, "residual", *residual, dtype, x.shape(), device);
  check_tensor(op, "weight", weight, dtype, {in.columns}, device);
  if (bias) check_tensor(op, "bias", *bias, dtype, {in.columns}, device);
  check(eps >= 0, op, ": eps is ", eps, ", expected at least 0");

  const Tensor result = resolve_out(op, std::move(out), dtype, x.shape(), device);
  check_overlap(op, result, "x", x, true);
  if (residual) check_overlap(op, result, "residual", *residual, true);
  check_overlap(op, result, "weight", weight, false);
  if (bias) check_overlap(op, result, "bias", *bias, false);
  if (sum_out) check_sum_out(op, *sum_out, x, residual, weight, bias, result);

  const std::int64_t residual_stride = residual ? as_rows(op, "residual", *residual).stride : 0;
  const std::int64_t out_stride = as_rows(op, "out", result).stride;
  const std::int64_t sum_stride = sum_out ? as_rows(op, "sum_out", *sum_out).stride : 0;
  if (result.numel() == 0) return result;
  dispatch(dtype, [&]<class T>(T) {
    const AddNormArgs<T> args{
        .x = x.data<T>(),
        .residual = data_or_null<T>(residual),
        .weight = weight.data<T>(),
        .bias = data_or_null<T>(bias),
        .out = result.data<T>(),
        .sum = data_or_null<T>(sum_out),
        .rows = in.rows,
        .hidden = in.columns,
        .x_stride = in.stride,
        .residual_stride = residual_stride,
        .out_stride = out_stride,
        .sum_stride = sum_stride,
        .eps = static_cast<float>(eps),
        .center = center,
    };
    run_kernel<T>(device, args, &cpu::Kernels::add_norm, &cuda::Kernels<T>::add_norm);
  });
  return result;
}

}  // namespace

Tensor add_layer_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
                      const std::optional<Tensor>& bias, double eps, std::optional<Tensor> out,
                      std::optional<Tensor> sum_out) {
  return add_norm("add_layer_norm", true, x, residual, weight, bias, eps, std::move(out), sum_out);
}

Tensor add_rms_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
                    double eps, std::optional<Tensor> out, std::optional<Tensor> sum_out) {
  return add_norm("add_rms_norm", false, x, residual, weight, std::nullopt, eps, std::move(out),
                  sum_out);
}

}  // namespace softgate
