/* Whether this CPU has what a program was compiled for. Names are those of Linux's /proc/cpuinfo. */
#ifndef INFERC_CPU_H
#define INFERC_CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

/* Register 0..3 is eax, ebx, ecx, edx of a CPUID leaf; `state` the bits of XCR0 that the system must have switched on. */
typedef struct cpu_feature {
  const char *name;
  uint32_t leaf, subleaf, reg, bit, state;
} cpu_feature;

enum { CPU_AVX_STATE = 0x06, CPU_AVX512_STATE = 0xe6, CPU_TILE_STATE = 0x60000 };

static inline uint32_t cpu_state(void) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* no OSXSAVE: xgetbv does not exist */
  __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return a;
}

/* Whether this process may use the tile registers. Linux gives their 8 KB of state only to processes that ask for it,
 * once for all their threads: arch_prctl(ARCH_REQ_XCOMP_PERM, 18), after which they may do so again. */
static inline bool cpu_may_use_tiles(void) {
#if defined(__linux__) && defined(__x86_64__)
  long result = 158; /* arch_prctl; by hand, as syscall() is in no standard that the library asks for */
  __asm__ volatile("syscall" : "+a"(result) : "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
  return result == 0;
#else
  return false;
#endif
}

static inline bool cpu_has(const char *name) {
  static const cpu_feature features[] = {
      {"ssse3", 1, 0, 2, 9, 0},
      {"fma", 1, 0, 2, 12, CPU_AVX_STATE},
      {"sse4_1", 1, 0, 2, 19, 0},
      {"avx", 1, 0, 2, 28, CPU_AVX_STATE},
      {"f16c", 1, 0, 2, 29, CPU_AVX_STATE},
      {"avx2", 7, 0, 1, 5, CPU_AVX_STATE},
      {"avx512f", 7, 0, 1, 16, CPU_AVX512_STATE},
      {"avx512dq", 7, 0, 1, 17, CPU_AVX512_STATE},
      {"avx512bw", 7, 0, 1, 30, CPU_AVX512_STATE},
      {"avx512vl", 7, 0, 1, 31, CPU_AVX512_STATE},
      {"avx512_vnni", 7, 0, 2, 11, CPU_AVX512_STATE},
      {"avx512_bf16", 7, 1, 0, 5, CPU_AVX512_STATE},
      {"avx_vnni", 7, 1, 0, 4, CPU_AVX_STATE},
      {"amx_bf16", 7, 0, 3, 22, CPU_TILE_STATE},
      {"amx_tile", 7, 0, 3, 24, CPU_TILE_STATE},
      {"amx_int8", 7, 0, 3, 25, CPU_TILE_STATE},
  };
  for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
    const cpu_feature *f = &features[i];
    uint32_t registers[4];
    if (strcmp(f->name, name) != 0) continue;
    if (!__get_cpuid_count(f->leaf, f->subleaf, &registers[0], &registers[1], &registers[2], &registers[3])) return false;
    if (!(registers[f->reg] >> f->bit & 1) || (cpu_state() & f->state) != f->state) return false;
    return f->state != CPU_TILE_STATE || cpu_may_use_tiles();
  }
  return false;
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

/* A bit of the auxiliary vector's entry `word`. */
typedef struct cpu_feature {
  const char *name;
  unsigned long word;
  int bit;
} cpu_feature;

static inline bool cpu_has(const char *name) {
  static const cpu_feature features[] = {
      {"asimd", AT_HWCAP, 1},
      {"fphp", AT_HWCAP, 9},
      {"asimddp", AT_HWCAP, 20},
      {"i8mm", AT_HWCAP2, 13},
  };
  for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
    if (strcmp(features[i].name, name) == 0) return getauxval(features[i].word) >> features[i].bit & 1;
  }
  return false;
}
#else
static inline bool cpu_has(const char *name) { return (void)name, false; }
#endif

/* Whether the CPU has every feature of a list that ends with a null pointer. */
static inline bool cpu_has_all(const char *const *names) {
  for (; *names; names++) {
    if (!cpu_has(*names)) return false;
  }
  return true;
}

#endif
