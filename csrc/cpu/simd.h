// One SIMD interface; simd_<isa>.h gives its meaning. Vectors hold kLanes floats.
//
//   load, load_n, store, store_n   unaligned; the _n forms touch only the first n in [0, kLanes]
//                                  lanes (load_n fills the others with zero)
//   stream, stream_fence           a store past the caches, p aligned to a vector; the fence orders
//   it
//                                  before what the thread does next
//   set1 add sub mul div fma(a, b, c) = a * b + c, abs, sqrt
//   reciprocal(b)                  1 / b, as quotient
//   quotient(a, b)                 a / b to one unit in the last place, for b in [1, 2^126)
//   max, min                       return b when either operand is NaN
//   round                          to nearest even
//   scale2(x, n)                   x * 2^n for integral n, where x and the result are normal
//   pow2(n)                        2^n for integral n in [-126, 127], 0 for n = -127
//   is_nan(a), less(a, b)          masks; comparisons with NaN are unset
//   select(mask, a, b)             a where mask is set
//   nonzero_bytes(p, n)            mask of p[i] != 0; lanes from n on are unset
//   iota()                         0, 1, 2, ...
//   sum, hmax                      over all lanes, in a fixed order
//   transpose(rows)                of kLanes vectors
//   row_sums(rows)                 sum(rows[i]) in lane i, of kLanes vectors
//   load_bfloat16(p, low, high)    2 * kLanes values from words that hold value i in the lower half
//                                  and value i + kLanes in the upper one
//
//   load_half(p)                   kLanes binary16 values
//
// Products of 8-bit integers: vi holds kLanes 32-bit sums, vw kDotDepth weights for each of them.
//   load_weights(p)                from bytes, stored plus kDotOffset
//   load_nibbles(p, low, high)     from two weights a byte, without offset
//   load_wide, store_wide          a vw as it is
//   dot(sums, weights, x)          adds to each lane kDotDepth products of its own weights with the
//                                  same kDotDepth elements x
//   store_integers(x, v)           integral floats of magnitude at most 127; any integer for NaN
//   store_integers(x, v[4])        four vectors of integers that an element holds
//   set1_int, to_float(vi), to_int(vf) to nearest even, any integer for NaN; a vi is a vw
//   add(vi, vi), sub(vi, vi), mul(vi, vi), min(vi, vi)
#pragma once

#include <cstdint>

#define SG_INLINE [[gnu::always_inline]] static inline

namespace softgate::cpu::SOFTGATE_ISA {

// n + kPow2Bias, for n in [-127, 127], holds n's biased exponent in its lowest bits.
inline constexpr float kPow2Bias = 8388608.0f + 127.0f;

}  // namespace softgate::cpu::SOFTGATE_ISA

#if defined(SOFTGATE_ISA_AVX512)
#include "cpu/simd_avx512.h"
#elif defined(SOFTGATE_ISA_AVX2)
#include "cpu/simd_avx2.h"
#else
#include "cpu/simd_generic.h"
#endif

namespace softgate::cpu::SOFTGATE_ISA {

SG_INLINE vf zero() { return set1(0.0f); }

SG_INLINE std::int64_t min_int(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
SG_INLINE std::int64_t max_int(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
SG_INLINE std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace softgate::cpu::SOFTGATE_ISA
