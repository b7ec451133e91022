/* Tokens from words: byte-pair encoding, WordPiece and the unigram model. A word is a stretch of normalised text. */
#ifndef INFERC_PIECES_H
#define INFERC_PIECES_H

#include "text_tables.h"
#include "utf8.h"

/* Where ids go. What does not fit is counted only. */
typedef struct id_list {
  int32_t *ids;
  size_t room, count;
} id_list;

static inline void id_add(id_list *list, int32_t id) {
  if (list->count < list->room) list->ids[list->count] = id;
  list->count++;
}

/* Memory for a word of `room` bytes. */
typedef struct piece_memory {
  int32_t *ids;             /* room; the unigram model: the id of the best piece that ends at a byte */
  uint32_t *next, *before;  /* room + 1 each */
  uint32_t *tree;           /* 2 * a power of two that is at least room */
  double *best;             /* room + 1, unigram only */
  size_t room;
} piece_memory;

enum { SHORT_WORD = 48 }; /* symbols, up to which joining by looking at all is fastest */

static inline uint32_t pair_hash(uint32_t left, uint32_t right) {
  uint32_t h = (left * 0x9E3779B1u) ^ (right * 0x85EBCA77u);
  h ^= h >> 15;
  h *= 0x2C1B3C6Du;
  return h ^ h >> 13;
}

/* The rank of the merge of two tokens, the lower the sooner; EMPTY for none. */
static inline uint32_t merge_rank(const text_tables *t, int32_t left, int32_t right) {
  const uint32_t *slots = text_words(t, TEXT_MERGE_SLOTS), *merges = text_words(t, TEXT_MERGES);
  const uint32_t count = text_rows(t, TEXT_MERGE_SLOTS, 1);
  if (count == 0) return TEXT_EMPTY;
  uint32_t at = pair_hash((uint32_t)left, (uint32_t)right) & (count - 1);
  for (uint32_t tried = 0; tried < count; tried++, at = (at + 1) & (count - 1)) {
    const uint32_t rank = slots[at];
    if (rank == TEXT_EMPTY) return TEXT_EMPTY;
    const uint32_t *merge = merges + (size_t)rank * 3;
    if (merge[0] == (uint32_t)left && merge[1] == (uint32_t)right) return rank;
  }
  return TEXT_EMPTY;
}

static inline int32_t merged_id(const text_tables *t, uint32_t rank) {
  return (int32_t)text_words(t, TEXT_MERGES)[(size_t)rank * 3 + 2];
}

#define FNV_BASIS 0x811C9DC5u

static inline uint32_t fnv(uint32_t h, uint8_t byte) { return (h ^ byte) * 0x01000193u; }

/* The piece, by its index, that is `prefix` and then `size` bytes, whose hash is `h`; EMPTY for none. */
static inline uint32_t find_piece(const text_tables *t, const char *prefix, size_t prefix_size, const uint8_t *at,
                                  size_t size, uint32_t h) {
  const uint32_t *slots = text_words(t, TEXT_PIECE_SLOTS), *offsets = text_words(t, TEXT_PIECE_OFFSETS);
  const uint32_t count = text_rows(t, TEXT_PIECE_SLOTS, 1);
  for (uint32_t tried = 0; tried < count; tried++, h++) {
    const uint32_t i = slots[h & (count - 1)];
    if (i == TEXT_EMPTY) return TEXT_EMPTY;
    const uint8_t *piece = t->section[TEXT_PIECE_BYTES] + offsets[i];
    if (offsets[i + 1] - offsets[i] != prefix_size + size) continue;
    if (memcmp(piece, prefix, prefix_size) == 0 && memcmp(piece + prefix_size, at, size) == 0) return i;
  }
  return TEXT_EMPTY;
}

static inline int32_t piece_id(const text_tables *t, uint32_t piece) {
  return (int32_t)text_words(t, TEXT_PIECE_IDS)[piece];
}

/* The token of one character, -1 for none. */
static inline int32_t character_id(const text_tables *t, uint32_t c) {
  if (c < 0x80) return (int32_t)text_words(t, TEXT_BYTES)[c];
  const uint32_t *rows = text_words(t, TEXT_CHARACTERS);
  uint32_t low = 0, high = text_rows(t, TEXT_CHARACTERS, 2);
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (rows[2 * (size_t)middle] == c) return (int32_t)rows[2 * (size_t)middle + 1];
    if (rows[2 * (size_t)middle] < c) low = middle + 1;
    else high = middle;
  }
  return -1;
}

/* Whether each byte of a character has a token. */
static inline bool has_bytes(const text_tables *t, const uint8_t *at, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) {
    if (text_words(t, TEXT_BYTE_IDS)[at[i]] == TEXT_EMPTY) return false;
  }
  return text_flag(t, TEXT_BYTE_FALLBACK);
}

/* The symbols with which joining begins: tokens of bytes, or of characters. What has no token is left out, or is the
 * unknown token, one for all its neighbours too where they fuse. */
