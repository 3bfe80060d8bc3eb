// From an op's tensors to the kernel of their device and dtype.
#pragma once

#include <type_traits>

#include "core/half.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "ops/arguments.h"

namespace softgate {

// Calls body with a value of the C++ type of a floating dtype:
//
//   dispatch(x.dtype(), [&]<class T>(T) { run_kernel<T>(...); });
template <class Body>
void dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float16: return body(half{});
    case DType::bfloat16: return body(bfloat16{});
    default: return body(float{});
  }
}

// The kernel of `device`; the CPU has those of float32.
template <class T, template <class> class Args>
void run_kernel(Device device, const Args<T>& args,
                void (*cpu::Kernels::*on_cpu)(const Args<float>&),
                void (*cuda::Kernels<T>::*on_cuda)(const Args<T>&, Stream)) {
  if constexpr (std::is_same_v<T, float>) {
    if (device.kind == DeviceKind::cpu) return (cpu::kernels().*on_cpu)(args);
  }
  const cuda::Kernels<T>& kernels = cuda::kernels<T>(device);
  (kernels.*on_cuda)(args, current_stream(device));
}

}  // namespace softgate
