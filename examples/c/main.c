/* Continues a text: cc -std=c11 main.c -I. libmodel.a -lm -pthread -o main && ./main "Once upon a time" */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { MOST = 32 }; /* tokens to make */

static void check(model_status status) {
  if (status == MODEL_OK) return;
  fprintf(stderr, "%s\n", model_message(status));
  exit(1);
}

static void *take(size_t bytes) {
  return aligned_alloc(MODEL_ALIGNMENT, (bytes + MODEL_ALIGNMENT - 1) / MODEL_ALIGNMENT * MODEL_ALIGNMENT);
}

int main(int argc, char **argv) {
  const char *prompt = argc > 1 ? argv[1] : "The capital of France is";
  model_model *model;
  check(model_open(&(model_open_options){.size = sizeof(model_open_options)}, &model));

  const size_t scratch_bytes = model_tokenize_workspace_bytes(model, strlen(prompt));
  void *scratch = take(scratch_bytes);
  int32_t ids[MODEL_MAX_TOKENS + MOST];
  size_t count;
  check(model_tokenize(model, prompt, strlen(prompt), 0, scratch, scratch_bytes, ids, MODEL_MAX_TOKENS, &count));

  const size_t session_bytes = model_session_bytes((int32_t)count + MOST);
  const size_t workspace_bytes = model_workspace_bytes(model, (int32_t)count, 1);
  void *memory = take(session_bytes), *workspace = take(workspace_bytes), *choosing = take(MODEL_SAMPLE_BYTES);
  float *logits = take(sizeof(float) * MODEL_VOCAB_SIZE);
  model_session *session;
  check(model_session_init(model, memory, session_bytes, &session));

  model_sampling how = {.size = sizeof how}; /* the likeliest token each time */
  model_decoder decoder = {0};
  for (size_t made = 0, fed = 0; made < MOST; made++) {
    const model_item item = {session, ids + fed, (int32_t)(count - fed), 1, logits};
    check(model_eval(model, workspace, workspace_bytes, &item, 1));
    fed = count;
    check(model_sample(logits, &how, ids, count, choosing, MODEL_SAMPLE_BYTES, &ids[count]));
    if (model_is_end(model, ids[count])) break;
    char piece[256];
    size_t bytes;
    check(model_detokenize(model, &decoder, &ids[count++], 1, piece, sizeof piece, &bytes));
    fwrite(piece, 1, bytes, stdout);
    fflush(stdout);
  }
  putchar('\n');
  model_close(model);
  free(scratch), free(memory), free(workspace), free(choosing), free(logits);
  return 0;
}
