// linear on integer weights: a kernel makes integers of x, another multiplies on tensor cores, with
// features as the product's rows and the rows of x as its columns, in the layouts of
// ops/device_panel.h.
//
// One product has the depth of a group, so that a group's integer sum is in registers as it goes
// into the chain of floats, in the order of depth: the same bits in every kernel, as on the CPU.
//
// Few rows: a warp takes a panel and reads it once, from global memory into registers. Many: a
// block's panels and tiles go through a ring in shared memory.
#include "core/check.h"
#include "cuda/launch.h"
#include "cuda/linear_epilogue.cuh"
#include "cuda/ptx.cuh"
#include "cuda/rows.cuh"
#include "ops/device_panel.h"

namespace softgate::cuda {
namespace linear_integers_detail {  // not without a name, so that simt finds its kernels' names

using device_panel::kColumns;
using device_panel::kDepth;
using device_panel::kRows;
using device_panel::kTileBytes;

// ---- x in integers ----

template <class T>
struct Quantised {
  unsigned char* values;  // [tiles, units, kRows, kDepth]
  // [tiles, 2, kRows]: scales, shifts as int32; or [tiles, units, 2, kRows]: scales, scale * total
  float* scales;
  std::int64_t tiles, units;

  __host__ __device__ __forceinline__ explicit Quantised(const IntegerLinearArgs<T>& args)
      : values(static_cast<unsigned char*>(args.workspace)),
        tiles(device_panel::tiles_of(args.linear.rows)),
        units(device_panel::units_of(args.linear.in_features)) {
    scales = reinterpret_cast<float*>(values + tiles * units * kTileBytes);
  }

  __device__ __forceinline__ unsigned char* at(std::int64_t row, std::int64_t k) const {
    return values + (row / kRows * units + k / kDepth) * kTileBytes + row % kRows * kDepth +
           k % kDepth;
  }
};

// A row of x as scale * (integer + shift): 256 steps between its lowest number, or zero, and its
// highest.
struct RowScale {
  float scale, factor;
  int bottom;  // the lowest step

  // The lowest number comes negated, so that NaN, which is the largest, is in one of both.
  __device__ __forceinline__ RowScale(float highest, float minus_lowest) {
    const bool is_finite = highest < INFINITY && minus_lowest < INFINITY;
    scale = is_finite ? highest / 255.0f + minus_lowest / 255.0f : NAN;
    factor = is_finite && scale > 1e-36f ? 1.0f / scale : 0.0f;
    bottom = is_finite ? -static_cast<int>(rintf(minus_lowest * factor)) : 0;
  }

  __device__ __forceinline__ int shift() const { return bottom + 128; }
  // Zero where the row is not finite.
  __device__ __forceinline__ float integer(float x) const {
    const float step = factor > 0.0f ? rintf(x * factor) : 0.0f;
    return fminf(step, static_cast<float>(bottom + 255)) - static_cast<float>(shift());
  }
};

// Of a group of x whose magnitudes are at most `largest`, which is NaN where one is.
struct Scale {
  float scale, factor;

  __device__ __forceinline__ explicit Scale(float largest) {
    const bool is_finite = largest < INFINITY;
    scale = is_finite ? largest / 127.0f : NAN;
    factor = is_finite && largest > 1e-36f ? 127.0f / largest : 0.0f;
  }

  // Zero where the stretch is not finite.
  __device__ __forceinline__ float integer(float x) const {
    return factor > 0.0f ? rintf(x * factor) : 0.0f;
  }
};

template <int N>
__device__ __forceinline__ void store_integers(unsigned char* to, const Vec<float, N>& values) {
  Vec<unsigned char, N> bytes;
#pragma unroll
  for (int i = 0; i < N; ++i) bytes[i] = static_cast<unsigned char>(static_cast<int>(values[i]));
  store_vec(to, bytes);
}

// A scale for each row. Rows that fill up the tiles are zeros, as is the depth that does.
template <class T, int kWidth, bool kInRegisters>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    quantise_rows_kernel(const IntegerLinearArgs<T> args) {
  const LinearArgs<T>& linear = args.linear;
  const Quantised<T> x(args);
  const std::int64_t row = row_index();
  if (row >= x.tiles * kRows) return;
  const bool is_row = row < linear.rows;
  auto values = make_row<kWidth, kInRegisters>(
      linear.in_features, [from = linear.x + (is_row ? row : 0) * linear.x_stride](
                              std::int64_t column) { return load_floats<kWidth>(from + column); });
  const float highest = values.template reduce<Max>([](float value) { return value; });
  const float minus_lowest = values.template reduce<Max>([](float value) { return -value; });
  const RowScale scale(is_row ? Max{}(highest, 0.0f) : 0.0f,
                       is_row ? Max{}(minus_lowest, 0.0f) : 0.0f);
  values.for_each([&](std::int64_t column, Vec<float, kWidth> part) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) part[i] = scale.integer(part[i]);
    store_integers(x.at(row, column), part);
  });
  for (std::int64_t k = linear.in_features + threadIdx.x; k < x.units * kDepth; k += blockDim.x)
    *x.at(row, k) = 0;
  if (threadIdx.x == 0) {
    float* of_tile = x.scales + row / kRows * 2 * kRows + row % kRows;
    of_tile[0] = scale.scale;
    reinterpret_cast<std::int32_t*>(of_tile)[kRows] = scale.shift();
  }
}

