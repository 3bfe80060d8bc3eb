// Four lanes through the compiler's vector extension: any CPU.
#pragma once

#include <cstdint>

namespace softgate::cpu::SOFTGATE_ISA {

inline constexpr int kLanes = 4;

// The register block of matrix products: kPanel columns by at most kTileRows rows.
inline constexpr int kPanel = 8;
inline constexpr int kTileRows = 4;

// Bytes of A that stay in L2 while panels pass, and depth of a panel slice that stays in L1.
inline constexpr std::int64_t kRowBlockBytes = 96 * 1024;
inline constexpr std::int64_t kSliceDepth = 384;

using vf = float __attribute__((vector_size(16)));
using vi = std::int32_t __attribute__((vector_size(16)));
using vu = std::uint32_t __attribute__((vector_size(16)));
using vm = vi;  // all bits set or none

SG_INLINE vf load(const float* p) {
  vf v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
SG_INLINE vf load_n(const float* p, int n) {
  vf v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
SG_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
SG_INLINE void store_n(float* p, vf v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
SG_INLINE void stream(float* p, vf v) { store(p, v); }
SG_INLINE void stream_fence() {}
SG_INLINE vf set1(float x) { return vf{x, x, x, x}; }
SG_INLINE vf iota() { return vf{0, 1, 2, 3}; }
SG_INLINE vf add(vf a, vf b) { return a + b; }
SG_INLINE vf sub(vf a, vf b) { return a - b; }
SG_INLINE vf mul(vf a, vf b) { return a * b; }
SG_INLINE vf div(vf a, vf b) { return a / b; }
SG_INLINE vf quotient(vf a, vf b) { return div(a, b); }
SG_INLINE vf reciprocal(vf b) { return div(set1(1.0f), b); }
SG_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
SG_INLINE vm is_nan(vf a) { return a != a; }
SG_INLINE vm less(vf a, vf b) { return a < b; }
SG_INLINE vf select(vm m, vf a, vf b) {
  return reinterpret_cast<vf>((m & reinterpret_cast<vi>(a)) | (~m & reinterpret_cast<vi>(b)));
}
SG_INLINE vf max(vf a, vf b) { return select(a > b, a, b); }
SG_INLINE vf min(vf a, vf b) { return select(a < b, a, b); }
SG_INLINE vf abs(vf a) { return reinterpret_cast<vf>(reinterpret_cast<vi>(a) & 0x7fffffff); }
SG_INLINE vf sqrt(vf a) {
  vf r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrtf(a[i]);
  return r;
}
SG_INLINE vf round(vf a) {
  vf r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_rintf(a[i]);
  return r;
}
SG_INLINE vf scale2(vf x, vf n) {
  // Unsigned, for lanes out of range may wrap.
  const vu exponent = reinterpret_cast<vu>(__builtin_convertvector(n, vi)) << 23;
  return reinterpret_cast<vf>(reinterpret_cast<vu>(x) + exponent);
}
SG_INLINE vf pow2(vf n) { return reinterpret_cast<vf>(reinterpret_cast<vi>(n + kPow2Bias) << 23); }
SG_INLINE vm nonzero_bytes(const std::uint8_t* p, int n) {
  vm m = {};
  for (int i = 0; i < n; ++i) m[i] = p[i] ? -1 : 0;
  return m;
}
SG_INLINE float sum(vf v) { return (v[0] + v[2]) + (v[1] + v[3]); }
SG_INLINE float hmax(vf v) {
  const vf a = max(v, vf{v[2], v[3], v[0], v[1]});
  return max(a, vf{a[1], a[0], a[3], a[2]})[0];
}
SG_INLINE vf row_sums(vf (&rows)[4]) {
  return vf{sum(rows[0]), sum(rows[1]), sum(rows[2]), sum(rows[3])};
}
SG_INLINE void load_bfloat16(const std::uint32_t* p, vf& low, vf& high) {
  vu pairs;
  __builtin_memcpy(&pairs, p, sizeof pairs);
  low = reinterpret_cast<vf>(pairs << 16);
  high = reinterpret_cast<vf>(pairs & 0xffff0000u);
}

SG_INLINE vf load_half(const std::uint16_t* p) {
  using Halves = std::uint16_t __attribute__((vector_size(8)));
  Halves halves;
  __builtin_memcpy(&halves, p, sizeof halves);
  const vu bits = __builtin_convertvector(halves, vu);
  const vu sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  // A denormal is a whole number of 2^-24; infinity and NaN keep the largest exponent.
  const vf small = __builtin_convertvector(reinterpret_cast<vi>(magnitude), vf) * 0x1p-24f;
  const vu large = (magnitude << 13) + 0x38000000u;
  const vm special = reinterpret_cast<vi>(magnitude) >= 0x7c00;
  const vf value =
      select(reinterpret_cast<vi>(magnitude) < 0x400, small,
             reinterpret_cast<vf>(large | (reinterpret_cast<vu>(special) & 0x7f800000u)));
  return reinterpret_cast<vf>(reinterpret_cast<vu>(value) | sign);
}

using vw = vi;
using DotElement = std::int32_t;
inline constexpr int kDotDepth = 1;
inline constexpr int kDotOffset = 0;

SG_INLINE vi set1_int(std::int32_t x) { return vi{x, x, x, x}; }
SG_INLINE vf to_float(vi v) { return __builtin_convertvector(v, vf); }
SG_INLINE vi to_int(vf v) {
  return __builtin_convertvector(round(select(v == v, v, set1(0.0f))), vi);
}
SG_INLINE vw load_wide(const std::uint8_t* p) {
  vw v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
SG_INLINE void store_wide(std::uint8_t* p, vw v) { __builtin_memcpy(p, &v, sizeof v); }
SG_INLINE vw load_weights(const std::uint8_t* p) {
  using Bytes = std::int8_t __attribute__((vector_size(4)));
  Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, vi);
}
SG_INLINE void load_nibbles(const std::uint8_t* p, vw& low, vw& high) {
  using Bytes = std::uint8_t __attribute__((vector_size(4)));
  Bytes pairs;
  __builtin_memcpy(&pairs, p, sizeof pairs);
  low = __builtin_convertvector(pairs, vi) & 15;
  high = __builtin_convertvector(pairs, vi) >> 4;
}
SG_INLINE vi dot(vi sums, vw weights, const DotElement* x) { return sums + weights * set1_int(*x); }
SG_INLINE void store_integers(DotElement* x, vf v) {
  const vi integers = to_int(v);
  __builtin_memcpy(x, &integers, sizeof integers);
}
SG_INLINE vi add(vi a, vi b) { return a + b; }
SG_INLINE vi sub(vi a, vi b) { return a - b; }
SG_INLINE vi mul(vi a, vi b) { return a * b; }
SG_INLINE vi min(vi a, vi b) { return a < b ? a : b; }
SG_INLINE void store_integers(DotElement* x, const vi (&v)[4]) { __builtin_memcpy(x, v, sizeof v); }
SG_INLINE void transpose(vf (&rows)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const float x = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = x;
    }
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
