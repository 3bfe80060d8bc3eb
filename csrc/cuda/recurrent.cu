// What is left of recurrent layers after the last step.
#include "cuda/recurrent.cuh"

namespace softgate::cuda {

template <class T>
__global__ void __launch_bounds__(kStepThreads)
    last_states_kernel(const RecurrentStepsArgs<T> args) {
  const int row = static_cast<int>(blockIdx.x), length = args.length[row];
  Place<T> place{args, direction_of(args, blockIdx.y), args.first, args.length, length, row, 0};
  const std::int64_t sequence = args.order[row];
  for (int i = static_cast<int>(threadIdx.x); i < args.output_size; i += kStepThreads) {
    place.unit = i;
    place.direction.h_n[sequence * args.output_size + i] = static_cast<T>(place.h());
  }
  if (place.direction.c_n == nullptr) return;
  for (int i = static_cast<int>(threadIdx.x); i < args.hidden_size; i += kStepThreads) {
    place.unit = i;
    place.direction.c_n[sequence * args.hidden_size + i] = static_cast<T>(place.c());
  }
}

template <class T>
void last_states(const RecurrentStepsArgs<T>& args, Stream stream) {
  if (args.batch == 0) return;
  const auto batch = static_cast<unsigned>(args.batch);
  launch(last_states_kernel<T>,
         {.grid = dim3(batch, static_cast<unsigned>(args.directions)),
          .block = kStepThreads,
          .stream = stream},
         args);
}

template void last_states(const RecurrentStepsArgs<float>&, Stream);
template void last_states(const RecurrentStepsArgs<half>&, Stream);
template void last_states(const RecurrentStepsArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
