// linear on floating-point weights.
#include "cpu/kernels.h"
#include "cpu/linear_task.h"

namespace softgate::cpu::SOFTGATE_ISA {

void linear(const PanelLinearArgs& args);

namespace {

// One chain of fused multiply-adds per output, in the order of depth.
template <class Stored>
class FloatProduct : public VectorProduct {
 public:
  static constexpr bool kIsFloat32 =
      sizeof(typename Stored::Element) * Stored::kRow == sizeof(float) * kPanel;
  static constexpr int kManyRows = kTileRows;
  static constexpr std::int64_t kHeadBytes = 0;
  static constexpr std::int64_t kUnitBytes = sizeof(typename Stored::Element) * Stored::kRow;
  static constexpr std::int64_t kWideUnitBytes = kIsFloat32 ? 0 : kPanel * kFloat;
  static constexpr std::int64_t kSliceUnits = kSliceDepth;
  static constexpr std::int64_t kStepUnits = kPrefetchSteps;

  explicit FloatProduct(const LinearArgs<float>& args) : args_(args) {}

  std::int64_t units() const { return args_.in_features; }
  std::int64_t row_bytes() const { return args_.in_features * kFloat; }

  void widen(const char* units, std::int64_t count, char* to) const {
    const auto* from = reinterpret_cast<const typename Stored::Element*>(units);
    auto* wide = reinterpret_cast<float*>(to);
    for (std::int64_t k = 0; k < count; ++k) {
      vf b0, b1;
      Stored::load_row(from + k * Stored::kRow, b0, b1);
      store(wide + k * kPanel, b0);
      store(wide + k * kPanel + kLanes, b1);
    }
  }

  template <bool Wide>
  void multiply(const Part& part, Prefetch& ahead) const {
    with_constant<kTileRows>(part.rows,
                             [&](auto n) { add_rows<decltype(n)::value, Wide>(part, ahead); });
  }

 private:
  template <int R, bool Wide>
  [[gnu::noinline]] void add_rows(const Part& part, Prefetch& ahead) const {
    const float* x = args_.x + part.row * args_.x_stride + part.range.begin;
    const std::int64_t depth = part.range.end - part.range.begin;
    Tile<R> tile;
    if (part.is_first)
      clear(tile);
    else
      load(tile, part.sums, kPanel);
    if constexpr (Wide)
      softgate::cpu::SOFTGATE_ISA::multiply(
          tile, x, args_.x_stride, reinterpret_cast<const float*>(part.units), depth, ahead);
    else
      softgate::cpu::SOFTGATE_ISA::multiply<Stored>(
          tile, x, args_.x_stride, reinterpret_cast<const typename Stored::Element*>(part.units),
          depth, ahead);
    store(tile, part.sums, kPanel);
  }

  const LinearArgs<float>& args_;
};

template <class Stored>
void run_floats(const PanelLinearArgs& args) {
  run_linear(args, FloatProduct<Stored>(args.linear));
}

}  // namespace

void linear(const PanelLinearArgs& args) {
  switch (args.format.type) {
    case WeightType::float32: return run_floats<Float32>(args);
    case WeightType::float16: return run_floats<Float16>(args);
    case WeightType::bfloat16: return run_floats<BFloat16>(args);
    case WeightType::int8:
    case WeightType::int4: return linear_integers(args);
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
