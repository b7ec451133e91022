/* UTF-8: characters of a text, and whole characters from bytes that come in pieces. */
#ifndef INFERC_UTF8_H
#define INFERC_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The bytes that a character which begins with `lead` has, 0 where none begins so. */
static inline uint32_t utf8_size(uint8_t lead) {
  return lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
}

/* Whether `next` may follow `lead` as its second byte: no overlong forms, no surrogates, nothing past U+10FFFF. */
static inline bool utf8_second(uint8_t lead, uint8_t next) {
  const uint8_t least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  return next >= least && next <= most;
}

/* The character at `at`, before `end`, and its bytes; a byte that begins none is U+FFFD of one byte. */
static inline uint32_t utf8_next(const uint8_t *at, const uint8_t *end, uint32_t *size) {
  *size = 1;
  if (*at < 0x80) return *at;
  const uint32_t wanted = utf8_size(*at);
  if (wanted == 0 || (size_t)(end - at) < wanted || !utf8_second(at[0], at[1])) return 0xFFFD;
  uint32_t c = *at & (0x7Fu >> wanted);
  for (uint32_t i = 1; i < wanted; i++) {
    if ((at[i] & 0xC0) != 0x80) return 0xFFFD;
    c = c << 6 | (at[i] & 0x3Fu);
  }
  *size = wanted;
  return c;
}

static inline bool utf8_valid(const uint8_t *at, size_t bytes) {
  for (const uint8_t *end = at + bytes; at < end;) {
    uint32_t size;
    if (*at < 0x80) {
      at++;
      continue;
    }
    if (utf8_next(at, end, &size) == 0xFFFD && size == 1) return false;
    at += size;
  }
  return true;
}

/* Writes character `c`, at most 4 bytes, and gives their count. */
static inline uint32_t utf8_put(uint32_t c, uint8_t *out) {
  if (c < 0x80) {
    out[0] = (uint8_t)c;
    return 1;
  }
  const uint32_t size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (uint32_t i = size - 1; i > 0; i--, c >>= 6) out[i] = (uint8_t)(0x80 | (c & 0x3F));
  out[0] = (uint8_t)(0xF00u >> size | c);
  return size;
}

#endif
