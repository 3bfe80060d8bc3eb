// Attention of a recurrent decoder to the states of an encoder (Bahdanau et al. 2014; Luong et al.
// 2015), on the CPU. Row r looks at the tokens t of one source, sources[r]:
//
//   score[t] = v . tanh(query[r] + keys[t]), or query[r] . keys[t] without v
//   out[r] = sum over t of weight[t] * values[t], weight = softmax(score)
//
//   query: [rows, size]    keys: [total_tokens, size]    values: [total_tokens, columns]
//   cu_seqlens: int32 [batch + 1]    sources: int32 [rows]    v: [size]
//
// The weights of a row follow those of the row before, as many as its source has tokens. A source
// without tokens gives zeros. A row does not depend on the others.
#pragma once

#include <optional>

#include "core/tensor.h"

namespace softgate {

struct SourceAttentionArgs {
  const float *query, *keys, *values;
  const std::int32_t *cu_seqlens, *sources;
  const float* v;                    // or null
  const std::int64_t* first_weight;  // [rows + 1]
  float *out, *weights;
  std::int64_t rows, size, columns;
  std::int64_t query_stride, keys_stride, values_stride;
};

struct SourceAttention {
  Tensor out;      // [rows, columns]
  Tensor weights;  // [sum of the lengths of the rows' sources]
};

SourceAttention source_attention(const Tensor& query, const Tensor& keys, const Tensor& values,
                                 const Tensor& cu_seqlens, const Tensor& sources,
                                 const std::optional<Tensor>& v);

}  // namespace softgate
