#include "cuda/staging.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "cuda/allocator.h"
#include "cuda/error.h"

namespace softgate::cuda {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

cudaStream_t as_stream(Stream stream) { return static_cast<cudaStream_t>(stream); }

std::byte* page_locked(std::size_t bytes) {
  const RelaxedCapture relaxed;
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, bytes, cudaHostAllocPortable) != cudaSuccess) {
    cudaGetLastError();  // forgets it
    throw std::bad_alloc();
  }
  return static_cast<std::byte*>(memory);
}

// Page-locked memory that the card may be reading or writing until `done`.
class Chunk {
 public:
  std::byte* memory() {
    if (memory_ == nullptr) {
      check_cuda(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "create event");
      memory_ = page_locked(kChunkBytes);
    }
    return memory_;
  }
  void wait() {
    if (busy_) check_cuda(cudaEventSynchronize(done_), "copy");
    busy_ = false;
  }
  void record(Stream stream) {
    check_cuda(cudaEventRecord(done_, as_stream(stream)), "copy");
    busy_ = true;
  }

 private:
  std::byte* memory_ = nullptr;
  cudaEvent_t done_ = nullptr;
  bool busy_ = false;
};

// Taken in turn. One copy at a time uses them.
struct Ring {
  std::mutex mutex;
  std::array<Chunk, 4> chunks;
  std::size_t next = 0;

  Chunk& take() {
    Chunk& chunk = chunks[next++ % chunks.size()];
    chunk.wait();
    return chunk;
  }
};

enum class Way { up, down };

Ring& ring(int device, Way way) {
  static std::mutex mutex;
  static auto* rings = new std::map<std::pair<int, Way>, Ring>;  // never destroyed
  const std::lock_guard lock(mutex);
  return (*rings)[{device, way}];
}

// The copy in pieces that fit into a chunk.
template <class Body>
void for_each_piece(const Copy& all, const Body& body) {
  const auto piece = [&](std::size_t row, std::size_t offset, std::size_t bytes, std::size_t rows) {
    body(Copy{.to = static_cast<std::byte*>(all.to) + row * all.to_stride + offset,
              .to_stride = all.to_stride,
              .from = static_cast<const std::byte*>(all.from) + row * all.from_stride + offset,
              .from_stride = all.from_stride,
              .bytes = bytes,
              .rows = rows});
  };
  if (all.bytes > kChunkBytes) {
    for (std::size_t row = 0; row < all.rows; ++row) {
      for (std::size_t offset = 0; offset < all.bytes; offset += kChunkBytes)
        piece(row, offset, std::min(kChunkBytes, all.bytes - offset), 1);
    }
    return;
  }
  const std::size_t rows = kChunkBytes / all.bytes;
  for (std::size_t row = 0; row < all.rows; row += rows)
    piece(row, 0, all.bytes, std::min(rows, all.rows - row));
}

// From the copy's source into rows without gaps.
void gather(const Copy& copy, std::byte* to) {
  for (std::size_t i = 0; i < copy.rows; ++i) {
    std::memcpy(to + i * copy.bytes,
                static_cast<const std::byte*>(copy.from) + i * copy.from_stride, copy.bytes);
  }
}

void scatter(const Copy& copy, const std::byte* from) {
  for (std::size_t i = 0; i < copy.rows; ++i) {
    std::memcpy(static_cast<std::byte*>(copy.to) + i * copy.to_stride, from + i * copy.bytes,
                copy.bytes);
  }
}

void start_upload(const Copy& copy, std::byte* memory, Stream stream) {
  gather(copy, memory);
  Copy staged = copy;
  staged.from = memory;
  staged.from_stride = copy.bytes;
  start_copy(staged, stream);
}

}  // namespace

void start_copy(const Copy& copy, Stream stream) {
  // cudaMemcpy2DAsync takes no rows that overlap, as those of a broadcast view do.
  const bool apart = copy.to_stride >= copy.bytes && copy.from_stride >= copy.bytes;
  if (copy.rows > 1 && apart) {
    check_cuda(cudaMemcpy2DAsync(copy.to, copy.to_stride, copy.from, copy.from_stride, copy.bytes,
                                 copy.rows, cudaMemcpyDefault, as_stream(stream)),
               "copy");
    return;
  }
  for (std::size_t row = 0; row < copy.rows; ++row) {
    check_cuda(cudaMemcpyAsync(static_cast<std::byte*>(copy.to) + row * copy.to_stride,
                               static_cast<const std::byte*>(copy.from) + row * copy.from_stride,
                               copy.bytes, cudaMemcpyDefault, as_stream(stream)),
               "copy");
  }
}

void upload(int device, const Copy& copy, Stream stream) {
  Ring& chunks = ring(device, Way::up);
  const std::lock_guard lock(chunks.mutex);
  for_each_piece(copy, [&](const Copy& piece) {
    Chunk& chunk = chunks.take();
    start_upload(piece, chunk.memory(), stream);
    chunk.record(stream);
  });
}

void download(int device, const Copy& copy, Stream stream) {
  // What computes the data is waited for before others are kept from the ring.
  check_cuda(cudaStreamSynchronize(as_stream(stream)), "copy to the host");
  Ring& chunks = ring(device, Way::down);
  const std::lock_guard lock(chunks.mutex);
  std::array<std::pair<Chunk*, Copy>, 2> under_way{};  // the host empties one as the card fills one
  std::size_t count = 0;
  const auto finish = [&](std::pair<Chunk*, Copy>& piece) {
    if (piece.first == nullptr) return;
    piece.first->wait();
    scatter(piece.second, piece.first->memory());
    piece.first = nullptr;
  };
  for_each_piece(copy, [&](const Copy& piece) {
    Chunk& chunk = chunks.take();
    Copy staged = piece;
    staged.to = chunk.memory();
    staged.to_stride = piece.bytes;
    start_copy(staged, stream);
    chunk.record(stream);
    std::pair<Chunk*, Copy>& place = under_way[count++ % under_way.size()];
    finish(place);
    place = {&chunk, piece};
  });
  for (std::size_t i = 0; i < under_way.size(); ++i) finish(under_way[count++ % under_way.size()]);
}

Constant::Constant(const Copy& copy, Stream stream) {
  memory_ = page_locked(copy.bytes * copy.rows);
  try {
    start_upload(copy, static_cast<std::byte*>(memory_), stream);
  } catch (...) {
    cudaFreeHost(memory_);
    throw;
  }
}

Constant::~Constant() {
  if (memory_ != nullptr) cudaFreeHost(memory_);
}

}  // namespace softgate::cuda
