// Errors, threads, instruction sets and memory.
#include <pybind11/stl.h>

#include <exception>
#include <string>

#include "bindings/bindings.h"
#include "core/allocator.h"
#include "core/check.h"
#include "core/parallel.h"
#include "cpu/isa.h"

namespace softgate::bindings {

void register_errors() {
  // pybind11 itself turns std::invalid_argument into ValueError and std::bad_alloc into
  // MemoryError.
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    }
  });
}

void register_runtime(py::module_& m) {
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("count"), py::call_guard<ReleasedGil>());
  m.def("isa", &cpu::isa);
  m.def("isas", &cpu::isas);
  m.def("set_isa", &cpu::set_isa, py::arg("name"));
  m.def("cached_bytes", &cached_bytes);
  m.def("release_cached", &release_cached);
}

}  // namespace softgate::bindings
