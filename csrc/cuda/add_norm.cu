#include "ops/add_norm.h"

#include "cuda/rows.cuh"

namespace softgate::cuda {

constexpr int kMaxNormThreads = 1024;  // of a row, so that the longest models' lie in registers

template <class T>
__device__ __forceinline__ T* offset(T* p, std::int64_t elements) {
  return p == nullptr ? nullptr : p + elements;
}

template <class T, int kWidth, bool kInRegisters>
__global__ void __launch_bounds__(kMaxNormThreads) add_norm_kernel(const AddNormArgs<T> args) {
  const std::int64_t index = row_index();
  if (index >= args.rows) return;
  const T* x = args.x + index * args.x_stride;
  const T* residual = offset(args.residual, index * args.residual_stride);
  T* sum = offset(args.sum, index * args.sum_stride);
  T* out = args.out + index * args.out_stride;
  auto row = make_row<kWidth, kInRegisters>(args.hidden, [x, residual](std::int64_t column) {
    Vec<float, kWidth> values = load_floats<kWidth>(x + column);
    if (residual == nullptr) return values;
    const Vec<float, kWidth> others = load_floats<kWidth>(residual + column);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] += others[j];
    return values;
  });

  const auto n = static_cast<float>(args.hidden);
  const float mean =
      args.center ? row.template reduce<Sum>([](float value) { return value; }) / n : 0.0f;
  const float variance = row.template reduce<Sum>([mean](float value) {
    const float d = value - mean;
    return d * d;
  }) / n;
  const float scale = 1.0f / sqrtf(variance + args.eps);
  row.for_each([&](std::int64_t column, Vec<float, kWidth> values) {
    if (sum != nullptr) store_floats(sum + column, values);
    const Vec<float, kWidth> weight = load_floats<kWidth>(args.weight + column);
    Vec<float, kWidth> bias{};
    if (args.bias != nullptr) bias = load_floats<kWidth>(args.bias + column);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = (values[j] - mean) * scale * weight[j] + bias[j];
    store_floats(out + column, values);
  });
}

template <class T>
void add_norm(const AddNormArgs<T>& args, Stream stream) {
  const bool vectors =
      takes_vectors(args.x, args.x_stride) && takes_vectors(args.residual, args.residual_stride) &&
      takes_vectors(args.weight, 0) && takes_vectors(args.bias, 0) &&
      takes_vectors(args.out, args.out_stride) && takes_vectors(args.sum, args.sum_stride);
  with_row_form<T, kMaxNormThreads>(vectors, args.hidden, [&](auto width, auto in_registers) {
    launch(add_norm_kernel<T, width, in_registers>,
           row_shape<kMaxNormThreads>(args.rows, args.hidden, stream), args);
  });
}

template void add_norm(const AddNormArgs<float>&, Stream);
template void add_norm(const AddNormArgs<half>&, Stream);
template void add_norm(const AddNormArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
