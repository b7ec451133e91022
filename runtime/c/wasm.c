/* What JavaScript calls beside the interface: structs are filled here, and the threads that help wait here. */
#include "model.h"

#if defined(__wasm_atomics__)
#include <stdatomic.h>

enum { SPINS = 20000 };

/* One region at a time. A ticket is the region's number << 32 | its tasks that nobody has claimed: who claims one knows
 * that the region is open until the task is done. */
static struct {
  _Atomic uint64_t ticket;
  _Atomic int32_t number, undone, asleep;
  void (*task)(void *argument, int32_t i);
  void *argument;
} gang;

static void work(int32_t number) {
  uint64_t ticket = atomic_load(&gang.ticket);
  while ((int32_t)(ticket >> 32) == number && (uint32_t)ticket > 0) {
    if (!atomic_compare_exchange_weak(&gang.ticket, &ticket, ticket - 1)) continue;
    gang.task(gang.argument, (int32_t)(uint32_t)ticket - 1);
    atomic_fetch_sub(&gang.undone, 1);
    ticket = atomic_load(&gang.ticket);
  }
}

static void gang_for(void *pool, int32_t count, void (*task)(void *argument, int32_t i), void *argument) {
  (void)pool;
  gang.task = task, gang.argument = argument;
  atomic_store(&gang.undone, count);
  const int32_t number = (int32_t)((uint32_t)atomic_load(&gang.number) + 1);
  atomic_store(&gang.ticket, (uint64_t)(uint32_t)number << 32 | (uint32_t)count);
  atomic_store(&gang.number, number);
  if (atomic_load(&gang.asleep)) __builtin_wasm_memory_atomic_notify((int *)&gang.number, UINT32_MAX);
  work(number);
  while (atomic_load(&gang.undone)) {}
}

/* A helper's whole life; its thread is ended from outside. */
MODEL_API void model_js_help(void);
void model_js_help(void) {
  for (int32_t seen = 0;;) {
    int32_t number = seen;
    for (int i = 0; i < SPINS && number == seen; i++) number = atomic_load(&gang.number);
    if (number == seen) {
      atomic_fetch_add(&gang.asleep, 1);
      __builtin_wasm_memory_atomic_wait32((int *)&gang.number, seen, -1);
      atomic_fetch_sub(&gang.asleep, 1);
    } else {
      seen = number;
      work(number);
    }
  }
}
#else
#define gang_for NULL
#endif

MODEL_API model_status model_js_open(const void *weights, size_t bytes, int32_t threads, model_model **out_model);
model_status model_js_open(const void *weights, size_t bytes, int32_t threads, model_model **out_model) {
  const model_open_options options = {
      .size = sizeof options, .weights = weights, .weights_bytes = bytes, .threads = threads,
      .parallel_for = threads > 1 ? gang_for : NULL,
  };
  return model_open(&options, out_model);
}

MODEL_API model_status model_js_eval(model_model *model, void *workspace, size_t bytes, model_session *session,
                                     const int32_t *ids, int32_t id_count, int32_t rows_wanted, float *logits);
model_status model_js_eval(model_model *model, void *workspace, size_t bytes, model_session *session,
                           const int32_t *ids, int32_t id_count, int32_t rows_wanted, float *logits) {
  return model_eval(model, workspace, bytes, &(model_item){session, ids, id_count, rows_wanted, logits}, 1);
}

/* Bytes of a model_sampling and of a model_decoder; a decoder begins as zeros. */
MODEL_API size_t model_js_sampling_bytes(void);
size_t model_js_sampling_bytes(void) { return sizeof(model_sampling); }
MODEL_API size_t model_js_decoder_bytes(void);
size_t model_js_decoder_bytes(void) { return sizeof(model_decoder); }

MODEL_API void model_js_sampling(model_sampling *how, double temperature, int32_t top_k, double top_p, double min_p,
                                 double repetition_penalty, int32_t repetition_window, double seed);
void model_js_sampling(model_sampling *how, double temperature, int32_t top_k, double top_p, double min_p,
                       double repetition_penalty, int32_t repetition_window, double seed) {
  *how = (model_sampling){
      .size = sizeof *how, .repetition_penalty = repetition_penalty, .repetition_window = repetition_window,
      .top_k = top_k, .top_p = top_p, .min_p = min_p, .temperature = temperature, .seed = (uint64_t)seed,
  };
}
