// One ISA's kernel table; compiled once per ISA.
#include "cpu/kernels.h"

#include "cpu/simd.h"

namespace softgate::cpu::SOFTGATE_ISA {

void add_norm(const AddNormArgs<float>&);
void attention(const AttentionArgs<float>&);
void embedding(const EmbeddingArgs<float>&);
void linear(const LinearArgs<float>&);
void normalize(const NormalizeArgs<float>&);
void pack(const PackArgs&);
void pool(const PoolArgs<float>&);
void softmax(const SoftmaxArgs<float>&);
void unpack(const PackArgs&);

const Kernels kernels = {
    .add_norm = add_norm,
    .attention = attention,
    .embedding = embedding,
    .linear = linear,
    .normalize = normalize,
    .pack = pack,
    .pool = pool,
    .softmax = softmax,
    .unpack = unpack,
    .panel_width = kPanel,
};

}  // namespace softgate::cpu::SOFTGATE_ISA
