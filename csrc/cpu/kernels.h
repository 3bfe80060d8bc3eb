// The CPU backend's list of kernels. Each ISA defines one table of them (kernels.cc).
#pragma once

#include "ops/add_norm.h"
#include "ops/attention.h"
#include "ops/cached_attention.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/normalize.h"
#include "ops/pool.h"
#include "ops/recurrent.h"
#include "ops/rotary.h"
#include "ops/sample.h"
#include "ops/softmax.h"
#include "ops/source_attention.h"

namespace softgate::cpu {

struct Kernels {
  void (*add_norm)(const AddNormArgs<float>&);
  void (*attention)(const AttentionArgs<float>&);
  void (*cached_attention)(const CachedAttentionArgs<float>&);
  void (*embedding)(const EmbeddingArgs<float>&);
  void (*gather)(const GatherArgs<float>&);
  void (*gru)(const RecurrentArgs&);
  void (*linear)(const PanelLinearArgs&);
  std::int64_t (*linear_workspace)(const PanelFormat&, std::int64_t rows, std::int64_t in_features);
  void (*lstm)(const RecurrentArgs&);
  void (*normalize)(const NormalizeArgs<float>&);
  void (*pack)(const PackArgs&);
  std::int64_t (*panel_bytes)(const PanelFormat&, std::int64_t in_features);
  void (*penalize)(const PenalizeArgs<float>&);
  void (*pool)(const PoolArgs<float>&);
  void (*restore_panel)(const PanelArgs&);
  void (*rnn)(const RecurrentArgs&);
  void (*rotary)(const RotaryArgs<float>&);
  void (*sample)(const SampleArgs<float>&);
  void (*softcap)(const SoftcapArgs<float>&);
  void (*softmax)(const SoftmaxArgs<float>&);
  void (*source_attention)(const SourceAttentionArgs&);
  // May `linear` split this weight (bfloat16_parts.h)? Null where it never does.
  bool (*splits)(const PackArgs&);
  void (*store_panel)(const PanelArgs&);
  std::int64_t (*stored_panel_bytes)(DType, std::int64_t depth);
  void (*token_logprobs)(const TokenLogprobsArgs<float>&);
  void (*top_continuations)(const TopContinuationsArgs&);
  void (*unpack)(const PackArgs&);
  int panel_width;  // columns of one packed panel (ops/linear.h)
};

namespace generic {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
extern const Kernels amx_kernels;  // the same but for matrix products
}  // namespace avx512

}  // namespace softgate::cpu
