#include "bindings/bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Tensors and kernels; softgate.ops documents them.";
  softgate::bindings::register_errors();
  softgate::bindings::register_runtime(m);
  softgate::bindings::register_device(m);
  softgate::bindings::register_tensor(m);
  softgate::bindings::register_sequence_offsets(m);
  softgate::bindings::register_ops(m);
}