// A scale for each group, which lies in neighbouring lanes.
constexpr int kGroupThreads = 256;

template <class T, int kWidth>
__global__ void __launch_bounds__(kGroupThreads)
    quantise_groups_kernel(const IntegerLinearArgs<T> args) {
  constexpr int kLanes = kDepth / kWidth;
  const LinearArgs<T>& linear = args.linear;
  const Quantised<T> x(args);
  const std::int64_t i = std::int64_t{blockIdx.x} * kGroupThreads + threadIdx.x;
  const std::int64_t row = i / (x.units * kLanes), k = i % (x.units * kLanes) * kWidth;
  Vec<float, kWidth> values{};
  if (row < linear.rows) values = load_floats<kWidth>(linear.x + row * linear.x_stride + k);
  float largest = 0.0f;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) largest = Max{}(largest, fabsf(values[j]));
  const Scale scale(warp_reduce<Max, kLanes>(largest));
  float total = 0.0f;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) total += values[j] = scale.integer(values[j]);
  total = warp_reduce<Sum, kLanes>(total);  // exact
  if (row >= x.tiles * kRows) return;
  store_integers(x.at(row, k), values);
  if (i % kLanes == 0) {
    float* scales = x.scales + (row / kRows * x.units + k / kDepth) * 2 * kRows + row % kRows;
    scales[0] = scale.scale;
    scales[kRows] = scale.scale * total;
  }
}

// ---- Operands ----

// A scale per row, or per group, of integers of 8 bits or of 4.
struct RowBytes {
  static constexpr bool kGrouped = false, kNibbles = false;
};
struct GroupBytes {
  static constexpr bool kGrouped = true, kNibbles = false;
};
struct GroupNibbles {
  static constexpr bool kGrouped = true, kNibbles = true;
};

// A lane's part of a unit of a panel, of columns 2 g and 2 g + 1.
template <class Format>
struct Weights {
  static constexpr int kBytes = Format::kNibbles ? 8 : 16;

  uint4 values;                            // the first two words, of nibbles
  Vec<std::uint16_t, 2> scales, minimums;  // as float16, where there are groups

  template <bool kShared>
  __device__ __forceinline__ void load(const unsigned char* unit, const PanelFormat& format) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const unsigned char* from = unit + lane * kBytes;
    if constexpr (Format::kNibbles) {
      const uint2 words = kShared ? ptx::ld_shared_v2_u32(from) : ptx::ld_global_nc_v2_u32(from);
      values = {words.x, words.y, 0, 0};
    } else {
      values = kShared ? ptx::ld_shared_v4_u32(from) : ptx::ld_global_nc_v4_u32(from);
    }
    if constexpr (Format::kGrouped) {
      const auto* halves = reinterpret_cast<const std::uint16_t*>(unit + kWarp * kBytes);
      scales = load_vec<2>(halves + lane / 4 * 2);
      if (format.minimums) minimums = load_vec<2>(halves + kColumns + lane / 4 * 2);
    }
  }

  __device__ __forceinline__ ptx::Fragment fragment() const {
    if constexpr (Format::kNibbles) {
      constexpr std::uint32_t kLower = 0x0f0f0f0f;
      return {
          {values.x & kLower, values.y & kLower, values.x >> 4 & kLower, values.y >> 4 & kLower}};
    } else {
      return {{values.x, values.z, values.y, values.w}};
    }
  }
};

__device__ __forceinline__ float to_float(std::uint16_t bits) {
  return static_cast<float>(half::from_bits(bits));
}

