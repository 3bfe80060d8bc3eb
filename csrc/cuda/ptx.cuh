// One wrapper per PTX instruction, named after it; beside each, under SOFTGATE_SIMT, its meaning in
// plain C++. Sections are those of the PTX ISA 9.0 reference. What an architecture lacks is hidden
// here: before 8.0 m16n8k16 is two m16n8k8, m16n8k32 of integers dot products, an asynchronous copy
// a plain one, and a bf16 product traps (launchers refuse it first).
#pragma once

#include <cstdint>

#include "core/half.h"
#include "cuda/kernel.cuh"
#ifdef SOFTGATE_SIMT
#include <cmath>
#include <cstring>
#include <limits>
#endif

namespace softgate::cuda::ptx {

// Four registers of two 16-bit elements each, the lower half the element of the lower index.
struct Fragment {
  std::uint32_t x[4];
};

#ifdef SOFTGATE_SIMT

namespace meaning {

template <class T>
float element(const std::uint32_t* registers, int i) {
  const auto bits = static_cast<std::uint16_t>(registers[i / 2] >> i % 2 * 16);
  return static_cast<float>(T::from_bits(bits));
}

struct MmaOperands {
  float c[4];
  std::uint32_t a[4], b[2];
};
struct Accumulators {
  float x[4];
};

// "Matrix Fragments for mma.m16n8k16 with floating point type": with group = lane / 4 and
// pair = lane % 4,
//   A: element i in row group + 8 * (i / 2 % 2), column 2 * pair + i % 2 + 8 * (i / 4)
//   B: element i in row 2 * pair + i % 2 + 8 * (i / 2), column group
//   C: element i in row group + 8 * (i / 2), column 2 * pair + i % 2
template <class T>
void mma_m16n8k16(const MmaOperands (&lanes)[32], Accumulators (&results)[32]) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 8; ++i)
      a[group + 8 * (i / 2 % 2)][2 * pair + i % 2 + 8 * (i / 4)] = element<T>(lanes[lane].a, i);
    for (int i = 0; i < 4; ++i)
      b[2 * pair + i % 2 + 8 * (i / 2)][group] = element<T>(lanes[lane].b, i);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      float sum = lanes[lane].c[i];
      for (int k = 0; k < 16; ++k) sum = std::fma(a[row][k], b[k][column], sum);
      results[lane].x[i] = sum;
    }
}

struct IntegerOperands {
  std::int32_t c[4];
  std::uint32_t a[4], b[2];
};
struct IntegerAccumulators {
  std::int32_t x[4];
};

// "Matrix Fragments for mma.m16n8k32" of .s8: registers hold four elements, the lowest byte that of
// the lowest index; with group = lane / 4 and quad = lane % 4,
//   A: element i in row group + 8 * (i / 4 % 2), column 4 * quad + i % 4 + 16 * (i / 8)
//   B: element i in row 4 * quad + i % 4 + 16 * (i / 4), column group
//   C: as m16n8k16
inline void mma_m16n8k32(const IntegerOperands (&lanes)[32], IntegerAccumulators (&results)[32]) {
  const auto byte = [](const std::uint32_t* registers, int i) {
    return static_cast<std::int8_t>(registers[i / 4] >> i % 4 * 8);
  };
  std::int8_t a[16][32], b[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, quad = lane % 4;
    for (int i = 0; i < 16; ++i)
      a[group + 8 * (i / 4 % 2)][4 * quad + i % 4 + 16 * (i / 8)] = byte(lanes[lane].a, i);
    for (int i = 0; i < 8; ++i) b[4 * quad + i % 4 + 16 * (i / 4)][group] = byte(lanes[lane].b, i);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      std::int32_t sum = lanes[lane].c[i];
      for (int k = 0; k < 32; ++k) sum += a[row][k] * b[k][column];
      results[lane].x[i] = sum;
    }
}

struct RowAddress {
  const void* row;
};

