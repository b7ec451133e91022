/* How alike texts are, from -1 to 1, each to the first: ./embed "A cat sleeps." "The kitten naps." "Stocks fell." */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "embed.h"

enum { ROOM = EMBED_MAX_TOKENS }; /* tokens of a text at most */

static void check(embed_status status) {
  if (status == EMBED_OK) return;
  fprintf(stderr, "%s\n", embed_message(status));
  exit(1);
}

static void *take(size_t bytes) {
  return aligned_alloc(EMBED_ALIGNMENT, (bytes + EMBED_ALIGNMENT - 1) / EMBED_ALIGNMENT * EMBED_ALIGNMENT);
}

int main(int argc, char **argv) {
  static float rows[ROOM][EMBED_OUTPUT_WIDTH], first[EMBED_OUTPUT_WIDTH];
  embed_model *model;
  embed_session *session;
  check(embed_open(&(embed_open_options){.size = sizeof(embed_open_options)}, &model));
  const size_t session_bytes = embed_session_bytes(ROOM), work_bytes = embed_workspace_bytes(model, ROOM, ROOM);
  void *memory = take(session_bytes), *work = take(work_bytes);
  for (int a = 1; a < argc; a++) {
    const size_t bytes = strlen(argv[a]), scratch_bytes = embed_tokenize_workspace_bytes(model, bytes);
    void *scratch = take(scratch_bytes);
    int32_t ids[ROOM];
    size_t count;
    check(embed_tokenize(model, argv[a], bytes, 0, scratch, scratch_bytes, ids, ROOM, &count));
    free(scratch);
    check(embed_session_init(model, memory, session_bytes, &session));
    check(embed_eval(model, work, work_bytes, &(embed_item){session, ids, (int32_t)count, (int32_t)count, rows[0]}, 1));

    float mean[EMBED_OUTPUT_WIDTH] = {0}, length = 0, cosine = 0; /* the mean of all tokens' states, of length 1 */
    for (size_t t = 0; t < count; t++) {
      for (int i = 0; i < EMBED_OUTPUT_WIDTH; i++) mean[i] += rows[t][i] / (float)count;
    }
    for (int i = 0; i < EMBED_OUTPUT_WIDTH; i++) length += mean[i] * mean[i];
    for (int i = 0; i < EMBED_OUTPUT_WIDTH; i++) mean[i] /= sqrtf(length);
    if (a == 1) memcpy(first, mean, sizeof first);
    for (int i = 0; i < EMBED_OUTPUT_WIDTH; i++) cosine += first[i] * mean[i];
    printf("%.2f %s\n", (double)cosine, argv[a]);
  }
  embed_close(model);
  free(memory), free(work);
  return 0;
}
