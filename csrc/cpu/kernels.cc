// One ISA's kernel table; compiled once per ISA.
#include "cpu/kernels.h"

#include "cpu/simd.h"

namespace softgate::cpu::SOFTGATE_ISA {

void add_norm(const AddNormArgs&);
void attention(const AttentionArgs&);
void embedding(const EmbeddingArgs&);
void gru(const RecurrentArgs&);
void linear(const LinearArgs&);
void lstm(const RecurrentArgs&);
void normalize(const NormalizeArgs&);
void pack(const PackArgs&);
void pool(const PoolArgs&);
void restore_panel(const PanelArgs&);
void rnn(const RecurrentArgs&);
void softmax(const SoftmaxArgs&);
void store_panel(const PanelArgs&);
std::int64_t stored_panel_bytes(DType, std::int64_t depth);
void unpack(const PackArgs&);

const Kernels kernels = {
    .add_norm = add_norm,
    .attention = attention,
    .embedding = embedding,
    .gru = gru,
    .linear = linear,
    .lstm = lstm,
    .normalize = normalize,
    .pack = pack,
    .pool = pool,
    .restore_panel = restore_panel,
    .rnn = rnn,
    .softmax = softmax,
    .store_panel = store_panel,
    .stored_panel_bytes = stored_panel_bytes,
    .unpack = unpack,
    .panel_width = kPanel,
};

}  // namespace softgate::cpu::SOFTGATE_ISA
