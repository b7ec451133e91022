/* Takes a language model through every part of its interface: sessions WEIGHTS THREADS TOKENS.
 *
 * All memory is heap of exactly the size that is asked for. One text of TOKENS tokens is evaluated in full chunks; then
 * the host sets another floating-point state, which must give the same bits and still be set after each call; and
 * all other ways to evaluate it must give its logits to the bit; these are written to stdout. An expectation that does
 * not hold is named on stderr by its line, and the exit code is 1. */
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "floating.h"
#include "model.h"

enum { V = MODEL_VOCAB_SIZE, CHUNK = MODEL_MAX_TOKENS };

#define EXPECT(condition) ((condition) ? (void)0 : fail(__LINE__, #condition))

static void fail(int line, const char *condition) {
  fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, line, condition);
  exit(1);
}

static void *take(size_t bytes) {
  void *memory = NULL;
  EXPECT(posix_memalign(&memory, MODEL_ALIGNMENT, bytes ? bytes : 1) == 0);
  memset(memory, 0xFF, bytes);
  return memory;
}

/* Upward rounding, denormals flushed, and what of the state are only flags that operations raise. */
#if defined(__x86_64__)
enum { HOSTILE = 0xDFC0, RAISED = 0x3F };
#elif defined(__aarch64__)
enum { HOSTILE = 1 << 24 | 1 << 22, RAISED = 0 };
#elif defined(__riscv)
enum { HOSTILE = 3 << 5, RAISED = 0x1F };
#else
enum { HOSTILE = 0, RAISED = 0 };
#endif
static floating_state host_state = FLOATING_PLAIN;

static int state_is_kept(void) { return ((floating_get() ^ host_state) & ~(floating_state)RAISED) == 0; }

static model_status evaluate(model_model *model, const model_item *items, size_t count) {
  int32_t tokens = 0, rows = 0;
  for (size_t i = 0; i < count; i++) tokens += items[i].id_count, rows += items[i].rows_wanted;
  const size_t bytes = model_workspace_bytes(model, tokens, rows);
  EXPECT(bytes > 0);
  void *workspace = take(bytes);
  const model_status status = model_eval(model, workspace, bytes, items, count);
  EXPECT(state_is_kept());
  free(workspace);
  return status;
}

static model_session *session_of(model_model *model, int32_t positions) {
  model_session *session;
  const size_t bytes = model_session_bytes(positions);
  EXPECT(model_session_init(model, take(bytes), bytes, &session) == MODEL_OK);
  EXPECT(model_position(session) == 0 && model_capacity(session) >= positions);
  return session;
}

/* Equal bits, all NaNs alike: weights may be anything. */
static int same(const float *a, const float *b, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (memcmp(&a[i], &b[i], sizeof *a) && (a[i] == a[i] || b[i] == b[i])) return 0;
  return 1;
}

/* Feeds ids[model_position .. to), at most `step` at a time, from and to memory of exactly their size; the logits of all
 * rows must be those of `want`, or are written there if `first`. */
static void feed(model_model *model, model_session *session, const int32_t *ids, int32_t to, int32_t step, float *want,
                 int first) {
  while (model_position(session) < to) {
    const int32_t at = model_position(session), left = to - at, n = left < step ? left : step;
    const size_t size = (size_t)n * V * sizeof(float);
    int32_t *own = take((size_t)n * sizeof *own);
    float *logits = take(size), *known = want + (size_t)at * V;
    memcpy(own, ids + at, (size_t)n * sizeof *own);
    EXPECT(evaluate(model, &(model_item){session, own, n, n, logits}, 1) == MODEL_OK);
    if (first) memcpy(known, logits, size);
    EXPECT(same(known, logits, (size_t)n * V));
    free(own);
    free(logits);
  }
}

