// linear by tiles of the output: a block walks over the depth with both operands' tiles in a ring
// of shared memory, filled ahead by asynchronous copies; sums stay in registers, on tensor cores
// for the 16-bit types and as fused multiply-adds for float32.
//
// A sum takes its products in order of depth in every tile shape, so a shape is chosen for speed
// alone and no result depends on it.
#include "ops/linear.h"

#include <type_traits>

#include "core/check.h"
#include "cuda/kernel.cuh"
#include "cuda/launch.h"
#include "cuda/linear_epilogue.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"

namespace softgate::cuda {
namespace linear_detail {  // not without a name, so that simt finds its kernels' names

// kBlocks: of a multiprocessor, as far as registers go.
template <int kWarpRows_, int kWarpColumns_, int kWarpsDown_, int kWarpsAcross_, int kStages_,
          int kBlocks_>
struct Tile {
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr int kWarpsDown = kWarpsDown_, kWarpsAcross = kWarpsAcross_;
  static constexpr int kRows = kWarpRows * kWarpsDown, kColumns = kWarpColumns * kWarpsAcross;
  static constexpr int kThreads = kWarp * kWarpsDown * kWarpsAcross;
  static constexpr int kStages = kStages_, kBlocks = kBlocks_;
};

template <class T>
using LargeTile = std::conditional_t<std::is_same_v<T, float>, Tile<32, 64, 2, 2, 4, 3>,
                                     Tile<64, 64, 2, 2, 3, 2>>;
using MediumTile = Tile<32, 32, 2, 2, 4, 4>;
using SmallTile = Tile<16, 16, 1, 2, 8, 8>;

// ---- Columns ----

// Of a gated weight, columns of the product are a group of features of the gate, then those that
// they gate, and so on: what makes an output lies in one block.
constexpr int kGroup = 4;

template <class T>
__host__ __device__ __forceinline__ std::int64_t columns_of(const LinearArgs<T>& args) {
  return args.gated ? (args.out_features / 2 + kGroup - 1) / kGroup * (2 * kGroup)
                    : args.out_features;
}

// The row of weight that is a column; past the last one the last again: those sums are not stored.
template <class T>
__device__ __forceinline__ int feature_of(const LinearArgs<T>& args, int column) {
  const auto width = static_cast<int>(width_of(args));
  if (!args.gated) return column < width ? column : width - 1;
  const int feature = column / (2 * kGroup) * kGroup + column % kGroup;
  return (feature < width ? feature : width - 1) + (column % (2 * kGroup) < kGroup ? 0 : width);
}

// ---- Operands in shared memory ----

// A stage holds kDepth elements of each row in chunks that one thread copies. Chunks are permuted
// so that eight rows of a chunk lie in different banks; rows 8 apart are permuted alike.
constexpr int kChunkBytes = 16, kChunks = 4, kRowBytes = kChunks * kChunkBytes;
template <class T>
constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(T));

__device__ __forceinline__ int chunk_offset(int row, int chunk) {
  return row * kRowBytes + (chunk ^ (row / 2 % kChunks)) * kChunkBytes;
}

// Copies this block's rows of x or weight, stage after stage; each thread always the same chunk.
template <class T, int kRows, int kThreads, bool kAligned>
class Operand {
 public:
  // source(i): the row of the matrix that is the block's row i.
  template <class Source>
  __device__ __forceinline__ Operand(const T* matrix, std::int64_t stride, std::int64_t depth,
                                     const Source& source)
      : offset_(chunk_offset(row(), chunk())), left_(depth - chunk() * kVec<T>) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
      from_[pass] = matrix + source(row() + pass * kPassRows) * stride + chunk() * kVec<T>;
  }

