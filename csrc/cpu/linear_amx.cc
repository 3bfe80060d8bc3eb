// linear with AMX: x, and the weight where it has more bits, as sums of bfloat16 parts
// (bfloat16_parts.h). A task is a block of rows times a group of panels, slice by slice of the
// depth: its rows are split first, and each panel while the first two tiles of rows are multiplied
// with it, so that splitting costs next to nothing.
#include "core/parallel.h"
#include "cpu/amx.h"
#include "cpu/bfloat16_parts.h"
#include "cpu/linear_epilogue.h"
#include "cpu/linear_format.h"
#include "cpu/split_rows.h"
#include "cpu/tile.h"

namespace softgate::cpu::SOFTGATE_ISA {

void linear(const PanelLinearArgs& args);
void linear_groups_amx(const PanelLinearArgs& args);
void linear_rows_amx(const PanelLinearArgs& args);
void linear_split(const PanelLinearArgs& args);

namespace {

constexpr int kChunk = 32;                        // of the depth: a tile's row of bfloat16
constexpr int kTileWords = kTileHeight * kChunk;  // of bfloat16
constexpr int kRowWords = kParts * kTileWords;    // of a chunk of one tile of rows
constexpr std::int64_t kSliceChunks = 4;          // so that a split panel stays in L1
constexpr std::int64_t kFewRowsSliceChunks = 64;  // of a panel that is used only once
constexpr std::int64_t kMinTileRows = 8;          // of integers: below, vectors are as fast
constexpr std::int64_t kMinGroupRows = 12;        // the same, where groups have scales
constexpr std::int64_t kBlockRows = 256;
constexpr std::int64_t kGroupPanels = 16;
constexpr std::int64_t kRowsAhead = 4;
constexpr std::int64_t kChunksAhead = 4;

// A product of a part of x and one of the weight: 0 is the high one.
struct PartProduct {
  int row, column;
};

// What a format's panels become: [part][half of the panel][16][32] for each chunk. Products go from
// small to large, each sharing a part with the one before.
struct SplitFloat32 : Float32 {
  static constexpr int kColumnParts = 3;
  static constexpr PartProduct kProducts[] = {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 0}, {0, 2}};

  SG_INLINE void split_rows(const float* from, std::uint16_t* to) {
    for (int half = 0; half < 2; ++half) {
      const float* p = from + half * kLanes;
      split<Interleaved, 3>(load(p), load(p + kPanel), to + half * kTileWords, 2 * kTileWords);
    }
  }
};
struct SplitFloat16 : Float16 {  // 11 bits, of which two parts hold 16
  static constexpr int kColumnParts = 2;
  static constexpr PartProduct kProducts[] = {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 0}};

  SG_INLINE void split_rows(const std::uint16_t* from, std::uint16_t* to) {
    for (int half = 0; half < 2; ++half) {
      const std::uint16_t* p = from + half * kLanes;
      split<Interleaved, 2>(load_half(p), load_half(p + kPanel), to + half * kTileWords,
                            2 * kTileWords);
    }
  }
};
struct SplitBFloat16 : BFloat16 {
  static constexpr int kColumnParts = 1;
  static constexpr PartProduct kProducts[] = {{2, 0}, {1, 0}, {0, 0}};

  SG_INLINE void split_rows(const std::uint32_t* from, std::uint16_t* to) {
    const vu a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + kRow);
    _mm512_store_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)));
    _mm512_store_si512(to + kTileWords, Interleaved::join(a, b));
  }
};

template <class Stored>
constexpr int kPanelWords = 2 * Stored::kColumnParts * kTileWords;

// Where the panel's next chunk lies, to split it while this one is multiplied.
template <class Stored>
struct Ahead {
  const typename Stored::Element* chunk;  // kChunk rows, or null
  std::uint16_t* to;
  const typename Stored::Element* fetch;  // a later one, towards L2
};

