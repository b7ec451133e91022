/* A language model on any PJRT plugin: token ids in, the likeliest ids that follow out.
 *
 *     ./model PLUGIN.so COUNT ID [ID ...]
 *
 * The folder of the program holds model.h (what the programs take, written by inferc), programs/ (portable StableHLO)
 * and weights. Prompts go through `prefill`, TOKENS at a time; `greedy` makes up to MOST ids in one call, on the
 * device. Caches stay there: each call donates them and gives them back. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "pjrt.h"

typedef struct { int32_t type, rank; int64_t dims[8]; int64_t offset, bytes; } tensor; /* offset -1: a cache */

#include "model.h"

static const pjrt_api *api;
static pjrt_client *client;
static pjrt_device *device;

static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("error: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(1);
}

#define CALL(name, arguments) call(name, &(arguments), #name)

static void call(int function, void *arguments, const char *what) {
  pjrt_error *error = api->functions[function](arguments);
  if (!error) return;
  pjrt_message said = {sizeof said, NULL, error, NULL, 0};
  api->functions[PJRT_ERROR_MESSAGE](&said);
  const char *end = memchr(said.message, '\n', said.length);
  fail("%s: %.*s", what, (int)(end ? (size_t)(end - said.message) : said.length), said.message);
}

static void one(int function, void *object, const char *what) {
  pjrt_one arguments = {sizeof arguments, NULL, object};
  call(function, &arguments, what);
}

static void await(pjrt_event *event) {
  if (!event) return;
  one(PJRT_EVENT_AWAIT, event, "waiting");
  one(PJRT_EVENT_DESTROY, event, "waiting");
}

static char *mapped(const char *folder, const char *name, size_t *length) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  int file = open(path, O_RDONLY);
  struct stat facts;
  if (file < 0 || fstat(file, &facts)) fail("cannot open %s", path);
  char *data = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  if (data == MAP_FAILED) fail("cannot map %s", path);
  close(file);
  *length = (size_t)facts.st_size;
  return data;
}

static pjrt_buffer *upload(const void *data, int32_t type, const int64_t *dims, size_t rank) {
  pjrt_upload arguments = {.size = sizeof arguments, .client = client, .data = data, .type = type, .dims = dims,
                           .rank = rank, .semantics = PJRT_UNTIL_TRANSFERRED, .device = device};
  CALL(PJRT_BUFFER_FROM_HOST, arguments);
  await(arguments.transferred);
  return arguments.buffer;
}

static pjrt_buffer *numbers(const int32_t *values, int64_t count) { /* count 0: a scalar */
  return upload(values, PJRT_S32, &count, count ? 1 : 0);
}

static void download(pjrt_buffer *buffer, void *data, size_t length) {
  pjrt_download arguments = {.size = sizeof arguments, .buffer = buffer, .data = data, .length = length};
  CALL(PJRT_BUFFER_TO_HOST, arguments);
  await(arguments.event);
}

static pjrt_executable *compiled(const char *folder, const char *name) {
  /* CompileOptionsProto { executable_build_options { num_replicas: 1, num_partitions: 1 } } */
  static const char options[] = {0x1a, 0x04, 0x20, 0x01, 0x28, 0x01};
  size_t length;
  char *code = mapped(folder, name, &length);
  pjrt_program program = {sizeof program, NULL, code, length, "mlir", 4};
  pjrt_compile arguments = {.size = sizeof arguments, .client = client, .program = &program, .options = options,
                            .options_length = sizeof options};
  CALL(PJRT_CLIENT_COMPILE, arguments);
  munmap(code, length);
  return arguments.executable;
}

static pjrt_buffer *inputs[4 + TENSORS]; /* four arguments, then weights, then caches */

/* Runs a program: the first `count` results go to `results`, the rest are the new caches. */
static void run(pjrt_executable *program, pjrt_buffer **results, size_t count) {
  pjrt_buffer *all[4 + CACHES];
  pjrt_buffer *const *arguments[1] = {inputs};
  pjrt_buffer **outputs[1] = {all};
  pjrt_event *events[1] = {NULL};
  pjrt_execute_options options = {.size = sizeof options};
  pjrt_execute execution = {.size = sizeof execution, .executable = program, .options = &options,
                            .arguments = arguments, .device_count = 1, .argument_count = 4 + TENSORS,
                            .results = outputs, .events = events};
  CALL(PJRT_EXECUTE, execution);
  await(events[0]);
  for (int i = 0; i < 4; i++) one(PJRT_BUFFER_DESTROY, inputs[i], "freeing");
  for (size_t i = 0; i < CACHES; i++) {
    pjrt_buffer **cache = &inputs[4 + TENSORS - CACHES + i];
    one(PJRT_BUFFER_DESTROY, *cache, "freeing");
    *cache = all[count + i];
  }
  memcpy(results, all, count * sizeof *all);
}

static void prefill(pjrt_executable *program, const int32_t *ids, int32_t count, int32_t position) {
  int32_t tokens[TOKENS], sequence[TOKENS], positions[TOKENS], row = count - 1;
  for (int i = 0; i < TOKENS; i++) {
    tokens[i] = i < count ? ids[i] : 0;
    sequence[i] = i >= count; /* slot 1 is none: padding */
    positions[i] = position + i;
  }
  inputs[0] = numbers(tokens, TOKENS), inputs[1] = numbers(sequence, TOKENS);
  inputs[2] = numbers(positions, TOKENS), inputs[3] = numbers(&row, 1);
  pjrt_buffer *logits;
  run(program, &logits, 1);
  one(PJRT_BUFFER_DESTROY, logits, "freeing");
}

