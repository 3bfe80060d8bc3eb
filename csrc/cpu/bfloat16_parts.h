// A float as the sum of three bfloat16, which AMX multiplies an order of magnitude faster than
// AVX-512 multiplies floats.
//
//   x = high + middle + low, exactly: 24 bits of significand are 8 + 8 + 8, each part rounded to
//   nearest
//   x y ~ high high' + high middle' + middle high' + middle middle' + high low' + low high'
//
// The three products left out are below 2^-24 of the whole and of either sign; weights stored in 16
// bits have fewer parts, and leave fewer out. Sums are float, in blocks of 32: the error is smaller
// than that of one chain of fused multiply-adds. What it takes: a row of x and of the weight, as a
// whole, stays between the bounds below; the hardware flushes parts and products under 2^-126.
#pragma once

#include "cpu/simd.h"

namespace softgate::cpu::SOFTGATE_ISA {

inline constexpr int kParts = 3;

// Below, reading or splitting the weights takes longer than fused multiply-adds.
inline constexpr std::int64_t kMinSplitRows = 16;

// Bits of |x|, for the largest of a row: zero, or from 2^-100 to below 2^127.
inline constexpr std::uint32_t kSmallestSplit = (127u - 100u) << 23;
inline constexpr std::uint32_t kLargestSplit = 254u << 23;

SG_INLINE bool can_split(std::uint32_t largest) {
  return largest == 0 || (largest >= kSmallestSplit && largest < kLargestSplit);
}

using vu = __m512i;  // of 16-bit words or the bits of floats

SG_INLINE std::uint32_t largest_word(vu v) {
  alignas(64) std::uint32_t words[kLanes];
  _mm512_store_si512(words, v);
  std::uint32_t largest = 0;
  for (const std::uint32_t word : words) largest = word > largest ? word : largest;
  return largest;
}

// The nearest bfloat16, as a float's bits.
SG_INLINE vu to_bfloat16(vf x) {
  const vu rounded = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  return _mm512_and_si512(rounded, _mm512_set1_epi32(-65536));
}

// Words b[0] a[0] b[1] a[1] ..., from the upper halves: two rows of B, as TDPBF16PS wants them.
struct Interleaved {
  [[gnu::always_inline]] static inline vu join(vu a, vu b) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b);
  }
};
// Words a[0] a[1] ... b[0] b[1] ...: a row of A.
struct Consecutive {
  [[gnu::always_inline]] static inline vu join(vu a, vu b) {
    alignas(64) static constexpr std::uint16_t kUpper[32] = {
        1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_permutex2var_epi16(a, _mm512_load_si512(kUpper), b);
  }
};

// The first Parts parts of 32 floats, at p, p + distance, ...
template <class Order, int Parts>
SG_INLINE void split(vf a, vf b, std::uint16_t* p, std::int64_t distance) {
#pragma GCC unroll 2
  for (int part = 0; part < Parts - 1; ++part) {
    const vu a_part = to_bfloat16(a), b_part = to_bfloat16(b);
    _mm512_store_si512(p + part * distance, Order::join(a_part, b_part));
    a = sub(a, _mm512_castsi512_ps(a_part));
    b = sub(b, _mm512_castsi512_ps(b_part));
  }
  // What is left has at most eight bits.
  _mm512_store_si512(p + (Parts - 1) * distance,
                     Order::join(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

}  // namespace softgate::cpu::SOFTGATE_ISA