// "Warp-level matrix load instruction: ldmatrix": lane 8 i + r addresses row r of matrix i, and
// receives of each matrix elements 2 * pair and 2 * pair + 1 of row group, or, transposed, of
// column group.
template <bool kTransposed>
void ldmatrix_x4(const RowAddress (&lanes)[32], Fragment (&results)[32]) {
  for (int i = 0; i < 4; ++i) {
    std::uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], lanes[8 * i + r].row, sizeof matrix[r]);
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, pair = lane % 4;
      const std::uint32_t low = kTransposed ? matrix[2 * pair][group] : matrix[group][2 * pair];
      const std::uint32_t high =
          kTransposed ? matrix[2 * pair + 1][group] : matrix[group][2 * pair + 1];
      results[lane].x[i] = low | high << 16;
    }
  }
}

inline float flush_denormal(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

}  // namespace meaning

#else

__device__ __forceinline__ std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

#endif

// d += a b: 16 x 8 += 16 x 16 times 16 x 8. Layouts at meaning::mma_m16n8k16.
__device__ __forceinline__ void mma_m16n8k16_f32_f16(float (&d)[4], const Fragment& a,
                                                     std::uint32_t b0, std::uint32_t b1) {
#ifdef SOFTGATE_SIMT
  const auto sum = simt::warp_collective<meaning::MmaOperands, meaning::Accumulators>(
      "mma_m16n8k16_f32_f16",
      {{d[0], d[1], d[2], d[3]}, {a.x[0], a.x[1], a.x[2], a.x[3]}, {b0, b1}},
      meaning::mma_m16n8k16<half>);
  for (int i = 0; i < 4; ++i) d[i] = sum.x[i];
#elif __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
#else
  // "Matrix Fragments for mma.m16n8k8": A's registers are the first two of m16n8k16's, or the last
  // two for the upper half of k.
  const std::uint32_t b[2] = {b0, b1};
  for (int i = 0; i < 2; ++i)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x[2 * i]), "r"(a.x[2 * i + 1]), "r"(b[i]));
#endif
}

// As mma_m16n8k16_f32_f16, of bf16.
__device__ __forceinline__ void mma_m16n8k16_f32_bf16(float (&d)[4], const Fragment& a,
                                                      std::uint32_t b0, std::uint32_t b1) {
#ifdef SOFTGATE_SIMT
  const auto sum = simt::warp_collective<meaning::MmaOperands, meaning::Accumulators>(
      "mma_m16n8k16_f32_bf16",
      {{d[0], d[1], d[2], d[3]}, {a.x[0], a.x[1], a.x[2], a.x[3]}, {b0, b1}},
      meaning::mma_m16n8k16<bfloat16>);
  for (int i = 0; i < 4; ++i) d[i] = sum.x[i];
#elif __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
#else
  asm volatile("trap;");
#endif
}

// d += a b in 8-bit integers: 16 x 8 += 16 x 32 times 32 x 8. Layouts at meaning::mma_m16n8k32.
__device__ __forceinline__ void mma_m16n8k32_s32_s8(std::int32_t (&d)[4], const Fragment& a,
                                                    std::uint32_t b0, std::uint32_t b1) {
#ifdef SOFTGATE_SIMT
  const auto sum = simt::warp_collective<meaning::IntegerOperands, meaning::IntegerAccumulators>(
      "mma_m16n8k32_s32_s8", {{d[0], d[1], d[2], d[3]}, {a.x[0], a.x[1], a.x[2], a.x[3]}, {b0, b1}},
      meaning::mma_m16n8k32);
  for (int i = 0; i < 4; ++i) d[i] = sum.x[i];
#elif __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
#else
  // By dot products of four: from the lanes of this lane's rows of a and columns of b.
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int quad = 0; quad < 4; ++quad) {
    const int of_row = lane / 4 * 4 + quad, of_column = lane % 4 * 8 + quad;
    for (int upper = 0; upper < 2; ++upper) {
      const std::uint32_t b = upper ? b1 : b0;
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t row = __shfl_sync(kFullMask, a.x[2 * upper + i / 2], of_row);
        const std::uint32_t column = __shfl_sync(kFullMask, b, of_column + i % 2 * 4);
        d[i] = __dp4a(static_cast<int>(row), static_cast<int>(column), d[i]);
      }
    }
  }
#endif
}

