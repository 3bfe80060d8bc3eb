// The backend that core/backend.cc loads: runtime and kernels.
#include "cuda/kernels.h"
#include "cuda/runtime.h"

namespace softgate::cuda {

template <class T>
void add_norm(const AddNormArgs<T>&, Stream);
template <class T>
void attention(const AttentionArgs<T>&, Stream);
template <class T>
void embedding(const EmbeddingArgs<T>&, Stream);
template <class T>
void gather(const GatherArgs<T>&, Stream);
template <class T>
void gru(const RecurrentStepsArgs<T>&, Stream);
template <class T>
void linear(const LinearArgs<T>&, Stream);
template <class T>
void linear_integers(const IntegerLinearArgs<T>&, Stream);
template <class T>
void lstm(const RecurrentStepsArgs<T>&, Stream);
template <class T>
void normalize(const NormalizeArgs<T>&, Stream);
template <class T>
void penalize(const PenalizeArgs<T>&, Stream);
template <class T>
void pool(const PoolArgs<T>&, Stream);
template <class T>
void rnn(const RecurrentStepsArgs<T>&, Stream);
template <class T>
void rotary(const RotaryArgs<T>&, Stream);
template <class T>
void sample(const SampleArgs<T>&, Stream);
template <class T>
void softcap(const SoftcapArgs<T>&, Stream);
template <class T>
void softmax(const SoftmaxArgs<T>&, Stream);
template <class T>
void token_logprobs(const TokenLogprobsArgs<T>&, Stream);

namespace {

template <class T>
constexpr Kernels<T> table() {
  return {
      .add_norm = add_norm<T>,
      .attention = attention<T>,
      .embedding = embedding<T>,
      .gather = gather<T>,
      .gru = gru<T>,
      .linear = linear<T>,
      .linear_integers = linear_integers<T>,
      .lstm = lstm<T>,
      .normalize = normalize<T>,
      .penalize = penalize<T>,
      .pool = pool<T>,
      .rnn = rnn<T>,
      .rotary = rotary<T>,
      .sample = sample<T>,
      .softcap = softcap<T>,
      .softmax = softmax<T>,
      .token_logprobs = token_logprobs<T>,
  };
}

constexpr KernelTables tables{table<float>(), table<half>(), table<bfloat16>()};

}  // namespace
}  // namespace softgate::cuda

extern "C" __attribute__((visibility("default"))) const softgate::Backend* softgate_backend() {
  static const softgate::Backend backend = [] {
    softgate::Backend all = softgate::cuda::runtime();
    all.kernels = &softgate::cuda::tables;
    return all;
  }();
  return &backend;
}
