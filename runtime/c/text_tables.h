/* The file `text` of a model: its tokenizer and its chat template as tables. docs/text.md describes the sections.
 *
 * text_open checks every number in the file that is used as an index, once, so that nothing outside it is read. The
 * numbers are little-endian, as on every machine that the library is built for. */
#ifndef INFERC_TEXT_TABLES_H
#define INFERC_TEXT_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "sum.h"

enum {
  TEXT_FACTS,
  TEXT_TOKEN_OFFSETS,
  TEXT_TOKEN_BYTES,
  TEXT_TOKEN_KINDS,
  TEXT_ADDED,
  TEXT_STEPS,
  TEXT_MAP_ROWS,
  TEXT_STRINGS,
  TEXT_DECOMPOSED,
  TEXT_CODE_POINTS,
  TEXT_COMPOSED,
  TEXT_COMBINING,
  TEXT_CLASS_PAGES,
  TEXT_CLASSES,
  TEXT_SPLITS,
  TEXT_TRANSITIONS,
  TEXT_MERGES,
  TEXT_MERGE_SLOTS,
  TEXT_BYTES,
  TEXT_CHARACTERS,
  TEXT_PIECE_SLOTS,
  TEXT_PIECE_IDS,
  TEXT_PIECE_OFFSETS,
  TEXT_PIECE_BYTES,
  TEXT_SCORES,
  TEXT_BYTE_IDS,
  TEXT_CHAT_ROLES,
  TEXT_CHAT_GAPS,
  TEXT_CHAT_GUARDS,
  TEXT_CHAT_STRINGS,
  TEXT_SECTIONS
};

/* Numbers in TEXT_FACTS. */
enum {
  FACT_VOCABULARY, /* tokens */
  FACT_MODEL,
  FACT_FLAGS,
  FACT_UNKNOWN, /* ids, -1 for none */
  FACT_BEGIN,
  FACT_END,
  FACT_CLASSES,
  FACT_LONGEST,     /* bytes of a piece */
  FACT_GROWTH,      /* a text of n bytes has at most FACT_GROWTH * n + FACT_ADDED_BYTES once it is normalised */
  FACT_ADDED_BYTES,
  FACTS
};

enum { TEXT_BPE = 1, TEXT_WORDPIECE, TEXT_UNIGRAM }; /* FACT_MODEL */

/* FACT_FLAGS */
enum {
  TEXT_BYTE_LEVEL = 1,    /* symbols are bytes, not characters */
  TEXT_WHOLE_WORDS = 2,   /* a word that is a piece is taken whole */
  TEXT_BYTE_FALLBACK = 4, /* what is no token becomes its bytes' tokens */
  TEXT_FUSE_UNKNOWN = 8,
  TEXT_ADD_BEGIN = 16,
  TEXT_ADD_END = 32,
  TEXT_STRIP_SPACE = 64, /* a text's first token begins with a space that the text lacks */
  TEXT_HAS_CHAT = 128
};

enum { TOKEN_SPECIAL = 1, TOKEN_END = 2 }; /* bits of TEXT_TOKEN_KINDS */

enum {
  STEP_PREPEND = 1,
  STEP_PREPEND_UNLESS,
  STEP_MAP,
  STEP_COMPOSE,
  STEP_DECOMPOSE
};

enum {
  TEXT_VERSION = 1,
  TEXT_HEADER = 64,
  TEXT_PAGE = 128, /* characters of a page of classes */
  TEXT_PAGES = 0x110000 / TEXT_PAGE,
  TEXT_MOST_SPLITS = 16,
  TEXT_ACCEPT = 0x8000
};

#define TEXT_EMPTY UINT32_MAX /* a slot of a hash table that holds nothing */

typedef struct text_tables {
  const uint8_t *section[TEXT_SECTIONS]; /* null in all where there are no tables */
  uint32_t bytes[TEXT_SECTIONS];
  int32_t fact[FACTS];
  uint8_t begins_added[32]; /* one bit a byte: whether an added token begins with it */
} text_tables;

static inline const uint32_t *text_words(const text_tables *t, int section) {
  return (const uint32_t *)(const void *)t->section[section];
}