template <class Stored, int First, int End>
SG_INLINE void split_ahead(const Ahead<Stored>& ahead) {
  constexpr int kLineElements = kLineBytes / sizeof(typename Stored::Element);
  constexpr int kLines = 2 * Stored::kRow / kLineElements;
#pragma GCC unroll 8
  for (int i = First; i < End; ++i) {
    Stored::split_rows(ahead.chunk + 2 * i * Stored::kRow, ahead.to + i * kChunk);
#pragma GCC unroll 4
    for (int line = 0; line < kLines; ++line)
      __builtin_prefetch(ahead.fetch + (kLines * i + line) * kLineElements, 0, 2);
  }
}

template <int RowTiles>
SG_INLINE void load_rows(const std::uint16_t* a, std::int64_t tile_stride) {
  tile_load<4>(a, 64);
  if constexpr (RowTiles == 2) tile_load<5>(a + tile_stride, 64);
}

SG_INLINE void load_columns(const std::uint16_t* b) {
  tile_load<6>(b, 64);
  tile_load<7>(b + kTileWords, 64);
}

template <int RowTiles>
SG_INLINE void multiply_tiles() {
  tile_dot_bfloat16<0, 4, 6>();
  tile_dot_bfloat16<1, 4, 7>();
  if constexpr (RowTiles == 2) {
    tile_dot_bfloat16<2, 5, 6>();
    tile_dot_bfloat16<3, 5, 7>();
  }
}

// The products from the I-th on; vector instructions that split the next chunk run beside them.
template <class Stored, int RowTiles, bool Splits, int I = 0>
SG_INLINE void multiply_chunk(const std::uint16_t* a, std::int64_t tile_stride,
                              const std::uint16_t* b, const Ahead<Stored>& ahead) {
  constexpr int kCount = sizeof(Stored::kProducts) / sizeof(PartProduct);
  if constexpr (I < kCount) {
    constexpr PartProduct now = Stored::kProducts[I];
    constexpr PartProduct before = I > 0 ? Stored::kProducts[I - 1] : PartProduct{-1, -1};
    if constexpr (now.row != before.row) load_rows<RowTiles>(a + now.row * kTileWords, tile_stride);
    if constexpr (now.column != before.column) load_columns(b + 2 * now.column * kTileWords);
    multiply_tiles<RowTiles>();
    if constexpr (Splits)
      split_ahead<Stored, kChunk / 2 * I / kCount, kChunk / 2 * (I + 1) / kCount>(ahead);
    multiply_chunk<Stored, RowTiles, Splits, I + 1>(a, tile_stride, b, ahead);
  }
}

// A slice of a panel: whole chunks, then one filled up with zeros where the depth ends inside it.
template <class Stored>
struct Slice {
  using Element = typename Stored::Element;
  const Element* panel;
  const Element* tail;  // or null
  std::int64_t chunks;

  const Element* chunk(std::int64_t i) const {
    return tail && i + 1 == chunks ? tail : panel + i * kChunk * Stored::kRow;
  }
};

// c += rows @ slice, splitting the slice into b, which holds `b_chunks` of its chunks in turn.
template <class Stored, int RowTiles>
void multiply_and_split(const std::uint16_t* a, std::int64_t tile_stride,
                        const Slice<Stored>& slice, std::uint16_t* b, std::int64_t b_chunks,
                        float* c, bool first) {
  for (int i = 0; i < kChunk / 2; ++i)
    Stored::split_rows(slice.chunk(0) + 2 * i * Stored::kRow, b + i * kChunk);
  if (first)
    clear_sums<RowTiles>();
  else
    load_sums<RowTiles>(c);
  const std::uint16_t* now = b;
  for (std::int64_t i = 0; i < slice.chunks; ++i, a += kRowWords) {
    if (i + 1 == slice.chunks) {
      multiply_chunk<Stored, RowTiles, false>(a, tile_stride, now, {});
      break;
    }
    std::uint16_t* next = b + (i + 1) % b_chunks * kPanelWords<Stored>;
    multiply_chunk<Stored, RowTiles, true>(
        a, tile_stride, now,
        {.chunk = slice.chunk(i + 1),
         .to = next,
         .fetch = slice.panel + (i + kChunksAhead) * kChunk * Stored::kRow});
    now = next;
  }
  store_sums<RowTiles>(c);
}

