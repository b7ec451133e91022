/* Text to token ids: added tokens are found, what is between them is normalised, cut into words, and each word into
 * tokens. Everything here gives what the model's own tokenizer does. */
#ifndef INFERC_TOKENIZER_H
#define INFERC_TOKENIZER_H

#include "normalize.h"
#include "pieces.h"

typedef struct tokenizer {
  const text_tables *tables;
  normalizer normalizer;
  piece_memory memory;
  id_list *out;
} tokenizer;

static inline size_t text_padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

static inline bool text_has_canonical(const text_tables *t) { return t->bytes[TEXT_COMPOSED] != 0; }

/* Lays out the memory for a text of `bytes` bytes from `at` on, and gives its size; `at` may be null for the size. */
static inline size_t tokenizer_memory(const text_tables *t, size_t bytes, uint8_t *at, tokenizer *made) {
  const bool steps = t->bytes[TEXT_STEPS] != 0, bpe = t->fact[FACT_MODEL] == TEXT_BPE;
  const size_t room = bytes * (size_t)t->fact[FACT_GROWTH] + (size_t)t->fact[FACT_ADDED_BYTES] + 1;
  const size_t points = text_has_canonical(t) ? 2 * room : 0;
  size_t leaves = 1, used = 0;
  while (leaves < room) leaves *= 2;
  const size_t sizes[] = {
      steps ? room : 0,
      steps ? room : 0,
      points * sizeof(uint32_t),
      points * sizeof(uint32_t),
      (room + 1) * sizeof(int32_t),
      (room + 1) * sizeof(uint32_t),
      (room + 1) * sizeof(uint32_t),
      bpe ? 2 * leaves * sizeof(uint32_t) : 0,
      bpe ? 0 : (room + 1) * sizeof(double),
  };
  enum { PARTS = sizeof sizes / sizeof *sizes };
  size_t starts[PARTS];
  for (size_t i = 0; i < PARTS; i++) starts[i] = used, used += text_padded(sizes[i]);
  if (!at) return used;
  *made = (tokenizer){
      .tables = t,
      .normalizer = {.text = {{.at = at + starts[0], .room = room}, {.at = at + starts[1], .room = room}},
                     .points = (uint32_t *)(void *)(at + starts[2]),
                     .sorted = (uint32_t *)(void *)(at + starts[3]),
                     .most_points = points},
      .memory = {.ids = (int32_t *)(void *)(at + starts[4]),
                 .next = (uint32_t *)(void *)(at + starts[5]),
                 .before = (uint32_t *)(void *)(at + starts[6]),
                 .tree = (uint32_t *)(void *)(at + starts[7]),
                 .best = (double *)(void *)(at + starts[8]),
                 .room = room},
  };
  return used;
}

static inline void cut_word(const tokenizer *k, const uint8_t *at, const uint8_t *end) {
  const text_tables *t = k->tables;
  if (at == end) return;
  if (t->fact[FACT_MODEL] == TEXT_BPE) byte_pairs(t, &k->memory, at, end, k->out);
  else if (t->fact[FACT_MODEL] == TEXT_WORDPIECE) word_pieces(t, at, end, k->out);
  else unigram(t, &k->memory, at, end, k->out);
}

/* Where the match of an automaton that begins at `at` ends; null where none does. */
static inline const uint8_t *match_end(const text_tables *t, const uint32_t *split, const uint8_t *at, const uint8_t *end) {
  const uint16_t *table = (const uint16_t *)(const void *)t->section[TEXT_TRANSITIONS] + split[1];
  const uint16_t *pages = (const uint16_t *)(const void *)t->section[TEXT_CLASS_PAGES];
  const uint8_t *classes = t->section[TEXT_CLASSES], *found = NULL;
  const uint32_t columns = (uint32_t)t->fact[FACT_CLASSES] + 1;
  for (uint32_t state = 1, size = 0;; at += size) {
    uint32_t class = columns - 1; /* the end of the text */
    if (at < end) {
      const uint32_t c = utf8_next(at, end, &size);
      class = classes[(size_t)pages[c / TEXT_PAGE] * TEXT_PAGE + c % TEXT_PAGE];
    }
    const uint16_t entry = table[state * columns + class];
    if (entry & TEXT_ACCEPT) found = at;
    state = (uint32_t)(entry & ~TEXT_ACCEPT);
    if (state == 0 || at == end) return found;
  }
}

