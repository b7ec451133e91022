/* The next token from logits. runtime/sampling.py does the same in the same order, and docs/text.md describes it: all
 * sums are of doubles, one after another, and exp is the one below, so both draw the same tokens. */
#ifndef INFERC_SAMPLER_H
#define INFERC_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A token that may be drawn. */
typedef struct candidate {
  float logit;
  int32_t id;
} candidate;

/* e^x for x at most 0, by x = n ln 2 + r and the series of e^r; 0 below -708. */
static inline double sample_exp(double x) {
  static const double ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33, magic = 0x1.8p52;
  static const double series[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                  1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,
                                  0.5,             1.0,            1.0};
  if (!(x >= -708)) return 0;
  const double n = (x * 0x1.71547652b82fep0 + magic) - magic;
  const double r = (x - n * ln2_high) - n * ln2_low;
  double sum = series[0];
  for (size_t i = 1; i < sizeof series / sizeof *series; i++) sum = sum * r + series[i];
  const uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return sum * power;
}

/* The random number of [0, 1) that a seed gives at its draw `count`: SplitMix64. */
static inline double sample_random(uint64_t seed, uint64_t count) {
  uint64_t z = seed + (count + 1) * UINT64_C(0x9E3779B97F4A7C15);
  z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
  z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
  return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* Whether `a` comes before `b`: the likelier, of equal ones the lower id. */
static inline bool sample_before(candidate a, candidate b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* Moves the item at `at` down a heap to its place. `last_first`: the root is the least likely, else the likeliest. */
static inline void heap_down(candidate *heap, size_t count, size_t at, bool last_first) {
  for (;;) {
    size_t chosen = at;
    for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < count; child++) {
      const size_t first = last_first ? chosen : child, second = last_first ? child : chosen;
      if (sample_before(heap[first], heap[second])) chosen = child;
    }
    if (chosen == at) return;
    const candidate moved = heap[at];
    heap[at] = heap[chosen], heap[chosen] = moved;
    at = chosen;
  }
}

/* Keeps the `wanted` likeliest of `count` candidates, the likeliest first. */
static inline void keep_likeliest(candidate *all, size_t count, size_t wanted) {
  for (size_t i = wanted; i-- > 0;) heap_down(all, wanted, i, true);
  for (size_t i = wanted; i < count; i++) {
    if (!sample_before(all[i], all[0])) continue;
    all[0] = all[i];
    heap_down(all, wanted, 0, true);
  }
  for (size_t end = wanted; end > 1; end--) { /* the least likely goes to the end */
    const candidate last = all[0];
    all[0] = all[end - 1], all[end - 1] = last;
    heap_down(all, end - 1, 0, true);
  }
}

static inline double sum_of_weights(const candidate *all, size_t count, float most) {
  double sum = 0;
  for (size_t i = 0; i < count; i++) sum += sample_exp((double)all[i].logit - (double)most);
  return sum;
}

/* The likeliest candidates, likeliest first, up to the one with which their share of `total` reaches `share`; at least
 * one. They are put at the start of `all`. */
static inline size_t keep_share(candidate *all, size_t count, float most, double share, double total) {
  size_t left = count, taken = 0;
  double before = 0;
  for (size_t i = count / 2; i-- > 0;) heap_down(all, count, i, false);
  while (left > 0 && (taken == 0 || before < share * total)) {
    const candidate next = all[0];
    left--, taken++;
    all[0] = all[left];
    heap_down(all, left, 0, false);
    all[left] = next; /* from the end to the front, likeliest last */
    before += sample_exp((double)next.logit - (double)most);
  }
  for (size_t i = 0; i < taken && i < count / 2; i++) { /* turned round, to the start */
    const candidate swapped = all[i];
    all[i] = all[count - 1 - i], all[count - 1 - i] = swapped;
  }
  return taken;
}

/* Draws one of `count` candidates that are at least `least` times as likely as the likeliest, in proportion to
 * e^((logit - most) / temperature); `weights` has room for them all. */
static inline int32_t draw_candidate(const candidate *all, size_t count, float most, double least, double temperature,
                                     double random, double *weights) {
  double total = 0;
  int32_t chosen = all[0].id;
  for (size_t i = 0; i < count; i++) {
    const double distance = (double)all[i].logit - (double)most;
    const bool kept = !(least > 0) || sample_exp(distance) >= least;
    weights[i] = kept ? sample_exp(distance / temperature) : 0;
    total += weights[i];
  }
  const double wanted = random * total;
  double sum = 0;
  for (size_t i = 0; i < count && sum <= wanted; i++) {
    sum += weights[i];
    if (weights[i] > 0) chosen = all[i].id;
  }
  return chosen;
}

#endif
