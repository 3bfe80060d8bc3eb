// linear on floating-point weights, and what follows the product for all of them.
#include "cpu/activation.h"
#include "cpu/kernels.h"
#include "cpu/linear_task.h"

namespace softgate::cpu::SOFTGATE_ISA {

void linear(const PanelLinearArgs& args);

namespace {

template <bool Whole>
SG_INLINE vf load_part(const float* p, int n) {
  return Whole ? load(p) : load_n(p, n);
}

// The epilogue on one vector: columns [column, column + n) of a row, n = kLanes when Whole.
template <Activation A, bool Gated, bool Whole>
SG_INLINE void finish(const LinearArgs<float>& args, const float* sums, std::int64_t row,
                      std::int64_t column, int n) {
  vf value = load(sums);
  if (args.bias) value = add(value, load_part<Whole>(args.bias + column, n));
  value = activate<A>(value);
  if constexpr (Gated) {
    vf up = load(sums + kLanes);
    if (args.bias) up = add(up, load_part<Whole>(args.bias + args.out_features / 2 + column, n));
    value = mul(value, up);
  }
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

template <Activation A, bool Gated>
void finish_block(const LinearArgs<float>& args, const float* sums, std::int64_t first_row,
                  std::int64_t rows, std::int64_t panel) {
  constexpr int kColumns = Gated ? kLanes : kPanel;
  const std::int64_t column = panel * kColumns;
  const std::int64_t left = (Gated ? args.out_features / 2 : args.out_features) - column;
  if (left >= kColumns) {
    for (std::int64_t r = 0; r < rows; ++r, sums += kPanel)
#pragma GCC unroll 2
      for (int j = 0; j < kColumns; j += kLanes)
        finish<A, Gated, true>(args, sums + j, first_row + r, column + j, kLanes);
    return;
  }
  for (std::int64_t r = 0; r < rows; ++r, sums += kPanel)
    for (std::int64_t j = 0; j < left; j += kLanes)
      finish<A, Gated, false>(args, sums + j, first_row + r, column + j,
                              static_cast<int>(min_int(kLanes, left - j)));
}

template <bool Gated>
Finish finish_of(Activation activation) {
  switch (activation) {
    case Activation::none: return finish_block<Activation::none, Gated>;
    case Activation::gelu: return finish_block<Activation::gelu, Gated>;
    case Activation::gelu_tanh: return finish_block<Activation::gelu_tanh, Gated>;
    case Activation::relu: return finish_block<Activation::relu, Gated>;
    case Activation::silu: return finish_block<Activation::silu, Gated>;
  }
  return nullptr;
}

// One chain of fused multiply-adds per output, in the order of depth.
template <class Stored>
class FloatProduct {
 public:
  static constexpr bool kIsFloat32 =
      sizeof(typename Stored::Element) * Stored::kRow == sizeof(float) * kPanel;
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

  template <int R, bool Wide>
  void multiply(const Part& part, Prefetch& ahead) const {
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

 private:
  const LinearArgs<float>& args_;
};

template <class Stored>
void run_floats(const PanelLinearArgs& args) {
  run_linear(args, FloatProduct<Stored>(args.linear));
}

}  // namespace

Finish finish_for(Activation activation, bool gated) {
  return gated ? finish_of<true>(activation) : finish_of<false>(activation);
}

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
