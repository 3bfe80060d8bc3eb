// The pointwise part of an LSTM, and the projection of its state.
#include "cuda/recurrent.cuh"

namespace softgate::cuda {

struct LstmPhase : GatePhase<0, 4, 4> {
  static constexpr bool kCarries = true;

  template <class T>
  static __device__ Before before(const Place<T>& place) {
    return {0.0f, place.c()};
  }
  static __device__ After finish(RecurrentKind, const float (&sums)[4], const Before& before) {
    const float i = sigmoid(sums[0]), f = sigmoid(sums[1]), o = sigmoid(sums[3]);
    const float c = fmaf(f, before.carry, i * tanhf(sums[2]));
    return {o * tanhf(c), c};
  }
  template <class T>
  static __device__ T* to(const Place<T>& place) {
    return place.direction.weights.weight_hr == nullptr ? place.out() : place.intermediate();
  }
};

// h = W_hr (o * tanh(c))
struct ProjectPhase : GatePhase<0, 1, 1> {
  static constexpr bool kInRegisters = false;  // the gates fill them

  template <class T>
  static __host__ __device__ int units(const RecurrentStepsArgs<T>& args) {
    return static_cast<int>(args.output_size);
  }
  template <class T>
  static __host__ __device__ int depth(const RecurrentStepsArgs<T>& args) {
    return static_cast<int>(args.hidden_size);
  }
  template <class T>
  static __device__ const T* weight(const Place<T>& place, int) {
    return place.direction.weights.weight_hr + place.unit * place.args.hidden_size;
  }
  template <class T>
  static __device__ float start(const Place<T>&, int) {
    return 0.0f;
  }
  template <class T>
  static __device__ const T* from(const Place<T>& place) {
    return place.intermediate();
  }
  static __device__ After finish(RecurrentKind, const float (&sums)[1], const Before&) {
    return {sums[0], 0.0f};
  }
};

template <class T>
void lstm(const RecurrentStepsArgs<T>& args, Stream stream) {
  if (args.direction[0].weights.weight_hr == nullptr)
    run_steps<T, LstmPhase>(args, stream);
  else
    run_steps<T, LstmPhase, ProjectPhase>(args, stream);
}

template void lstm(const RecurrentStepsArgs<float>&, Stream);
template void lstm(const RecurrentStepsArgs<half>&, Stream);
template void lstm(const RecurrentStepsArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
