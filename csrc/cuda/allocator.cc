#include "cuda/allocator.h"

#include <cuda_runtime_api.h>

#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "core/check.h"

namespace softgate::cuda {
namespace {

constexpr std::size_t kSmallest = 512;

struct OutOfMemory : std::bad_alloc {
  explicit OutOfMemory(std::string message) : text(std::move(message)) {}
  const char* what() const noexcept override { return text.c_str(); }
  std::string text;
};

// Blocks of one key are interchangeable. `owner` is null, or the graph that keeps them.
struct Key {
  int device;
  const void* owner;
  Stream stream;
  std::size_t bytes;

  friend bool operator<(const Key& a, const Key& b) {
    return std::tie(a.device, a.owner, a.stream, a.bytes) <
           std::tie(b.device, b.owner, b.stream, b.bytes);
  }
};

struct Allocator {
  std::mutex mutex;
  std::unordered_map<void*, Key> used;
  std::map<Key, std::vector<void*>> kept;
  std::map<std::pair<int, Stream>, const void*> owners;  // of what a stream allocates now
  bool recycles = [] {
    const char* variable = std::getenv("SOFTGATE_CUDA_CACHE");
    return variable == nullptr || std::string(variable) != "0";
  }();
};

// Never destroyed: tensors may outlive static destruction.
Allocator& allocator() {
  static auto* instance = new Allocator;
  return *instance;
}

// Four sizes to each doubling.
std::size_t rounded(std::size_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  const std::size_t step = std::bit_floor(bytes - 1) / 4;
  return (bytes + step - 1) / step * step;
}

// Waits for the device, which may still use what goes back. Only what no graph owns.
void release(Allocator& all, int device) {
  cudaDeviceSynchronize();
  std::erase_if(all.kept, [device](const auto& entry) {
    const auto& [key, blocks] = entry;
    if (key.device != device || key.owner != nullptr) return false;
    for (void* block : blocks) cudaFree(block);
    return true;
  });
}

void* take_from_device(Allocator& all, int device, std::size_t bytes) {
  void* block = nullptr;
  if (cudaMalloc(&block, bytes) == cudaSuccess) return block;
  cudaGetLastError();  // forgets it
  release(all, device);
  const cudaError_t error = cudaMalloc(&block, bytes);
  if (error == cudaSuccess) return block;
  cudaGetLastError();
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  throw OutOfMemory(concat("cuda: no room for ", bytes, " bytes: ", free, " of ", total,
                           " are free (", cudaGetErrorString(error), ")"));
}

}  // namespace

void* allocate(int device, std::size_t bytes, Stream stream) {
  Allocator& all = allocator();
  const std::lock_guard lock(all.mutex);
  const auto owner = all.owners.find({device, stream});
  const bool is_private = owner != all.owners.end();
  const std::size_t size = all.recycles ? rounded(bytes) : std::max(bytes, std::size_t{1});
  const Key key{device, is_private ? owner->second : nullptr, stream, size};
  void* block = nullptr;
  std::vector<void*>& kept = all.kept[key];
  if (!kept.empty()) {
    block = kept.back();
    kept.pop_back();
  } else {
    const RelaxedCapture relaxed;
    block = take_from_device(all, device, size);
  }
  all.used.emplace(block, key);
  return block;
}

void deallocate(int, void* block, Stream) noexcept {
  Allocator& all = allocator();
  const std::lock_guard lock(all.mutex);
  const auto found = all.used.find(block);
  const Key key = found->second;
  all.used.erase(found);
  if (!all.recycles && key.owner == nullptr) {
    const RelaxedCapture relaxed;
    cudaFree(block);
    return;
  }
  all.kept[key].push_back(block);
}

std::size_t cached_bytes(int device) {
  Allocator& all = allocator();
  const std::lock_guard lock(all.mutex);
  std::size_t bytes = 0;
  for (const auto& [key, blocks] : all.kept) {
    if (key.device == device && key.owner == nullptr) bytes += key.bytes * blocks.size();
  }
  return bytes;
}

void release_cached(int device) {
  Allocator& all = allocator();
  const std::lock_guard lock(all.mutex);
  release(all, device);
}

void begin_private(int device, Stream stream, const void* owner) {
  Allocator& all = allocator();
  const std::lock_guard lock(all.mutex);
  all.owners[{device, stream}] = owner;
}

void end_private(int device, Stream stream) {
  Allocator& all = allocator();
  const std::lock_guard lock(all.mutex);
  all.owners.erase({device, stream});
}

void release_private(const void* owner) noexcept {
  Allocator& all = allocator();
  const std::lock_guard lock(all.mutex);
  for (auto& [block, key] : all.used) {
    if (key.owner == owner) key.owner = nullptr;
  }
  std::map<Key, std::vector<void*>> given;
  std::erase_if(all.kept, [&](const auto& entry) {
    if (entry.first.owner == owner) given.insert(entry);
    return entry.first.owner == owner;
  });
  for (auto& [key, blocks] : given) {
    Key common = key;
    common.owner = nullptr;
    std::vector<void*>& kept = all.kept[common];
    kept.insert(kept.end(), blocks.begin(), blocks.end());
  }
}

}  // namespace softgate::cuda
