// The activations that a matrix product's epilogue can apply.
#pragma once

#include "cpu/simd_math.h"
#include "ops/linear.h"

namespace softgate::cpu::SOFTGATE_ISA {

SG_INLINE vf relu(vf x) { return max(zero(), x); }

SG_INLINE vf silu(vf x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

// x * Phi(x) = relu(x) - |x| * Q(|x|), with the normal tail Q(a) = exp(-a^2 / 2) * r(a): no
// cancellation for negative x. r is a polynomial in 1 / (1 + c a), fitted to 3e-7 relative.
SG_INLINE vf gelu(vf x) {
  const vf a = min(set1(20.0f), abs(x));
  const vf t = div(set1(1.0f), fma(set1(0.296875f), a, set1(1.0f)));
  vf r = set1(0.0392230786f);
  r = fma(r, t, set1(-0.178815097f));
  r = fma(r, t, set1(0.256153584f));
  r = fma(r, t, set1(-0.102562107f));
  r = fma(r, t, set1(0.157671675f));
  r = fma(r, t, set1(0.0884157866f));
  r = fma(r, t, set1(0.121785365f));
  r = fma(r, t, set1(0.118114516f));
  r = fma(r, t, set1(1.32162058e-5f));
  const vf tail = mul(exp_nonpositive(mul(mul(a, a), set1(-0.5f))), r);
  return sub(relu(x), mul(a, tail));
}

// x * (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
SG_INLINE vf gelu_tanh(vf x) {
  const vf cubic = fma(mul(mul(x, x), set1(-2.0f * 0.7978845608f * 0.044715f)), x,
                       mul(x, set1(-2.0f * 0.7978845608f)));
  return div(x, add(set1(1.0f), exp(cubic)));
}

template <Activation A>
SG_INLINE vf activate(vf x) {
  if constexpr (A == Activation::gelu) return gelu(x);
  if constexpr (A == Activation::gelu_tanh) return gelu_tanh(x);
  if constexpr (A == Activation::relu) return relu(x);
  if constexpr (A == Activation::silu) return silu(x);
  if constexpr (A == Activation::tanh) return tanh(x);
  return x;
}

}  // namespace softgate::cpu::SOFTGATE_ISA
