/* The vector words for WebAssembly's SIMD128: four registers of four lanes. Their meaning: isa/generic.h.
 * Of relaxed SIMD only the dot product is used, with an operand of 7 bits, which is exact everywhere. */
#ifndef INFERC_ISA_H
#define INFERC_ISA_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <wasm_simd128.h>

#include "scalar.h"

#ifdef __FAST_MATH__
#error "bit-exact results need IEEE arithmetic: compile without -ffast-math"
#endif
#define UNROLL _Pragma("unroll")
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, REGISTERS = 4 };
typedef struct { v128_t a, b, c, d; } vf32;
typedef vf32 vi32, vu8;
typedef v128_t vquad;
/* f of each register */
#define EACH1_(f, x) ((vf32){f((x).a), f((x).b), f((x).c), f((x).d)})
#define EACH2_(f, x, y) ((vf32){f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d)})
#define EACH3_(f, x, y, z) \
  ((vf32){f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b), f((x).c, (y).c, (z).c), f((x).d, (y).d, (z).d)})
INLINE vf32 four(v128_t x) { return (vf32){x, x, x, x}; }
INLINE vf32 load_four(const uint8_t *p) {
  return (vf32){wasm_v128_load(p), wasm_v128_load(p + 16), wasm_v128_load(p + 32), wasm_v128_load(p + 48)};
}
INLINE void store_four(uint8_t *p, vf32 x) {
  wasm_v128_store(p, x.a), wasm_v128_store(p + 16, x.b), wasm_v128_store(p + 32, x.c), wasm_v128_store(p + 48, x.d);
}

/* ---- f32 ---- */
INLINE vf32 f32_splat(float x) { return four(wasm_f32x4_splat(x)); }
INLINE vf32 f32_zero(void) { return f32_splat(0.0f); }
INLINE vf32 f32_load(const float *p) { return load_four((const void *)p); }
INLINE void f32_store(float *p, vf32 x) { store_four((void *)p, x); }
INLINE vf32 f32_load_n(const float *p, int n) {
  float lanes[16] = {0};
  if (n == 16) return f32_load(p);
  memcpy(lanes, p, (size_t)n * sizeof *p);
  return f32_load(lanes);
}
INLINE void f32_store_n(float *p, vf32 x, int n) {
  float lanes[16];
  f32_store(lanes, x);
  memcpy(p, lanes, (size_t)n * sizeof *p);
}
INLINE vf32 f32_add(vf32 x, vf32 y) { return EACH2_(wasm_f32x4_add, x, y); }
INLINE vf32 f32_sub(vf32 x, vf32 y) { return EACH2_(wasm_f32x4_sub, x, y); }
INLINE vf32 f32_mul(vf32 x, vf32 y) { return EACH2_(wasm_f32x4_mul, x, y); }
INLINE vf32 f32_div(vf32 x, vf32 y) { return EACH2_(wasm_f32x4_div, x, y); }
INLINE vf32 f32_max(vf32 x, vf32 y) { return EACH2_(wasm_f32x4_pmax, y, x); } /* pmax(a, b): a < b ? b : a */
INLINE vf32 f32_min(vf32 x, vf32 y) { return EACH2_(wasm_f32x4_pmin, y, x); }
INLINE vf32 f32_sqrt(vf32 x) { return EACH1_(wasm_f32x4_sqrt, x); }
INLINE vf32 f32_abs(vf32 x) { return EACH1_(wasm_f32x4_abs, x); }
INLINE vf32 f32_rint(vf32 x) { return EACH1_(wasm_f32x4_nearest, x); }
INLINE vf32 f32_select_gt(vf32 p, vf32 q, vf32 x, vf32 y) {
  const vf32 gt = EACH2_(wasm_f32x4_gt, p, q);
  return EACH3_(wasm_v128_bitselect, x, y, gt);
}
INLINE vi32 f32_bits(vf32 x) { return x; }
INLINE vf32 f32_of_bits(vi32 x) { return x; }
INLINE vf32 f32_from_i32(vi32 x) { return EACH1_(wasm_f32x4_convert_i32x4, x); }
/* The conversion saturates and makes 0 of NaN: both become INT32_MIN. */
INLINE v128_t i32_from(v128_t x) {
  const v128_t fits = wasm_f32x4_lt(x, wasm_f32x4_const_splat(0x1p31f));
  return wasm_v128_bitselect(wasm_i32x4_trunc_sat_f32x4(x), wasm_i32x4_const_splat(INT32_MIN), fits);
}
INLINE vi32 i32_from_f32(vf32 x) { return EACH1_(i32_from, x); }
INLINE v128_t exponent2(v128_t n) { return wasm_i32x4_shl(wasm_i32x4_add(n, wasm_i32x4_const_splat(127)), 23); }
INLINE v128_t ldexp_(v128_t v, v128_t n) {
  const v128_t power = wasm_i32x4_trunc_sat_f32x4(n), half = wasm_i32x4_shr(power, 1);
  return wasm_f32x4_mul(wasm_f32x4_mul(v, exponent2(half)), exponent2(wasm_i32x4_sub(power, half)));
}
INLINE vf32 f32_ldexp(vf32 v, vf32 n) { return EACH2_(ldexp_, v, n); }
INLINE v128_t high_half(v128_t x) { return wasm_i64x2_shuffle(x, x, 1, 1); }
INLINE float f32_sum(vf32 x) {
  v128_t s = wasm_f32x4_add(wasm_f32x4_add(x.a, x.c), wasm_f32x4_add(x.b, x.d));
  s = wasm_f32x4_add(s, high_half(s));
  return wasm_f32x4_extract_lane(s, 0) + wasm_f32x4_extract_lane(s, 1);
}
INLINE float f32_hmax(vf32 x) {
  v128_t m = wasm_f32x4_pmax(wasm_f32x4_pmax(x.d, x.b), wasm_f32x4_pmax(x.c, x.a));
  m = wasm_f32x4_pmax(high_half(m), m);
  return max_f32(wasm_f32x4_extract_lane(m, 0), wasm_f32x4_extract_lane(m, 1));
}

