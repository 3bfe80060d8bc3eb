// linear on 8-bit weights that have a scale per row, with AMX: the integers that linear_integers.cc
// forms, and so its bits.
#include "cpu/amx.h"
#include "cpu/linear_task.h"
#include "cpu/quantised_rows.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {

constexpr int kBlockRows = 2 * kTileHeight;
constexpr std::int64_t kStepBytes = kPanel * kDotDepth;

template <int RowTiles>
SG_INLINE void add_products(const DotElement* x, std::int64_t tile_stride, const char* weights) {
  tile_load<4>(x, kDepthStep);
  if constexpr (RowTiles == 2) tile_load<5>(x + tile_stride, kDepthStep);
  tile_load<6>(weights, kStepBytes);
  tile_load<7>(weights + kStepBytes / 2, kStepBytes);
  tile_dot_integers<0, 4, 6>();
  tile_dot_integers<1, 4, 7>();
  if constexpr (RowTiles == 2) {
    tile_dot_integers<2, 5, 6>();
    tile_dot_integers<3, 5, 7>();
  }
}

class TileRowProduct {
 public:
  static constexpr int kFewRows = kBlockRows;
  static constexpr int kManyRows = kBlockRows;
  static constexpr bool kPrefetchesOut = false;
  static constexpr bool kWholeTiles = true;
  static constexpr std::int64_t kHeadBytes = kRowHeadBytes;
  static constexpr std::int64_t kUnitBytes = kDepthStep * kPanel;
  static constexpr std::int64_t kWideUnitBytes = 0;
  static constexpr std::int64_t kStepUnits = 1;
  static constexpr std::int64_t kSliceUnits = 16;  // 32 KB

  explicit TileRowProduct(const QuantisedRows& x) : x_(x) {}

  std::int64_t units() const { return x_.depth() / kDepthStep; }
  std::int64_t row_bytes() const { return x_.row_bytes(); }
  void begin() const { tile_begin(); }
  void end() const { tile_end(); }

  template <bool>
  void multiply(const Part& part, Prefetch& ahead) const {
    if (part.rows > kTileHeight)
      add_rows<2>(part, ahead);
    else
      add_rows<1>(part, ahead);
  }

 private:
  template <int RowTiles>
  [[gnu::noinline]] void add_rows(const Part& part, Prefetch& ahead) const {
    if (part.is_first)
      clear_sums<RowTiles>();
    else
      load_sums<RowTiles>(part.sums);
    const DotElement* x = x_.values(part.row) + part.range.begin * x_.step();
    const std::int64_t tile_stride = x_.row_bytes() * kTileHeight;
    const char* units = part.units;
    for (std::int64_t i = part.range.begin; i < part.range.end; ++i) {
      ahead.step();
      add_products<RowTiles>(x, tile_stride, units);
      x += kTileHeight * kDepthStep;
      units += kUnitBytes;
    }
    store_sums<RowTiles>(part.sums);
    if (!part.is_last) return;
    const RowHead head(part.head);
    float* to = part.sums;
    for (std::int64_t row = part.row; row < part.row + part.rows; ++row, to += kPanel) {
      const vi start = set1_int(*x_.starts(row));
      const vi sums[2] = {add(_mm512_loadu_si512(to), start),
                          add(_mm512_loadu_si512(to + kLanes), start)};
      head.finish(sums, x_.shift(row), *x_.scales(row), to);
    }
  }

  const QuantisedRows& x_;
};

}  // namespace

void linear_rows_amx(const PanelLinearArgs& args) {
  QuantisedRows x(args.format, args.linear.rows, args.linear.in_features, kTileHeight);
  x.fill(args.linear, args.workspace);
  run_linear(args, TileRowProduct(x));
}

}  // namespace softgate::cpu::SOFTGATE_ISA
