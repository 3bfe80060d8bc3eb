// Between Python's arrays and softgate's tensors.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <optional>
#include <ostream>
#include <string>
#include <utility>

#include "core/tensor.h"
#include "ops/sequence_offsets.h"

namespace softgate::bindings {

namespace py = pybind11;

void register_errors();
void register_runtime(py::module_& m);
void register_device(py::module_& m);
void register_tensor(py::module_& m);
void register_sequence_offsets(py::module_& m);
void register_ops(py::module_& m);

// What an error message says about an argument.
struct Argument {
  const char* op;
  const char* name;
  const char* expected = "float32";  // dtypes
  int index = -1;                    // of an array in a list
};
std::ostream& operator<<(std::ostream& out, const Argument& argument);

// A softgate Tensor, NumPy array or DLPack array, without copying. Throws softgate::TypeError for
// other objects and dtypes, std::invalid_argument for layouts and devices that cannot be viewed.
Tensor to_tensor(const Argument& argument, py::handle object);
std::optional<Tensor> to_optional_tensor(const Argument& argument, py::handle object);

// SequenceOffsets, or an int32 array of them. Fetches one that is on a device.
SequenceOffsets to_offsets(const Argument& argument, py::handle object);
const SequenceOffsets* as_offsets(py::handle object);  // null where it is something else

// "cpu", "cuda", "cuda:1", "simt". Throws std::invalid_argument for anything else.
Device to_device(const char* op, const std::string& text);

bool is_numpy(py::handle object);

// Share the tensor's memory.
py::object to_numpy(const Tensor& tensor);

// What an op returns: `out` where it was given, else an array of the kind of its first argument.
py::object to_result(Tensor&& tensor, py::handle first, py::handle out);

// Lets other Python threads run. Taking the lock back while the interpreter exits, CPython before
// 3.14 unwinds the thread, which must not leave a destructor: it waits for the process to end.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

template <class Function>
auto without_gil(Function&& function) {
  const ReleasedGil released;
  return std::forward<Function>(function)();
}

}  // namespace softgate::bindings
