#include "ops/softmax.h"

#include "cuda/rows.cuh"

namespace softgate::cuda {

template <class T, int kWidth, bool kInRegisters>
__global__ void __launch_bounds__(kMaxRowThreads) softmax_kernel(const SoftmaxArgs<T> args) {
  const std::int64_t index = row_index();
  if (index >= args.rows) return;
  const T* x = args.x + index * args.x_stride;
  T* out = args.out + index * args.out_stride;
  auto row = make_row<kWidth, kInRegisters>(
      args.columns, [x](std::int64_t column) { return load_floats<kWidth>(x + column); });

  const float largest = row.template reduce<Max>([](float value) { return value; });
  // Nothing to subtract from -inf: its exponential is 0 as it stands.
  const float shift = largest == -INFINITY ? 0.0f : largest;
  const float total = row.template reduce<Sum>([shift](float& value) {
    value = expf(value - shift);
    return value;
  });
  const float scale = total == 0.0f ? 0.0f : 1.0f / total;
  row.for_each([&](std::int64_t column, Vec<float, kWidth> values) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      values[j] = scale * (kInRegisters ? values[j] : expf(values[j] - shift));
    store_floats(out + column, values);
  });
}

template <class T>
void softmax(const SoftmaxArgs<T>& args, Stream stream) {
  const bool vectors =
      takes_vectors(args.x, args.x_stride) && takes_vectors(args.out, args.out_stride);
  with_row_form<T>(vectors, args.columns, [&](auto width, auto in_registers) {
    launch(softmax_kernel<T, width, in_registers>, row_shape(args.rows, args.columns, stream),
           args);
  });
}

template void softmax(const SoftmaxArgs<float>&, Stream);
template void softmax(const SoftmaxArgs<half>&, Stream);
template void softmax(const SoftmaxArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