// Of x: a lane's part of a unit of a tile, and scales of rows 2 (lane % 4) and the one after.
struct Rows {
  uint2 values;
  Vec<float, 2> scales, totals;  // of a group

  template <class Format, bool kShared>
  __device__ __forceinline__ void load(const unsigned char* tile, const float* group) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    values = kShared ? ptx::ld_shared_v2_u32(tile + lane * 8)
                     : ptx::ld_global_nc_v2_u32(tile + lane * 8);
    if constexpr (Format::kGrouped) {
      scales = load_vec<2>(group + lane % 4 * 2);
      totals = load_vec<2>(group + kRows + lane % 4 * 2);
    }
  }
};

// Of 16 columns and 8 rows: element 2 h + j is column 2 (lane / 4) + h, row 2 (lane % 4) + j.
template <class Format, bool kGrouped = Format::kGrouped>
struct Sums {
  float of[4] = {};

  __device__ __forceinline__ void add(const ptx::Fragment& fragment, const Weights<Format>& weights,
                                      const Rows& x, bool minimums) {
    std::int32_t dots[4] = {};
    ptx::mma_m16n8k32_s32_s8(dots, fragment, x.values.x, x.values.y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (minimums) of[i] = fmaf(x.totals[i % 2], to_float(weights.minimums[i / 2]), of[i]);
      const float scale = to_float(weights.scales[i / 2]) * x.scales[i % 2];
      of[i] = fmaf(static_cast<float>(dots[i]), scale, of[i]);
    }
  }
};

template <class Format>
struct Sums<Format, false> {
  std::int32_t dots[4] = {};

  __device__ __forceinline__ void add(const ptx::Fragment& fragment, const Weights<Format>&,
                                      const Rows& x, bool) {
    ptx::mma_m16n8k32_s32_s8(dots, fragment, x.values.x, x.values.y);
  }
};

// ---- Epilogue ----

// Sums of a block or warp in shared memory: [rows][panels][2][8], the even columns of a panel, then
// the odd ones. Rows are apart so that what a warp stores or loads at once lies in different banks.
template <int kPanels>
constexpr int kSumStride = kPanels * kColumns + 4;

// A tile's sums to its columns. of_panel: where integers have a scale per row the panel's; of_tile
// the tile's.
template <int kStride, class Format>
__device__ __forceinline__ void store_sums(float* to, const Sums<Format>& sums,
                                           const float* of_panel, const float* of_tile) {
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = static_cast<int>(threadIdx.x) % 4 * 2 + i % 2, odd = i / 2;
    float& sum = to[row * kStride + odd * (kColumns / 2) + g];
    if constexpr (Format::kGrouped) {
      sum = sums.of[i];
    } else {
      const int total = reinterpret_cast<const std::int32_t*>(of_panel)[kColumns + 2 * g + odd];
      const int shift = reinterpret_cast<const std::int32_t*>(of_tile)[kRows + row];
      sum =
          static_cast<float>(sums.dots[i] + shift * total) * (of_panel[2 * g + odd] * of_tile[row]);
    }
  }
}

// N columns of a row, in a vector if they may and there are so many.
template <int N, class T>
__device__ __forceinline__ void finish_columns(const LinearArgs<T>& args, bool vectors,
                                               const Vec<float, N>& values, const Vec<float, N>& up,
                                               std::int64_t row, int column) {
  const auto width = static_cast<int>(width_of(args));
  if (vectors && column + N <= width) {
    finish(args, values, [&] { return up; }, row, column);
    return;
  }
  const auto at = [](const Vec<float, N>& vec, int i) {  // in registers, which have no index
    float value = vec[0];
#pragma unroll
    for (int j = 1; j < N; ++j) value = i == j ? vec[j] : value;
    return value;
  };
#pragma unroll 1
  for (int i = 0; i < N && column + i < width; ++i)
    finish(
        args, Vec<float, 1>{at(values, i)}, [&] { return Vec<float, 1>{at(up, i)}; }, row,
        column + i);
}

