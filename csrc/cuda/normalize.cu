#include "ops/normalize.h"

#include "cuda/rows.cuh"

namespace softgate::cuda {

template <class T, int kWidth, bool kInRegisters>
__global__ void __launch_bounds__(kMaxRowThreads) normalize_kernel(const NormalizeArgs<T> args) {
  const std::int64_t index = row_index();
  if (index >= args.rows) return;
  const T* x = args.x + index * args.x_stride;
  T* out = args.out + index * args.out_stride;
  auto row = make_row<kWidth, kInRegisters>(
      args.hidden, [x](std::int64_t column) { return load_floats<kWidth>(x + column); });

  // A row whose squares leave the range of a float is scaled by a power of two, which is exact.
  float scale = 1.0f;
  float squares = row.template reduce<Sum>([](float value) { return value * value; });
  if (squares > 0x1p120f || squares < 0x1p-90f) {
    scale = squares > 1.0f ? 0x1p-96f : 0x1p96f;
    squares = row.template reduce<Sum>([scale](float value) {
      const float scaled = scale * value;
      return scaled * scaled;
    });
  }
  const float norm = sqrtf(squares), floor = args.eps * scale;
  const float inverse = 1.0f / (norm < floor ? floor : norm);
  row.for_each([&](std::int64_t column, Vec<float, kWidth> values) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = scale * values[j] * inverse;
    store_floats(out + column, values);
  });
}

template <class T>
void normalize(const NormalizeArgs<T>& args, Stream stream) {
  const bool vectors =
      takes_vectors(args.x, args.x_stride) && takes_vectors(args.out, args.out_stride);
  with_row_form<T>(vectors, args.hidden, [&](auto width, auto in_registers) {
    launch(normalize_kernel<T, width, in_registers>, row_shape(args.rows, args.hidden, stream),
           args);
  });
}

template void normalize(const NormalizeArgs<float>&, Stream);
template void normalize(const NormalizeArgs<half>&, Stream);
template void normalize(const NormalizeArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
