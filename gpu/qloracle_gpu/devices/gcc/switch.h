// From one stack to another: 15 instructions on x86-64, ucontext elsewhere (ten times slower).
#pragma once

#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)

struct Context {
  void *stack_pointer = nullptr;
};

// Put the registers that a call must keep on the stack, change the stack, take them off again.
extern "C" void shim_switch(void **save, void *load);
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch, @function
shim_switch:
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
.size shim_switch, .-shim_switch
)");

inline void make_context(Context &context, char *stack, size_t bytes, void (*entry)()) {
  void **top = (void **)(stack + bytes);  // a multiple of 16
  *--top = nullptr;                       // no caller: a backtrace ends here
  *--top = (void *)entry;
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

inline void switch_context(Context &from, Context &to) {
  shim_switch(&from.stack_pointer, to.stack_pointer);
}

#else

#include <ucontext.h>

struct Context {
  ucontext_t state;
};

inline void make_context(Context &context, char *stack, size_t bytes, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

inline void switch_context(Context &from, Context &to) { swapcontext(&from.state, &to.state); }

#endif