// Sums [kSumRows, kPanels * 16] of rows and panels from the first ones on, by `threads` threads, of
// which this is one. A warp takes a panel of eight rows at a time, its halves even and odd rows.
template <int kSumRows, int kPanels, class T>
__device__ __forceinline__ void finish_sums(const LinearArgs<T>& args, const float* sums,
                                            std::int64_t first_row, std::int64_t first_panel,
                                            int thread, int threads) {
  const bool vectors = args.gated ? finishes_vectors<2>(args) : finishes_vectors<4>(args);
  const int lane = thread % kWarp, pair = lane % 4 * 2;
#pragma unroll 1
  for (int i = thread / kWarp; i < kSumRows / kRows * kPanels; i += threads / kWarp) {
    const int sum_row = i / kPanels * kRows + lane / 4 % 4 * 2 + lane / 16, panel = i % kPanels;
    const std::int64_t row = first_row + sum_row;
    if (row >= args.rows) continue;
    const float* from = sums + sum_row * kSumStride<kPanels> + panel * kColumns + pair;
    const auto even = load_vec<2>(from), odd = load_vec<2>(from + kColumns / 2);
    // In 64 bits, nvcc 13.0 cuts the vector's store into words.
    const int column = (static_cast<int>(first_panel) + panel) * kColumns + 2 * pair;
    if (args.gated) {
      finish_columns(args, vectors, even, odd, row, column / 2);
    } else {
      const Vec<float, 4> values{even[0], odd[0], even[1], odd[1]};
      finish_columns(args, vectors, values, values, row, column);
    }
  }
}

// ---- Few rows ----

constexpr int kWarps = 4, kThreads = kWarp * kWarps;
constexpr int kAhead = 8;  // units whose weights are on the way at once

template <int kTiles>
constexpr int kDirectBytes = kWarps * kTiles * kRows * kSumStride<1> * 4;

// kTiles: of x, for each warp.
template <class T, class Format, int kTiles>
__global__ void __launch_bounds__(kThreads, 4)
    integers_direct_kernel(const IntegerLinearArgs<T> args) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t panel = std::int64_t{blockIdx.x} * kWarps + warp;
  const std::int64_t first_tile = std::int64_t{blockIdx.y} * kTiles;
  if (panel >= device_panel::panels_of(args.linear.out_features)) return;
  const Quantised<T> x(args);
  const bool minimums = args.format.minimums;
  const auto* const head = static_cast<const unsigned char*>(args.panels) +
                           panel * device_panel::panel_bytes(args.format, args.linear.in_features);
  const unsigned char* const units = head + device_panel::head_bytes(args.format);
  const std::int64_t unit_bytes = device_panel::unit_bytes(args.format);
  std::int64_t tiles[kTiles];  // past the last one the last again: those sums are not stored
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
    tiles[t] = first_tile + t < x.tiles ? first_tile + t : x.tiles - 1;

  Sums<Format> sums[kTiles];
#pragma unroll 1
  for (std::int64_t first = 0; first < x.units; first += kAhead) {
    Weights<Format> weights[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < x.units)
        weights[i].template load<false>(units + (first + i) * unit_bytes, args.format);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= x.units) break;
      const ptx::Fragment fragment = weights[i].fragment();
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const std::int64_t unit = tiles[t] * x.units + first + i;
        Rows rows;
        rows.template load<Format, false>(x.values + unit * kTileBytes,
                                          x.scales + unit * 2 * kRows);
        sums[t].add(fragment, weights[i], rows, minimums);
      }
    }
  }

  float* const staged =
      reinterpret_cast<float*>(shared_memory()) + warp * (kTiles * kRows * kSumStride<1>);
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
    store_sums<kSumStride<1>>(staged + t * kRows * kSumStride<1>, sums[t],
                              reinterpret_cast<const float*>(head),
                              x.scales + tiles[t] * 2 * kRows);
  __syncwarp();
  finish_sums<kTiles * kRows, 1>(args.linear, staged, first_tile * kRows, panel,
                                 static_cast<int>(threadIdx.x) % kWarp, kWarp);
}

// ---- Many rows ----

// Panels and tiles of a warp, and warps of a block along both.
constexpr int kWarpPanels = 4, kWarpTiles = 4, kWarpsDown = 2, kWarpsAcross = 2;
constexpr int kBlockPanels = kWarpPanels * kWarpsDown, kBlockTiles = kWarpTiles * kWarpsAcross;
constexpr int kStages = 3, kStageUnits = 2;
// Of a stage: units of each panel; then tiles, of each its units' integers and scales.
template <class Format>
constexpr int kPanelPart =
    kStageUnits * (kWarp * (Format::kNibbles ? 8 : 16) + (Format::kGrouped ? kColumns * 4 : 0));
