// attention of 16-bit types, multiplied on tensor cores: scores and output stay in registers.
#pragma once

#include <type_traits>

#include "cuda/attention.cuh"
#include "cuda/ptx.cuh"

namespace softgate::cuda {
namespace attention_detail {  // not without a name, so that simt finds its kernels' names

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

}  // namespace attention_detail
}  // namespace softgate::cuda
