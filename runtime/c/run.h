/* What a kernel sees of the run it is part of: the threads, the weights and the sessions' memory.
 *
 * A kernel is a static function whose first parameter is `const run *r`. It splits its work with `parallel`, which is
 * fork-join: when it returns, every index was done. Which worker does which index never changes a bit of a result. */
#ifndef INFERC_RUN_H
#define INFERC_RUN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __FAST_MATH__
#error "compile without -ffast-math: the results are specified to the bit"
#endif

/* Does the indices [begin, end). `worker` is in [0, r->threads), and no two calls at the same time share it. */
typedef void parallel_body(const void *args, int32_t begin, int32_t end, int32_t worker);

typedef struct run {
  int32_t threads;       /* workers that may take part, the caller included */
  int32_t session_count; /* a token whose sequence number is not below it is padding */
  char *const *sessions; /* session memory by sequence number */
  const uint8_t *weights;
  void *pool; /* first argument of parallel_for; both may be null where threads is 1 */
  void (*parallel_for)(void *pool, int32_t count, int32_t grain, parallel_body *body, const void *args);
} run;

/* Calls `body` on pieces of [0, count) of `grain` indices (the last may be shorter), in any order, on any worker. */
static inline void parallel(const run *r, int32_t count, int32_t grain, parallel_body *body, const void *args) {
  if (count <= 0) return;
  if (r->threads <= 1 || count <= grain) body(args, 0, count, 0);
  else r->parallel_for(r->pool, count, grain, body, args);
}

/* Where the K or V of one layer lies in a session's memory, in pages of 256 positions. */
typedef struct cache_region {
  size_t base;       /* bytes from the start of the session's memory to the region's first page */
  size_t page_bytes; /* from one page of the region to its next */
  int32_t pages;     /* of a ring that positions wrap around in; 0 where pages go on with the context */
} cache_region;

/* The page that holds positions 256 * page .. 256 * page + 255 of a session. */
static inline char *cache_page(char *session, const cache_region *region, int32_t page) {
  const int32_t at = region->pages ? page % region->pages : page;
  return session + region->base + (size_t)at * region->page_bytes;
}

/* A weight by its offset in the weights file; of whatever type the kernel reads it as. */
static inline const void *weight(const run *r, size_t offset) { return r->weights + offset; }

static inline int32_t int_max(int32_t a, int32_t b) { return a > b ? a : b; }
static inline int32_t int_min(int32_t a, int32_t b) { return a < b ? a : b; }
static inline size_t size_max(size_t a, size_t b) { return a > b ? a : b; }
static inline size_t size_min(size_t a, size_t b) { return a < b ? a : b; }

#endif