static inline size_t first_symbols(const text_tables *t, const uint8_t *at, const uint8_t *end, int32_t *ids) {
  size_t count = 0;
  const int32_t unknown = t->fact[FACT_UNKNOWN];
  bool pending = false; /* an unknown token is yet to be written */
  if (text_flag(t, TEXT_BYTE_LEVEL)) {
    for (; at < end; at++) {
      const int32_t id = (int32_t)text_words(t, TEXT_BYTES)[*at];
      if (id >= 0) ids[count++] = id;
    }
    return count;
  }
  for (uint32_t size; at < end; at += size) {
    const int32_t id = character_id(t, utf8_next(at, end, &size));
    if (id >= 0) {
      if (pending) ids[count++] = unknown;
      pending = false;
      ids[count++] = id;
    } else if (has_bytes(t, at, size)) {
      for (uint32_t i = 0; i < size; i++) ids[count++] = (int32_t)text_words(t, TEXT_BYTE_IDS)[at[i]];
    } else if (unknown >= 0) {
      if (pending && !text_flag(t, TEXT_FUSE_UNKNOWN)) ids[count++] = unknown;
      pending = true;
    }
  }
  if (pending) ids[count++] = unknown;
  return count;
}

/* Joins the two neighbours of the lowest rank, the leftmost of equals, until none can be joined. */
static inline size_t join_short(const text_tables *t, int32_t *ids, size_t count) {
  uint32_t ranks[SHORT_WORD];
  for (size_t i = 0; i + 1 < count; i++) ranks[i] = merge_rank(t, ids[i], ids[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; i++) best = ranks[i] < ranks[best] ? i : best;
    if (ranks[best] == TEXT_EMPTY) break;
    ids[best] = merged_id(t, ranks[best]);
    count--;
    for (size_t i = best + 1; i < count; i++) ids[i] = ids[i + 1];
    for (size_t i = best + 1; i + 1 < count; i++) ranks[i] = ranks[i + 1];
    if (best > 0) ranks[best - 1] = merge_rank(t, ids[best - 1], ids[best]);
    if (best + 1 < count) ranks[best] = merge_rank(t, ids[best], ids[best + 1]);
  }
  return count;
}

/* Sets the rank at leaf `i` of the tree, in which each place holds the lesser of the two below it. */
static inline void tree_set(uint32_t *tree, size_t leaves, size_t i, uint32_t rank) {
  i += leaves;
  tree[i] = rank;
  for (i /= 2; i > 0; i /= 2) {
    const uint32_t least = tree[2 * i] < tree[2 * i + 1] ? tree[2 * i] : tree[2 * i + 1];
    if (tree[i] == least) break; /* nothing changes further up */
    tree[i] = least;
  }
}

/* As join_short, for any count: neighbours are linked, their ranks lie in a tree. */
static inline size_t join_long(const text_tables *t, const piece_memory *m, size_t count) {
  size_t leaves = 1, kept = 0;
  while (leaves < count) leaves *= 2;
  for (size_t i = 0; i < leaves; i++) {
    m->tree[leaves + i] = i + 1 < count ? merge_rank(t, m->ids[i], m->ids[i + 1]) : TEXT_EMPTY;
  }
  for (size_t i = leaves - 1; i > 0; i--) {
    m->tree[i] = m->tree[2 * i] < m->tree[2 * i + 1] ? m->tree[2 * i] : m->tree[2 * i + 1];
  }
  for (size_t i = 0; i < count; i++) m->next[i] = (uint32_t)i + 1, m->before[i] = (uint32_t)i - 1;
  while (m->tree[1] != TEXT_EMPTY) {
    const uint32_t rank = m->tree[1];
    size_t at = 1;
    while (at < leaves) at = 2 * at + (m->tree[2 * at] != rank);
    at -= leaves;
    const uint32_t gone = m->next[at], after = m->next[gone];
    m->ids[at] = merged_id(t, rank);
    m->ids[gone] = -1;
    m->next[at] = after;
    tree_set(m->tree, leaves, gone, TEXT_EMPTY);
    tree_set(m->tree, leaves, at, after < count ? merge_rank(t, m->ids[at], m->ids[after]) : TEXT_EMPTY);
    if (after < count) m->before[after] = (uint32_t)at;
    if (at > 0) tree_set(m->tree, leaves, m->before[at], merge_rank(t, m->ids[m->before[at]], m->ids[at]));
  }
  for (size_t i = 0; i < count; i++) {
    if (m->ids[i] >= 0) m->ids[kept++] = m->ids[i];
  }
  return kept;
}

