/* Token ids to text as they come: whole characters only. */
#ifndef INFERC_DETOKENIZER_H
#define INFERC_DETOKENIZER_H

#include "text_tables.h"
#include "utf8.h"

/* Where text goes. What does not fit is counted only. */
typedef struct text_sink {
  char *text;
  size_t room, size;
} text_sink;

static inline void sink_add(text_sink *sink, const void *from, size_t size) {
  if (sink->size <= sink->room && size <= sink->room - sink->size && size) memcpy(sink->text + sink->size, from, size);
  sink->size += size;
}

/* A character that is not complete yet. */
typedef struct utf8_pending {
  uint8_t bytes[4];
  uint8_t count;
} utf8_pending;

static inline void utf8_replace(utf8_pending *p, text_sink *out) {
  if (p->count) sink_add(out, "\xEF\xBF\xBD", 3);
  p->count = 0;
}

/* Takes one byte: a character that it completes is written; bytes that can begin none become U+FFFD, one for each
 * stretch that could have begun the same character (as Unicode recommends, and Python does). */
static inline void utf8_push(utf8_pending *p, uint8_t byte, text_sink *out) {
  if (p->count) {
    const bool follows = p->count == 1 ? utf8_second(p->bytes[0], byte) : (byte & 0xC0) == 0x80;
    if (follows) {
      p->bytes[p->count++] = byte;
      if (p->count == utf8_size(p->bytes[0])) {
        sink_add(out, p->bytes, p->count);
        p->count = 0;
      }
      return;
    }
    utf8_replace(p, out);
  }
  if (byte < 0x80) {
    sink_add(out, &byte, 1);
  } else {
    p->bytes[0] = byte, p->count = 1;
    if (utf8_size(byte) == 0) utf8_replace(p, out);
  }
}

#endif
