
/* ---- Sampling ---- */

#include <math.h>

#include "sampler.h"

static bool is_sampling(const model_sampling *how) {
  if (!how || how->size < sizeof *how || how->top_k < 0 || how->repetition_window < 0) return false;
  if (!(how->temperature >= 0 && how->temperature < INFINITY)) return false;
  if (!(how->top_p >= 0 && how->top_p <= 1) || !(how->min_p >= 0 && how->min_p <= 1)) return false;
  return how->repetition_penalty >= 0;
}

/* The logits as candidates, penalised. */
static void penalise(const float *logits, const model_sampling *how, const int32_t *ids, size_t count, candidate *all) {
  for (int32_t i = 0; i < MODEL_VOCAB_SIZE; i++) all[i] = (candidate){logits[i], i};
  const double penalty = how->repetition_penalty;
  if (penalty != 0 && penalty != 1) {
    const size_t recent = size_min(count, (size_t)how->repetition_window);
    for (size_t i = count - recent; i < count; i++) {
      if (ids[i] < 0 || ids[i] >= MODEL_VOCAB_SIZE) continue;
      const double logit = logits[ids[i]]; /* from the logits as given, so that it is done once */
      all[ids[i]].logit = (float)(logit > 0 ? logit / penalty : logit * penalty);
    }
  }
}

model_status model_sample(const float *logits, model_sampling *how, const int32_t *ids, size_t count, void *workspace,
                          size_t bytes, int32_t *out_id) {
  if (!logits || !is_sampling(how) || (!ids && count) || !out_id) return MODEL_INVALID;
  if (!workspace || !is_aligned(workspace)) return MODEL_INVALID;
  if (bytes < MODEL_SAMPLE_BYTES) return MODEL_SIZE;
  candidate *all = workspace;
  double *weights = (double *)(all + MODEL_VOCAB_SIZE);
  const floating_state before = floating_begin();
  size_t kept = MODEL_VOCAB_SIZE;
  candidate best = {-INFINITY, -1};
  penalise(logits, how, ids, count, all);
  for (size_t i = 0; i < kept; i++) {
    if (all[i].logit > best.logit || all[i].logit != all[i].logit) best = all[i];
    if (best.logit != best.logit) break;
  }
  if (!(best.logit > -INFINITY && best.logit < INFINITY)) {
    floating_set(before);
    return MODEL_LOGITS;
  }
  *out_id = best.id;
  if (how->temperature > 0) {
    if (how->top_k && (size_t)how->top_k < kept) {
      keep_likeliest(all, kept, (size_t)how->top_k);
      kept = (size_t)how->top_k;
    }
    if (how->top_p > 0 && how->top_p < 1) {
      kept = keep_share(all, kept, best.logit, how->top_p, sum_of_weights(all, kept, best.logit));
    }
    const double random = sample_random(how->seed, how->draws++);
    *out_id = draw_candidate(all, kept, best.logit, how->min_p, how->temperature, random, weights);
  }
  floating_set(before);
  return MODEL_OK;
}
