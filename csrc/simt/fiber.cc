#include "simt/fiber.h"

#include <cstdint>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
// Saves what a function call must keep, swaps the stack, and returns on the other one.
extern "C" void softgate_simt_switch(void** save, void* load);
asm(R"(
  .text
  .hidden softgate_simt_switch
  .globl softgate_simt_switch
  .type softgate_simt_switch, @function
softgate_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size softgate_simt_switch, .-softgate_simt_switch
)");
#endif

namespace softgate::simt {
namespace {

Fiber* entered = nullptr;

void start_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* bottom,
                  [[maybe_unused]] std::size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
#endif
}

void finish_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** bottom,
                   [[maybe_unused]] std::size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, bottom, bytes);
#endif
}

}  // namespace

void Fiber::start(std::byte* stack, std::size_t bytes, void (*run)()) {
  stack_ = stack;
  bytes_ = bytes;
  run_ = run;
  fake_stack_ = nullptr;
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(stack, bytes);
#endif
#ifdef __x86_64__
  // Six registers, the address to return to, and the return address that main never uses.
  auto** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::main, 0);
#endif
}

void Fiber::enter() {
  entered = this;
  void* fake_stack = nullptr;
  start_switch(&fake_stack, stack_, bytes_);
  switch_to_fiber();
  finish_switch(fake_stack, nullptr, nullptr);
}

void Fiber::leave(bool last) {
  start_switch(last ? nullptr : &fake_stack_, caller_stack_, caller_bytes_);
  switch_to_caller();
  finish_switch(fake_stack_, &caller_stack_, &caller_bytes_);
}

void Fiber::main() {
  Fiber& self = *entered;
  finish_switch(nullptr, &self.caller_stack_, &self.caller_bytes_);
  self.run_();
  self.leave(true);
  std::abort();
}

#ifdef __x86_64__
void Fiber::switch_to_fiber() { softgate_simt_switch(&caller_stack_pointer_, stack_pointer_); }
void Fiber::switch_to_caller() { softgate_simt_switch(&stack_pointer_, caller_stack_pointer_); }
#else
void Fiber::switch_to_fiber() { swapcontext(&caller_, &context_); }
void Fiber::switch_to_caller() { swapcontext(&context_, &caller_); }
#endif

}  // namespace softgate::simt
