/* A PJRT plugin that computes nothing: it checks how it is called. `greedy` makes the ids after the one given. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pjrt.h"

typedef struct { int32_t type, rank; int64_t dims[8]; int64_t offset, bytes; } tensor;
#include "model.h"

struct pjrt_error { const char *text; };
struct pjrt_buffer { size_t length; int donated; char data[]; };
struct pjrt_executable { int greedy; };
static int buffers, misuses, programs;
static char somewhere;

static pjrt_error *error(const char *text) {
  pjrt_error *made = malloc(sizeof *made);
  made->text = text;
  return made;
}

static pjrt_buffer *buffer(const void *data, size_t length) {
  pjrt_buffer *made = calloc(1, sizeof *made + length);
  made->length = length;
  if (data) memcpy(made->data, data, length);
  buffers++;
  return made;
}

static pjrt_error *nothing(void *arguments) { (void)arguments; return NULL; }

static pjrt_error *say(void *arguments) {
  pjrt_message *m = arguments;
  m->message = m->error->text;
  m->length = strlen(m->message);
  return NULL;
}

static pjrt_error *create(void *arguments) {
  ((pjrt_create *)arguments)->client = (pjrt_client *)&somewhere;
  return NULL;
}

static pjrt_error *destroy(void *arguments) {
  (void)arguments;
  fprintf(stderr, "plugin: %d buffers are left, %d misuses\n", buffers, misuses);
  return NULL;
}

static pjrt_error *name(void *arguments) {
  pjrt_platform *p = arguments;
  p->name = "fake";
  p->length = 4;
  return NULL;
}

static pjrt_error *devices(void *arguments) {
  static pjrt_device *only = (pjrt_device *)&somewhere;
  pjrt_devices *d = arguments;
  d->devices = &only;
  d->count = 1;
  return NULL;
}

static pjrt_error *compile(void *arguments) {
  pjrt_compile *c = arguments;
  if (c->program->format_length != 4 || memcmp(c->program->format, "mlir", 4)) return error("no format is given");
  if (c->program->length < 4 || memcmp(c->program->code, "ML\xefR", 4)) return error("the program is no StableHLO\nat all");
  c->executable = malloc(sizeof *c->executable);
  c->executable->greedy = programs++; /* the host compiles prefill first */
  return NULL;
}

static pjrt_error *from_host(void *arguments) {
  pjrt_upload *u = arguments;
  size_t length = u->type == PJRT_F32 || u->type == PJRT_S32 ? 4 : u->type == PJRT_U8 || u->type == PJRT_S8 ? 1 : 2;
  for (size_t i = 0; i < u->rank; i++) length *= (size_t)u->dims[i];
  u->buffer = buffer(u->data, length);
  return NULL;
}

static pjrt_error *execute(void *arguments) {
  pjrt_execute *e = arguments;
  pjrt_buffer *const *in = e->arguments[0], **out = e->results[0];
  if (e->argument_count != 4 + TENSORS || e->device_count != 1) return error("another number of arguments");
  for (int i = 0; i < TENSORS; i++) {
    misuses += in[4 + i]->donated || in[4 + i]->length != (size_t)tensors[i].bytes;
    in[4 + i]->donated = i >= TENSORS - CACHES;
  }
  int first = e->executable->greedy ? 2 : 1;
  if (e->executable->greedy) {
    int32_t id, count, ids[MOST] = {0};
    memcpy(&id, in[0]->data, 4);
    memcpy(&count, in[2]->data, 4);
    for (int i = 0; i < count; i++) ids[i] = id + 1 + i;
    out[0] = buffer(&count, 4);
    out[1] = buffer(ids, sizeof ids);
  } else {
    out[0] = buffer(NULL, VOCABULARY * 4);
  }
  for (int i = 0; i < CACHES; i++) out[first + i] = buffer(NULL, (size_t)tensors[TENSORS - CACHES + i].bytes);
  return NULL;
}

static pjrt_error *to_host(void *arguments) {
  pjrt_download *d = arguments;
  if (d->length != d->buffer->length) return error("another number of bytes");
  memcpy(d->data, d->buffer->data, d->length);
  return NULL;
}

static pjrt_error *free_buffer(void *arguments) {
  buffers--;
  free(((pjrt_one *)arguments)->object);
  return NULL;
}

static pjrt_error *free_program(void *arguments) {
  free(((pjrt_one *)arguments)->object);
  return NULL;
}

const pjrt_api *GetPjrtApi(void) {
  static pjrt_api api;
  api.size = sizeof api;
  api.version.minor = 200;
  api.functions[PJRT_ERROR_MESSAGE] = say;
  api.functions[PJRT_PLUGIN_INITIALIZE] = nothing;
  api.functions[PJRT_CLIENT_CREATE] = create;
  api.functions[PJRT_CLIENT_DESTROY] = destroy;
  api.functions[PJRT_CLIENT_PLATFORM_NAME] = name;
  api.functions[PJRT_CLIENT_ADDRESSABLE_DEVICES] = devices;
  api.functions[PJRT_CLIENT_COMPILE] = compile;
  api.functions[PJRT_BUFFER_FROM_HOST] = from_host;
  api.functions[PJRT_EXECUTE] = execute;
  api.functions[PJRT_BUFFER_TO_HOST] = to_host;
  api.functions[PJRT_BUFFER_DESTROY] = free_buffer;
  api.functions[PJRT_EXECUTABLE_DESTROY] = free_program;
  return &api;
}
