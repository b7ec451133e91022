/* The model as a program: a prompt in, its continuation out. */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mapping.h"
#include "model.h"

typedef struct arguments {
  const char *prompt, *ids, *weights, *target;
  int32_t tokens, threads;
  bool help, info;
} arguments;

static const char usage[] =
    "Usage: %s [OPTION]...\n"
    "Continue a text with the model in this program.\n\n"
    "  -p, --prompt TEXT     the text to continue; without it, what stdin has\n"
    "  -n, --tokens N        tokens to make at most [128]\n"
    "  -t, --threads N       threads [one for each processor]\n"
    "      --ids \"1 2 3\"     a prompt of token ids; ids are printed\n"
    "      --target NAME     the variant for a kind of CPU [the best that this one can run]\n"
    "      --weights FILE    the weights, where they are not in this program [PROGRAM.weights]\n"
    "      --info            what this program is\n"
    "  -h, --help            this text\n";

_Noreturn static void fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  fputs("error: ", stderr);
  vfprintf(stderr, format, values);
  fputc('\n', stderr);
  va_end(values);
  exit(1);
}

static void check(model_status status) {
  if (status != MODEL_OK) fail("%s", model_message(status));
}

/* Memory at a multiple of MODEL_ALIGNMENT, until the process ends. */
static void *take(size_t bytes) {
  char *memory = malloc(bytes + MODEL_ALIGNMENT);
  if (!memory) fail("no memory for %.1f MB", (double)bytes / 1e6);
  return memory + (MODEL_ALIGNMENT - (uintptr_t)memory % MODEL_ALIGNMENT);
}

static int32_t integer(const char *option, const char *text) {
  char *end;
  errno = 0;
  const long value = strtol(text, &end, 10);
  if (errno || end == text || *end || value < 0 || value > INT32_MAX) fail("%s takes a number, not '%s'", option, text);
  return (int32_t)value;
}

static arguments parse(int count, char **words) {
  arguments a = {.tokens = 128};
  for (int i = 1; i < count; i++) {
    const char *word = words[i];
    const char *const next = i + 1 < count ? words[i + 1] : NULL;
    const struct { const char *brief, *full, **text; int32_t *number; bool *flag; } options[] = {
        {"-p", "--prompt", &a.prompt, NULL, NULL}, {"-n", "--tokens", NULL, &a.tokens, NULL},
        {"-t", "--threads", NULL, &a.threads, NULL}, {"", "--ids", &a.ids, NULL, NULL},
        {"", "--target", &a.target, NULL, NULL}, {"", "--weights", &a.weights, NULL, NULL},
        {"", "--info", NULL, NULL, &a.info}, {"-h", "--help", NULL, NULL, &a.help},
    };
    size_t o = 0, known = sizeof options / sizeof *options;
    while (o < known && strcmp(word, options[o].brief) != 0 && strcmp(word, options[o].full) != 0) o++;
    if (o == known) fail("unknown option %s: see --help", word);
    if (options[o].flag) {
      *options[o].flag = true;
      continue;
    }
    if (!next) fail("%s needs a value: see --help", word);
    if (options[o].text) *options[o].text = next;
    else *options[o].number = integer(word, next);
    i++;
  }
  return a;
}

static model_model *open_model(const arguments *a, const char *program) {
  model_open_options options = {.size = sizeof options, .threads = a->threads, .target = a->target};
  size_t built_in;
  if (a->weights || !model_weights(&built_in)) {
    char *path = take(strlen(program) + sizeof ".weights");
    sprintf(path, "%s.weights", program);
    const char *from = a->weights ? a->weights : path;
    options.weights = map_file(from, &options.weights_bytes);
    if (!options.weights) fail("cannot read the weights %s: name them with --weights", from);
  }
  model_model *model = NULL;
  const model_status status = model_open(&options, &model);
  if (status == MODEL_INVALID && a->target) fail("no variant %s: choose of %s", a->target, model_describe(NULL)->targets);
  check(status);
  return model;
}

typedef struct text_state {
  model_model *model;
  model_session *session;
  void *workspace;
  size_t workspace_bytes;
  float *logits;
} text_state;

/* Evaluates ids, a chunk at a time; the logits are those of the last one. */
static void feed(text_state *s, const int32_t *ids, int32_t count) {
  while (count > 0) {
    const int32_t n = count < MODEL_MAX_TOKENS ? count : MODEL_MAX_TOKENS;
    const size_t need = model_workspace_bytes(s->model, n, 1);
    if (need > s->workspace_bytes) s->workspace = take(need), s->workspace_bytes = need;
    check(model_eval(s->model, s->workspace, need, &(model_item){s->session, ids, n, 1, s->logits}, 1));
    ids += n, count -= n;
  }
}

static int32_t likeliest(const float *logits) {
  int32_t best = 0;
  for (int32_t i = 1; i < MODEL_VOCAB_SIZE; i++)
    if (logits[i] > logits[best]) best = i;
  return best;
}

static int32_t *read_ids(const char *text, int32_t *count) {
  int32_t *ids = take((strlen(text) / 2 + 1) * sizeof *ids);
  *count = 0;
  for (char *end; *text; text = end) {
    const long id = strtol(text, &end, 10);
    if (end == text) {
      if (strspn(text, " ,\n") != strlen(text)) fail("--ids takes numbers with spaces between them");
      break;
    }
    if (id < 0 || id >= MODEL_VOCAB_SIZE) fail("the id %ld is outside of the vocabulary of %d", id, MODEL_VOCAB_SIZE);
    ids[(*count)++] = (int32_t)id;
    end += *end == ',';
  }
  return ids;
}

static text_state start(model_model *model, int32_t positions) {
  text_state s = {.model = model, .logits = take(sizeof(float) * MODEL_VOCAB_SIZE)};
  const int32_t most = positions < MODEL_MAX_POSITIONS ? positions : MODEL_MAX_POSITIONS;
  const size_t bytes = model_session_bytes(most);
  check(model_session_init(model, take(bytes), bytes, &s.session));
  return s;
}

static void info(void) {
  const model_info *i = model_describe(NULL);
  printf("%s\nvariant %s of %s\nvocabulary %d, context %d, weights %.1f MB\n", i->name, i->target, i->targets,
         (int)i->vocab_size, (int)i->context, (double)i->weights_bytes / 1e6);
}

int main(int count, char **words) {
  const arguments a = parse(count, words);
  if (a.help) return printf(usage, words[0]) < 0;
  if (a.info) return info(), 0;
  if (!a.ids) fail("give --ids");
  model_model *model = open_model(&a, words[0]);
  int32_t prompt_count;
  const int32_t *ids = read_ids(a.ids, &prompt_count);
  if (!prompt_count) fail("the prompt is empty");
  text_state s = start(model, prompt_count + a.tokens);
  feed(&s, ids, prompt_count);
  for (int32_t made = 0; made < a.tokens; made++) {
    const int32_t id = likeliest(s.logits);
    printf(made ? " %d" : "%d", (int)id);
    fflush(stdout);
    if (made + 1 < a.tokens) feed(&s, &id, 1);
  }
  putchar('\n');
  model_close(model);
  return 0;
}
