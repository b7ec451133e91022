/* A persistent pool of threads for fork-join loops.
 *
 * One caller at a time opens a region; helpers and the caller claim pieces of it from an atomic counter. A helper that
 * finds nothing to do spins for some microseconds (a step opens hundreds of regions), then sleeps, so that an idle model
 * costs nothing. The caller never waits for a helper that has not entered the region: one that sleeps, or that the
 * system has not scheduled, delays nobody. */
#ifndef INFERC_PARALLEL_H
#define INFERC_PARALLEL_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "floating.h"
#include "run.h"

enum { POOL_SPINS = 4000, POOL_LINE = 64 };

typedef struct pool pool;

typedef struct pool_helper {
  pool *owner;
  pthread_t thread;
  int32_t worker;
} pool_helper;

struct pool {
  /* The region; written by the caller while it is closed and nobody is inside. */
  parallel_body *body;
  const void *args;
  int64_t count, grain;
  char line0[POOL_LINE];
  atomic_uint generation; /* regions opened so far */
  atomic_bool open;
  char line1[POOL_LINE];
  atomic_llong next; /* the first index that nobody has claimed */
  char line2[POOL_LINE];
  atomic_int inside; /* helpers that may be reading the region */
  char line3[POOL_LINE];
  atomic_int sleepers;
  atomic_bool stop;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  int32_t helper_count;
  pool_helper *helpers;
};

static inline void pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Claims pieces of the open region until none is left. */
static inline void pool_work(pool *p, int32_t worker) {
  for (;;) {
    const int64_t begin = atomic_fetch_add_explicit(&p->next, p->grain, memory_order_relaxed);
    if (begin >= p->count) return;
    const int64_t end = begin + p->grain < p->count ? begin + p->grain : p->count;
    p->body(p->args, (int32_t)begin, (int32_t)end, worker);
  }
}

/* Waits until a region after `seen` was opened, or the pool stops. */
static inline void pool_wait(pool *p, unsigned seen) {
  for (int i = 0; i < POOL_SPINS; i++) {
    if (atomic_load_explicit(&p->generation, memory_order_acquire) != seen || atomic_load(&p->stop)) return;
    pool_pause();
  }
  pthread_mutex_lock(&p->lock);
  atomic_fetch_add(&p->sleepers, 1); /* before the test: the caller opens first, then looks for sleepers */
  while (atomic_load(&p->generation) == seen && !atomic_load(&p->stop)) pthread_cond_wait(&p->wake, &p->lock);
  atomic_fetch_sub(&p->sleepers, 1);
  pthread_mutex_unlock(&p->lock);
}

static inline void *pool_helper_main(void *argument) {
  const pool_helper *self = argument;
  pool *p = self->owner;
  floating_begin(); /* a new thread inherits its creator's rounding mode */
  unsigned seen = 0;
  for (;;) {
    pool_wait(p, seen);
    if (atomic_load(&p->stop)) return NULL;
    seen = atomic_load(&p->generation);
    atomic_fetch_add(&p->inside, 1); /* before the test: the caller closes first, then waits for those inside */
    if (atomic_load(&p->open)) pool_work(p, self->worker);
    atomic_fetch_sub(&p->inside, 1);
  }
}

/* Runs one region; the `parallel_for` of a `run` whose `pool` is this one. One caller at a time. */
static inline void pool_for(void *argument, int32_t count, int32_t grain, parallel_body *body, const void *args) {
  pool *p = argument;
  p->body = body, p->args = args, p->count = count, p->grain = grain > 0 ? grain : 1;
  atomic_store_explicit(&p->next, 0, memory_order_relaxed);
  atomic_store(&p->open, true);
  atomic_fetch_add(&p->generation, 1);
  if (atomic_load(&p->sleepers) > 0) {
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
  }
  pool_work(p, 0);
  atomic_store(&p->open, false);
  for (int i = 0; atomic_load(&p->inside) != 0; i++) {
    if (i < POOL_SPINS) pool_pause();
    else sched_yield(); /* a helper inside was descheduled: more threads than cores */
  }
}

/* Ends the helpers and frees what `pool_start` made, but not `p` and `helpers` themselves. */
static inline void pool_stop(pool *p) {
  pthread_mutex_lock(&p->lock);
  atomic_store(&p->stop, true);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
  for (int32_t i = 0; i < p->helper_count; i++) pthread_join(p->helpers[i].thread, NULL);
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->lock);
}

/* Starts a pool of `threads` workers, the caller being one; `helpers` has room for threads - 1 and outlives the pool.
 * False, with nothing left running, where the system gives no more threads. */
static inline bool pool_start(pool *p, int32_t threads, pool_helper *helpers) {
  *p = (pool){.helpers = helpers};
  if (pthread_mutex_init(&p->lock, NULL)) return false;
  if (pthread_cond_init(&p->wake, NULL)) return pthread_mutex_destroy(&p->lock), false;
  for (int32_t i = 0; i < threads - 1; i++) {
    helpers[i] = (pool_helper){.owner = p, .worker = i + 1};
    if (pthread_create(&helpers[i].thread, NULL, pool_helper_main, &helpers[i])) return pool_stop(p), false;
    p->helper_count = i + 1;
  }
  return true;
}

#endif
