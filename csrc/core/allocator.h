// Host memory for tensors and scratch: 64-byte aligned, recycled so that a warm call touches no
// fresh pages.
#pragma once

#include <cstddef>

namespace softgate {

inline constexpr std::size_t kAlignment = 64;

// Throws std::bad_alloc. A block is uninitialised and at least `bytes` long.
void* allocate(std::size_t bytes);

// `bytes` as given to allocate. Never throws.
void deallocate(void* block, std::size_t bytes) noexcept;

// Bytes kept for reuse now; release_cached gives them back to the system.
std::size_t cached_bytes() noexcept;
void release_cached() noexcept;

}  // namespace softgate
