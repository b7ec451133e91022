/* Many sessions at once: soak WEIGHTS SESSIONS SECONDS.
 *
 * Each of SESSIONS threads has a session, a text of its own, and its answers from a first, quiet run. Then all go on at
 * once, alone or two in one call, with rewinds, forks, saves and restores; every logit must be the first run's, to the
 * bit, and from a minute on the process may take no more memory in its second half than in its first. Prints the number of calls. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

enum { V = MODEL_VOCAB_SIZE, TOKENS = 40, STEP = 7 };

#define EXPECT(condition) ((condition) ? (void)0 : fail(__LINE__, #condition))

_Noreturn static void fail(int line, const char *condition) {
  fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, line, condition);
  exit(1);
}

static void *take(size_t bytes) {
  void *memory = NULL;
  EXPECT(posix_memalign(&memory, MODEL_ALIGNMENT, bytes ? bytes : 1) == 0);
  return memory;
}

static model_model *model;
static _Atomic long calls;
static _Atomic int stop;

typedef struct client {
  pthread_t thread;
  uint32_t state;
  int32_t ids[TOKENS];
  float *want; /* [TOKENS][V] */
} client;

static uint32_t draw(client *c, uint32_t below) {
  c->state = c->state * 1664525u + 1013904223u;
  return (c->state >> 8) % below;
}

static void evaluate(model_session *session, const client *c, int32_t count, float *logits, void *workspace) {
  const int32_t at = model_position(session);
  const model_item item = {session, c->ids + at, count, count, logits};
  EXPECT(model_eval(model, workspace, model_workspace_bytes(model, 2 * STEP, 2 * STEP), &item, 1) == MODEL_OK);
  atomic_fetch_add(&calls, 1);
}

static void *live(void *argument) {
  client *c = argument;
  const size_t bytes = model_session_bytes(TOKENS);
  void *workspace = take(model_workspace_bytes(model, 2 * STEP, 2 * STEP));
  void *memory[2] = {take(bytes), take(bytes)};
  float *logits = take(sizeof(float) * V * STEP * 2);
  model_session *s = NULL, *other = NULL;
  EXPECT(model_session_init(model, memory[0], bytes, &s) == MODEL_OK);
  while (!atomic_load(&stop)) {
    const int32_t at = model_position(s), left = TOKENS - at;
    const uint32_t what = draw(c, 8);
    if (left == 0 || what == 0) {
      const int32_t limit = model_rewind_limit(s), to = limit + (int32_t)draw(c, (uint32_t)(at - limit + 1));
      EXPECT(model_rewind(s, to) == MODEL_OK);
    } else if (what == 1) { /* saved, and restored elsewhere, in memory of just this size */
      const size_t size = model_save_bytes(s);
      void *saved = take(size);
      EXPECT(model_save(model, s, saved, size) == MODEL_OK);
      EXPECT(model_restore(model, saved, size, memory[1], bytes, &other) == MODEL_OK);
      free(saved);
      void *swap = memory[0];
      memory[0] = memory[1], memory[1] = swap;
      s = other;
    } else if (what == 2 && left > 1) { /* forked, and both in one call */
      EXPECT(model_session_fork(s, at, memory[1], bytes, &other) == MODEL_OK);
      const int32_t n = 1 + (int32_t)draw(c, (uint32_t)(left < STEP ? left : STEP));
      const model_item items[2] = {{s, c->ids + at, n, n, logits}, {other, c->ids + at, 1, 1, logits + (size_t)n * V}};
      EXPECT(model_eval(model, workspace, model_workspace_bytes(model, 2 * STEP, 2 * STEP), items, 2) == MODEL_OK);
      EXPECT(memcmp(logits, c->want + (size_t)at * V, sizeof(float) * V * (size_t)n) == 0);
      EXPECT(memcmp(logits + (size_t)n * V, c->want + (size_t)at * V, sizeof(float) * V) == 0);
    } else {
      const int32_t n = 1 + (int32_t)draw(c, (uint32_t)(left < STEP ? left : STEP));
      evaluate(s, c, n, logits, workspace);
      EXPECT(memcmp(logits, c->want + (size_t)at * V, sizeof(float) * V * (size_t)n) == 0);
    }
  }
  free(workspace), free(memory[0]), free(memory[1]), free(logits);
  return NULL;
}

/* Pages that the process has in memory. */
static long resident(void) {
  long size = 0, pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (file) {
    EXPECT(fscanf(file, "%ld %ld", &size, &pages) == 2);
    fclose(file);
  }
  return pages;
}

static void rest(double seconds) {
  const struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  nanosleep(&time, NULL);
}

int main(int argc, char **argv) {
  EXPECT(argc == 4);
  const size_t size = model_describe(NULL)->weights_bytes;
  char *weights = take(size);
  FILE *file = fopen(argv[1], "rb");
  EXPECT(file && fread(weights, 1, size, file) == size);
  fclose(file);
  const model_open_options options = {.size = sizeof options, .weights = weights, .weights_bytes = size, .threads = 2};
  EXPECT(model_open(&options, &model) == MODEL_OK);
  const int count = atoi(argv[2]);
  const double seconds = atof(argv[3]);
  client *clients = calloc((size_t)count, sizeof *clients);
  EXPECT(clients);
  const size_t bytes = model_session_bytes(TOKENS);
  void *memory = take(bytes), *workspace = take(model_workspace_bytes(model, 2 * STEP, 2 * STEP));
  for (int i = 0; i < count; i++) {
    client *c = &clients[i];
    model_session *session;
    c->state = (uint32_t)i + 1;
    c->want = take(sizeof(float) * V * TOKENS);
    for (int j = 0; j < TOKENS; j++) c->ids[j] = (int32_t)draw(c, V);
    EXPECT(model_session_init(model, memory, bytes, &session) == MODEL_OK);
    for (int j = 0; j < TOKENS; j += 5) evaluate(session, c, 5, c->want + (size_t)j * V, workspace);
  }
  for (int i = 0; i < count; i++) EXPECT(pthread_create(&clients[i].thread, NULL, live, &clients[i]) == 0);
  rest(seconds / 2);
  const long half = resident();
  rest(seconds / 2);
  const long end = resident();
  atomic_store(&stop, 1);
  for (int i = 0; i < count; i++) EXPECT(pthread_join(clients[i].thread, NULL) == 0);
  EXPECT(seconds < 60 || end - half < 256); /* a megabyte; in less time not all sessions were filled once */
  printf("%ld\n", (long)calls);
  for (int i = 0; i < count; i++) free(clients[i].want);
  model_close(model);
  free(clients), free(memory), free(workspace), free(weights);
  return 0;
}
