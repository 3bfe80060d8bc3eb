// From logits to tokens with a block for each row, which lies in the cache after the first pass.
//
// What is kept ends at some logit: sample looks for it by halving the range between the ordered bit
// patterns of -inf and the largest logit, with one sum over the row each time. Sums are taken in a
// fixed order and grow with what they are taken over, so that rounding never misleads the search.
#include "ops/sample.h"

#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/runtime.h"

namespace softgate::cuda {
namespace {

constexpr int kMaxThreads = 512;                            // of a row
constexpr int kPenalizeThreads = 256;                       // of a row
constexpr int kSoftcapThreads = 256, kSoftcapElements = 4;  // of a thread
constexpr int kParts = 32;                                  // into which `pick` cuts what is left
// Two scratches of block_reduce take turns.
constexpr int kSharedBytes = (2 * kWarp + kParts) * static_cast<int>(sizeof(float));

// Bit patterns in the order of the numbers.
__device__ __forceinline__ unsigned key_of(float value) {
  const unsigned bits = __float_as_uint(value);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(unsigned key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// A row of logits, by all threads of its block.
template <class T>
class Logits {
 public:
  __device__ __forceinline__ Logits(const T* row, std::int64_t vocab)
      : row_(row), vocab_(static_cast<int>(vocab)) {}

  __device__ __forceinline__ int vocab() const { return vocab_; }
  __device__ __forceinline__ float operator[](int i) const { return static_cast<float>(row_[i]); }

  // of(logit, id) of all, reduced; every thread gets it.
  template <class Op, class Of>
  __device__ __forceinline__ float reduce(const Of& of) {
    const Op op;
    float total = Op::kIdentity;
    const auto threads = static_cast<int>(blockDim.x);
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < vocab_; i += threads)
      total = op(total, of((*this)[i], i));
    __syncwarp();  // the loop parts the warp
    float* scratch = reinterpret_cast<float*>(shared_memory()) + turn_ * kWarp;
    turn_ ^= 1;
    return block_reduce<Op>(total, scratch, threads);
  }

 private:
  const T* row_;
  int vocab_, turn_ = 0;
};

// Of the numbers from -inf to `most`, the smallest that `holds` is true of, which it is of `most`
// and of all between that and `most`.
template <class Holds>
__device__ __forceinline__ float smallest(float most, const Holds& holds) {
  unsigned low = key_of(-INFINITY), high = key_of(most);
  while (low < high) {
    const unsigned middle = low + (high - low) / 2;
    if (holds(value_of(middle)))
      high = middle;
    else
      low = middle + 1;
  }
  return value_of(high);
}

// The id at which the summed weight exceeds random times the total; weight(id) is not negative, and
// some are positive. Cuts the ids into parts, finds the one, and cuts that.
template <class Weight>
__device__ __forceinline__ int pick(int vocab, float random, const Weight& weight) {
  float* const sums = reinterpret_cast<float*>(shared_memory()) + 2 * kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int begin = 0, end = vocab, part = vocab;
  float target = 0.0f;
  do {
    part = (end - begin + kParts - 1) / kParts;
    __syncwarp();
    __syncthreads();  // the sums before have been read
    for (int p = warp; p < kParts; p += static_cast<int>(blockDim.x) / kWarp) {
      const int first = begin + p * part, last = min(first + part, end);
      float sum = 0.0f;
      for (int i = first + lane; i < last; i += kWarp) sum += weight(i);
      __syncwarp();
      sum = warp_reduce<Sum>(sum);
      if (lane == 0) sums[p] = sum;
      __syncwarp();
    }
    __syncthreads();
    if (end - begin == vocab) {
      float total = 0.0f;
      for (int p = 0; p < kParts; ++p) total += sums[p];
      target = random * total;
    }
    // Rounding may leave the target just beyond the end: then it is the last of those with weight.
    int chosen = 0;
    float left = target;
    bool found = false;
    for (int p = 0; p < kParts && !found; ++p) {
      if (sums[p] == 0.0f) continue;
      chosen = p;
      found = sums[p] > left;
      if (!found) left -= sums[p];
    }
    target = found ? left : INFINITY;
    begin += chosen * part;
    end = min(begin + part, end);
  } while (part > 1);
  return begin;
}

}  // namespace

// A token is kept from min_p on that lies `reach` (not positive) below the largest logit.
template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    sample_kernel(const SampleArgs<T> args, const double reach) {
  const std::int64_t index = blockIdx.x;
  Logits<T> logits(args.logits + index * args.stride, args.vocab);
  const float largest = logits.template reduce<Max>([](float x, int) { return x; });
  int token = -1;
  if (fabsf(largest) < INFINITY) {  // and no NaN
    if (args.temperature == 0.0f) {
      // Ids are floats without rounding (ops/sample.cc).
      token = -static_cast<int>(logits.template reduce<Max>([largest](float x, int id) {
        return x == largest ? -static_cast<float>(id) : -INFINITY;
      }));
    } else {
      const float inverse = fminf(1.0f / args.temperature, 0x1.fffffep127f);
      float least = -INFINITY;
      const auto weight = [&](float x) { return x < least ? 0.0f : expf((x - largest) * inverse); };
      if (args.top_k > 0) {
        least = smallest(largest, [&](float bound) {
          const float larger = logits.template reduce<Sum>(
              [bound](float x, int) { return x > bound ? 1.0f : 0.0f; });
          return larger < static_cast<float>(args.top_k);
        });
      }
      if (args.top_p < 1.0) {
        const float total = logits.template reduce<Sum>([&](float x, int) { return weight(x); });
        const float enough = static_cast<float>(args.top_p) * total;
        const float nucleus = smallest(largest, [&](float bound) {
          const float above = logits.template reduce<Sum>(
              [&](float x, int) { return x > bound ? weight(x) : 0.0f; });
          return above < enough;
        });
        least = fmaxf(least, nucleus);
      }
      least = fmaxf(least, static_cast<float>(static_cast<double>(largest) + reach));
      token = pick(logits.vocab(), args.random[index], [&](int i) { return weight(logits[i]); });
    }
  }
  if (threadIdx.x == 0) args.out[index] = token;
}

// `seen`, [batch, words], is zero before: a bit for each id of the row.
template <class T>
__global__ void __launch_bounds__(kPenalizeThreads)
    penalize_kernel(const PenalizeArgs<T> args, unsigned* const seen, const std::int64_t words) {
  const std::int64_t row = blockIdx.x;
  T* const logits = args.logits + row * args.stride;
  // Nobody has checked the offsets and ids.
  const std::int64_t begin = max(args.cu_ids[row], 0);
  const std::int64_t end = min(static_cast<std::int64_t>(args.cu_ids[row + 1]), args.num_ids);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const int id = args.ids[i];
    if (id < 0 || id >= args.vocab) continue;
    const unsigned bit = 1u << id % 32;
    if (atomicOr(seen + row * words + id / 32, bit) & bit) continue;
    const auto logit = static_cast<float>(logits[id]);
    logits[id] = static_cast<T>(logit > 0.0f ? logit / args.penalty : logit * args.penalty);
  }
}

template <class T>
__global__ void __launch_bounds__(kSoftcapThreads) softcap_kernel(const SoftcapArgs<T> args) {
  T* const logits = args.logits + blockIdx.x * args.stride;
  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.y) * (kSoftcapThreads * kSoftcapElements) + threadIdx.x;
#pragma unroll
  for (int j = 0; j < kSoftcapElements; ++j) {
    const std::int64_t i = first + j * kSoftcapThreads;
    if (i < args.vocab)
      logits[i] = static_cast<T>(args.cap * tanhf(static_cast<float>(logits[i]) / args.cap));
  }
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    token_logprobs_kernel(const TokenLogprobsArgs<T> args) {
  const std::int64_t index = blockIdx.x;
  Logits<T> logits(args.logits + index * args.stride, args.vocab);
  const float largest = logits.template reduce<Max>([](float x, int) { return x; });
  const float total =
      logits.template reduce<Sum>([largest](float x, int) { return expf(x - largest); });
  if (threadIdx.x != 0) return;
  const int id = args.ids[index];
  const bool inside = id >= 0 && id < args.vocab;  // nobody has checked it
  args.out[index] = inside ? (logits[id] - largest) - logf(total) : NAN;
}

namespace {

LaunchShape shape_of(std::int64_t rows, std::int64_t vocab, Stream stream) {
  constexpr std::int64_t kElements = 4;  // of a thread, at least
  const std::int64_t warps = (vocab + kElements * kWarp - 1) / (kElements * kWarp);
  return {.grid = dim3(static_cast<unsigned>(rows)),
          .block = dim3(
              static_cast<unsigned>(std::clamp<std::int64_t>(kWarp * warps, kWarp, kMaxThreads))),
          .shared_bytes = kSharedBytes,
          .stream = stream};
}

}  // namespace

template <class T>
void sample(const SampleArgs<T>& args, Stream stream) {
  // -inf where min_p is 0.
  const double reach = static_cast<double>(args.temperature) * std::log(args.min_p);
  launch(sample_kernel<T>, shape_of(args.batch, args.vocab, stream), args, reach);
}

template <class T>
void penalize(const PenalizeArgs<T>& args, Stream stream) {
  const std::int64_t words = (args.vocab + 31) / 32;
  const std::size_t bytes = static_cast<std::size_t>(args.batch * words) * sizeof(unsigned);
  const Scratch seen(bytes, stream);
  fill_zero(seen.data<void>(), bytes, stream);
  launch(penalize_kernel<T>,
         {.grid = dim3(static_cast<unsigned>(args.batch)),
          .block = dim3(kPenalizeThreads),
          .stream = stream},
         args, seen.data<unsigned>(), words);
}

template <class T>
void softcap(const SoftcapArgs<T>& args, Stream stream) {
  constexpr std::int64_t kColumns = kSoftcapThreads * kSoftcapElements;
  launch(softcap_kernel<T>,
         {.grid = dim3(static_cast<unsigned>(args.rows),
                       static_cast<unsigned>((args.vocab + kColumns - 1) / kColumns)),
          .block = dim3(kSoftcapThreads),
          .stream = stream},
         args);
}

template <class T>
void token_logprobs(const TokenLogprobsArgs<T>& args, Stream stream) {
  launch(token_logprobs_kernel<T>, shape_of(args.rows, args.vocab, stream), args);
}

#define SOFTGATE_INSTANCES(T)                             \
  template void sample(const SampleArgs<T>&, Stream);     \
  template void penalize(const PenalizeArgs<T>&, Stream); \
  template void softcap(const SoftcapArgs<T>&, Stream);   \
  template void token_logprobs(const TokenLogprobsArgs<T>&, Stream);
SOFTGATE_INSTANCES(float)
SOFTGATE_INSTANCES(half)
SOFTGATE_INSTANCES(bfloat16)
#undef SOFTGATE_INSTANCES

}  // namespace softgate::cuda
