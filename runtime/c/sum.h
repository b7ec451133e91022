/* The sum by which altered bytes are found: of weights, and of saved sessions. It guards against accidents, not against
 * people.
 *
 * Over the words of 64 bits (little-endian, the last filled up with zeros), modulo 2^64, as in the hash NH of UMAC: the
 * product of a word's two halves, each with a key of its own added modulo 2^32. The keys are those of the word's index,
 * so that pieces may be summed in any order, at once. */
#ifndef INFERC_SUM_H
#define INFERC_SUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SUM_PIECE = 1 << 20 }; /* bytes that are summed as one piece of work: a multiple of 8 */

/* The sum of `size` bytes whose first word has that index. */
static inline uint64_t sum_of(const uint8_t *bytes, size_t size, uint64_t index) {
  const uint64_t step = UINT64_C(0x9e3779b97f4a7c15);
  uint64_t sum = 0, key = (index + 1) * step;
  size_t at = 0;
  for (; size - at >= 8; at += 8, key += step) {
    uint64_t word;
    memcpy(&word, bytes + at, 8);
    sum += (uint64_t)(uint32_t)(word + key) * (uint32_t)((word >> 32) + (key >> 32));
  }
  if (at < size) {
    uint64_t word = 0;
    memcpy(&word, bytes + at, size - at);
    sum += (uint64_t)(uint32_t)(word + key) * (uint32_t)((word >> 32) + (key >> 32));
  }
  return sum;
}

#endif
