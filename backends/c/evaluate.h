/* What the programs that evaluate a model share: files, memory, and values that an observed program tells. Anything that
 * fails is said on stderr, and the exit code is 1. */
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

/* Each value is written as int32 point, int32 result, int64 bytes, and the bytes. */
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

/* The model with the weights of a file. */
static model_model *opened_model(const char *path, const char *threads) {
  size_t bytes;
  const void *weights = contents(path, &bytes);
  model_open_options options = {.size = sizeof options, .weights = weights, .weights_bytes = bytes,
                                .threads = atoi(threads)};
  model_model *model;
  check(model_open(&options, &model));
  return model;
}
