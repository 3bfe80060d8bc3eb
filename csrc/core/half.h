// The 16-bit float types, shared by host and device. Conversions round to nearest even and are
// bitwise the same everywhere; every NaN narrows to 0x7fff.
#pragma once

#include <bit>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SG_HOST_DEVICE inline
#endif

namespace softgate {

// IEEE 754 binary16.
struct half {
  std::uint16_t bits;

  half() = default;
  SG_HOST_DEVICE explicit half(float value);
  SG_HOST_DEVICE static half from_bits(std::uint16_t bits);
  SG_HOST_DEVICE explicit operator float() const;
};

// The upper half of a float.
struct bfloat16 {
  std::uint16_t bits;

  bfloat16() = default;
  SG_HOST_DEVICE explicit bfloat16(float value);
  SG_HOST_DEVICE static bfloat16 from_bits(std::uint16_t bits);
  SG_HOST_DEVICE explicit operator float() const;
};

#ifndef __CUDA_ARCH__
namespace half_detail {

inline constexpr std::uint16_t kNaN = 0x7fff;
inline constexpr std::uint32_t kFloatInfinity = 0x7f800000;

// `bits` without its last `count` bits, rounded to nearest even.
constexpr std::uint32_t round_off(std::uint32_t bits, int count) {
  const std::uint32_t last = (bits >> count) & 1;
  return (bits + (std::uint32_t{1} << (count - 1)) - 1 + last) >> count;
}

inline std::uint16_t half_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > kFloatInfinity) return kNaN;
  if (magnitude >= 0x47800000) return static_cast<std::uint16_t>(sign | 0x7c00);  // 65536 and more
  if (magnitude >= 0x38800000) {  // normal; rounding may carry up to infinity
    return static_cast<std::uint16_t>(sign | round_off(magnitude - 0x38000000, 13));
  }
  // Adding 0.5 leaves a float whose last bit is worth the smallest half, 2^-24, rounded there.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000));
}

inline float float_from_half(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16, magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity and NaN
    return std::bit_cast<float>(sign | kFloatInfinity | ((magnitude & 0x3ff) << 13));
  }
  if (magnitude >= 0x400) return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000));
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
}

inline std::uint16_t bfloat16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffff) > kFloatInfinity) return kNaN;
  return static_cast<std::uint16_t>(round_off(bits, 16));
}

}  // namespace half_detail
#endif

SG_HOST_DEVICE half half::from_bits(std::uint16_t bits) {
  half value;
  value.bits = bits;
  return value;
}

SG_HOST_DEVICE bfloat16 bfloat16::from_bits(std::uint16_t bits) {
  bfloat16 value;
  value.bits = bits;
  return value;
}

SG_HOST_DEVICE half::half(float value) {
#ifdef __CUDA_ARCH__
  bits = __half_as_ushort(__float2half_rn(value));
#else
  bits = half_detail::half_bits(value);
#endif
}

SG_HOST_DEVICE half::operator float() const {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(bits));
#else
  return half_detail::float_from_half(bits);
#endif
}

SG_HOST_DEVICE bfloat16::bfloat16(float value) {
#ifdef __CUDA_ARCH__
  bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  bits = half_detail::bfloat16_bits(value);
#endif
}

SG_HOST_DEVICE bfloat16::operator float() const {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
#ifdef __CUDA_ARCH__
  return __uint_as_float(wide);
#else
  return std::bit_cast<float>(wide);
#endif
}

}  // namespace softgate
