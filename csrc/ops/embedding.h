// Sum of table rows, with an optional fused layer norm.
//
//   out[i] = norm(sum over t of tables[t][ids[t][i]])
//
//   ids[t]: int32 or int64 [tokens]   tables[t]: [rows_t, hidden]   out: [tokens, hidden]
//
// The rows are added in the order of the tables, in float32, in which the norm runs too. Every id
// is checked against its table before anything is read: on the CPU a wrong one is an error, on
// another device, which nobody waits for, its token becomes NaN.
#pragma once

#include <optional>
#include <vector>

#include "core/tensor.h"

namespace softgate {

inline constexpr int kMaxTables = 4;

template <class T>
struct EmbeddingArgs {
  int num_tables;
  const T* tables[kMaxTables];
  std::int64_t table_strides[kMaxTables];  // elements between rows
  std::int64_t table_rows[kMaxTables];
  const void* ids[kMaxTables];
  bool ids_are_int64[kMaxTables];
  const T* norm_weight;  // or null: no norm
  const T* norm_bias;    // or null
  T* out;
  std::int64_t tokens, hidden;
  std::int64_t out_stride;
  float eps;
};

Tensor embedding(const std::vector<Tensor>& ids, const std::vector<Tensor>& tables,
                 const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias,
                 double eps, std::optional<Tensor> out);

}  // namespace softgate
