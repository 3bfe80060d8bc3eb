#include "cpu/isa.h"

#if defined(__linux__) && (defined(__x86_64__) || defined(_M_X64))
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>

#include "core/check.h"
#include "cpu/kernels.h"

namespace softgate::cpu {
namespace {

struct Isa {
  std::string name;
  const Kernels* kernels;
};

// The compiler's built-in also asks whether the system saves the wide registers. Every CPU with
// AVX2 and BMI2 has the rest of x86-64-v3 (F16C, LZCNT, MOVBE), which Clang 15 cannot ask for.
[[maybe_unused]] bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

[[maybe_unused]] bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

#if defined(SOFTGATE_HAS_AVX512) && !defined(SOFTGATE_EMULATE_AVX512) && defined(__linux__)
// Linux saves tiles only for processes that ask (Documentation/arch/x86/xstate.rst).
bool runs_amx() {
  constexpr unsigned kTileBits = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, -TILE, -INT8
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kTileBits) == kTileBits &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

std::vector<Isa> find_runnable() {
  std::vector<Isa> found;
#if defined(SOFTGATE_HAS_AVX512) && !defined(SOFTGATE_EMULATE_AVX512)
  if (runs_avx512()) {
#if defined(__linux__)
    if (runs_amx()) found.push_back({"amx", &avx512::amx_kernels});
#endif
    found.push_back({"avx512", &avx512::kernels});
  }
#endif
#if defined(SOFTGATE_HAS_AVX2)
  if (runs_avx2()) found.push_back({"avx2", &avx2::kernels});
#endif
  found.push_back({"generic", &generic::kernels});
#if defined(SOFTGATE_EMULATE_AVX512)
  if (runs_avx2()) {  // last: slower than any other
    found.push_back({"avx512", &avx512::kernels});
    found.push_back({"amx", &avx512::amx_kernels});
  }
#endif
  return found;
}

const std::vector<Isa>& runnable() {
  static const std::vector<Isa> list = find_runnable();
  return list;
}

const Isa& find(const char* source, const std::string& name) {
  std::string names;
  for (const Isa& isa : runnable()) {
    if (isa.name == name) return isa;
    names += (names.empty() ? "" : ", ") + isa.name;
  }
  throw std::invalid_argument(concat(source, " is \"", name, "\", expected one of ", names));
}

const Isa& default_isa() {
  const char* variable = std::getenv("SOFTGATE_ISA");
  return variable && *variable ? find("SOFTGATE_ISA", variable) : runnable().front();
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> isa = &default_isa();
  return isa;
}

}  // namespace

const std::string& isa() { return current().load()->name; }

bool reads_packed(const std::string& packed_for) {
  return find("packed_for", packed_for).kernels->pack == kernels().pack;
}

const std::vector<std::string>& isas() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (const Isa& isa : runnable()) list.push_back(isa.name);
    return list;
  }();
  return names;
}

void set_isa(const std::string& name) { current().store(&find("set_isa: name", name)); }

const Kernels& kernels() { return *current().load()->kernels; }

}  // namespace softgate::cpu
