/* libFuzzer's harness for restored sessions: whatever bytes they come from, model_restore refuses them or makes a session
 * that can be evaluated, saved and rewound. Bytes are tried as they are, and with their sum made right, so that what lies
 * behind the checksum is reached. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "sum.h"

enum { V = MODEL_VOCAB_SIZE, MOST = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void *take(size_t bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, MODEL_ALIGNMENT, bytes ? bytes : 1)) abort();
  return memory;
}

static void attempt(model_model *model, const uint8_t *saved, size_t size) {
  const size_t bytes = model_session_bytes(64);
  void *memory = take(bytes);
  model_session *session = NULL;
  if (model_restore(model, saved, size, memory, bytes, &session) == MODEL_OK) {
    const int32_t at = model_position(session);
    if (at < 0 || at > model_capacity(session)) abort();
    const size_t again = model_save_bytes(session), need = model_workspace_bytes(model, 1, 1);
    uint8_t *copy = take(again);
    if (again != size || model_save(model, session, copy, again) || memcmp(copy, saved, size)) abort();
    void *workspace = take(need);
    float logits[V];
    const int32_t id = 1;
    const model_status status = model_eval(model, workspace, need, &(model_item){session, &id, 1, 1, logits}, 1);
    if (status != MODEL_OK && status != MODEL_CONTEXT) abort();
    if (model_rewind(session, 0)) abort();
    free(copy), free(workspace);
  } else if (session) {
    abort();
  }
  free(memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static model_model *model;
  if (!model) {
    const size_t bytes = model_describe(NULL)->weights_bytes;
    char *weights = take(bytes);
    memset(weights, 0, bytes);
    const model_open_options options = {.size = sizeof options, .weights = weights, .weights_bytes = bytes, .threads = 1};
    if (model_open(&options, &model)) abort();
  }
  if (size > MOST) return 0;
  attempt(model, data, size);
  if (size < 40) return 0;
  uint8_t *fixed = take(size);
  memcpy(fixed, data, size);
  memset(fixed + 24, 0, 8); /* the sum in the header of saved sessions */
  const uint64_t sum = sum_of(fixed, 40, 0) + sum_of(fixed + 40, size - 40, 5);
  memcpy(fixed + 24, &sum, 8);
  attempt(model, fixed, size);
  free(fixed);
  return 0;
}
