// A kernel for each wrapper of cuda/ptx.cuh, for tests/test_ptx_wrappers.py: one warp, kIn words in
// and kOut words out per lane.
#include "cuda/kernel.cuh"
#include "cuda/ptx.cuh"
#ifdef SOFTGATE_SIMT
#include <cstring>
#include <exception>
#include <string>

#include "cuda/launch.h"
#endif

namespace wrappers {

namespace ptx = softgate::cuda::ptx;
using std::uint32_t;

constexpr int kIn = 16, kOut = 4;

// This lane's words.
__device__ __forceinline__ const uint32_t* mine(const uint32_t* in) {
  return in + threadIdx.x * kIn;
}
__device__ __forceinline__ uint32_t* mine(uint32_t* out) { return out + threadIdx.x * kOut; }

__device__ __forceinline__ float as_float(uint32_t x) { return __uint_as_float(x); }

__device__ __forceinline__ void store(uint32_t* out, const ptx::Fragment& fragment) {
  for (int i = 0; i < 4; ++i) mine(out)[i] = fragment.x[i];
}

template <class Mma>
__device__ __forceinline__ void multiply(const uint32_t* in, uint32_t* out, Mma mma) {
  const uint32_t* x = mine(in);
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = as_float(x[6 + i]);
  mma(d, ptx::Fragment{{x[0], x[1], x[2], x[3]}}, x[4], x[5]);
  for (int i = 0; i < 4; ++i) mine(out)[i] = __float_as_uint(d[i]);
}

extern "C" __global__ void mma_m16n8k16_f32_f16(const uint32_t* in, uint32_t* out) {
  multiply(in, out, [](auto& d, auto... operands) { ptx::mma_m16n8k16_f32_f16(d, operands...); });
}

extern "C" __global__ void mma_m16n8k16_f32_bf16(const uint32_t* in, uint32_t* out) {
  multiply(in, out, [](auto& d, auto... operands) { ptx::mma_m16n8k16_f32_bf16(d, operands...); });
}

extern "C" __global__ void mma_m16n8k32_s32_s8(const uint32_t* in, uint32_t* out) {
  const uint32_t* x = mine(in);
  int32_t d[4];
  for (int i = 0; i < 4; ++i) d[i] = static_cast<int32_t>(x[6 + i]) >> 8;
  ptx::mma_m16n8k32_s32_s8(d, ptx::Fragment{{x[0], x[1], x[2], x[3]}}, x[4], x[5]);
  for (int i = 0; i < 4; ++i) mine(out)[i] = static_cast<uint32_t>(d[i]);
}

// Four of each lane's words in shared memory, of which this lane addresses another's.
__device__ __forceinline__ const void* row(const uint32_t* in) {
  auto* shared = reinterpret_cast<uint32_t*>(softgate::cuda::shared_memory());
  for (int i = 0; i < 4; ++i) shared[4 * threadIdx.x + i] = mine(in)[i];
  __syncthreads();
  return shared + 4 * (threadIdx.x * 11 % 32);
}

extern "C" __global__ void ldmatrix_x4(const uint32_t* in, uint32_t* out) {
  store(out, ptx::ldmatrix_x4(row(in)));
}

extern "C" __global__ void ldmatrix_x4_trans(const uint32_t* in, uint32_t* out) {
  store(out, ptx::ldmatrix_x4_trans(row(in)));
}

extern "C" __global__ void ld_shared_v4_u32(const uint32_t* in, uint32_t* out) {
  const uint4 words = ptx::ld_shared_v4_u32(row(in));
  store(out, {words.x, words.y, words.z, words.w});
}

extern "C" __global__ void ld_shared_v2_u32(const uint32_t* in, uint32_t* out) {
  const uint2 words = ptx::ld_shared_v2_u32(row(in));
  store(out, {words.x, words.y, 0, 0});
}

extern "C" __global__ void ld_global_nc_v4_u32(const uint32_t* in, uint32_t* out) {
  const uint4 words = ptx::ld_global_nc_v4_u32(mine(in) + 4);
  store(out, {words.x, words.y, words.z, words.w});
}

extern "C" __global__ void ld_global_nc_v2_u32(const uint32_t* in, uint32_t* out) {
  const uint2 words = ptx::ld_global_nc_v2_u32(mine(in) + 6);
  store(out, {words.x, words.y, 0, 0});
}

// Two groups; of the second only some lanes copy something.
extern "C" __global__ void cp_async_16(const uint32_t* in, uint32_t* out) {
  auto* shared = reinterpret_cast<uint32_t*>(softgate::cuda::shared_memory());
  ptx::cp_async_16(shared + 4 * threadIdx.x, mine(in));
  ptx::cp_async_commit();
  ptx::cp_async_16(shared + 128 + 4 * threadIdx.x, mine(in) + 4, threadIdx.x % 3 == 0 ? 16 : 0);
  ptx::cp_async_commit();
  ptx::cp_async_wait<1>();
  __syncthreads();
  const uint32_t* first = shared + 4 * (threadIdx.x ^ 1);
  mine(out)[0] = first[0];
  mine(out)[1] = first[3];
  ptx::cp_async_wait<0>();
  __syncthreads();
  mine(out)[2] = first[128];
  mine(out)[3] = first[131];
}

extern "C" __global__ void ex2_approx_ftz(const uint32_t* in, uint32_t* out) {
  for (int i = 0; i < kOut; ++i)
    mine(out)[i] = __float_as_uint(ptx::ex2_approx_ftz(as_float(mine(in)[i])));
}

extern "C" __global__ void cvt_rn_f16x2(const uint32_t* in, uint32_t* out) {
  for (int i = 0; i < kOut; ++i)
    mine(out)[i] = ptx::cvt_rn_f16x2(as_float(mine(in)[2 * i]), as_float(mine(in)[2 * i + 1]));
}

extern "C" __global__ void cvt_rn_bf16x2(const uint32_t* in, uint32_t* out) {
  for (int i = 0; i < kOut; ++i)
    mine(out)[i] = ptx::cvt_rn_bf16x2(as_float(mine(in)[2 * i]), as_float(mine(in)[2 * i + 1]));
}

}  // namespace wrappers

