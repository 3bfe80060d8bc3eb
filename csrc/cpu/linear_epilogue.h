// What follows a matrix product, on a block of rows of one panel of sums: bias, activation, what it
// gates, residual.
#pragma once

#include "cpu/activation.h"
#include "cpu/tile.h"

namespace softgate::cpu::SOFTGATE_ISA {

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
static void finish_block(const LinearArgs<float>& args, const float* sums, std::int64_t first_row,
                         std::int64_t rows, std::int64_t column) {
  constexpr int kColumns = Gated ? kLanes : kPanel;
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

// sums: [rows, kPanel], of rows from first_row and columns of out from `column`.
using Finish = void (*)(const LinearArgs<float>&, const float* sums, std::int64_t first_row,
                        std::int64_t rows, std::int64_t column);

template <bool Gated>
SG_INLINE Finish finish_of(Activation activation) {
  switch (activation) {
    case Activation::none: return finish_block<Activation::none, Gated>;
    case Activation::gelu: return finish_block<Activation::gelu, Gated>;
    case Activation::gelu_tanh: return finish_block<Activation::gelu_tanh, Gated>;
    case Activation::relu: return finish_block<Activation::relu, Gated>;
    case Activation::silu: return finish_block<Activation::silu, Gated>;
    case Activation::tanh: return finish_block<Activation::tanh, Gated>;
  }
  return nullptr;
}

SG_INLINE Finish finish_for(Activation activation, bool gated) {
  return gated ? finish_of<true>(activation) : finish_of<false>(activation);
}

// Rows of out lie pages apart, where the hardware does not prefetch.
SG_INLINE void prefetch_out(const LinearArgs<float>& args, std::int64_t first_row,
                            std::int64_t rows, std::int64_t column, std::int64_t end) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = column; j < end; j += kLineFloats)
      __builtin_prefetch(args.out + (first_row + r) * args.out_stride + j, 1, 3);
}

}  // namespace softgate::cpu::SOFTGATE_ISA