/* The product of two floats is exact in double; their sum with a third rounds once more, here to odd where it is inexact
 * (down, then the last bit set), so that rounding to float afterwards is as if from the exact sum. */
INLINE v128_t fma_odd(v128_t x, v128_t y, v128_t z) {
  const v128_t p = wasm_f64x2_mul(wasm_f64x2_promote_low_f32x4(x), wasm_f64x2_promote_low_f32x4(y));
  const v128_t c = wasm_f64x2_promote_low_f32x4(z), s = wasm_f64x2_add(p, c), t = wasm_f64x2_sub(s, p);
  const v128_t error = wasm_f64x2_add(wasm_f64x2_sub(p, wasm_f64x2_sub(s, t)), wasm_f64x2_sub(c, t));
  const v128_t side = wasm_f64x2_mul(error, s), zero = wasm_f64x2_const_splat(0.0);
  const v128_t up = wasm_f64x2_lt(side, zero), down = wasm_f64x2_gt(side, zero); /* where s lies to the exact sum */
  const v128_t one = wasm_v128_and(wasm_v128_or(up, down), wasm_i64x2_const_splat(1));
  return wasm_v128_or(wasm_i64x2_add(s, up), one);
}
INLINE v128_t joined(v128_t low, v128_t high) {
  return wasm_i64x2_shuffle(wasm_f32x4_demote_f64x2_zero(low), wasm_f32x4_demote_f64x2_zero(high), 0, 2);
}
INLINE v128_t fma_4(v128_t x, v128_t y, v128_t z) {
  return joined(fma_odd(x, y, z), fma_odd(high_half(x), high_half(y), high_half(z)));
}
INLINE vf32 f32_fma(vf32 x, vf32 y, vf32 z) { return EACH3_(fma_4, x, y, z); }
INLINE void transpose_four(v128_t *x) {
  const v128_t a = wasm_i32x4_shuffle(x[0], x[1], 0, 4, 1, 5), b = wasm_i32x4_shuffle(x[2], x[3], 0, 4, 1, 5);
  const v128_t c = wasm_i32x4_shuffle(x[0], x[1], 2, 6, 3, 7), d = wasm_i32x4_shuffle(x[2], x[3], 2, 6, 3, 7);
  x[0] = wasm_i64x2_shuffle(a, b, 0, 2), x[1] = wasm_i64x2_shuffle(a, b, 1, 3);
  x[2] = wasm_i64x2_shuffle(c, d, 0, 2), x[3] = wasm_i64x2_shuffle(c, d, 1, 3);
}
INLINE void f32_transpose(vf32 *x) {
  v128_t m[4][4][4]; /* by rows, columns and row of a block of four by four */
  UNROLL for (int i = 0; i < 16; i++) {
    v128_t(*to)[4] = m[i / 4];
    to[0][i % 4] = x[i].a, to[1][i % 4] = x[i].b, to[2][i % 4] = x[i].c, to[3][i % 4] = x[i].d;
  }
  UNROLL for (int i = 0; i < 16; i++) transpose_four(m[i / 4][i % 4]);
  UNROLL for (int i = 0; i < 16; i++)
    x[i] = (vf32){m[0][i / 4][i % 4], m[1][i / 4][i % 4], m[2][i / 4][i % 4], m[3][i / 4][i % 4]};
}

