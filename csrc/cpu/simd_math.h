// Elementary functions on vectors, to a few units in the last place of float32.
#pragma once

#include "cpu/simd.h"

namespace softgate::cpu::SOFTGATE_ISA {

// e^x. Below -87.3 the result is 0 (denormals are flushed), above 88.7 +inf; NaN stays NaN.
SG_INLINE vf exp(vf x) {
  const vf lowest = set1(-87.33654f);    // log of the smallest normal number
  const vf highest = set1(88.7228317f);  // log of the largest
  // Reduced to r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2]; a minimax polynomial of degree 6 there.
  const vf bounded = max(lowest, x);
  const vf n = round(mul(bounded, set1(1.44269504f)));
  const vf r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), bounded));
  vf p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(mul(r, r), p, add(r, set1(1.0f)));
  const vf finite = select(less(x, lowest), zero(), scale2(p, n));
  return select(less(highest, x), set1(__builtin_inff()), finite);
}

// e^x for x <= 0, in fewer steps: exactly 0 below -88; NaN stays NaN. Several vectors at once, as
// one waits long for its own steps.
template <int N>
SG_INLINE void exp_nonpositive(vf (&x)[N]) {
  // 2^r on [-1/2, 1/2], minimax.
  constexpr float kCoefficients[] = {
      1.5345811e-4f, 1.33999321e-3f, 9.61848907e-3f, 5.55032864e-2f, 2.40226462e-1f, 6.93147182e-1f,
      1.0f};
  vf n[N], p[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = max(set1(-127.0f), mul(x[i], set1(1.44269504f)));
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) n[i] = round(x[i]);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = sub(x[i], n[i]);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) p[i] = set1(kCoefficients[0]);
#pragma GCC unroll 16
  for (int k = 1; k < 7; ++k) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) p[i] = fma(p[i], x[i], set1(kCoefficients[k]));
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = mul(p[i], pow2(n[i]));
}

SG_INLINE vf exp_nonpositive(vf x) {
  vf one[] = {x};
  exp_nonpositive(one);
  return one[0];
}

// 2^x = scale * (1 + excess), for x in [-125, 125], without rounding to 1 what is close to it. x
// becomes the excess.
template <int N>
SG_INLINE void split_pow2(vf (&x)[N], vf (&scale)[N]) {
  // (2^r - 1) / r on [-1/2, 1/2], minimax.
  constexpr float kCoefficients[] = {1.54035122e-4f, 1.33907353e-3f, 9.61823761e-3f,
                                     5.55035733e-2f, 2.40226492e-1f, 6.93147182e-1f};
  vf p[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) scale[i] = round(x[i]);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = sub(x[i], scale[i]);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) p[i] = set1(kCoefficients[0]);
#pragma GCC unroll 16
  for (int k = 1; k < 6; ++k) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) p[i] = fma(p[i], x[i], set1(kCoefficients[k]));
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = mul(p[i], x[i]);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) scale[i] = pow2(scale[i]);
}

template <int N>
SG_INLINE void quotient(vf (&a)[N], const vf (&b)[N]) {
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) a[i] = quotient(a[i], b[i]);
}

// 1 / (1 + e^-x), in [0, 1]; nothing cancels. Several vectors at once, as in exp_nonpositive.
template <int N>
SG_INLINE void sigmoid(vf (&x)[N]) {
  vf scale[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    const vf y = mul(x[i], set1(-1.44269504f));
    x[i] = max(set1(-125.0f), min(set1(125.0f), y));
  }
  split_pow2(x, scale);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) scale[i] = add(fma(scale[i], x[i], scale[i]), set1(1.0f));
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = set1(1.0f);
  quotient(x, scale);
}

// (e^2x - 1) / (e^2x + 1), with e^2x - 1 to relative accuracy.
template <int N>
SG_INLINE void tanh(vf (&x)[N]) {
  vf scale[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    const vf y = mul(x[i], set1(2.0f * 1.44269504f));
    x[i] = max(set1(-30.0f), min(set1(30.0f), y));
  }
  split_pow2(x, scale);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = fma(scale[i], x[i], sub(scale[i], set1(1.0f)));
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) scale[i] = add(x[i], set1(2.0f));
  quotient(x, scale);
}

SG_INLINE vf tanh(vf x) {
  vf one[] = {x};
  tanh(one);
  return one[0];
}

}  // namespace softgate::cpu::SOFTGATE_ISA
