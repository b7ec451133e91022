/* Evaluates token ids and writes every logit: evaluate WEIGHTS IDS LOGITS THREADS STEP [VALUES].
 *
 * IDS is a file of int32; they are evaluated STEP at a time, from an empty session. LOGITS is written as float32, one
 * row for each id. Where the program is observed, VALUES gets each value as int32 point, int32 result, int64 bytes, and
 * the bytes. Anything that fails is said on stderr, and the exit code is 1. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define EXPECT(condition, what) ((condition) ? (void)0 : fail(what))

static FILE *values;

static void fail(const char *what) {
  fprintf(stderr, "evaluate: %s\n", what);
  exit(1);
}

void observe_value(int32_t point, int32_t result, const void *data, size_t bytes);
void observe_value(int32_t point, int32_t result, const void *data, size_t bytes) {
  if (!values) return;
  const int32_t head[2] = {point, result};
  const int64_t size = (int64_t)bytes;
  EXPECT(fwrite(head, sizeof head, 1, values) == 1 && fwrite(&size, sizeof size, 1, values) == 1, "cannot write values");
  EXPECT(fwrite(data, 1, bytes, values) == bytes, "cannot write values");
}

static FILE *opened(const char *path, const char *mode) {
  FILE *file = fopen(path, mode);
  EXPECT(file, path);
  return file;
}

static void *taken(size_t bytes) {
  bytes = (bytes + MODEL_ALIGNMENT) / MODEL_ALIGNMENT * MODEL_ALIGNMENT;
  void *memory = aligned_alloc(MODEL_ALIGNMENT, bytes);
  EXPECT(memory, "out of memory");
  memset(memory, 0, bytes);
  return memory;
}

/* A whole file in aligned memory. */
static void *contents(const char *path, size_t *bytes) {
  FILE *file = opened(path, "rb");
  EXPECT(fseek(file, 0, SEEK_END) == 0, path);
  const long size = ftell(file);
  EXPECT(size >= 0 && fseek(file, 0, SEEK_SET) == 0, path);
  *bytes = (size_t)size;
  void *memory = taken(*bytes);
  EXPECT(fread(memory, 1, *bytes, file) == *bytes, path);
  fclose(file);
  return memory;
}

static void check(model_status status) { EXPECT(status == MODEL_OK, model_message(status)); }

int main(int count, char **arguments) {
  EXPECT(count >= 6, "give WEIGHTS IDS LOGITS THREADS STEP [VALUES]");
  size_t weight_bytes, id_bytes;
  const void *weights = contents(arguments[1], &weight_bytes);
  const int32_t *ids = contents(arguments[2], &id_bytes);
  FILE *logits_file = opened(arguments[3], "wb");
  const int32_t total = (int32_t)(id_bytes / sizeof *ids), step = atoi(arguments[5]);
  values = count > 6 ? opened(arguments[6], "wb") : NULL;
  model_open_options options = {.size = sizeof options, .weights = weights, .weights_bytes = weight_bytes,
                                .threads = atoi(arguments[4])};
  model_model *model;
  check(model_open(&options, &model));
  model_session *session;
  const size_t session_bytes = model_session_bytes(total);
  check(model_session_init(model, taken(session_bytes), session_bytes, &session));
  const size_t workspace_bytes = model_workspace_bytes(model, step, step), row = MODEL_VOCAB_SIZE * sizeof(float);
  void *workspace = taken(workspace_bytes);
  float *logits = taken((size_t)step * row);
  for (int32_t at = 0; at < total; at += step) {
    const int32_t n = total - at < step ? total - at : step;
    const model_item item = {.session = session, .ids = ids + at, .id_count = n, .rows_wanted = n, .logits = logits};
    check(model_eval(model, workspace, workspace_bytes, &item, 1));
    EXPECT(fwrite(logits, row, (size_t)n, logits_file) == (size_t)n, arguments[3]);
  }
  EXPECT(fclose(logits_file) == 0 && (!values || fclose(values) == 0), "cannot write the results");
  model_close(model);
  return 0;
}