/* ---- i32 ---- */
INLINE vi32 i32_splat(int32_t x) { return four(wasm_i32x4_splat(x)); }
INLINE vi32 i32_zero(void) { return i32_splat(0); }
INLINE vi32 i32_load(const int32_t *p) { return load_four((const void *)p); }
INLINE void i32_store(int32_t *p, vi32 x) { store_four((void *)p, x); }
INLINE vi32 i32_add(vi32 x, vi32 y) { return EACH2_(wasm_i32x4_add, x, y); }
INLINE vi32 i32_sub(vi32 x, vi32 y) { return EACH2_(wasm_i32x4_sub, x, y); }
INLINE vi32 i32_mul(vi32 x, vi32 y) { return EACH2_(wasm_i32x4_mul, x, y); }
INLINE vi32 i32_and(vi32 x, vi32 y) { return EACH2_(wasm_v128_and, x, y); }
INLINE vi32 i32_or(vi32 x, vi32 y) { return EACH2_(wasm_v128_or, x, y); }
#define SHIFTED_(f, x, n) ((vf32){f((x).a, n), f((x).b, n), f((x).c, n), f((x).d, n)})
INLINE vi32 i32_shl(vi32 x, int n) { return SHIFTED_(wasm_i32x4_shl, x, (uint32_t)n); }
INLINE vi32 i32_shr(vi32 x, int n) { return SHIFTED_(wasm_i32x4_shr, x, (uint32_t)n); }
INLINE int32_t i32_sum(vi32 x) {
  v128_t s = wasm_i32x4_add(wasm_i32x4_add(x.a, x.b), wasm_i32x4_add(x.c, x.d));
  s = wasm_i32x4_add(s, high_half(s));
  return add_i32(wasm_i32x4_extract_lane(s, 0), wasm_i32x4_extract_lane(s, 1));
}
INLINE void i32_store_s8(int8_t *p, vi32 x) {
  wasm_v128_store(p, wasm_i8x16_narrow_i16x8(wasm_i16x8_narrow_i32x4(x.a, x.b), wasm_i16x8_narrow_i32x4(x.c, x.d)));
}
INLINE vf32 f32_load_s8(const int8_t *p) {
  const v128_t low = wasm_i16x8_load8x8(p), high = wasm_i16x8_load8x8(p + 8);
  return f32_from_i32((vi32){wasm_i32x4_extend_low_i16x8(low), wasm_i32x4_extend_high_i16x8(low),
                             wasm_i32x4_extend_low_i16x8(high), wasm_i32x4_extend_high_i16x8(high)});
}

