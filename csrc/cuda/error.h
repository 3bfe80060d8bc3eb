// Errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "core/check.h"

namespace softgate::cuda {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it
  throw std::runtime_error(concat("cuda: ", what, ": ", cudaGetErrorString(error)));
}

}  // namespace softgate::cuda
