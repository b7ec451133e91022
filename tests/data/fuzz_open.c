/* libFuzzer's harness for what model_open is given: weights and text tables that are cut short, too long or altered,
 * and options of older and newer programs. Altered weights are refused; where they are not checked, or only the tables are
 * altered, the model that opens can be used. WEIGHTS and TEXT are the files that belong to the model. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "sum.h"

enum { V = MODEL_VOCAB_SIZE, HEAD = 8, EDIT = 5, EDITS = 8 };
enum { UNCHECKED = 1, GIVE_TEXT = 2, WHOLE_TEXT = 4, EDIT_TEXT = 8, FIX_SUM = 16, OTHER_SIZE = 32 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int condition) {
  if (!condition) abort();
}

static void *take(size_t bytes) {
  void *memory = NULL;
  check(posix_memalign(&memory, MODEL_ALIGNMENT, bytes ? bytes : 1) == 0);
  return memory;
}

typedef struct file {
  uint8_t *data;
  size_t size;
} file;

static file read_file(const char *path) {
  FILE *from = fopen(path, "rb");
  check(from && fseek(from, 0, SEEK_END) == 0);
  file f = {.size = (size_t)ftell(from)};
  rewind(from);
  f.data = take(f.size);
  check(fread(f.data, 1, f.size, from) == f.size);
  fclose(from);
  return f;
}

static uint32_t number(const uint8_t *at) {
  return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* The first bytes of a file, or all and some more, at the end of a heap block, with single bytes altered. */
static file altered(file whole, size_t size, const uint8_t *edits, size_t count) {
  file f = {take(size), size};
  memset(f.data, 0, size);
  memcpy(f.data, whole.data, size < whole.size ? size : whole.size);
  for (size_t i = 0; size && i < count; i++) f.data[number(edits + EDIT * i) % size] ^= edits[EDIT * i + 4];
  return f;
}

/* Whatever the weights and tables are, what opened is used without an access outside of its memory. */
static void use(model_model *model) {
  const size_t bytes = model_session_bytes(8), need = model_workspace_bytes(model, 2, 1);
  void *memory = take(bytes), *workspace = take(need), *choosing = take(MODEL_SAMPLE_BYTES);
  float *logits = take(V * sizeof(float));
  model_session *session;
  check(model_session_init(model, memory, bytes, &session) == MODEL_OK);
  const int32_t ids[] = {1, V - 1};
  check(model_eval(model, workspace, need, &(model_item){session, ids, 2, 1, logits}, 1) == MODEL_OK);
  model_sampling how = {.size = sizeof how, .temperature = 1, .top_p = 0.5};
  int32_t id = -1;
  if (model_sample(logits, &how, ids, 2, choosing, MODEL_SAMPLE_BYTES, &id) == MODEL_OK) check(id >= 0 && id < V);
  const char text[] = "The rivers of 2026";
  const size_t scratch_bytes = model_tokenize_workspace_bytes(model, sizeof text - 1);
  void *scratch = take(scratch_bytes);
  int32_t made[64];
  size_t count = 0, written = 0;
  char out[256];
  if (model_tokenize(model, text, sizeof text - 1, 1, scratch, scratch_bytes, made, 64, &count) == MODEL_OK) {
    for (size_t i = 0; i < count; i++) check(made[i] >= 0 && made[i] < V);
    model_detokenize(model, &(model_decoder){0}, made, count, out, sizeof out, &written);
  }
  model_chat(model, &(model_turn){"user", text, sizeof text - 1}, 1, 1, out, sizeof out, &written);
  free(memory), free(workspace), free(choosing), free(logits), free(scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static file weights, text;
  if (!weights.data) weights = read_file(WEIGHTS), text = read_file(TEXT);
  if (size < HEAD) return 0;
  const int flags = data[0];
  const size_t claimed = number(data + 1), edits = (size - HEAD) / EDIT < EDITS ? (size - HEAD) / EDIT : EDITS;
  size_t given = flags & OTHER_SIZE ? claimed % (2 * weights.size) : weights.size;
  file w = altered(weights, given, data + HEAD, flags & EDIT_TEXT ? 0 : edits), t = {0};
  if (flags & GIVE_TEXT) {
    t = flags & WHOLE_TEXT ? altered(text, text.size, data + HEAD, flags & EDIT_TEXT ? edits : 0)
                           : altered((file){(uint8_t *)data + HEAD, size - HEAD}, size - HEAD, NULL, 0);
    if (flags & FIX_SUM && t.size >= 64) { /* so that what lies behind the sum is reached */
      const uint64_t sum = sum_of(t.data + 64, t.size - 64, 0);
      memcpy(t.data + 24, &sum, 8);
    }
  }
  model_open_options options = {
      .size = data[5] % 3 ? sizeof options : data[5],
      .weights = w.data, .weights_bytes = w.size, .threads = data[6] % 3,
      .unchecked = flags & UNCHECKED, .text = t.size ? t.data : NULL, .text_bytes = t.size,
  };
  model_model *model = NULL;
  const model_status status = model_open(&options, &model);
  check((status == MODEL_OK) == (model != NULL) && *model_message(status));
  const int same = w.size == weights.size && !memcmp(w.data, weights.data, w.size);
  if (w.size && w.size != weights.size) check(status != MODEL_OK);
  if (!same && edits == 1 && !options.unchecked) check(status != MODEL_OK); /* sums of several edits may agree */
  if (same && !t.size && options.size == sizeof options) check(status == MODEL_OK);
  if (model) use(model);
  model_close(model);
  free(w.data), free(t.data);
  return 0;
}
