/* What the programs on the command line share: their options, their input, the model that they open. */
#ifndef INFERC_COMMAND_H
#define INFERC_COMMAND_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mapping.h"
#include "model.h"

/* Options of every program. */
typedef struct common {
  const char *weights, *target;
  int32_t threads;
  bool help, info;
} common;

#define COMMON_OPTIONS(c) \
  {"-t", "--threads", .integer = &(c).threads}, {"", "--target", .text = &(c).target}, \
      {"", "--weights", .text = &(c).weights}, {"", "--info", .flag = &(c).info}, {"-h", "--help", .flag = &(c).help}

#define COMMON_USAGE \
  "  -t, --threads N       threads [one for each processor]\n" \
  "      --target NAME     the variant for a kind of CPU [the best that this one can run]\n" \
  "      --weights FILE    the weights, where they are not in this program [PROGRAM.weights]\n" \
  "      --info            what this program is\n" \
  "  -h, --help            this text\n"

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

typedef struct option {
  const char *brief, *full, **text;
  int32_t *integer;
  double *real;
  bool *flag;
} option;

static double number(const char *name, const char *text, double most) {
  char *end;
  errno = 0;
  const double value = strtod(text, &end);
  if (errno || end == text || *end || !(value >= 0 && value <= most)) {
    fail("%s takes a number from 0 to %.0f, not '%s'", name, most, text);
  }
  return value;
}

static void parse_options(const option *options, size_t known, int count, char **words) {
  for (int i = 1; i < count; i++) {
    const char *word = words[i];
    size_t o = 0;
    while (o < known && strcmp(word, options[o].brief) != 0 && strcmp(word, options[o].full) != 0) o++;
    if (o == known || !*word) fail("unknown option '%s': see --help", word);
    if (options[o].flag) {
      *options[o].flag = true;
      continue;
    }
    if (++i == count) fail("%s needs a value: see --help", word);
    if (options[o].text) *options[o].text = words[i];
    if (options[o].integer) *options[o].integer = (int32_t)number(word, words[i], INT32_MAX);
    if (options[o].real) *options[o].real = number(word, words[i], 1e6);
  }
}

/* All of stdin, or its next line without the end; null at the end of input. */
static char *read_input(bool line, size_t *bytes) {
  size_t room = 4096, used = 0;
  char *text = malloc(room);
  int c = 0;
  while (text && (c = getchar()) != EOF && !(line && c == '\n')) {
    text[used++] = (char)c;
    if (used == room) text = realloc(text, room *= 2);
  }
  if (!text) fail("no memory for the input");
  *bytes = used;
  if (line && c == EOF && used == 0) return NULL;
  return text;
}

static model_model *open_model(const common *a, const char *program) {
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

static void info(void) {
  const model_info *i = model_describe(NULL);
  printf("%s\nvariant %s of %s\ngives %s, %d floats of a token\n"
         "vocabulary %d, context %d, weights %.1f MB\n", i->name, i->target, i->targets, i->output,
         (int)i->output_width, (int)i->vocab_size, (int)i->context, (double)i->weights_bytes / 1e6);
}

#endif