/* Cuts a stretch by the splits from `step` on, at most TEXT_MOST_SPLITS deep, and its words into tokens. */
static inline void cut_text(const tokenizer *k, uint32_t step, const uint8_t *at, const uint8_t *end) {
  const text_tables *t = k->tables;
  const uint8_t *kept = at;
  if (step == text_rows(t, TEXT_SPLITS, 4)) {
    cut_word(k, at, end);
    return;
  }
  const uint32_t *split = text_words(t, TEXT_SPLITS) + 4 * (size_t)step;
  while (at < end) {
    const uint8_t *match = match_end(t, split, at, end);
    if (!match || match == at) {
      uint32_t size;
      utf8_next(at, end, &size);
      at += size;
      continue;
    }
    if (kept < at) cut_text(k, step + 1, kept, at);
    if (split[0] == 0) cut_text(k, step + 1, at, match);
    kept = at = match;
  }
  if (kept < end) cut_text(k, step + 1, kept, end);
}

/* The longest added token that a text begins with, -1 for none; its bytes. */
static inline int32_t added_token(const text_tables *t, const uint8_t *at, const uint8_t *end, uint32_t *bytes) {
  if (!(t->begins_added[*at / 8] >> *at % 8 & 1)) return -1;
  const uint32_t *added = text_words(t, TEXT_ADDED);
  uint32_t low = 0, high = text_rows(t, TEXT_ADDED, 1); /* those that share the first `depth` bytes with the text */
  int32_t found = -1;
  for (uint32_t depth = 0; low < high; depth++) {
    uint32_t size, from = low, to = high;
    text_token(t, (int32_t)added[low], &size);
    if (size == depth) found = (int32_t)added[low], *bytes = depth;
    if (at + depth == end) break;
    const uint8_t wanted = at[depth];
    while (from < to) { /* the first whose next byte is not less */
      const uint32_t middle = from + (to - from) / 2;
      const uint8_t *token = text_token(t, (int32_t)added[middle], &size);
      if (size <= depth || token[depth] < wanted) from = middle + 1;
      else to = middle;
    }
    low = from, to = high;
    while (from < to) { /* the first whose next byte is greater */
      const uint32_t middle = from + (to - from) / 2;
      const uint8_t *token = text_token(t, (int32_t)added[middle], &size);
      if (size <= depth || token[depth] <= wanted) from = middle + 1;
      else to = middle;
    }
    high = from;
  }
  return found;
}

static inline void cut_segment(const tokenizer *k, const uint8_t *at, const uint8_t *end) {
  if (at == end) return;
  normalizer n = k->normalizer;
  normalize(k->tables, &n, &at, &end);
  if (at < end) cut_text(k, 0, at, end);
}

/* The ids of valid UTF-8. `special`: the texts of special tokens are those tokens. */
static inline void tokenize_text(const tokenizer *k, const uint8_t *at, size_t bytes, bool special) {
  const text_tables *t = k->tables;
  const uint8_t *end = at + bytes, *kept = at;
  while (at < end) {
    uint32_t size = 1;
    const int32_t id = added_token(t, at, end, &size);
    if (id >= 0 && (special || !(t->section[TEXT_TOKEN_KINDS][id] & TOKEN_SPECIAL))) {
      cut_segment(k, kept, at);
      id_add(k->out, id);
      kept = at + size;
    }
    at += size;
  }
  cut_segment(k, kept, end);
}

#endif
