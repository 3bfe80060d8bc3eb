// The CUDA backend's list of kernels, once per element type (module.cc defines the tables). Every
// kernel runs on the stream it is given and returns at once.
#pragma once

#include <tuple>

#include "core/backend.h"
#include "core/half.h"
#include "ops/add_norm.h"
#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/normalize.h"
#include "ops/pool.h"
#include "ops/recurrent.h"
#include "ops/rotary.h"
#include "ops/sample.h"
#include "ops/softmax.h"

namespace softgate::cuda {

template <class T>
struct Kernels {
  void (*add_norm)(const AddNormArgs<T>&, Stream);
  void (*attention)(const AttentionArgs<T>&, Stream);
  void (*embedding)(const EmbeddingArgs<T>&, Stream);
  void (*gather)(const GatherArgs<T>&, Stream);
  void (*gru)(const RecurrentStepsArgs<T>&, Stream);
  void (*linear)(const LinearArgs<T>&, Stream);
  void (*linear_integers)(const IntegerLinearArgs<T>&, Stream);
  void (*lstm)(const RecurrentStepsArgs<T>&, Stream);
  void (*normalize)(const NormalizeArgs<T>&, Stream);
  void (*penalize)(const PenalizeArgs<T>&, Stream);
  void (*pool)(const PoolArgs<T>&, Stream);
  void (*rnn)(const RecurrentStepsArgs<T>&, Stream);
  void (*rotary)(const RotaryArgs<T>&, Stream);
  void (*sample)(const SampleArgs<T>&, Stream);
  void (*softcap)(const SoftcapArgs<T>&, Stream);
  void (*softmax)(const SoftmaxArgs<T>&, Stream);
  void (*token_logprobs)(const TokenLogprobsArgs<T>&, Stream);
};

using KernelTables = std::tuple<Kernels<float>, Kernels<half>, Kernels<bfloat16>>;

// Also makes `device` the one that they run on.
template <class T>
const Kernels<T>& kernels(Device device) {
  const Backend& found = backend(device);
  found.use(device.index);
  return std::get<Kernels<T>>(*static_cast<const KernelTables*>(found.kernels));
}

}  // namespace softgate::cuda
