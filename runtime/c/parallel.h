/* A persistent pool of threads for fork-join loops.
 *
 * One caller at a time opens a region. Each worker, the caller being the first, has a share of its pieces: neighbours,
 * so that it reads one contiguous stream and the same weights in every step. It claims them one at a time, then what is
 * left of other shares. So a worker that is slower, be it on a small core of a hybrid CPU, on one that another process
 * uses, or asleep, does fewer pieces, and all workers end within about one piece of each other.
 *
 * A region costs few transfers of cache lines between cores: all that a helper polls and needs to know lies in one
 * line, and its share and its state in another. Claims from one's own share meet no other core until somebody steals.
 * The caller never waits for a helper that has not entered the region: it does the helper's share and locks it out.
 *
 * A helper that finds nothing to do spins for some microseconds (a step opens hundreds of regions), then sleeps, so
 * that an idle model costs nothing. */
#ifndef INFERC_PARALLEL_H
#define INFERC_PARALLEL_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "floating.h"
#include "run.h"

enum { POOL_SPINS = 4000, POOL_LINE = 128 }; /* lines of 64 bytes are fetched in pairs */

typedef struct pool pool;

typedef struct pool_worker {
  /* Twice the number of the last region that the worker is done with, plus 1 while it is inside the next. */
  _Alignas(POOL_LINE) _Atomic uint64_t turn;
  _Atomic uint32_t next; /* of its share: the first piece that nobody has claimed */
  uint32_t end;
  int32_t number;
  pool *owner;
  pthread_t thread;
} pool_worker;

struct pool {
  /* The last region's number * 65536 + its workers, or POOL_STOP. The rest of the line is the region, which the caller
   * writes while no helper is inside. */
  _Alignas(POOL_LINE) _Atomic uint64_t ticket;
  atomic_int sleepers;
  int32_t count, grain;
  parallel_body *body;
  const void *args;
  _Alignas(POOL_LINE) pthread_mutex_t lock;
  pthread_cond_t wake;
  int32_t worker_count;
  pool_worker *workers;
};

#define POOL_STOP UINT64_MAX

static inline void pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Claims pieces of the open region until none is left, first of the worker's own share. */
static inline void pool_work(const pool *p, int32_t number, int32_t workers) {
  for (int32_t i = 0, from = number; i < workers; i++, from = from + 1 < workers ? from + 1 : 0) {
    pool_worker *owner = &p->workers[from];
    while (atomic_load_explicit(&owner->next, memory_order_relaxed) < owner->end) {
      const uint32_t piece = atomic_fetch_add_explicit(&owner->next, 1, memory_order_relaxed);
      if (piece >= owner->end) break;
      const int32_t begin = (int32_t)piece * p->grain;
      p->body(p->args, begin, p->count - begin < p->grain ? p->count : begin + p->grain, number);
    }
  }
}

/* Waits for a ticket other than the one seen last. */
static inline uint64_t pool_wait(pool *p, uint64_t seen) {
  uint64_t ticket = seen;
  for (int i = 0; i < POOL_SPINS; i++) {
    ticket = atomic_load_explicit(&p->ticket, memory_order_acquire);
    if (ticket != seen) return ticket;
    pool_pause();
  }
  pthread_mutex_lock(&p->lock);
  atomic_fetch_add(&p->sleepers, 1); /* before the test: the caller gives the ticket out first, then looks here */
  while ((ticket = atomic_load(&p->ticket)) == seen) pthread_cond_wait(&p->wake, &p->lock);
  atomic_fetch_sub(&p->sleepers, 1);
  pthread_mutex_unlock(&p->lock);
  return ticket;
}

