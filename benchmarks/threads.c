/* Regions of the thread pool (runtime/c/parallel.h): threads, pieces, steps of each piece, milliseconds, pin.
 * Prints nanoseconds a region, and the CPU seconds that the pool then takes in 0.3 s of idleness. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "parallel.h"

enum { MOST = 1024 };

static double seconds_of(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void rest(long milliseconds) {
  const struct timespec t = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  nanosleep(&t, NULL);
}

/* A chain of multiplications: work that depends neither on memory nor on the other thread of a core. */
static void piece(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const int64_t steps = *(const int64_t *)args * (end - begin);
  uint64_t x = (uint64_t)worker + 1;
  for (int64_t i = 0; i < steps; i++) {
    x *= x;
    __asm__ volatile("" : "+r"(x));
  }
  __asm__ volatile("" : : "r"(x));
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  const int32_t threads = atoi(argv[1]), pieces = atoi(argv[2]);
  const int64_t steps = atoll(argv[3]);
  static pool p;
  static pool_worker workers[MOST];
  if (threads < 1 || threads > MOST || !pool_start(&p, threads, workers)) return 3;
  if (atoi(argv[5])) pool_pin(&p);
  const run r = {.threads = threads, .pool = &p, .parallel_for = pool_for};
  const double begin = seconds_of(CLOCK_MONOTONIC), end = begin + 1e-3 * atof(argv[4]);
  int64_t regions = 0;
  double now = begin;
  for (; now < end; now = seconds_of(CLOCK_MONOTONIC)) {
    for (int i = 0; i < 10; i++, regions++) parallel(&r, pieces, 1, piece, &steps);
  }
  rest(50); /* spins end */
  const double before = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  rest(300);
  printf("%.1f %.6f\n", 1e9 * (now - begin) / (double)regions, seconds_of(CLOCK_PROCESS_CPUTIME_ID) - before);
  pool_stop(&p);
  return 0;
}
