// The pointwise part of Elman's RNN.
#include "cpu/activation.h"
#include "cpu/recurrent.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {

void finish_tanh(const UnitBlock& block) {
  for_each_row(block, [](const float* sums, const float*, float* next, float*) {
    vf h[] = {load(sums), load(sums + kLanes)};
    tanh(h);
    store(next, h[0]);
    store(next + kLanes, h[1]);
  });
}

void finish_relu(const UnitBlock& block) {
  for_each_row(block, [](const float* sums, const float*, float* next, float*) {
    for (int j = 0; j < kPanel; j += kLanes) store(next + j, relu(load(sums + j)));
  });
}

}  // namespace

void rnn(const RecurrentArgs& args) {
  const auto finish = args.kind == RecurrentKind::rnn_tanh ? finish_tanh : finish_relu;
  run_recurrent(args, {1, {{.first_gate = 0, .gates = 1, .first_sum = 0, .finish = finish}}});
}

}  // namespace softgate::cpu::SOFTGATE_ISA
