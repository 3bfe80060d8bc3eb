// What the kernels of attention share: where a sequence's rows and keys lie, which blocks of keys a
// tile of rows needs, what becomes of a product, and the results of a split.
#pragma once

#include "cuda/kernel.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sequences.cuh"
#include "ops/attention.h"

namespace softgate::cuda {
namespace attention_detail {  // not without a name, so that simt finds its kernels' names

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;
constexpr float kLowest = -0x1.fffffep127f;  // of all numbers
constexpr float kInf = __builtin_inff();

// Of a number and NaN, the number: a NaN score is no maximum, its weight is NaN anyway.
struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

struct Range {
  int begin, end;
};

// Sequences are cut into parts of at most `size` items; this is the number of the first part of
// the sequence that begins at item `offset`. Parts of different sequences never share a number,
// some numbers stay unused, and all are below part_count.
__device__ __forceinline__ std::int64_t first_part(std::int64_t offset, int sequence, int size) {
  return offset / size + sequence;
}

inline std::int64_t part_count(std::int64_t items, std::int64_t batch, int size) {
  return items / size + batch;
}

// One sequence under one key-value head.
struct Sequence {
  int index, kv_head, group;
  int first_query, len_q, len_k;
  int key_place;  // the first key, or the row of the cache
  int window_left, window_right;

  template <class T>
  __device__ __forceinline__ Sequence(const AttentionArgs<T>& args, int sequence, int kv_head_)
      : index(sequence),
        kv_head(kv_head_),
        group(static_cast<int>(args.num_heads / args.num_kv_heads)),
        first_query(args.cu_seqlens_q[sequence]),
        len_q(args.cu_seqlens_q[sequence + 1] - first_query),
        window_left(static_cast<int>(args.window_left)),
        window_right(static_cast<int>(args.window_right)) {
    if (args.lengths_k) {  // nobody has checked these
      key_place = args.cache_rows ? args.cache_rows[sequence] : sequence;
      const bool inside = key_place >= 0 && key_place < args.num_rows;
      len_k = inside ? max(min(args.lengths_k[sequence], static_cast<int>(args.max_k)), 0) : 0;
    } else {
      key_place = args.cu_seqlens_k[sequence];
      len_k = args.cu_seqlens_k[sequence + 1] - key_place;
    }
  }

  __device__ __forceinline__ int rows() const { return len_q * group; }
  __device__ __forceinline__ int query_of(int row) const { return row / group; }
  __device__ __forceinline__ int head_of(int row) const { return kv_head * group + row % group; }

  template <class T>
  __device__ __forceinline__ const T* q_of(const AttentionArgs<T>& args, int row) const {
    return args.q + (first_query + query_of(row)) * args.q_stride +
           head_of(row) * args.q_head_stride;
  }
  template <class T>
  __device__ __forceinline__ T* out_of(const AttentionArgs<T>& args, int row) const {
    return args.out + (first_query + query_of(row)) * args.out_stride +
           head_of(row) * args.out_head_stride;
  }
  template <class T>
  __device__ __forceinline__ float* lse_of(const AttentionArgs<T>& args, int row) const {
    return args.lse + head_of(row) * args.lse_stride + first_query + query_of(row);
  }

  // Not to be read where there are no keys: the place may be none.
  template <class T>
  __device__ __forceinline__ const T* k_of(const AttentionArgs<T>& args) const {
    return args.k + key_place * args.k_row_stride + kv_head * args.k_head_stride;
  }
  template <class T>
  __device__ __forceinline__ const T* v_of(const AttentionArgs<T>& args) const {
    return args.v + key_place * args.v_row_stride + kv_head * args.v_head_stride;
  }

  // Keys that the causal bound and the window leave to a query. In 64 bits: a bound may be any int.
  __device__ __forceinline__ Range keys_of(int query) const {
    const std::int64_t position = std::int64_t{query} + len_k - len_q;
    const std::int64_t begin = window_left < 0 ? 0 : position - window_left;
    const std::int64_t end = window_right < 0 ? len_k : position + window_right + 1;
    return {clamp(begin), clamp(end)};
  }

