// What the row-wise kernels share: a row in the registers of its threads, and how it is launched.
//
// A row belongs to blockDim.x threads: to one warp, of which a block has several, or to a block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace softgate::cuda {

inline constexpr int kHeld = 16;  // elements of a row that one thread keeps in registers
inline constexpr int kMaxRowThreads = 512;
inline constexpr int kWarpsPerBlock = 4;  // where each has a row of its own

template <int kWidth, class T>
__device__ __forceinline__ Vec<float, kWidth> load_floats(const T* p) {
  const Vec<T, kWidth> stored = load_vec<kWidth>(p);
  Vec<float, kWidth> values;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) values[j] = static_cast<float>(stored[j]);
  return values;
}

template <class T, int kWidth>
__device__ __forceinline__ void store_floats(T* p, const Vec<float, kWidth>& values) {
  Vec<T, kWidth> stored;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) stored[j] = static_cast<T>(values[j]);
  store_vec(p, stored);
}

// The row of this thread, which may lie past the last one.
__device__ __forceinline__ std::int64_t row_index() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}

// This thread's vectors of the row that load(column) gives: kept in registers or, where the row is
// too long for that, loaded again in each pass.
template <int kWidth, bool kInRegisters, class Load>
class Row {
 public:
  __device__ Row(std::int64_t columns, const Load& load) : columns_(columns), load_(load) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (column_of(i) < columns_) held_[i] = load_(column_of(i));
      }
    }
  }

  // body(column, values) for each vector. A change of the values lasts where they are in registers.
  template <class Body>
  __device__ void for_each(const Body& body) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (column_of(i) >= columns_) break;
        body(column_of(i), held_[i]);
      }
    } else {
      const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
      for (std::int64_t column = column_of(0); column < columns_; column += step) {
        Vec<float, kWidth> values = load_(column);
        body(column, values);
      }
    }
  }

  // of(value) of all values, reduced; every thread of the row gets it.
  template <class Op, class Of>
  __device__ float reduce(const Of& of) {
    const Op op;
    float total = Op::kIdentity;
    for_each([&](std::int64_t, Vec<float, kWidth>& values) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total = op(total, of(values[j]));
    });
    if (blockDim.x == kWarp) return warp_reduce<Op>(total);
    // Two scratches take turns: while some threads still read one, others may write the other.
    float* scratch = reinterpret_cast<float*>(shared_memory()) + scratch_ * kWarp;
    scratch_ ^= 1;
    return block_reduce<Op>(total, scratch, static_cast<int>(blockDim.x));
  }

 private:
  static constexpr int kVectors = kInRegisters ? kHeld / kWidth : 1;

  __device__ static int column_of(int i) {
    return static_cast<int>(threadIdx.x + i * blockDim.x) * kWidth;
  }

  std::int64_t columns_;
  Load load_;
  int scratch_ = 0;
  Vec<float, kWidth> held_[kVectors];
};

template <int kWidth, bool kInRegisters, class Load>
__device__ __forceinline__ Row<kWidth, kInRegisters, Load> make_row(std::int64_t columns,
                                                                    const Load& load) {
  return {columns, load};
}

// Can rows that start at p be read and written 128 bits at a time? None can at null.
template <class T>
bool takes_vectors(const T* p, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(p) % sizeof(Vec<T, kVec<T>>) == 0 &&
         stride % kVec<T> == 0;
}

// Shape of a launch. A row has up to kMaxThreads threads.
template <int kMaxThreads = kMaxRowThreads>
LaunchShape row_shape(std::int64_t rows, std::int64_t columns, Stream stream) {
  const std::int64_t warps = (columns + kHeld * kWarp - 1) / (kHeld * kWarp);
  const auto threads = static_cast<unsigned>(std::min<std::int64_t>(kWarp * warps, kMaxThreads));
  const unsigned rows_per_block = threads == kWarp ? kWarpsPerBlock : 1;
  return {.grid = dim3(static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block)),
          .block = dim3(threads, rows_per_block),
          .shared_bytes = 2 * kWarp * sizeof(float),
          .stream = stream};
}

// run(width, in_registers): the integral constants that a row kernel of T is launched with.
template <class T, int kMaxThreads = kMaxRowThreads, class Run>
void with_row_form(bool vectors, std::int64_t columns, const Run& run) {
  const auto with_width = [&](auto width) {
    if (columns <= kHeld * kMaxThreads)
      run(width, std::true_type{});
    else
      run(width, std::false_type{});
  };
  if (vectors && columns % kVec<T> == 0)
    with_width(std::integral_constant<int, kVec<T>>{});
  else
    with_width(std::integral_constant<int, 1>{});
}

}  // namespace softgate::cuda