// c += rows @ a slice that has been split.
template <class Stored, int RowTiles>
void multiply_split(const std::uint16_t* a, std::int64_t tile_stride, const std::uint16_t* b,
                    std::int64_t chunks, float* c, bool first) {
  if (first)
    clear_sums<RowTiles>();
  else
    load_sums<RowTiles>(c);
  for (std::int64_t i = 0; i < chunks; ++i, a += kRowWords, b += kPanelWords<Stored>)
    multiply_chunk<Stored, RowTiles, false>(a, tile_stride, b, {});
  store_sums<RowTiles>(c);
}

SG_INLINE vu magnitude_bits(vf x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

// Rows of x into [row tile][chunk][part][16][32], zeros after the last; largest[r] grows to the
// bits of the row's largest magnitude.
void split_rows(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t depth,
                std::uint16_t* to, std::uint32_t* largest) {
  const std::int64_t chunks = ceil_div(depth, kChunk);
  const std::int64_t padded = ceil_div(rows, kTileHeight) * kTileHeight;
  for (std::int64_t row = 0; row < padded; ++row) {
    // Few lines of each row, and rows lie far apart: the hardware does not prefetch them.
    const float* later = x + min_int(row + kRowsAhead, rows - 1) * stride;
    for (std::int64_t k = 0; k < depth; k += kLineFloats) __builtin_prefetch(later + k);
    std::uint16_t* p = to + row / kTileHeight * chunks * kRowWords + row % kTileHeight * kChunk;
    vu most = _mm512_setzero_si512();
    for (std::int64_t k = 0; k < depth; k += kChunk, p += kRowWords) {
      vf a = zero(), b = zero();
      if (row < rows) {
        const float* from = x + row * stride + k;
        const std::int64_t left = depth - k;
        a = left >= kLanes ? load(from) : load_n(from, static_cast<int>(left));
        if (left >= kChunk)
          b = load(from + kLanes);
        else if (left > kLanes)
          b = load_n(from + kLanes, static_cast<int>(left - kLanes));
      }
      most = _mm512_max_epu32(most, _mm512_max_epu32(magnitude_bits(a), magnitude_bits(b)));
      split<Consecutive, kParts>(a, b, p, kTileWords);
    }
    if (row >= rows) continue;
    const std::uint32_t of_slice = largest_word(most);
    largest[row] = of_slice > largest[row] ? of_slice : largest[row];
  }
}

struct AmxBlocking {
  std::int64_t row_pairs;  // of tiles
  std::int64_t row_blocks;
  std::int64_t panels;
  std::int64_t panel_groups;
  std::int64_t slice_chunks;
};

// A task's working memory, in one block.
template <class Stored>
struct Work {
  std::uint16_t *a, *b;
  float* sums;  // [panel of the group][row][kPanel]
  typename Stored::Element* tail;
  std::uint32_t* largest;
};

template <class Stored>
struct WorkShape {
  std::int64_t row_tiles, slice_chunks, b_chunks, panels;

  std::int64_t a_bytes() const { return row_tiles * slice_chunks * kRowWords * 2; }
  std::int64_t b_bytes() const { return b_chunks * kPanelWords<Stored> * 2; }
  std::int64_t sums_bytes() const { return panels * row_tiles * 2 * kTileBytes; }
  std::int64_t tail_bytes() const { return kChunk * kPanel * 4; }
  std::int64_t largest_bytes() const { return row_tiles * kTileHeight * 4; }
  std::int64_t bytes() const {
    return a_bytes() + b_bytes() + sums_bytes() + tail_bytes() + largest_bytes();
  }

  Work<Stored> place(void* memory) const {
    auto* block = static_cast<char*>(memory);
    Work<Stored> work;
    work.a = reinterpret_cast<std::uint16_t*>(block);
    work.b = reinterpret_cast<std::uint16_t*>(block += a_bytes());
    work.sums = reinterpret_cast<float*>(block += b_bytes());
    work.tail = reinterpret_cast<typename Stored::Element*>(block += sums_bytes());
    work.largest = reinterpret_cast<std::uint32_t*>(block += tail_bytes());
    return work;
  }
};

template <class Stored>
Slice<Stored> slice_of(const typename Stored::Element* panel, std::int64_t depth,
                       typename Stored::Element* tail) {
  const std::int64_t chunks = ceil_div(depth, kChunk), tail_rows = depth % kChunk;
  if (tail_rows == 0) return {panel, nullptr, chunks};
  const auto* from = panel + (chunks - 1) * kChunk * Stored::kRow;
  for (std::int64_t i = 0; i < kChunk * Stored::kRow; ++i)
    tail[i] = i < tail_rows * Stored::kRow ? from[i] : typename Stored::Element{};
  return {panel, tail, chunks};
}

// A row that cannot be split goes through fused multiply-adds.
template <class Stored>
void multiply_row(const float* x, const typename Stored::Element* panel, std::int64_t depth,
                  float* sums) {
  Tile<1> tile;
  Prefetch none{nullptr, 0};
  clear(tile);
  multiply<Stored>(tile, x, 0, panel, depth, none);
  store(tile, sums, kPanel);
}

template <class Stored>
class SplitTask {
 public:
  using Element = typename Stored::Element;

  SplitTask(const PanelLinearArgs& args, int threads)
      : args_(args.linear),
        panels_(static_cast<const Element*>(args.panels)),
        panel_columns_(args.format.gated ? kLanes : kPanel),
        finish_(finish_for(args_.activation, args.format.gated)) {
    blocking_.row_pairs = ceil_div(args_.rows, 2 * kTileHeight);
    blocking_.row_blocks = ceil_div(args_.rows, kBlockRows);
    blocking_.panels = panels_of(args.format, args_.out_features);
    // Many tasks even out the threads; with few rows long streams of weights matter more.
    const std::int64_t tasks = threads == 1 ? 1 : (args_.rows > 64 ? 4 : 2) * threads;
    const std::int64_t groups =
        max_int(ceil_div(tasks, blocking_.row_blocks), ceil_div(blocking_.panels, kGroupPanels));
    blocking_.panel_groups = min_int(blocking_.panels, groups);
    blocking_.slice_chunks = min_int(blocking_.row_pairs == 1 ? kFewRowsSliceChunks : kSliceChunks,
                                     ceil_div(args_.in_features, kChunk));
  }

  void run_all() const {
    parallel_for(blocking_.row_blocks * blocking_.panel_groups, 1,
                 [&](std::int64_t begin, std::int64_t end) {
                   tile_begin();
                   for (std::int64_t task = begin; task < end; ++task) run(task);
                   tile_end();
                 });
  }

 private:
  void run(std::int64_t task) const {
    const std::int64_t block = task / blocking_.panel_groups;
    const std::int64_t group = task % blocking_.panel_groups;
    const Range range = {first_row(block), first_row(block + 1)};
    const std::int64_t rows = range.end - range.begin, row_tiles = ceil_div(rows, kTileHeight);
    const std::int64_t panel_begin = part_begin(blocking_.panels, blocking_.panel_groups, group);
    const std::int64_t panel_end = part_begin(blocking_.panels, blocking_.panel_groups, group + 1);
    const std::int64_t b_chunks = row_tiles <= 2 ? 2 : blocking_.slice_chunks;
    const WorkShape<Stored> shape{row_tiles, blocking_.slice_chunks, b_chunks,
                                  panel_end - panel_begin};
    const Work<Stored> work = shape.place(scratch(static_cast<std::size_t>(shape.bytes())));
    for (std::int64_t r = 0; r < rows; ++r) work.largest[r] = 0;

    const std::int64_t depth = args_.in_features, slice_depth = blocking_.slice_chunks * kChunk;
    for (std::int64_t k = 0; k < depth; k += slice_depth) {
      const std::int64_t slice = min_int(slice_depth, depth - k);
      const std::int64_t chunks = ceil_div(slice, kChunk), tile_stride = chunks * kRowWords;
      split_rows(args_.x + range.begin * args_.x_stride + k, args_.x_stride, rows, slice, work.a,
                 work.largest);
      for (std::int64_t p = panel_begin; p < panel_end; ++p) {
        const Slice<Stored> of_panel =
            slice_of<Stored>(panel(p) + k * Stored::kRow, slice, work.tail);
        float* sums = work.sums + (p - panel_begin) * row_tiles * kTileHeight * kPanel;
        for (std::int64_t t = 0; t < row_tiles; t += 2) {
          const std::int64_t row = t * kTileHeight;
          const Range pair = {range.begin + row,
                              min_int(range.begin + row + 2 * kTileHeight, range.end)};
          const std::uint16_t* a = work.a + t * tile_stride;
          float* c = sums + row * kPanel;
          const bool finishes = k + slice == depth;
          const auto multiply_pair = [&]<int RowTiles>() {
            if (t == 0)
              multiply_and_split<Stored, RowTiles>(a, tile_stride, of_panel, work.b, b_chunks, c,
                                                   k == 0);
            else
              multiply_split<Stored, RowTiles>(a, tile_stride, work.b, chunks, c, k == 0);
          };
          if (pair.end - pair.begin > kTileHeight)
            multiply_pair.template operator()<2>();
          else
            multiply_pair.template operator()<1>();
          if (!finishes) continue;
          redo_rows(work.largest + row, pair, p, c);
          finish_(args_, c, pair.begin, pair.end - pair.begin, p * panel_columns_);
        }
      }
    }
  }

  std::int64_t first_row(std::int64_t block) const {
    return min_int(args_.rows,
                   2 * kTileHeight * part_begin(blocking_.row_pairs, blocking_.row_blocks, block));
  }
  const Element* panel(std::int64_t p) const {
    return panels_ + p * args_.in_features * Stored::kRow;
  }

  void redo_rows(const std::uint32_t* largest, Range rows, std::int64_t p, float* sums) const {
    for (std::int64_t row = rows.begin; row < rows.end; ++row, ++largest, sums += kPanel)
      if (!can_split(*largest))
        multiply_row<Stored>(args_.x + row * args_.x_stride, panel(p), args_.in_features, sums);
  }

  const LinearArgs<float>& args_;
  const Element* panels_;
  std::int64_t panel_columns_;
  Finish finish_;
  AmxBlocking blocking_;
};

// Of a SplitRows: all of its depth, and the sums of one panel.
WorkShape<SplitFloat32> shape_of(std::int64_t rows, std::int64_t depth) {
  const std::int64_t row_tiles = ceil_div(rows, kTileHeight);
  return {row_tiles, ceil_div(depth, kChunk), row_tiles <= 2 ? 2 : kSliceChunks, 1};
}

bool splits_row(const std::uint32_t* words, std::int64_t columns) {
  std::uint32_t largest = 0;
  for (std::int64_t k = 0; k < columns; ++k) {
    const std::uint32_t bits = words[k] & 0x7fffffffu;
    if (bits > largest) largest = bits;
  }
  return can_split(largest);
}

bool splits_row(const std::uint16_t* words, std::int64_t columns, bool is_bfloat16) {
  std::uint32_t largest = 0;
  for (std::int64_t k = 0; k < columns; ++k) {
    const std::uint32_t bits = words[k] & 0x7fffu;
    if (bits > largest) largest = bits;
  }
  return is_bfloat16 ? can_split(largest << 16) : largest < 0x7c00;  // all that is finite
}

}  // namespace

