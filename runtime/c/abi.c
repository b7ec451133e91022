/* The library's functions that are the same for every model. Compiled for the baseline CPU, so that model_open can
 * refuse a lesser one than the program needs. */
#define _POSIX_C_SOURCE 200809L

#include "model.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu.h"
#include "floating.h"
#include "model_program.h"
#include "parallel.h"

enum { MOST_THREADS = 1024 };

struct model_model {
  const uint8_t *weights;
  int32_t threads;
  atomic_flag busy; /* a call has the pool */
  pool pool;
  pool_helper helpers[];
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
  };
  const size_t i = (size_t)status;
  return i < sizeof messages / sizeof *messages ? messages[i] : "no such status";
}

const model_info *model_describe(void) { return &model_program.info; }

static int32_t processors(void) {
  const long found = sysconf(_SC_NPROCESSORS_ONLN);
  return found < 1 ? 1 : found > MOST_THREADS ? MOST_THREADS : (int32_t)found;
}

model_status model_open(const model_open_options *options, model_model **out_model) {
  if (!options || !out_model || options->size < sizeof *options) return MODEL_INVALID;
  if (options->threads < 0 || options->threads > MOST_THREADS) return MODEL_INVALID;
  if (!cpu_has_all(model_program.cpu_features)) return MODEL_CPU;
  if (options->weights_bytes != model_program.info.weights_bytes) return MODEL_WEIGHTS;
  if ((!options->weights && options->weights_bytes) || !is_aligned(options->weights)) return MODEL_INVALID;
  const int32_t threads = options->threads ? options->threads : processors();
  model_model *model = calloc(1, sizeof *model + (size_t)(threads - 1) * sizeof(pool_helper));
  if (!model) return MODEL_SYSTEM;
  model->weights = options->weights;
  model->threads = threads;
  atomic_flag_clear(&model->busy);
  if (!pool_start(&model->pool, threads, model->helpers)) {
    free(model);
    return MODEL_SYSTEM;
  }
  *out_model = model;
  return MODEL_OK;
}

void model_close(model_model *model) {
  if (!model) return;
  pool_stop(&model->pool);
  free(model);
}

/* What one call on a model must undo at its end. */
typedef struct visit {
  run run;
  bool has_pool;
  floating_state before;
} visit;

static visit visit_begin(model_model *model, char *const *sessions, int32_t session_count) {
  visit v = {.has_pool = !atomic_flag_test_and_set(&model->busy), .before = floating_begin()};
  v.run = (run){
      .threads = v.has_pool ? model->threads : 1,
      .session_count = session_count,
      .sessions = sessions,
      .weights = model->weights,
      .pool = &model->pool,
      .parallel_for = pool_for,
  };
  return v;
}

static void visit_end(model_model *model, const visit *v) {
  floating_set(v->before);
  if (v->has_pool) atomic_flag_clear(&model->busy);
}
