#include "ops/arguments.h"

#include <algorithm>
#include <string>
#include <utility>

namespace softgate {
namespace {

bool matches(const Dims& shape, const Dims& expected) {
  return std::equal(shape.begin(), shape.end(), expected.begin(), expected.end(),
                    [](std::int64_t size, std::int64_t want) { return want < 0 || size == want; });
}

std::string describe(const Dims& expected) {
  std::string text = "[";
  for (int i = 0; i < expected.size(); ++i) {
    if (i > 0) text += ", ";
    text += expected[i] < 0 ? "any" : std::to_string(expected[i]);
  }
  return text + "]";
}

// True when each stride steps over all that the smaller ones reach, as in every view that slicing
// and transposing make.
bool elements_are_distinct(const Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  for (int i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) == 1) continue;
    std::int64_t reach = 0;
    for (int j = 0; j < tensor.dim(); ++j) {
      const bool inside =
          tensor.stride(j) < tensor.stride(i) || (tensor.stride(j) == tensor.stride(i) && j < i);
      if (inside) reach += (tensor.size(j) - 1) * tensor.stride(j);
    }
    if (tensor.stride(i) <= reach) return false;
  }
  return true;
}

}  // namespace

void check_device(const char* op, const char* argument, const Tensor& tensor, Device device) {
  check(tensor.device() == device, op, ": ", argument, " is on ", tensor.device(), ", expected ",
        device);
}

DType check_float(const char* op, const char* argument, const Tensor& tensor) {
  const DType dtype = tensor.dtype();
  const bool on_cpu = tensor.device().kind == DeviceKind::cpu;
  const bool is_16_bit = dtype == DType::float16 || dtype == DType::bfloat16;
  check_type(dtype == DType::float32 || (is_16_bit && !on_cpu), op, ": ", argument, " has dtype ",
             name(dtype), ", expected float32", on_cpu ? "" : ", float16 or bfloat16");
  return dtype;
}

void check_tensor(const char* op, const char* argument, const Tensor& tensor, DType dtype,
                  const Dims& shape, Device device) {
  check_device(op, argument, tensor, device);
  check_type(tensor.dtype() == dtype, op, ": ", argument, " has dtype ", name(tensor.dtype()),
             ", expected ", name(dtype));
  if (!matches(tensor.shape(), shape)) {
    check(false, op, ": ", argument, " has shape ", tensor.shape(), ", expected ", describe(shape));
  }
}

void check_cu_seqlens(const char* op, const char* argument, const Tensor& cu_seqlens,
                      std::int64_t total, Device device) {
  check_tensor(op, argument, cu_seqlens, DType::int32, {-1}, device);
  const std::int64_t count = cu_seqlens.size(0);
  check(count >= 1, op, ": ", argument, " is empty, expected batch + 1 offsets");
  if (device.kind != DeviceKind::cpu) return;
  const auto* offsets = cu_seqlens.data<std::int32_t>();
  check(offsets[0] == 0, op, ": ", argument, " starts at ", offsets[0], ", expected 0");
  for (std::int64_t i = 1; i < count; ++i) {
    check(offsets[i - 1] <= offsets[i], op, ": ", argument, " falls from ", offsets[i - 1], " to ",
          offsets[i], " at ", i);
  }
  check(offsets[count - 1] == total, op, ": ", argument, " ends at ", offsets[count - 1],
        ", expected the ", total, " tokens given");
}

void check_cache_rows(const char* op, const Tensor* cache_rows, std::int64_t batch,
                      std::int64_t rows, Device device) {
  if (!cache_rows) {
    check(batch <= rows, op, ": k_cache has ", rows, " rows, expected one for each of ", batch,
          " sequences, or cache_rows");
    return;
  }
  check_tensor(op, "cache_rows", *cache_rows, DType::int32, {batch}, device);
  if (device.kind != DeviceKind::cpu) return;
  const auto* row = cache_rows->data<std::int32_t>();
  for (std::int64_t b = 0; b < batch; ++b) {
    check(row[b] >= 0 && row[b] < rows, op, ": cache_rows[", b, "] is ", row[b],
          ", expected 0 <= row < ", rows);
  }
}

void check_writable(const char* op, const char* argument, const Tensor& tensor) {
  check(tensor.writable(), op, ": ", argument, " is read-only");
  check(elements_are_distinct(tensor), op, ": ", argument,
        " is a broadcast or overlapping view, expected one place for each element");
}

Tensor resolve_out(const char* op, std::optional<Tensor> out, DType dtype, const Dims& shape,
                   Device device) {
  if (!out) return Tensor::empty(shape, dtype, device);
  check_tensor(op, "out", *out, dtype, shape, device);
  check_writable(op, "out", *out);
  return *std::move(out);
}

void check_overlap(const char* op, const Tensor& out, const char* argument, const Tensor& input,
                   bool may_alias) {
  if (!overlap(out, input)) return;
  check(may_alias, op, ": out shares memory with ", argument);
  check(same_view(out, input), op, ": out overlaps ", argument,
        ", expected the same view or other memory");
}

Rows as_rows(const char* op, const char* argument, const Tensor& tensor) {
  check(tensor.dim() >= 1, op, ": ", argument, " has no dimensions, expected at least one");
  Rows rows{1, tensor.size(-1), tensor.size(-1)};
  bool first = true;
  for (int i = tensor.dim() - 2; i >= 0; --i) {
    const std::int64_t size = tensor.size(i);
    if (size > 1 && first) {
      rows.stride = tensor.stride(i);
      first = false;
    } else if (size > 1 && tensor.numel() > 0 && tensor.stride(i) != rows.rows * rows.stride) {
      check(false, op, ": the leading dimensions of ", argument, ", shape ", tensor.shape(),
            " and strides ", tensor.strides(), ", are not evenly spaced rows");
    }
    rows.rows *= size;
  }
  return rows;
}

}  // namespace softgate