/* Rows of `width` 32-bit words. */
static inline uint32_t text_rows(const text_tables *t, int section, uint32_t width) {
  return t->bytes[section] / (4 * width);
}

static inline bool text_flag(const text_tables *t, int32_t flag) { return (t->fact[FACT_FLAGS] & flag) != 0; }

static inline int32_t text_vocabulary(const text_tables *t) { return t->fact[FACT_VOCABULARY]; }

/* What token `id` stands for. */
static inline const uint8_t *text_token(const text_tables *t, int32_t id, uint32_t *size) {
  const uint32_t *offsets = text_words(t, TEXT_TOKEN_OFFSETS);
  *size = offsets[id + 1] - offsets[id];
  return t->section[TEXT_TOKEN_BYTES] + offsets[id];
}

/* Whether all of `count` words are below `limit`, or EMPTY where that is allowed. */
static inline bool text_below(const uint32_t *words, size_t count, uint32_t limit, bool may_be_empty) {
  const uint32_t shift = may_be_empty; /* EMPTY + 1 is 0 */
  uint32_t bad = 0;
  for (size_t i = 0; i < count; i++) bad |= (uint32_t)(words[i] + shift >= limit + shift);
  return !bad;
}

/* Whether offsets ascend from 0 to `end`. */
static inline bool text_ascending(const uint32_t *offsets, size_t count, uint32_t end) {
  if (count == 0 || offsets[0] != 0 || offsets[count - 1] != end) return false;
  uint32_t bad = 0;
  for (size_t i = 1; i < count; i++) bad |= (uint32_t)(offsets[i] < offsets[i - 1]);
  return !bad;
}

static inline bool text_is_slots(const text_tables *t, int section, uint32_t items) {
  const uint32_t count = text_rows(t, section, 1);
  if (count == 0) return items == 0;
  return (count & (count - 1)) == 0 && text_below(text_words(t, section), count, items, true);
}

/* Whether `bytes` bytes from `offset` on lie within a section. */
static inline bool text_within(const text_tables *t, int section, uint32_t offset, uint32_t bytes) {
  return offset <= t->bytes[section] && bytes <= t->bytes[section] - offset;
}

static inline bool text_check_tokens(const text_tables *t) {
  const uint32_t vocabulary = (uint32_t)text_vocabulary(t);
  if (t->bytes[TEXT_TOKEN_OFFSETS] != 4 * (vocabulary + 1) || t->bytes[TEXT_TOKEN_KINDS] != vocabulary) return false;
  if (!text_ascending(text_words(t, TEXT_TOKEN_OFFSETS), vocabulary + 1, t->bytes[TEXT_TOKEN_BYTES])) return false;
  const int ids[] = {FACT_UNKNOWN, FACT_BEGIN, FACT_END};
  for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
    if (t->fact[ids[i]] < -1 || t->fact[ids[i]] >= (int32_t)vocabulary) return false;
  }
  return text_below(text_words(t, TEXT_ADDED), text_rows(t, TEXT_ADDED, 1), vocabulary, false);
}

static inline bool text_check_steps(const text_tables *t) {
  const uint32_t *step = text_words(t, TEXT_STEPS);
  const uint32_t maps = text_rows(t, TEXT_MAP_ROWS, 4), points = text_rows(t, TEXT_CODE_POINTS, 1);
  for (uint32_t i = 0; i < text_rows(t, TEXT_STEPS, 4); i++, step += 4) {
    const bool text = step[0] == STEP_PREPEND || step[0] == STEP_PREPEND_UNLESS;
    if (step[0] < STEP_PREPEND || step[0] > STEP_DECOMPOSE) return false;
    if (text && !text_within(t, TEXT_STRINGS, step[1], step[2])) return false;
    if (step[0] == STEP_MAP && (step[1] > maps || step[2] > maps - step[1])) return false;
  }
  const uint32_t *row = text_words(t, TEXT_MAP_ROWS);
  for (uint32_t i = 0; i < maps; i++, row += 4) {
    if (!text_within(t, TEXT_STRINGS, row[2], row[3])) return false;
  }
  row = text_words(t, TEXT_DECOMPOSED);
  for (uint32_t i = 0; i < text_rows(t, TEXT_DECOMPOSED, 3); i++, row += 3) {
    if (row[1] > points || row[2] > points - row[1]) return false;
  }
  row = text_words(t, TEXT_COMBINING);
  for (uint32_t i = 0; i < text_rows(t, TEXT_COMBINING, 3); i++, row += 3) {
    if (row[2] > 255) return false;
  }
  row = text_words(t, TEXT_COMPOSED);
  for (uint32_t i = 0; i < text_rows(t, TEXT_COMPOSED, 3); i++, row += 3) {
    if (row[2] >= 0x110000) return false;
  }
  return text_below(text_words(t, TEXT_CODE_POINTS), points, 0x110000, false);
}

