/* What the hardware allows: contiguous reads, and chains of multiply-adds in registers.
 *
 * Every measurement starts its own threads, lets them meet, and takes the time inside them, from the first that begins
 * to the last that ends: from outside, a read can look faster than memory. Compiled for the machine that it runs on. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { THREADS = 256, CHUNK = 1 << 20, STEPS = 1 << 12 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct job {
  void (*work)(struct job *);
  const uint8_t *data;
  size_t bytes;
  atomic_size_t next;   /* first byte that no thread has claimed */
  double seconds;       /* how long a peak is measured */
  int32_t threads;
  atomic_int ready;
  atomic_llong steps;   /* of STEPS rounds each, by all threads */
  double begin[THREADS], end[THREADS];
  atomic_int ids;
} job;

static void *thread_main(void *argument) {
  job *j = argument;
  const int id = atomic_fetch_add(&j->ids, 1);
  atomic_fetch_add(&j->ready, 1);
  while (atomic_load(&j->ready) < j->threads) sched_yield();
  j->begin[id] = now();
  j->work(j);
  j->end[id] = now();
  return NULL;
}

/* Seconds that the job took on all threads; negative where the system gives no threads. */
static double run(job *j) {
  pthread_t threads[THREADS];
  if (j->threads < 1 || j->threads > THREADS) return -1;
  int started = 0;
  while (started < j->threads - 1 && !pthread_create(&threads[started], NULL, thread_main, j)) started++;
  const bool complete = started == j->threads - 1;
  if (complete) thread_main(j);
  else atomic_store(&j->ready, j->threads); /* lets those that started go */
  for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
  if (!complete) return -1;
  double begin = j->begin[0], end = j->end[0];
  for (int i = 1; i < j->threads; i++) {
    if (j->begin[i] < begin) begin = j->begin[i];
    if (j->end[i] > end) end = j->end[i];
  }
  return end - begin;
}

typedef uint64_t line __attribute__((vector_size(64), aligned(64), may_alias));

/* Claims a chunk at a time, as kernels claim rows, and reads it in one stream or in four side by side. */
#define READ(name, streams)                                                                       \
  static void name(job *j) {                                                                      \
    line sum[8] = {0};                                                                            \
    for (size_t at; (at = atomic_fetch_add(&j->next, CHUNK)) < j->bytes;) {                       \
      const size_t size = j->bytes - at < CHUNK ? j->bytes - at : CHUNK, part = size / 512 * 512 / streams; \
      for (const uint8_t *p = j->data + at, *end = p + part; p < end; p += 512 / streams)         \
        for (int s = 0; s < streams; s++)                                                         \
          for (int i = 0; i < 8 / streams; i++)                                                   \
            sum[s * (8 / streams) + i] += ((const line *)(p + s * part))[i];                      \
    }                                                                                             \
    for (int i = 0; i < 8; i++) __asm__ volatile("" : : "m"(sum[i]));                             \
  }
READ(read_one, 1)
READ(read_four, 4)

/* Seconds of one read of `data`, aligned to 64 bytes, in one stream a thread or in four. */
double roofline_read(const void *data, size_t bytes, int32_t threads, int32_t streams) {
  job j = {.work = streams == 4 ? read_four : read_one, .data = data, .bytes = bytes, .threads = threads};
  return run(&j);
}

/* A peak: CHAINS independent accumulators, STEPS rounds of one operation on each, until the time is over. KEEP holds a
 * value in a register and makes it unknown to the compiler: inputs, so that no product is computed once and reused, and
 * accumulators, which it would otherwise move about. */
#if defined(__x86_64__)
#define KEEP(v) __asm__ volatile("" : "+v"(v))
#else
#define KEEP(v) __asm__ volatile("" : "+w"(v))
#endif
#define EACH(chains) _Pragma("GCC unroll 32") for (int c = 0; c < chains; c++)
#define PEAK(name, type, chains, input, init, operation)      \
  static void name(job *j) {                                  \
    type acc[chains];                                         \
    input x = init, y = init;                                 \
    EACH(chains) acc[c] = (type){0};                          \
    const double until = now() + j->seconds;                  \
    do {                                                      \
      for (int s = 0; s < STEPS; s++) {                       \
        KEEP(x);                                              \
        KEEP(y);                                              \
        EACH(chains) {                                        \
          acc[c] = operation(acc[c], x, y);                   \
          KEEP(acc[c]);                                       \
        }                                                     \
      }                                                       \
      atomic_fetch_add(&j->steps, 1);                         \
    } while (now() < until);                                  \
  }

