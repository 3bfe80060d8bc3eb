#include "core/allocator.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <mutex>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define SOFTGATE_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SOFTGATE_ADDRESS_SANITIZER 1
#endif
#endif

namespace softgate {
namespace {

#ifdef SOFTGATE_ADDRESS_SANITIZER
constexpr bool kRecycle = false;  // a recycled or rounded block would hide a bad access
#else
constexpr bool kRecycle = true;
#endif

constexpr std::size_t kCacheLimit = std::size_t{256} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kSmallest = 256;

// Sizes up to 256 bytes are class 0; above, each doubling has four classes.
struct SizeClass {
  std::size_t index, bytes;
};

constexpr SizeClass size_class(std::size_t bytes) {
  if (bytes <= kSmallest) return {0, kSmallest};
  const auto doubling = static_cast<std::size_t>(std::bit_width(bytes - 1)) - 1;
  const std::size_t step_bits = doubling - 2;
  const std::size_t steps = ((bytes - 1) >> step_bits) + 1;  // in [5, 8]
  const auto smallest_doubling = static_cast<std::size_t>(std::bit_width(kSmallest)) - 1;
  return {(doubling - smallest_doubling) * 4 + steps - 4, steps << step_bits};
}

constexpr std::size_t kClasses = size_class(kCacheLimit).index + 1;

std::align_val_t alignment(std::size_t bytes) {
  return std::align_val_t{bytes >= 2 * kHugePage ? kHugePage : kAlignment};
}

void* take_from_system(std::size_t bytes) {
  void* block = ::operator new(bytes, alignment(bytes), std::nothrow);
  if (block == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (bytes >= 2 * kHugePage) madvise(block, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return block;
}

void give_to_system(void* block, std::size_t bytes) noexcept {
  ::operator delete(block, alignment(bytes));
}

// Free blocks, linked through their own first bytes. Trivially destructible: tensors may outlive
// static destruction.
struct FreeBlock {
  FreeBlock* next;
  std::size_t bytes;
};

struct Cache {
  std::mutex mutex;
  std::array<FreeBlock*, kClasses> lists{};
  std::size_t bytes = 0;
};

constinit Cache cache;

void free_all(const std::array<FreeBlock*, kClasses>& lists) noexcept {
  for (FreeBlock* block : lists) {
    while (block != nullptr) {
      FreeBlock* next = block->next;
      give_to_system(block, block->bytes);
      block = next;
    }
  }
}

// A child forked while another thread holds the mutex would wait for it for ever.
[[maybe_unused]] const int fork_handlers = pthread_atfork(
    [] { cache.mutex.lock(); }, [] { cache.mutex.unlock(); }, [] { cache.mutex.unlock(); });

}  // namespace

void* allocate(std::size_t bytes) {
  if (bytes > PTRDIFF_MAX) throw std::bad_alloc();
  if (!kRecycle) return take_from_system(std::max(bytes, std::size_t{1}));
  const SizeClass wanted = size_class(bytes);
  if (wanted.index < kClasses) {
    const std::lock_guard lock(cache.mutex);
    FreeBlock*& list = cache.lists[wanted.index];
    if (FreeBlock* block = list) {
      list = block->next;
      cache.bytes -= wanted.bytes;
      return block;
    }
  }
  return take_from_system(wanted.bytes);
}

void deallocate(void* block, std::size_t bytes) noexcept {
  if (block == nullptr) return;
  if (!kRecycle) return give_to_system(block, std::max(bytes, std::size_t{1}));
  const SizeClass given = size_class(bytes);
  if (given.index >= kClasses) return give_to_system(block, given.bytes);
  std::array<FreeBlock*, kClasses> evicted{};
  {
    const std::lock_guard lock(cache.mutex);
    // A full cache holds sizes that nobody asks for any more.
    if (cache.bytes + given.bytes > kCacheLimit) {
      evicted.swap(cache.lists);
      cache.bytes = 0;
    }
    FreeBlock*& list = cache.lists[given.index];
    list = new (block) FreeBlock{list, given.bytes};
    cache.bytes += given.bytes;
  }
  free_all(evicted);
}

std::size_t cached_bytes() noexcept {
  const std::lock_guard lock(cache.mutex);
  return cache.bytes;
}

void release_cached() noexcept {
  std::array<FreeBlock*, kClasses> released{};
  {
    const std::lock_guard lock(cache.mutex);
    released.swap(cache.lists);
    cache.bytes = 0;
  }
  free_all(released);
}

}  // namespace softgate
