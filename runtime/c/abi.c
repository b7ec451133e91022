/* The library's functions that are the same for every model. Compiled for the baseline CPU, so that model_open can
 * choose the variant of the program that this CPU can run, or refuse a CPU that can run none. */
#define _GNU_SOURCE

#include "model.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <malloc.h>
#include <pthread.h>
#else
#include <unistd.h>
#endif

#include "cpu.h"
#include "floating.h"
#include "model_program.h"
#include "parallel.h"
#include "sum.h"
#include "text_tables.h"

enum { MOST_THREADS = 1024 };

struct model_model {
  const model_program_table *program;
  const uint8_t *weights;
  text_tables text;
  int32_t threads;
  atomic_flag busy; /* a call has the pool */
  model_parallel_for host_for; /* the host's threads in place of the pool, or null */
  void *host_pool;
  pool pool;
  pool_worker workers[];
};

static bool is_aligned(const void *p) { return (uintptr_t)p % MODEL_ALIGNMENT == 0; }

const char *model_message(model_status status) {
  static const char *const messages[] = {
      [MODEL_OK] = "no error",
      [MODEL_INVALID] = "an argument is out of its range, null or not aligned: see the function's comment in the header",
      [MODEL_CPU] = "this CPU lacks a feature that the model was compiled for: compile it for a lesser target",
      [MODEL_WEIGHTS] = "the weights are not those that the model was compiled with: give the whole file it came with",
      [MODEL_SYSTEM] = "the system gave no memory or no threads: ask for fewer threads",
      [MODEL_SIZE] = "the memory given is too small: use the size function",
      [MODEL_CONTEXT] = "the tokens do not fit: give the session more memory, up to the model's context, or rewind it",
      [MODEL_EVICTED] = "a windowed layer has forgotten that position: rewind less far, or to 0",
      [MODEL_DAMAGED] = "the saved session is truncated, altered or of another model: evaluate its text again",
      [MODEL_TABLES] = "the text tables are damaged or not this model's: give the whole file that the model came with",
      [MODEL_NO_TEXT] = "the model has no text tables, or no chat format in them: give model_open the file it came with",
      [MODEL_ENCODING] = "the text is no UTF-8: convert it",
      [MODEL_TEMPLATE] = "the chat template refuses these messages, or treats them in its own ways: write the text yourself",
      [MODEL_LOGITS] = "the logits have a NaN or no finite greatest: the weights are damaged",
  };
  const size_t i = (size_t)status;
  return i < sizeof messages / sizeof *messages ? messages[i] : "no such status";
}

static const model_program_table *const programs[] = {
    /* the best first */
    @PROGRAMS@
};

enum { PROGRAMS = sizeof programs / sizeof *programs };

/* The best variant that this CPU can run, of those with that name if it is not null; null where there is none. */
static const model_program_table *choose(const char *target) {
  for (size_t i = 0; i < PROGRAMS; i++) {
    if (target && strcmp(programs[i]->info.target, target) != 0) continue;
    if (cpu_has_all(programs[i]->cpu_features)) return programs[i];
  }
  return NULL;
}

static bool is_target(const char *name) {
  for (size_t i = 0; i < PROGRAMS; i++) {
    if (strcmp(programs[i]->info.target, name) == 0) return true;
  }
  return false;
}

const model_info *model_describe(const model_model *model) {
  const model_program_table *program = model ? model->program : choose(NULL);
  return program ? &program->info : &programs[PROGRAMS - 1]->info;
}

#if defined(_WIN32)
static long processors_online(void) { return pthread_num_processors_np(); }
static void *take_aligned(size_t alignment, size_t bytes) { return _aligned_malloc(bytes, alignment); }
static void give_aligned(void *memory) { _aligned_free(memory); }
#else
static long processors_online(void) { return sysconf(_SC_NPROCESSORS_ONLN); }
static void *take_aligned(size_t alignment, size_t bytes) { return aligned_alloc(alignment, bytes); }
static void give_aligned(void *memory) { free(memory); }
#endif

static int32_t processors(void) {
  const long found = processors_online();
  return found < 1 ? 1 : found > MOST_THREADS ? MOST_THREADS : (int32_t)found;
}

const void *model_weights(size_t *out_bytes) {
  *out_bytes = model_own_weights.bytes;
  return model_own_weights.data;
}

/* What every caller knows of the options: those of the first version. */
enum { LEAST_OPTIONS = offsetof(model_open_options, unchecked) };

static bool are_the_weights(model_model *model);

