#include <array>
#include <cmath>

#include "core/quantize.h"
#include "ops/device_panel.h"
#include "ops/dispatch.h"
#include "ops/linear.h"

namespace softgate {
namespace {

constexpr std::array kTypes = {WeightType::float32, WeightType::float16, WeightType::bfloat16,
                               WeightType::int8, WeightType::int4};

WeightType parse_type(const std::string& text) {
  for (const WeightType type : kTypes) {
    if (text == name(type)) return type;
  }
  check(false, "pack: dtype is '", text,
        "', expected 'float32', 'float16', 'bfloat16', 'int8' or 'int4'");
  return WeightType::float32;
}

WeightType type_of(DType dtype) {
  if (dtype == DType::float16) return WeightType::float16;
  return dtype == DType::bfloat16 ? WeightType::bfloat16 : WeightType::float32;
}

DType dtype_of(WeightType type) {
  if (type == WeightType::float16) return DType::float16;
  return type == WeightType::bfloat16 ? DType::bfloat16 : DType::float32;
}

void check_groups(const char* op, const char* argument, std::int64_t in_features) {
  check(in_features % kGroupSize == 0, op, ": ", argument, " has ", in_features,
        " columns, expected a multiple of ", kGroupSize, ", the size of a group");
}

void check_depth(const char* op, const char* argument, std::int64_t in_features) {
  check(in_features <= kMaxIntegerDepth, op, ": ", argument, " has ", in_features,
        " columns, expected at most ", kMaxIntegerDepth, " for sums in 32-bit integers");
}

// float32 [out_features], or any float dtype as float16 [out_features, groups]; all finite.
Tensor to_scales(const char* argument, const Tensor& given, DType dtype, const Dims& shape,
                 Device device) {
  const char* op = "pack_groups";
  check_type(given.dtype() == DType::float32 ||
                 (given.dtype() == DType::float16 && dtype == DType::float16),
             op, ": ", argument, " has dtype ", name(given.dtype()), ", expected float32",
             dtype == DType::float16 ? " or float16" : "");
  check_tensor(op, argument, given, given.dtype(), shape, device);
  Tensor scales = copy_to(given, {}, dtype);
  for (std::int64_t i = 0; i < scales.numel(); ++i) {
    const float value = dtype == DType::float16 ? static_cast<float>(scales.data<half>()[i])
                                                : scales.data<float>()[i];
    check(std::isfinite(value), op, ": ", argument, " holds a number that is not finite",
          dtype == DType::float16 ? " or beyond float16" : "", ", at place ", i);
  }
  return scales;
}

void check_values(const Tensor& values, int bits) {
  const int lowest = bits == 4 ? 0 : -128, highest = bits == 4 ? 15 : 127;
  if (bits == 8) return;
  for (std::int64_t row = 0; row < values.size(0); ++row) {
    const auto* value = values.data<std::int8_t>() + row * values.stride(0);
    for (std::int64_t i = 0; i < values.size(1); ++i) {
      if (value[i] < lowest || value[i] > highest) [[unlikely]]
        check(false, "pack_groups: values[", row, ", ", i, "] is ", static_cast<int>(value[i]),
              ", expected 0 to 15 for 4 bits");
    }
  }
}

}  // namespace

PackedWeight::PackedWeight(const Tensor& weight, const std::optional<std::string>& dtype,
                           bool gated) {
  const char* op = "pack";
  const Device device = weight.device();
  const DType given = weight.dtype();
  check_type(given == DType::float32 || given == DType::float16 || given == DType::bfloat16, op,
             ": weight has dtype ", name(given), ", expected float32, float16 or bfloat16");
  check_tensor(op, "weight", weight, given, {-1, -1}, device);
  out_features_ = weight.size(0);
  in_features_ = weight.size(1);
  check(out_features_ > 0 && in_features_ > 0, op, ": weight is ", weight.shape(),
        ", expected at least one row and one column");
  check(!gated || out_features_ % 2 == 0, op, ": weight has ", out_features_,
        " rows, expected an even number where gated");
  format_.type = dtype ? parse_type(*dtype) : type_of(given);
  format_.gated = gated;
  if (format_.is_integer()) {
    const bool is_there = device.kind == DeviceKind::cpu && given == DType::float32;
    quantize(is_there ? weight : copy_to(weight, {}, DType::float32), device);
    return;
  }
  if (device.kind != DeviceKind::cpu) {
    check(format_.type == type_of(given), op, ": dtype is '", name(format_.type), "' on ", device,
          ", expected 'int8', 'int4' or that of the weight, ", name(given));
    packed_ = copy_to(weight, device, given);
    return;
  }
  allocate_panels();
  const DType stored = dtype_of(format_.type);
  const Tensor elements = stored == given ? weight : copy_to(weight, {}, stored);
  cpu::kernels().pack(pack_args(elements));
  if (cpu::kernels().splits) splits_ = cpu::kernels().splits(pack_args(elements));
}

PackedWeight::PackedWeight(const Tensor& given, const Tensor& scales,
                           const std::optional<Tensor>& minimums, int bits, bool gated) {
  const char* op = "pack_groups";
  const Device device = given.device();
  check(bits == 4 || bits == 8, op, ": bits is ", bits, ", expected 4 or 8");
  check_tensor(op, "values", given, DType::int8, {-1, -1}, device);
  const Tensor values = device.kind == DeviceKind::cpu ? given : copy_to(given, {}, DType::int8);
  out_features_ = values.size(0);
  in_features_ = values.size(1);
  check(out_features_ > 0 && in_features_ > 0, op, ": values is ", values.shape(),
        ", expected at least one row and one column");
  check(!gated || out_features_ % 2 == 0, op, ": values has ", out_features_,
        " rows, expected an even number where gated");
  check_depth(op, "values", in_features_);
  const bool grouped = bits == 4 || scales.dim() != 1;
  check(grouped || !minimums, op, ": minimums is given with a scale per row");
  check_values(values, bits);
  format_ = {.type = bits == 4 ? WeightType::int4 : WeightType::int8,
             .grouped = grouped,
             .minimums = bits == 4 || minimums,
             .gated = gated};
  has_minimums_ = minimums.has_value();
  if (!grouped) {
    store({values, to_scales("scales", scales, DType::float32, {out_features_}, device), {}},
          device);
    return;
  }
  check_groups(op, "values", in_features_);
  const Dims shape = {out_features_, in_features_ / kGroupSize};
  QuantizedTensors tensors{values, to_scales("scales", scales, DType::float16, shape, device), {}};
  if (minimums) tensors.minimums = to_scales("minimums", *minimums, DType::float16, shape, device);
  store(tensors, device);
}

void PackedWeight::check_isa(const char* op) const {
  check(device().kind != DeviceKind::cpu || cpu::reads_packed(isa_), op, ": weight was packed for ",
        isa_, ", the ISA in use is ", cpu::isa());
}

void PackedWeight::allocate_panels() {
  isa_ = cpu::isa();
  const std::int64_t width = cpu::kernels().panel_width;
  packed_ = Tensor::empty(
      {(out_features_ + width - 1) / width, cpu::kernels().panel_bytes(format_, in_features_)},
      DType::int8);
}

PackArgs PackedWeight::pack_args(const Tensor& weight) const {
  return {.weight = weight.raw(),
          .packed = packed_.raw(),
          .in_features = in_features_,
          .out_features = out_features_,
          .weight_stride = weight.stride(0),
          .format = format_};
}

void PackedWeight::quantize(const Tensor& weight, Device device) {
  const char* op = "pack";
  check_depth(op, "weight", in_features_);
  format_.grouped = format_.minimums = has_minimums_ = format_.type == WeightType::int4;
  if (format_.grouped) check_groups(op, "weight", in_features_);
  const std::int64_t groups = in_features_ / kGroupSize;
  QuantizedTensors tensors;
  tensors.values = Tensor::empty({out_features_, in_features_}, DType::int8);
  const QuantizeArgs args{.weight = weight.data<float>(),
                          .rows = out_features_,
                          .columns = in_features_,
                          .weight_stride = weight.stride(0),
                          .values = tensors.values.data<std::int8_t>()};
  const auto check_row = [&](bool finite, std::int64_t row) {
    check(finite, op, ": weight is not finite", format_.grouped ? " or beyond float16" : "",
          " in row ", row, ", dtype '", name(format_.type), "' expects finite numbers");
  };
  if (!format_.grouped) {
    tensors.scales = Tensor::empty({out_features_});
    const auto* scales = tensors.scales.data<float>();
    quantize_rows(args, tensors.scales.data<float>());
    for (std::int64_t i = 0; i < out_features_; ++i) check_row(std::isfinite(scales[i]), i);
  } else {
    tensors.scales = Tensor::empty({out_features_, groups}, DType::float16);
    tensors.minimums = Tensor::empty({out_features_, groups}, DType::float16);
    const auto* scales = tensors.scales.data<half>();
    const auto* minimums = tensors.minimums->data<half>();
    quantize_groups(args, kGroupSize, tensors.scales.data<half>(), tensors.minimums->data<half>());
    for (std::int64_t i = 0; i < out_features_ * groups; ++i)
      check_row(std::isfinite(static_cast<float>(scales[i])) &&
                    std::isfinite(static_cast<float>(minimums[i])),
                i / groups);
  }
  store(tensors, device);
}

void PackedWeight::store(const QuantizedTensors& tensors, Device device) {
  if (device.kind != DeviceKind::cpu) {
    packed_ = copy_to(device_panel::to_panels(tensors, format_), device, DType::int8);
    return;
  }
  allocate_panels();
  PackArgs args = pack_args(tensors.values);
  if (format_.grouped)
    args.scales = tensors.scales.data<std::uint16_t>();
  else
    args.row_scales = tensors.scales.data<float>();
  if (tensors.minimums) args.minimums = tensors.minimums->data<std::uint16_t>();
  cpu::kernels().pack(args);
}

Tensor PackedWeight::unpack() const {
  const bool on_cpu = device().kind == DeviceKind::cpu;
  if (!on_cpu && !format_.is_integer()) return copy_to(packed_, device(), packed_.dtype());
  check_isa("unpack");
  Tensor weight = Tensor::empty({out_features_, in_features_}, DType::float32, device());
  run_kernel<float>(device(),
                    GatherArgs<float>{.packed = packed_.raw(),
                                      .format = format_,
                                      .in_features = in_features_,
                                      .out_features = out_features_,
                                      .ids = nullptr,
                                      .ids_are_int64 = false,
                                      .scale = 1.0f,
                                      .residual = nullptr,
                                      .out = weight.data<float>(),
                                      .tokens = out_features_,
                                      .residual_stride = 0,
                                      .out_stride = in_features_},
                    &cpu::Kernels::gather, &cuda::Kernels<float>::gather);
  return weight;
}

QuantizedTensors PackedWeight::quantized() const {
  check(format_.is_integer(), "quantized: weight has dtype ", name(type()),
        ", expected int8 or int4");
  check_isa("quantized");
  if (device().kind != DeviceKind::cpu)
    return device_panel::from_panels(copy_to(packed_, {}, DType::int8), format_, out_features_,
                                     in_features_, has_minimums_);
  QuantizedTensors tensors;
  tensors.values = Tensor::empty({out_features_, in_features_}, DType::int8);
  PackArgs args = pack_args(tensors.values);
  if (format_.grouped) {
    const Dims shape = {out_features_, in_features_ / kGroupSize};
    tensors.scales = Tensor::empty(shape, DType::float16);
    args.scales = tensors.scales.data<std::uint16_t>();
    if (has_minimums_) {
      tensors.minimums = Tensor::empty(shape, DType::float16);
      args.minimums = tensors.minimums->data<std::uint16_t>();
    }
  } else {
    tensors.scales = Tensor::empty({out_features_});
    args.row_scales = tensors.scales.data<float>();
  }
  cpu::kernels().unpack(args);
  return tensors;
}

}  // namespace softgate
