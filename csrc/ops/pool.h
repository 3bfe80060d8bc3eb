// One vector per sequence of a packed batch.
//
//   x: [total_tokens, hidden]   cu_seqlens: int32 [batch + 1]   out: [batch, hidden]
//
// mean and max run over the tokens of a sequence, cls takes its first, last its last. A sequence
// without tokens gives zeros. NaN propagates through mean and max. Sums are float32.
//
// On a device other than the CPU, offsets outside of x are taken as the nearest inside.
#pragma once

#include <optional>
#include <string>

#include "core/tensor.h"
#include "ops/sequence_offsets.h"

namespace softgate {

enum class PoolMode { mean, cls, max, last };

template <class T>
struct PoolArgs {
  const T* x;
  const std::int32_t* cu_seqlens;
  T* out;
  std::int64_t tokens, batch, hidden;
  std::int64_t x_stride, out_stride;  // elements between rows
  PoolMode mode;
};

Tensor pool(const Tensor& x, const Tensor& cu_seqlens, const std::string& mode,
            std::optional<Tensor> out);
Tensor pool(const Tensor& x, const SequenceOffsets& cu_seqlens, const std::string& mode,
            std::optional<Tensor> out);

}  // namespace softgate