static inline bool text_check_splits(const text_tables *t) {
  const uint32_t count = text_rows(t, TEXT_SPLITS, 4), transitions = t->bytes[TEXT_TRANSITIONS] / 2;
  const uint32_t classes = (uint32_t)t->fact[FACT_CLASSES], pages = t->bytes[TEXT_CLASSES] / TEXT_PAGE;
  const uint32_t *split = text_words(t, TEXT_SPLITS);
  if (count == 0) return true;
  if (count > TEXT_MOST_SPLITS || classes < 1 || classes > 255 || t->bytes[TEXT_CLASS_PAGES] != 2 * TEXT_PAGES) return false;
  const uint16_t *page = (const uint16_t *)(const void *)t->section[TEXT_CLASS_PAGES];
  for (uint32_t i = 0; i < TEXT_PAGES; i++) {
    if (page[i] >= pages) return false;
  }
  uint32_t bad = 0;
  for (uint32_t i = 0; i < t->bytes[TEXT_CLASSES]; i++) bad |= (uint32_t)(t->section[TEXT_CLASSES][i] >= classes);
  if (bad) return false;
  for (uint32_t i = 0; i < count; i++, split += 4) {
    if (split[0] > 1 || split[2] < 2 || split[2] > TEXT_ACCEPT || split[1] > transitions) return false;
    if (split[2] * (classes + 1) > transitions - split[1]) return false;
    const uint16_t *row = (const uint16_t *)(const void *)t->section[TEXT_TRANSITIONS] + split[1];
    for (uint32_t j = 0; j < split[2] * (classes + 1); j++) bad |= (uint32_t)((row[j] & ~TEXT_ACCEPT) >= (int)split[2]);
  }
  return !bad;
}

static inline bool text_check_model(const text_tables *t) {
  const uint32_t vocabulary = (uint32_t)text_vocabulary(t);
  const uint32_t merges = text_rows(t, TEXT_MERGES, 3), pieces = text_rows(t, TEXT_PIECE_IDS, 1);
  if (t->fact[FACT_MODEL] < TEXT_BPE || t->fact[FACT_MODEL] > TEXT_UNIGRAM || t->fact[FACT_LONGEST] < 0) return false;
  if (t->fact[FACT_GROWTH] < 1 || t->fact[FACT_GROWTH] > 64 || t->fact[FACT_ADDED_BYTES] < 0) return false;
  if (t->fact[FACT_ADDED_BYTES] > 4096) return false;
  if (!text_below(text_words(t, TEXT_MERGES), (size_t)merges * 3, vocabulary, false)) return false;
  if (!text_is_slots(t, TEXT_MERGE_SLOTS, merges) || !text_is_slots(t, TEXT_PIECE_SLOTS, pieces)) return false;
  if (!text_below(text_words(t, TEXT_PIECE_IDS), pieces, vocabulary, false)) return false;
  if (pieces && t->bytes[TEXT_PIECE_OFFSETS] != 4 * (pieces + 1)) return false;
  if (pieces && !text_ascending(text_words(t, TEXT_PIECE_OFFSETS), pieces + 1, t->bytes[TEXT_PIECE_BYTES])) return false;
  if (t->fact[FACT_MODEL] == TEXT_UNIGRAM && t->bytes[TEXT_SCORES] != 8 * (pieces + 1)) return false;
  if (t->bytes[TEXT_BYTES] != 4 * 256 || t->bytes[TEXT_BYTE_IDS] != 4 * 256) return false;
  if (!text_below(text_words(t, TEXT_BYTES), 256, vocabulary, true)) return false;
  if (!text_below(text_words(t, TEXT_BYTE_IDS), 256, vocabulary, true)) return false;
  const uint32_t *row = text_words(t, TEXT_CHARACTERS);
  for (uint32_t i = 0; i < text_rows(t, TEXT_CHARACTERS, 2); i++, row += 2) {
    if (row[1] >= vocabulary) return false;
  }
  return true;
}

