// Device memory for tensors and scratch, recycled in stream order: a block goes back to the stream
// that it was allocated on, whose next kernels may have it at once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "core/backend.h"

namespace softgate::cuda {

// On the current device, which `device` names. Throws std::bad_alloc, after everything that is kept
// has been given back. SOFTGATE_CUDA_CACHE=0 keeps nothing and rounds no size, for memory checkers.
void* allocate(int device, std::size_t bytes, Stream stream);
void deallocate(int device, void* block, Stream stream) noexcept;
std::size_t cached_bytes(int device);
void release_cached(int device);

// Blocks allocated on `stream` until end_private belong to `owner`: they are kept for it, whoever
// frees them, until release_private.
void begin_private(int device, Stream stream, const void* owner);
void end_private(int device, Stream stream);
void release_private(const void* owner) noexcept;

// While it lives, this thread may allocate and free memory although one of its streams is captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace softgate::cuda
