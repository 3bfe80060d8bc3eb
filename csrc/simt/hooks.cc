// The compiler calls these at every access of a file compiled with -fsanitize=thread; no part of
// ThreadSanitizer's own library is used.
#include "simt/memory.h"

namespace {
using softgate::simt::AccessKind;
using softgate::simt::note_access;
}  // namespace

#define SIMT_HOOKS(bytes)                                                                    \
  extern "C" void __tsan_read##bytes(void* p) { note_access(p, bytes, AccessKind::read); }   \
  extern "C" void __tsan_write##bytes(void* p) { note_access(p, bytes, AccessKind::write); } \
  extern "C" void __tsan_unaligned_read##bytes(void* p) {                                    \
    note_access(p, bytes, AccessKind::read);                                                 \
  }                                                                                          \
  extern "C" void __tsan_unaligned_write##bytes(void* p) {                                   \
    note_access(p, bytes, AccessKind::write);                                                \
  }                                                                                          \
  extern "C" void __tsan_volatile_read##bytes(void* p) {                                     \
    note_access(p, bytes, AccessKind::read);                                                 \
  }                                                                                          \
  extern "C" void __tsan_volatile_write##bytes(void* p) {                                    \
    note_access(p, bytes, AccessKind::write);                                                \
  }

SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
// The guard of a local static variable.
char __tsan_atomic8_load(const volatile char* p, int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, unsigned long bytes) { note_access(p, bytes, AccessKind::read); }
void __tsan_write_range(void* p, unsigned long bytes) { note_access(p, bytes, AccessKind::write); }
}