void linear_amx(const PanelLinearArgs& args) {
  const bool grouped = args.format.grouped;
  if (args.format.is_integer() && args.linear.rows >= (grouped ? kMinGroupRows : kMinTileRows))
    return grouped ? linear_groups_amx(args) : linear_rows_amx(args);
  if (args.linear.rows < kMinSplitRows || !args.splits) return linear(args);
  switch (args.format.type) {
    case WeightType::float32: return SplitTask<SplitFloat32>(args, num_threads()).run_all();
    case WeightType::float16: return SplitTask<SplitFloat16>(args, num_threads()).run_all();
    case WeightType::bfloat16: return SplitTask<SplitBFloat16>(args, num_threads()).run_all();
    case WeightType::int8:
    case WeightType::int4: return linear(args);
  }
}

// A product of any number of rows with a float32 weight, on the calling thread.
void linear_split(const PanelLinearArgs& args) { SplitTask<SplitFloat32>(args, 1).run_all(); }

std::int64_t split_bytes(std::int64_t rows, std::int64_t depth) {
  return shape_of(rows, depth).bytes();
}

void split(const SplitRows& rows) {
  const auto work = shape_of(rows.rows, rows.depth).place(rows.memory);
  for (std::int64_t r = 0; r < rows.rows; ++r) work.largest[r] = 0;
  split_rows(rows.x, rows.stride, rows.rows, rows.depth, work.a, work.largest);
}