model_status model_open(const model_open_options *given, model_model **out_model) {
  if (!given || !out_model || given->size < LEAST_OPTIONS) return MODEL_INVALID;
  model_open_options options = {0};
  memcpy(&options, given, size_min(given->size, sizeof options));
  if (options.threads < 0 || options.threads > MOST_THREADS) return MODEL_INVALID;
  if (options.target && !is_target(options.target)) return MODEL_INVALID;
  const model_program_table *program = choose(options.target);
  if (!program) return MODEL_CPU;
  const bool built_in = !options.weights_bytes && model_own_weights.data;
  if (built_in) options.weights = model_own_weights.data, options.weights_bytes = model_own_weights.bytes;
  if (options.weights_bytes != program->info.weights_bytes) return MODEL_WEIGHTS;
  if ((!options.weights && options.weights_bytes) || !is_aligned(options.weights)) return MODEL_INVALID;
  if (!options.text_bytes) options.text = model_own_weights.text, options.text_bytes = model_own_weights.text_bytes;
  text_tables text = {0};
  if (options.text_bytes && (!options.text || !is_aligned(options.text))) return MODEL_INVALID;
  if (options.text_bytes && !text_open(options.text, options.text_bytes, &text)) return MODEL_TABLES;
  if (options.text_bytes && text_vocabulary(&text) > program->info.vocab_size) return MODEL_TABLES;
  const int32_t threads = options.threads ? options.threads : processors();
  const int32_t own = options.parallel_for ? 1 : threads;
  const size_t bytes = sizeof(model_model) + (size_t)own * sizeof(pool_worker);
  model_model *model = take_aligned(_Alignof(model_model), bytes);
  if (!model) return MODEL_SYSTEM;
  memset(model, 0, bytes);
  model->program = program;
  model->weights = options.weights;
  model->text = text;
  model->threads = threads;
  model->host_for = options.parallel_for;
  model->host_pool = options.pool;
  atomic_flag_clear(&model->busy);
  if (!pool_start(&model->pool, own, model->workers)) {
    give_aligned(model);
    return MODEL_SYSTEM;
  }
  if (options.pin) pool_pin(&model->pool);
  if (!built_in && !options.unchecked && !are_the_weights(model)) {
    model_close(model);
    return MODEL_WEIGHTS;
  }
  *out_model = model;
  return MODEL_OK;
}

void model_close(model_model *model) {
  if (!model) return;
  pool_stop(&model->pool);
  give_aligned(model);
}

/* A region on the host's threads: each task is one worker, which claims pieces until none is left. */
typedef struct host_region {
  parallel_body *body;
  const void *args;
  int32_t count, grain;
  _Atomic int64_t next;
} host_region;

static void host_worker(void *argument, int32_t worker) {
  host_region *h = argument;
  const floating_state before = floating_begin();
  for (int64_t begin; (begin = atomic_fetch_add_explicit(&h->next, h->grain, memory_order_relaxed)) < h->count;) {
    h->body(h->args, (int32_t)begin, h->count - begin < h->grain ? h->count : (int32_t)begin + h->grain, worker);
  }
  floating_set(before);
}

static void host_for(void *argument, int32_t count, int32_t grain, parallel_body *body, const void *args) {
  const model_model *model = argument;
  host_region h = {.body = body, .args = args, .count = count, .grain = int_max(grain, 1)};
  const int64_t pieces = ((int64_t)count + h.grain - 1) / h.grain;
  model->host_for(model->host_pool, pieces < model->threads ? (int32_t)pieces : model->threads, host_worker, &h);
}

/* What one call on a model must undo at its end. */
typedef struct visit {
  run run;
  bool has_pool;
  floating_state before;
} visit;

static visit visit_begin(model_model *model, char *const *sessions, int32_t session_count) {
  const bool host = model->host_for != NULL;
  visit v = {.has_pool = !host && !atomic_flag_test_and_set(&model->busy), .before = floating_begin()};
  v.run = (run){
      .threads = host || v.has_pool ? model->threads : 1,
      .session_count = session_count,
      .sessions = sessions,
      .weights = model->weights,
      .pool = host ? (void *)model : &model->pool,
      .parallel_for = host ? host_for : pool_for,
  };
  return v;
}

static void visit_end(model_model *model, const visit *v) {
  floating_set(v->before);
  if (v->has_pool) atomic_flag_clear(&model->busy);
}

/* ---- The weights' sum ---- */

typedef struct sum_args {
  const uint8_t *bytes;
  size_t size;
  _Atomic uint64_t *total;
} sum_args;

static void sum_pieces(const void *argument, int32_t begin, int32_t end, int32_t worker) {
  const sum_args *a = argument;
  (void)worker;
  const size_t from = (size_t)begin * SUM_PIECE, to = size_min((size_t)end * SUM_PIECE, a->size);
  atomic_fetch_add_explicit(a->total, sum_of(a->bytes + from, to - from, from / 8), memory_order_relaxed);
}

/* Whether the weights are, to the byte, those that the model was compiled with. */
static bool are_the_weights(model_model *model) {
  const size_t size = model->program->info.weights_bytes;
  if (!model_own_weights.sum) return true; /* a library that was built before they were packed */
  _Atomic uint64_t total = 0;
  const visit v = visit_begin(model, NULL, 0);
  const sum_args args = {model->weights, size, &total};
  parallel(&v.run, (int32_t)((size + SUM_PIECE - 1) / SUM_PIECE), 1, sum_pieces, &args);
  visit_end(model, &v);
  return (atomic_load(&total) | 1) == model_own_weights.sum;
}
