// __cuda_array_interface__, version 3
// (https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html).
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings/foreign.h"
#include "core/check.h"

namespace softgate::bindings {
namespace {

// NumPy's name; null for bfloat16, which has none.
const char* typestr(DType dtype) {
  switch (dtype) {
    case DType::float32: return "<f4";
    case DType::float16: return "<f2";
    case DType::bfloat16: return nullptr;
    case DType::int8: return "|i1";
    case DType::int32: return "<i4";
    case DType::int64: return "<i8";
    case DType::boolean: return "|b1";
  }
  return nullptr;
}

DType dtype_of(const Argument& argument, const std::string& given) {
  for (const DType dtype : kDTypes) {
    if (typestr(dtype) != nullptr && given == typestr(dtype)) return dtype;
  }
  wrong_dtype(argument, given);
}

// In Python's terms the tensor has no such attribute.
[[noreturn]] void no_attribute(const std::string& reason) {
  throw py::attribute_error("Tensor has no __cuda_array_interface__: " + reason);
}

// The entry, or None where there is none.
py::object entry(const py::dict& interface, const char* key) {
  return interface.contains(key) ? py::object(interface[key]) : py::none();
}

}  // namespace

Tensor from_cuda_array(const Argument& argument, const py::dict& interface, py::handle owner) {
  const int version = entry(interface, "version").cast<int>();
  check(version == 2 || version == 3, argument, " has version ", version,
        " of __cuda_array_interface__, expected 2 or 3");
  check(entry(interface, "mask").is_none(), argument, " has a mask, expected none");
  const DType dtype = dtype_of(argument, interface["typestr"].cast<std::string>());
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  const auto sizes = interface["shape"].cast<std::vector<std::int64_t>>();
  const auto [address, read_only] = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
  check_ndim(argument, static_cast<std::int64_t>(sizes.size()));
  Dims shape;
  for (const std::int64_t size : sizes) shape.push_back(size);
  checked_bytes(shape, size_of(dtype));

  Dims strides = shape;
  const py::object given = entry(interface, "strides");
  if (given.is_none()) {
    std::int64_t compact = 1;
    for (int i = shape.size() - 1; i >= 0; --i) {
      strides[i] = compact;
      compact *= std::max<std::int64_t>(shape[i], 1);
    }
  } else {
    const auto bytes = given.cast<std::vector<std::int64_t>>();
    check(bytes.size() == sizes.size(), argument, " has ", sizes.size(), " dimensions and ",
          bytes.size(), " strides");
    for (int i = 0; i < shape.size(); ++i) {
      const std::int64_t stride = bytes[static_cast<std::size_t>(i)];
      check(stride % element == 0, argument, " has a stride of ", stride,
            " bytes, expected a multiple of ", element);
      strides[i] = stride / element;
    }
  }

  auto* data = reinterpret_cast<void*>(address);
  const Device first{DeviceKind::cuda, 0};
  const Device device{DeviceKind::cuda, data ? backend(first).device_of(data) : 0};
  const py::object stream = entry(interface, "stream");
  if (!stream.is_none())
    order(device, stream_from(argument, stream.cast<std::int64_t>()), current_stream(device));
  return view(argument, {.data = data,
                         .dtype = dtype,
                         .shape = shape,
                         .strides = strides,
                         .owner = keep_alive(owner),
                         .writable = !read_only,
                         .device = device});
}

py::dict cuda_array_interface(const Tensor& tensor) {
  if (tensor.device().kind != DeviceKind::cuda) no_attribute("it is on " + name(tensor.device()));
  if (typestr(tensor.dtype()) == nullptr) no_attribute("NumPy has no bfloat16; use DLPack");
  py::tuple shape(static_cast<std::size_t>(tensor.dim()));
  py::tuple strides(static_cast<std::size_t>(tensor.dim()));
  for (int i = 0; i < tensor.dim(); ++i) {
    shape[static_cast<std::size_t>(i)] = tensor.size(i);
    strides[static_cast<std::size_t>(i)] =
        tensor.stride(i) * static_cast<std::int64_t>(size_of(tensor.dtype()));
  }
  py::dict interface;
  interface["shape"] = shape;
  interface["typestr"] = typestr(tensor.dtype());
  const auto address = tensor.numel() == 0 ? 0 : reinterpret_cast<std::uintptr_t>(tensor.raw());
  interface["data"] = py::make_tuple(address, !tensor.writable());
  interface["strides"] = tensor.is_contiguous() ? py::object(py::none()) : py::object(strides);
  interface["stream"] = number_of(current_stream(tensor.device()));
  interface["version"] = 3;
  return interface;
}

}  // namespace softgate::bindings