/* Evaluates `id`, then the likeliest after it, until `count` are made. */
static int32_t greedy(pjrt_executable *program, int32_t id, int32_t position, int32_t count, int32_t *made) {
  inputs[0] = numbers(&id, 1), inputs[1] = numbers(&position, 1);
  inputs[2] = numbers(&count, 0), inputs[3] = numbers(ends, ENDS);
  pjrt_buffer *results[2];
  int32_t length, all[MOST];
  run(program, results, 2);
  download(results[0], &length, sizeof length);
  download(results[1], all, sizeof all);
  for (int i = 0; i < 2; i++) one(PJRT_BUFFER_DESTROY, results[i], "freeing");
  memcpy(made, all, (size_t)length * sizeof *all);
  return length;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void open_device(const char *plugin) {
  void *library = dlopen(plugin, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail("cannot load the plugin: %s", dlerror());
  const pjrt_api *(*get)(void);
  *(void **)&get = dlsym(library, "GetPjrtApi");
  if (!get) fail("%s is no PJRT plugin: it has no GetPjrtApi", plugin);
  api = get();
  if (api->version.major != PJRT_MAJOR || api->size < sizeof *api)
    fail("%s has PJRT %d.%d and this program knows %d", plugin, api->version.major, api->version.minor, PJRT_MAJOR);
  one(PJRT_PLUGIN_INITIALIZE, NULL, "initialising");
  pjrt_create creation = {.size = sizeof creation};
  CALL(PJRT_CLIENT_CREATE, creation);
  client = creation.client;
  pjrt_devices found = {.size = sizeof found, .client = client};
  CALL(PJRT_CLIENT_ADDRESSABLE_DEVICES, found);
  if (!found.count) fail("%s has no device", plugin);
  device = found.devices[0];
  pjrt_platform platform = {.size = sizeof platform, .client = client};
  CALL(PJRT_CLIENT_PLATFORM_NAME, platform);
  fprintf(stderr, "%.*s, PJRT %d.%d\n", (int)platform.length, platform.name, api->version.major, api->version.minor);
}

static void place_tensors(const char *folder) {
  size_t length;
  char *weights = mapped(folder, "weights", &length);
  if ((int64_t)length < WEIGHT_BYTES) fail("%s/weights has %zu bytes and needs %lld", folder, length,
                                           (long long)WEIGHT_BYTES);
  for (size_t i = 0; i < TENSORS; i++) {
    const tensor *t = &tensors[i];
    void *zeros = t->offset < 0 ? calloc(1, (size_t)t->bytes) : NULL;
    if (t->offset < 0 && !zeros) fail("no memory for a cache of %lld bytes", (long long)t->bytes);
    inputs[4 + i] = upload(zeros ? zeros : weights + t->offset, t->type, t->dims, (size_t)t->rank);
    free(zeros);
  }
  munmap(weights, length);
}

int main(int count, char **words) {
  if (count < 4) fail("usage: %s PLUGIN.so COUNT ID [ID ...]", words[0]);
  int32_t wanted = atoi(words[2]), prompt = count - 3;
  if (wanted < 1 || prompt + wanted - 1 > CONTEXT) fail("the prompt and %d ids do not fit %d positions", wanted, CONTEXT);
  int32_t *ids = malloc((size_t)(prompt + wanted) * sizeof *ids);
  if (!ids) fail("no memory");
  for (int32_t i = 0; i < prompt; i++) {
    ids[i] = atoi(words[3 + i]);
    if (ids[i] < 0 || ids[i] >= VOCABULARY) fail("%s is no token id: there are 0 to %d", words[3 + i], VOCABULARY - 1);
  }
  char *slash = strrchr(words[0], '/');
  if (slash) *slash = 0;
  const char *folder = slash ? words[0] : ".";
  open_device(words[1]);
  place_tensors(folder);
  pjrt_executable *programs[2] = {compiled(folder, "programs/prefill.vhlo"), compiled(folder, "programs/greedy.vhlo")};
  int32_t position = 0, none[MOST];
  double started = seconds();
  while (position < prompt - 1) { /* the last id of the prompt begins the generation */
    int32_t piece = prompt - 1 - position < TOKENS ? prompt - 1 - position : TOKENS;
    if (position + TOKENS > CONTEXT) {
      greedy(programs[1], ids[position], position, 1, none);
      piece = 1;
    } else {
      prefill(programs[0], ids + position, piece, position);
    }
    position += piece;
  }
  double prompted = seconds();
  int32_t made = 0, length = 0;
  while (made < wanted) {
    int32_t most = wanted - made < MOST ? wanted - made : MOST;
    length = greedy(programs[1], ids[position], position, most, ids + position + 1);
    made += length;
    position += length;
    if (length < most) break;
    for (int i = 0; i < ENDS; i++)
      if (ids[position] == ends[i]) wanted = made;
  }
  double ended = seconds();
  for (int32_t i = 0; i < made; i++) printf("%d%c", ids[prompt + i], i + 1 < made ? ' ' : '\n');
  fprintf(stderr, "prompt: %d ids in %.3f s, generation: %d ids in %.3f s\n", prompt, prompted - started, made,
          ended - prompted);
  for (size_t i = 0; i < TENSORS; i++) one(PJRT_BUFFER_DESTROY, inputs[4 + i], "freeing");
  for (int i = 0; i < 2; i++) one(PJRT_EXECUTABLE_DESTROY, programs[i], "freeing");
  one(PJRT_CLIENT_DESTROY, client, "freeing");
  free(ids);
  return 0;
}
