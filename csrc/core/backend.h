// What a device other than the CPU offers: memory, streams, kernels. Each kind of device is a
// library of its own, loaded when it is first named.
#pragma once

#include <cstddef>
#include <string>

#include "core/device.h"

namespace softgate {

// Handles that only the backend looks into. A null stream is the default stream.
using Stream = void*;
using Event = void*;
using Graph = void*;

struct DeviceInfo {
  std::string name;
  int major, minor;  // compute capability
  int multiprocessors;
  std::size_t memory;
};

// `rows` rows of `bytes`, `*_stride` bytes apart.
struct Copy {
  void* to;
  std::size_t to_stride;
  const void* from;
  std::size_t from_stride, bytes, rows;
};

// Functions throw std::runtime_error, or std::bad_alloc where memory runs out; those that take a
// device make it the calling thread's current one.
struct Backend {
  // The cards there are; throws when there is no driver.
  int (*device_count)();
  DeviceInfo (*device_info)(int device);
  void (*use)(int device);  // for what is launched next

  // Memory that kernels on `stream` may use at once, and that is used again when those before its
  // release are done. At least 256-byte aligned, uninitialised.
  void* (*allocate)(int device, std::size_t bytes, Stream stream);
  void (*deallocate)(int device, void* block, Stream stream) noexcept;
  std::size_t (*cached_bytes)(int device);
  void (*release_cached)(int device);

  // Ordered on `stream`. From the host: returns when the host's memory has been read. To the host:
  // when it has been written. From a device to itself: at once.
  void (*upload)(int device, const Copy& copy, Stream stream);
  void (*download)(int device, const Copy& copy, Stream stream);
  void (*copy)(int device, const Copy& copy, Stream stream);

  int (*device_of)(const void* pointer);  // throws for what is no device's memory

  // Streams are kept for the next create_stream, never destroyed.
  Stream (*create_stream)(int device);
  void (*release_stream)(int device, Stream stream) noexcept;
  void (*synchronize)(int device, Stream stream);
  Event (*create_event)(int device);
  void (*destroy_event)(Event event) noexcept;
  void (*record)(int device, Event event, Stream stream);
  void (*wait)(int device, Stream stream, Event event);
  void (*synchronize_event)(Event event);
  float (*milliseconds)(Event from, Event to);

  // Between begin and end, what runs on `stream` is recorded instead. The graph keeps the memory
  // that was allocated meanwhile; the tensors in it are written anew by every launch. What is
  // uploaded is a constant of the graph; download throws.
  void (*begin_capture)(int device, Stream stream);
  Graph (*end_capture)(int device, Stream stream);
  void (*launch_graph)(int device, Graph graph, Stream stream);
  void (*destroy_graph)(int device, Graph graph) noexcept;

  const void* kernels;  // cuda/kernels.h
};

// Loads the backend. Throws std::runtime_error when this build or machine has none, and
// std::invalid_argument when there is no device of that index.
const Backend& backend(Device device);

// The stream on which this thread's calls on `device` run.
Stream current_stream(Device device);
void set_current_stream(Device device, Stream stream);

}  // namespace softgate