template <class Format>
constexpr int kTilePart = kStageUnits * (kTileBytes + (Format::kGrouped ? 2 * kRows * 4 : 0));
template <class Format>
constexpr int kStageBytes = kBlockPanels * kPanelPart<Format> + kBlockTiles * kTilePart<Format>;
constexpr int kStagedBytes = kBlockTiles * kRows * kSumStride<kBlockPanels> * 4;
template <class Format>
constexpr int kTiledBytes =
    kStages * kStageBytes<Format> > kStagedBytes ? kStages* kStageBytes<Format> : kStagedBytes;

// Whole chunks of 16 bytes, by a warp.
__device__ __forceinline__ void copy_by_warp(unsigned char* to, const void* from, int bytes) {
  for (int i = static_cast<int>(threadIdx.x) % kWarp * 16; i < bytes; i += kWarp * 16)
    ptx::cp_async_16(to + i, static_cast<const unsigned char*>(from) + i);
}

template <class T, class Format>
__global__ void __launch_bounds__(kThreads, 4)
    integers_tiled_kernel(const IntegerLinearArgs<T> args) {
  static_assert(kWarpsDown * kWarpsAcross == kWarps);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int down = warp / kWarpsAcross, across = warp % kWarpsAcross;
  const Quantised<T> x(args);
  const bool minimums = args.format.minimums;
  const std::int64_t first_tile = std::int64_t{blockIdx.x} * kBlockTiles;
  const std::int64_t first_panel = std::int64_t{blockIdx.y} * kBlockPanels;
  const std::int64_t panels = device_panel::panels_of(args.linear.out_features);
  const std::int64_t panel_bytes = device_panel::panel_bytes(args.format, args.linear.in_features);
  const int unit_bytes = device_panel::unit_bytes(args.format);
  // Past the last one the last again: those sums are not stored.
  const auto panel_at = [&](int i) {
    const std::int64_t panel = first_panel + i < panels ? first_panel + i : panels - 1;
    return static_cast<const unsigned char*>(args.panels) + panel * panel_bytes;
  };
  const auto tile_at = [&](int i) {
    return first_tile + i < x.tiles ? first_tile + i : x.tiles - 1;
  };

  unsigned char* const shared = shared_memory();
  const std::int64_t steps = (x.units + kStageUnits - 1) / kStageUnits;
  const auto copy = [&](std::int64_t step, int stage) {
    if (step < steps) {
      unsigned char* to = shared + stage * kStageBytes<Format>;
      const std::int64_t unit = step * kStageUnits;
      const auto n = static_cast<int>(x.units - unit < kStageUnits ? x.units - unit : kStageUnits);
      for (int i = warp; i < kBlockPanels; i += kWarps)
        copy_by_warp(to + i * kPanelPart<Format>,
                     panel_at(i) + device_panel::head_bytes(args.format) + unit * unit_bytes,
                     n * unit_bytes);
      for (int i = warp; i < kBlockTiles; i += kWarps) {
        unsigned char* tile = to + kBlockPanels * kPanelPart<Format> + i * kTilePart<Format>;
        const std::int64_t from = tile_at(i) * x.units + unit;
        copy_by_warp(tile, x.values + from * kTileBytes, n * kTileBytes);
        if constexpr (Format::kGrouped)
          copy_by_warp(tile + kStageUnits * kTileBytes, x.scales + from * 2 * kRows,
                       n * 2 * kRows * 4);
      }
    }
    ptx::cp_async_commit();
    __syncwarp();  // barriers and products want whole warps
  };

  Sums<Format> sums[kWarpTiles][kWarpPanels];
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy(step, step);
  int stage = 0;
#pragma unroll 1
  for (std::int64_t step = 0; step < steps; ++step) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    // Into the stage that all have left before the barrier.
    copy(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
    const unsigned char* from = shared + stage * kStageBytes<Format>;
    const unsigned char* my_panels = from + down * kWarpPanels * kPanelPart<Format>;
    const unsigned char* my_tiles =
        from + kBlockPanels * kPanelPart<Format> + across * kWarpTiles * kTilePart<Format>;
#pragma unroll 1
    for (int unit = 0; unit < kStageUnits && step * kStageUnits + unit < x.units; ++unit) {
      Weights<Format> weights[kWarpPanels];
      ptx::Fragment fragments[kWarpPanels];
#pragma unroll
      for (int p = 0; p < kWarpPanels; ++p) {
        weights[p].template load<true>(my_panels + p * kPanelPart<Format> + unit * unit_bytes,
                                       args.format);
        fragments[p] = weights[p].fragment();
      }
#pragma unroll
      for (int t = 0; t < kWarpTiles; ++t) {
        const unsigned char* tile = my_tiles + t * kTilePart<Format>;
        Rows rows;
        rows.template load<Format, true>(
            tile + unit * kTileBytes,
            reinterpret_cast<const float*>(tile + kStageUnits * kTileBytes) + unit * 2 * kRows);
#pragma unroll
        for (int p = 0; p < kWarpPanels; ++p)
          sums[t][p].add(fragments[p], weights[p], rows, minimums);
      }
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }

  // Through shared memory, where no copy is under way any more.
  float* const staged = reinterpret_cast<float*>(shared);
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kWarpTiles; ++t)
#pragma unroll
    for (int p = 0; p < kWarpPanels; ++p) {
      const int tile = across * kWarpTiles + t, panel = down * kWarpPanels + p;
      store_sums<kSumStride<kBlockPanels>>(
          staged + tile * kRows * kSumStride<kBlockPanels> + panel * kColumns, sums[t][p],
          reinterpret_cast<const float*>(panel_at(panel)), x.scales + tile_at(tile) * 2 * kRows);
    }
  __syncthreads();
  finish_sums<kBlockTiles * kRows, kBlockPanels>(args.linear, staged, first_tile * kRows,
                                                 first_panel, static_cast<int>(threadIdx.x),
                                                 kThreads);
}

