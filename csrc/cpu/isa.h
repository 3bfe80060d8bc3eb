// Which instruction set the CPU kernels use, chosen at run time.
//
// csrc/cpu/*.cc are compiled once per ISA with SOFTGATE_ISA naming the namespace they fill. Inside
// them nothing may have external linkage outside that namespace: the linker keeps one copy of a
// weak symbol, and an AVX-512 copy would crash an older CPU (tools/check_weak_symbols.py).
#pragma once

#include <string>
#include <vector>

namespace softgate::cpu {

struct Kernels;

// "amx" (avx512 and AMX's bfloat16 and int8 tiles), "avx512" (F, BW, DQ, VL, VNNI), "avx2" (AVX2,
// FMA, F16C) or "generic" (x86-64-v2, or what the compiler's baseline is elsewhere): the best that
// this CPU runs, unless SOFTGATE_ISA or set_isa says otherwise.
const std::string& isa();

// Whether the kernels in use read what was packed for this ISA: amx and avx512 share their layout.
bool reads_packed(const std::string& isa);

// Those this CPU runs, best first.
const std::vector<std::string>& isas();

// Throws std::invalid_argument when `name` is not one of isas(). Not for use while kernels run.
void set_isa(const std::string& name);

// The kernels of isa().
const Kernels& kernels();

}  // namespace softgate::cpu