static inline bool text_check_chat(const text_tables *t) {
  const uint32_t roles = text_rows(t, TEXT_CHAT_ROLES, 4);
  const uint32_t *row = text_words(t, TEXT_CHAT_ROLES);
  for (uint32_t i = 0; i < roles; i++, row += 4) {
    if (!text_within(t, TEXT_CHAT_STRINGS, row[0], row[1])) return false;
  }
  row = text_words(t, TEXT_CHAT_GAPS);
  for (uint32_t i = 0; i < text_rows(t, TEXT_CHAT_GAPS, 5); i++, row += 5) {
    if (!text_within(t, TEXT_CHAT_STRINGS, row[3], row[4])) return false;
  }
  row = text_words(t, TEXT_CHAT_GUARDS);
  for (uint32_t i = 0; i < text_rows(t, TEXT_CHAT_GUARDS, 3); i++, row += 3) {
    if (!text_within(t, TEXT_CHAT_STRINGS, row[1], row[2])) return false;
  }
  return true;
}

/* Finds the sections of a file at an aligned address. False, and no tables, where it is damaged. */
static inline bool text_open(const void *file, size_t bytes, text_tables *t) {
  /* Bytes of a row of each section, in their order. */
  static const uint8_t widths[TEXT_SECTIONS] = {4, 4, 1, 1, 4, 16, 16, 1, 12, 4,  12, 12, 2, 1, 16,
                                                2, 12, 4, 4, 8, 4, 4, 4, 1, 8, 4, 16, 20, 12, 1};
  const uint8_t *data = file;
  text_tables found = {0};
  uint32_t head[2], directory[2];
  uint64_t whole[2];
  memset(t, 0, sizeof *t);
  if (bytes < TEXT_HEADER + 8 * TEXT_SECTIONS || bytes > UINT32_MAX || memcmp(data, "infertxt", 8) != 0) return false;
  memcpy(head, data + 8, sizeof head);
  memcpy(whole, data + 16, sizeof whole);
  if (head[0] != TEXT_VERSION || head[1] != TEXT_SECTIONS || whole[0] != bytes) return false;
  if (sum_of(data + TEXT_HEADER, bytes - TEXT_HEADER, 0) != whole[1]) return false;
  for (int i = 0; i < TEXT_SECTIONS; i++) {
    memcpy(directory, data + TEXT_HEADER + 8 * i, sizeof directory);
    if (directory[0] % 64 || directory[0] > bytes || directory[1] > bytes - directory[0]) return false;
    if (directory[1] % widths[i]) return false;
    found.section[i] = data + directory[0];
    found.bytes[i] = directory[1];
  }
  if (found.bytes[TEXT_FACTS] != 4 * FACTS) return false;
  memcpy(found.fact, found.section[TEXT_FACTS], sizeof found.fact);
  if (text_vocabulary(&found) < 1 || text_vocabulary(&found) > 1 << 26) return false;
  if (!text_check_tokens(&found) || !text_check_steps(&found) || !text_check_splits(&found)) return false;
  if (!text_check_model(&found) || !text_check_chat(&found)) return false;
  for (uint32_t i = 0; i < text_rows(&found, TEXT_ADDED, 1); i++) {
    uint32_t size;
    const uint8_t *token = text_token(&found, (int32_t)text_words(&found, TEXT_ADDED)[i], &size);
    if (size == 0) return false;
    found.begins_added[*token / 8] |= (uint8_t)(1 << *token % 8);
  }
  *t = found;
  return true;
}

#endif
