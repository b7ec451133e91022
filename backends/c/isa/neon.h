/* The vector words for aarch64 with dot products (int8 matrix products where the compiler has them): four registers of
 * four lanes. Their meaning: isa/generic.h. */
#ifndef INFERC_ISA_H
#define INFERC_ISA_H
#include <arm_neon.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "bit-exact results need IEEE arithmetic: compile without -ffast-math"
#endif
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, REGISTERS = 8 };
typedef struct { float32x4_t a, b, c, d; } vf32;
typedef struct { int32x4_t a, b, c, d; } vi32;
typedef struct { uint8x16_t a, b, c, d; } vu8;
typedef int8x16_t vquad;
typedef vi32 vdot;
/* f of each register */
#define EACH1_(f, x) {f((x).a), f((x).b), f((x).c), f((x).d)}
#define EACH2_(f, x, y) {f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d)}
#define EACH3_(f, x, y, z) {f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b), f((x).c, (y).c, (z).c), f((x).d, (y).d, (z).d)}
#define F32_(f, x, y) ((vf32)EACH2_(f, x, y))
#define I32_(f, x, y) ((vi32)EACH2_(f, x, y))

/* ---- f32 ---- */
INLINE vf32 f32_splat(float x) { const float32x4_t v = vdupq_n_f32(x); return (vf32){v, v, v, v}; }
INLINE vf32 f32_zero(void) { return f32_splat(0.0f); }
INLINE vf32 f32_load(const float *p) { return (vf32){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
INLINE void f32_store(float *p, vf32 x) {
  vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d);
}
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
INLINE vf32 f32_add(vf32 x, vf32 y) { return F32_(vaddq_f32, x, y); }
INLINE vf32 f32_sub(vf32 x, vf32 y) { return F32_(vsubq_f32, x, y); }
INLINE vf32 f32_mul(vf32 x, vf32 y) { return F32_(vmulq_f32, x, y); }
INLINE vf32 f32_div(vf32 x, vf32 y) { return F32_(vdivq_f32, x, y); }
/* fmax and fmin treat NaN and zeros otherwise */
INLINE float32x4_t greater(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
INLINE float32x4_t less(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
INLINE vf32 f32_max(vf32 x, vf32 y) { return F32_(greater, x, y); }
INLINE vf32 f32_min(vf32 x, vf32 y) { return F32_(less, x, y); }
INLINE vf32 f32_sqrt(vf32 x) { return (vf32)EACH1_(vsqrtq_f32, x); }
INLINE vf32 f32_fma(vf32 x, vf32 y, vf32 z) { return (vf32)EACH3_(vfmaq_f32, z, x, y); }
INLINE vf32 f32_abs(vf32 x) { return (vf32)EACH1_(vabsq_f32, x); }
INLINE vf32 f32_rint(vf32 x) { return (vf32)EACH1_(vrndnq_f32, x); }
INLINE vf32 f32_select_gt(vf32 p, vf32 q, vf32 x, vf32 y) {
  const struct { uint32x4_t a, b, c, d; } gt = EACH2_(vcgtq_f32, p, q);
  return (vf32)EACH3_(vbslq_f32, gt, x, y);
}
INLINE vi32 f32_bits(vf32 x) { return (vi32)EACH1_(vreinterpretq_s32_f32, x); }
INLINE vf32 f32_of_bits(vi32 x) { return (vf32)EACH1_(vreinterpretq_f32_s32, x); }
INLINE vf32 f32_from_i32(vi32 x) { return (vf32)EACH1_(vcvtq_f32_s32, x); }
/* The conversion saturates and makes 0 of NaN: both become INT32_MIN. */
INLINE int32x4_t i32_from(float32x4_t x) {
  return vbslq_s32(vcltq_f32(x, vdupq_n_f32(0x1p31f)), vcvtq_s32_f32(x), vdupq_n_s32(INT32_MIN));
}
INLINE vi32 i32_from_f32(vf32 x) { return (vi32)EACH1_(i32_from, x); }
INLINE float32x4_t exponent2(int32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
INLINE float32x4_t ldexp_(float32x4_t v, float32x4_t n) {
  const int32x4_t power = vcvtq_s32_f32(n), half = vshrq_n_s32(power, 1);
  return vmulq_f32(vmulq_f32(v, exponent2(half)), exponent2(vsubq_s32(power, half)));
}
INLINE vf32 f32_ldexp(vf32 v, vf32 n) { return F32_(ldexp_, v, n); }
INLINE float f32_sum(vf32 x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
INLINE float f32_hmax(vf32 x) {
  const float32x4_t four = greater(greater(x.a, x.c), greater(x.b, x.d));
  const float32x4_t two = greater(four, vextq_f32(four, four, 2));
  return vgetq_lane_f32(greater(two, vextq_f32(two, two, 1)), 0);
}
INLINE void transpose_four(float32x4_t *x) {
  const float32x4x2_t a = vtrnq_f32(x[0], x[1]), b = vtrnq_f32(x[2], x[3]);
  UNROLL for (int i = 0; i < 2; i++) {
    x[i] = vcombine_f32(vget_low_f32(a.val[i]), vget_low_f32(b.val[i]));
    x[i + 2] = vcombine_f32(vget_high_f32(a.val[i]), vget_high_f32(b.val[i]));
  }
}
INLINE void f32_transpose(vf32 *x) {
  float32x4_t m[4][4][4]; /* by rows, columns and row of a block of four by four */
  UNROLL for (int i = 0; i < 16; i++) {
    float32x4_t(*to)[4] = m[i / 4];
    to[0][i % 4] = x[i].a, to[1][i % 4] = x[i].b, to[2][i % 4] = x[i].c, to[3][i % 4] = x[i].d;
  }
  UNROLL for (int i = 0; i < 16; i++) transpose_four(m[i / 4][i % 4]);
  UNROLL for (int i = 0; i < 16; i++)
    x[i] = (vf32){m[0][i / 4][i % 4], m[1][i / 4][i % 4], m[2][i / 4][i % 4], m[3][i / 4][i % 4]};
}

/* ---- i32 ---- */
INLINE vi32 i32_splat(int32_t x) { const int32x4_t v = vdupq_n_s32(x); return (vi32){v, v, v, v}; }
INLINE vi32 i32_zero(void) { return i32_splat(0); }
INLINE vi32 i32_load(const int32_t *p) { return (vi32){vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}; }
INLINE void i32_store(int32_t *p, vi32 x) {
  vst1q_s32(p, x.a), vst1q_s32(p + 4, x.b), vst1q_s32(p + 8, x.c), vst1q_s32(p + 12, x.d);
}
INLINE vi32 i32_add(vi32 x, vi32 y) { return I32_(vaddq_s32, x, y); }
INLINE vi32 i32_sub(vi32 x, vi32 y) { return I32_(vsubq_s32, x, y); }
INLINE vi32 i32_mul(vi32 x, vi32 y) { return I32_(vmulq_s32, x, y); }
INLINE vi32 i32_and(vi32 x, vi32 y) { return I32_(vandq_s32, x, y); }
INLINE vi32 i32_or(vi32 x, vi32 y) { return I32_(vorrq_s32, x, y); }
INLINE vi32 i32_shl(vi32 x, int n) { return I32_(vshlq_s32, x, i32_splat(n)); }
INLINE vi32 i32_shr(vi32 x, int n) { return I32_(vshlq_s32, x, i32_splat(-n)); }
INLINE int32_t i32_sum(vi32 x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
INLINE int16x8_t narrow(int32x4_t x, int32x4_t y) { return vcombine_s16(vmovn_s32(x), vmovn_s32(y)); }
INLINE void i32_store_s8(int8_t *p, vi32 x) {
  vst1q_s8(p, vcombine_s8(vmovn_s16(narrow(x.a, x.b)), vmovn_s16(narrow(x.c, x.d))));
}
INLINE vf32 f32_load_s8(const int8_t *p) {
  const int8x16_t x = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
  return f32_from_i32((vi32){vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                             vmovl_high_s16(high)});
}

/* ---- f16 and bf16 ---- */
INLINE float f16_value(uint16_t h) { __fp16 x; memcpy(&x, &h, 2); return (float)x; }
INLINE uint16_t f16_bits(float x) { const __fp16 h = (__fp16)x; uint16_t r; memcpy(&r, &h, 2); return r; }
INLINE float32x4_t f16_4(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE vf32 f32_load_f16(const uint16_t *p) { return (vf32){f16_4(p), f16_4(p + 4), f16_4(p + 8), f16_4(p + 12)}; }
INLINE uint16x4_t f16_bits_4(float32x4_t x) { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }
INLINE void f32_store_f16(uint16_t *p, vf32 x) {
  vst1q_u16(p, vcombine_u16(f16_bits_4(x.a), f16_bits_4(x.b)));
  vst1q_u16(p + 8, vcombine_u16(f16_bits_4(x.c), f16_bits_4(x.d)));
}
INLINE float32x4_t bf16_4(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
INLINE vf32 f32_load_bf16(const uint16_t *p) { return (vf32){bf16_4(p), bf16_4(p + 4), bf16_4(p + 8), bf16_4(p + 12)}; }
INLINE uint16x4_t bf16_bits_4(float32x4_t x) {
  const uint32x4_t u = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(u, odd), vdupq_n_u32(0x7fff));
  const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}
INLINE void f32_store_bf16(uint16_t *p, vf32 x) {
  vst1q_u16(p, vcombine_u16(bf16_bits_4(x.a), bf16_bits_4(x.b)));
  vst1q_u16(p + 8, vcombine_u16(bf16_bits_4(x.c), bf16_bits_4(x.d)));
}
INLINE float32x4_t flushed_where(float32x4_t x, float32x4_t magnitude, float limit) {
  const uint32x4_t tiny = vcaltq_f32(magnitude, vdupq_n_f32(limit)), value = vandq_u32(tiny, vdupq_n_u32(0x7fffffff));
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), value));
}
INLINE float32x4_t flushed(float32x4_t x) { return flushed_where(x, x, 0x1p-126f); }
INLINE float32x4_t fma_flushed(float32x4_t x, float32x4_t y, float32x4_t z) {
  const float32x4_t up = vdupq_n_f32(0x1p32f), high = vmulq_n_f32(z, 0x1p64f);
  return flushed_where(vfmaq_f32(z, x, y), vfmaq_f32(high, vmulq_f32(x, up), vmulq_f32(y, up)), 0x1p-62f);
}
INLINE float32x4_t bf16_odd(int32x4_t pairs) {
  return flushed(vreinterpretq_f32_s32(vandq_s32(pairs, vdupq_n_s32((int32_t)0xffff0000))));
}
INLINE float32x4_t bf16_even(int32x4_t pairs) { return flushed(vreinterpretq_f32_s32(vshlq_n_s32(pairs, 16))); }
INLINE float32x4_t dot2_bf16_4(float32x4_t acc, int32x4_t w, int32x4_t x) { /* bfdot rounds otherwise */
  return fma_flushed(bf16_even(x), bf16_even(w), fma_flushed(bf16_odd(x), bf16_odd(w), flushed(acc)));
}
INLINE vf32 dot2_bf16(vf32 acc, vi32 w, vi32 x) { return (vf32)EACH3_(dot2_bf16_4, acc, w, x); }

/* ---- bytes and dot products: sdot sums in 32 bits ---- */
INLINE vu8 u8_splat_(uint8_t x) { const uint8x16_t v = vdupq_n_u8(x); return (vu8){v, v, v, v}; }
INLINE vu8 u8_load(const uint8_t *p) { return (vu8){vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
INLINE void u8_store(uint8_t *p, vu8 x) {
  vst1q_u8(p, x.a), vst1q_u8(p + 16, x.b), vst1q_u8(p + 32, x.c), vst1q_u8(p + 48, x.d);
}
INLINE vu8 u8_and_splat(vu8 x, uint8_t y) { return (vu8)EACH2_(vandq_u8, x, u8_splat_(y)); }
INLINE vu8 u8_or(vu8 x, vu8 y) { return (vu8)EACH2_(vorrq_u8, x, y); }
INLINE uint8x16_t shift16(uint8x16_t x, int n) { /* left; right where n < 0 */
  return vreinterpretq_u8_u16(vshlq_u16(vreinterpretq_u16_u8(x), vdupq_n_s16((int16_t)n)));
}
INLINE vu8 u8_shr16(vu8 x, int n) { return (vu8){shift16(x.a, -n), shift16(x.b, -n), shift16(x.c, -n), shift16(x.d, -n)}; }
INLINE vu8 u8_shl16(vu8 x, int n) { return (vu8){shift16(x.a, n), shift16(x.b, n), shift16(x.c, n), shift16(x.d, n)}; }
INLINE vu8 u8_lookup(const uint8_t *codes, vu8 index) {
  const uint8x16_t t = vld1q_u8(codes);
  return (vu8){vqtbl1q_u8(t, index.a), vqtbl1q_u8(t, index.b), vqtbl1q_u8(t, index.c), vqtbl1q_u8(t, index.d)};
}
INLINE vquad quad_load(const int8_t *p) { int32_t x; memcpy(&x, p, 4); return vreinterpretq_s8_s32(vdupq_n_s32(x)); }
#define DOT_QUADS(bits) 8
INLINE int32x4_t sdot(int32x4_t d, uint8x16_t w, vquad x) { return vdotq_s32(d, vreinterpretq_s8_u8(w), x); }
INLINE vdot dot4_s8s8(vdot d, vu8 w, vquad x) {
  return (vdot){sdot(d.a, w.a, x), sdot(d.b, w.b, x), sdot(d.c, w.c, x), sdot(d.d, w.d, x)};
}
INLINE vdot dot4_u7s8(vdot d, vu8 w, vquad x) { return dot4_s8s8(d, w, x); }
enum { S8_ZERO = 0 };
INLINE vu8 s8_weights(vu8 w) { return w; }
INLINE vdot dot_begin(vi32 sum) { return sum; }
INLINE vi32 dot_end(vi32 sum, vdot d) { (void)sum; return d; }

#ifdef __ARM_FEATURE_MATMUL_INT8
/* ---- products of two tokens: smmla multiplies two rows by two tokens over eight k ---- */
typedef struct { int32x4_t rows[8]; } vpair; /* rows 2i and 2i + 1, each by the first token and by the second */
INLINE vpair pair_zero(void) { const int32x4_t z = vdupq_n_s32(0); return (vpair){{z, z, z, z, z, z, z, z}}; }
INLINE void zip_store(uint8_t *p, uint8x16_t even, uint8x16_t odd) {
  const uint32x4_t x = vreinterpretq_u32_u8(even), y = vreinterpretq_u32_u8(odd);
  vst1q_u8(p, vreinterpretq_u8_u32(vzip1q_u32(x, y)));
  vst1q_u8(p + 16, vreinterpretq_u8_u32(vzip2q_u32(x, y)));
}
/* Two quads of every row, side by side. */
INLINE void pair_store(uint8_t *p, vu8 even, vu8 odd) {
  zip_store(p, even.a, odd.a), zip_store(p + 32, even.b, odd.b);
  zip_store(p + 64, even.c, odd.c), zip_store(p + 96, even.d, odd.d);
}
/* d + the dot products of eight signed weights of each row, as pair_store leaves them, with eight values of two tokens. */
INLINE vpair pair_dot8(vpair d, const uint8_t *w, const int8_t *first, const int8_t *second) {
  const int8x16_t x = vcombine_s8(vld1_s8(first), vld1_s8(second));
  UNROLL for (int i = 0; i < 8; i++) d.rows[i] = vmmlaq_s32(d.rows[i], vreinterpretq_s8_u8(vld1q_u8(w + 16 * i)), x);
  return d;
}
/* Those of one token. */
INLINE vi32 pair_sum(vpair d, int second) {
  const int32x4_t *r = d.rows;
  if (second) return (vi32){vuzp2q_s32(r[0], r[1]), vuzp2q_s32(r[2], r[3]), vuzp2q_s32(r[4], r[5]), vuzp2q_s32(r[6], r[7])};
  return (vi32){vuzp1q_s32(r[0], r[1]), vuzp1q_s32(r[2], r[3]), vuzp1q_s32(r[4], r[5]), vuzp1q_s32(r[6], r[7])};
}
#endif
#undef EACH1_
#undef EACH2_
#undef EACH3_
#undef F32_
#undef I32_
#endif
