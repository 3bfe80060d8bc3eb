// The skeleton of linear for every format of weights. A task is a block of rows, small enough to
// stay in L2, times a group of panels. Where the rows are one tile, a panel streams through once,
// as it is stored; otherwise its depth is cut so that a slice, widened if that takes work, stays in
// L1 while the tiles pass over it.
//
// A Product knows the arithmetic of a format:
//
//   kFewRows, kManyRows     of one tile, and of a tile where there are several; without few rows
//                           nothing streams
//   units()                 of depth in a panel; kUnitBytes each, after kHeadBytes
//   row_bytes()             of one row of x, as multiply reads it
//   kSliceUnits, kStepUnits units of a slice; how many units are multiplied between prefetches
//   kWideUnitBytes          0 where slices are read as they are stored
//   widen(units, n, to)
//   multiply<Wide>(...)     see Part
//   begin(), end()          around a thread's tasks
//   kPrefetchesOut          pays where a tile takes longer than a prefetch does
//   kWholeTiles             tiles begin at multiples of kManyRows, as x is laid out; else they are
//   as
//                           even as possible
#pragma once

#include "core/parallel.h"
#include "cpu/linear_epilogue.h"
#include "cpu/linear_format.h"
#include "cpu/rows.h"
#include "cpu/tile.h"

namespace softgate::cpu::SOFTGATE_ISA {

void linear_integers(const PanelLinearArgs& args);

namespace {  // what is not inlined needs internal linkage

// A slice of one panel and the rows of a tile. Sums, [kManyRows, kPanel], carry what a product
// likes from slice to slice; after the last those of the rows are floats.
struct Part {
  std::int64_t row, rows;
  const char* head;   // of the panel
  const char* units;  // of the slice, packed or widened
  Range range;
  bool is_first, is_last;
  float* sums;
};

struct Blocking {
  std::int64_t row_tiles;
  std::int64_t row_blocks;  // of row tiles
  std::int64_t panels;
  std::int64_t panel_groups;
};

// How far ahead of a stream of panels memory is asked for.
inline constexpr std::int64_t kAheadBytes = 4096;

// What products share that have nothing to begin or to end.
struct VectorProduct {
  static constexpr int kFewRows = kTileRows;
  static constexpr bool kPrefetchesOut = true;
  static constexpr bool kWholeTiles = false;
  void begin() const {}
  void end() const {}
};

template <class Product>
class LinearTask {
 public:
  LinearTask(const PanelLinearArgs& args, const Product& product)
      : args_(args.linear),
        product_(product),
        panels_(static_cast<const char*>(args.panels)),
        panel_bytes_(Product::kHeadBytes + product.units() * Product::kUnitBytes),
        out_columns_(args.format.gated ? args_.out_features / 2 : args_.out_features),
        panel_columns_(args.format.gated ? kLanes : kPanel),
        finish_(finish_for(args_.activation, args.format.gated)) {
    blocking_.row_tiles =
        args_.rows <= Product::kFewRows ? 1 : ceil_div(args_.rows, Product::kManyRows);
    const std::int64_t block_tiles =
        max_int(1, kRowBlockBytes / (product.row_bytes() * Product::kManyRows));
    blocking_.row_blocks = ceil_div(blocking_.row_tiles, block_tiles);
    blocking_.panels = panels_of(args.format, args_.out_features);
    // Many tasks even out the threads; with few rows long streams of weights matter more.
    const std::int64_t tasks_per_thread = blocking_.row_blocks > 1 || args_.rows > 64 ? 8 : 2;
    const std::int64_t wanted = ceil_div(tasks_per_thread * num_threads(), blocking_.row_blocks);
    blocking_.panel_groups = max_int(1, min_int(blocking_.panels, wanted));
  }

  void run_all() const {
    parallel_for(blocking_.row_blocks * blocking_.panel_groups, 1,
                 [&](std::int64_t begin, std::int64_t end) {
                   product_.begin();
                   for (std::int64_t task = begin; task < end; ++task) run(task);
                   product_.end();
                 });
  }

 private:
  void run(std::int64_t task) const {
    const std::int64_t block = task / blocking_.panel_groups;
    const std::int64_t group = task % blocking_.panel_groups;
    const Range tiles = {part_begin(blocking_.row_tiles, blocking_.row_blocks, block),
                         part_begin(blocking_.row_tiles, blocking_.row_blocks, block + 1)};
    const Range panels = {part_begin(blocking_.panels, blocking_.panel_groups, group),
                          part_begin(blocking_.panels, blocking_.panel_groups, group + 1)};
    if constexpr (Product::kFewRows > 0) {
      if (blocking_.row_tiles == 1) return stream(tiles.begin, panels);
    }
    block_by_block(tiles, panels);
  }