/* ---- f16 and bf16 ---- */
INLINE float f16_value(uint16_t h) { return load_f16(h); }
INLINE uint16_t f16_bits(float x) { return store_f16(x); }
INLINE v128_t f16_4(const uint16_t *p) { /* the multiplication moves the exponent and normalises */
  const v128_t h = wasm_u32x4_load16x4(p), magnitude = wasm_v128_and(h, wasm_i32x4_const_splat(0x7fff));
  const v128_t finite = wasm_f32x4_mul(wasm_i32x4_shl(magnitude, 13), wasm_f32x4_const_splat(0x1p112f));
  const v128_t special = wasm_i32x4_ge(magnitude, wasm_i32x4_const_splat(0x7c00));
  const v128_t sign = wasm_i32x4_shl(wasm_v128_xor(h, magnitude), 16);
  return wasm_v128_or(wasm_v128_or(finite, sign), wasm_v128_and(special, wasm_i32x4_const_splat(0x7f800000)));
}
INLINE vf32 f32_load_f16(const uint16_t *p) { return (vf32){f16_4(p), f16_4(p + 4), f16_4(p + 8), f16_4(p + 12)}; }
INLINE v128_t f16_bits_4(v128_t x) { /* store_f16 of scalar.h */
  const v128_t magnitude = wasm_f32x4_abs(x), sign = wasm_u32x4_shr(wasm_v128_xor(x, magnitude), 16);
  const v128_t most = wasm_u32x4_min(magnitude, wasm_i32x4_const_splat(0x47800000));
  const v128_t odd = wasm_v128_and(wasm_u32x4_shr(most, 13), wasm_i32x4_const_splat(1));
  const v128_t sum = wasm_i32x4_add(wasm_i32x4_add(most, odd), wasm_i32x4_const_splat(0xfff - 0x38000000));
  const v128_t half = wasm_f32x4_const_splat(0.5f), is_tiny = wasm_i32x4_lt(magnitude, wasm_i32x4_const_splat(0x38800000));
  const v128_t tiny = wasm_i32x4_sub(wasm_f32x4_add(magnitude, half), half);
  const v128_t rounded = wasm_v128_bitselect(tiny, wasm_u32x4_shr(sum, 13), is_tiny);
  const v128_t number = wasm_v128_bitselect(rounded, wasm_i32x4_const_splat(0x7e00), wasm_f32x4_eq(x, x));
  return wasm_v128_or(sign, number);
}
INLINE void f32_store_f16(uint16_t *p, vf32 x) {
  wasm_v128_store(p, wasm_u16x8_narrow_i32x4(f16_bits_4(x.a), f16_bits_4(x.b)));
  wasm_v128_store(p + 8, wasm_u16x8_narrow_i32x4(f16_bits_4(x.c), f16_bits_4(x.d)));
}
INLINE v128_t bf16_4(const uint16_t *p) { return wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16); }
INLINE vf32 f32_load_bf16(const uint16_t *p) { return (vf32){bf16_4(p), bf16_4(p + 4), bf16_4(p + 8), bf16_4(p + 12)}; }
INLINE v128_t bf16_bits_4(v128_t x) {
  const v128_t odd = wasm_v128_and(wasm_u32x4_shr(x, 16), wasm_i32x4_const_splat(1));
  const v128_t rounded = wasm_i32x4_add(wasm_i32x4_add(x, odd), wasm_i32x4_const_splat(0x7fff));
  const v128_t quiet = wasm_v128_or(x, wasm_i32x4_const_splat(0x400000));
  return wasm_u32x4_shr(wasm_v128_bitselect(rounded, quiet, wasm_f32x4_eq(x, x)), 16);
}
INLINE void f32_store_bf16(uint16_t *p, vf32 x) {
  wasm_v128_store(p, wasm_u16x8_narrow_i32x4(bf16_bits_4(x.a), bf16_bits_4(x.b)));
  wasm_v128_store(p + 8, wasm_u16x8_narrow_i32x4(bf16_bits_4(x.c), bf16_bits_4(x.d)));
}
INLINE v128_t flushed(v128_t x) {
  const v128_t tiny = wasm_f32x4_lt(wasm_f32x4_abs(x), wasm_f32x4_const_splat(0x1p-126f));
  return wasm_v128_andnot(x, wasm_v128_and(tiny, wasm_i32x4_const_splat(0x7fffffff)));
}
/* Below this a sum of doubles, rounded to 24 bits, lies below 2^-126. */
INLINE v128_t flushed_64(v128_t x) {
  const v128_t tiny = wasm_f64x2_lt(wasm_f64x2_abs(x), wasm_f64x2_const_splat(0x1p-126 - 0x1p-151));
  return wasm_v128_andnot(x, wasm_v128_and(tiny, wasm_i64x2_const_splat(INT64_MAX)));
}
INLINE v128_t fma_flushed(v128_t x, v128_t y, v128_t z) {
  return joined(flushed_64(fma_odd(x, y, z)), flushed_64(fma_odd(high_half(x), high_half(y), high_half(z))));
}
INLINE v128_t bf16_odd(v128_t pairs) { return flushed(wasm_v128_and(pairs, wasm_i32x4_const_splat((int32_t)0xffff0000))); }
INLINE v128_t bf16_even(v128_t pairs) { return flushed(wasm_i32x4_shl(pairs, 16)); }
INLINE v128_t dot2_bf16_4(v128_t acc, v128_t w, v128_t x) {
  return fma_flushed(bf16_even(x), bf16_even(w), fma_flushed(bf16_odd(x), bf16_odd(w), flushed(acc)));
}
INLINE vf32 dot2_bf16(vf32 acc, vi32 w, vi32 x) { return EACH3_(dot2_bf16_4, acc, w, x); }

