// Sixteen lanes: AVX-512 F, BW, DQ, VL.
#pragma once

#if defined(SOFTGATE_EMULATE_AVX512)
#include "cpu/emulated_avx512.h"
#else
// GCC 12 takes the undefined operands of its own intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include <cstdint>

namespace softgate::cpu::SOFTGATE_ISA {

inline constexpr int kLanes = 16;

// 28 accumulators, two columns of B and a broadcast of A out of 32 registers.
inline constexpr int kPanel = 32;
inline constexpr int kTileRows = 14;

// Bytes of A that stay in L2 while panels pass, and depth of a panel slice that stays in L1.
inline constexpr std::int64_t kRowBlockBytes = 512 * 1024;
inline constexpr std::int64_t kSliceDepth = 256;

using vf = __m512;
using vm = __mmask16;

SG_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
SG_INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
SG_INLINE vf load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
SG_INLINE void store(float* p, vf v) { _mm512_storeu_ps(p, v); }
SG_INLINE void store_n(float* p, vf v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
SG_INLINE void stream(float* p, vf v) { _mm512_stream_ps(p, v); }
SG_INLINE void stream_fence() { _mm_sfence(); }
SG_INLINE vf set1(float x) { return _mm512_set1_ps(x); }
SG_INLINE vf iota() { return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
SG_INLINE vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
SG_INLINE vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
SG_INLINE vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
SG_INLINE vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
// One step of Newton's on an estimate of 1 / b: a division takes several times as long.
SG_INLINE vf reciprocal(vf b) {
  const vf r = _mm512_rcp14_ps(b);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(b, r, set1(1.0f)), r, r);
}
SG_INLINE vf quotient(vf a, vf b) {
  const vf r = _mm512_rcp14_ps(b);
  const vf q = _mm512_mul_ps(a, r);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(q, b, a), r, q);
}
SG_INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
SG_INLINE vf max(vf a, vf b) { return _mm512_max_ps(a, b); }
SG_INLINE vf min(vf a, vf b) { return _mm512_min_ps(a, b); }
SG_INLINE vf abs(vf a) { return _mm512_abs_ps(a); }
SG_INLINE vf sqrt(vf a) { return _mm512_sqrt_ps(a); }
SG_INLINE vf round(vf a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SG_INLINE vf scale2(vf x, vf n) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
}
SG_INLINE vf pow2(vf n) {
  const vf biased = _mm512_add_ps(n, _mm512_set1_ps(kPow2Bias));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(biased), 23));
}
SG_INLINE vm is_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
SG_INLINE vm less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
SG_INLINE vf select(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
SG_INLINE vm nonzero_bytes(const std::uint8_t* p, int n) {
  std::uint8_t bytes[16] = {};
  __builtin_memcpy(bytes, p, static_cast<unsigned>(n));
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return static_cast<vm>(~_mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_setzero_si128())));
}
SG_INLINE __m256 low_half(vf v) { return _mm512_castps512_ps256(v); }
SG_INLINE __m256 high_half(vf v) {
  return _mm512_castps512_ps256(_mm512_shuffle_f32x4(v, v, 0x4e));
}
SG_INLINE float sum(vf v) {
  const __m256 c = _mm256_add_ps(low_half(v), high_half(v));
  const __m128 a = _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
  const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
SG_INLINE float hmax(vf v) {
  const __m256 c = _mm256_max_ps(low_half(v), high_half(v));
  const __m128 a = _mm_max_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
  const __m128 b = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
SG_INLINE vf row_sums(vf (&rows)[16]) {
  vf halves[8], quarters[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const int row = i < 4 ? i : i + 4;
    halves[i] = add(_mm512_shuffle_f32x4(rows[row], rows[row + 4], 0x44),
                    _mm512_shuffle_f32x4(rows[row], rows[row + 4], 0xee));
  }
  // The 128-bit lanes of quarters[i] belong to rows i, i + 4, i + 8 and i + 12.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    quarters[i] = add(_mm512_shuffle_f32x4(halves[i], halves[i + 4], 0x88),
                      _mm512_shuffle_f32x4(halves[i], halves[i + 4], 0xdd));
  const vf even = add(_mm512_shuffle_ps(quarters[0], quarters[1], 0x44),
                      _mm512_shuffle_ps(quarters[0], quarters[1], 0xee));
  const vf odd = add(_mm512_shuffle_ps(quarters[2], quarters[3], 0x44),
                     _mm512_shuffle_ps(quarters[2], quarters[3], 0xee));
  return add(_mm512_shuffle_ps(even, odd, 0x88), _mm512_shuffle_ps(even, odd, 0xdd));
}
SG_INLINE void load_bfloat16(const std::uint32_t* p, vf& low, vf& high) {
  const __m512i pairs = _mm512_loadu_si512(p);
  low = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  high = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}

SG_INLINE vf load_half(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

using vi = __m512i;
using vw = __m512i;
using DotElement = std::int8_t;
inline constexpr int kDotDepth = 4;
inline constexpr int kDotOffset = 128;  // vpdpbusd takes unsigned with signed

SG_INLINE vi set1_int(std::int32_t x) { return _mm512_set1_epi32(x); }
SG_INLINE vi add(vi a, vi b) { return _mm512_add_epi32(a, b); }
SG_INLINE vi sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
SG_INLINE vi mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
SG_INLINE vi min(vi a, vi b) { return _mm512_min_epi32(a, b); }
SG_INLINE vf to_float(vi v) { return _mm512_cvtepi32_ps(v); }
SG_INLINE vi to_int(vf v) { return _mm512_cvtps_epi32(v); }
SG_INLINE vw load_wide(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
SG_INLINE void store_wide(std::uint8_t* p, vw v) { _mm512_storeu_si512(p, v); }
SG_INLINE vw load_weights(const std::uint8_t* p) { return load_wide(p); }
SG_INLINE void load_nibbles(const std::uint8_t* p, vw& low, vw& high) {
  const __m512i pairs = load_wide(p), mask = _mm512_set1_epi8(15);
  low = _mm512_and_si512(pairs, mask);
  high = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), mask);
}
SG_INLINE vi dot(vi sums, vw weights, const DotElement* x) {
  std::int32_t quad;
  __builtin_memcpy(&quad, x, sizeof quad);
  return _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(quad));
}
SG_INLINE void store_integers(DotElement* x, vf v) {
  const __m128i bytes = _mm512_cvtepi32_epi8(to_int(v));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), bytes);
}
SG_INLINE void store_integers(DotElement* x, const vi (&v)[4]) {
  // Packed within lanes of 128 bits: [lane][vector] quads, to be brought into the vectors' order.
  const __m512i bytes =
      _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(x, _mm512_permutexvar_epi32(order, bytes));
}
SG_INLINE void transpose(vf (&rows)[16]) {
  vf pairs[16], quads[16], octets[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  // quads[i + c] holds column c of each 128-bit lane, for rows i to i + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  // Lanes 0, 2 and 1, 3 of two groups of rows side by side.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    octets[i] = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0x88);
    octets[i + 4] = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0xdd);
    octets[i + 8] = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0x88);
    octets[i + 12] = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    rows[i] = _mm512_shuffle_f32x4(octets[i], octets[i + 8], 0x88);
    rows[i + 8] = _mm512_shuffle_f32x4(octets[i], octets[i + 8], 0xdd);
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
