// Vectors of elements that one instruction of up to 128 bits loads or stores.
#pragma once

#include "core/half.h"
#include "cuda/kernel.cuh"

namespace softgate::cuda {

// Elements of a 128-bit access.
template <class T>
inline constexpr int kVec = 16 / static_cast<int>(sizeof(T));

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T values[N];

  __device__ T& operator[](int i) { return values[i]; }
  __device__ const T& operator[](int i) const { return values[i]; }
};

namespace vec_detail {

// The word that moves a vector of so many bytes.
template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using type = unsigned char;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

}  // namespace vec_detail

// p must be aligned to the vector's size.
template <int N, class T>
__device__ __forceinline__ Vec<T, N> load_vec(const T* p) {
  const auto word = *reinterpret_cast<const typename vec_detail::Word<sizeof(T) * N>::type*>(p);
  Vec<T, N> vec;
  __builtin_memcpy(&vec, &word, sizeof(vec));
  return vec;
}

template <class T, int N>
__device__ __forceinline__ void store_vec(T* p, const Vec<T, N>& vec) {
  typename vec_detail::Word<sizeof(T) * N>::type word;
  __builtin_memcpy(&word, &vec, sizeof(vec));
  *reinterpret_cast<typename vec_detail::Word<sizeof(T) * N>::type*>(p) = word;
}

}  // namespace softgate::cuda
