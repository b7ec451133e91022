/* A persistent pool of threads for fork-join loops.
 *
 * One caller at a time opens a region. Each worker, the caller being the first, has a share of its pieces: neighbours,
 * so that it reads one contiguous stream and the same weights in every step. It claims them one at a time, then what is
 * left of other shares. So a worker that is slower, be it on a small core of a hybrid CPU, on one that another process
 * uses, or asleep, does fewer pieces, and all workers end within about one piece of each other.
 *
 * Regions go through the pieces of a share forwards and backwards in turns: what one touched last is still in a core's
 * caches when the next begins with it, be it what it wrote or weights that a step of a loop multiplies with again.
 *
 * A region costs few transfers of cache lines between cores: all that a helper polls and needs to know lies in one
 * line, and its share and its state in another. Claims from one's own share meet no other core until somebody steals.
 * The caller never waits for a helper that has not entered the region: it does the helper's share and locks it out.
 *
 * Where something else uses one of the processors, helpers do harm: one that the system takes off its processor amidst
 * a piece holds all others up for milliseconds, and one that shares the caller's takes its time. So when the caller has
 * waited for a helper that had no processor, or one has missed many regions, the pool does with one helper fewer for a
 * while, and for longer each time that this repeats: the others have a processor each.
 *
 * A helper that finds nothing to do spins for some microseconds (a step opens hundreds of regions), then sleeps, so
 * that an idle model costs nothing. */
#ifndef INFERC_PARALLEL_H
#define INFERC_PARALLEL_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "floating.h"
#include "run.h"

enum { POOL_SPINS = 4000, POOL_LINE = 128 }; /* lines of 64 bytes are fetched in pairs */

/* A helper is late when it had no processor for so many nanoseconds, or missed so many regions; how long the pool then
 * does without, in nanoseconds. */
enum { POOL_LATE = 1000000, POOL_MISSES = 64, POOL_REST_LEAST = 10000000, POOL_REST_MOST = 640000000 };

typedef struct pool pool;

typedef struct pool_worker {
  /* Twice the number of the last region that the worker is done with, plus 1 while it is inside the next. */
  _Alignas(POOL_LINE) _Atomic uint64_t turn;
  _Atomic uint32_t next; /* of its share: the first piece that nobody has claimed */
  uint32_t begin, end;
  int32_t number, misses; /* regions in a row that it did not enter */
  atomic_bool asleep;
  pool *owner;
  pthread_t thread;
} pool_worker;

struct pool {
  /* The last region's number * 65536 + its workers, or POOL_STOP. The rest of the line is the region, which the caller
   * writes while no helper is inside. */
  _Alignas(POOL_LINE) _Atomic uint64_t ticket;
  atomic_bool drowsy; /* a helper fell asleep since the caller looked after them */
  int32_t count, grain;
  bool backwards; /* through each share */
  parallel_body *body;
  const void *args;
  _Alignas(POOL_LINE) pthread_mutex_t lock;
  pthread_cond_t wake;
  int32_t worker_count;
  pool_worker *workers;
  int32_t active;       /* workers that regions are opened for */
  int32_t covered;      /* any of the first so many that is asleep has set `drowsy` */
  int64_t rest, resume; /* how long the pool did without a helper last; when that ends or ended */
};

#define POOL_STOP UINT64_MAX

static inline void pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Claims pieces of the open region until none is left, first of the worker's own share. Where all shares are of one
 * piece, only the caller looks at others': it must, for helpers that do not come. */
static inline void pool_work(const pool *p, int32_t number, int32_t workers) {
  const bool backwards = p->backwards;
  const int32_t shares = number > 0 && p->count <= (int64_t)p->grain * workers ? 1 : workers;
  for (int32_t i = 0, from = number; i < shares; i++, from = from + 1 < workers ? from + 1 : 0) {
    pool_worker *owner = &p->workers[from];
    while (atomic_load_explicit(&owner->next, memory_order_relaxed) < owner->end) {
      const uint32_t piece = atomic_fetch_add_explicit(&owner->next, 1, memory_order_relaxed);
      if (piece >= owner->end) break;
      const int32_t begin = (int32_t)(backwards ? owner->begin + owner->end - 1 - piece : piece) * p->grain;
      p->body(p->args, begin, p->count - begin < p->grain ? p->count : begin + p->grain, number);
    }
  }
}

