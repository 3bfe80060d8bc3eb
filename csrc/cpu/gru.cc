// The pointwise parts of a GRU, with the reset gate after the product and before it. Sums are in
// the order n's input part, r, z; n's recurrent part is apart.
#include "cpu/recurrent.h"
#include "cpu/simd_math.h"

namespace softgate::cpu::SOFTGATE_ISA {
namespace {

// (1 - z) * n + z * h
SG_INLINE void store_blend(float* to, vf z, vf n, vf h) { store(to, fma(z, sub(h, n), n)); }

void finish_after(const UnitBlock& block) {
  for_each_row(block, [](const float* sums, const float* h, float* next, float* recurrent) {
    const auto sum = [&](int i, int half) { return load(sums + i * kPanel + half * kLanes); };
    vf rz[] = {sum(1, 0), sum(1, 1), sum(2, 0), sum(2, 1)};
    sigmoid(rz);
    vf n[] = {fma(rz[0], load(recurrent), sum(0, 0)),
              fma(rz[1], load(recurrent + kLanes), sum(0, 1))};
    tanh(n);
    for (int i = 0; i < 2; ++i)
      store_blend(next + i * kLanes, rz[2 + i], n[i], load(h + i * kLanes));
  });
}

void reset(const UnitBlock& block) {
  for_each_row(block, [](const float* sums, const float* h, float* next, float*) {
    vf r[] = {load(sums + kPanel), load(sums + kPanel + kLanes)};
    sigmoid(r);
    store(next, mul(r[0], load(h)));
    store(next + kLanes, mul(r[1], load(h + kLanes)));
  });
}

void finish_before(const UnitBlock& block) {
  for_each_row(block, [](const float* sums, const float* h, float* next, float*) {
    vf z[] = {load(sums + 2 * kPanel), load(sums + 2 * kPanel + kLanes)};
    vf n[] = {load(sums), load(sums + kLanes)};
    sigmoid(z);
    tanh(n);
    for (int i = 0; i < 2; ++i) store_blend(next + i * kLanes, z[i], n[i], load(h + i * kLanes));
  });
}

}  // namespace

void gru(const RecurrentArgs& args) {
  if (args.kind == RecurrentKind::gru) {
    run_recurrent(args,
                  {1, {{.first_gate = 0, .gates = 3, .first_sum = 1, .finish = finish_after}}});
  } else {
    run_recurrent(args, {2,
                         {{.first_gate = 0, .gates = 2, .first_sum = 1, .finish = reset},
                          {.first_gate = 2, .gates = 1, .first_sum = 0, .finish = finish_before}}});
  }
}

}  // namespace softgate::cpu::SOFTGATE_ISA
