/* A conversation, each line of stdin is answered: cc -std=c11 chat.c -I. libmodel.a -lm -pthread -o chat && ./chat */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { POSITIONS = 2048, TURNS = 64, LINE = 4096 }; /* tokens, messages, bytes of one message at most */

static void check(model_status status) {
  if (status == MODEL_OK) return;
  fprintf(stderr, "%s\n", model_message(status));
  exit(1);
}

static void *take(size_t bytes) {
  return aligned_alloc(MODEL_ALIGNMENT, (bytes + MODEL_ALIGNMENT - 1) / MODEL_ALIGNMENT * MODEL_ALIGNMENT);
}

int main(void) {
  static char said[1 << 16], whole[1 << 17]; /* all messages; all of the conversation in the model's format */
  static int32_t ids[POSITIONS], held[POSITIONS]; /* of the conversation; those that the session holds */
  model_turn turns[TURNS];
  size_t count = 0, used = 0, bytes, total;
  model_model *model;
  model_session *session;
  check(model_open(&(model_open_options){.size = sizeof(model_open_options)}, &model));
  const size_t session_bytes = model_session_bytes(POSITIONS), work_bytes = model_workspace_bytes(model, MODEL_MAX_TOKENS, 1);
  void *memory = take(session_bytes), *work = take(work_bytes), *choosing = take(MODEL_SAMPLE_BYTES);
  float *logits = take(sizeof(float) * MODEL_VOCAB_SIZE);
  check(model_session_init(model, memory, session_bytes, &session));
  model_sampling how = {.size = sizeof how, .temperature = 0.7, .top_p = 0.95, .seed = 1};

  while (count + 2 <= TURNS && used + 2 * LINE < sizeof said && fgets(said + used, LINE, stdin)) {
    turns[count++] = (model_turn){"user", said + used, strcspn(said + used, "\n")};
    used += strlen(said + used);
    check(model_chat(model, turns, count, 1, whole, sizeof whole, &bytes));
    const size_t scratch_bytes = model_tokenize_workspace_bytes(model, bytes);
    void *scratch = take(scratch_bytes);
    check(model_tokenize(model, whole, bytes, MODEL_CHAT_FORMAT, scratch, scratch_bytes, ids, POSITIONS, &total));
    free(scratch);

    size_t fed = 0; /* what the session holds of it is not evaluated again; the last token is, for its logits */
    while (fed + 1 < total && fed < (size_t)model_position(session) && ids[fed] == held[fed]) fed++;
    if (model_rewind(session, (int32_t)fed) == MODEL_EVICTED) check(model_rewind(session, (int32_t)(fed = 0)));
    turns[count++] = (model_turn){"assistant", said + used, 0};
    model_decoder decoder = {0};
    while (total < POSITIONS && used + LINE < sizeof said) {
      for (int32_t n; fed < total; fed += (size_t)n) {
        n = total - fed < MODEL_MAX_TOKENS ? (int32_t)(total - fed) : MODEL_MAX_TOKENS;
        check(model_eval(model, work, work_bytes, &(model_item){session, ids + fed, n, 1, logits}, 1));
        memcpy(held + fed, ids + fed, (size_t)n * sizeof *ids);
      }
      check(model_sample(logits, &how, ids, total, choosing, MODEL_SAMPLE_BYTES, &ids[total]));
      if (model_is_end(model, ids[total])) break;
      check(model_detokenize(model, &decoder, &ids[total++], 1, said + used, LINE, &bytes));
      fwrite(said + used, 1, bytes, stdout), fflush(stdout);
      used += bytes, turns[count - 1].content_bytes += bytes;
    }
    putchar('\n');
  }
  model_close(model);
  return 0;
}
