// What this machine can do at most: fused multiply-adds per second and memory bandwidth, printed
// as JSON. bench/limits.py compiles it for the machine it runs on.
//
//   limits THREADS TRIALS
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include <unistd.h>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr std::size_t kVectorBytes = 64;
#elif defined(__AVX__)
constexpr std::size_t kVectorBytes = 32;
#else
constexpr std::size_t kVectorBytes = 16;
#endif
using Vector = float __attribute__((vector_size(kVectorBytes)));
constexpr std::size_t kLanes = kVectorBytes / sizeof(float);

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Keeps a value alive without storing it anywhere.
void keep(const Vector& value) { asm volatile("" : : "m"(value) : "memory"); }

// The scheduler may leave two threads on one core for longer than a trial takes.
void pin_to_core(int thread) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  int index = thread % CPU_COUNT(&allowed);
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &allowed) && index-- == 0) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(core, &one);
      sched_setaffinity(0, sizeof one, &one);
      return;
    }
#else
  static_cast<void>(thread);
#endif
}

// Seconds that `threads` threads need for one body(thread) each, from the common start to the end
// of the last; the best of `trials`.
double best_time(int threads, int trials, const std::function<void(int)>& body) {
  double best = 1e30;
  Clock::time_point start;
  std::barrier begin(threads, [&]() noexcept { start = Clock::now(); });
  std::barrier end(threads, [&]() noexcept { best = std::min(best, seconds_since(start)); });
  std::vector<std::thread> workers;
  for (int thread = 0; thread < threads; ++thread)
    workers.emplace_back([&, thread] {
      pin_to_core(thread);
      body(thread);  // warm-up
      for (int trial = 0; trial < trials; ++trial) {
        begin.arrive_and_wait();
        body(thread);
        end.arrive_and_wait();
      }
    });
  for (auto& worker : workers) worker.join();
  return best;
}

// Independent chains: enough to fill two pipes of five cycles, few enough to stay in registers.
constexpr int kChains = 12;

void fma_chains(long steps) {
  Vector chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = Vector{} + static_cast<float>(i);
  Vector factor = Vector{} + 0.999f;
  Vector term = Vector{} + 0.001f;
  asm volatile("" : "+x"(factor), "+x"(term));  // not constants to the compiler
  for (long step = 0; step < steps; ++step)
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + term;
  for (const Vector& value : chain) keep(value);
}

double fma_gflops(int threads, int trials) {
  constexpr long kSteps = 5'000'000;
  const double seconds = best_time(threads, trials, [](int) { fma_chains(kSteps); });
  return 2.0 * kChains * kLanes * kSteps * threads / seconds / 1e9;
}

struct AlignedFree {
  void operator()(float* block) const { std::free(block); }
};
using Buffer = std::unique_ptr<float[], AlignedFree>;

Buffer make_buffer(std::size_t bytes) {
  constexpr std::size_t kPage = 4096;
  void* block = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  if (!block) throw std::bad_alloc();
  std::memset(block, 0, bytes);
  return Buffer(static_cast<float*>(block));
}

void read(const float* source, std::size_t count) {
  Vector sum[8] = {};
  for (std::size_t i = 0; i + 8 * kLanes <= count; i += 8 * kLanes)
    for (std::size_t j = 0; j < 8; ++j)
      sum[j] += *reinterpret_cast<const Vector*>(source + i + j * kLanes);
  for (const Vector& value : sum) keep(value);
}

void copy(float* target, const float* source, std::size_t count) {
  for (std::size_t i = 0; i + kLanes <= count; i += kLanes)
    *reinterpret_cast<Vector*>(target + i) = *reinterpret_cast<const Vector*>(source + i);
}

// Non-temporal stores go around the caches: the target is not read before it is written.
void copy_streaming(float* target, const float* source, std::size_t count) {
#if defined(__AVX512F__)
  for (std::size_t i = 0; i + 16 <= count; i += 16)
    _mm512_stream_ps(target + i, _mm512_load_ps(source + i));
#elif defined(__AVX__)
  for (std::size_t i = 0; i + 8 <= count; i += 8)
    _mm256_stream_ps(target + i, _mm256_load_ps(source + i));
#elif defined(__SSE2__)
  for (std::size_t i = 0; i + 4 <= count; i += 4)
    _mm_stream_ps(target + i, _mm_load_ps(source + i));
#else
  copy(target, source, count);
#endif
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

enum class Traffic { read, copy, copy_streaming };

// GB/s of bytes read plus bytes written; `bytes` is what all threads touch together in one pass.
double bandwidth(Traffic traffic, std::size_t bytes, int threads, int trials) {
  const bool writes = traffic != Traffic::read;
  const std::size_t share = bytes / threads / (writes ? 2 : 1);
  const std::size_t count = share / sizeof(float);
  std::vector<Buffer> sources, targets;
  for (int thread = 0; thread < threads; ++thread) {
    sources.push_back(make_buffer(share));
    targets.push_back(make_buffer(writes ? share : sizeof(float)));
  }
  constexpr std::size_t kBytesPerTrial = std::size_t{256} << 20;
  const std::size_t passes = std::max<std::size_t>(1, kBytesPerTrial / bytes);
  const double seconds = best_time(threads, trials, [&](int thread) {
    for (std::size_t pass = 0; pass < passes; ++pass) {
      const float* source = sources[thread].get();
      float* target = targets[thread].get();
      switch (traffic) {
        case Traffic::read: read(source, count); break;
        case Traffic::copy: copy(target, source, count); break;
        case Traffic::copy_streaming: copy_streaming(target, source, count); break;
      }
      asm volatile("" : : : "memory");
    }
  });
  return static_cast<double>(bytes) * static_cast<double>(passes) / seconds / 1e9;
}

// Of one core; 0 when unknown.
long l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return std::max(0L, sysconf(_SC_LEVEL2_CACHE_SIZE));
#else
  return 0;
#endif
}

void print_curve(const char* name, Traffic traffic, int threads, int trials, const char* end) {
  std::printf("\"%s\": {", name);
  const char* separator = "";
  for (const std::size_t kib : {256, 1024, 2048, 3072, 4096, 8192, 16384, 65536, 262144}) {
    const double rate = bandwidth(traffic, kib * 1024, threads, trials);
    std::printf("%s\"%zu\": %.2f", separator, kib * 1024, rate);
    separator = ", ";
  }
  std::printf("}%s\n", end);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: limits THREADS TRIALS\n");
    return 2;
  }
  const int threads = std::max(1, std::atoi(argv[1]));
  const int trials = std::max(1, std::atoi(argv[2]));
  std::printf("{\"threads\": %d, \"vector_bits\": %zu, \"l2\": %ld,\n", threads, kVectorBytes * 8,
              threads * l2_bytes());
  std::printf("\"fma\": {\"1\": %.2f", fma_gflops(1, 5 * trials));
  if (threads > 1) std::printf(", \"%d\": %.2f", threads, fma_gflops(threads, 5 * trials));
  std::printf("},\n");
  print_curve("read", Traffic::read, threads, trials, ",");
  print_curve("copy", Traffic::copy, threads, trials, ",");
  print_curve("copy_streaming", Traffic::copy_streaming, threads, trials, "}");
  return 0;
}
