// Copies between layouts, devices and dtypes.
#include <atomic>
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

// `rows` rows of `bytes`, at most one side away from the host.
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
  const Backend& way = backend(device);
  const auto run = from.device().kind == DeviceKind::cpu ? way.upload
                   : to.device().kind == DeviceKind::cpu ? way.download
                                                         : way.copy;
  run(device.index,
      {.to = to.raw(),
       .to_stride = static_cast<std::size_t>(to_stride * element),
       .from = from.raw(),
       .from_stride = static_cast<std::size_t>(from_stride * element),
       .bytes = bytes,
       .rows = static_cast<std::size_t>(rows)},
      current_stream(device));
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

struct Counters {
  std::atomic<std::uint64_t> uploads, uploaded_bytes, downloads, downloaded_bytes;
} counters;

void count(const Tensor& from, const Tensor& to) {
  const bool from_host = from.device().kind == DeviceKind::cpu;
  const bool to_host = to.device().kind == DeviceKind::cpu;
  if (from_host && !to_host) {
    ++counters.uploads;
    counters.uploaded_bytes += from.bytes();
  } else if (to_host && !from_host) {
    ++counters.downloads;
    counters.downloaded_bytes += from.bytes();
  }
}

// Between the host and a device, or on one of them.
void move(const Tensor& from, const Tensor& to) {
  copy_elements(from, to);
  count(from, to);
}

Tensor moved(const Tensor& from, Device device) {
  Tensor to = Tensor::empty(from.shape(), from.dtype(), device);
  move(from, to);
  return to;
}

bool is_one_move(Device from, Device to) {
  return from == to || from == Device{} || to == Device{};
}

}  // namespace

Tensor copy_to(const Tensor& tensor, Device device, DType dtype) {
  const Device cpu{};
  if (tensor.dtype() == dtype && is_one_move(tensor.device(), device)) return moved(tensor, device);
  const Tensor on_host = converted(
      tensor.device() == cpu && tensor.is_contiguous() ? tensor : moved(tensor, cpu), dtype);
  return device == cpu ? on_host : moved(on_host, device);
}

void copy_into(const Tensor& from, const Tensor& to) {
  check(from.shape() == to.shape(), "copy_: the source has shape ", from.shape(), ", expected ",
        to.shape());
  check(to.writable(), "copy_: the tensor is read-only");
  check(!overlap(from, to), "copy_: the source shares memory with the tensor");
  if (from.dtype() == to.dtype() && is_one_move(from.device(), to.device())) return move(from, to);
  move(copy_to(from, {}, to.dtype()), to);
}

Transfers transfers() {
  return {counters.uploads, counters.uploaded_bytes, counters.downloads, counters.downloaded_bytes};
}

}  // namespace softgate
