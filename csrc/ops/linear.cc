#include "ops/linear.h"

#include "ops/device_panel.h"
#include "ops/dispatch.h"

namespace softgate {
namespace {

Activation parse_activation(const std::string& text) {
  if (text == "none") return Activation::none;
  if (text == "gelu") return Activation::gelu;
  if (text == "gelu_tanh") return Activation::gelu_tanh;
  if (text == "relu") return Activation::relu;
  if (text == "silu") return Activation::silu;
  if (text == "tanh") return Activation::tanh;
  check(false, "linear: activation is '", text,
        "', expected 'none', 'gelu', 'gelu_tanh', 'relu', 'silu' or 'tanh'");
  return Activation::none;
}

Dims with_last(const Dims& shape, std::int64_t last) {
  Dims result = shape;
  result[shape.size() - 1] = last;
  return result;
}

template <class T>
LinearArgs<T> linear_args(const Tensor& x, const PackedWeight& weight,
                          const std::optional<Tensor>& bias, Activation activation,
                          const std::optional<Tensor>& residual, const Tensor& out) {
  const Rows in = as_rows("linear", "x", x);
  return {
      .x = x.data<T>(),
      .weight = weight.isa().empty() && !weight.format().is_integer() ? weight.data<T>() : nullptr,
      .bias = bias ? bias->data<T>() : nullptr,
      .residual = residual ? residual->data<T>() : nullptr,
      .out = out.data<T>(),
      .rows = in.rows,
      .in_features = weight.in_features(),
      .out_features = weight.out_features(),
      .x_stride = in.stride,
      .residual_stride = residual ? as_rows("linear", "residual", *residual).stride : 0,
      .out_stride = as_rows("linear", "out", out).stride,
      .activation = activation,
      .gated = weight.format().gated,
  };
}

template <class Id>
void check_ids(const Tensor& ids, std::int64_t rows) {
  const Id* id = ids.data<Id>();
  for (std::int64_t i = 0; i < ids.numel(); ++i) {
    if (id[i] < 0 || id[i] >= rows) [[unlikely]]
      check(false, "gather: ids[", i, "] is ", id[i], ", expected 0 <= id < ", rows);
  }
}

// The dtype of gathered rows: of a floating-point weight on a device its own; integers become what
// residual or out have.
DType gathered_dtype(const PackedWeight& weight, const std::optional<Tensor>& residual,
                     const std::optional<Tensor>& out) {
  if (weight.device().kind == DeviceKind::cpu) return DType::float32;
  switch (weight.type()) {
    case WeightType::float32: return DType::float32;
    case WeightType::float16: return DType::float16;
    case WeightType::bfloat16: return DType::bfloat16;
    case WeightType::int8:
    case WeightType::int4: break;
  }
  if (!residual && !out) return DType::float32;
  return residual ? check_float("gather", "residual", *residual)
                  : check_float("gather", "out", *out);
}

}  // namespace

Tensor linear(const Tensor& x, const PackedWeight& weight, const std::optional<Tensor>& bias,
              const std::string& activation, const std::optional<Tensor>& residual,
              std::optional<Tensor> out) {
  const Activation parsed = parse_activation(activation);
  const DType dtype = check_float("linear", "x", x);
  const Device device = x.device();
  const bool on_cpu = device.kind == DeviceKind::cpu;
  check(weight.device() == device, "linear: weight is on ", weight.device(), ", expected ", device);
  weight.check_isa("linear");
  const bool is_integer = weight.format().is_integer();
  check_type(on_cpu || is_integer || std::string(name(weight.type())) == name(dtype),
             "linear: weight has dtype ", name(weight.type()), ", expected int8, int4 or ",
             name(dtype));
  check(x.dim() >= 1 && x.size(-1) == weight.in_features(), "linear: x is ", x.shape(),
        ", expected the weight's ", weight.in_features(), " input features in the last dimension");
  const Dims shape = with_last(x.shape(), weight.out_features() / (weight.format().gated ? 2 : 1));
  if (bias) check_tensor("linear", "bias", *bias, dtype, {weight.out_features()}, device);
  if (residual) check_tensor("linear", "residual", *residual, dtype, shape, device);
  const Tensor result = resolve_out("linear", std::move(out), dtype, shape, device);
  check_overlap("linear", result, "x", x, false);
  if (bias) check_overlap("linear", result, "bias", *bias, false);
  if (residual) check_overlap("linear", result, "residual", *residual, true);

  if (on_cpu) {
    const LinearArgs<float> args = linear_args<float>(x, weight, bias, parsed, residual, result);
    if (args.rows == 0) return result;
    const std::int64_t bytes =
        cpu::kernels().linear_workspace(weight.format(), args.rows, args.in_features);
    const Tensor workspace = Tensor::empty({bytes}, DType::int8);
    cpu::kernels().linear({.linear = args,
                           .format = weight.format(),
                           .panels = weight.data<void>(),
                           .workspace = workspace.raw(),
                           .splits = weight.splits()});
    return result;
  }
  dispatch(dtype, [&]<class T>(T) {
    const LinearArgs<T> args = linear_args<T>(x, weight, bias, parsed, residual, result);
    if (args.rows == 0) return;
    const Stream stream = current_stream(device);
    if (!is_integer) return cuda::kernels<T>(device).linear(args, stream);
    const std::int64_t bytes =
        device_panel::workspace_bytes(weight.format(), args.rows, args.in_features);
    const Tensor workspace = Tensor::empty({bytes}, DType::int8, device);
    cuda::kernels<T>(device).linear_integers({.linear = args,
                                              .format = weight.format(),
                                              .panels = weight.data<void>(),
                                              .workspace = workspace.raw()},
                                             stream);
  });
  return result;
}

Tensor gather(const PackedWeight& weight, const Tensor& ids, double scale,
              const std::optional<Tensor>& residual, std::optional<Tensor> out) {
  const char* op = "gather";
  const Device device = weight.device();
  weight.check_isa(op);
  check_type(ids.dtype() == DType::int32 || ids.dtype() == DType::int64, op, ": ids has dtype ",
             name(ids.dtype()), ", expected int32 or int64");
  check_tensor(op, "ids", ids, ids.dtype(), {-1}, device);
  if (device.kind != DeviceKind::cpu) {
    // They stay on the device, whose kernel makes NaN of the rows that there are not.
  } else if (ids.dtype() == DType::int64) {
    check_ids<std::int64_t>(ids, weight.out_features());
  } else {
    check_ids<std::int32_t>(ids, weight.out_features());
  }
  const DType dtype = gathered_dtype(weight, residual, out);
  const Dims shape = {ids.size(0), weight.in_features()};
  if (residual) check_tensor(op, "residual", *residual, dtype, shape, device);
  Tensor result = resolve_out(op, std::move(out), dtype, shape, device);
  check_overlap(op, result, "ids", ids, false);
  if (residual) check_overlap(op, result, "residual", *residual, true);
  if (ids.size(0) == 0) return result;
  dispatch(dtype, [&]<class T>(T) {
    run_kernel<T>(device,
                  GatherArgs<T>{.packed = weight.data<void>(),
                                .format = weight.format(),
                                .in_features = weight.in_features(),
                                .out_features = weight.out_features(),
                                .ids = ids.raw(),
                                .ids_are_int64 = ids.dtype() == DType::int64,
                                .scale = static_cast<float>(scale),
                                .residual = residual ? residual->data<T>() : nullptr,
                                .out = result.data<T>(),
                                .tokens = ids.size(0),
                                .residual_stride = residual ? residual->stride(0) : 0,
                                .out_stride = result.stride(0)},
                  &cpu::Kernels::gather, &cuda::Kernels<T>::gather);
  });
  return result;
}

}  // namespace softgate
