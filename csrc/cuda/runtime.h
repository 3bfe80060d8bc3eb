// What launchers ask of the device at hand, which is the calling thread's current one. Two
// implementations: runtime.cc for CUDA, simt/runtime.cc for the CPU.
#pragma once

#include <cstddef>

#include "core/backend.h"

namespace softgate::cuda {

int multiprocessors();
std::size_t max_shared_bytes();  // of one block
bool has_bfloat16_products();    // from compute capability 8.0 on

// How many blocks of a kernel one multiprocessor holds at a time.
int resident_blocks(const void* kernel, int threads, std::size_t shared_bytes);

// Device memory for the kernels launched on `stream` during its lifetime.
class Scratch {
 public:
  Scratch(std::size_t bytes, Stream stream);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* data() const {
    return static_cast<T*>(block_);
  }

 private:
  void* block_;
  Stream stream_;
};

void fill_zero(void* block, std::size_t bytes, Stream stream);

// All of the backend but its kernels.
Backend runtime();

}  // namespace softgate::cuda
