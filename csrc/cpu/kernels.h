// The CPU backend's list of kernels. Each ISA defines one table of them (kernels.cc).
#pragma once

#include "ops/add_norm.h"
#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/normalize.h"
#include "ops/pool.h"
#include "ops/recurrent.h"
#include "ops/softmax.h"

namespace softgate::cpu {

struct Kernels {
  void (*add_norm)(const AddNormArgs&);
  void (*attention)(const AttentionArgs&);
  void (*embedding)(const EmbeddingArgs&);
  void (*gru)(const RecurrentArgs&);
  void (*linear)(const LinearArgs&);
  void (*lstm)(const RecurrentArgs&);
  void (*normalize)(const NormalizeArgs&);
  void (*pack)(const PackArgs&);
  void (*pool)(const PoolArgs&);
  void (*restore_panel)(const PanelArgs&);
  void (*rnn)(const RecurrentArgs&);
  void (*softmax)(const SoftmaxArgs&);
  void (*store_panel)(const PanelArgs&);
  std::int64_t (*stored_panel_bytes)(DType, std::int64_t depth);
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
}

}  // namespace softgate::cpu