 private:
  __device__ __forceinline__ int clamp(std::int64_t key) const {
    return static_cast<int>(key < 0 ? 0 : key > len_k ? len_k : key);
  }
};

constexpr int kRowThreads = 128;  // of kernels with a warp per row
constexpr int kSplitKeys = 256;   // fixed, so that a result does not depend on the card
constexpr int kSplitRows = 16;    // a sequence of so many rows is split

// As first_part, of a sequence's keys; of a cache, every row has parts for all that it may hold.
template <class T>
__device__ __forceinline__ std::int64_t first_part_of_keys(const AttentionArgs<T>& args,
                                                           int sequence) {
  if (args.lengths_k) return sequence * (args.max_k / kSplitKeys + 1);
  return first_part(args.cu_seqlens_k[sequence], sequence, kSplitKeys);
}

template <class T>
std::int64_t part_count_of_keys(const AttentionArgs<T>& args) {
  if (args.lengths_k) return args.batch * (args.max_k / kSplitKeys + 1);
  return part_count(args.total_k, args.batch, kSplitKeys);
}

// The blocks of keys that a tile of rows needs: first those that some row sees in part, then those
// that every row sees whole, so that the latter are a loop without masks.
struct KeyBlocks {
  int count, masked;  // of all blocks; of the masked ones

  // Of the keys within `limits`, a multiple of `size` at its begin.
  __device__ __forceinline__ KeyBlocks(const Sequence& sequence, Range rows, Range limits,
                                       int size) {
    const Range first = sequence.keys_of(sequence.query_of(rows.begin));
    const Range last = sequence.keys_of(sequence.query_of(rows.end - 1));
    begin_ = max(first.begin, limits.begin) / size;
    const int end = (min(last.end, limits.end) + size - 1) / size;
    count = max(end - begin_, 0);
    whole_ = min(max((last.begin + size - 1) / size, begin_), end);
    whole_end_ = max(min(min(first.end, limits.end) / size, end), whole_);
    if (whole_ == begin_ && whole_end_ > whole_) ++whole_;  // there is a masked block, if any
    masked = count - (whole_end_ - whole_);
  }

  __device__ __forceinline__ int operator[](int i) const {
    const int left = whole_ - begin_;
    return i < left ? begin_ + i : i < masked ? whole_end_ + (i - left) : whole_ + (i - masked);
  }

 private:
  int begin_, whole_, whole_end_;
};

// Scaled, capped, with the bias and masked, in units of the natural logarithm.
template <class T>
__device__ __forceinline__ float final_score(const AttentionArgs<T>& args, const Sequence& sequence,
                                             int row, int key, float product) {
  float score = product * args.scale;
  if (args.softcap > 0.0f) score = args.softcap * tanhf(score / args.softcap);
  if (args.relative_bias) {
    const int query = sequence.query_of(row), reach = static_cast<int>(args.bias_reach);
    const int distance = min(max(key - (query + sequence.len_k - sequence.len_q), -reach), reach);
    score += args.relative_bias[sequence.head_of(row) * args.bias_head_stride + reach + distance];
  }
  const std::int64_t place = sequence.index * args.mask_batch_stride +
                             sequence.head_of(row) * args.mask_head_stride +
                             sequence.query_of(row) * args.mask_row_stride + key;
  if (args.bool_mask && !args.bool_mask[place]) score = -kInf;
  if (args.add_mask) score += args.add_mask[place];
  return score;
}

// Results of a split, [part of the keys * kPartials + partial][kv_head][kSplitRows]: the output
// over some of the part's keys alone, and its log-sum-exp.
template <class Shape>
struct Partials {
  float* out;  // [..., kHeadDim]
  float* lse;
  std::int64_t num_kv_heads;

  __device__ __forceinline__ std::int64_t index(std::int64_t part, int partial, int kv_head,
                                                int row) const {
    return ((part * Shape::kPartials + partial) * num_kv_heads + kv_head) * kSplitRows + row;
  }
};

}  // namespace attention_detail
}  // namespace softgate::cuda
