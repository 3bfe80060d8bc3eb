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

// e^x - 1 for x in [-ln 2 / 2, ln 2 / 2], to relative accuracy. Several vectors at once, as above.
template <int N>
SG_INLINE void exp_minus_1(vf (&x)[N]) {
  // Times x: minimax.
  constexpr float kCoefficients[] = {1.38825167e-03f, 8.36654752e-03f, 4.16672006e-02f,
                                     1.66665435e-01f, 4.99999970e-01f, 1.0f};
  vf p[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) p[i] = set1(kCoefficients[0]);
#pragma GCC unroll 16
  for (int k = 1; k < 6; ++k) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) p[i] = fma(p[i], x[i], set1(kCoefficients[k]));
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = mul(p[i], x[i]);
}

// e^x / (1 + e^x), to relative accuracy: nothing cancels. Exactly 0 below -88.
template <int N>
SG_INLINE void sigmoid(vf (&x)[N]) {
  vf n[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = max(set1(-88.029f), min(set1(20.0f), x[i]));
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) n[i] = round(mul(x[i], set1(1.44269504f)));
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i)  // ln 2 in two parts, the first exact times n
    x[i] = fma(n[i], set1(2.12194440e-4f), fma(n[i], set1(-0.693359375f), x[i]));
  exp_minus_1(x);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    const vf scale = pow2(n[i]);
    x[i] = fma(scale, x[i], scale);
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = quotient(x[i], add(x[i], set1(1.0f)));
}

// (e^2x - 1) / (e^2x + 1), to relative accuracy.
template <int N>
SG_INLINE void tanh(vf (&x)[N]) {
  vf n[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = max(set1(-20.0f), min(set1(20.0f), add(x[i], x[i])));
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) n[i] = round(mul(x[i], set1(1.44269504f)));
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = fma(n[i], set1(-0.693147181f), x[i]);
  exp_minus_1(x);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    const vf scale = pow2(n[i]);
    x[i] = fma(scale, x[i], sub(scale, set1(1.0f)));
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = quotient(x[i], add(x[i], set1(2.0f)));
}

SG_INLINE vf tanh(vf x) {
  vf one[] = {x};
  tanh(one);
  return one[0];
}

}  // namespace softgate::cpu::SOFTGATE_ISA
