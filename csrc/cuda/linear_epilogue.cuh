// What follows a matrix product: bias, activation, what it gates, residual.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/vec.cuh"
#include "ops/linear.h"

namespace softgate::cuda {

// May rows be accessed in vectors of N elements? Rows of null may.
template <int N, class T>
__host__ __device__ __forceinline__ bool is_aligned(const T* p, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(p) % sizeof(Vec<T, N>) == 0 && stride % N == 0;
}

// Columns of out.
template <class T>
__host__ __device__ __forceinline__ std::int64_t width_of(const LinearArgs<T>& args) {
  return args.gated ? args.out_features / 2 : args.out_features;
}

// May `finish` take N columns, from a multiple of N on?
template <int N, class T>
__device__ __forceinline__ bool finishes_vectors(const LinearArgs<T>& args) {
  return is_aligned<N>(args.bias, args.bias && args.gated ? width_of(args) : 0) &&
         is_aligned<N>(args.residual, args.residual_stride) &&
         is_aligned<N>(args.out, args.out_stride);
}

// N columns of a row of out, from sums of the product. of_up(): those that they gate, if they do.
template <int N, class T, class OfUp>
__device__ __forceinline__ void finish(const LinearArgs<T>& args, Vec<float, N> values,
                                       const OfUp& of_up, std::int64_t row, int column) {
  const auto add = [](Vec<float, N>& to, const T* from) {
    const Vec<T, N> vec = load_vec<N>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] += static_cast<float>(vec[i]);
  };
  if (args.bias) add(values, args.bias + column);
  activate(values.values, args.activation);
  if (args.gated) {
    Vec<float, N> up = of_up();
    if (args.bias) add(up, args.bias + args.out_features / 2 + column);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] *= up[i];
  }
  if (args.residual) add(values, args.residual + row * args.residual_stride + column);
  Vec<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = T(values[i]);
  store_vec(args.out + row * args.out_stride + column, out);
}

}  // namespace softgate::cuda