// ---- Launcher ----

constexpr std::int64_t kEnoughBlocks = 128;  // to keep a card busy
constexpr int kManyTiles = 4;

unsigned blocks(std::int64_t n, std::int64_t of_block) {
  return static_cast<unsigned>((n + of_block - 1) / of_block);
}

template <class T>
void quantise(const IntegerLinearArgs<T>& args, Stream stream) {
  const LinearArgs<T>& linear = args.linear;
  const Quantised<T> x(args);
  const bool vectors = takes_vectors(linear.x, linear.x_stride);
  if (args.format.grouped) {
    const auto start = [&](auto width) {
      launch(quantise_groups_kernel<T, width>,
             {.grid = dim3(blocks(x.tiles * kRows * linear.in_features / width, kGroupThreads)),
              .block = dim3(kGroupThreads),
              .stream = stream},
             args);
    };
    if (vectors)
      start(std::integral_constant<int, kVec<T>>{});
    else
      start(std::integral_constant<int, 1>{});
    return;
  }
  with_row_form<T>(vectors, linear.in_features, [&](auto width, auto in_registers) {
    launch(quantise_rows_kernel<T, width, in_registers>,
           row_shape(x.tiles * kRows, linear.in_features, stream), args);
  });
}

template <class T, class Format, int kTiles>
void start_direct(const IntegerLinearArgs<T>& args, Stream stream) {
  launch(integers_direct_kernel<T, Format, kTiles>,
         {.grid = dim3(blocks(device_panel::panels_of(args.linear.out_features), kWarps),
                       blocks(device_panel::tiles_of(args.linear.rows), kTiles)),
          .block = dim3(kThreads),
          .shared_bytes = kDirectBytes<kTiles>,
          .stream = stream},
         args);
}

template <class T, class Format>
void multiply(const IntegerLinearArgs<T>& args, Stream stream) {
  const std::int64_t tiles = device_panel::tiles_of(args.linear.rows);
  const dim3 grid(blocks(tiles, kBlockTiles),
                  blocks(device_panel::panels_of(args.linear.out_features), kBlockPanels));
  if (tiles == 1)
    start_direct<T, Format, 1>(args, stream);
  else if (tiles <= kManyTiles || std::int64_t{grid.x} * grid.y < kEnoughBlocks)
    start_direct<T, Format, kManyTiles>(args, stream);
  else
    launch(integers_tiled_kernel<T, Format>,
           {.grid = grid,
            .block = dim3(kThreads),
            .shared_bytes = kTiledBytes<Format>,
            .stream = stream},
           args);
}

}  // namespace linear_integers_detail

template <class T>
void linear_integers(const IntegerLinearArgs<T>& args, Stream stream) {
  using namespace linear_integers_detail;
  quantise(args, stream);
  if (!args.format.grouped)
    multiply<T, RowBytes>(args, stream);
  else if (args.format.type == WeightType::int4)
    multiply<T, GroupNibbles>(args, stream);
  else
    multiply<T, GroupBytes>(args, stream);
}

template void linear_integers(const IntegerLinearArgs<float>&, Stream);
template void linear_integers(const IntegerLinearArgs<half>&, Stream);
template void linear_integers(const IntegerLinearArgs<bfloat16>&, Stream);

}  // namespace softgate::cuda
