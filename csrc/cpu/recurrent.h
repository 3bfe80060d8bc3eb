// What the recurrent layers share: the walk over steps, and the products in it. A layer's own file
// gives the pointwise part.
#pragma once

#include "cpu/simd.h"
#include "ops/recurrent.h"

namespace softgate::cpu::SOFTGATE_ISA {

// A block of kPanel hidden units at one step.
struct UnitBlock {
  std::int64_t rows;
  const float* sums;           // [rows, gates, kPanel]
  std::int64_t sums_stride;    // elements between rows
  const float* h;              // [any, kPanel], the states before the step
  const std::int32_t* states;  // [rows], which of those is each row's; null: one after another
  float* c;                    // [rows, kPanel], see RecurrentDirection
  float* next;                 // [rows, kPanel], what the phase gives
  std::int64_t state_stride;   // of h and next, elements between rows
};

// Part of a step: the product of a state and some gates' weights, added to the sums from first_sum
// on (after the last, to c), then the pointwise part. The first phase reads h, a second one what
// the first gave; the last gives h, unless a projection follows.
struct Phase {
  int first_gate, gates;
  int first_sum;
  void (*finish)(const UnitBlock&);
};

struct Cell {
  int phases;
  Phase phase[2];
};

void run_recurrent(const RecurrentArgs& args, const Cell& cell);

std::int64_t stored_panel_bytes(DType dtype, std::int64_t depth);
void store_panel(const PanelArgs& args);
void restore_panel(const PanelArgs& args);

// body(sums, h, next, c): where those of a row of the block begin.
template <class Body>
SG_INLINE void for_each_row(const UnitBlock& block, Body body) {
  for (std::int64_t row = 0; row < block.rows; ++row) {
    const std::int64_t state = block.states ? block.states[row] : row;
    body(block.sums + row * block.sums_stride, block.h + state * block.state_stride,
         block.next + row * block.state_stride, block.c + row * kPanel);
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
