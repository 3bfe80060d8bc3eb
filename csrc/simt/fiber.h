// Stacks that one system thread switches between.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace softgate::simt {

class Fiber {
 public:
  // Prepares `run` on `stack`, whose size is a multiple of 16. A fiber may be started again at any
  // time; what it had on its stack is forgotten.
  void start(std::byte* stack, std::size_t bytes, void (*run)());

  // From outside: runs the fiber until it calls leave or its function returns.
  void enter();

  // From inside: back to enter. The last time a fiber leaves, it never comes back.
  void leave(bool last = false);

 private:
  static void main();
  void switch_to_fiber();
  void switch_to_caller();

  std::byte* stack_ = nullptr;
  std::size_t bytes_ = 0;
  void (*run_)() = nullptr;
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
  void* caller_stack_pointer_ = nullptr;
#else
  ucontext_t context_;
  ucontext_t caller_;
#endif
  // What AddressSanitizer wants to know.
  void* fake_stack_ = nullptr;
  const void* caller_stack_ = nullptr;
  std::size_t caller_bytes_ = 0;
};

}  // namespace softgate::simt