  std::int64_t first_row(std::int64_t tile) const {
    if constexpr (Product::kWholeTiles) return min_int(args_.rows, tile * Product::kManyRows);
    return part_begin(args_.rows, blocking_.row_tiles, tile);
  }
  const char* panel(std::int64_t p) const { return panels_ + p * panel_bytes_; }
  void prefetch_out_of(std::int64_t p, std::int64_t row, std::int64_t rows) const {
    const std::int64_t column = p * panel_columns_;
    prefetch_out(args_, row, rows, column, min_int(out_columns_, column + panel_columns_));
  }

  void stream(std::int64_t tile, Range panels) const {
    const std::int64_t row = first_row(tile), rows = first_row(tile + 1) - row;
    const std::int64_t step_bytes = Product::kStepUnits * Product::kUnitBytes;
    float sums[Product::kFewRows * kPanel];
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      Prefetch ahead{panel(p) + kAheadBytes, static_cast<int>(ceil_div(step_bytes, kLineBytes))};
      if (Product::kPrefetchesOut && rows > 1) prefetch_out_of(p, row, rows);
      product_.template multiply<false>({.row = row,
                                         .rows = rows,
                                         .head = panel(p),
                                         .units = panel(p) + Product::kHeadBytes,
                                         .range = {0, product_.units()},
                                         .is_first = true,
                                         .is_last = true,
                                         .sums = sums},
                                        ahead);
      finish_(args_, sums, row, rows, p * panel_columns_);
    }
  }

  void block_by_block(Range tiles, Range panels) const {
    constexpr bool kWide = Product::kWideUnitBytes > 0;
    const std::int64_t wide_bytes = Product::kWideUnitBytes * Product::kSliceUnits;
    constexpr std::int64_t kTileSums = Product::kManyRows * kPanel;
    const std::int64_t sums_bytes = (tiles.end - tiles.begin) * kTileSums * kFloat;
    auto* wide = static_cast<char*>(scratch(static_cast<std::size_t>(wide_bytes + sums_bytes)));
    auto* sums = reinterpret_cast<float*>(wide + wide_bytes);
    const std::int64_t slices = ceil_div(product_.units(), Product::kSliceUnits);
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      for (std::int64_t s = 0; s < slices; ++s) {
        const Range range = {part_begin(product_.units(), slices, s),
                             part_begin(product_.units(), slices, s + 1)};
        const std::int64_t count = range.end - range.begin;
        const char* units = panel(p) + Product::kHeadBytes + range.begin * Product::kUnitBytes;
        // Slices of a panel, and panels, follow each other in memory.
        const std::int64_t lines = count * Product::kUnitBytes / kLineBytes;
        const std::int64_t steps =
            max_int(1, count / Product::kStepUnits) * (tiles.end - tiles.begin);
        const bool is_last = s + 1 == slices;
        Prefetch ahead{
            units + count * Product::kUnitBytes,
            is_last && p + 1 == panels.end ? 0 : static_cast<int>(ceil_div(lines, steps))};
        if constexpr (kWide) {
          product_.widen(units, count, wide);
          units = wide;
        }
        for (std::int64_t t = tiles.begin; t < tiles.end; ++t) {
          const std::int64_t row = first_row(t), tile_rows = first_row(t + 1) - row;
          float* part = sums + (t - tiles.begin) * kTileSums;
          if (Product::kPrefetchesOut && is_last) prefetch_out_of(p, row, tile_rows);
          product_.template multiply<kWide>({.row = row,
                                             .rows = tile_rows,
                                             .head = panel(p),
                                             .units = units,
                                             .range = range,
                                             .is_first = s == 0,
                                             .is_last = is_last,
                                             .sums = part},
                                            ahead);
          if (is_last) finish_(args_, part, row, tile_rows, p * panel_columns_);
        }
      }
    }
  }

  const LinearArgs<float>& args_;
  const Product& product_;
  const char* panels_;
  std::int64_t panel_bytes_, out_columns_, panel_columns_;
  Finish finish_;
  Blocking blocking_;
};

template <class Product>
void run_linear(const PanelLinearArgs& args, const Product& product) {
  LinearTask<Product>(args, product).run_all();
}

}  // namespace
}  // namespace softgate::cpu::SOFTGATE_ISA
