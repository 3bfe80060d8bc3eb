// One ISA's kernel table; compiled once per ISA.
#include "cpu/kernels.h"

#include "cpu/simd.h"

namespace softgate::cpu::SOFTGATE_ISA {

void add_norm(const AddNormArgs<float>&);
void attention(const AttentionArgs<float>&);
void cached_attention(const CachedAttentionArgs<float>&);
void embedding(const EmbeddingArgs<float>&);
void gather(const GatherArgs<float>&);
void gru(const RecurrentArgs&);
void linear(const PanelLinearArgs&);
#if defined(SOFTGATE_ISA_AVX512)
void linear_amx(const PanelLinearArgs&);
bool splits(const PackArgs&);
#endif
std::int64_t linear_workspace(const PanelFormat&, std::int64_t rows, std::int64_t in_features);
void lstm(const RecurrentArgs&);
void normalize(const NormalizeArgs<float>&);
void pack(const PackArgs&);
std::int64_t panel_bytes(const PanelFormat&, std::int64_t in_features);
void penalize(const PenalizeArgs<float>&);
void pool(const PoolArgs<float>&);
void restore_panel(const PanelArgs&);
void rnn(const RecurrentArgs&);
void rotary(const RotaryArgs<float>&);
void sample(const SampleArgs<float>&);
void softcap(const SoftcapArgs<float>&);
void softmax(const SoftmaxArgs<float>&);
void source_attention(const SourceAttentionArgs&);
void store_panel(const PanelArgs&);
std::int64_t stored_panel_bytes(DType, std::int64_t depth);
void token_logprobs(const TokenLogprobsArgs<float>&);
void top_continuations(const TopContinuationsArgs&);
void unpack(const PackArgs&);

static constexpr Kernels kTable = {
    .add_norm = add_norm,
    .attention = attention,
    .cached_attention = cached_attention,
    .embedding = embedding,
    .gather = gather,
    .gru = gru,
    .linear = linear,
    .linear_workspace = linear_workspace,
    .lstm = lstm,
    .normalize = normalize,
    .pack = pack,
    .panel_bytes = panel_bytes,
    .penalize = penalize,
    .pool = pool,
    .restore_panel = restore_panel,
    .rnn = rnn,
    .rotary = rotary,
    .sample = sample,
    .softcap = softcap,
    .softmax = softmax,
    .source_attention = source_attention,
    .splits = nullptr,
    .store_panel = store_panel,
    .stored_panel_bytes = stored_panel_bytes,
    .token_logprobs = token_logprobs,
    .top_continuations = top_continuations,
    .unpack = unpack,
    .panel_width = kPanel,
};

const Kernels kernels = kTable;

#if defined(SOFTGATE_ISA_AVX512)
static constexpr Kernels with_amx() {
  Kernels changed = kTable;
  changed.linear = linear_amx;
  changed.splits = splits;
  return changed;
}

const Kernels amx_kernels = with_amx();
#endif

}  // namespace softgate::cpu::SOFTGATE_ISA
