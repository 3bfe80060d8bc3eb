#include "cpu/attention.h"
#include "cpu/kernels.h"

namespace softgate::cpu::SOFTGATE_ISA {

void cached_attention(const CachedAttentionArgs<float>& args);

void cached_attention(const CachedAttentionArgs<float>& args) {
  attend_in_tiles(args.attention, 0);
}

}  // namespace softgate::cpu::SOFTGATE_ISA
