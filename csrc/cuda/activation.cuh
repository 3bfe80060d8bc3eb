// The activations that a matrix product's epilogue can apply.
#pragma once

#include <cmath>

#include "cuda/kernel.cuh"
#include "ops/linear.h"

namespace softgate::cuda {

// NaN stays NaN, unlike fmaxf's.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// x * Phi(x), with erfc for the lower tail: no cancellation for negative x.
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * erfcf(-0.707106781f * x); }

// x * (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kLinear = -2.0f * 0.7978845608f;
  const float cubic = kLinear * 0.044715f * (x * x);
  return x / (1.0f + expf(fmaf(cubic, x, kLinear * x)));
}

template <int N>
__device__ __forceinline__ void activate(float (&x)[N], Activation activation) {
  const auto each = [&](auto function) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = function(x[i]);
  };
  switch (activation) {
    case Activation::none: break;
    case Activation::gelu: each([](float v) { return gelu(v); }); break;
    case Activation::gelu_tanh: each([](float v) { return gelu_tanh(v); }); break;
    case Activation::relu: each([](float v) { return relu(v); }); break;
    case Activation::silu: each([](float v) { return silu(v); }); break;
    case Activation::tanh: each([](float v) { return tanhf(v); }); break;
  }
}

}  // namespace softgate::cuda
