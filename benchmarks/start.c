/* Opens a compiled model and evaluates one token: what the library alone costs to start.
 *
 *     start FILE OFFSET BYTES THREADS
 *
 * Linked with the library; the weights are the BYTES at OFFSET of FILE. Prints the monotonic clock in seconds, first when the
 * model and a session are ready, then when the first logits are there. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "model.h"

enum { POSITIONS = 256 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *memory(size_t bytes) {
  void *found = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return found == MAP_FAILED ? NULL : found;
}

int main(int argc, char **argv) {
  if (argc != 5) return fprintf(stderr, "start FILE OFFSET BYTES THREADS\n"), 2;
  const int file = open(argv[1], O_RDONLY);
  const size_t bytes = strtoull(argv[3], NULL, 10);
  void *weights = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, (off_t)strtoll(argv[2], NULL, 10));
  if (file < 0 || weights == MAP_FAILED) return perror(argv[1]), 1;

  model_model *model = NULL;
  model_session *session = NULL;
  const model_open_options options = {sizeof options, weights, bytes, atoi(argv[4])};
  model_status status = model_open(&options, &model);
  const size_t session_bytes = model_session_bytes(POSITIONS);
  if (status == MODEL_OK) status = model_session_init(model, memory(session_bytes), session_bytes, &session);
  if (status != MODEL_OK) return fprintf(stderr, "%s\n", model_message(status)), 1;
  printf("%.6f\n", now());

  const int32_t id = 1;
  float *logits = memory(MODEL_VOCAB_SIZE * sizeof *logits);
  const size_t workspace_bytes = model_workspace_bytes(model, 1, 1);
  const model_item item = {session, &id, 1, 1, logits};
  status = model_eval(model, memory(workspace_bytes), workspace_bytes, &item, 1);
  if (status != MODEL_OK) return fprintf(stderr, "%s\n", model_message(status)), 1;
  printf("%.6f\n", now());
  model_close(model);
  return 0;
}
