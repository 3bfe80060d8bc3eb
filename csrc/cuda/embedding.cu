#include "ops/embedding.h"

#include "cuda/rows.cuh"

namespace softgate::cuda {
namespace {

// The table rows of one token; null where its id is outside the table.
template <class T>
struct TableRows {
  const T* of[kMaxTables];
};

template <class T>
__device__ __forceinline__ TableRows<T> table_rows(const EmbeddingArgs<T>& args,
                                                   std::int64_t token) {
  TableRows<T> rows{};
#pragma unroll
  for (int t = 0; t < kMaxTables; ++t) {
    if (t >= args.num_tables) break;
    const std::int64_t id = args.ids_are_int64[t]
                                ? static_cast<const std::int64_t*>(args.ids[t])[token]
                                : static_cast<const std::int32_t*>(args.ids[t])[token];
    const bool inside = id >= 0 && id < args.table_rows[t];
    rows.of[t] = inside ? args.tables[t] + id * args.table_strides[t] : nullptr;
  }
  return rows;
}

// Of a row at a column; NaN when the row is missing.
template <int kWidth, class T>
__device__ __forceinline__ Vec<float, kWidth> values_of(const T* row, std::int64_t column) {
  if (row != nullptr) return load_floats<kWidth>(row + column);
  Vec<float, kWidth> values;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) values[j] = NAN;
  return values;
}

// The sum of the rows at a column, added from the first to the last.
template <int kWidth, class T>
__device__ __forceinline__ Vec<float, kWidth> add_rows(const TableRows<T>& rows, int num_tables,
                                                       std::int64_t column) {
  Vec<float, kWidth> total = values_of<kWidth>(rows.of[0], column);
#pragma unroll
  for (int t = 1; t < kMaxTables; ++t) {
    if (t >= num_tables) break;
    const Vec<float, kWidth> values = values_of<kWidth>(rows.of[t], column);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) total[j] += values[j];
  }
  return total;
}

template <class T>
bool all_take_vectors(const EmbeddingArgs<T>& args) {
  bool all = takes_vectors(args.out, args.out_stride) && takes_vectors(args.norm_weight, 0) &&
             takes_vectors(args.norm_bias, 0);
  for (int t = 0; t < args.num_tables; ++t)
    all = all && takes_vectors(args.tables[t], args.table_strides[t]);
  return all;
}

}  // namespace

// One block per multiprocessor is all that is asked for: ptxas would spill to make room for more.
template <class T, int kWidth, bool kInRegisters>
__global__ void __launch_bounds__(kMaxRowThreads, 1) embedding_kernel(const EmbeddingArgs<T> args) {
  const std::int64_t token = row_index();
  if (token >= args.tokens) return;
  T* out = args.out + token * args.out_stride;
  auto row = make_row<kWidth, kInRegisters>(
      args.hidden, [rows = table_rows(args, token), n = args.num_tables](std::int64_t column) {
        return add_rows<kWidth>(rows, n, column);
      });

  if (args.norm_weight == nullptr) {
    row.for_each([&](std::int64_t column, const Vec<float, kWidth>& values) {
      store_floats(out + column, values);
    });
    return;
  }
  const auto n = static_cast<float>(args.hidden);
  const float mean = row.template reduce<Sum>([](float value) { return value; }) / n;
  const float variance = row.template reduce<Sum>([mean](float value) {
    const float d = value - mean;
    return d * d;
  }) / n;
  const float scale = 1.0f / sqrtf(variance + args.eps);
  row.for_each([&](std::int64_t column, Vec<float, kWidth> values) {
    const Vec<float, kWidth> weight = load_floats<kWidth>(args.norm_weight + column);
    Vec<float, kWidth> bias{};
    if (args.norm_bias != nullptr) bias = load_floats<kWidth>(args.norm_bias + column);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = (values[j] - mean) * scale * weight[j] + bias[j];
    store_floats(out + column, values);
  });
}

template <class T>
void embedding(const EmbeddingArgs<T>& args, Stream stream) {
  with_row_form<T>(all_take_vectors(args), args.hidden, [&](auto width, auto in_registers) {
    launch(embedding_kernel<T, width, in_registers>, row_shape(args.tokens, args.hidden, stream),
           args);
  });
}

template void embedding(const EmbeddingArgs<float>&, Stream);
template void embedding(const EmbeddingArgs<half>&, Stream);
template void embedding(const EmbeddingArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
