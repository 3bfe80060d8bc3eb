// linear on integers in groups of 32 with a scale each, with AMX: the integers that
// linear_integers.cc forms and its chain of fused multiply-adds, and so its bits. A group is one
// step of the tiles, whose integers go through L1 to the vectors that scale and add them.
#include "cpu/amx.h"
#include "cpu/linear_groups.h"
#include "cpu/linear_task.h"
#include "cpu/quantised_rows.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {

constexpr TileShape kRowsOfX = {kTileHeight, kGroupSize},
                    kWeights = {kGroupSize / kDotDepth, kLanes* kDotDepth};
constexpr int kAtOnce = 8;  // rows whose sums stay in registers

// A group as the arithmetic wants it: scales and minimums in float32, integers with a sign.
template <class Packed>
struct SignedGroups {
  static constexpr std::int64_t kScaleBytes = kPanel * kFloat * (Packed::kMinimums ? 2 : 1);
  static constexpr std::int64_t kBytes = kScaleBytes + kGroupSize * kPanel;

  SG_INLINE vf scale(const char* unit, int j) {
    return load(reinterpret_cast<const float*>(unit) + j * kLanes);
  }
  SG_INLINE vf minimum(const char* unit, int j) { return scale(unit, j + 2); }

  SG_INLINE void fill(const char* unit, char* to) {
    auto* scales = reinterpret_cast<float*>(to);
    for (int j = 0; j < 2; ++j) {
      store(scales + j * kLanes, Packed::scale(unit, j));
      if constexpr (Packed::kMinimums) store(scales + (j + 2) * kLanes, Packed::minimum(unit, j));
    }
    const vw offset = _mm512_set1_epi8(static_cast<char>(Packed::kOffset));
    auto* integers = reinterpret_cast<std::uint8_t*>(to) + kScaleBytes;
    for (std::int64_t step = 0; step < kGroupSize / kDotDepth; ++step) {
      vw w0, w1;
      Packed::weights(unit, step, w0, w1);
      store_wide(integers + step * kStepBytes, _mm512_sub_epi8(w0, offset));
      store_wide(integers + step * kStepBytes + kHalfStepBytes, _mm512_sub_epi8(w1, offset));
    }
  }
};

template <class Packed>
class TileGroupProduct {
 public:
  using Groups = SignedGroups<Packed>;
  static constexpr int kFewRows = 0;
  static constexpr int kManyRows = kTileHeight;
  static constexpr bool kPrefetchesOut = true;
  static constexpr bool kWholeTiles = true;
  static constexpr std::int64_t kHeadBytes = 0;
  static constexpr std::int64_t kUnitBytes = Packed::kBytes;
  static constexpr std::int64_t kWideUnitBytes = Groups::kBytes;
  static constexpr std::int64_t kStepUnits = 1;
  static constexpr std::int64_t kSliceUnits = 6;

  explicit TileGroupProduct(const QuantisedRows& x) : x_(x) {}

  std::int64_t units() const { return x_.stretches(); }
  std::int64_t row_bytes() const { return x_.row_bytes(); }
  void begin() const {
    tile_begin(
        {kWholeTile, kWholeTile, kWholeTile, kWholeTile, kRowsOfX, kRowsOfX, kWeights, kWeights});
  }
  void end() const { tile_end(); }

  void widen(const char* units, std::int64_t count, char* to) const {
    for (std::int64_t g = 0; g < count; ++g)
      Groups::fill(units + g * kUnitBytes, to + g * Groups::kBytes);
  }

  template <bool>
  [[gnu::noinline]] void multiply(const Part& part, Prefetch& ahead) const {
    alignas(64) std::int32_t dots[kSliceUnits][2][kTileHeight][kLanes];
    const std::int64_t first = part.range.begin;
    const int count = static_cast<int>(part.range.end - first);
    const RowPlace x = {x_.values(part.row), x_.step()};
    const auto group = [&](int g) { return x.at((first + g) * kGroupSize); };
    const auto unit = [&](int g) { return part.units + g * Groups::kBytes; };
    start<0>(group(0), unit(0));
    for (int g = 0; g < count; g += 2) {
      ahead.step();
      if (g + 1 < count) start<1>(group(g + 1), unit(g + 1));
      finish<0>(dots[g]);
      if (g + 1 == count) break;
      ahead.step();
      if (g + 2 < count) start<0>(group(g + 2), unit(g + 2));
      finish<1>(dots[g + 1]);
    }
    for (int r = 0; r < part.rows; r += kAtOnce) add(part, r, count, dots);
  }

