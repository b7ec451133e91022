/* The C interface of a compiled model without a model: the logits are a hash of every id so far, so a test sees whether
 * the session holds what it should. Rings of a window: no way back by more than REWIND positions, but to 0. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#ifndef SALT
#define SALT 1
#endif
enum { ABI = 1, VOCAB = 64, CONTEXT = 600, CHUNK = 16, REWIND = 20, WEIGHTS = 4 * VOCAB };
enum { OK, INVALID, CPU, WRONG_WEIGHTS, SYSTEM, SIZE, FULL, EVICTED };

typedef struct {
  int32_t abi, vocab_size, context, chunk;
  size_t weights_bytes;
  const char *name, *target, *cpu_features, *targets;
} info;
typedef struct {
  size_t size;
  const void *weights;
  size_t weights_bytes;
  int32_t threads, pin;
  const char *target;
  void (*parallel_for)(void);
  void *pool;
  int32_t unchecked;
  const void *text;
  size_t text_bytes;
} options;
typedef struct { const int32_t *weights; int32_t evaluated; } model;
typedef struct { int32_t position, furthest, ids[CONTEXT]; } session;
typedef struct { session *session; const int32_t *ids; int32_t id_count, rows_wanted; float *logits; } item;

API const info *model_describe(const model *m) {
  static const info facts = {ABI, VOCAB, CONTEXT, CHUNK, WEIGHTS, "fake", "generic", "", "generic"};
  (void)m;
  return &facts;
}

API const char *model_message(int status) {
  static const char *const words[] = {"ok", "an argument is invalid", "cpu", "weights", "system", "too small",
                                      "the context is full: rewind", "evicted"};
  return words[status];
}

API int model_open(const options *o, model **out) {
  if (o->size != sizeof *o || o->threads < 1) return INVALID;
  if (o->weights_bytes != WEIGHTS) return WRONG_WEIGHTS;
  if ((uintptr_t)o->weights % 64) return INVALID;
  *out = calloc(1, sizeof **out);
  (*out)->weights = o->weights;
  return OK;
}

API void model_close(model *m) { free(m); }
API size_t model_session_bytes(int32_t positions) { return sizeof(session) + 0 * (size_t)positions; }
API int32_t model_position(const session *s) { return s->position; }
API size_t model_workspace_bytes(const model *m, int32_t tokens, int32_t rows) {
  return m ? 64 + 4 * ((size_t)tokens + (size_t)rows) : 0;
}

API int model_session_init(model *m, void *memory, size_t bytes, session **out) {
  if (!m || bytes < sizeof(session)) return SIZE;
  memset(memory, 0, sizeof(session));
  *out = memory;
  return OK;
}

API int model_rewind(session *s, int32_t position) {
  if (position < 0 || position > s->position) return INVALID;
  if (position > 0 && position < s->furthest - REWIND) return EVICTED;
  s->position = position;
  if (position == 0) s->furthest = 0;
  return OK;
}

API int model_eval(model *m, void *workspace, size_t bytes, const item *items, size_t count) {
  const item *it = items;
  session *s = it->session;
  if (count != 1 || it->id_count < 1 || it->id_count > CHUNK || it->rows_wanted < 0 || it->rows_wanted > it->id_count)
    return INVALID;
  if (bytes < model_workspace_bytes(m, it->id_count, it->rows_wanted)) return SIZE;
  if (it->id_count > CONTEXT - s->position) return FULL;
  memset(workspace, 0xff, bytes);
  for (int32_t t = 0; t < it->id_count; t++) {
    s->ids[s->position++] = it->ids[t];
    const int32_t row = t - (it->id_count - it->rows_wanted);
    uint32_t hash = SALT;
    for (int32_t i = 0; i < s->position; i++) hash = (hash ^ (uint32_t)s->ids[i]) * 16777619u + 2654435761u;
    for (int32_t v = 0; row >= 0 && v < VOCAB; v++)
      it->logits[row * VOCAB + v] = (float)((hash ^ (uint32_t)m->weights[v] * 40503u) * 2246822519u >> 16) / 4096.0f;
    m->evaluated++;
  }
  s->furthest = s->position > s->furthest ? s->position : s->furthest;
  return OK;
}

/* For the tests: tokens evaluated since the model was opened. */
API int32_t model_evaluated(const model *m) { return m->evaluated; }
