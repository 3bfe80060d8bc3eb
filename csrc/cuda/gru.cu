// The pointwise parts of a GRU, with the reset gate after the product and before it.
#include "cuda/recurrent.cuh"

namespace softgate::cuda {

__device__ __forceinline__ float blend(float z, float n, float h) { return fmaf(z, h - n, n); }

// Its values are r, z, n's recurrent part and, without a product, n's input part.
struct GruPhase : GatePhase<0, 3, 4> {
  template <class T>
  static __device__ float start(const Place<T>& place, int slot) {
    if (slot != 2) return place.gate(slot == 3 ? 2 : slot);
    const T* bias = place.direction.weights.bias_hn;
    return bias == nullptr ? 0.0f : static_cast<float>(bias[place.unit]);
  }
  template <class T>
  static __device__ Before before(const Place<T>& place) {
    return {place.h(), 0.0f};
  }
  static __device__ After finish(RecurrentKind, const float (&values)[4], const Before& before) {
    const float r = sigmoid(values[0]), z = sigmoid(values[1]);
    const float n = tanhf(fmaf(r, values[2], values[3]));
    return {blend(z, n, before.h), 0.0f};
  }
};

// r * h, and z to carry to the second phase.
struct ResetPhase : GatePhase<0, 2, 2> {
  static constexpr bool kCarries = true;

  template <class T>
  static __device__ Before before(const Place<T>& place) {
    return {place.h(), 0.0f};
  }
  static __device__ After finish(RecurrentKind, const float (&sums)[2], const Before& before) {
    return {sigmoid(sums[0]) * before.h, sigmoid(sums[1])};
  }
  template <class T>
  static __device__ T* to(const Place<T>& place) {
    return place.intermediate();
  }
};

struct ResetStatePhase : GatePhase<2, 1, 1> {
  template <class T>
  static __device__ Before before(const Place<T>& place) {
    return {place.h(), place.carry()};
  }
  template <class T>
  static __device__ const T* from(const Place<T>& place) {
    return place.intermediate();
  }
  static __device__ After finish(RecurrentKind, const float (&sums)[1], const Before& before) {
    return {blend(before.carry, tanhf(sums[0]), before.h), 0.0f};
  }
};

template <class T>
void gru(const RecurrentStepsArgs<T>& args, Stream stream) {
  if (args.kind == RecurrentKind::gru)
    run_steps<T, GruPhase>(args, stream);
  else
    run_steps<T, ResetPhase, ResetStatePhase>(args, stream);
}

template void gru(const RecurrentStepsArgs<float>&, Stream);
template void gru(const RecurrentStepsArgs<half>&, Stream);
template void gru(const RecurrentStepsArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