 private:
  // Tiles 2 P and 2 P + 1 become the integers of a group.
  template <int P>
  [[gnu::always_inline]] void start(const DotElement* x, const char* unit) const {
    const char* weights = unit + Groups::kScaleBytes;
    tile_load<4 + P>(x, kDepthStep);
    tile_load<6>(weights, kStepBytes);
    tile_load<7>(weights + kHalfStepBytes, kStepBytes);
    tile_zero<2 * P>();
    tile_zero<2 * P + 1>();
    tile_dot_signed_integers<2 * P, 4 + P, 6>();
    tile_dot_signed_integers<2 * P + 1, 4 + P, 7>();
  }
  using Dots = std::int32_t[2][kTileHeight][kLanes];
  template <int P>
  SG_INLINE void finish(Dots& dots) {
    tile_store<2 * P>(dots[0], kLanes * 4);
    tile_store<2 * P + 1>(dots[1], kLanes * 4);
  }

  [[gnu::always_inline]] void add(const Part& part, int row, int count, const Dots* dots) const {
    vf sums[kAtOnce][2];
    float* memory = part.sums + row * kPanel;
#pragma GCC unroll 16
    for (int r = 0; r < kAtOnce; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j)
        sums[r][j] = part.is_first ? zero() : load(memory + r * kPanel + j * kLanes);
    const std::int32_t* of_group = dots[0][0][row];
    const char* unit = part.units;
    // Three rows share an address register.
    const std::int64_t stretches = x_.stretches();
    const float *scales[kAtOnce / 3 + 1], *totals[kAtOnce / 3 + 1];
    for (int i = 0; i < kAtOnce / 3 + 1; ++i) {
      scales[i] = x_.scales(part.row + row + 3 * i) + part.range.begin;
      totals[i] = x_.totals(part.row + row + 3 * i) + part.range.begin;
    }
    for (int g = 0; g < count; ++g) {
      const vf scale0 = Groups::scale(unit, 0), scale1 = Groups::scale(unit, 1);
      vf minimum0, minimum1;
      if constexpr (Packed::kMinimums) {
        minimum0 = Groups::minimum(unit, 0);
        minimum1 = Groups::minimum(unit, 1);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kAtOnce; ++r) {
        if constexpr (Packed::kMinimums) {
          const vf total = set1(totals[r / 3][g + r % 3 * stretches]);
          sums[r][0] = fma(minimum0, total, sums[r][0]);
          sums[r][1] = fma(minimum1, total, sums[r][1]);
        }
        const vf scale = set1(scales[r / 3][g + r % 3 * stretches]);
        const vf dots0 = to_float(_mm512_load_si512(of_group + r * kLanes));
        const vf dots1 = to_float(_mm512_load_si512(of_group + (kTileHeight + r) * kLanes));
        sums[r][0] = fma(dots0, mul(scale0, scale), sums[r][0]);
        sums[r][1] = fma(dots1, mul(scale1, scale), sums[r][1]);
      }
      of_group += sizeof(Dots) / sizeof *of_group;
      unit += Groups::kBytes;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kAtOnce; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) store(memory + r * kPanel + j * kLanes, sums[r][j]);
  }

  const QuantisedRows& x_;
};

}  // namespace

void linear_groups_amx(const PanelLinearArgs& args) {
  QuantisedRows x(args.format, args.linear.rows, args.linear.in_features, kTileHeight);
  x.fill(args.linear, args.workspace);
  with_groups(args.format,
              [&]<class Groups>(Groups) { run_linear(args, TileGroupProduct<Groups>(x)); });
}

}  // namespace softgate::cpu::SOFTGATE_ISA
