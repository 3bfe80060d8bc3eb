// Tensor, and its way in and out of NumPy.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <bit>
#include <memory>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/foreign.h"
#include "core/check.h"

namespace softgate::bindings {
namespace {

using ArrayApi = py::detail::npy_api;

constexpr const char* kAnyDType = "float32, float16, bfloat16, int8, int32, int64 or bool";

DType dtype_from_name(const char* op, const std::string& text) {
  for (const DType dtype : kDTypes) {
    if (text == name(dtype)) return dtype;
  }
  throw TypeError(concat(op, ": dtype is '", text, "', expected ", kAnyDType));
}

// Sizes from an int or a sequence of them.
Dims to_dims(const char* op, py::handle object) {
  const auto to_size = [op](py::handle item) {
    const auto integer = py::reinterpret_steal<py::object>(PyNumber_Index(item.ptr()));
    if (!integer) throw py::error_already_set();
    int overflow = 0;
    const long long size = PyLong_AsLongLongAndOverflow(integer.ptr(), &overflow);
    if (overflow != 0) {
      check(false, op, ": size ", py::str(integer).cast<std::string>(), " is out of range");
    }
    return static_cast<std::int64_t>(size);
  };
  Dims dims;
  if (PyIndex_Check(object.ptr())) {
    dims.push_back(to_size(object));
    return dims;
  }
  for (const py::handle item : object) dims.push_back(to_size(item));
  return dims;
}

py::tuple to_tuple(const Dims& dims) {
  py::tuple tuple(static_cast<std::size_t>(dims.size()));
  for (int i = 0; i < dims.size(); ++i) tuple[static_cast<std::size_t>(i)] = dims[i];
  return tuple;
}

std::optional<DType> dtype_of(const py::dtype& descr) {
  constexpr char kSwapped = std::endian::native == std::endian::little ? '>' : '<';
  if (descr.byteorder() == kSwapped) return std::nullopt;
  switch (descr.num()) {
    case ArrayApi::NPY_FLOAT_: return DType::float32;
    case 23: return DType::float16;
    case ArrayApi::NPY_BYTE_: return DType::int8;
    case ArrayApi::NPY_BOOL_: return DType::boolean;
    case ArrayApi::NPY_INT_: return DType::int32;
    case ArrayApi::NPY_LONG_: return sizeof(long) == 8 ? DType::int64 : DType::int32;
    case ArrayApi::NPY_LONGLONG_: return DType::int64;
    default: return std::nullopt;
  }
}

py::dtype to_numpy_dtype(DType dtype) {
  switch (dtype) {
    case DType::float32: return py::dtype(ArrayApi::NPY_FLOAT_);
    case DType::float16: return py::dtype(23);
    case DType::bfloat16: break;
    case DType::int8: return py::dtype(ArrayApi::NPY_BYTE_);
    case DType::int32: return py::dtype(ArrayApi::NPY_INT32_);
    case DType::int64: return py::dtype(ArrayApi::NPY_INT64_);
    case DType::boolean: return py::dtype(ArrayApi::NPY_BOOL_);
  }
  throw TypeError("Tensor: NumPy has no bfloat16; use DLPack, or to(dtype=\"float32\")");
}

Tensor from_numpy(const Argument& argument, const py::array& array) {
  const py::dtype descr = array.dtype();
  const std::optional<DType> dtype = dtype_of(descr);
  if (!dtype) wrong_dtype(argument, py::str(descr));
  check_ndim(argument, array.ndim());
  const auto element = static_cast<std::int64_t>(size_of(*dtype));
  Dims shape, strides;
  for (int i = 0; i < static_cast<int>(array.ndim()); ++i) {
    shape.push_back(array.shape()[i]);
    const std::int64_t stride = array.strides()[i];
    check(shape[i] <= 1 || stride % element == 0, argument, " has a stride of ", stride,
          " bytes, expected a multiple of ", element);
    strides.push_back(stride / element);
  }
  return view(argument, {.data = const_cast<void*>(array.data()),
                         .dtype = *dtype,
                         .shape = shape,
                         .strides = strides,
                         .owner = keep_alive(array),
                         .writable = array.writeable(),
                         .device = {}});
}

py::object as_array(const Tensor& tensor, py::handle dtype, py::handle copy_wanted) {
  const py::object array = to_numpy(tensor);
  const bool copies = !copy_wanted.is_none() && copy_wanted.cast<bool>();
  const bool casts =
      !dtype.is_none() &&
      !py::dtype::from_args(py::reinterpret_borrow<py::object>(dtype)).equal(array.attr("dtype"));
  if (casts) {
    check(copy_wanted.is_none() || copies, "__array__: a cast to another dtype needs a copy");
    return array.attr("astype")(dtype);
  }
  return copies ? array.attr("copy")() : array;
}

Tensor select_checked(const Tensor& tensor, int dim, Py_ssize_t i) {
  const std::int64_t size = tensor.size(dim);
  if (i < -size || i >= size) {
    throw py::index_error(
        concat("Tensor: index ", i, " is out of range for dimension ", dim, " of size ", size));
  }
  return tensor.select(dim, i < 0 ? i + size : i);
}

Tensor slice_checked(const Tensor& tensor, int dim, const py::slice& slice) {
  Py_ssize_t begin = 0, end = 0, step = 0;
  if (PySlice_Unpack(slice.ptr(), &begin, &end, &step) != 0) throw py::error_already_set();
  check(step == 1, "Tensor: a slice has step ", step, ", expected 1");
  const Py_ssize_t length = PySlice_AdjustIndices(tensor.size(dim), &begin, &end, step);
  return tensor.slice(dim, begin, begin + length);
}

Tensor get_item(const Tensor& tensor, py::handle key) {
  const py::tuple keys =
      py::isinstance<py::tuple>(key) ? py::reinterpret_borrow<py::tuple>(key) : py::make_tuple(key);
  if (keys.size() > static_cast<std::size_t>(tensor.dim())) {
    throw py::index_error(
        concat("Tensor: ", keys.size(), " indices for ", tensor.dim(), " dimensions"));
  }
  Tensor result = tensor;
  int dim = 0;
  for (const py::handle item : keys) {
    if (py::isinstance<py::slice>(item)) {
      result = slice_checked(result, dim++, py::reinterpret_borrow<py::slice>(item));
    } else {
      check_type(PyIndex_Check(item.ptr()) != 0, "Tensor: an index is a ",
                 Py_TYPE(item.ptr())->tp_name, ", expected integers and slices");
      const Py_ssize_t i = PyNumber_AsSsize_t(item.ptr(), PyExc_IndexError);
      if (i == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
      result = select_checked(result, dim, i);
    }
  }
  return result;
}

py::object item(const Tensor& given) {
  check(given.numel() == 1, "item: the tensor has ", given.numel(), " elements, expected 1");
  const Tensor tensor = copy_to(given, {}, given.dtype());
  const void* data = tensor.raw();
  switch (tensor.dtype()) {
    case DType::float32: return py::float_(*tensor.data<float>());
    case DType::float16:
      return py::float_(PyFloat_Unpack2(static_cast<const char*>(data),
                                        std::endian::native == std::endian::little));
    case DType::bfloat16: {
      const auto bits = static_cast<std::uint32_t>(*tensor.data<std::uint16_t>()) << 16;
      return py::float_(std::bit_cast<float>(bits));
    }
    case DType::int8: return py::int_(*tensor.data<std::int8_t>());
    case DType::int32: return py::int_(*tensor.data<std::int32_t>());
    case DType::int64: return py::int_(*tensor.data<std::int64_t>());
    case DType::boolean: return py::bool_(*tensor.data<std::uint8_t>() != 0);
  }
  throw TypeError("item: unknown dtype");
}

// The tensor itself where nothing changes.
py::object to(const py::object& self, const std::optional<std::string>& device,
              const std::optional<std::string>& dtype) {
  const auto& tensor = self.cast<const Tensor&>();
  const Device on = device ? to_device("to", *device) : tensor.device();
  const DType as = dtype ? dtype_from_name("to", *dtype) : tensor.dtype();
  if (on == tensor.device() && as == tensor.dtype()) return self;
  return py::cast(without_gil([&] { return copy_to(tensor, on, as); }));
}

py::object copy_(const py::object& self, py::handle source) {
  const auto& tensor = self.cast<const Tensor&>();
  const Tensor from = to_tensor({"copy_", "source", kAnyDType}, source);
  without_gil([&] { copy_into(from, tensor); });
  return self;
}

std::int64_t length(const Tensor& tensor) {
  check_type(tensor.dim() > 0, "Tensor: a tensor without dimensions has no length");
  return tensor.size(0);
}

std::string repr(const Tensor& tensor) {
  return concat("Tensor(shape=", py::repr(to_tuple(tensor.shape())).cast<std::string>(),
                ", dtype=", name(tensor.dtype()), ", device=", tensor.device(), ")");
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Argument& argument) {
  out << argument.op << ": " << argument.name;
  if (argument.index >= 0) out << '[' << argument.index << ']';
  return out;
}

Device to_device(const char* op, const std::string& text) {
  const std::size_t colon = text.find(':');
  const std::string kind = text.substr(0, colon);
  for (const DeviceKind candidate : {DeviceKind::cpu, DeviceKind::cuda, DeviceKind::simt}) {
    if (kind != name(candidate)) continue;
    if (colon == std::string::npos) return {candidate, 0};
    const std::string digits = text.substr(colon + 1);
    const bool is_index = !digits.empty() && digits.size() <= 4 &&
                          digits.find_first_not_of("0123456789") == std::string::npos;
    if (is_index && (candidate != DeviceKind::cpu || digits == "0"))
      return {candidate, std::stoi(digits)};
  }
  throw std::invalid_argument(
      concat(op, ": device is \"", text, "\", expected cpu, cuda, cuda:1 and so on, or simt"));
}

bool is_numpy(py::handle object) { return py::isinstance<py::array>(object); }

Tensor to_tensor(const Argument& argument, py::handle object) {
  if (is_numpy(object)) return from_numpy(argument, py::reinterpret_borrow<py::array>(object));
  py::detail::make_caster<Tensor> caster;
  if (!object.is_none() && caster.load(object, false)) {
    return py::detail::cast_op<const Tensor&>(caster);
  }
  if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__")) {
    return from_dlpack(argument, object);
  }
  if (py::hasattr(object, "__cuda_array_interface__"))
    return from_cuda_array(argument, object.attr("__cuda_array_interface__"), object);
  throw TypeError(concat(argument, " is a ", Py_TYPE(object.ptr())->tp_name,
                         ", expected a NumPy array, a softgate Tensor or a DLPack array"));
}

std::optional<Tensor> to_optional_tensor(const Argument& argument, py::handle object) {
  if (object.is_none()) return std::nullopt;
  return to_tensor(argument, object);
}

py::object to_numpy(const Tensor& tensor) {
  check(tensor.device().kind == DeviceKind::cpu, "Tensor: is on ", tensor.device(),
        ", NumPy needs to(\"cpu\")");
  const py::dtype dtype = to_numpy_dtype(tensor.dtype());
  std::array<Py_ssize_t, kMaxDims> shape{}, strides{};
  for (int i = 0; i < tensor.dim(); ++i) {
    const auto d = static_cast<std::size_t>(i);
    shape[d] = tensor.size(i);
    strides[d] = tensor.stride(i) * static_cast<Py_ssize_t>(size_of(tensor.dtype()));
  }
  auto owner = std::make_unique<std::shared_ptr<Storage>>(tensor.storage());
  const py::capsule base(
      owner.get(), [](void* storage) { delete static_cast<std::shared_ptr<Storage>*>(storage); });
  owner.release();  // NOLINT: the capsule owns it
  const auto dims = static_cast<std::size_t>(tensor.dim());
  py::array array(dtype, py::array::ShapeContainer(shape.begin(), shape.begin() + dims),
                  py::array::StridesContainer(strides.begin(), strides.begin() + dims),
                  tensor.raw(), base);
  if (!tensor.writable()) {
    py::detail::array_proxy(array.ptr())->flags &= ~ArrayApi::NPY_ARRAY_WRITEABLE_;
  }
  return array;
}

py::object to_result(Tensor&& tensor, py::handle first, py::handle out) {
  if (!out.is_none()) return py::reinterpret_borrow<py::object>(out);
  return is_numpy(first) ? to_numpy(tensor) : py::cast(std::move(tensor));
}

void register_tensor(py::module_& m) {
  using py::arg;
  py::class_<Tensor>(m, "Tensor", py::is_final())
      .def(py::init(
               [](py::handle array) { return to_tensor({"Tensor", "array", kAnyDType}, array); }),
           arg("array"))
      .def_static(
          "empty",
          [](py::handle shape, const std::string& dtype, const std::string& device) {
            return Tensor::empty(to_dims("Tensor.empty", shape),
                                 dtype_from_name("Tensor.empty", dtype),
                                 to_device("Tensor.empty", device));
          },
          arg("shape"), arg("dtype") = "float32", arg("device") = "cpu")
      .def("copy_", &copy_, arg("source"))
      .def("to", &to, arg("device") = py::none(), arg("dtype") = py::none())
      .def_property_readonly("shape", [](const Tensor& t) { return to_tuple(t.shape()); })
      .def_property_readonly("strides", [](const Tensor& t) { return to_tuple(t.strides()); })
      .def_property_readonly("dtype", [](const Tensor& t) { return name(t.dtype()); })
      .def_property_readonly("device", [](const Tensor& t) { return name(t.device()); })
      .def_property_readonly("ndim", &Tensor::dim)
      .def_property_readonly("nbytes", &Tensor::bytes)
      .def("numpy", &to_numpy)
      .def(
          "reshape",
          [](const Tensor& t, py::handle shape) { return t.reshape(to_dims("reshape", shape)); },
          arg("shape"))
      .def("item", &item)
      .def("__array__", &as_array, arg("dtype") = py::none(), arg("copy") = py::none())
      .def("__dlpack__", &dlpack_export, py::kw_only(), arg("stream") = py::none(),
           arg("max_version") = py::none(), arg("dl_device") = py::none(), arg("copy") = py::none())
      .def("__dlpack_device__", &dlpack_device)
      .def_property_readonly("__cuda_array_interface__", &cuda_array_interface)
      .def("__len__", &length)
      .def("__getitem__", &get_item)
      .def("__repr__", py::overload_cast<const Tensor&>(&repr));
}

}  // namespace softgate::bindings
