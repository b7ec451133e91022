/* Several texts at once, all in one pass over the weights a token: ./many "Once upon a time" "The sea is" "2 + 2 =" */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { MOST = 16, TEXTS = 8, ROOM = 64 }; /* tokens to make, texts and tokens of a prompt at most */

typedef struct text {
  model_session *session;
  model_decoder decoder;
  int32_t ids[ROOM + MOST];
  size_t count, fed, bytes;
  float logits[MODEL_VOCAB_SIZE];
  char made[4096];
} text;

static void check(model_status status) {
  if (status == MODEL_OK) return;
  fprintf(stderr, "%s\n", model_message(status));
  exit(1);
}

static void *take(size_t bytes) {
  return aligned_alloc(MODEL_ALIGNMENT, (bytes + MODEL_ALIGNMENT - 1) / MODEL_ALIGNMENT * MODEL_ALIGNMENT);
}

int main(int argc, char **argv) {
  static text texts[TEXTS];
  const size_t count = argc > TEXTS ? TEXTS : (size_t)argc - 1;
  model_model *model;
  check(model_open(&(model_open_options){.size = sizeof(model_open_options)}, &model));
  const size_t session_bytes = model_session_bytes(ROOM + MOST);
  int32_t tokens = 0;
  for (size_t i = 0; i < count; i++) {
    const size_t bytes = strlen(argv[i + 1]), scratch_bytes = model_tokenize_workspace_bytes(model, bytes);
    void *scratch = take(scratch_bytes);
    check(model_tokenize(model, argv[i + 1], bytes, 0, scratch, scratch_bytes, texts[i].ids, ROOM, &texts[i].count));
    check(model_session_init(model, take(session_bytes), session_bytes, &texts[i].session));
    tokens += (int32_t)texts[i].count;
    free(scratch);
  }
  const size_t work_bytes = model_workspace_bytes(model, tokens, (int32_t)count);
  void *work = take(work_bytes), *choosing = take(MODEL_SAMPLE_BYTES);
  model_sampling how = {.size = sizeof how};
  for (int made = 0; made < MOST; made++) {
    model_item items[TEXTS];
    size_t active = 0, bytes;
    for (text *t = texts; t < texts + count; t++) {
      if (t->fed == t->count) continue; /* it has ended */
      items[active++] = (model_item){t->session, t->ids + t->fed, (int32_t)(t->count - t->fed), 1, t->logits};
    }
    if (!active) break;
    check(model_eval(model, work, work_bytes, items, active));
    for (text *t = texts; t < texts + count; t++) {
      if (t->fed == t->count) continue;
      t->fed = t->count;
      check(model_sample(t->logits, &how, t->ids, t->count, choosing, MODEL_SAMPLE_BYTES, &t->ids[t->count]));
      if (model_is_end(model, t->ids[t->count])) continue;
      char *to = t->made + t->bytes;
      check(model_detokenize(model, &t->decoder, &t->ids[t->count++], 1, to, sizeof t->made - t->bytes, &bytes));
      t->bytes += bytes;
    }
  }
  for (size_t i = 0; i < count; i++) printf("%s%.*s\n", argv[i + 1], (int)texts[i].bytes, texts[i].made);
  model_close(model);
  return 0;
}
