#include "bindings/foreign.h"

#include <utility>

#include "core/check.h"

namespace softgate::bindings {

void wrong_dtype(const Argument& argument, const std::string& dtype) {
  throw TypeError(concat(argument, " has dtype ", dtype, ", expected ", argument.expected));
}

std::shared_ptr<void> keep_alive(py::handle owner) {
  return {owner.inc_ref().ptr(), [](void* object) {
            if (Py_IsInitialized() == 0) return;
            const PyGILState_STATE state = PyGILState_Ensure();
            Py_DECREF(static_cast<PyObject*>(object));
            PyGILState_Release(state);
          }};
}

void check_ndim(const Argument& argument, std::int64_t ndim) {
  check(0 <= ndim && ndim <= kMaxDims, argument, " has ", ndim, " dimensions, expected at most ",
        kMaxDims);
}

Tensor view(const Argument& argument, Foreign&& foreign) {
  const std::size_t element = size_of(foreign.dtype);
  const std::size_t bytes = checked_bytes(foreign.shape, element);
  const int last = foreign.shape.size() - 1;
  for (int i = 0; bytes > 0 && i <= last; ++i) {
    if (foreign.shape[i] == 1) continue;
    const bool fits = i == last ? foreign.strides[i] == 1 : foreign.strides[i] >= 0;
    if (!fits) {
      check(false, argument, " has shape ", foreign.shape, " and strides ", foreign.strides,
            i == last ? ", expected a contiguous last dimension (stride 1)"
                      : ", expected no negative stride");
    }
  }
  check(bytes == 0 || reinterpret_cast<std::uintptr_t>(foreign.data) % element == 0, argument,
        " is not aligned to its ", element, "-byte elements");
  auto storage = std::make_shared<Storage>();
  storage->data = foreign.data;
  storage->bytes = bytes == 0 ? 0 : checked_span(foreign.shape, foreign.strides, element);
  storage->keep_alive = std::move(foreign.owner);
  storage->writable = foreign.writable;
  return {std::move(storage), foreign.data,    foreign.dtype,
          foreign.shape,      foreign.strides, foreign.device};
}

Stream stream_from(const Argument& argument, std::int64_t number) {
  check(number > 0, argument, " is on stream ", number, ", expected 1, 2 or a stream's address");
  return number == 1 ? nullptr : reinterpret_cast<Stream>(static_cast<std::uintptr_t>(number));
}

std::int64_t number_of(Stream stream) {
  return stream == nullptr ? 1
                           : static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(stream));
}

void order(Device device, Stream first, Stream second) {
  if (first == second) return;
  const Backend& way = backend(device);
  Event event = way.create_event(device.index);
  way.record(device.index, event, first);
  way.wait(device.index, second, event);
  way.destroy_event(event);
}

}  // namespace softgate::bindings