  // The next kDepth elements; zeros beyond the end of the rows.
  __device__ __forceinline__ void copy(unsigned char* stage) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      unsigned char* to = stage + offset_ + pass * kPassRows * kRowBytes;
      if constexpr (kAligned) {
        ptx::cp_async_16(to, from_[pass], left_ > 0 ? kChunkBytes : 0);
      } else {
        Vec<T, kVec<T>> vec;
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) vec[i] = i < left_ ? from_[pass][i] : T(0.0f);
        store_vec(reinterpret_cast<T*>(to), vec);
      }
      from_[pass] += kDepth<T>;
    }
    left_ -= kDepth<T>;
  }

 private:
  static constexpr int kPassRows = kThreads / kChunks, kPasses = kRows / kPassRows;
  static_assert(kPassRows % 8 == 0 && kRows % kPassRows == 0);

  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / kChunks; }
  static __device__ __forceinline__ int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }

  const T* from_[kPasses];
  int offset_;         // in a stage
  std::int64_t left_;  // elements of a row from from_ on
};

// ---- A warp's sums ----

// Where an element of sums lies in shared memory, [rows, kColumns]: columns are permuted so that
// threads of different rows store into different banks.
template <int kColumns>
__device__ __forceinline__ int sum_place(int row, int column) {
  return row * kColumns + (column ^ (row ^ row / 4) % 4 * 8);
}

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }

// On tensor cores. Element [m][n][2 * h + c] is row 16 m + 8 h + lane / 4,
// column 8 n + 2 (lane % 4) + c.
template <class T, class Tile>
class MmaSums {
 public:
  // += x weight^T, of one stage's rows from x and weight on
  __device__ __forceinline__ void add(const unsigned char* x, const unsigned char* weight) {
#pragma unroll
    for (int k = 0; k < kChunks; k += 2) {
      // Of x, matrices 0 and 1 are rows 0 to 7 and 8 to 15 of one chunk, 2 and 3 those of the next;
      // of weight, 0 and 1 are two chunks of rows 0 to 7, as a product's operand lies in a pair of
      // neighbouring registers.
      const int lane = lane_index();
      const unsigned char* my_x = x + chunk_offset(lane % 16, k + lane / 16);
      const unsigned char* my_weight =
          weight + chunk_offset(lane % 8 + lane / 16 * 8, k + lane / 8 % 2);
      ptx::Fragment rows[kRowTiles], columns[kColumnTiles / 2];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) rows[m] = ptx::ldmatrix_x4(my_x + 16 * m * kRowBytes);
#pragma unroll
      for (int n = 0; n < kColumnTiles / 2; ++n)
        columns[n] = ptx::ldmatrix_x4(my_weight + 16 * n * kRowBytes);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n)
          mma(sums_[m][n], rows[m], columns[n / 2].x[n % 2 * 2], columns[n / 2].x[n % 2 * 2 + 1]);
    }
  }

  // To columns of `to`, [kWarpRows, kColumns].
  __device__ __forceinline__ void store(float* to, int first_column) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = 16 * m + 8 * h + lane_index() / 4;
          const int column = first_column + 8 * n + 2 * (lane_index() % 4);
          store_vec(to + sum_place<Tile::kColumns>(row, column),
                    Vec<float, 2>{sums_[m][n][2 * h], sums_[m][n][2 * h + 1]});
        }
  }

 private:
  static constexpr int kRowTiles = Tile::kWarpRows / 16, kColumnTiles = Tile::kWarpColumns / 8;

  static __device__ __forceinline__ void mma(float (&d)[4], const ptx::Fragment& a,
                                             std::uint32_t b0, std::uint32_t b1) {
    if constexpr (std::is_same_v<T, half>)
      ptx::mma_m16n8k16_f32_f16(d, a, b0, b1);
    else
      ptx::mma_m16n8k16_f32_bf16(d, a, b0, b1);
  }

  float sums_[kRowTiles][kColumnTiles][4] = {};
};

