// The CPU backend's list of kernels. Each ISA defines one table of them (kernels.cc).
#pragma once

#include "ops/add_norm.h"
#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/normalize.h"
#include "ops/pool.h"
#include "ops/softmax.h"

namespace softgate::cpu {

struct Kernels {
  void (*add_norm)(const AddNormArgs<float>&);
  void (*attention)(const AttentionArgs<float>&);
  void (*embedding)(const EmbeddingArgs<float>&);
  void (*linear)(const LinearArgs<float>&);
  void (*normalize)(const NormalizeArgs<float>&);
  void (*pack)(const PackArgs&);
  void (*pool)(const PoolArgs<float>&);
  void (*softmax)(const SoftmaxArgs<float>&);
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
