// A block's shared memory, and the checks of every access to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "simt/shadow.h"

namespace softgate::simt {

enum class AccessKind { read, write, update };

// Called for every access of a file compiled with -fsanitize=thread.
void note_access(const void* p, std::size_t bytes, AccessKind kind);

class SharedMemory {
 public:
  void reset(std::size_t bytes, std::uint32_t fill);
  unsigned char* data() const { return data_; }

  // Null, or what is wrong with the access; anything is right outside of shared memory.
  const char* note(const void* p, std::size_t bytes, AccessKind kind, const Access& by);
  const char* start_copy(const void* p, std::size_t bytes, const Access& by);
  void land_copy(const void* p, std::size_t bytes, const Access& by);

 private:
  // Far enough before and after that a wrong index lands there.
  static constexpr std::size_t kGuard = 4096;

  std::size_t offset(const void* p) const {
    return static_cast<std::size_t>(static_cast<const unsigned char*>(p) - data_);
  }

  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_ = nullptr;
  std::size_t bytes_ = 0, capacity_ = 0;
  Shadow shadow_;
};

}  // namespace softgate::simt