static inline void *pool_helper_main(void *argument) {
  pool_worker *self = argument;
  pool *p = self->owner;
  floating_begin(); /* a new thread inherits its creator's rounding mode */
  for (uint64_t ticket = 0;;) {
    ticket = pool_wait(p, ticket);
    if (ticket == POOL_STOP) return NULL;
    const uint64_t turn = 2 * (ticket >> 16);
    const int32_t workers = (int32_t)(ticket & 0xffff);
    if (self->number >= workers) continue;
    uint64_t before = atomic_load_explicit(&self->turn, memory_order_relaxed);
    if (before >= turn || !atomic_compare_exchange_strong(&self->turn, &before, turn + 1)) continue; /* locked out */
    pool_work(p, self->number, workers);
    atomic_store_explicit(&self->turn, turn, memory_order_release);
  }
}

/* Runs one region; the `parallel_for` of a `run` whose `pool` is this one. One caller at a time. */
static inline void pool_for(void *argument, int32_t count, int32_t grain, parallel_body *body, const void *args) {
  pool *p = argument;
  grain = int_max(grain, 1);
  const int64_t pieces = ((int64_t)count + grain - 1) / grain;
  const int32_t workers = pieces < p->worker_count ? (int32_t)pieces : p->worker_count;
  p->body = body, p->args = args, p->count = count, p->grain = grain;
  for (int32_t w = 0; w < workers; w++) {
    p->workers[w].end = (uint32_t)(pieces * (w + 1) / workers);
    atomic_store_explicit(&p->workers[w].next, (uint32_t)(pieces * w / workers), memory_order_relaxed);
  }
  const uint64_t number = (atomic_load_explicit(&p->ticket, memory_order_relaxed) >> 16) + 1;
  atomic_store(&p->ticket, number << 16 | (uint64_t)workers);
  if (atomic_load(&p->sleepers) > 0) {
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
  }
  pool_work(p, 0, workers);
  for (int32_t w = 1; w < workers; w++) {
    _Atomic uint64_t *turn = &p->workers[w].turn;
    uint64_t now = atomic_load_explicit(turn, memory_order_acquire);
    if (now < 2 * number && atomic_compare_exchange_strong(turn, &now, 2 * number)) continue; /* it never came */
    for (int i = 0; atomic_load_explicit(turn, memory_order_acquire) != 2 * number; i++) {
      if (i < POOL_SPINS) pool_pause();
      else sched_yield(); /* a helper inside was descheduled: more threads than cores */
    }
  }
}

/* Ends the helpers and frees what `pool_start` made, but not `p` and `workers` themselves. */
static inline void pool_stop(pool *p) {
  pthread_mutex_lock(&p->lock);
  atomic_store(&p->ticket, POOL_STOP);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
  for (int32_t w = 1; w < p->worker_count; w++) pthread_join(p->workers[w].thread, NULL);
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->lock);
}

/* Starts a pool of `threads` workers, at most 65535, the caller being one; `workers` has room for all of them and
 * outlives the pool. False, with nothing left running, where the system gives no more threads. */
static inline bool pool_start(pool *p, int32_t threads, pool_worker *workers) {
  *p = (pool){.workers = workers, .worker_count = 1};
  if (pthread_mutex_init(&p->lock, NULL)) return false;
  if (pthread_cond_init(&p->wake, NULL)) return pthread_mutex_destroy(&p->lock), false;
  workers[0] = (pool_worker){.owner = p};
  for (int32_t w = 1; w < threads; w++) {
    workers[w] = (pool_worker){.owner = p, .number = w};
    if (pthread_create(&workers[w].thread, NULL, pool_helper_main, &workers[w])) return pool_stop(p), false;
    p->worker_count = w + 1;
  }
  return true;
}

/* Keeps each helper on one processor of those that the caller may use, of which the first is left to the caller. Does
 * nothing where the system has no such call, or _GNU_SOURCE is not defined. */
static inline void pool_pin(pool *p) {
#if defined(__linux__) && defined(CPU_SETSIZE)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
  int cpu = 0;
  while (!CPU_ISSET(cpu, &allowed)) cpu++;
  for (int32_t w = 1; w < p->worker_count; w++) {
    do cpu = (cpu + 1) % CPU_SETSIZE;
    while (!CPU_ISSET(cpu, &allowed));
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(p->workers[w].thread, sizeof one, &one);
  }
#else
  (void)p;
#endif
}

#endif
