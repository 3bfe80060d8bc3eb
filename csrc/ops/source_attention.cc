#include "ops/source_attention.h"

#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "ops/arguments.h"

namespace softgate {

SourceAttention source_attention(const Tensor& query, const Tensor& keys, const Tensor& values,
                                 const Tensor& cu_seqlens, const Tensor& sources,
                                 const std::optional<Tensor>& v) {
  const char* op = "source_attention";
  check_tensor(op, "query", query, DType::float32, {-1, -1});
  const std::int64_t rows = query.size(0), size = query.size(1);
  check_tensor(op, "keys", keys, DType::float32, {-1, size});
  check_tensor(op, "values", values, DType::float32, {keys.size(0), -1});
  check_cu_seqlens(op, "cu_seqlens", cu_seqlens, keys.size(0));
  check_tensor(op, "sources", sources, DType::int32, {rows});
  if (v) check_tensor(op, "v", *v, DType::float32, {size});
  const std::int64_t batch = cu_seqlens.size(0) - 1;
  const auto* starts = cu_seqlens.data<std::int32_t>();
  const auto* source = sources.data<std::int32_t>();
  std::vector<std::int64_t> first_weight{0};
  for (std::int64_t row = 0; row < rows; ++row) {
    check(source[row] >= 0 && source[row] < batch, op, ": sources[", row, "] is ", source[row],
          ", expected 0 <= source < ", batch);
    first_weight.push_back(first_weight.back() + starts[source[row] + 1] - starts[source[row]]);
  }
  SourceAttention result{Tensor::empty({rows, values.size(1)}),
                         Tensor::empty({first_weight.back()})};
  cpu::kernels().source_attention({
      .query = query.data<float>(),
      .keys = keys.data<float>(),
      .values = values.data<float>(),
      .cu_seqlens = starts,
      .sources = source,
      .v = v ? v->data<float>() : nullptr,
      .first_weight = first_weight.data(),
      .out = result.out.data<float>(),
      .weights = result.weights.data<float>(),
      .rows = rows,
      .size = size,
      .columns = values.size(1),
      .query_stride = query.stride(0),
      .keys_stride = keys.stride(0),
      .values_stride = values.stride(0),
  });
  return result;
}

}  // namespace softgate