/* ---- bytes ---- */
INLINE vu8 u8_load(const uint8_t *p) { return load_four(p); }
INLINE void u8_store(uint8_t *p, vu8 x) { store_four(p, x); }
INLINE vu8 u8_and_splat(vu8 x, uint8_t y) { return EACH2_(wasm_v128_and, x, four(wasm_u8x16_splat(y))); }
INLINE vu8 u8_or(vu8 x, vu8 y) { return i32_or(x, y); }
INLINE vu8 u8_shr16(vu8 x, int n) { return SHIFTED_(wasm_u16x8_shr, x, (uint32_t)n); }
INLINE vu8 u8_shl16(vu8 x, int n) { return SHIFTED_(wasm_i16x8_shl, x, (uint32_t)n); }
INLINE vu8 u8_lookup(const uint8_t *codes, vu8 index) {
  return EACH2_(wasm_i8x16_swizzle, four(wasm_v128_load(codes)), index);
}
INLINE vquad quad_load(const int8_t *p) { return wasm_v128_load32_splat(p); }

/* ---- dot products: those that give a lane in two halves are added in the end; where none does, that folds away ---- */
typedef struct { vi32 sum; v128_t halves[4][2]; } vdot;
#define DOT_QUADS(bits) 8
enum { S8_ZERO = 0 };
INLINE vu8 s8_weights(vu8 w) { return w; }
INLINE vdot dot_begin(vi32 sum) {
  const v128_t zero = wasm_i32x4_const_splat(0);
  return (vdot){sum, {{zero, zero}, {zero, zero}, {zero, zero}, {zero, zero}}};
}
INLINE v128_t add_halves(v128_t sum, const v128_t d[2]) {
  const v128_t even = wasm_i32x4_shuffle(d[0], d[1], 0, 2, 4, 6), odd = wasm_i32x4_shuffle(d[0], d[1], 1, 3, 5, 7);
  return wasm_i32x4_add(sum, wasm_i32x4_add(even, odd));
}
INLINE vi32 dot_end(vi32 sum, vdot d) {
  (void)sum;
  return (vi32){add_halves(d.sum.a, d.halves[0]), add_halves(d.sum.b, d.halves[1]), add_halves(d.sum.c, d.halves[2]),
                add_halves(d.sum.d, d.halves[3])};
}
INLINE void dot_halves(v128_t d[2], v128_t w, vquad x) {
  const v128_t wide = wasm_i16x8_extend_low_i8x16(x);
  d[0] = wasm_i32x4_add(d[0], wasm_i32x4_dot_i16x8(wasm_i16x8_extend_low_i8x16(w), wide));
  d[1] = wasm_i32x4_add(d[1], wasm_i32x4_dot_i16x8(wasm_i16x8_extend_high_i8x16(w), wide));
}
INLINE vdot dot4_s8s8(vdot d, vu8 w, vquad x) {
  dot_halves(d.halves[0], w.a, x), dot_halves(d.halves[1], w.b, x);
  dot_halves(d.halves[2], w.c, x), dot_halves(d.halves[3], w.d, x);
  return d;
}
#ifdef __wasm_relaxed_simd__
INLINE v128_t dot_relaxed(v128_t d, v128_t w, vquad x) { return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(x, w, d); }
INLINE vdot dot4_u7s8(vdot d, vu8 w, vquad x) { d.sum = EACH3_(dot_relaxed, d.sum, w, four(x)); return d; }
#else
INLINE vdot dot4_u7s8(vdot d, vu8 w, vquad x) { return dot4_s8s8(d, w, x); }
#endif
#undef EACH1_
#undef EACH2_
#undef EACH3_
#undef SHIFTED_
#endif