#if defined(__AVX512F__)
#define FMA(a, x, y) _mm512_fmadd_ps(x, y, a)
PEAK(fp32_fma, __m512, 20, __m512, _mm512_set1_ps(1), FMA)
enum { FMA_MACS = 16 * 20 };
#elif defined(__AVX2__) && defined(__FMA__)
#define FMA(a, x, y) _mm256_fmadd_ps(x, y, a)
PEAK(fp32_fma, __m256, 12, __m256, _mm256_set1_ps(1), FMA)
enum { FMA_MACS = 8 * 12 };
#elif defined(__ARM_NEON)
PEAK(fp32_fma, float32x4_t, 20, float32x4_t, vdupq_n_f32(1), vfmaq_f32)
enum { FMA_MACS = 4 * 20 };
#endif

#if defined(__AVX512VNNI__)
PEAK(int8_dot, __m512i, 20, __m512i, _mm512_set1_epi8(1), _mm512_dpbusd_epi32)
enum { DOT_MACS = 64 * 20 };
#elif defined(__AVXVNNI__)
PEAK(int8_dot, __m256i, 12, __m256i, _mm256_set1_epi8(1), _mm256_dpbusd_avx_epi32)
enum { DOT_MACS = 32 * 12 };
#elif defined(__AVX2__)
#define MADD(a, x, y) _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones))
static const __m256i_u ones = {0x0001000100010001, 0x0001000100010001, 0x0001000100010001, 0x0001000100010001};
PEAK(int8_dot, __m256i, 8, __m256i, _mm256_set1_epi8(1), MADD)
enum { DOT_MACS = 32 * 8 };
#elif defined(__ARM_FEATURE_MATMUL_INT8)
PEAK(int8_dot, int32x4_t, 20, int8x16_t, vdupq_n_s8(1), vmmlaq_s32)
enum { DOT_MACS = 32 * 20 };
#elif defined(__ARM_FEATURE_DOTPROD)
PEAK(int8_dot, int32x4_t, 20, int8x16_t, vdupq_n_s8(1), vdotq_s32)
enum { DOT_MACS = 16 * 20 };
#endif

#if defined(__AVX512BF16__)
PEAK(bf16_dot, __m512, 20, __m512bh, (__m512bh)_mm512_set1_epi16(0x3f80), _mm512_dpbf16_ps)
enum { BF16_MACS = 32 * 20 };
#endif

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18, TILE = 16 * 16 };
typedef struct __attribute__((packed)) tiles {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tiles;
static bool amx_begin(void) {
  if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA)) return false;
  tiles config = {.palette = 1};
  for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
  _tile_loadconfig(&config);
  return true;
}
/* Two tiles by two, as a kernel holds them: tiles 0 to 3 are sums, 4 and 5 times 6 and 7. */
#define AMX(name, product)                             \
  static void name(job *j) {                           \
    if (!amx_begin()) return;                          \
    const double until = now() + j->seconds;           \
    do {                                               \
      for (int s = 0; s < STEPS; s++) {                \
        product(0, 4, 6);                              \
        product(1, 4, 7);                              \
        product(2, 5, 6);                              \
        product(3, 5, 7);                              \
      }                                                \
      atomic_fetch_add(&j->steps, 1);                  \
    } while (now() < until);                           \
    _tile_release();                                   \
  }
AMX(amx_int8, _tile_dpbssd)
AMX(amx_bf16, _tile_dpbf16ps)
#endif

static const struct peak {
  const char *name;
  void (*work)(job *);
  int64_t macs; /* of one round */
} peaks[] = {
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__)) || defined(__ARM_NEON)
    {"fp32_fma", fp32_fma, FMA_MACS},
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD) || \
    defined(__ARM_FEATURE_MATMUL_INT8)
    {"int8_dot", int8_dot, DOT_MACS},
#endif
#if defined(__AVX512BF16__)
    {"bf16_dot", bf16_dot, BF16_MACS},
#endif
#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
    {"amx_int8", amx_int8, 4 * TILE * 64},
    {"amx_bf16", amx_bf16, 4 * TILE * 32},
#endif
    {NULL, NULL, 0},
};

/* The name of peak `index`, NULL after the last. */
const char *roofline_peak_name(int32_t index) { return peaks[index].name; }

/* Multiply-adds per second of all threads; negative where threads or the unit cannot be had. */
double roofline_peak(int32_t index, int32_t threads, double seconds) {
  job j = {.work = peaks[index].work, .seconds = seconds, .threads = threads};
  const double took = run(&j);
  const long long steps = atomic_load(&j.steps);
  return took <= 0 || steps == 0 ? -1 : (double)steps * STEPS * (double)peaks[index].macs / took;
}