/* Three sessions in each call, of different lengths and wanted rows: none, the last, and all. */
static void share(model_model *model, const int32_t *ids, int32_t to, const float *want) {
  model_session *s[3];
  for (int i = 0; i < 3; i++) s[i] = session_of(model, to);
  float *logits[3] = {NULL, take(V * sizeof(float)), NULL};
  for (int32_t round = 0; round < 2 * to; round++) {
    model_item items[3];
    size_t count = 0;
    int32_t n[3], budget = CHUNK;
    for (int i = 0; i < 3; i++) {
      const int32_t left = to - model_position(s[i]), wish = 1 + (round * (i + 2) + i) % 5;
      n[i] = left < wish ? left : wish;
      if (n[i] > budget) n[i] = budget;
      budget -= n[i];
    }
    logits[2] = take((size_t)n[2] * V * sizeof(float));
    const int32_t rows[3] = {0, n[1] > 0, n[2]};
    for (int i = 0; i < 3; i++)
      if (n[i]) items[count++] = (model_item){s[i], ids + model_position(s[i]), n[i], rows[i], logits[i]};
    if (count) EXPECT(evaluate(model, items, count) == MODEL_OK);
    for (int i = 1; i < 3; i++)
      EXPECT(!rows[i] || same(logits[i], want + (size_t)(model_position(s[i]) - rows[i]) * V, (size_t)rows[i] * V));
    free(logits[2]);
    if (!count) break;
  }
  for (int i = 0; i < 3; i++) EXPECT(model_position(s[i]) == to), free(s[i]);
  free(logits[1]);
}

/* Backwards as far as the rings allow, further to nothing, and in a moved, longer and shorter memory. */
static void travel(model_model *model, model_session *session, const int32_t *ids, int32_t count, float *want) {
  const int32_t limit = model_rewind_limit(session);
  EXPECT(model_position(session) == count && limit >= 0 && limit <= count);
  EXPECT(model_rewind(session, count + 1) == MODEL_INVALID && model_rewind(session, -1) == MODEL_INVALID);
  if (limit > 1) EXPECT(model_rewind(session, limit - 1) == MODEL_EVICTED && model_position(session) == count);
  if (limit) EXPECT(model_rewind(session, limit) == MODEL_OK);
  feed(model, session, ids, count, 5, want, 0);
  EXPECT(model_rewind(session, 0) == MODEL_OK && model_position(session) == 0);

  model_session *small = session_of(model, 1);
  const int32_t room = model_capacity(small) < count ? model_capacity(small) : count;
  feed(model, small, ids, room, CHUNK, want, 0);
  const size_t bytes = model_session_bytes(1), more = model_session_bytes(count);
  model_session *moved = take(more);
  memcpy(moved, small, bytes);
  free(small);
  EXPECT(model_session_resize(moved, bytes - 1) == MODEL_SIZE);
  EXPECT(model_session_resize(moved, more) == MODEL_OK && model_capacity(moved) >= count);
  feed(model, moved, ids, count, 3, want, 0);
  EXPECT(model_rewind(moved, 0) == MODEL_OK && model_session_resize(moved, bytes) == MODEL_OK);
  feed(model, moved, ids, 2, 1, want, 0);
  free(moved);
}

