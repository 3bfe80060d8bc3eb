// DLPack, and the array API's protocol for it
// (https://data-apis.org/array-api/latest/API_specification/generated/array_api.array.__dlpack__.html).
#include "core/dlpack.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "bindings/foreign.h"
#include "core/check.h"

namespace softgate::bindings {
namespace {

std::string dtype_name(const dlpack::DataType& dtype) {
  const auto kind = [&]() -> std::string {
    switch (dtype.code) {
      case dlpack::kInt: return "int";
      case dlpack::kUInt: return "uint";
      case dlpack::kFloat: return "float";
      case dlpack::kBfloat: return "bfloat";
      case dlpack::kComplex: return "complex";
      case dlpack::kBool: return "bool";
      default: return concat("DLPack code ", int{dtype.code}, " of bits ");
    }
  }();
  return concat(kind, int{dtype.bits}, dtype.lanes == 1 ? "" : concat("x", dtype.lanes));
}

dlpack::DataType to_dlpack_dtype(DType dtype) {
  const auto code = [dtype] {
    switch (dtype) {
      case DType::float32:
      case DType::float16: return dlpack::kFloat;
      case DType::bfloat16: return dlpack::kBfloat;
      case DType::boolean: return dlpack::kBool;
      case DType::int8:
      case DType::int32:
      case DType::int64: return dlpack::kInt;
    }
    return dlpack::kInt;
  }();
  return {code, static_cast<std::uint8_t>(8 * size_of(dtype)), 1};
}

DType dtype_of(const Argument& argument, const dlpack::DataType& given) {
  for (const DType dtype : kDTypes) {
    const dlpack::DataType candidate = to_dlpack_dtype(dtype);
    if (candidate.code == given.code && candidate.bits == given.bits && given.lanes == 1) {
      return dtype;
    }
  }
  wrong_dtype(argument, dtype_name(given));
}

template <class Managed>
struct ManagedTraits;

template <>
struct ManagedTraits<dlpack::Managed> {
  static constexpr const char* kName = "dltensor";
  static constexpr const char* kUsedName = "used_dltensor";
};

template <>
struct ManagedTraits<dlpack::ManagedVersioned> {
  static constexpr const char* kName = "dltensor_versioned";
  static constexpr const char* kUsedName = "used_dltensor_versioned";
};

// Throws where there is no such device, or this build does not use it.
Device to_device(const Argument& argument, const dlpack::Device& given) {
  switch (given.type) {
    case dlpack::kCPU:
    case dlpack::kCUDAHost: return {};
    case dlpack::kCUDA:
    case dlpack::kCUDAManaged: {
      const Device device{DeviceKind::cuda, given.id};
      backend(device);
      return device;
    }
    default:
      check(false, argument, " is on DLPack device (", given.type, ", ", given.id,
            "), expected the CPU or CUDA");
      return {};
  }
}

dlpack::Device to_dlpack_device(Device device) {
  switch (device.kind) {
    case DeviceKind::cpu: return {dlpack::kCPU, 0};
    case DeviceKind::cuda: return {dlpack::kCUDA, device.index};
    case DeviceKind::simt: break;
  }
  return {dlpack::kExtension, device.index};
}

Tensor from_managed(const Argument& argument, const dlpack::View& given,
                    std::shared_ptr<void> owner, bool writable) {
  const Device device = to_device(argument, given.device);
  const DType dtype = dtype_of(argument, given.dtype);
  check_ndim(argument, given.ndim);
  Dims shape, strides;
  std::int64_t compact = 1;
  for (int i = 0; i < given.ndim; ++i) shape.push_back(given.shape[i]);
  checked_bytes(shape, size_of(dtype));
  strides = shape;
  for (int i = given.ndim - 1; i >= 0; --i) {
    strides[i] = given.strides == nullptr ? compact : given.strides[i];
    compact *= std::max<std::int64_t>(shape[i], 1);
  }
  void* data = static_cast<std::byte*>(given.data) + given.byte_offset;
  return view(argument, {.data = data,
                         .dtype = dtype,
                         .shape = shape,
                         .strides = strides,
                         .owner = std::move(owner),
                         .writable = writable,
                         .device = device});
}

// Takes the managed tensor out of its capsule: the capsule must not free it any more.
template <class Managed>
std::shared_ptr<Managed> consume(py::handle capsule) {
  using Traits = ManagedTraits<Managed>;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), Traits::kName));
  if (managed == nullptr || PyCapsule_SetName(capsule.ptr(), Traits::kUsedName) != 0) {
    throw py::error_already_set();
  }
  return {managed, [](Managed* m) {
            if (m->deleter != nullptr) m->deleter(m);
          }};
}

