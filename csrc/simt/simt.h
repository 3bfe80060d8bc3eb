// The CUDA language for the host compiler: each CUDA thread of a launch is a fiber (executor.cc).
//
// Barriers, warp collectives and waits for asynchronous copies are the points where threads meet;
// between them a thread runs alone. Shared memory starts as NaN. Reported, with kernel, block and
// thread: a barrier or collective that not all threads reach, a lane that a collective's mask
// lacks, and, where the file is compiled with -fsanitize=thread (hooks.cc), shared memory that is
// read before it is written, while a copy into it is in flight, in a race, or out of bounds.
//
// SOFTGATE_SIMT_ORDER is the order in which blocks and threads run: "forward", "reverse" or a
// number that seeds a random one.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <type_traits>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

// Types

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;

  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace softgate::simt {

using Where = std::source_location;
inline constexpr int kWarp = 32;

// Of the thread that runs.
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;

unsigned char* shared_memory();
int lane();

void barrier(Where where);
void warp_barrier(unsigned mask);
void grid_sync(Where where = Where::current());

// Ends the launch with an error that names kernel, block and thread.
[[noreturn]] void fail(const char* kind, const char* detail);

// Into shared memory, of `bytes` bytes of which the last `bytes - source_bytes` are zeros. The copy
// lands at the wait for its group.
void async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes);
void async_commit();
void async_wait(int groups_left);

// An atomic operation on p is about to happen.
void note_update(const void* p, std::size_t bytes);

// The mask that a warp function was given, or a wrong one (inject.h).
unsigned given_mask(unsigned mask);

// The lanes of `mask` meet; the last one calls run(meaning, inputs, outputs), where an absent lane
// has null pointers.
void meet(const char* name, unsigned mask, const void* in, void* out,
          void (*run)(void* meaning, const void* const* inputs, void* const* outputs),
          void* meaning);

// Every lane of `mask` deposits its operand; `meaning` runs once over all of them, where the
// operand of an absent lane is zero; every lane takes its result.
template <class In, class Out>
Out warp_collective(const char* name, const In& mine,
                    void (*meaning)(const In (&lanes)[kWarp], Out (&results)[kWarp]),
                    unsigned mask = 0xffffffffu) {
  Out result{};
  meet(
      name, mask, &mine, &result,
      [](void* function, const void* const* inputs, void* const* outputs) {
        In lanes[kWarp] = {};
        Out results[kWarp] = {};
        for (int i = 0; i < kWarp; ++i) {
          if (inputs[i] != nullptr) lanes[i] = *static_cast<const In*>(inputs[i]);
        }
        reinterpret_cast<void (*)(const In(&)[kWarp], Out(&)[kWarp])>(function)(lanes, results);
        for (int i = 0; i < kWarp; ++i) {
          if (outputs[i] != nullptr) *static_cast<Out*>(outputs[i]) = results[i];
        }
      },
      reinterpret_cast<void*>(meaning));
  return result;
}

template <class T>
struct Shuffled {
  T value;
  int source;  // lane
  unsigned mask;
};

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source) {
  mask = given_mask(mask);
  return warp_collective<Shuffled<T>, T>(
      name, {value, source, mask},
      [](const Shuffled<T>(&lanes)[kWarp], T(&results)[kWarp]) {
        for (int i = 0; i < kWarp; ++i) {
          const Shuffled<T>& lane = lanes[i];
          if (lane.mask == 0) continue;  // not taking part
          if ((lane.mask >> lane.source & 1) == 0) fail("shuffle", "reads a lane outside its mask");
          results[i] = lanes[lane.source].value;
        }
      },
      mask);
}

inline unsigned vote(const char* name, unsigned mask, bool mine) {
  return warp_collective<int, unsigned>(
      name, mine ? 1 : 0,
      [](const int(&lanes)[kWarp], unsigned(&results)[kWarp]) {
        unsigned ballot = 0;
        for (int i = 0; i < kWarp; ++i) ballot |= static_cast<unsigned>(lanes[i]) << i;
        for (unsigned& result : results) result = ballot;
      },
      given_mask(mask));
}

// Runs on one system thread, so that a plain update is atomic; the sanitizer must not call it a
// race.
template <class T, class Update>
__attribute__((noinline, no_sanitize("thread"))) T update(T* p, Update next) {
  note_update(p, sizeof(T));
  const T before = *p;
  *p = next(before);
  return before;
}

}  // namespace softgate::simt

#define threadIdx ::softgate::simt::thread_index
#define blockIdx ::softgate::simt::block_index
#define blockDim ::softgate::simt::block_size
#define gridDim ::softgate::simt::grid_size

// Synchronisation

inline void __syncthreads(softgate::simt::Where where = softgate::simt::Where::current()) {
  softgate::simt::barrier(where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { softgate::simt::warp_barrier(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { softgate::simt::fail("trap", "reached"); }

// Warp functions

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = softgate::simt::lane();
  return softgate::simt::shuffle("__shfl_sync", mask, value,
                                 (lane & ~(width - 1)) + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
  const int lane = softgate::simt::lane(), source = lane ^ flip;
  return softgate::simt::shuffle("__shfl_xor_sync", mask, value,
                                 source / width > lane / width ? lane : source);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = softgate::simt::lane(), source = lane - static_cast<int>(delta);
  return softgate::simt::shuffle("__shfl_up_sync", mask, value,
                                 source < (lane & ~(width - 1)) ? lane : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = softgate::simt::lane(), source = lane + static_cast<int>(delta);
  return softgate::simt::shuffle("__shfl_down_sync", mask, value,
                                 source > (lane | (width - 1)) ? lane : source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return softgate::simt::vote("__ballot_sync", mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return softgate::simt::vote("__any_sync", mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return softgate::simt::vote("__all_sync", mask, predicate != 0) == mask;
}

// Atomics

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return softgate::simt::update(p, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return softgate::simt::update(p, [=](T old) { return std::max(old, value); });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  return softgate::simt::update(p, [=](T old) { return std::min(old, value); });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> value) {
  return softgate::simt::update(p, [=](T old) { return old | value; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return softgate::simt::update(p, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return softgate::simt::update(p, [=](T old) { return old == expected ? value : old; });
}

// Arithmetic

template <class T>
constexpr T min(T a, std::type_identity_t<T> b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, std::type_identity_t<T> b) {
  return a < b ? b : a;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(unsigned x) { return std::countl_zero(x); }
inline int __ffs(unsigned x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }
