// attention as FlashAttention-2 does it (Dao 2023): a block of threads owns a tile of query rows
// and walks over blocks of keys with an online softmax, scores and output in registers.
//
// A row is a query of one of the heads that share a key-value head; heads run fastest, so grouped
// heads read their keys once. Tiles are numbered over the packed batch (first_part), so that no
// launch depends on a length that only the device knows. Sequences of few rows have their keys
// split over blocks, whatever else is in the batch: decoding, where keys lie in a cache, too.
#include "ops/attention.h"

#include <type_traits>

#include "core/check.h"
#include "cuda/kernel.cuh"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"
#include "cuda/runtime.h"
#include "cuda/sequences.cuh"

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

std::int64_t part_count(std::int64_t items, std::int64_t batch, int size) {
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

// ---- 16-bit types: tensor cores ----

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const ptx::Fragment& a, std::uint32_t b0,
                                    std::uint32_t b1) {
  if constexpr (std::is_same_v<T, half>)
    ptx::mma_m16n8k16_f32_f16(d, a, b0, b1);
  else
    ptx::mma_m16n8k16_f32_bf16(d, a, b0, b1);
}

template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, half>)
    return ptx::cvt_rn_f16x2(low, high);
  else
    return ptx::cvt_rn_bf16x2(low, high);
}

constexpr int kChunkBytes = 16;  // what one thread copies at a time
constexpr int kChunkElements = kChunkBytes / 2;

// How a block divides its work. Without a split each warp owns rows; with it, for few rows, each
// warp owns keys, and a block only kSplitKeys of them.
template <int kHeadDim_, bool kSplit_>
struct Shape {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kSplit = kSplit_;
  static constexpr int kWarps = kSplit && kHeadDim > 128 ? 2 : 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowTiles = kSplit || kHeadDim > 128 ? 1 : 2;  // of 16 rows, per warp
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kSplit ? kWarpRows : kWarps * kWarpRows;
  static constexpr int kKeys = kHeadDim > 128 ? 32 : kHeadDim > 64 || kSplit ? 64 : 128;
  static constexpr int kWarpKeys = kSplit ? kKeys / kWarps : kKeys;
  static constexpr int kRowBytes = 2 * kHeadDim;
  static constexpr int kPartials = kWarps;  // of a part of the keys
  static constexpr int kSharedBytes = (kRows + 2 * kKeys) * kRowBytes;
  static_assert(kSharedBytes <= 65536, "the limit of compute capability 7.5");
};

// With half the keys at a time: masks and a soft cap need the registers of the other scores.
template <class Shape>
struct Narrow : Shape {
  static constexpr int kKeys = Shape::kKeys / 2, kWarpKeys = kKeys;
  static constexpr int kSharedBytes = (Shape::kRows + 2 * kKeys) * Shape::kRowBytes;
};

// kGeneral: with a mask, a relative bias, a soft cap, or a scale that is not positive.
template <class Shape, bool kGeneral>
using TileShape =
    std::conditional_t<kGeneral && !Shape::kSplit && Shape::kHeadDim <= 128, Narrow<Shape>, Shape>;

// Rows of a tile in shared memory. Chunks of a row are permuted so that eight rows of a chunk, and
// eight chunks of a row, lie in different banks.
template <int kHeadDim>
struct Swizzle {
  static constexpr int kChunks = 2 * kHeadDim / kChunkBytes;
  static constexpr int kPeriod = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;
  static_assert(kChunks % kPeriod == 0);
  // Chunk pairs whose addresses are not a constant apart.
  static constexpr int kPhases = kPeriod / 2;

  static __device__ __forceinline__ int offset(int row, int chunk) {
    const int turn = row / (8 / kPeriod) % kPeriod;
    return (row * kChunks + (chunk ^ turn)) * kChunkBytes;
  }
};

// Addresses for ldmatrix of 16 rows and 16 columns, in this lane's row of one of the four matrices.
template <int kHeadDim>
class LaneOffset {
 public:
  __device__ __forceinline__ LaneOffset(int row, int chunk)
      : offset_(Swizzle<kHeadDim>::offset(row, chunk)) {}

  // From row on, a multiple of 8, and from column 16 * pair on.
  __device__ __forceinline__ int operator()(int row, int pair) const {
    return (offset_ ^ pair % kPhases * 2 * kChunkBytes) + row * 2 * kHeadDim +
           pair / kPhases * kPhases * 2 * kChunkBytes;
  }

 private:
  static constexpr int kPhases = Swizzle<kHeadDim>::kPhases;
  int offset_;
};

// Copies blocks of keys or values to shared memory, each thread always the same chunk of a row.
template <class Shape>
class BlockCopy {
 public:
  template <class T>
  __device__ __forceinline__ BlockCopy(const T* first, std::int64_t stride, char* shared)
      : stride_(static_cast<int>(stride) * 2), shared_(shared) {
    from_ = reinterpret_cast<const char*>(first) + row() * std::int64_t{stride_} +
            chunk() * kChunkBytes;
  }

  // Rows beyond the sequence become zero.
  __device__ __forceinline__ void copy(int block, int len) const {
    const int rows_left = len - block * Shape::kKeys - row();
    const char* from = from_ + std::int64_t{block * Shape::kKeys} * stride_;
#pragma unroll
    for (int below = 0; below < Shape::kKeys; below += kPassRows) {
      const bool inside = below < rows_left;
      if (takes_part(below))
        ptx::cp_async_16(to(below), inside ? from + below * std::int64_t{stride_} : from_,
                         inside ? 16 : 0);
    }
    finish_group();
  }

  // From here on only copy_next, which begins with this block.
  __device__ __forceinline__ void go_to(int block) {
    from_ += std::int64_t{block * Shape::kKeys} * stride_;
  }
  // Of a block that lies within the sequence.
  __device__ __forceinline__ void copy_next() {
    constexpr int kPasses = (Shape::kKeys + kPassRows - 1) / kPassRows;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (takes_part(pass * kPassRows)) ptx::cp_async_16(to(pass * kPassRows), from_);
      from_ += std::int64_t{kPassRows} * stride_;
    }
    finish_group();
    from_ += std::int64_t{Shape::kKeys - kPasses * kPassRows} * stride_;
  }

 private:
  static constexpr int kChunks = Swizzle<Shape::kHeadDim>::kChunks;
  static constexpr int kPassRows = Shape::kThreads / kChunks;

  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / kChunks; }
  static __device__ __forceinline__ int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }

  static __device__ __forceinline__ void finish_group() {
    if constexpr (Shape::kThreads % kChunks != 0 || Shape::kKeys % kPassRows != 0)
      __syncwarp();  // lanes that take no part wait for the others
    ptx::cp_async_commit();
  }

  // In a pass, which begins `below` this thread's first row.
  static __device__ __forceinline__ bool takes_part(int below) {
    return (Shape::kThreads % kChunks == 0 || row() < kPassRows) &&
           (Shape::kKeys % kPassRows == 0 || row() + below < Shape::kKeys);
  }

  __device__ __forceinline__ char* to(int below) const {
    using Places = Swizzle<Shape::kHeadDim>;
    if constexpr (kPassRows % 8 == 0)  // the permutation repeats after eight rows
      return shared_ + Places::offset(row(), chunk()) + below * Shape::kRowBytes;
    else
      return shared_ + Places::offset(row() + below, chunk());
  }

  const char* from_;
  int stride_;  // in bytes
  char* shared_;
};

// Two values of each of the four rows (or two) that a thread holds of a warp's tile. Element
// [tile][column / 8][2 * half + c] is row 16 * tile + 8 * half + lane / 4,
// column 2 * (lane % 4) + c.
template <int kRowTiles, int kColumns>
struct Accumulator {
  float x[kRowTiles][kColumns / 8][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) x[m][n][e] = 0.0f;
  }
};

// body(tile, half, row within the warp's tile)
template <int kRowTiles, class Body>
__device__ __forceinline__ void each_row(Body body) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int half_tile = 0; half_tile < 2; ++half_tile)
      body(m, half_tile, 16 * m + 8 * half_tile + lane() / 4);
}

template <class T, class Shape, bool kGeneral>
class WarpTile {
 public:
  __device__ __forceinline__ explicit WarpTile(const AttentionArgs<T>& args)
      : args_(args),
        factor_(args.scale * kLog2E),
        along_columns_(lane() % 16, lane() / 16),
        along_rows_(lane() % 8 + lane() / 16 * 8, lane() / 8 % 2) {
    out_.clear();
    each_row<kRowTiles>([&](int m, int h, int) {
      maximum_[m][h] = kLowest;  // not -inf, so that a row without keys needs no care
      sum_[m][h] = 0.0f;
    });
  }

  // scores = q k^T, of rows and keys that begin at q and k in shared memory
  __device__ __forceinline__ void multiply_keys(const char* q, const char* k) {
    scores_.clear();
#pragma unroll
    for (int d = 0; d < Shape::kHeadDim / 16; ++d) {
      ptx::Fragment rows[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) rows[m] = ptx::ldmatrix_x4(q + along_columns_(16 * m, d));
#pragma unroll
      for (int n = 0; n < Shape::kWarpKeys / 16; ++n) {
        const ptx::Fragment keys = ptx::ldmatrix_x4(k + along_rows_(16 * n, d));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma<T>(scores_.x[m][2 * n], rows[m], keys.x[0], keys.x[1]);
          mma<T>(scores_.x[m][2 * n + 1], rows[m], keys.x[2], keys.x[3]);
        }
      }
    }
  }

  // Finds which keys the rows see of those from first_key on.
  __device__ __forceinline__ void look_up_bounds(const Sequence& sequence, int first_row,
                                                 int first_key) {
    each_row<kRowTiles>([&](int m, int h, int row) {
      row = min(first_row + row, sequence.rows() - 1);
      const Range seen = sequence.keys_of(sequence.query_of(row));
      const int begin = min(max(seen.begin - first_key, 0), Shape::kWarpKeys);
      const int end = min(max(seen.end - first_key, 0), Shape::kWarpKeys);
      bounds_[m][h] = static_cast<std::uint32_t>(begin | end << 16);
    });
  }

  // Applies the bounds, and what else final_score does.
  __device__ __forceinline__ void mask(const Sequence& sequence, int first_row, int first_key) {
    each_row<kRowTiles>([&](int m, int h, int row) {
      const int begin = static_cast<int>(bounds_[m][h] & 0xffff) - 2 * (lane() % 4);
      const int end = static_cast<int>(bounds_[m][h] >> 16) - 2 * (lane() % 4);
#pragma unroll
      for (int n = 0; n < Shape::kWarpKeys / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores_.x[m][n][2 * h + c];
          if (8 * n + c < begin || 8 * n + c >= end)
            score = -kInf;
          else if constexpr (kGeneral)
            score = final_score(args_, sequence, min(first_row + row, sequence.rows() - 1),
                                first_key + 2 * (lane() % 4) + 8 * n + c, score);
        }
    });
    if constexpr (kGeneral) __syncwarp();  // lanes may have parted
  }

  // Raises the maxima to the scores'; sums and output so far shrink to them.
  __device__ __forceinline__ void raise_maxima() {
    each_row<kRowTiles>([&](int m, int h, int) {
      float top = scores_.x[m][0][2 * h];
#pragma unroll
      for (int n = 0; n < Shape::kWarpKeys / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) top = fmaxf(top, scores_.x[m][n][2 * h + c]);
      top = fmaxf(maximum_[m][h], in_units(warp_reduce<Larger, 4>(top)));
      const float shrink = exponential(maximum_[m][h] - top);
      maximum_[m][h] = top;
      sum_[m][h] *= shrink;
#pragma unroll
      for (int n = 0; n < Shape::kHeadDim / 8; ++n)
#pragma unroll
        for (int c = 2 * h; c < 2 * h + 2; ++c) out_.x[m][n][c] *= shrink;
    });
  }

  // weights = exp(scores - maxima), sums += weights, out += weights v
  __device__ __forceinline__ void add_values(const char* v) {
#pragma unroll
    for (int n = 0; n < Shape::kWarpKeys / 16; ++n) {
      // Accumulators of 16 rows and twice 8 keys are, rounded, the fragment of 16 rows and 16 keys.
      ptx::Fragment weights[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int h = i % 2;
          const float* pair = &scores_.x[m][2 * n + i / 2][2 * h];
          const float low = weight(pair[0], maximum_[m][h]);
          const float high = weight(pair[1], maximum_[m][h]);
          sum_[m][h] += low;
          sum_[m][h] += high;
          weights[m].x[i] = pack<T>(low, high);
        }
#pragma unroll
      for (int d = 0; d < Shape::kHeadDim / 16; ++d) {
        const ptx::Fragment values = ptx::ldmatrix_x4_trans(v + along_columns_(16 * n, d));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma<T>(out_.x[m][2 * d], weights[m], values.x[0], values.x[1]);
          mma<T>(out_.x[m][2 * d + 1], weights[m], values.x[2], values.x[3]);
        }
      }
    }
  }

  // Divides by the sums; body(tile, half, row, lse)
  template <class Body>
  __device__ __forceinline__ void finish(Body body) {
    each_row<kRowTiles>([&](int m, int h, int row) {
      const float sum = warp_reduce<Sum, 4>(sum_[m][h]);
      const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
      for (int n = 0; n < Shape::kHeadDim / 8; ++n)
#pragma unroll
        for (int c = 2 * h; c < 2 * h + 2; ++c) out_.x[m][n][c] *= inverse;
      body(m, h, row, sum == 0.0f ? -kInf : maximum_[m][h] * kUnit + logf(sum));
    });
  }

  __device__ __forceinline__ const auto& out() const { return out_.x; }

 private:
  static constexpr int kRowTiles = Shape::kRowTiles;

  // Maxima are in units of the natural logarithm where final_score gives such scores. Elsewhere
  // they are in units of that of 2, so that one operation scales a product and takes off the
  // maximum.
  static constexpr float kUnit = kGeneral ? 1.0f : kLn2;

  __device__ __forceinline__ float in_units(float score) const {
    return kGeneral ? score : score * factor_;
  }
  __device__ __forceinline__ float exponential(float x) const {
    return ptx::ex2_approx_ftz(kGeneral ? x * kLog2E : x);
  }
  __device__ __forceinline__ float weight(float score, float maximum) const {
    return exponential(kGeneral ? score - maximum : fmaf(score, factor_, -maximum));
  }

  const AttentionArgs<T>& args_;
  float factor_;
  // The matrices of keys run along a row first, the others along a column: a product takes its two
  // or four in neighbouring registers.
  LaneOffset<Shape::kHeadDim> along_columns_, along_rows_;
  Accumulator<kRowTiles, Shape::kWarpKeys> scores_;
  Accumulator<kRowTiles, Shape::kHeadDim> out_;
  float maximum_[kRowTiles][2], sum_[kRowTiles][2];
  // Of the keys at hand, the first and, above it, the last plus one: two in one register, for these
  // are dear.
  std::uint32_t bounds_[kRowTiles][2];
};

template <class T, class Shape>
__device__ __forceinline__ void load_queries(const AttentionArgs<T>& args, const Sequence& sequence,
                                             int first_row, char* shared) {
  constexpr int kChunks = Swizzle<Shape::kHeadDim>::kChunks;
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kRows * kChunks; i += Shape::kThreads) {
    const int row = first_row + i / kChunks;
    const bool inside = row < sequence.rows();
    const T* from = inside ? sequence.q_of(args, row) + i % kChunks * kChunkElements : args.q;
    ptx::cp_async_16(shared + Swizzle<Shape::kHeadDim>::offset(i / kChunks, i % kChunks), from,
                     inside ? 16 : 0);
  }
  ptx::cp_async_commit();
}

template <class T, class Whole, bool kGeneral>
__global__ void __launch_bounds__(Whole::kThreads)
    attention_kernel(const AttentionArgs<T> args, const Partials<Whole> partials) {
  using Shape = TileShape<Whole, kGeneral>;
  // Tiles of later rows first: under a causal bound they take longest.
  const int part = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const auto kv_head = static_cast<int>(blockIdx.y);
  const int items = Shape::kSplit ? 1 : static_cast<int>(args.num_heads / args.num_kv_heads);
  constexpr int kPartSize = Shape::kSplit ? kSplitKeys : Shape::kRows;
  const auto part_of = [&](int sequence) {
    if constexpr (Shape::kSplit) return first_part_of_keys(args, sequence);
    return first_part(std::int64_t{args.cu_seqlens_q[sequence]} * items, sequence, kPartSize);
  };
  const int index = find_sequence(static_cast<int>(args.batch),
                                  [&](int sequence) { return part_of(sequence + 1) > part; });
  // Registers are dear: where these are needed again they are looked up again.
  const auto look_up = [&] { return Sequence(args, index, kv_head); };
  const auto first_row = [&] {
    return Shape::kSplit ? 0 : static_cast<int>(part - part_of(index)) * kPartSize;
  };

  const Sequence sequence = look_up();
  if ((sequence.rows() <= kSplitRows) != Shape::kSplit) return;
  const int first_item = static_cast<int>(part - part_of(index)) * kPartSize;
  if (first_item >= (Shape::kSplit ? sequence.len_k : sequence.rows())) return;
  const int rows = min(sequence.rows() - first_row(), Shape::kRows);
  if (rows <= 0) return;
  const Range limits =
      Shape::kSplit ? Range{first_item, first_item + kSplitKeys} : Range{0, sequence.len_k};
  const KeyBlocks blocks(sequence, {first_row(), first_row() + rows}, limits, Shape::kKeys);

  char* const shared_q = reinterpret_cast<char*>(shared_memory());
  char* const shared_k = shared_q + Shape::kRows * Shape::kRowBytes;
  char* const shared_v = shared_k + Shape::kKeys * Shape::kRowBytes;
  BlockCopy<Shape> keys(sequence.k_of(args), args.k_stride, shared_k);
  BlockCopy<Shape> values(sequence.v_of(args), args.v_stride, shared_v);

  const int warp_row = Shape::kSplit ? 0 : warp() * Shape::kWarpRows;
  const int warp_key = Shape::kSplit ? warp() * Shape::kWarpKeys : 0;
  char* const warp_q = shared_q + warp_row * Shape::kRowBytes;
  const char* const warp_k = shared_k + warp_key * Shape::kRowBytes;
  const char* const warp_v = shared_v + warp_key * Shape::kRowBytes;
  WarpTile<T, Shape, kGeneral> tile(args);

  load_queries<T, Shape>(args, sequence, first_row(), shared_q);
  if (blocks.count > 0) keys.copy(blocks[0], sequence.len_k);

  // Values travel while keys are multiplied, the next keys during the rest. After the last masked
  // block the inner loop goes on to the whole ones.
  const int masked = kGeneral ? blocks.count : blocks.masked;
  for (int i = 0; i < masked; ++i) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    values.copy(blocks[i], look_up().len_k);
    tile.look_up_bounds(look_up(), first_row() + warp_row, blocks[i] * Shape::kKeys + warp_key);
    tile.multiply_keys(warp_q, warp_k);
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (i + 1 < blocks.count) keys.copy(blocks[i + 1], look_up().len_k);
    tile.mask(look_up(), first_row() + warp_row, blocks[i] * Shape::kKeys + warp_key);
    int whole = i + 1 == masked ? blocks.count - masked : 0;
    if (whole > 0) {
      values.go_to(blocks[masked]);
      keys.go_to(blocks[masked] + 1);
    }
    for (;; --whole) {
      tile.raise_maxima();
      tile.add_values(warp_v);
      if (whole == 0) break;
      ptx::cp_async_wait<0>();
      __syncthreads();
      values.copy_next();
      tile.multiply_keys(warp_q, warp_k);
      ptx::cp_async_wait<0>();
      __syncthreads();
      if (whole > 1) keys.copy_next();
    }
  }

  if constexpr (Shape::kSplit) {
    tile.finish([&](int m, int h, int row, float lse) {
      if (row >= rows) return;
      const std::int64_t place = partials.index(part, warp(), kv_head, row);
      if (lane() % 4 == 0) partials.lse[place] = lse;
#pragma unroll
      for (int n = 0; n < Shape::kHeadDim / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          partials.out[place * Shape::kHeadDim + 8 * n + 2 * (lane() % 4) + c] =
              tile.out()[m][n][2 * h + c];
    });
  } else {
    // Through this warp's part of shared_q, which no other warp reads, for whole chunks.
    ptx::cp_async_wait<0>();
    __syncthreads();
    const Sequence again = look_up();
    const int row_0 = first_row();
    tile.finish([&](int m, int h, int row, float lse) {
      row += warp_row;
      if (args.lse && lane() % 4 == 0 && row_0 + row < again.rows())
        *again.lse_of(args, row_0 + row) = lse;
#pragma unroll
      for (int n = 0; n < Shape::kHeadDim / 8; ++n)
        reinterpret_cast<std::uint32_t*>(shared_q +
                                         Swizzle<Shape::kHeadDim>::offset(row, n))[lane() % 4] =
            pack<T>(tile.out()[m][n][2 * h], tile.out()[m][n][2 * h + 1]);
    });
    __syncwarp();
    constexpr int kChunks = Swizzle<Shape::kHeadDim>::kChunks;
    for (int i = lane(); i < Shape::kWarpRows * kChunks; i += kWarp) {
      const int row = warp_row + i / kChunks, chunk = i % kChunks;
      if (row_0 + row >= again.rows()) break;
      *reinterpret_cast<uint4*>(again.out_of(args, row_0 + row) + chunk * kChunkElements) =
          *reinterpret_cast<const uint4*>(shared_q + Swizzle<Shape::kHeadDim>::offset(row, chunk));
    }
  }
}

// Joins the partial results of a query and head, a warp for each.
template <class T, class Shape>
__global__ void __launch_bounds__(kRowThreads)
    combine_kernel(const AttentionArgs<T> args, const Partials<Shape> partials) {
  const int query = static_cast<int>(blockIdx.x) * (kRowThreads / kWarp) + warp();
  if (query >= args.total_q) return;
  const int index = find_sequence(static_cast<int>(args.batch), [&](int sequence) {
    return args.cu_seqlens_q[sequence + 1] > query;
  });
  const int head = static_cast<int>(blockIdx.y);
  const int group = static_cast<int>(args.num_heads / args.num_kv_heads);
  const Sequence sequence(args, index, head / group);
  if (sequence.rows() > kSplitRows) return;
  const int row = (query - sequence.first_query) * group + head % group;

  const std::int64_t part = first_part_of_keys(args, index);
  const int count = (sequence.len_k + kSplitKeys - 1) / kSplitKeys * Shape::kPartials;
  const auto place = [&](int i) {
    return partials.index(part + i / Shape::kPartials, i % Shape::kPartials, sequence.kv_head, row);
  };

  float top = kLowest;
  for (int i = lane(); i < count; i += kWarp) top = fmaxf(top, partials.lse[place(i)]);
  top = warp_reduce<Larger>(top);
  float sum = 0.0f;
  float out[(Shape::kHeadDim + kWarp - 1) / kWarp] = {};
  for (int i = 0; i < count; ++i) {
    const float weight = ptx::ex2_approx_ftz((partials.lse[place(i)] - top) * kLog2E);
    sum += weight;
#pragma unroll
    for (int d = 0; d < Shape::kHeadDim; d += kWarp)
      if (d + lane() < Shape::kHeadDim)
        out[d / kWarp] += weight * partials.out[place(i) * Shape::kHeadDim + d + lane()];
  }
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
  for (int d = 0; d < Shape::kHeadDim; d += kWarp)
    if (d + lane() < args.head_dim)
      sequence.out_of(args, row)[d + lane()] = static_cast<T>(out[d / kWarp] * inverse);
  if (args.lse && lane() == 0) *sequence.lse_of(args, row) = sum == 0.0f ? -kInf : top + logf(sum);
}

// ---- float32: multiplied and added in float32 ----

// A warp owns rows; its lanes are keys for the scores and columns for the output. Any head size up
// to kPaddedDim, any strides.
template <int kPaddedDim_, bool kSplit_>
struct FloatShape {
  static constexpr int kPaddedDim = kPaddedDim_, kHeadDim = kPaddedDim;
  static constexpr bool kSplit = kSplit_;
  static constexpr int kPartials = 1;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kWarpRows = kSplit || kPaddedDim > 128 ? 4 : 8;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kKeys = kWarp;
  static constexpr int kKeyPitch = kPaddedDim + 4;  // lanes read keys without bank conflicts
  static constexpr int kSharedBytes =
      4 * (kRows * kPaddedDim + kKeys * kKeyPitch + kWarps * kWarpRows * kKeys);
};

// Rows [first, first + kCount) below `end` of a tensor, zeros for the others and beyond head_dim.
// row_of(row) is where a row lies.
template <class Shape, int kCount, int kPitch, class RowOf>
__device__ __forceinline__ void load_floats(float* to, int first, int end, int head_dim,
                                            RowOf row_of) {
  for (int i = warp(); i < kCount; i += Shape::kWarps) {
    const float* row = row_of(min(first + i, end - 1));
    for (int d = lane(); d < Shape::kPaddedDim; d += kWarp) {
      const float value = row[min(d, head_dim - 1)];  // without a branch: lanes stay together
      to[i * kPitch + d] = first + i < end && d < head_dim ? value : 0.0f;
    }
  }
}

template <class Shape, bool kGeneral>
__global__ void __launch_bounds__(Shape::kThreads)
    attention_float_kernel(const AttentionArgs<float> args, const Partials<Shape> partials) {
  constexpr int kWarpRows = Shape::kWarpRows, kPaddedDim = Shape::kPaddedDim;
  const int part = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int items = Shape::kSplit ? 1 : static_cast<int>(args.num_heads / args.num_kv_heads);
  constexpr int kPartSize = Shape::kSplit ? kSplitKeys : Shape::kRows;
  const auto part_of = [&](int sequence) {
    if constexpr (Shape::kSplit) return first_part_of_keys(args, sequence);
    return first_part(std::int64_t{args.cu_seqlens_q[sequence]} * items, sequence, kPartSize);
  };
  const int index = find_sequence(static_cast<int>(args.batch),
                                  [&](int sequence) { return part_of(sequence + 1) > part; });
  const Sequence sequence(args, index, static_cast<int>(blockIdx.y));
  if ((sequence.rows() <= kSplitRows) != Shape::kSplit) return;
  const int first_item = static_cast<int>(part - part_of(index)) * kPartSize;
  const int first_row = Shape::kSplit ? 0 : first_item;
  const int rows = min(sequence.rows() - first_row, Shape::kRows);
  if (rows <= 0 || (Shape::kSplit && first_item >= sequence.len_k)) return;
  const Range limits =
      Shape::kSplit ? Range{first_item, first_item + kSplitKeys} : Range{0, sequence.len_k};
  const int head_dim = static_cast<int>(args.head_dim);

  float* const shared_q = reinterpret_cast<float*>(shared_memory());
  float* const shared_kv = shared_q + Shape::kRows * kPaddedDim;
  float* const weights = shared_kv + Shape::kKeys * Shape::kKeyPitch + warp() * kWarpRows * kWarp;
  const float* const warp_q = shared_q + warp() * kWarpRows * kPaddedDim;
  load_floats<Shape, Shape::kRows, kPaddedDim>(shared_q, first_row, sequence.rows(), head_dim,
                                               [&](int row) { return sequence.q_of(args, row); });

  float out[kWarpRows][kPaddedDim / kWarp] = {};
  float maxima[kWarpRows], sums[kWarpRows] = {};
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) maxima[r] = kLowest;

  const KeyBlocks blocks(sequence, {first_row, first_row + rows}, limits, kWarp);
  for (int i = 0; i < blocks.count; ++i) {
    const int first_key = blocks[i] * kWarp, key = first_key + lane();
    __syncthreads();
    load_floats<Shape, kWarp, Shape::kKeyPitch>(
        shared_kv, first_key, sequence.len_k, head_dim,
        [keys = sequence.k_of(args), &args](int k) { return keys + k * args.k_stride; });
    __syncthreads();

    float scores[kWarpRows] = {};
    for (int d = 0; d < kPaddedDim; d += 4) {
      const float4 k = *reinterpret_cast<const float4*>(shared_kv + lane() * Shape::kKeyPitch + d);
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        const float4 q = *reinterpret_cast<const float4*>(warp_q + r * kPaddedDim + d);
        scores[r] = fmaf(q.w, k.w, fmaf(q.z, k.z, fmaf(q.y, k.y, fmaf(q.x, k.x, scores[r]))));
      }
    }
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const int row = min(first_row + warp() * kWarpRows + r, sequence.rows() - 1);
      const Range seen = sequence.keys_of(sequence.query_of(row));
      float score = -kInf;
      if (key >= seen.begin && key < seen.end) {
        if constexpr (kGeneral)
          score = final_score(args, sequence, row, key, scores[r]);
        else
          score = scores[r] * args.scale;
      }
      const float top = fmaxf(maxima[r], warp_reduce<Larger>(score));
      const float shrink = ptx::ex2_approx_ftz((maxima[r] - top) * kLog2E);
      const float weight = ptx::ex2_approx_ftz((score - top) * kLog2E);
      maxima[r] = top;
      sums[r] = sums[r] * shrink + weight;
      weights[r * kWarp + lane()] = weight;
#pragma unroll
      for (float& x : out[r]) x *= shrink;
    }
    __syncthreads();
    load_floats<Shape, kWarp, Shape::kKeyPitch>(
        shared_kv, first_key, sequence.len_k, head_dim,
        [values = sequence.v_of(args), &args](int k) { return values + k * args.v_stride; });
    __syncthreads();
    for (int k = 0; k < kWarp; ++k) {
      float values[kPaddedDim / kWarp];
#pragma unroll
      for (int d = 0; d < kPaddedDim / kWarp; ++d)
        values[d] = shared_kv[k * Shape::kKeyPitch + d * kWarp + lane()];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r)
#pragma unroll
        for (int d = 0; d < kPaddedDim / kWarp; ++d)
          out[r][d] = fmaf(weights[r * kWarp + k], values[d], out[r][d]);
    }
  }

#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = first_row + warp() * kWarpRows + r;
    const float sum = warp_reduce<Sum>(sums[r]);
    if (row >= sequence.rows()) continue;
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    const float lse = sum == 0.0f ? -kInf : maxima[r] + logf(sum);
    const std::int64_t place = partials.index(part, 0, sequence.kv_head, row);
    float* to = Shape::kSplit ? partials.out + place * kPaddedDim : sequence.out_of(args, row);
#pragma unroll
    for (int d = 0; d < kPaddedDim / kWarp; ++d)
      if (Shape::kSplit || d * kWarp + lane() < head_dim)
        to[d * kWarp + lane()] = out[r][d] * inverse;
    if (lane() == 0 && (Shape::kSplit || args.lse))
      *(Shape::kSplit ? partials.lse + place : sequence.lse_of(args, row)) = lse;
  }
}

// ---- any type: weights ----

// Writes args.weights, a warp per query and head, in the place of the scores. To look at, not fast.
template <class T>
__global__ void __launch_bounds__(kRowThreads) weights_kernel(const AttentionArgs<T> args) {
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * (kRowThreads / kWarp) + warp();
  if (place >= args.batch * args.num_heads * args.max_q) return;
  const int query = static_cast<int>(place % args.max_q);
  const int head = static_cast<int>(place / args.max_q % args.num_heads);
  const int group = static_cast<int>(args.num_heads / args.num_kv_heads);
  const Sequence sequence(args, static_cast<int>(place / args.max_q / args.num_heads),
                          head / group);
  float* const weights = args.weights + place * args.max_k;
  const Range seen = query < sequence.len_q ? sequence.keys_of(query) : Range{0, 0};
  const int row = query * group + head % group;

  float top = kLowest;
  for (int key = lane(); key < args.max_k; key += kWarp) {
    float score = -kInf;
    if (key >= seen.begin && key < seen.end) {
      const T* q = sequence.q_of(args, row);
      const T* k = sequence.k_of(args) + key * args.k_stride;
      float product = 0.0f;
      for (int d = 0; d < args.head_dim; ++d)
        product = fmaf(static_cast<float>(q[d]), static_cast<float>(k[d]), product);
      score = final_score(args, sequence, row, key, product);
    }
    weights[key] = score;
    top = fmaxf(top, score);
  }
  top = warp_reduce<Larger>(top);
  float sum = 0.0f;
  for (int key = lane(); key < args.max_k; key += kWarp) {
    weights[key] = ptx::ex2_approx_ftz((weights[key] - top) * kLog2E);
    sum += weights[key];
  }
  sum = warp_reduce<Sum>(sum);
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (int key = lane(); key < args.max_k; key += kWarp) weights[key] *= inverse;
}

// ---- launchers ----

std::int64_t rows(std::int64_t tokens, const auto& args) {
  return tokens * (args.num_heads / args.num_kv_heads);
}

dim3 row_grid(std::int64_t count, std::int64_t heads) {
  constexpr int kRowsPerBlock = kRowThreads / kWarp;
  return {static_cast<unsigned>((count + kRowsPerBlock - 1) / kRowsPerBlock),
          static_cast<unsigned>(heads)};
}

template <class T, class Shape>
void launch_tiles(const AttentionArgs<T>& args, std::int64_t parts, const Partials<Shape>& partials,
                  Stream stream) {
  const auto start = [&](auto kernel, int shared_bytes) {
    launch(kernel,
           {.grid = dim3(static_cast<unsigned>(parts), static_cast<unsigned>(args.num_kv_heads)),
            .block = Shape::kThreads,
            .shared_bytes = static_cast<std::size_t>(shared_bytes),
            .stream = stream},
           args, partials);
  };
  const bool general = args.bool_mask || args.add_mask || args.relative_bias ||
                       args.softcap > 0.0f || !(args.scale > 0.0f);
  if constexpr (std::is_same_v<T, float>)
    start(general ? attention_float_kernel<Shape, true> : attention_float_kernel<Shape, false>,
          Shape::kSharedBytes);
  else if (general)
    start(attention_kernel<T, Shape, true>, TileShape<Shape, true>::kSharedBytes);
  else
    start(attention_kernel<T, Shape, false>, TileShape<Shape, false>::kSharedBytes);
}

// Of, say, Shape<64, split>: the sequences of few rows and the others, as far as there are any.
template <class Whole, class Split, class T>
void launch_both(const AttentionArgs<T>& args, Stream stream) {
  if (rows(args.max_q, args) > kSplitRows)
    launch_tiles(args, part_count(rows(args.total_q, args), args.batch, Whole::kRows),
                 Partials<Whole>{}, stream);
  if (rows(args.min_q, args) > kSplitRows) return;
  const std::int64_t parts = part_count_of_keys(args);
  const std::int64_t count = parts * Split::kPartials * args.num_kv_heads * kSplitRows;
  const Scratch scratch(count * (Split::kHeadDim + 1) * sizeof(float), stream);
  const Partials<Split> partials{
      scratch.data<float>(), scratch.data<float>() + count * Split::kHeadDim, args.num_kv_heads};
  launch_tiles(args, parts, partials, stream);
  launch(combine_kernel<T, Split>,
         {.grid = row_grid(args.total_q, args.num_heads), .block = kRowThreads, .stream = stream},
         args, partials);
}

template <class T, int kHeadDim>
void launch_head_dim(const AttentionArgs<T>& args, Stream stream) {
  launch_both<Shape<kHeadDim, false>, Shape<kHeadDim, true>>(args, stream);
}

template <int kPaddedDim>
void launch_float(const AttentionArgs<float>& args, Stream stream) {
  launch_both<FloatShape<kPaddedDim, false>, FloatShape<kPaddedDim, true>>(args, stream);
}

// Rows of 16-bit types are copied in chunks.
template <class T>
void check_chunks(const char* op, const char* argument, const T* data, std::int64_t stride,
                  std::int64_t head_stride, std::int64_t row_stride = 0) {
  check(reinterpret_cast<std::uintptr_t>(data) % kChunkBytes == 0 && stride % kChunkElements == 0 &&
            head_stride % kChunkElements == 0 && row_stride % kChunkElements == 0,
        op, ": rows of ", argument, " begin anywhere, expected at multiples of ", kChunkBytes,
        " bytes");
  check(stride >= 0 && stride * std::int64_t{sizeof(T)} <= 0x7fffffff, op, ": tokens of ", argument,
        " are ", stride, " elements apart, expected less than 2^31 bytes");
}

}  // namespace attention_detail

template <class T>
void attention(const AttentionArgs<T>& args, Stream stream) {
  using namespace attention_detail;
  if (args.weights && args.batch * args.max_q * args.max_k > 0)
    launch(weights_kernel<T>,
           {.grid = row_grid(args.batch * args.num_heads * args.max_q, 1),
            .block = kRowThreads,
            .stream = stream},
           args);
  if (args.total_q == 0) return;
  if constexpr (std::is_same_v<T, float>) {
    if (args.head_dim <= 32) return launch_float<32>(args, stream);
    if (args.head_dim <= 64) return launch_float<64>(args, stream);
    if (args.head_dim <= 96) return launch_float<96>(args, stream);
    if (args.head_dim <= 128) return launch_float<128>(args, stream);
    return launch_float<256>(args, stream);
  } else {
    const bool cached = args.lengths_k != nullptr;
    const char* op = cached ? "cached_attention" : "attention";
    check_chunks(op, "q", args.q, args.q_stride, args.q_head_stride);
    check_chunks(op, cached ? "k_cache" : "k", args.k, args.k_stride, args.k_head_stride,
                 args.k_row_stride);
    check_chunks(op, cached ? "v_cache" : "v", args.v, args.v_stride, args.v_head_stride,
                 args.v_row_stride);
    check_chunks(op, "out", args.out, args.out_stride, args.out_head_stride);
    switch (args.head_dim) {
      case 32: return launch_head_dim<T, 32>(args, stream);
      case 64: return launch_head_dim<T, 64>(args, stream);
      case 80: return launch_head_dim<T, 80>(args, stream);
      case 96: return launch_head_dim<T, 96>(args, stream);
      case 128: return launch_head_dim<T, 128>(args, stream);
      case 256: return launch_head_dim<T, 256>(args, stream);
      default:
        check(false, op, ": q has head_dim ", args.head_dim,
              ", expected 32, 64, 80, 96, 128 or 256 for 16-bit types");
    }
  }
}

template void attention(const AttentionArgs<float>&, Stream);
template void attention(const AttentionArgs<half>&, Stream);
template void attention(const AttentionArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
