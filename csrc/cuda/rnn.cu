// The pointwise part of Elman's RNN.
#include "cuda/recurrent.cuh"

namespace softgate::cuda {

struct RnnPhase : GatePhase<0, 1, 1> {
  static __device__ After finish(RecurrentKind kind, const float (&sums)[1], const Before&) {
    const float sum = sums[0];
    if (kind == RecurrentKind::rnn_tanh) return {tanhf(sum), 0.0f};
    return {sum < 0.0f ? 0.0f : sum, 0.0f};  // NaN stays NaN
  }
};

template <class T>
void rnn(const RecurrentStepsArgs<T>& args, Stream stream) {
  run_steps<T, RnnPhase>(args, stream);
}

template void rnn(const RecurrentStepsArgs<float>&, Stream);
template void rnn(const RecurrentStepsArgs<half>&, Stream);
template void rnn(const RecurrentStepsArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