/* Forked, saved and restored: what follows has the same logits. What was cut short or altered is refused. */
static void keep(model_model *model, model_session *session, const int32_t *ids, float *want) {
  const int32_t count = model_position(session), limit = model_rewind_limit(session);
  const int32_t at[] = {0, limit, limit + (count - limit) / 2, count};
  for (int i = 0; i < 4; i++) {
    const size_t bytes = model_session_bytes(at[i] > 0 ? at[i] : 1), more = model_session_bytes(count);
    model_session *fork = NULL;
    char *memory = take(more);
    EXPECT(model_session_fork(session, at[i], memory, bytes - 1, &fork) == MODEL_SIZE && !fork);
    EXPECT(model_session_fork(session, at[i], memory, bytes, &fork) == MODEL_OK && model_position(fork) == at[i]);
    EXPECT(model_session_resize(fork, more) == MODEL_OK);
    const size_t size = model_save_bytes(fork);
    uint8_t *saved = (uint8_t *)take(size + 1) + 1;
    EXPECT(model_save(model, fork, saved, size - 1) == MODEL_SIZE);
    EXPECT(model_save(model, fork, saved, size) == MODEL_OK);
    feed(model, fork, ids, count, 9, want, 0);

    char *other = take(more);
    model_session *restored = NULL;
    EXPECT(model_restore(model, saved, size, other, bytes - 1, &restored) == MODEL_SIZE && !restored);
    for (size_t j = 0; j < size; j += j < 48 ? 1 : 997) {
      saved[j] ^= (uint8_t)(1 << j % 8);
      EXPECT(model_restore(model, saved, size, other, more, &restored) == MODEL_DAMAGED && !restored);
      saved[j] ^= (uint8_t)(1 << j % 8);
      EXPECT(model_restore(model, saved, j, other, more, &restored) == MODEL_DAMAGED && !restored);
    }
    EXPECT(model_restore(model, saved, size, other, more, &restored) == MODEL_OK);
    EXPECT(model_position(restored) == at[i] && model_capacity(restored) >= count);
    EXPECT(at[i] == 0 || model_rewind_limit(restored) == (limit < at[i] ? limit : at[i]));
    feed(model, restored, ids, count, 4, want, 0);
    free(saved - 1), free(memory), free(other);
  }
  model_session *fork = NULL;
  char *memory = take(model_session_bytes(count));
  EXPECT(model_session_fork(session, count + 1, memory, model_session_bytes(count), &fork) == MODEL_INVALID && !fork);
  if (limit > 1)
    EXPECT(model_session_fork(session, limit - 1, memory, model_session_bytes(count), &fork) == MODEL_EVICTED && !fork);
  EXPECT(model_position(session) == count);
  free(memory);
}

/* Everything that must be refused, with the session as it was. */
static void refuse(model_model *model, const int32_t *ids) {
  model_session *session = session_of(model, 1), *other = session_of(model, 1);
  const size_t bytes = model_session_bytes(1), wide = (size_t)CHUNK * V * sizeof(float);
  float *logits = take(wide);
  EXPECT(evaluate(model, &(model_item){session, ids, 2, 1, logits}, 1) == MODEL_OK);
  char *before = take(bytes);
  memcpy(before, session, bytes);

  const size_t need = model_workspace_bytes(model, CHUNK, CHUNK);
  char *workspace = take(need);
  int32_t *one = take(sizeof *one);
  *one = 0;
#define STATUS(...) model_eval(model, workspace, need, (const model_item[]){__VA_ARGS__}, \
                               sizeof((const model_item[]){__VA_ARGS__}) / sizeof(model_item))