// In float32. Element [m][n] is row 2 (lane / 8) + m % 2 + 8 (m / 2), column lane % 8 + 8 n: rows
// that are permuted alike, and eight columns in different banks.
template <class Tile>
class FmaSums {
 public:
  __device__ __forceinline__ void add(const unsigned char* x, const unsigned char* weight) {
#pragma unroll 2  // unrolled further, registers spill
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const unsigned char* my_x = x + chunk_offset(row(0), chunk);
      const unsigned char* my_weight = weight + chunk_offset(column(0), chunk);
      Vec<float, 4> rows[kThreadRows];
#pragma unroll
      for (int m = 0; m < kThreadRows; ++m) rows[m] = load(my_x + (row(m) - row(0)) * kRowBytes);
#pragma unroll
      for (int n = 0; n < kThreadColumns; ++n) {
        const Vec<float, 4> columns = load(my_weight + 8 * n * kRowBytes);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int m = 0; m < kThreadRows; ++m)
            sums_[m][n] = fmaf(rows[m][i], columns[i], sums_[m][n]);
      }
    }
  }

  __device__ __forceinline__ void store(float* to, int first_column) const {
#pragma unroll
    for (int m = 0; m < kThreadRows; ++m)
#pragma unroll
      for (int n = 0; n < kThreadColumns; ++n)
        to[sum_place<Tile::kColumns>(row(m), first_column + column(n))] = sums_[m][n];
  }

 private:
  static constexpr int kThreadRows = Tile::kWarpRows / 4, kThreadColumns = Tile::kWarpColumns / 8;

  static __device__ __forceinline__ int row(int m) {
    return 2 * (lane_index() / 8) + m % 2 + 8 * (m / 2);
  }
  static __device__ __forceinline__ int column(int n) { return lane_index() % 8 + 8 * n; }
  static __device__ __forceinline__ Vec<float, 4> load(const unsigned char* p) {
    return load_vec<4>(reinterpret_cast<const float*>(p));
  }

  float sums_[kThreadRows][kThreadColumns] = {};
};

template <class T, class Tile>
using Sums = std::conditional_t<std::is_same_v<T, float>, FmaSums<Tile>, MmaSums<T, Tile>>;

// ---- Epilogue ----

// N columns of a row of out. sums: of a gated weight, what they gate is a group further on.
template <int N, class T>
__device__ __forceinline__ void finish_group(const LinearArgs<T>& args, const float* sums,
                                             std::int64_t row, int column) {
  finish(args, load_vec<N>(sums), [&] { return load_vec<N>(sums + kGroup); }, row, column);
}

// A row of warps' sums, in vectors where the arguments allow.
template <class Tile, class T>
__device__ __forceinline__ void finish_tile(const LinearArgs<T>& args, const float* sums,
                                            std::int64_t first_row, int first_column) {
  constexpr int kRowGroups = Tile::kColumns / kGroup;
  const auto width = static_cast<int>(width_of(args));
  const bool vectors = finishes_vectors<kGroup>(args);
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kWarpRows * kRowGroups;
       i += Tile::kThreads) {
    const int tile_row = i / kRowGroups, tile_column = i % kRowGroups * kGroup;
    const float* group = sums + sum_place<Tile::kColumns>(tile_row, tile_column);
    const std::int64_t row = first_row + tile_row;
    if (row >= args.rows) break;
    if (args.gated && tile_column % (2 * kGroup) != 0) continue;
    // In 64 bits, nvcc 13.0 cuts the vector's store into words.
    const int column = (first_column + tile_column) / (args.gated ? 2 : 1);
    if (vectors && column + kGroup <= width) {
      finish_group<kGroup>(args, group, row, column);
    } else {
#pragma unroll 1
      for (int j = 0; j < kGroup && column + j < width; ++j)
        finish_group<1>(args, group + j, row, column + j);
    }
  }
}

// ---- Kernel ----