#ifdef SOFTGATE_SIMT
// What the launch reports; empty when nothing, null when there is no such kernel.
extern "C" __attribute__((visibility("default"))) const char* simt_wrapper(const char* name,
                                                                           const std::uint32_t* in,
                                                                           std::uint32_t* out) {
  static std::string message;
  message.clear();
  const struct {
    const char* name;
    void (*kernel)(const std::uint32_t*, std::uint32_t*);
  } kernels[] = {
#define WRAPPER(name) {#name, wrappers::name}
      WRAPPER(mma_m16n8k16_f32_f16), WRAPPER(mma_m16n8k16_f32_bf16), WRAPPER(mma_m16n8k32_s32_s8),
      WRAPPER(ldmatrix_x4),          WRAPPER(ldmatrix_x4_trans),     WRAPPER(ld_shared_v4_u32),
      WRAPPER(ld_shared_v2_u32),     WRAPPER(ld_global_nc_v4_u32),   WRAPPER(ld_global_nc_v2_u32),
      WRAPPER(cp_async_16),          WRAPPER(ex2_approx_ftz),        WRAPPER(cvt_rn_f16x2),
      WRAPPER(cvt_rn_bf16x2),
  };
  for (const auto& [known, kernel] : kernels) {
    if (std::strcmp(known, name) != 0) continue;
    try {
      softgate::cuda::launch(kernel, {.grid = 1, .block = 32, .shared_bytes = 1024}, in, out);
    } catch (const std::exception& error) {
      message = error.what();
    }
    return message.c_str();
  }
  return nullptr;
}
#endif