static inline int64_t pool_clock(clockid_t clock) {
  struct timespec t;
  if (clock_gettime(clock, &t)) return 0;
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int32_t pool_workers(uint64_t ticket) { return (int32_t)(ticket & 0xffff); }

/* Waits for a ticket after the one seen last that is for this worker too. POOL_STOP is for all. */
static inline uint64_t pool_wait(pool_worker *self, uint64_t seen) {
  pool *p = self->owner;
  uint64_t ticket = seen;
  for (int i = 0; i < POOL_SPINS; i++) {
    ticket = atomic_load_explicit(&p->ticket, memory_order_acquire);
    if (ticket != seen && self->number < pool_workers(ticket)) return ticket;
    pool_pause();
  }
  pthread_mutex_lock(&p->lock);
  for (;;) {
    atomic_store(&self->asleep, true);
    atomic_store(&p->drowsy, true); /* before the test: the caller gives the ticket out first, then looks here */
    ticket = atomic_load(&p->ticket);
    if (ticket != seen && self->number < pool_workers(ticket)) break;
    pthread_cond_wait(&p->wake, &p->lock);
  }
  atomic_store(&self->asleep, false);
  pthread_mutex_unlock(&p->lock);
  return ticket;
}

static inline void *pool_helper_main(void *argument) {
  pool_worker *self = argument;
  pool *p = self->owner;
  floating_begin(); /* a new thread inherits its creator's rounding mode */
  for (uint64_t ticket = 0;;) {
    ticket = pool_wait(self, ticket);
    if (ticket == POOL_STOP) return NULL;
    const uint64_t turn = 2 * (ticket >> 16);
    uint64_t before = atomic_load_explicit(&self->turn, memory_order_relaxed);
    if (before >= turn || !atomic_compare_exchange_strong(&self->turn, &before, turn + 1)) continue; /* locked out */
    pool_work(p, self->number, pool_workers(ticket));
    atomic_store_explicit(&self->turn, turn, memory_order_release);
  }
}

/* One helper fewer for a while. */
static inline void pool_rest(pool *p) {
  const int64_t now = pool_clock(CLOCK_MONOTONIC);
  const bool again = now - p->resume < 2 * p->rest;
  p->rest = !again ? POOL_REST_LEAST : p->rest < POOL_REST_MOST ? 2 * p->rest : p->rest;
  p->resume = now + p->rest;
  p->active = int_max(p->active - 1, 1);
}

/* Waits for a helper that is inside the region. Whether that was long because the helper had no processor. */
static inline bool pool_await(pool_worker *helper, uint64_t turn) {
  for (int i = 0; i < POOL_SPINS; i++) {
    if (atomic_load_explicit(&helper->turn, memory_order_acquire) == turn) return false;
    pool_pause();
  }
#ifdef __linux__
  const int64_t begin = pool_clock(CLOCK_MONOTONIC);
  clockid_t clock;
  const bool known = pthread_getcpuclockid(helper->thread, &clock) == 0;
  const int64_t run = known ? pool_clock(clock) : 0;
#endif
  while (atomic_load_explicit(&helper->turn, memory_order_acquire) != turn) sched_yield();
#ifdef __linux__
  return known && pool_clock(CLOCK_MONOTONIC) - begin - (pool_clock(clock) - run) > POOL_LATE;
#else
  return false;
#endif
}

/* Wakes the helpers among the first workers that are asleep; each only once, as it may take long until it runs. */
static inline void pool_wake(pool *p, int32_t workers) {
  bool asleep = false;
  atomic_store(&p->drowsy, false);
  for (int32_t w = 1; w < workers; w++) asleep |= atomic_exchange(&p->workers[w].asleep, false);
  p->covered = workers;
  if (!asleep) return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
}

/* Runs one region; the `parallel_for` of a `run` whose `pool` is this one. One caller at a time. */
static inline void pool_for(void *argument, int32_t count, int32_t grain, parallel_body *body, const void *args) {
  pool *p = argument;
  grain = int_max(grain, 1);
  const int64_t pieces = ((int64_t)count + grain - 1) / grain;
  if (p->active < p->worker_count && pool_clock(CLOCK_MONOTONIC) > p->resume) p->active++;
  const int32_t workers = pieces < p->active ? (int32_t)pieces : p->active;
  p->body = body, p->args = args, p->count = count, p->grain = grain, p->backwards = !p->backwards;
  for (int32_t w = 0; w < workers; w++) {
    p->workers[w].begin = (uint32_t)(pieces * w / workers);
    p->workers[w].end = (uint32_t)(pieces * (w + 1) / workers);
    atomic_store_explicit(&p->workers[w].next, p->workers[w].begin, memory_order_relaxed);
  }
  const uint64_t number = (atomic_load_explicit(&p->ticket, memory_order_relaxed) >> 16) + 1;
  atomic_store(&p->ticket, number << 16 | (uint64_t)workers);
  if (workers > p->covered || atomic_load(&p->drowsy)) pool_wake(p, workers);
  pool_work(p, 0, workers);
  bool late = false;
  for (int32_t w = 1; w < workers; w++) {
    pool_worker *helper = &p->workers[w];
    uint64_t turn = atomic_load_explicit(&helper->turn, memory_order_acquire);
    if (turn < 2 * number && atomic_compare_exchange_strong(&helper->turn, &turn, 2 * number)) { /* it never came */
      late |= ++helper->misses % POOL_MISSES == 0;
    } else {
      helper->misses = 0;
      late |= pool_await(helper, 2 * number);
    }
  }
  if (late) pool_rest(p);
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
  p->active = p->worker_count;
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
