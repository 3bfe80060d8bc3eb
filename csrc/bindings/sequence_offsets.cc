// SequenceOffsets, and what ops take as cu_seqlens.
#include "ops/sequence_offsets.h"

#include <string>

#include "bindings/bindings.h"
#include "core/check.h"

namespace softgate::bindings {
namespace {

SequenceOffsets make(py::handle cu_seqlens, const std::string& device) {
  const char* op = "SequenceOffsets";
  const Tensor tensor = to_tensor({op, "cu_seqlens", "int32"}, cu_seqlens);
  const Device there = to_device(op, device);
  return without_gil([&] { return SequenceOffsets::on(there, op, "cu_seqlens", tensor); });
}

std::string repr(const SequenceOffsets& offsets) {
  return concat("SequenceOffsets(batch=", offsets.batch(), ", total=", offsets.total(),
                ", longest=", offsets.longest(), ", device=", name(offsets.device()), ")");
}

}  // namespace

const SequenceOffsets* as_offsets(py::handle object) {
  py::detail::make_caster<SequenceOffsets> caster;
  if (object.is_none() || !caster.load(object, false)) return nullptr;
  return &py::detail::cast_op<const SequenceOffsets&>(caster);
}

SequenceOffsets to_offsets(const Argument& argument, py::handle object) {
  if (const SequenceOffsets* offsets = as_offsets(object)) return *offsets;
  const Tensor tensor = to_tensor(argument, object);
  return without_gil([&] { return SequenceOffsets(argument.op, argument.name, tensor); });
}

void register_sequence_offsets(py::module_& m) {
  using py::arg;
  py::class_<SequenceOffsets>(m, "SequenceOffsets", py::is_final())
      .def(py::init(&make), arg("cu_seqlens"), arg("device") = "cpu")
      .def_property_readonly("cu_seqlens", &SequenceOffsets::cu_seqlens)
      .def_property_readonly("device",
                             [](const SequenceOffsets& offsets) { return name(offsets.device()); })
      .def_property_readonly("batch", &SequenceOffsets::batch)
      .def_property_readonly("total", &SequenceOffsets::total)
      .def_property_readonly("longest", &SequenceOffsets::longest)
      .def("numpy", [](const SequenceOffsets& offsets) { return to_numpy(offsets.on_host()); })
      .def("__repr__", py::overload_cast<const SequenceOffsets&>(&repr));
}

}  // namespace softgate::bindings