#define ITEM(...) ((model_item){__VA_ARGS__})
  const int32_t bad[] = {-1, V, INT32_MAX, INT32_MIN};
  for (int i = 0; i < 4; i++) {
    *one = bad[i];
    EXPECT(STATUS(ITEM(session, one, 1, 1, logits)) == MODEL_INVALID);
    EXPECT(STATUS(ITEM(other, ids, 1, 0, NULL), ITEM(session, one, 1, 1, logits)) == MODEL_INVALID);
    EXPECT(STATUS(ITEM(session, ids, bad[i] < 0 ? bad[i] : 0, 0, NULL)) == MODEL_INVALID);
    EXPECT(STATUS(ITEM(session, ids, 1, bad[i] < V ? bad[i] : 2, logits)) == MODEL_INVALID);
  }
  *one = 0; /* counts larger than the memory behind them: refused before it is read */
  EXPECT(STATUS(ITEM(session, one, INT32_MAX, 0, NULL)) == MODEL_CONTEXT);
  const int32_t room = model_capacity(session) - model_position(session);
  EXPECT(STATUS(ITEM(session, one, room + 1, 0, NULL)) == MODEL_CONTEXT);
  if (room > CHUNK) EXPECT(STATUS(ITEM(session, one, CHUNK + 1, 0, NULL)) == MODEL_INVALID);
  if (room > CHUNK) EXPECT(STATUS(ITEM(other, ids, 1, 0, NULL), ITEM(session, one, CHUNK, 0, NULL)) == MODEL_INVALID);
  EXPECT(STATUS(ITEM(session, NULL, 1, 0, NULL)) == MODEL_INVALID);
  EXPECT(STATUS(ITEM(NULL, ids, 1, 0, NULL)) == MODEL_INVALID);
  EXPECT(STATUS(ITEM((model_session *)((char *)session + 8), ids, 1, 0, NULL)) == MODEL_INVALID);
  EXPECT(STATUS(ITEM(session, ids, 1, 1, NULL)) == MODEL_INVALID);
  EXPECT(STATUS(ITEM(session, ids, 1, 1, logits), ITEM(session, ids, 1, 1, logits)) == MODEL_INVALID);

  const model_item good = {session, ids, 2, 1, logits};
  const size_t exact = model_workspace_bytes(model, 2, 1);
  EXPECT(model_eval(NULL, workspace, need, &good, 1) == MODEL_INVALID);
  EXPECT(model_eval(model, NULL, need, &good, 1) == MODEL_INVALID);
  EXPECT(model_eval(model, workspace + 4, need - 4, &good, 1) == MODEL_INVALID);
  EXPECT(model_eval(model, workspace, need, NULL, 1) == MODEL_INVALID);
  EXPECT(model_eval(model, workspace, exact - 1, &good, 1) == MODEL_SIZE);
  EXPECT(model_eval(model, workspace, 0, &good, 1) == MODEL_SIZE);
  EXPECT(model_eval(model, workspace, need, NULL, 0) == MODEL_OK);
  EXPECT(memcmp(before, session, bytes) == 0);

  model_session *made = NULL;
  EXPECT(model_session_init(model, workspace + 8, bytes, &made) == MODEL_INVALID);
  EXPECT(model_session_init(model, NULL, bytes, &made) == MODEL_INVALID);
  EXPECT(model_session_init(NULL, other, bytes, &made) == MODEL_INVALID);
  EXPECT(model_session_init(model, other, bytes - 1, &made) == MODEL_SIZE && !made);
  EXPECT(model_session_init(model, other, 0, &made) == MODEL_SIZE && !made);

  /* A session that was saved, and altered before it was restored: no number in its header leads outside of it. */
  for (size_t at = 0; at < 24; at += 4)
    for (int i = 0; i < 4; i++) {
      if (i == 1 && at >= 8 && at < 20) continue; /* V is as good a position as another */
      memcpy(session, before, bytes);
      memcpy((char *)session + at, &bad[i], sizeof bad[i]);
      EXPECT(STATUS(ITEM(session, ids, 1, 1, logits)) == MODEL_INVALID);
      EXPECT(at == 20 || model_rewind(session, 1) == MODEL_INVALID);
      EXPECT(at == 20 || model_session_resize(session, bytes) == MODEL_INVALID);
    }
  free(session), free(other), free(logits), free(before), free(workspace), free(one);
}

static void refuse_to_open(char *weights, size_t size) {
  model_model *model = NULL;
  const model_open_options good = {.size = sizeof good, .weights = weights, .weights_bytes = size, .threads = 1};
  model_open_options o = good;
  EXPECT(model_open(NULL, &model) == MODEL_INVALID && model_open(&good, NULL) == MODEL_INVALID);
  o.size = offsetof(model_open_options, unchecked) - 1;
  EXPECT(model_open(&o, &model) == MODEL_INVALID);
  o = good, o.weights_bytes--;
  EXPECT(model_open(&o, &model) == MODEL_WEIGHTS);
  o = good, o.weights_bytes++;
  EXPECT(model_open(&o, &model) == MODEL_WEIGHTS);
  o = good, o.weights_bytes = 0;
  EXPECT(model_open(&o, &model) == MODEL_WEIGHTS);
  o = good, o.weights = weights + 4;
  EXPECT(model_open(&o, &model) == MODEL_INVALID);
  o = good, o.weights = NULL;
  EXPECT(model_open(&o, &model) == MODEL_INVALID);
  o = good, o.threads = -1;
  EXPECT(model_open(&o, &model) == MODEL_INVALID);
  o = good, o.threads = INT32_MAX;
  EXPECT(model_open(&o, &model) == MODEL_INVALID && !model);
  model_close(NULL);
  EXPECT(model_session_bytes(0) == 0 && model_session_bytes(-1) == 0 && model_session_bytes(INT32_MAX) == 0);
  EXPECT(strlen(model_message((model_status)-1)) > 0 && strlen(model_message(MODEL_EVICTED)) > 0);
}

