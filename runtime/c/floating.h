/* The floating-point environment of a thread: round to nearest, denormals kept, no traps, whatever the host has set. */
#ifndef INFERC_FLOATING_H
#define INFERC_FLOATING_H

#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
typedef uint32_t floating_state;
static inline floating_state floating_get(void) { return _mm_getcsr(); }
static inline void floating_set(floating_state state) { _mm_setcsr(state); }
enum { FLOATING_PLAIN = 0x1f80 }; /* MXCSR: all exceptions masked, nearest, neither FTZ nor DAZ */
#elif defined(__aarch64__)
typedef uint64_t floating_state;
static inline floating_state floating_get(void) {
  uint64_t state;
  __asm__ volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
static inline void floating_set(floating_state state) { __asm__ volatile("msr fpcr, %0" : : "r"(state)); }
enum { FLOATING_PLAIN = 0 };
#elif defined(__riscv) && defined(__riscv_flen)
typedef uint64_t floating_state;
static inline floating_state floating_get(void) {
  uint64_t state;
  __asm__ volatile("frcsr %0" : "=r"(state));
  return state;
}
static inline void floating_set(floating_state state) { __asm__ volatile("fscsr %0" : : "r"(state)); }
enum { FLOATING_PLAIN = 0 };
#else /* WebAssembly and others have no such state */
typedef uint32_t floating_state;
static inline floating_state floating_get(void) { return 0; }
static inline void floating_set(floating_state state) { (void)state; }
enum { FLOATING_PLAIN = 0 };
#endif

/* Sets the plain environment and returns what was set before, for `floating_set` to restore. */
static inline floating_state floating_begin(void) {
  const floating_state before = floating_get();
  floating_set(FLOATING_PLAIN);
  return before;
}

#endif
