// linear on packed panels. A task is a block of rows, small enough to stay in L2, times a group of
// panels; a panel's depth is cut so that a slice stays in L1 while the rows pass over it.
#include "ops/linear.h"

#include "core/parallel.h"
#include "cpu/activation.h"
#include "cpu/tile.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {

// Splits [0, size) into `parts` ranges as even as possible.
SG_INLINE std::int64_t part_begin(std::int64_t size, std::int64_t parts, std::int64_t i) {
  return size * i / parts;
}

template <bool Whole>
SG_INLINE vf load_part(const float* p, int n) {
  return Whole ? load(p) : load_n(p, n);
}

// The epilogue on one vector: columns [column, column + n) of a row, n = kLanes when Whole.
template <Activation A, bool Whole>
SG_INLINE void finish(const LinearArgs<float>& args, const float* sums, std::int64_t row,
                      std::int64_t column, int n) {
  vf value = load(sums);
  if (args.bias) value = add(value, load_part<Whole>(args.bias + column, n));
  value = activate<A>(value);
  if (args.residual) {
    const float* residual = args.residual + row * args.residual_stride + column;
    value = add(value, load_part<Whole>(residual, n));
  }
  float* out = args.out + row * args.out_stride + column;
  if constexpr (Whole)
    store(out, value);
  else
    store_n(out, value, n);
}

// The epilogue on a block of rows of one panel.
template <Activation A>
void finish_block(const LinearArgs<float>& args, const float* sums, std::int64_t first_row,
                  std::int64_t rows, std::int64_t column) {
  const std::int64_t left = args.out_features - column;
  if (left >= kPanel) {
    for (std::int64_t r = 0; r < rows; ++r, sums += kPanel) {
      finish<A, true>(args, sums, first_row + r, column, kLanes);
      finish<A, true>(args, sums + kLanes, first_row + r, column + kLanes, kLanes);
    }
    return;
  }
  for (std::int64_t r = 0; r < rows; ++r, sums += kPanel)
    for (std::int64_t j = 0; j < left; j += kLanes)
      finish<A, false>(args, sums + j, first_row + r, column + j,
                       static_cast<int>(min_int(kLanes, left - j)));
}

using Finish = void (*)(const LinearArgs<float>&, const float*, std::int64_t, std::int64_t,
                        std::int64_t);

Finish finish_for(Activation activation) {
  switch (activation) {
    case Activation::none: return finish_block<Activation::none>;
    case Activation::gelu: return finish_block<Activation::gelu>;
    case Activation::gelu_tanh: return finish_block<Activation::gelu_tanh>;
    case Activation::relu: return finish_block<Activation::relu>;
    case Activation::silu: return finish_block<Activation::silu>;
    case Activation::tanh: return finish_block<Activation::tanh>;
  }
  return nullptr;
}

// Rows of out lie pages apart, where the hardware does not prefetch.
SG_INLINE void prefetch_out(const LinearArgs<float>& args, std::int64_t first_row,
                            std::int64_t rows, std::int64_t column) {
  const std::int64_t end = min_int(args.out_features, column + kPanel);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = column; j < end; j += kLineFloats)
      __builtin_prefetch(args.out + (first_row + r) * args.out_stride + j, 1, 3);
}

struct Blocking {
  std::int64_t row_tiles;   // of at most kTileRows rows
  std::int64_t row_blocks;  // of row tiles
  std::int64_t panels;      // of kPanel columns
  std::int64_t panel_groups;
  std::int64_t slices;  // of the depth
};

