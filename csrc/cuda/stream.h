// Handles that cross from the op files into the backend, which only it looks into.
#pragma once

namespace softgate::cuda {

using Stream = void*;  // a cudaStream_t; null is the default stream

}  // namespace softgate::cuda
