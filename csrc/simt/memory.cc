#include "simt/memory.h"

#include <cstring>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace softgate::simt {

void SharedMemory::reset(std::size_t bytes, std::uint32_t fill) {
  constexpr std::size_t kAlign = 128;
  if (data_ == nullptr || bytes > capacity_) {
    memory_ = std::make_unique<unsigned char[]>(bytes + 2 * kGuard + kAlign);
    const auto first = reinterpret_cast<std::uintptr_t>(memory_.get()) + kGuard;
    data_ = memory_.get() + kGuard + (kAlign - first % kAlign) % kAlign;
    capacity_ = bytes;
  }
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(memory_.get(), capacity_ + 2 * kGuard + kAlign);
  ASAN_UNPOISON_MEMORY_REGION(data_, bytes);
#endif
  bytes_ = bytes;
  for (std::size_t i = 0; i + sizeof fill <= bytes; i += sizeof fill)
    std::memcpy(data_ + i, &fill, sizeof fill);
  shadow_.reset(bytes);
}

const char* SharedMemory::note(const void* p, std::size_t bytes, AccessKind kind,
                               const Access& by) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  const auto begin = reinterpret_cast<std::uintptr_t>(data_), end = begin + bytes_;
  if (address + bytes <= begin - kGuard || address >= end + kGuard) return nullptr;
  if (address < begin || address + bytes > end) return "is accessed out of bounds";
  switch (kind) {
    case AccessKind::read: return shadow_.read(offset(p), bytes, by);
    case AccessKind::write: return shadow_.write(offset(p), bytes, by);
    case AccessKind::update: return shadow_.update(offset(p), bytes);
  }
  return nullptr;
}

const char* SharedMemory::start_copy(const void* p, std::size_t bytes, const Access& by) {
  if (offset(p) + bytes > bytes_) return "leaves shared memory";
  return shadow_.start_copy(offset(p), bytes, by);
}

void SharedMemory::land_copy(const void* p, std::size_t bytes, const Access& by) {
  shadow_.land_copy(offset(p), bytes, by);
}

}  // namespace softgate::simt
