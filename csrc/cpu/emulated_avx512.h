// Test builds: AVX-512 through SIMDe on any x86 CPU, with the intrinsics that SIMDe lacks. They are
// not inlined: a compiler takes minutes over kernels unrolled for real ones.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#define _mm512_cvtepi32_ps softgate_cvtepi32_ps
#define _mm512_cvtepi32_epi8 softgate_cvtepi32_epi8
#define _mm512_cvtph_ps softgate_cvtph_ps
#define _mm512_cvtps_epi32 softgate_cvtps_epi32
#define _mm512_mask_storeu_ps softgate_mask_storeu_ps
#define _mm512_maskz_loadu_ps softgate_maskz_loadu_ps
#define _mm512_rcp14_ps(v) simde_mm512_div_ps(simde_mm512_set1_ps(1.0f), v)
#define _mm512_shuffle_f32x4 simde_mm512_shuffle_f32x4
#define _mm512_stream_ps simde_mm512_store_ps

[[gnu::noinline, maybe_unused]] static __m512 softgate_cvtepi32_ps(__m512i v) {
  int from[16];
  float to[16];
  simde_mm512_storeu_si512(from, v);
  for (int i = 0; i < 16; ++i) to[i] = static_cast<float>(from[i]);
  return simde_mm512_loadu_ps(to);
}

[[gnu::noinline, maybe_unused]] static __m128i softgate_cvtepi32_epi8(__m512i v) {
  int from[16];
  signed char to[16];
  simde_mm512_storeu_si512(from, v);
  for (int i = 0; i < 16; ++i) to[i] = static_cast<signed char>(from[i]);
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(to));
}

[[gnu::noinline, maybe_unused]] static __m512 softgate_cvtph_ps(__m256i v) {
  float lanes[16];
  _mm256_storeu_ps(lanes, _mm256_cvtph_ps(_mm256_castsi256_si128(v)));
  _mm256_storeu_ps(lanes + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)));
  return simde_mm512_loadu_ps(lanes);
}

[[gnu::noinline, maybe_unused]] static __m512i softgate_cvtps_epi32(__m512 v) {
  float from[16];
  int to[16];
  simde_mm512_storeu_ps(from, v);
  for (int i = 0; i < 16; ++i) to[i] = _mm_cvtss_si32(_mm_set_ss(from[i]));
  return simde_mm512_loadu_si512(to);
}

[[gnu::noinline, maybe_unused]] static __m512 softgate_maskz_loadu_ps(__mmask16 mask,
                                                                      const float* p) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = mask >> i & 1 ? p[i] : 0.0f;
  return simde_mm512_loadu_ps(lanes);
}

[[gnu::noinline, maybe_unused]] static void softgate_mask_storeu_ps(float* p, __mmask16 mask,
                                                                    __m512 v) {
  float lanes[16];
  simde_mm512_storeu_ps(lanes, v);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) p[i] = lanes[i];
}