/* Draws a token from each row, as the host's state is; for rows of which none is drawn, the status. */
static void draw(const float *logits, int32_t rows, int32_t *out) {
  void *workspace = take(MODEL_SAMPLE_BYTES);
  for (int32_t i = 0; i < rows; i++) {
    model_sampling how = {.size = sizeof how, .temperature = 0.8, .top_p = 0.9, .top_k = V / 2, .seed = (uint64_t)i};
    int32_t id = -1;
    const float *row = logits + (size_t)i * V;
    const model_status status = model_sample(row, &how, NULL, 0, workspace, MODEL_SAMPLE_BYTES, &id);
    EXPECT(state_is_kept());
    out[i] = status ? -(int32_t)status : id;
  }
  free(workspace);
}

int main(int argc, char **argv) {
  EXPECT(argc == 4);
  const size_t size = model_describe(NULL)->weights_bytes;
  char *weights = take(size);
  FILE *file = fopen(argv[1], "rb");
  EXPECT(file && fread(weights, 1, size, file) == size);
  fclose(file);
  refuse_to_open(weights, size);

  model_model *model;
  const int32_t threads = atoi(argv[2]), count = atoi(argv[3]);
  const model_open_options options = {.size = sizeof options, .weights = weights, .weights_bytes = size, .threads = threads};
  EXPECT(model_open(&options, &model) == MODEL_OK);
  EXPECT(model_workspace_bytes(model, 0, 0) == 0 && model_workspace_bytes(model, CHUNK + 1, 0) == 0);
  EXPECT(model_workspace_bytes(model, 1, 2) == 0 && model_workspace_bytes(NULL, 1, 1) == 0);
  int32_t *ids = take((size_t)count * sizeof *ids);
  uint32_t state = 1;
  for (int32_t i = 0; i < count; i++) state = state * 1664525u + 1013904223u, ids[i] = (int32_t)((state >> 8) % V);

  float *logits = take((size_t)count * V * sizeof(float));
  model_session *whole = session_of(model, count), *pieces = session_of(model, count);
  feed(model, whole, ids, count, CHUNK, logits, 1);
  int32_t *drawn[2] = {take((size_t)count * sizeof *ids), take((size_t)count * sizeof *ids)};
  draw(logits, count, drawn[0]);
  floating_set(host_state = HOSTILE);
  draw(logits, count, drawn[1]);
  EXPECT(memcmp(drawn[0], drawn[1], (size_t)count * sizeof *ids) == 0);
  feed(model, pieces, ids, count, 7, logits, 0);
  share(model, ids, count < 60 ? count : 60, logits);
  keep(model, whole, ids, logits);
  travel(model, whole, ids, count, logits);
  refuse(model, ids);
  fwrite(logits, sizeof(float), (size_t)count * V, stdout);
  model_close(model);
  EXPECT(model_open(&options, &model) == MODEL_OK && state_is_kept()); /* helpers do not inherit it */
  free(pieces);
  pieces = session_of(model, count);
  feed(model, pieces, ids, count < 40 ? count : 40, CHUNK, logits, 0);
  model_close(model);
  free(whole), free(pieces), free(logits), free(ids), free(weights), free(drawn[0]), free(drawn[1]);
  return 0;
}