// kAligned: every chunk of x and weight is whole and aligned to its size.
template <class T, class Tile, bool kAligned>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    linear_kernel(const LinearArgs<T> args) {
  constexpr int kStages = Tile::kStages, kStageBytes = (Tile::kRows + Tile::kColumns) * kRowBytes;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_down = warp / Tile::kWarpsAcross, warp_across = warp % Tile::kWarpsAcross;
  const std::int64_t first_row = std::int64_t{blockIdx.x} * Tile::kRows;
  const int first_column = static_cast<int>(blockIdx.y) * Tile::kColumns;

  // Stage s: rows of x, then of weight.
  unsigned char* const shared = shared_memory();
  Operand<T, Tile::kRows, Tile::kThreads, kAligned> x(
      args.x, args.x_stride, args.in_features, [&](int i) {
        // Below the last row the last one again: those sums are not stored.
        return first_row + i < args.rows ? first_row + i : args.rows - 1;
      });
  Operand<T, Tile::kColumns, Tile::kThreads, kAligned> weight(
      args.weight, args.in_features, args.in_features,
      [&](int i) { return feature_of(args, first_column + i); });
  const std::int64_t steps = (args.in_features + kDepth<T> - 1) / kDepth<T>;
  const auto copy = [&](std::int64_t step, int stage) {
    if (step < steps) {
      unsigned char* to = shared + stage * kStageBytes;
      x.copy(to);
      weight.copy(to + Tile::kRows * kRowBytes);
    }
    ptx::cp_async_commit();
  };

  Sums<T, Tile> sums;
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy(step, step);
  int stage = 0;
  for (std::int64_t step = 0; step < steps; ++step) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    // Into the stage that all have left before the barrier.
    copy(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
    const unsigned char* from = shared + stage * kStageBytes;
    sums.add(from + warp_down * Tile::kWarpRows * kRowBytes,
             from + (Tile::kRows + warp_across * Tile::kWarpColumns) * kRowBytes);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }

  // Through shared memory, where no copy is under way any more, a row of warps at a time, for
  // vectors of out.
  float* const staged = reinterpret_cast<float*>(shared);
#pragma unroll 1
  for (int down = 0; down < Tile::kWarpsDown; ++down) {
    __syncthreads();
    if (warp_down == down) sums.store(staged, warp_across * Tile::kWarpColumns);
    __syncthreads();
    finish_tile<Tile>(args, staged, first_row + down * Tile::kWarpRows, first_column);
    __syncwarp();  // a barrier wants whole warps
  }
}

// ---- Launcher ----

constexpr std::int64_t kEnoughBlocks = 128;  // to keep a card busy

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class Tile, class T>
bool keeps_busy(const LinearArgs<T>& args) {
  const std::int64_t blocks =
      ceil_div(args.rows, Tile::kRows) * ceil_div(columns_of(args), Tile::kColumns);
  return args.rows > Tile::kRows / 2 && blocks >= kEnoughBlocks;
}

template <class Tile, bool kAligned, class T>
void start(const LinearArgs<T>& args, Stream stream) {
  constexpr int kRing = Tile::kStages * (Tile::kRows + Tile::kColumns) * kRowBytes;
  constexpr int kStaged = Tile::kWarpRows * Tile::kColumns * static_cast<int>(sizeof(float));
  static_assert(kStaged <= kRing);
  launch(linear_kernel<T, Tile, kAligned>,
         {.grid = dim3(static_cast<unsigned>(ceil_div(args.rows, Tile::kRows)),
                       static_cast<unsigned>(ceil_div(columns_of(args), Tile::kColumns))),
          .block = dim3(Tile::kThreads),
          .shared_bytes = kRing,
          .stream = stream},
         args);
}

}  // namespace linear_detail

template <class T>
void linear(const LinearArgs<T>& args, Stream stream) {
  using namespace linear_detail;
  if constexpr (std::is_same_v<T, bfloat16>)
    check(has_bfloat16_products(),
          "linear: x is bfloat16, expected float32 or float16 on a card of "
          "compute capability 7.5");
  if (!is_aligned<kVec<T>>(args.x, args.x_stride) ||
      !is_aligned<kVec<T>>(args.weight, args.in_features))
    start<MediumTile, false>(args, stream);
  else if (keeps_busy<LargeTile<T>>(args))
    start<LargeTile<T>, true>(args, stream);
  else if (keeps_busy<MediumTile>(args))
    start<MediumTile, true>(args, stream);
  else
    start<SmallTile, true>(args, stream);
}

template void linear(const LinearArgs<float>&, Stream);
template void linear(const LinearArgs<half>&, Stream);
template void linear(const LinearArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