static inline void byte_pairs(const text_tables *t, const piece_memory *m, const uint8_t *at, const uint8_t *end,
                              id_list *out) {
  if (text_flag(t, TEXT_WHOLE_WORDS) && end - at <= t->fact[FACT_LONGEST]) {
    uint32_t h = FNV_BASIS;
    for (const uint8_t *p = at; p < end; p++) h = fnv(h, *p);
    const uint32_t piece = find_piece(t, "", 0, at, (size_t)(end - at), h);
    if (piece != TEXT_EMPTY) {
      id_add(out, piece_id(t, piece));
      return;
    }
  }
  size_t count = first_symbols(t, at, end, m->ids);
  count = count <= SHORT_WORD ? join_short(t, m->ids, count) : join_long(t, m, count);
  for (size_t i = 0; i < count; i++) id_add(out, m->ids[i]);
}

enum { WORDPIECE_MOST = 100 }; /* characters of a word; longer ones are unknown */

/* The longest piece that begins the word, then the longest "##" piece that continues it, and so on. */
static inline void word_pieces(const text_tables *t, const uint8_t *at, const uint8_t *end, id_list *out) {
  const size_t first = out->count, longest = (size_t)t->fact[FACT_LONGEST];
  const uint8_t *begin = at;
  size_t characters = 0;
  for (const uint8_t *p = at; p < end; p++) characters += (*p & 0xC0) != 0x80;
  while (at < end && characters <= WORDPIECE_MOST) {
    const char *prefix = at == begin ? "" : "##";
    const size_t prefix_size = strlen(prefix), size = (size_t)(end - at);
    uint32_t h = FNV_BASIS, found = TEXT_EMPTY;
    size_t taken = 0;
    for (size_t i = 0; i < prefix_size; i++) h = fnv(h, (uint8_t)prefix[i]);
    for (size_t i = 0; i < size && i < longest; i++) {
      h = fnv(h, at[i]);
      if (i + 1 < size && (at[i + 1] & 0xC0) == 0x80) continue;
      const uint32_t piece = find_piece(t, prefix, prefix_size, at, i + 1, h);
      if (piece != TEXT_EMPTY) found = piece, taken = i + 1;
    }
    if (found == TEXT_EMPTY) break;
    id_add(out, piece_id(t, found));
    at += taken;
  }
  if (at < end) {
    out->count = first;
    if (t->fact[FACT_UNKNOWN] >= 0) id_add(out, t->fact[FACT_UNKNOWN]);
  }
}

/* What the unigram model makes of the text from one byte to another: an unknown one's bytes, or the unknown token. */
static inline void unigram_piece(const text_tables *t, int32_t id, const uint8_t *at, const uint8_t *end, id_list *out) {
  if (id >= 0) {
    id_add(out, id);
  } else if (has_bytes(t, at, (uint32_t)(end - at))) {
    for (; at < end; at++) id_add(out, (int32_t)text_words(t, TEXT_BYTE_IDS)[*at]);
  } else if (t->fact[FACT_UNKNOWN] >= 0) {
    id_add(out, t->fact[FACT_UNKNOWN]);
  }
}

/* The cut into pieces whose scores have the greatest sum; of equal ones the one found first, from left to right. */
static inline void unigram(const text_tables *t, const piece_memory *m, const uint8_t *at, const uint8_t *end, id_list *out) {
  const double *scores = (const double *)(const void *)t->section[TEXT_SCORES];
  const double unknown = scores[text_rows(t, TEXT_PIECE_IDS, 1)];
  const size_t size = (size_t)(end - at), longest = (size_t)t->fact[FACT_LONGEST];
  for (size_t i = 0; i <= size; i++) m->before[i] = TEXT_EMPTY, m->best[i] = 0;
  for (size_t i = 0, step; i < size; i += step) {
    uint32_t character, h = FNV_BASIS;
    bool whole = false; /* the character is a piece */
    utf8_next(at + i, end, &character);
    step = character;
    for (size_t n = 1; n <= longest && i + n <= size; n++) {
      h = fnv(h, at[i + n - 1]);
      if (i + n < size && (at[i + n] & 0xC0) == 0x80) continue;
      const uint32_t piece = find_piece(t, "", 0, at + i, n, h);
      if (piece == TEXT_EMPTY) continue;
      const double score = m->best[i] + scores[piece];
      if (m->before[i + n] == TEXT_EMPTY || score > m->best[i + n]) {
        m->best[i + n] = score, m->before[i + n] = (uint32_t)i, m->ids[i + n] = piece_id(t, piece);
      }
      whole |= n == step;
    }
    const double score = m->best[i] + unknown;
    if (!whole && (m->before[i + step] == TEXT_EMPTY || score > m->best[i + step])) {
      m->best[i + step] = score, m->before[i + step] = (uint32_t)i, m->ids[i + step] = -1;
    }
  }
  for (size_t i = size; i > 0; i = m->before[i]) m->next[m->before[i]] = (uint32_t)i; /* from the end to the start */
  for (size_t i = 0, next; i < size; i = next) {
    next = m->next[i];
    const int32_t id = m->ids[next];
    while (id < 0 && next < size && text_flag(t, TEXT_FUSE_UNKNOWN) && m->ids[m->next[next]] < 0) next = m->next[next];
    unigram_piece(t, id, at + i, at + next, out);
  }
}

#endif
