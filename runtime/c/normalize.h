/* A text's characters changed before it is cut into words: the steps of TEXT_STEPS. */
#ifndef INFERC_NORMALIZE_H
#define INFERC_NORMALIZE_H

#include "text_tables.h"
#include "utf8.h"

/* A text that is being written. Where it would grow past `room`, which tables that were checked do not, it is cut. */
typedef struct text_buffer {
  uint8_t *at;
  size_t size, room;
} text_buffer;

static inline void buffer_add(text_buffer *b, const uint8_t *from, size_t size) {
  if (size > b->room - b->size) size = b->room - b->size;
  if (size) memcpy(b->at + b->size, from, size);
  b->size += size;
}

/* Memory for normalising: two texts, and the characters of one. */
typedef struct normalizer {
  text_buffer text[2];
  uint32_t *points, *sorted;
  size_t most_points;
} normalizer;

/* The row of `width` words, sorted by their first, with the greatest first word that is not above `c`; null for none. */
static inline const uint32_t *row_for(const uint32_t *rows, uint32_t count, uint32_t width, uint32_t c) {
  uint32_t low = 0, high = count;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (rows[(size_t)middle * width] <= c) low = middle + 1;
    else high = middle;
  }
  return low ? rows + (size_t)(low - 1) * width : NULL;
}

static inline void map_text(const text_tables *t, const uint32_t *step, const uint8_t *at, const uint8_t *end,
                            text_buffer *out) {
  const uint32_t *rows = text_words(t, TEXT_MAP_ROWS) + 4 * (size_t)step[1];
  const uint8_t *kept = at;
  while (at < end) {
    uint32_t size;
    const uint32_t c = utf8_next(at, end, &size);
    const uint32_t *row = row_for(rows, step[2], 4, c);
    if (row && c <= row[1]) {
      buffer_add(out, kept, (size_t)(at - kept));
      buffer_add(out, t->section[TEXT_STRINGS] + row[2], row[3]);
      kept = at + size;
    }
    at += size;
  }
  buffer_add(out, kept, (size_t)(at - kept));
}

/* Hangul syllables are composed by arithmetic. */
enum {
  HANGUL = 0xAC00,
  HANGUL_L = 0x1100,
  HANGUL_V = 0x1161,
  HANGUL_T = 0x11A7,
  HANGUL_VS = 21,
  HANGUL_TS = 28,
  HANGULS = 11172
};

static inline uint32_t combining_class(const text_tables *t, uint32_t c) {
  if (c < 0x300) return 0;
  const uint32_t *row = row_for(text_words(t, TEXT_COMBINING), text_rows(t, TEXT_COMBINING, 3), 3, c);
  return row && c < row[1] ? row[2] : 0;
}

/* Adds the canonical decomposition of `c`, each character with its combining class in the highest byte. */
static inline size_t decompose(const text_tables *t, uint32_t c, uint32_t *points, size_t count, size_t most) {
  uint32_t parts[3];
  const uint32_t *from = &c, *row = NULL;
  uint32_t size = 1;
  if (c - HANGUL < HANGULS) {
    const uint32_t s = c - HANGUL, last = s % HANGUL_TS;
    parts[0] = HANGUL_L + s / (HANGUL_VS * HANGUL_TS);
    parts[1] = HANGUL_V + s / HANGUL_TS % HANGUL_VS;
    parts[2] = HANGUL_T + last;
    from = parts, size = last ? 3 : 2;
  } else if (c >= 0xC0) {
    row = row_for(text_words(t, TEXT_DECOMPOSED), text_rows(t, TEXT_DECOMPOSED, 3), 3, c);
    if (row && row[0] == c) from = text_words(t, TEXT_CODE_POINTS) + row[1], size = row[2];
  }
  for (uint32_t i = 0; i < size && count < most; i++) points[count++] = from[i] | combining_class(t, from[i]) << 24;
  return count;
}

/* Sorts marks by their combining classes, equal ones as they stand. */
static inline void sort_marks(uint32_t *marks, size_t count, uint32_t *scratch) {
  for (size_t width = 1; width < count; width *= 2) {
    for (size_t begin = 0; begin < count; begin += 2 * width) {
      const size_t middle = count - begin < width ? count : begin + width;
      const size_t end = count - begin < 2 * width ? count : begin + 2 * width;
      size_t left = begin, right = middle;
      for (size_t out = begin; out < end; out++) {
        const bool first = right == end || (left < middle && marks[left] >> 24 <= marks[right] >> 24);
        scratch[out] = first ? marks[left++] : marks[right++];
      }
    }
    memcpy(marks, scratch, count * sizeof *marks);
  }
}