void add_split_product(const SplitRows& rows, const float* panel, float* sums,
                       std::int64_t sums_stride) {
  using Stored = SplitFloat32;
  const auto shape = shape_of(rows.rows, rows.depth);
  const auto work = shape.place(rows.memory);
  const std::int64_t tile_stride = shape.slice_chunks * kRowWords;
  const std::int64_t slice_depth =
      (shape.row_tiles <= 2 ? kFewRowsSliceChunks : kSliceChunks) * kChunk;
  tile_begin();
  for (std::int64_t k = 0; k < rows.depth; k += slice_depth) {
    const Slice<Stored> slice =
        slice_of<Stored>(panel + k * Stored::kRow, min_int(slice_depth, rows.depth - k), work.tail);
    for (std::int64_t t = 0; t < shape.row_tiles; t += 2) {
      const std::uint16_t* a = work.a + t * tile_stride + k / kChunk * kRowWords;
      float* c = work.sums + t * kTileHeight * kPanel;
      const auto multiply_pair = [&]<int RowTiles>() {
        if (t == 0)
          multiply_and_split<Stored, RowTiles>(a, tile_stride, slice, work.b, shape.b_chunks, c,
                                               k == 0);
        else
          multiply_split<Stored, RowTiles>(a, tile_stride, work.b, slice.chunks, c, k == 0);
      };
      if (t + 1 < shape.row_tiles)
        multiply_pair.template operator()<2>();
      else
        multiply_pair.template operator()<1>();
    }
  }
  tile_end();
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    float* product = work.sums + r * kPanel;
    if (!can_split(work.largest[r]))
      multiply_row<Stored>(rows.x + r * rows.stride, panel, rows.depth, product);
    for (int j = 0; j < kPanel; j += kLanes) {
      float* to = sums + r * sums_stride + j;
      store(to, add(load(to), load(product + j)));
    }
  }
}

bool splits(const PackArgs& args) {
  for (std::int64_t r = 0; r < args.out_features; ++r) {
    const std::int64_t first = r * args.weight_stride;
    const bool row_splits =
        args.format.type == WeightType::float32
            ? splits_row(static_cast<const std::uint32_t*>(args.weight) + first, args.in_features)
            : splits_row(static_cast<const std::uint16_t*>(args.weight) + first, args.in_features,
                         args.format.type == WeightType::bfloat16);
    if (!row_splits) return false;
  }
  return true;
}

}  // namespace softgate::cpu::SOFTGATE_ISA
