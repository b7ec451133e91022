/* A model that gives embeddings as a program: texts in, their vectors out. */
#define _POSIX_C_SOURCE 200809L

#include <math.h>

#include "command.h"

typedef struct arguments {
  common common;
  const char *prompt;
  bool last, raw;
} arguments;

static const char usage[] =
    "Usage: %s [OPTION]...\n"
    "Print the embedding of a text by the model in this program: its numbers in one line.\n\n"
    "  -p, --prompt TEXT     the text; without it, each line of stdin is one\n"
    "      --last            the last token's hidden state, not the mean of all\n"
    "      --raw             as the model computes it, not scaled to length 1\n"
    COMMON_USAGE;

static arguments parse(int count, char **words) {
  arguments a = {0};
  const option options[] = {
      {"-p", "--prompt", .text = &a.prompt},
      {"", "--last", .flag = &a.last},
      {"", "--raw", .flag = &a.raw},
      COMMON_OPTIONS(a.common),
  };
  parse_options(options, sizeof options / sizeof *options, count, words);
  return a;
}

/* The ids of a text, of which the session has room; the caller's to free. */
static int32_t *tokenized(const model_model *model, const char *text, size_t bytes, int32_t *count) {
  const size_t size = model_tokenize_workspace_bytes(model, bytes);
  if (!size) fail("%s", model_message(MODEL_NO_TEXT));
  void *memory = malloc(size + MODEL_ALIGNMENT);
  int32_t *ids = malloc(sizeof(int32_t) * MODEL_MAX_POSITIONS);
  if (!memory || !ids) fail("no memory for the text");
  void *workspace = (char *)memory + (MODEL_ALIGNMENT - (uintptr_t)memory % MODEL_ALIGNMENT);
  size_t found;
  const model_status status = model_tokenize(model, text, bytes, 0, workspace, size, ids, MODEL_MAX_POSITIONS, &found);
  free(memory);
  if (status == MODEL_SIZE) fail("the text has %zu tokens, at most %d fit", found, MODEL_MAX_POSITIONS);
  check(status);
  if (!found) fail("the text is empty");
  *count = (int32_t)found;
  return ids;
}

static void print_embedding(const arguments *a, model_model *model, model_session *session, void *workspace,
                            size_t workspace_bytes, const char *text, size_t bytes) {
  static float rows[MODEL_MAX_TOKENS][MODEL_OUTPUT_WIDTH];
  static double sum[MODEL_OUTPUT_WIDTH];
  int32_t count;
  int32_t *ids = tokenized(model, text, bytes, &count);
  memset(sum, 0, sizeof sum);
  check(model_rewind(session, 0));
  for (int32_t at = 0, n; at < count; at += n) {
    n = count - at < MODEL_MAX_TOKENS ? count - at : MODEL_MAX_TOKENS;
    const int32_t wanted = !a->last ? n : at + n == count;
    check(model_eval(model, workspace, workspace_bytes, &(model_item){session, ids + at, n, wanted, rows[0]}, 1));
    for (int32_t t = 0; t < wanted; t++) {
      for (int i = 0; i < MODEL_OUTPUT_WIDTH; i++) sum[i] += (double)rows[t][i];
    }
  }
  free(ids);
  double squares = 0;
  for (int i = 0; i < MODEL_OUTPUT_WIDTH; i++) {
    if (!a->last) sum[i] /= count;
    squares += sum[i] * sum[i];
  }
  const double scale = a->raw || squares == 0 ? 1 : 1 / sqrt(squares);
  for (int i = 0; i < MODEL_OUTPUT_WIDTH; i++) printf("%s%.9g", i ? " " : "", sum[i] * scale);
  putchar('\n');
}

int main(int count, char **words) {
  const arguments a = parse(count, words);
  if (a.common.help) return printf(usage, words[0]) < 0;
  if (a.common.info) return info(), 0;
  model_model *model = open_model(&a.common, words[0]);
  const size_t bytes = model_workspace_bytes(model, MODEL_MAX_TOKENS, MODEL_MAX_TOKENS);
  const size_t session_bytes = model_session_bytes(MODEL_MAX_POSITIONS); /* the system gives what is touched */
  void *workspace = take(bytes);
  model_session *session;
  check(model_session_init(model, take(session_bytes), session_bytes, &session));
  size_t size = a.prompt ? strlen(a.prompt) : 0;
  if (a.prompt) print_embedding(&a, model, session, workspace, bytes, a.prompt, size);
  for (char *line; !a.prompt && (line = read_input(true, &size)); free(line)) {
    print_embedding(&a, model, session, workspace, bytes, line, size);
  }
  model_close(model);
  if (fflush(stdout) || ferror(stdout)) fail("cannot write the numbers");
  return 0;
}