/* The character that two make, 0 for none. */
static inline uint32_t compose_pair(const text_tables *t, uint32_t a, uint32_t b) {
  if (a - HANGUL_L < 19 && b - HANGUL_V < HANGUL_VS) {
    return HANGUL + ((a - HANGUL_L) * HANGUL_VS + (b - HANGUL_V)) * HANGUL_TS;
  }
  if (a - HANGUL < HANGULS && (a - HANGUL) % HANGUL_TS == 0 && b - HANGUL_T - 1 < HANGUL_TS - 1) return a + b - HANGUL_T;
  const uint32_t *rows = text_words(t, TEXT_COMPOSED);
  uint32_t low = 0, high = text_rows(t, TEXT_COMPOSED, 3);
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2, *row = rows + (size_t)middle * 3;
    if (row[0] == a && row[1] == b) return row[2];
    if (row[0] < a || (row[0] == a && row[1] < b)) low = middle + 1;
    else high = middle;
  }
  return 0;
}

/* Canonical composition in place; the new count. */
static inline size_t compose(const text_tables *t, uint32_t *points, size_t count) {
  size_t out = 0, starter = SIZE_MAX;
  for (size_t i = 0; i < count; i++) {
    const uint32_t c = points[i] & 0xFFFFFF, class = points[i] >> 24;
    if (starter != SIZE_MAX && (out == starter + 1 || points[out - 1] >> 24 < class)) {
      const uint32_t joined = compose_pair(t, points[starter] & 0xFFFFFF, c);
      if (joined) {
        points[starter] = joined;
        continue;
      }
    }
    if (class == 0) starter = out;
    points[out++] = points[i];
  }
  return out;
}

static inline void canonical_form(const text_tables *t, bool composed, const uint8_t *at, const uint8_t *end,
                                  normalizer *n, text_buffer *out) {
  size_t count = 0;
  while (at < end) {
    uint32_t size;
    count = decompose(t, utf8_next(at, end, &size), n->points, count, n->most_points);
    at += size;
  }
  for (size_t i = 0; i < count; i++) {
    size_t marks = i;
    while (marks < count && n->points[marks] >> 24) marks++;
    if (marks > i + 1) sort_marks(n->points + i, marks - i, n->sorted);
    if (marks > i) i = marks - 1;
  }
  if (composed) count = compose(t, n->points, count);
  for (size_t i = 0; i < count; i++) {
    uint8_t bytes[4];
    buffer_add(out, bytes, utf8_put(n->points[i] & 0xFFFFFF, bytes));
  }
}

/* Whether a text is its own canonical form: all characters below U+0300 (composed), or all ASCII. */
static inline bool is_canonical(bool composed, const uint8_t *at, const uint8_t *end) {
  uint8_t most = 0;
  for (; at < end; at++) most = *at > most ? *at : most;
  return most < (composed ? 0xCC : 0x80); /* U+0300 is CC 80 */
}

/* The text from `at` to `end`, not empty, after all steps: *at and *end then lie in the normalizer's memory, or where
 * they did if nothing is done. */
static inline void normalize(const text_tables *t, normalizer *n, const uint8_t **at, const uint8_t **end) {
  const uint32_t *step = text_words(t, TEXT_STEPS);
  const uint32_t steps = text_rows(t, TEXT_STEPS, 4);
  for (uint32_t i = 0, next = 0; i < steps; i++, step += 4) {
    const size_t size = (size_t)(*end - *at);
    const uint8_t *prefix = t->section[TEXT_STRINGS] + step[1];
    const bool compose_step = step[0] == STEP_COMPOSE;
    if ((compose_step || step[0] == STEP_DECOMPOSE) && is_canonical(compose_step, *at, *end)) continue;
    if (step[0] == STEP_PREPEND_UNLESS && size >= step[2] && memcmp(*at, prefix, step[2]) == 0) continue;
    text_buffer *out = &n->text[next];
    next = !next;
    out->size = 0;
    if (step[0] == STEP_MAP) {
      map_text(t, step, *at, *end, out);
    } else if (step[0] == STEP_PREPEND || step[0] == STEP_PREPEND_UNLESS) {
      if (size) buffer_add(out, prefix, step[2]);
      buffer_add(out, *at, size);
    } else {
      canonical_form(t, compose_step, *at, *end, n, out);
    }
    *at = out->at, *end = out->at + out->size;
  }
}

#endif
