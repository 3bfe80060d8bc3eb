// The runtime of the CPU that plays a card: memory is the host's, and every call is done when it
// returns. There are two, to find tensors mixed up.
#include "cuda/runtime.h"

#include <chrono>
#include <cstring>
#include <new>
#include <stdexcept>

#include "simt/executor.h"

namespace softgate::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::align_val_t kAlignment{256};
constexpr int kNaN = 0xff;  // fresh memory, read as any float type

void* allocate(int, std::size_t bytes, Stream) {
  void* block = ::operator new(bytes, kAlignment);
  std::memset(block, kNaN, bytes);
  return block;
}

void deallocate(int, void* block, Stream) noexcept { ::operator delete(block, kAlignment); }

void copy_rows(int, const Copy& copy, Stream) {
  for (std::size_t i = 0; i < copy.rows; ++i) {
    std::memcpy(static_cast<char*>(copy.to) + i * copy.to_stride,
                static_cast<const char*>(copy.from) + i * copy.from_stride, copy.bytes);
  }
}

Clock::time_point& time(Event event) { return *static_cast<Clock::time_point*>(event); }

}  // namespace

int multiprocessors() { return simt::kMultiprocessors; }
bool has_bfloat16_products() { return true; }
std::size_t max_shared_bytes() { return simt::kMaxSharedBytes; }
int resident_blocks(const void*, int, std::size_t) { return 1; }

Scratch::Scratch(std::size_t bytes, Stream stream)
    : block_(allocate(0, bytes, stream)), stream_(stream) {}
Scratch::~Scratch() { deallocate(0, block_, stream_); }

void fill_zero(void* block, std::size_t bytes, Stream) { std::memset(block, 0, bytes); }

Backend runtime() {
  return {
      .device_count = [] { return 2; },
      .device_info =
          [](int) {
            return DeviceInfo{"CUDA threads as fibers of the CPU", 8, 0, simt::kMultiprocessors, 0};
          },
      .use = [](int) {},
      .allocate = allocate,
      .deallocate = deallocate,
      .cached_bytes = [](int) { return std::size_t{0}; },
      .release_cached = [](int) {},
      .upload = copy_rows,
      .download = copy_rows,
      .copy = copy_rows,
      .device_of = [](const void*) { return 0; },
      .create_stream = [](int) { return Stream{}; },
      .release_stream = [](int, Stream) noexcept {},
      .synchronize = [](int, Stream) {},
      .create_event = [](int) { return static_cast<Event>(new Clock::time_point()); },
      .destroy_event = [](Event event) noexcept { delete &time(event); },
      .record = [](int, Event event, Stream) { time(event) = Clock::now(); },
      .wait = [](int, Stream, Event) {},
      .synchronize_event = [](Event) {},
      .milliseconds =
          [](Event from, Event to) {
            return std::chrono::duration<float, std::milli>(time(to) - time(from)).count();
          },
      .begin_capture = [](int, Stream) { throw std::runtime_error("device simt has no graphs"); },
      .end_capture = [](int, Stream) { return Graph{}; },
      .launch_graph = [](int, Graph, Stream) {},
      .destroy_graph = [](int, Graph) noexcept {},
      .kernels = nullptr,
  };
}

}  // namespace softgate::cuda
