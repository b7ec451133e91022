/* Scalar operations whose meaning C leaves open or undefined: integers wrap, division and shifts are total,
 * float to integer saturates, and half floats are rounded to nearest even. Named operation_type. */
#ifndef INFERC_SCALAR_H
#define INFERC_SCALAR_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* wide: the unsigned type in which arithmetic wraps without promotion to a signed int. */
#define INTEGER(t, type, wide, bits)                                                                          \
  static inline type add_##t(type a, type b) { return (type)((wide)a + (wide)b); }                            \
  static inline type sub_##t(type a, type b) { return (type)((wide)a - (wide)b); }                            \
  static inline type mul_##t(type a, type b) { return (type)((wide)a * (wide)b); }                            \
  static inline type neg_##t(type a) { return (type)(0 - (wide)a); }                                          \
  static inline type max_##t(type a, type b) { return a > b ? a : b; }                                        \
  static inline type min_##t(type a, type b) { return a < b ? a : b; }                                        \
  static inline type shift_left_##t(type a, type n) { return (wide)n < bits ? (type)((wide)a << n) : 0; }

/* A division by zero gives all ones and the remainder a; the one overflow wraps. */
#define SIGNED(t, type, unsigned_type, wide, bits)                                                            \
  INTEGER(t, type, wide, bits)                                                                                \
  static inline type div_##t(type a, type b) { return b == 0 ? -1 : b == -1 ? neg_##t(a) : (type)(a / b); }   \
  static inline type rem_##t(type a, type b) { return b == 0 ? a : b == -1 ? 0 : (type)(a % b); }             \
  static inline type abs_##t(type a) { return a < 0 ? neg_##t(a) : a; }                                       \
  static inline type sign_##t(type a) { return (type)((a > 0) - (a < 0)); }                                   \
  static inline type shift_right_logical_##t(type a, type n) {                                                \
    return (wide)n < bits ? (type)((unsigned_type)a >> n) : 0;                                                \
  }                                                                                                           \
  static inline type shift_right_arithmetic_##t(type a, type n) {                                             \
    return (type)(a >> ((wide)n < bits ? n : bits - 1));                                                      \
  }

#define UNSIGNED(t, type, signed_type, wide, bits)                                                            \
  INTEGER(t, type, wide, bits)                                                                                \
  static inline type div_##t(type a, type b) { return b == 0 ? (type)-1 : (type)(a / b); }                    \
  static inline type rem_##t(type a, type b) { return b == 0 ? a : (type)(a % b); }                           \
  static inline type abs_##t(type a) { return a; }                                                            \
  static inline type sign_##t(type a) { return a > 0; }                                                       \
  static inline type shift_right_logical_##t(type a, type n) { return n < bits ? (type)(a >> n) : 0; }        \
  static inline type shift_right_arithmetic_##t(type a, type n) {                                             \
    return (type)((signed_type)a >> (n < bits ? n : bits - 1));                                               \
  }

SIGNED(i8, int8_t, uint8_t, uint32_t, 8)
SIGNED(i16, int16_t, uint16_t, uint32_t, 16)
SIGNED(i32, int32_t, uint32_t, uint32_t, 32)
SIGNED(i64, int64_t, uint64_t, uint64_t, 64)
UNSIGNED(u8, uint8_t, int8_t, uint32_t, 8)
UNSIGNED(u16, uint16_t, int16_t, uint32_t, 16)
UNSIGNED(u32, uint32_t, int32_t, uint32_t, 32)
UNSIGNED(u64, uint64_t, int64_t, uint64_t, 64)

