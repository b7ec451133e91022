/* A conversation as the text that the model was trained to continue, by the tables that its template was compiled to. */
#ifndef INFERC_CHAT_H
#define INFERC_CHAT_H

#include "detokenizer.h"
#include "text_tables.h"
#include "utf8.h"

enum { CHAT_START = 0xFFFF, CHAT_END = 0xFFFE, CHAT_GENERATE = 0xFFFD };         /* in place of a role */
enum { CHAT_FIRST = 1, CHAT_LAST = 2 };                                          /* bits of a gap */
enum { CHAT_KEEP, CHAT_TRIM_SPACE, CHAT_TRIM_NEWLINE, CHAT_REFUSE_SPACE };       /* at the ends of contents */

typedef struct chat_text {
  const uint8_t *at, *end;
} chat_text;

static inline chat_text chat_string(const text_tables *t, uint32_t offset, uint32_t bytes) {
  const uint8_t *at = t->section[TEXT_CHAT_STRINGS] + offset;
  return (chat_text){at, at + bytes};
}

/* White space as Python's str.strip has it. */
static inline bool chat_is_space(uint32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

static inline bool chat_is_trimmed(uint32_t how, uint32_t c) {
  return how == CHAT_TRIM_NEWLINE ? c == '\n' : how != CHAT_KEEP && chat_is_space(c);
}

static inline chat_text chat_trim(chat_text text, uint32_t left, uint32_t right) {
  while (text.at < text.end) {
    uint32_t size;
    if (!chat_is_trimmed(left, utf8_next(text.at, text.end, &size))) break;
    text.at += size;
  }
  while (text.at < text.end) {
    const uint8_t *last = text.end - 1;
    uint32_t size;
    while (last > text.at && (*last & 0xC0) == 0x80) last--;
    if (!chat_is_trimmed(right, utf8_next(last, text.end, &size))) break;
    text.end = last;
  }
  return text;
}

static inline bool chat_contains(chat_text text, chat_text part) {
  const size_t size = (size_t)(part.end - part.at);
  if (size == 0) return text.at == text.end; /* the guard of empty contents */
  for (const uint8_t *at = text.at; (size_t)(text.end - at) >= size; at++) {
    if (memcmp(at, part.at, size) == 0) return true;
  }
  return false;
}

/* The index of a role, UINT32_MAX for one that the table lacks. */
static inline uint32_t chat_role(const text_tables *t, const char *name) {
  const uint32_t *row = text_words(t, TEXT_CHAT_ROLES);
  const size_t size = strlen(name);
  for (uint32_t i = 0; i < text_rows(t, TEXT_CHAT_ROLES, 4); i++, row += 4) {
    const chat_text known = chat_string(t, row[0], row[1]);
    if ((size_t)(known.end - known.at) == size && memcmp(known.at, name, size) == 0) return i;
  }
  return UINT32_MAX;
}

/* Writes what stands between two roles; false where the template refuses them. */
static inline bool chat_gap(const text_tables *t, uint32_t left, uint32_t right, uint32_t where, text_sink *out) {
  const uint32_t *row = text_words(t, TEXT_CHAT_GAPS);
  for (uint32_t i = 0; i < text_rows(t, TEXT_CHAT_GAPS, 5); i++, row += 5) {
    if (row[0] != left || row[1] != right || row[2] != where) continue;
    const chat_text gap = chat_string(t, row[3], row[4]);
    sink_add(out, gap.at, (size_t)(gap.end - gap.at));
    return true;
  }
  return false;
}

/* Writes a content as the template does; false where the table cannot tell how. */
static inline bool chat_content(const text_tables *t, uint32_t role, chat_text text, text_sink *out) {
  const uint32_t *how = text_words(t, TEXT_CHAT_ROLES) + 4 * (size_t)role;
  const chat_text trimmed = chat_trim(text, how[2], how[3]);
  if (how[2] == CHAT_REFUSE_SPACE && (trimmed.at != text.at || trimmed.end != text.end)) return false;
  const uint32_t *guard = text_words(t, TEXT_CHAT_GUARDS);
  for (uint32_t i = 0; i < text_rows(t, TEXT_CHAT_GUARDS, 3); i++, guard += 3) {
    if (guard[0] == role && chat_contains(trimmed, chat_string(t, guard[1], guard[2]))) return false;
  }
  sink_add(out, trimmed.at, (size_t)(trimmed.end - trimmed.at));
  return true;
}

#endif
