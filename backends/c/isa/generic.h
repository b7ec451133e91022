/* The vector words in plain C: what each one means. 16 lanes of 32 bits, or 64 bytes.
 *
 * Every other isa/NAME.h defines the same words with the same bits. Lane l of a vu8 holds bytes 4l .. 4l+3, a quad.
 * Loads and stores need no alignment beyond the element's. Compile with -ffp-contract=off.
 */
#ifndef INFERC_ISA_H
#define INFERC_ISA_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "bit-exact results need IEEE arithmetic: compile without -ffast-math"
#endif
#ifdef __clang__
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 1") /* here loops over lanes are what compilers should work on */
#endif
#define INLINE static inline __attribute__((always_inline))
#define LANES_(i) for (int i = 0; i < 16; i++)

enum { LANES = 16, REGISTERS = 4 }; /* vf32 that the registers hold: how far kernels unroll */
typedef struct { float v[16]; } vf32;
typedef struct { int32_t v[16]; } vi32;
typedef struct { uint8_t v[64]; } vu8;
typedef struct { int8_t v[4]; } vquad; /* four int8 activations, the same for every lane */
typedef vi32 vdot;                     /* dot products on their way into a vi32 */

/* ---- f32 ---- */
INLINE vf32 f32_splat(float x) { vf32 r; LANES_(i) r.v[i] = x; return r; }
INLINE vf32 f32_zero(void) { return f32_splat(0.0f); }
INLINE vf32 f32_load(const float *p) { vf32 r; memcpy(&r, p, sizeof r); return r; }
INLINE void f32_store(float *p, vf32 a) { memcpy(p, &a, sizeof a); }
/* The first n lanes (0..16); a load leaves the others zero. */
INLINE vf32 f32_load_n(const float *p, int n) { vf32 r; LANES_(i) r.v[i] = i < n ? p[i] : 0.0f; return r; }
INLINE void f32_store_n(float *p, vf32 a, int n) { for (int i = 0; i < n; i++) p[i] = a.v[i]; }
INLINE vf32 f32_add(vf32 a, vf32 b) { LANES_(i) a.v[i] += b.v[i]; return a; }
INLINE vf32 f32_sub(vf32 a, vf32 b) { LANES_(i) a.v[i] -= b.v[i]; return a; }
INLINE vf32 f32_mul(vf32 a, vf32 b) { LANES_(i) a.v[i] *= b.v[i]; return a; }
INLINE vf32 f32_div(vf32 a, vf32 b) { LANES_(i) a.v[i] /= b.v[i]; return a; }
INLINE vf32 f32_max(vf32 a, vf32 b) { LANES_(i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
INLINE vf32 f32_min(vf32 a, vf32 b) { LANES_(i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
INLINE vf32 f32_sqrt(vf32 a) { LANES_(i) a.v[i] = sqrtf(a.v[i]); return a; }
INLINE vf32 f32_fma(vf32 a, vf32 b, vf32 c) { LANES_(i) c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]); return c; }
INLINE vf32 f32_abs(vf32 a) { LANES_(i) a.v[i] = fabsf(a.v[i]); return a; }
INLINE vf32 f32_rint(vf32 a) { LANES_(i) a.v[i] = rintf(a.v[i]); return a; }
/* a > b ? x : y */
INLINE vf32 f32_select_gt(vf32 a, vf32 b, vf32 x, vf32 y) { LANES_(i) x.v[i] = a.v[i] > b.v[i] ? x.v[i] : y.v[i]; return x; }
INLINE vi32 f32_bits(vf32 a) { vi32 r; memcpy(&r, &a, sizeof r); return r; }
INLINE vf32 f32_of_bits(vi32 a) { vf32 r; memcpy(&r, &a, sizeof r); return r; }
INLINE vf32 f32_from_i32(vi32 a) { vf32 r; LANES_(i) r.v[i] = (float)a.v[i]; return r; }
INLINE vf32 f32_load_s8(const int8_t *p) { vf32 r; LANES_(i) r.v[i] = p[i]; return r; }
/* Of a value already rounded by f32_rint; NaN and what does not fit give INT32_MIN. */
INLINE vi32 i32_from_f32(vf32 a) {
  vi32 r;
  LANES_(i) r.v[i] = a.v[i] >= -2147483648.0f && a.v[i] < 2147483648.0f ? (int32_t)a.v[i] : INT32_MIN;
  return r;
}
/* v * 2^n, rounded once: v in [1/2, 2) or NaN, n whole in [-151, 128], or NaN where v is. */
INLINE vf32 f32_ldexp(vf32 v, vf32 n) {
  const vi32 power = i32_from_f32(n);
  vi32 low, high; /* two factors, since 2^n alone may be no normal number */
  LANES_(i) low.v[i] = (int32_t)(((uint32_t)(power.v[i] >> 1) + 127) << 23);
  LANES_(i) high.v[i] = (int32_t)(((uint32_t)power.v[i] - (uint32_t)(power.v[i] >> 1) + 127) << 23);
  return f32_mul(f32_mul(v, f32_of_bits(low)), f32_of_bits(high));
}
/* The tree: lanes i += i+8, then i+4, i+2, i+1. */
INLINE float f32_sum(vf32 a) {
  for (int n = 8; n; n >>= 1) for (int i = 0; i < n; i++) a.v[i] += a.v[i + n];
  return a.v[0];
}
INLINE float f32_hmax(vf32 a) {
  for (int n = 8; n; n >>= 1) for (int i = 0; i < n; i++) a.v[i] = a.v[i] > a.v[i + n] ? a.v[i] : a.v[i + n];
  return a.v[0];
}
/* Lane l of x[i] becomes lane i of x[l], for 16 vectors. */
INLINE void f32_transpose(vf32 *x) {
  vf32 t[16];
  for (int i = 0; i < 16; i++) LANES_(l) t[l].v[i] = x[i].v[l];
  memcpy(x, t, sizeof t);
}

/* ---- f16 and bf16 ---- */
INLINE float f16_value(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  uint32_t bits;
  float r;
  if (exponent == 0) { /* zero or denormal: an exact product */
    const float tiny = (float)mantissa * 0x1p-24f;
    memcpy(&bits, &tiny, 4);
    bits |= sign;
  } else if (exponent == 31)
    bits = sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0);
  else
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  memcpy(&r, &bits, 4);
  return r;
}
/* Round to nearest even. */
INLINE uint16_t f16_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above */
  if (magnitude < 0x38800000) {                                  /* below 2^-14: a multiple of 2^-24, rounded by an addition */
    float a;
    memcpy(&a, &magnitude, 4);
    a += 0.5f;
    uint32_t r;
    memcpy(&r, &a, 4);
    return (uint16_t)(sign | (r - 0x3f000000));
  }
  return (uint16_t)(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}
INLINE vf32 f32_load_f16(const uint16_t *p) { vf32 r; LANES_(i) r.v[i] = f16_value(p[i]); return r; }
INLINE void f32_store_f16(uint16_t *p, vf32 a) { LANES_(i) p[i] = f16_bits(a.v[i]); }
INLINE vf32 f32_load_bf16(const uint16_t *p) {
  vi32 r;
  LANES_(i) r.v[i] = (int32_t)((uint32_t)p[i] << 16);
  return f32_of_bits(r);
}
/* Round to nearest even; denormals are kept, NaN becomes quiet. */
INLINE void f32_store_bf16(uint16_t *p, vf32 a) {
  const vi32 b = f32_bits(a);
  LANES_(i) {
    const uint32_t u = (uint32_t)b.v[i];
    p[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
}
/* Denormals to zero of the same sign. */
INLINE float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
/* fma whose result becomes a zero of its sign where rounding to 24 bits leaves it below 2^-126. The scaled copy decides:
 * just below 2^-126 a denormal would round up where x86 flushes. */
INLINE float fma_flushed(float a, float b, float c) {
  const float r = fmaf(a, b, c);
  return fabsf(fmaf(a * 0x1p32f, b * 0x1p32f, c * 0x1p64f)) < 0x1p-62f ? copysignf(0.0f, r) : r;
}
/* Lane: fma(x.even, w.even, fma(x.odd, w.odd, acc)) of bf16 pairs (even in the low half), operands and results flushed. */
INLINE vf32 dot2_bf16(vf32 acc, vi32 w, vi32 x) {
  LANES_(i) {
    const uint32_t bits[4] = {(uint32_t)x.v[i] & 0xffff0000, (uint32_t)w.v[i] & 0xffff0000, (uint32_t)x.v[i] << 16, (uint32_t)w.v[i] << 16};
    float f[4];
    memcpy(f, bits, sizeof f);
    acc.v[i] = fma_flushed(flushed(f[0]), flushed(f[1]), flushed(acc.v[i]));
    acc.v[i] = fma_flushed(flushed(f[2]), flushed(f[3]), acc.v[i]);
  }
  return acc;
}

/* ---- i32: wraps around ---- */
INLINE vi32 i32_splat(int32_t x) { vi32 r; LANES_(i) r.v[i] = x; return r; }
INLINE vi32 i32_zero(void) { return i32_splat(0); }
INLINE vi32 i32_load(const int32_t *p) { vi32 r; memcpy(&r, p, sizeof r); return r; }
INLINE void i32_store(int32_t *p, vi32 a) { memcpy(p, &a, sizeof a); }
INLINE vi32 i32_add(vi32 a, vi32 b) { LANES_(i) a.v[i] = (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]); return a; }
INLINE vi32 i32_sub(vi32 a, vi32 b) { LANES_(i) a.v[i] = (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i]); return a; }
INLINE vi32 i32_mul(vi32 a, vi32 b) { LANES_(i) a.v[i] = (int32_t)((uint32_t)a.v[i] * (uint32_t)b.v[i]); return a; }
INLINE vi32 i32_and(vi32 a, vi32 b) { LANES_(i) a.v[i] &= b.v[i]; return a; }
INLINE vi32 i32_or(vi32 a, vi32 b) { LANES_(i) a.v[i] |= b.v[i]; return a; }
INLINE vi32 i32_shl(vi32 a, int n) { LANES_(i) a.v[i] = (int32_t)((uint32_t)a.v[i] << n); return a; }
INLINE vi32 i32_shr(vi32 a, int n) { LANES_(i) a.v[i] >>= n; return a; } /* arithmetic */
INLINE int32_t i32_sum(vi32 a) { uint32_t s = 0; LANES_(i) s += (uint32_t)a.v[i]; return (int32_t)s; }
INLINE void i32_store_s8(int8_t *p, vi32 a) { LANES_(i) p[i] = (int8_t)a.v[i]; } /* lanes in [-128, 127] */

/* ---- bytes and dot products ---- */
INLINE vu8 u8_load(const uint8_t *p) { vu8 r; memcpy(&r, p, sizeof r); return r; }
INLINE void u8_store(uint8_t *p, vu8 a) { memcpy(p, &a, sizeof a); }
INLINE vu8 u8_and_splat(vu8 a, uint8_t x) { for (int i = 0; i < 64; i++) a.v[i] &= x; return a; }
INLINE vu8 u8_or(vu8 a, vu8 b) { for (int i = 0; i < 64; i++) a.v[i] |= b.v[i]; return a; }
/* Shifts of 16-bit units (little endian): mask what crosses over from the neighbouring byte. */
INLINE vu8 u8_shr16(vu8 a, int n) {
  for (int i = 0; i < 64; i += 2) {
    const unsigned u = (unsigned)(a.v[i] | a.v[i + 1] << 8) >> n;
    a.v[i] = (uint8_t)u;
    a.v[i + 1] = (uint8_t)(u >> 8);
  }
  return a;
}
INLINE vu8 u8_shl16(vu8 a, int n) {
  for (int i = 0; i < 64; i += 2) {
    const unsigned u = (unsigned)(a.v[i] | a.v[i + 1] << 8) << n;
    a.v[i] = (uint8_t)u;
    a.v[i + 1] = (uint8_t)(u >> 8);
  }
  return a;
}
INLINE vquad quad_load(const int8_t *p) { vquad r; memcpy(&r, p, sizeof r); return r; }

/* codes[index] of each byte, an index being below 16. */
INLINE vu8 u8_lookup(const uint8_t *codes, vu8 index) {
  for (int i = 0; i < 64; i++) index.v[i] = codes[index.v[i]];
  return index;
}

/* A vdot takes dot4s between dot_begin and dot_end: at most DOT_QUADS of weights of so many bits, since some ISAs sum in
 * 16 bits. */
#define DOT_QUADS(bits) 8
/* Lane: d + sum over a quad of w * x; weights at most 127, activations in [-127, 127]. */
INLINE vdot dot4_u7s8(vdot d, vu8 w, vquad x) {
  LANES_(i) for (int j = 0; j < 4; j++) d.v[i] += w.v[4 * i + j] * x.v[j];
  return d;
}
/* The same for signed weights in the form that s8_weights gives: the sum exceeds the true one by S8_ZERO * sum(x). */
enum { S8_ZERO = 0 };
INLINE vu8 s8_weights(vu8 w) { return w; }
INLINE vdot dot4_s8s8(vdot d, vu8 w, vquad x) {
  LANES_(i) for (int j = 0; j < 4; j++) d.v[i] += (int8_t)w.v[4 * i + j] * x.v[j];
  return d;
}
/* dot_end(sum, dot4s of dot_begin(sum)) = sum + the dot products */
INLINE vdot dot_begin(vi32 sum) { return sum; }
INLINE vi32 dot_end(vi32 sum, vdot d) { (void)sum; return d; }
#undef LANES_
#endif
