// The pointwise parts of a GRU, with the reset gate after the product and before it. Sums are in
// the order n's input part, r, z, n's recurrent part.
#include "cpu/recurrent.h"
#include "cpu/simd_math.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {

// (1 - z) * n + z * h
SG_INLINE vf blend(vf z, vf n, vf h) { return fma(z, sub(h, n), n); }

void finish_after(const UnitBlock& block) {
  for_each_vector(block, 4, [&](const float* sums, std::int64_t state, std::int64_t) {
    const vf r = sigmoid(load(sums + kPanel));
    const vf z = sigmoid(load(sums + 2 * kPanel));
    const vf n = tanh(fma(r, load(sums + 3 * kPanel), load(sums)));
    store(block.next + state, blend(z, n, load(block.h + state)));
  });
}

void reset(const UnitBlock& block) {
  for_each_vector(block, 4, [&](const float* sums, std::int64_t state, std::int64_t) {
    store(block.next + state, mul(sigmoid(load(sums + kPanel)), load(block.h + state)));
  });
}

void finish_before(const UnitBlock& block) {
  for_each_vector(block, 4, [&](const float* sums, std::int64_t state, std::int64_t) {
    const vf z = sigmoid(load(sums + 2 * kPanel));
    store(block.next + state, blend(z, tanh(load(sums)), load(block.h + state)));
  });
}

}  // namespace

void gru(const RecurrentArgs& args) {
  if (args.kind == RecurrentKind::gru) {
    run_recurrent(args,
                  {1, {{.first_gate = 0, .gates = 3, .first_slot = 1, .finish = finish_after}}});
  } else {
    run_recurrent(args,
                  {2,
                   {{.first_gate = 0, .gates = 2, .first_slot = 1, .finish = reset},
                    {.first_gate = 2, .gates = 1, .first_slot = 0, .finish = finish_before}}});
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
