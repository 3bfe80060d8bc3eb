// Copies between the host's memory and a card's by way of page-locked memory, which the card reads
// and writes by itself: an upload does not wait for the card, and the pieces of a large copy
// overlap with the host's part of it.
#pragma once

#include "core/backend.h"

namespace softgate::cuda {

// The device is the current one. See Backend; start_copy stays on the device.
void start_copy(const Copy& copy, Stream stream);
void upload(int device, const Copy& copy, Stream stream);
void download(int device, const Copy& copy, Stream stream);

// Host memory that the card reads at every launch of a graph, filled once.
class Constant {
 public:
  // Records the upload on a stream that is captured.
  Constant(const Copy& copy, Stream stream);
  ~Constant();
  Constant(Constant&& other) noexcept : memory_(other.memory_) { other.memory_ = nullptr; }
  Constant& operator=(Constant&&) = delete;

 private:
  void* memory_ = nullptr;
};

}  // namespace softgate::cuda