// Four 8 x 8 matrices of 16-bit elements; `row` is the shared address of this lane's row of 16
// bytes. Layout at meaning::ldmatrix_x4.
__device__ __forceinline__ Fragment ldmatrix_x4(const void* row) {
#ifdef SOFTGATE_SIMT
  return simt::warp_collective<meaning::RowAddress, Fragment>("ldmatrix_x4", {row},
                                                              meaning::ldmatrix_x4<false>);
#else
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
#endif
}

__device__ __forceinline__ Fragment ldmatrix_x4_trans(const void* row) {
#ifdef SOFTGATE_SIMT
  return simt::warp_collective<meaning::RowAddress, Fragment>("ldmatrix_x4_trans", {row},
                                                              meaning::ldmatrix_x4<true>);
#else
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
#endif
}

// 16 bytes of shared memory, aligned to 16. nvcc may split a plain load of so many into words,
// which lanes side by side then read with bank conflicts.
__device__ __forceinline__ uint4 ld_shared_v4_u32(const void* shared) {
#ifdef SOFTGATE_SIMT
  return *static_cast<const uint4*>(shared);
#else
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(shared_address(shared))
               : "memory");
  return words;
#endif
}

// As ld_shared_v4_u32, of 8 bytes, aligned to 8.
__device__ __forceinline__ uint2 ld_shared_v2_u32(const void* shared) {
#ifdef SOFTGATE_SIMT
  return *static_cast<const uint2*>(shared);
#else
  uint2 words;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
               : "=r"(words.x), "=r"(words.y)
               : "r"(shared_address(shared))
               : "memory");
  return words;
#endif
}

// Of global memory that nobody writes during the launch, likewise in one piece.
__device__ __forceinline__ uint4 ld_global_nc_v4_u32(const void* global) {
#ifdef SOFTGATE_SIMT
  return *static_cast<const uint4*>(global);
#else
  uint4 words;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
      : "l"(__cvta_generic_to_global(global)));
  return words;
#endif
}

__device__ __forceinline__ uint2 ld_global_nc_v2_u32(const void* global) {
#ifdef SOFTGATE_SIMT
  return *static_cast<const uint2*>(global);
#else
  uint2 words;
  asm("ld.global.nc.v2.u32 {%0, %1}, [%2];"
      : "=r"(words.x), "=r"(words.y)
      : "l"(__cvta_generic_to_global(global)));
  return words;
#endif
}

// 16 bytes, both sides aligned to 16; source_bytes of them are read, the others become zero
// ("Data Movement and Conversion Instructions: cp.async").
__device__ __forceinline__ void cp_async_16(void* shared, const void* global,
                                            std::uint32_t source_bytes = 16) {
#ifdef SOFTGATE_SIMT
  simt::async_copy(shared, global, 16, source_bytes);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
#else
  *static_cast<uint4*>(shared) =
      source_bytes == 16 ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#ifdef SOFTGATE_SIMT
  simt::async_commit();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kGroups of this thread's latest groups are under way.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait() {
#ifdef SOFTGATE_SIMT
  simt::async_wait(kGroups);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// 2 to the x within 2^-22, denormals flushed ("Floating Point Instructions: ex2").
__device__ __forceinline__ float ex2_approx_ftz(float x) {
#ifdef SOFTGATE_SIMT
  return meaning::flush_denormal(std::exp2(meaning::flush_denormal(x)));
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Two floats rounded to nearest even in one register.
__device__ __forceinline__ std::uint32_t cvt_rn_f16x2(float low, float high) {
#ifdef SOFTGATE_SIMT
  return half(low).bits | std::uint32_t{half(high).bits} << 16;
#elif __CUDA_ARCH__ >= 800
  std::uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  std::uint32_t packed;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.f16.f32 low, %1;\n"
      "cvt.rn.f16.f32 high, %2;\n"
      "mov.b32 %0, {low, high};\n"
      "}"
      : "=r"(packed)
      : "f"(low), "f"(high));
  return packed;
#endif
}

__device__ __forceinline__ std::uint32_t cvt_rn_bf16x2(float low, float high) {
#if defined(SOFTGATE_SIMT) || __CUDA_ARCH__ < 800
  return bfloat16(low).bits | std::uint32_t{bfloat16(high).bits} << 16;
#else
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#endif
}

}  // namespace softgate::cuda::ptx
