// AMX tiles: eight registers of 16 rows by 64 bytes (Intel SDM vol. 1, chapter 18). One function an
// instruction; in emulated builds its plain meaning, but for denormals, which the hardware flushes.
#pragma once

#include "cpu/simd.h"

namespace softgate::cpu::SOFTGATE_ISA {

inline constexpr int kTileHeight = 16;
inline constexpr int kTileBytes = kTileHeight * 64;

struct TileShape {
  std::uint8_t rows;
  std::uint8_t bytes_per_row;
};
inline constexpr TileShape kWholeTile = {kTileHeight, 64};

#if defined(SOFTGATE_EMULATE_AVX512)

struct TileFile {
  TileShape shape[8];
  float tile[8][kTileHeight][16];
};
SG_INLINE TileFile& tile_file() {
  static thread_local TileFile file;
  return file;
}

SG_INLINE void tile_begin(const TileShape (&shapes)[8]) {
  __builtin_memcpy(tile_file().shape, shapes, sizeof shapes);
}
SG_INLINE void tile_end() {}

template <int T>
SG_INLINE void tile_zero() {
  __builtin_memset(tile_file().tile[T], 0, kTileBytes);
}
template <int T>
SG_INLINE void tile_load(const void* p, std::int64_t stride) {
  const TileShape shape = tile_file().shape[T];
  tile_zero<T>();
  for (int r = 0; r < shape.rows; ++r)
    __builtin_memcpy(tile_file().tile[T][r], static_cast<const char*>(p) + r * stride,
                     shape.bytes_per_row);
}
template <int T>
SG_INLINE void tile_store(void* p, std::int64_t stride) {
  const TileShape shape = tile_file().shape[T];
  for (int r = 0; r < shape.rows; ++r)
    __builtin_memcpy(static_cast<char*>(p) + r * stride, tile_file().tile[T][r],
                     shape.bytes_per_row);
}

SG_INLINE float bfloat16_at(const float* row, int i) {
  std::uint16_t half;
  __builtin_memcpy(&half, reinterpret_cast<const char*>(row) + 2 * i, 2);
  return __builtin_bit_cast(float, std::uint32_t{half} << 16);
}

inline std::int32_t byte_at(const float* row, int i, bool has_sign) {
  const auto byte = reinterpret_cast<const std::uint8_t*>(row)[i];
  return has_sign ? static_cast<std::int8_t>(byte) : byte;
}

template <int C, int A, int B, bool kHasSign>
SG_INLINE void tile_dot_bytes() {
  auto& t = tile_file().tile;
  for (int m = 0; m < kTileHeight; ++m)
    for (int n = 0; n < 16; ++n) {
      std::int32_t sum;
      __builtin_memcpy(&sum, &t[C][m][n], 4);
      for (int k = 0; k < 64; ++k)
        sum += byte_at(t[A][m], k, true) * byte_at(t[B][k / 4], 4 * n + k % 4, kHasSign);
      __builtin_memcpy(&t[C][m][n], &sum, 4);
    }
}

template <int C, int A, int B>
SG_INLINE void tile_dot_integers() {
  tile_dot_bytes<C, A, B, false>();
}
template <int C, int A, int B>
SG_INLINE void tile_dot_signed_integers() {
  tile_dot_bytes<C, A, B, true>();
}

template <int C, int A, int B>
SG_INLINE void tile_dot_bfloat16() {
  auto& t = tile_file().tile;
  for (int m = 0; m < kTileHeight; ++m)
    for (int n = 0; n < 16; ++n) {
      float even = 0.0f, odd = 0.0f;
      for (int k = 0; k < 16; ++k) {
        even += bfloat16_at(t[A][m], 2 * k) * bfloat16_at(t[B][k], 2 * n);
        odd += bfloat16_at(t[A][m], 2 * k + 1) * bfloat16_at(t[B][k], 2 * n + 1);
      }
      t[C][m][n] += even + odd;
    }
}

#else

// What a thread's tiles are until tile_end.
SG_INLINE void tile_begin(const TileShape (&shapes)[8]) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_per_row[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) {
    config.bytes_per_row[i] = shapes[i].bytes_per_row;
    config.rows[i] = shapes[i].rows;
  }
  static_assert(sizeof config == 64);
  asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
}
SG_INLINE void tile_end() { asm volatile("tilerelease" : : : "memory"); }

template <int T>
SG_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
SG_INLINE void tile_load(const void* p, std::int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
SG_INLINE void tile_store(void* p, std::int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(T) : "memory");
}

// TDPBSUD: C[m][n] += sum over k of A[m][k] B[k / 4][4 n + k % 4], A with a sign, B without.
template <int C, int A, int B>
SG_INLINE void tile_dot_integers() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// TDPBSSD: the same, both with a sign.
template <int C, int A, int B>
SG_INLINE void tile_dot_signed_integers() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// TDPBF16PS: C[m][n] += sum over k of A[m][2k] B[k][2n] + A[m][2k + 1] B[k][2n + 1].
template <int C, int A, int B>
SG_INLINE void tile_dot_bfloat16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#endif

// All tiles whole.
SG_INLINE void tile_begin() {
  tile_begin({kWholeTile, kWholeTile, kWholeTile, kWholeTile, kWholeTile, kWholeTile, kWholeTile,
              kWholeTile});
}

// Tiles 0 to 3: the sums of one tile of rows, or two, times both halves of a panel, which lie as
// [rows, kPanel].
inline constexpr std::int64_t kSumsStride = kPanel * 4;

template <int RowTiles>
SG_INLINE void clear_sums() {
  tile_zero<0>();
  tile_zero<1>();
  if constexpr (RowTiles == 2) {
    tile_zero<2>();
    tile_zero<3>();
  }
}

template <int RowTiles>
SG_INLINE void load_sums(const float* p) {
  tile_load<0>(p, kSumsStride);
  tile_load<1>(p + kLanes, kSumsStride);
  if constexpr (RowTiles == 2) {
    tile_load<2>(p + kTileHeight * kPanel, kSumsStride);
    tile_load<3>(p + kTileHeight * kPanel + kLanes, kSumsStride);
  }
}

template <int RowTiles>
SG_INLINE void store_sums(float* p) {
  tile_store<0>(p, kSumsStride);
  tile_store<1>(p + kLanes, kSumsStride);
  if constexpr (RowTiles == 2) {
    tile_store<2>(p + kTileHeight * kPanel, kSumsStride);
    tile_store<3>(p + kTileHeight * kPanel + kLanes, kSumsStride);
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
