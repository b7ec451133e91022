/* Writes down when each call of a kernel begins and ends, and what each thread does in its parallel regions. */
#include <time.h>

/* One call (worker -1), one parallel region (-2), or one worker's part of the region before it: its first piece's begin
 * and last piece's end, in nanoseconds, the time inside its pieces, and their number. A region that was not split has
 * pieces 0. */
typedef struct observed_event {
  int64_t begin, end, busy;
  int32_t point, worker, pieces, reserved;
} observed_event;

/* Filled by the host: what does not fit is counted but not kept. */
typedef struct observed_log {
  observed_event *events;
  int64_t capacity, count;
} observed_log;

__attribute__((visibility("default"))) observed_log inferc_observed;

typedef struct observed_worker {
  _Alignas(128) int64_t begin;
  int64_t end, busy;
  int32_t pieces;
} observed_worker;

typedef struct observed_region {
  parallel_body *body;
  const void *args;
} observed_region;

enum { OBSERVED_THREADS = 1024 };

static observed_worker observed_workers[OBSERVED_THREADS];
static int32_t observed_point;

static int64_t observed_clock(void) {
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void observed_add(observed_event event) {
  if (inferc_observed.count < inferc_observed.capacity) inferc_observed.events[inferc_observed.count] = event;
  inferc_observed.count++;
}

static inline int64_t observed_begin(int32_t point) {
  observed_point = point;
  return observed_clock();
}

static inline void observed_end(int32_t point, int64_t begin) {
  observed_add((observed_event){.begin = begin, .end = observed_clock(), .point = point, .worker = -1});
}

static void observed_body(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const observed_region *region = args;
  observed_worker *w = &observed_workers[worker];
  const int64_t began = observed_clock();
  region->body(region->args, begin, end, worker);
  w->end = observed_clock();
  if (w->pieces++ == 0) w->begin = began;
  w->busy += w->end - began;
}

static inline void observed_parallel(const run *r, int32_t count, int32_t grain, parallel_body *body,
                                     const void *args) {
  const observed_region region = {body, args};
  const int32_t threads = int_min(r->threads, OBSERVED_THREADS);
  for (int32_t w = 0; w < threads; w++) observed_workers[w] = (observed_worker){0};
  const int64_t began = observed_clock();
  parallel(r, count, grain, observed_body, &region);
  const int64_t ended = observed_clock();
  const int32_t split = r->threads > 1 && count > grain ? (count + grain - 1) / grain : 0;
  observed_add((observed_event){began, ended, ended - began, observed_point, -2, split, 0});
  for (int32_t w = 0; w < threads; w++) {
    const observed_worker *o = &observed_workers[w];
    if (o->pieces) observed_add((observed_event){o->begin, o->end, o->busy, observed_point, w, o->pieces, 0});
  }
}

#define parallel(...) observed_parallel(__VA_ARGS__)