// On a card: ready for our current stream.
py::object export_capsule(py::handle object, Device device) {
  const py::object method = object.attr("__dlpack__");
  py::dict stream;
  if (device.kind != DeviceKind::cpu) stream["stream"] = number_of(current_stream(device));
  try {
    return method(
        py::arg("max_version") = py::make_tuple(dlpack::kMajorVersion, dlpack::kMinorVersion),
        **stream);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method(**stream);  // an exporter from before DLPack 1.0
}

// A managed tensor with what it points to.
template <class Managed>
struct Exported {
  Managed managed;
  std::shared_ptr<Storage> storage;
  Dims shape, strides;
};

template <class Managed>
py::object export_tensor(const Tensor& tensor, [[maybe_unused]] bool copied) {
  using Traits = ManagedTraits<Managed>;
  auto exported = std::make_unique<Exported<Managed>>(
      Exported<Managed>{{}, tensor.storage(), tensor.shape(), tensor.strides()});
  Managed& managed = exported->managed;
  managed.context = exported.get();
  managed.deleter = [](Managed* m) { delete static_cast<Exported<Managed>*>(m->context); };
  managed.view = {
      .data = tensor.raw(),
      .device = to_dlpack_device(tensor.device()),
      .ndim = tensor.dim(),
      .dtype = to_dlpack_dtype(tensor.dtype()),
      .shape = tensor.dim() == 0 ? nullptr : &exported->shape[0],
      .strides = tensor.dim() == 0 ? nullptr : &exported->strides[0],
      .byte_offset = 0,
  };
  if constexpr (std::is_same_v<Managed, dlpack::ManagedVersioned>) {
    managed.version = {dlpack::kMajorVersion, dlpack::kMinorVersion};
    managed.flags = (tensor.writable() ? 0 : dlpack::kReadOnly) | (copied ? dlpack::kIsCopied : 0);
  }
  PyObject* capsule = PyCapsule_New(&managed, Traits::kName, [](PyObject* unused) {
    if (PyCapsule_IsValid(unused, Traits::kName) == 0) return;  // consumed
    auto* left = static_cast<Managed*>(PyCapsule_GetPointer(unused, Traits::kName));
    left->deleter(left);
  });
  if (capsule == nullptr) throw py::error_already_set();
  exported.release();  // NOLINT: the capsule owns it
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

Tensor from_dlpack(const Argument& argument, py::handle object) {
  const auto [type, id] = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  const py::object capsule = export_capsule(object, to_device(argument, {type, id}));
  if (PyCapsule_IsValid(capsule.ptr(), ManagedTraits<dlpack::Managed>::kName) != 0) {
    auto managed = consume<dlpack::Managed>(capsule);
    const dlpack::View& given = managed->view;
    return from_managed(argument, given, std::move(managed), true);
  }
  auto managed = consume<dlpack::ManagedVersioned>(capsule);
  check(managed->version.major == dlpack::kMajorVersion, argument, " speaks DLPack ",
        managed->version.major, ", expected ", dlpack::kMajorVersion);
  const bool writable = (managed->flags & dlpack::kReadOnly) == 0;
  const dlpack::View& given = managed->view;
  return from_managed(argument, given, std::move(managed), writable);
}

py::object dlpack_export(const Tensor& tensor, py::handle stream, py::handle max_version,
                         py::handle dl_device, py::handle copy_wanted) {
  const Device device = tensor.device();
  const dlpack::Device here = to_dlpack_device(device);
  if (here.type == dlpack::kExtension)
    throw py::buffer_error(concat("__dlpack__: the tensor is on ", name(device)));
  const bool on_cpu = device.kind == DeviceKind::cpu;
  check(stream.is_none() || !on_cpu, "__dlpack__: stream is given, expected None for a CPU tensor");
  if (!dl_device.is_none() &&
      dl_device.cast<std::pair<int, int>>() != std::pair<int, int>(here.type, here.id)) {
    throw py::buffer_error(
        concat("__dlpack__: a tensor on ", name(device), " exports to that device only"));
  }
  const bool copies = !copy_wanted.is_none() && copy_wanted.cast<bool>();
  const Tensor source = copies ? copy_to(tensor, device, tensor.dtype()) : tensor;
  // Without a stream the consumer is on the legacy default one; -1 orders nothing.
  const std::int64_t consumer = stream.is_none() ? 1 : stream.cast<std::int64_t>();
  if (!on_cpu && consumer != -1)
    order(device, current_stream(device), stream_from({"__dlpack__", "stream"}, consumer));
  const bool versioned =
      !max_version.is_none() && max_version.cast<std::pair<int, int>>().first >= 1;
  if (versioned) return export_tensor<dlpack::ManagedVersioned>(source, copies);
  if (!source.writable()) {
    throw py::buffer_error("__dlpack__: a read-only tensor needs max_version (1, 0) or higher");
  }
  return export_tensor<dlpack::Managed>(source, copies);
}

py::tuple dlpack_device(const Tensor& tensor) {
  const dlpack::Device device = to_dlpack_device(tensor.device());
  return py::make_tuple(device.type, device.id);
}

}  // namespace softgate::bindings
