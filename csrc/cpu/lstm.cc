// The pointwise part of an LSTM.
#include "cpu/recurrent.h"
#include "cpu/simd_math.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {

void finish(const UnitBlock& block) {
  for_each_row(block, [](const float* sums, const float*, float* next, float* to) {
    const auto gate = [&](int i, int half) { return load(sums + i * kPanel + half * kLanes); };
    vf ifo[] = {gate(0, 0), gate(0, 1), gate(1, 0), gate(1, 1), gate(3, 0), gate(3, 1)};
    vf g[] = {gate(2, 0), gate(2, 1)};
    sigmoid(ifo);
    tanh(g);
    vf c[] = {fma(ifo[2], load(to), mul(ifo[0], g[0])),
              fma(ifo[3], load(to + kLanes), mul(ifo[1], g[1]))};
    store(to, c[0]);
    store(to + kLanes, c[1]);
    tanh(c);
    store(next, mul(ifo[4], c[0]));
    store(next + kLanes, mul(ifo[5], c[1]));
  });
}

}  // namespace

void lstm(const RecurrentArgs& args) {
  run_recurrent(args, {1, {{.first_gate = 0, .gates = 4, .first_sum = 0, .finish = finish}}});
}

}  // namespace softgate::cpu::SOFTGATE_ISA
