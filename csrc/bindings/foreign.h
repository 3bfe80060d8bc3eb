// Memory that others own, and what describes it: NumPy, DLPack, __cuda_array_interface__.
#pragma once

#include <array>
#include <memory>
#include <string>

#include "bindings/bindings.h"
#include "core/backend.h"

namespace softgate::bindings {

inline constexpr std::array kDTypes = {DType::float32, DType::float16, DType::bfloat16, DType::int8,
                                       DType::int32,   DType::int64,   DType::boolean};

struct Foreign {
  void* data;
  DType dtype;
  Dims shape, strides;  // strides in elements
  std::shared_ptr<void> owner;
  bool writable;
  Device device;
};

// Throws for what a Tensor cannot be.
Tensor view(const Argument& argument, Foreign&& foreign);
void check_ndim(const Argument& argument, std::int64_t ndim);
[[noreturn]] void wrong_dtype(const Argument& argument, const std::string& dtype);

// Holds a Python object from C++, whose threads may drop it without the GIL.
std::shared_ptr<void> keep_alive(py::handle owner);

// A stream as both protocols write it: 1 is the legacy default stream, 2 that of each thread.
Stream stream_from(const Argument& argument, std::int64_t number);
std::int64_t number_of(Stream stream);
// What `second` is given from now on waits for what `first` was given.
void order(Device device, Stream first, Stream second);

Tensor from_dlpack(const Argument& argument, py::handle object);
py::object dlpack_export(const Tensor& tensor, py::handle stream, py::handle max_version,
                         py::handle dl_device, py::handle copy_wanted);
py::tuple dlpack_device(const Tensor& tensor);

Tensor from_cuda_array(const Argument& argument, const py::dict& interface, py::handle owner);
py::dict cuda_array_interface(const Tensor& tensor);

}  // namespace softgate::bindings
