// Eight lanes: AVX2 with FMA.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace softgate::cpu::SOFTGATE_ISA {

inline constexpr int kLanes = 8;

// 12 accumulators, two columns of B and two broadcasts of A fill the 16 registers.
inline constexpr int kPanel = 16;
inline constexpr int kTileRows = 6;

// Bytes of A that stay in L2 while panels pass, and depth of a panel slice that stays in L1.
inline constexpr std::int64_t kRowBlockBytes = 192 * 1024;
inline constexpr std::int64_t kSliceDepth = 384;

using vf = __m256;
using vm = __m256;  // sign bits

SG_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SG_INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
SG_INLINE vf load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
SG_INLINE void store(float* p, vf v) { _mm256_storeu_ps(p, v); }
SG_INLINE void store_n(float* p, vf v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
SG_INLINE void stream(float* p, vf v) { _mm256_stream_ps(p, v); }
SG_INLINE void stream_fence() { _mm_sfence(); }
SG_INLINE vf set1(float x) { return _mm256_set1_ps(x); }
SG_INLINE vf iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
SG_INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
SG_INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
SG_INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
SG_INLINE vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
SG_INLINE vf quotient(vf a, vf b) { return div(a, b); }
SG_INLINE vf reciprocal(vf b) { return div(set1(1.0f), b); }
SG_INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
SG_INLINE vf max(vf a, vf b) { return _mm256_max_ps(a, b); }
SG_INLINE vf min(vf a, vf b) { return _mm256_min_ps(a, b); }
SG_INLINE vf abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
SG_INLINE vf sqrt(vf a) { return _mm256_sqrt_ps(a); }
SG_INLINE vf round(vf a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SG_INLINE vf scale2(vf x, vf n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}
SG_INLINE vf pow2(vf n) {
  const vf biased = _mm256_add_ps(n, _mm256_set1_ps(kPow2Bias));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(biased), 23));
}
SG_INLINE vm is_nan(vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
SG_INLINE vm less(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
SG_INLINE vf select(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
SG_INLINE vm nonzero_bytes(const std::uint8_t* p, int n) {
  std::uint64_t bytes = 0;
  __builtin_memcpy(&bytes, p, static_cast<unsigned>(n));
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_setzero_si256()));
}
SG_INLINE float sum(vf v) {
  const __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
SG_INLINE float hmax(vf v) {
  const __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 b = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
SG_INLINE vf row_sums(vf (&rows)[8]) {
  vf halves[4];  // the 128-bit lanes of halves[i] belong to rows i and i + 4
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    halves[i] = add(_mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20),
                    _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
  const vf first = add(_mm256_shuffle_ps(halves[0], halves[1], 0x44),
                       _mm256_shuffle_ps(halves[0], halves[1], 0xee));
  const vf last = add(_mm256_shuffle_ps(halves[2], halves[3], 0x44),
                      _mm256_shuffle_ps(halves[2], halves[3], 0xee));
  return add(_mm256_shuffle_ps(first, last, 0x88), _mm256_shuffle_ps(first, last, 0xdd));
}
SG_INLINE void load_bfloat16(const std::uint32_t* p, vf& low, vf& high) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  low = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  high = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}

SG_INLINE vf load_half(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

using vi = __m256i;
using vw = __m256i;
using DotElement = std::int16_t;
inline constexpr int kDotDepth = 2;
inline constexpr int kDotOffset = 0;

SG_INLINE vi set1_int(std::int32_t x) { return _mm256_set1_epi32(x); }
SG_INLINE vi add(vi a, vi b) { return _mm256_add_epi32(a, b); }
SG_INLINE vi sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
SG_INLINE vi mul(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
SG_INLINE vi min(vi a, vi b) { return _mm256_min_epi32(a, b); }
SG_INLINE vf to_float(vi v) { return _mm256_cvtepi32_ps(v); }
SG_INLINE vi to_int(vf v) { return _mm256_cvtps_epi32(v); }
SG_INLINE vw load_wide(const std::uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
SG_INLINE void store_wide(std::uint8_t* p, vw v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
SG_INLINE vw load_weights(const std::uint8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
SG_INLINE void load_nibbles(const std::uint8_t* p, vw& low, vw& high) {
  const __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  low = _mm256_and_si256(pairs, _mm256_set1_epi16(15));
  high = _mm256_srli_epi16(pairs, 4);
}
SG_INLINE vi dot(vi sums, vw weights, const DotElement* x) {
  std::int32_t pair;
  __builtin_memcpy(&pair, x, sizeof pair);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(weights, _mm256_set1_epi32(pair)));
}
SG_INLINE void store_integers(DotElement* x, vf v) {
  const __m256i wide = to_int(v);
  const __m128i packed =
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), packed);
}
SG_INLINE void store_integers(DotElement* x, const vi (&v)[4]) {
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(v[i], v[i + 1]), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + i * kLanes), packed);
  }
}
SG_INLINE void transpose(vf (&rows)[8]) {
  vf pairs[8], quads[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