/* max and min give b where the comparison fails, as in ir.numerics; above is the order of sorts, NaN the greatest. */
#define FLOATING(t, type)                                                                                     \
  static inline type max_##t(type a, type b) { return a > b ? a : b; }                                        \
  static inline type min_##t(type a, type b) { return a < b ? a : b; }                                        \
  static inline bool above_##t(type a, type b) { return a > b || (a != a && b == b); }                        \
  static inline type sign_##t(type a) { return a > 0 ? 1 : a < 0 ? -1 : a; }                                  \
  static inline int8_t convert_##t##_i8(type a) {                                                             \
    return (int8_t)(a != a ? 0 : a <= -128 ? -128 : a >= 127 ? 127 : a);                                      \
  }                                                                                                           \
  static inline int16_t convert_##t##_i16(type a) {                                                           \
    return (int16_t)(a != a ? 0 : a <= -32768 ? -32768 : a >= 32767 ? 32767 : a);                             \
  }                                                                                                           \
  static inline int32_t convert_##t##_i32(type a) {                                                           \
    return a != a ? 0 : a <= (type)INT32_MIN ? INT32_MIN : a >= (type)INT32_MAX ? INT32_MAX : (int32_t)a;     \
  }                                                                                                           \
  static inline int64_t convert_##t##_i64(type a) {                                                           \
    return a != a ? 0 : a <= (type)INT64_MIN ? INT64_MIN : a >= (type)INT64_MAX ? INT64_MAX : (int64_t)a;     \
  }                                                                                                           \
  static inline uint8_t convert_##t##_u8(type a) { return (uint8_t)(a > 0 ? a < 255 ? a : 255 : 0); }         \
  static inline uint16_t convert_##t##_u16(type a) { return (uint16_t)(a > 0 ? a < 65535 ? a : 65535 : 0); }  \
  static inline uint32_t convert_##t##_u32(type a) {                                                          \
    return a > 0 ? a < (type)UINT32_MAX ? (uint32_t)a : UINT32_MAX : 0;                                       \
  }                                                                                                           \
  static inline uint64_t convert_##t##_u64(type a) {                                                          \
    return a > 0 ? a < (type)UINT64_MAX ? (uint64_t)a : UINT64_MAX : 0;                                       \
  }

FLOATING(f32, float)
FLOATING(f64, double)

/* The lanes of a reduction fold in `ir.numerics`' order. */
#define FOLD(name, type, combine)                                                                             \
  static inline type fold_##name(type lane[16]) {                                                             \
    for (int half = 8; half; half /= 2)                                                                       \
      for (int l = 0; l < half; l++) lane[l] = combine;                                                       \
    return lane[0];                                                                                           \
  }
FOLD(sum_f32, float, lane[l] + lane[l + half])
FOLD(sum_f64, double, lane[l] + lane[l + half])
FOLD(prod_f32, float, lane[l] * lane[l + half])
FOLD(prod_f64, double, lane[l] * lane[l + half])
FOLD(max_f32, float, max_f32(lane[l], lane[l + half]))
FOLD(max_f64, double, max_f64(lane[l], lane[l + half]))
FOLD(min_f32, float, min_f32(lane[l], lane[l + half]))
FOLD(min_f64, double, min_f64(lane[l], lane[l + half]))

#undef FOLD
#undef INTEGER
#undef SIGNED
#undef UNSIGNED
#undef FLOATING

#define BITCAST(from, from_type, to, to_type)                                                                 \
  static inline to_type bitcast_##from##_##to(from_type a) {                                                  \
    to_type b;                                                                                                \
    memcpy(&b, &a, sizeof b);                                                                                 \
    return b;                                                                                                 \
  }

BITCAST(f32, float, u32, uint32_t)
BITCAST(u32, uint32_t, f32, float)
BITCAST(f64, double, u64, uint64_t)
BITCAST(u64, uint64_t, f64, double)

#undef BITCAST

/* Half floats are held as their bits and computed as f32. Subnormal halves are whole numbers of 2^-24. */
static inline float load_f16(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
  const float subnormal = (float)rest * 0x1p-24f;
  const uint32_t normal = (rest << 13) + (rest < 0x7c00u ? 112u << 23 : 224u << 23);
  return bitcast_u32_f32(sign | (rest < 0x400u ? bitcast_f32_u32(subnormal) : normal));
}

static inline uint16_t store_f16(float x) {
  const uint32_t bits = bitcast_f32_u32(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  const uint32_t normal = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13;
  /* Adding 0.5 leaves the half's bits at the end of the sum, rounded by the addition itself. */
  const uint32_t subnormal = bitcast_f32_u32(bitcast_u32_f32(rest < 0x38800000u ? rest : 0) + 0.5f) - 0x3f000000u;
  const uint32_t large = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return (uint16_t)(sign | (rest >= 0x47800000u ? large : rest < 0x38800000u ? subnormal : normal));
}

static inline float load_bf16(uint16_t h) { return bitcast_u32_f32((uint32_t)h << 16); }

static inline uint16_t store_bf16(float x) {
  const uint32_t bits = bitcast_f32_u32(x);
  return (uint16_t)((x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline int64_t clamp_index(int64_t i, int64_t low, int64_t high) { return i < low ? low : i > high ? high : i; }

#endif
