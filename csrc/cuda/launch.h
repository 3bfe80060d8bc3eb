// The one way to start a kernel.
//
//   launch(add_norm_kernel<T>, {.grid = blocks, .block = threads, .stream = stream}, args);
#pragma once

#include <cxxabi.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "core/backend.h"
#include "cuda/kernel.cuh"

#ifdef SOFTGATE_SIMT
#include <dlfcn.h>

#include "simt/executor.h"
#endif

namespace softgate::cuda {

struct LaunchShape {
  dim3 grid, block;
  std::size_t shared_bytes = 0;  // dynamic
  Stream stream = nullptr;
  bool cooperative = false;  // all blocks are resident and may call grid_sync
};

namespace launch_detail {

// Null where the name is not known.
inline const char* mangled_name(const void* kernel) {
#ifdef SOFTGATE_SIMT
  Dl_info info;
  return dladdr(kernel, &info) != 0 ? info.dli_sname : nullptr;
#else
  const char* name = nullptr;
  return cudaFuncGetName(&name, kernel) == cudaSuccess ? name : nullptr;
#endif
}

inline std::string kernel_name(const void* kernel) {
  const char* mangled = mangled_name(kernel);
  if (mangled == nullptr) return "a kernel without a name";
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> name(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), &std::free);
  return name ? name.get() : mangled;
}

[[noreturn]] inline void fail(const void* kernel, const LaunchShape& shape, const char* reason) {
  const auto put = [](std::ostream& out, const dim3& d) {
    out << '(' << d.x << ", " << d.y << ", " << d.z << ')';
  };
  std::ostringstream text;
  text << "launch of " << kernel_name(kernel) << ", grid ";
  put(text, shape.grid);
  text << ", block ";
  put(text, shape.block);
  text << ", " << shape.shared_bytes << " bytes of shared memory: " << reason;
  throw std::runtime_error(text.str());
}

#ifdef SOFTGATE_SIMT
template <class Kernel, class Values>
void start(Kernel kernel, const LaunchShape& shape, Values& values) {
  const auto* address = reinterpret_cast<const void*>(kernel);
  const std::string name = kernel_name(address);
  auto call = [&] { std::apply(kernel, values); };
  try {
    simt::run(
        {name.c_str(), shape.grid, shape.block, shape.shared_bytes, shape.cooperative},
        [](void* context) { (*static_cast<decltype(call)*>(context))(); }, &call);
  } catch (const std::invalid_argument& error) {
    fail(address, shape, error.what());
  }
}
#else
template <class Kernel, class Values>
void start(Kernel kernel, const LaunchShape& shape, Values& values) {
  constexpr std::size_t kWithoutAsking = 48 << 10;
  const auto* address = reinterpret_cast<const void*>(kernel);
  const auto check = [&](cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // forgets it
    fail(address, shape, cudaGetErrorString(error));
  };
  if (shape.shared_bytes > kWithoutAsking) {
    check(cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)));
  }
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(shape.stream);
  config.attrs = &cooperative;
  config.numAttrs = shape.cooperative ? 1 : 0;
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value..., nullptr};
        check(cudaLaunchKernelExC(&config, address, pointers));
      },
      values);
}
#endif

}  // namespace launch_detail

// Throws std::runtime_error with the kernel's name and shape when it cannot start; under simt also
// for what its threads do wrong.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments&&... arguments) {
  std::tuple<std::remove_cv_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  launch_detail::start(kernel, shape, values);
}

}  // namespace softgate::cuda
