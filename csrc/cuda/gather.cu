// gather: a block copies a row, each thread eight elements at a time; of integers those are one
// lane's part of a unit (ops/device_panel.h).
#include "cuda/launch.h"
#include "cuda/rows.cuh"
#include "ops/device_panel.h"

namespace softgate::cuda {
namespace gather_detail {  // not without a name, so that simt finds its kernels' names

constexpr int kElements = 8, kThreads = 128;
using Elements = Vec<float, kElements>;

template <class T>
__device__ __forceinline__ std::int64_t id_of(const GatherArgs<T>& args, std::int64_t token) {
  if (args.ids == nullptr) return token;
  return args.ids_are_int64 ? static_cast<const std::int64_t*>(args.ids)[token]
                            : static_cast<const std::int32_t*>(args.ids)[token];
}

// The first `n` of eight elements at p, all of them where kVectors.
template <bool kVectors, class T>
__device__ __forceinline__ Elements load(const T* p, int n) {
  Elements values;
  if constexpr (kVectors) {
#pragma unroll
    for (int i = 0; i < kElements; i += kVec<T>) {
      const Vec<float, kVec<T>> part = load_floats<kVec<T>>(p + i);
#pragma unroll
      for (int j = 0; j < kVec<T>; ++j) values[i + j] = part[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) values[i] = i < n ? static_cast<float>(p[i]) : 0.0f;
  }
  return values;
}

template <bool kVectors, class T>
__device__ __forceinline__ void store(T* p, const Elements& values, int n) {
  if constexpr (kVectors) {
#pragma unroll
    for (int i = 0; i < kElements; i += kVec<T>) {
      Vec<float, kVec<T>> part;
#pragma unroll
      for (int j = 0; j < kVec<T>; ++j) part[j] = values[i + j];
      store_floats(p + i, part);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (i < n) p[i] = static_cast<T>(values[i]);
    }
  }
}

// Elements k to k + 7 of a feature. The product of a scale and an integer is exact.
__device__ __forceinline__ Elements integers(const void* panels, const PanelFormat& format,
                                             std::int64_t in_features,
                                             const device_panel::Place& place, std::int64_t k) {
  const auto* panel = static_cast<const unsigned char*>(panels) +
                      place.panel * device_panel::panel_bytes(format, in_features);
  const unsigned char* unit = panel + device_panel::head_bytes(format) +
                              k / device_panel::kDepth * device_panel::unit_bytes(format);
  float scale, minimum = -0.0f;  // which leaves every product as it is
  if (format.grouped) {
    const auto* scales =
        reinterpret_cast<const half*>(unit + device_panel::value_bytes(format)) + place.column;
    scale = static_cast<float>(scales[0]);
    minimum = format.minimums ? static_cast<float>(scales[device_panel::kColumns]) : 0.0f;
  } else {
    scale = reinterpret_cast<const float*>(panel)[place.column];
  }
  const auto part =
      static_cast<int>(place.column / 2 * 4 + k % device_panel::kDepth / kElements) * 2 +
      place.column % 2;
  Elements result;
  if (format.type == WeightType::int4) {
    const auto bytes = load_vec<4>(unit + part * 4);
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      result[i] = static_cast<float>(bytes[i % 4] >> i / 4 * 4 & 15);
  } else {
    const auto bytes = load_vec<8>(reinterpret_cast<const signed char*>(unit + part * 8));
#pragma unroll
    for (int i = 0; i < kElements; ++i) result[i] = static_cast<float>(bytes[i]);
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) result[i] = fmaf(scale, result[i], minimum);
  return result;
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads) gather_kernel(const GatherArgs<T> args) {
  const auto token = static_cast<std::int64_t>(blockIdx.x);
  const std::int64_t feature = id_of(args, token);
  const bool is_inside = feature >= 0 && feature < args.out_features;
  const bool is_integer =
      args.format.type == WeightType::int8 || args.format.type == WeightType::int4;
  const auto place = device_panel::place_of(args.format, args.out_features, feature);
  for (std::int64_t k = static_cast<std::int64_t>(threadIdx.x) * kElements; k < args.in_features;
       k += kThreads * kElements) {
    const std::int64_t left = args.in_features - k;
    const int n = left < kElements ? static_cast<int>(left) : kElements;
    Elements values;
    if (!is_inside) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) values[i] = NAN;
    } else if (is_integer) {
      values = integers(args.packed, args.format, args.in_features, place, k);
    } else {
      values =
          load<kVectors>(static_cast<const T*>(args.packed) + feature * args.in_features + k, n);
    }
    if (args.scale != 1.0f) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) values[i] *= args.scale;
    }
    if (args.residual != nullptr) {
      const Elements more = load<kVectors>(args.residual + token * args.residual_stride + k, n);
#pragma unroll
      for (int i = 0; i < kElements; ++i) values[i] += more[i];
    }
    store<kVectors>(args.out + token * args.out_stride + k, values, n);
  }
}

}  // namespace gather_detail

template <class T>
void gather(const GatherArgs<T>& args, Stream stream) {
  using namespace gather_detail;
  const bool vectors = args.in_features % kElements == 0 &&
                       takes_vectors(static_cast<const T*>(args.packed), 0) &&
                       takes_vectors(args.residual, args.residual_stride) &&
                       takes_vectors(args.out, args.out_stride);
  launch(
      vectors ? gather_kernel<T, true> : gather_kernel<T, false>,
      {.grid = dim3(static_cast<unsigned>(args.tokens)), .block = dim3(kThreads), .stream = stream},
      args);
}

template void gather(const GatherArgs<float>&, Stream);
template void gather(const GatherArgs<half>&, Stream);
template void gather(const GatherArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
