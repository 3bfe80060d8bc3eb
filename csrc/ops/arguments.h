// Argument checks shared by the op files. Each names the op and the argument it rejects.
#pragma once

#include <optional>

#include "core/check.h"
#include "core/tensor.h"

namespace softgate {

// On the device of the op's other tensors; the CPU where an op has no kernel for another.
void check_device(const char* op, const char* argument, const Tensor& tensor, Device device = {});

// `shape` entries of -1 match any size.
void check_tensor(const char* op, const char* argument, const Tensor& tensor, DType dtype,
                  const Dims& shape, Device device = {});

// The dtype that an op computes in, of its first tensor: float32, or float16 and bfloat16 on a
// device other than the CPU.
DType check_float(const char* op, const char* argument, const Tensor& tensor);

// cu_seqlens: int32 [batch + 1], starting at 0, never falling, ending at `total`. The offsets are
// only looked at on the CPU: fetching them would make the caller wait for the device.
void check_cu_seqlens(const char* op, const char* argument, const Tensor& cu_seqlens,
                      std::int64_t total, Device device = {});

// cache_rows: int32 [batch], each in [0, rows), or null where sequence b has row b, of which there
// must be enough then. Their values are only looked at on the CPU.
void check_cache_rows(const char* op, const Tensor* cache_rows, std::int64_t batch,
                      std::int64_t rows, Device device = {});

// An output: writable memory in which no two elements share a place.
void check_writable(const char* op, const char* argument, const Tensor& tensor);

// `out` itself when given (checked: writable, dtype, shape), a new tensor otherwise.
Tensor resolve_out(const char* op, std::optional<Tensor> out, DType dtype, const Dims& shape,
                   Device device = {});

// `out` must not share memory with `input`, unless they are the same view and `may_alias`.
void check_overlap(const char* op, const Tensor& out, const char* argument, const Tensor& input,
                   bool may_alias);

// A tensor's leading dimensions as one dimension of rows: [..., columns] -> rows, stride. Throws
// when the strides do not allow it.
struct Rows {
  std::int64_t rows, columns, stride;
};
Rows as_rows(const char* op, const char* argument, const Tensor& tensor);

}  // namespace softgate
