#include "ops/linear.h"

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

}  // namespace

PackedWeight::PackedWeight(const Tensor& weight) {
  const Device device = weight.device();
  const DType dtype = check_float("pack", "weight", weight);
  check_tensor("pack", "weight", weight, dtype, {-1, -1}, device);
  out_features_ = weight.size(0);
  in_features_ = weight.size(1);
  check(out_features_ > 0 && in_features_ > 0, "pack: weight is ", to_string(weight.shape()),
        ", expected at least one row and one column");
  if (device.kind != DeviceKind::cpu) {
    packed_ = copy_to(weight, device, dtype);
    return;
  }
  isa_ = cpu::isa();
  const std::int64_t width = cpu::kernels().panel_width;
  packed_ = Tensor::empty({(out_features_ + width - 1) / width, in_features_, width});
  cpu::kernels().pack({.weight = weight.data<float>(),
                       .packed = packed_.data<float>(),
                       .in_features = in_features_,
                       .out_features = out_features_,
                       .weight_stride = weight.stride(0)});
}

Tensor PackedWeight::unpack() const {
  if (device().kind != DeviceKind::cpu) return copy_to(packed_, device(), dtype());
  check(isa_ == cpu::isa(), "unpack: weight was packed for ", isa_, ", the ISA in use is ",
        cpu::isa());
  Tensor weight = Tensor::empty({out_features_, in_features_});
  cpu::kernels().unpack({.weight = weight.data<float>(),
                         .packed = packed_.data<float>(),
                         .in_features = in_features_,
                         .out_features = out_features_,
                         .weight_stride = in_features_});
  return weight;
}

Tensor linear(const Tensor& x, const PackedWeight& weight, const std::optional<Tensor>& bias,
              const std::string& activation, const std::optional<Tensor>& residual,
              std::optional<Tensor> out) {
  const Activation parsed = parse_activation(activation);
  const DType dtype = check_float("linear", "x", x);
  const Device device = x.device();
  check(weight.device() == device, "linear: weight is on ", name(weight.device()), ", expected ",
        name(device));
  check(device.kind != DeviceKind::cpu || weight.isa() == cpu::isa(),
        "linear: weight was packed for ", weight.isa(), ", the ISA in use is ", cpu::isa());
  check_type(weight.dtype() == dtype, "linear: weight has dtype ", name(weight.dtype()),
             ", expected ", name(dtype));
  check(x.dim() >= 1 && x.size(-1) == weight.in_features(), "linear: x is ", to_string(x.shape()),
        ", expected the weight's ", weight.in_features(), " input features in the last dimension");
  const Dims shape = with_last(x.shape(), weight.out_features());
  if (bias) check_tensor("linear", "bias", *bias, dtype, {weight.out_features()}, device);
  if (residual) check_tensor("linear", "residual", *residual, dtype, shape, device);
  const Tensor result = resolve_out("linear", std::move(out), dtype, shape, device);
  check_overlap("linear", result, "x", x, false);
  if (bias) check_overlap("linear", result, "bias", *bias, false);
  if (residual) check_overlap("linear", result, "residual", *residual, true);

  const Rows in = as_rows("linear", "x", x);
  const Rows to = as_rows("linear", "out", result);
  const std::int64_t residual_stride =
      residual ? as_rows("linear", "residual", *residual).stride : 0;
  if (in.rows == 0) return result;
  dispatch(dtype, [&]<class T>(T) {
    const LinearArgs<T> args{
        .x = x.data<T>(),
        .weight = weight.data<T>(),
        .bias = bias ? bias->data<T>() : nullptr,
        .residual = residual ? residual->data<T>() : nullptr,
        .out = result.data<T>(),
        .rows = in.rows,
        .in_features = weight.in_features(),
        .out_features = weight.out_features(),
        .x_stride = in.stride,
        .residual_stride = residual_stride,
        .out_stride = to.stride,
        .activation = parsed,
    };
    run_kernel<T>(device, args, &cpu::Kernels::linear, &cuda::Kernels<T>::linear);
  });
  return result;
}

}  // namespace softgate
