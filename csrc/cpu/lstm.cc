// The pointwise part of an LSTM.
#include "cpu/recurrent.h"
#include "cpu/simd_math.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {

void finish(const UnitBlock& block) {
  for_each_vector(block, 4, [&](const float* sums, std::int64_t state, std::int64_t unit) {
    const vf i = sigmoid(load(sums));
    const vf f = sigmoid(load(sums + kPanel));
    const vf g = tanh(load(sums + 2 * kPanel));
    const vf o = sigmoid(load(sums + 3 * kPanel));
    const vf c = fma(f, load(block.c + unit), mul(i, g));
    store(block.c + unit, c);
    store(block.next + state, mul(o, tanh(c)));
  });
}

}  // namespace

void lstm(const RecurrentArgs& args) {
  run_recurrent(args, {1, {{.first_gate = 0, .gates = 4, .first_slot = 0, .finish = finish}}});
}

}  // namespace softgate::cpu::SOFTGATE_ISA
