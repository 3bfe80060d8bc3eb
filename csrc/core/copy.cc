// Copies between layouts, devices and dtypes.
#include <cstring>

#include "core/backend.h"
#include "core/check.h"
#include "core/half.h"
#include "core/tensor.h"

namespace softgate {
namespace {

bool is_float(DType dtype) {
  return dtype == DType::float32 || dtype == DType::float16 || dtype == DType::bfloat16;
}

// `rows` rows of `bytes`, at most one of them away from the host.
void copy_rows(const Tensor& from, const Tensor& to, std::size_t bytes, std::int64_t rows,
               std::int64_t from_stride, std::int64_t to_stride) {
  const Device device = from.device().kind == DeviceKind::cpu ? to.device() : from.device();
  const auto element = static_cast<std::int64_t>(size_of(from.dtype()));
  if (device.kind == DeviceKind::cpu) {
    for (std::int64_t i = 0; i < rows; ++i) {
      std::memcpy(to.data<std::byte>() + i * to_stride * element,
                  from.data<std::byte>() + i * from_stride * element, bytes);
    }
    return;
  }
  backend(device).copy(device.index, to.raw(), static_cast<std::size_t>(to_stride * element),
                       from.raw(), static_cast<std::size_t>(from_stride * element), bytes,
                       static_cast<std::size_t>(rows), current_stream(device));
}

void copy_elements(const Tensor& from, const Tensor& to) {
  if (from.numel() == 0) return;
  if (from.dim() <= 1 || (from.is_contiguous() && to.is_contiguous()))
    return copy_rows(from, to, from.bytes(), 1, 0, 0);
  if (from.dim() == 2) {
    const std::size_t bytes = static_cast<std::size_t>(from.size(1)) * size_of(from.dtype());
    return copy_rows(from, to, bytes, from.size(0), from.stride(0), to.stride(0));
  }
  for (std::int64_t i = 0; i < from.size(0); ++i) copy_elements(from.select(0, i), to.select(0, i));
}

template <class From, class To>
void convert(const Tensor& from, const Tensor& to) {
  const auto* source = from.data<From>();
  auto* target = to.data<To>();
  for (std::int64_t i = 0; i < from.numel(); ++i)
    target[i] = static_cast<To>(static_cast<float>(source[i]));
}

template <class From>
void convert_from(const Tensor& from, const Tensor& to) {
  switch (to.dtype()) {
    case DType::float16: return convert<From, half>(from, to);
    case DType::bfloat16: return convert<From, bfloat16>(from, to);
    default: return convert<From, float>(from, to);
  }
}

// Of a contiguous tensor on the CPU.
Tensor converted(const Tensor& from, DType dtype) {
  if (from.dtype() == dtype) return from;
  check_type(is_float(from.dtype()) && is_float(dtype), "to: ", name(from.dtype()),
             " does not convert to ", name(dtype));
  Tensor to = Tensor::empty(from.shape(), dtype);
  switch (from.dtype()) {
    case DType::float16: convert_from<half>(from, to); break;
    case DType::bfloat16: convert_from<bfloat16>(from, to); break;
    default: convert_from<float>(from, to);
  }
  return to;
}

Tensor moved(const Tensor& from, Device device) {
  Tensor to = Tensor::empty(from.shape(), from.dtype(), device);
  copy_elements(from, to);
  for (const Device side : {from.device(), device}) {
    if (side.kind != DeviceKind::cpu) backend(side).synchronize(side.index, current_stream(side));
  }
  return to;
}

}  // namespace

Tensor copy_to(const Tensor& tensor, Device device, DType dtype) {
  const Device cpu{};
  const bool converts = tensor.dtype() != dtype;
  if (!converts && (tensor.device() == device || tensor.device() == cpu || device == cpu))
    return moved(tensor, device);
  const Tensor on_host = converted(moved(tensor, cpu), dtype);
  return device == cpu ? on_host : moved(on_host, device);
}

}  // namespace softgate