void run_task(const LinearArgs<float>& args, const Blocking& blocking, Finish finish,
              std::int64_t task) {
  const std::int64_t block = task / blocking.panel_groups;
  const std::int64_t group = task % blocking.panel_groups;
  const std::int64_t tile_begin = part_begin(blocking.row_tiles, blocking.row_blocks, block);
  const std::int64_t tile_end = part_begin(blocking.row_tiles, blocking.row_blocks, block + 1);
  const std::int64_t first_row = part_begin(args.rows, blocking.row_tiles, tile_begin);
  const std::int64_t rows = part_begin(args.rows, blocking.row_tiles, tile_end) - first_row;
  auto* sums =  // [rows, kPanel], of the slices so far
      static_cast<float*>(scratch(sizeof(float) * kPanel * static_cast<std::size_t>(rows)));

  const std::int64_t panel_end = part_begin(blocking.panels, blocking.panel_groups, group + 1);
  for (std::int64_t p = part_begin(blocking.panels, blocking.panel_groups, group); p < panel_end;
       ++p) {
    const float* panel = args.weight + p * args.in_features * kPanel;
    for (std::int64_t s = 0; s < blocking.slices; ++s) {
      const std::int64_t k = part_begin(args.in_features, blocking.slices, s);
      const std::int64_t depth = part_begin(args.in_features, blocking.slices, s + 1) - k;
      // Slices of a panel, and panels, follow each other in memory.
      const std::int64_t lines = depth * kPanel / kLineFloats;
      const std::int64_t steps = max_int(1, depth / kPrefetchSteps) * (tile_end - tile_begin);
      const bool last = p + 1 == panel_end && s + 1 == blocking.slices;
      Prefetch ahead{panel + (k + depth) * kPanel,
                     last ? 0 : static_cast<int>(ceil_div(lines, steps))};
      const bool finishes = s + 1 == blocking.slices;
      for (std::int64_t t = tile_begin; t < tile_end; ++t) {
        const std::int64_t row = part_begin(args.rows, blocking.row_tiles, t);
        const std::int64_t tile_rows = part_begin(args.rows, blocking.row_tiles, t + 1) - row;
        float* c = sums + (row - first_row) * kPanel;
        if (finishes) prefetch_out(args, row, tile_rows, p * kPanel);
        with_rows(tile_rows, [&](auto tile) {
          if (s == 0)
            clear(tile);
          else
            load(tile, c, kPanel);
          multiply(tile, args.x + row * args.x_stride + k, args.x_stride, panel + k * kPanel, depth,
                   ahead);
          store(tile, c, kPanel);
        });
        if (finishes) finish(args, c, row, tile_rows, p * kPanel);
      }
    }
  }
}

}  // namespace

void linear(const LinearArgs<float>& args) {
  Blocking blocking;
  blocking.row_tiles = ceil_div(args.rows, kTileRows);
  const std::int64_t row_bytes = args.in_features * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t block_tiles = max_int(1, kRowBlockBytes / (row_bytes * kTileRows));
  blocking.row_blocks = ceil_div(blocking.row_tiles, block_tiles);
  blocking.panels = ceil_div(args.out_features, kPanel);
  blocking.slices = ceil_div(args.in_features, kSliceDepth);
  // Many tasks even out the threads; with few rows long streams of weights matter more.
  const std::int64_t tasks_per_thread = blocking.row_blocks > 1 || args.rows > 64 ? 8 : 2;
  const std::int64_t wanted = ceil_div(tasks_per_thread * num_threads(), blocking.row_blocks);
  blocking.panel_groups = max_int(1, min_int(blocking.panels, wanted));
  const Finish finish = finish_for(args.activation);
  parallel_for(blocking.row_blocks * blocking.panel_groups, 1,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t task = begin; task < end; ++task)
                   run_task(args, blocking, finish, task);
               });
}

void pack(const PackArgs& args) {
  parallel_for(ceil_div(args.out_features, kPanel), 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      float* panel = args.packed + p * args.in_features * kPanel;
      for (int j = 0; j < kPanel; ++j) {
        const std::int64_t row = p * kPanel + j;
        const float* weight = args.weight + row * args.weight_stride;
        for (std::int64_t k = 0; k < args.in_features; ++k)
          panel[k * kPanel + j] = row < args.out_features ? weight[k] : 0.0f;
      }
    }
  });
}

void unpack(const PackArgs& args) {
  parallel_for(args.out_features, kPanel, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* panel = args.packed + (row / kPanel) * args.in_features * kPanel + row % kPanel;
      float* weight = args.weight + row * args.weight_stride;
      for (std::int64_t k = 0; k < args.in_features; ++k) weight[k] = panel[k * kPanel];
    }
  });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
