/* The vector words for AVX-512 F BW DQ VL VNNI (BF16 where the compiler has it). Their meaning: isa/generic.h. */
#ifndef INFERC_ISA_H
#define INFERC_ISA_H
#include <immintrin.h>
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

enum { LANES = 16, REGISTERS = 32 };
typedef __m512 vf32;
typedef __m512i vi32, vu8, vquad, vdot;

/* ---- f32 ---- */
INLINE vf32 f32_splat(float x) { return _mm512_set1_ps(x); }
INLINE vf32 f32_zero(void) { return _mm512_setzero_ps(); }
INLINE vf32 f32_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void f32_store(float *p, vf32 a) { _mm512_storeu_ps(p, a); }
INLINE __mmask16 first_lanes(int n) { return (__mmask16)((1u << n) - 1); }
INLINE vf32 f32_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
INLINE void f32_store_n(float *p, vf32 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }
INLINE vf32 f32_add(vf32 a, vf32 b) { return _mm512_add_ps(a, b); }
INLINE vf32 f32_sub(vf32 a, vf32 b) { return _mm512_sub_ps(a, b); }
INLINE vf32 f32_mul(vf32 a, vf32 b) { return _mm512_mul_ps(a, b); }
INLINE vf32 f32_div(vf32 a, vf32 b) { return _mm512_div_ps(a, b); }
INLINE vf32 f32_max(vf32 a, vf32 b) { return _mm512_max_ps(a, b); }
INLINE vf32 f32_min(vf32 a, vf32 b) { return _mm512_min_ps(a, b); }
INLINE vf32 f32_sqrt(vf32 a) { return _mm512_sqrt_ps(a); }
INLINE vf32 f32_fma(vf32 a, vf32 b, vf32 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf32 f32_abs(vf32 a) { return _mm512_abs_ps(a); }
INLINE vf32 f32_rint(vf32 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf32 f32_select_gt(vf32 a, vf32 b, vf32 x, vf32 y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x); }
INLINE vi32 f32_bits(vf32 a) { return _mm512_castps_si512(a); }
INLINE vf32 f32_of_bits(vi32 a) { return _mm512_castsi512_ps(a); }
INLINE vf32 f32_from_i32(vi32 a) { return _mm512_cvtepi32_ps(a); }
INLINE vf32 f32_load_s8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p))); }
INLINE vi32 i32_from_f32(vf32 a) { return _mm512_cvtps_epi32(a); }
INLINE vf32 f32_ldexp(vf32 v, vf32 n) { return _mm512_scalef_ps(v, n); }
INLINE float f32_sum(vf32 a) {
  const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
INLINE float f32_hmax(vf32 a) {
  const __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
INLINE void f32_transpose(vf32 *x) {
  vf32 t[16];
  UNROLL for (int i = 0; i < 16; i += 4) { /* four by four within each 128 bits */
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[i], x[i + 1])), b = _mm512_castps_pd(_mm512_unpackhi_ps(x[i], x[i + 1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(x[i + 2], x[i + 3])), d = _mm512_castps_pd(_mm512_unpackhi_ps(x[i + 2], x[i + 3]));
    t[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c)), t[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    t[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)), t[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  UNROLL for (int i = 0; i < 4; i++) { /* the 128 bits of four vectors */
    const __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x44), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xee);
    const __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x44), d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xee);
    x[i] = _mm512_shuffle_f32x4(a, c, 0x88), x[i + 4] = _mm512_shuffle_f32x4(a, c, 0xdd);
    x[i + 8] = _mm512_shuffle_f32x4(b, d, 0x88), x[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

/* ---- i32 ---- */
INLINE vi32 i32_splat(int32_t x) { return _mm512_set1_epi32(x); }
INLINE vi32 i32_zero(void) { return _mm512_setzero_si512(); }
INLINE vi32 i32_load(const int32_t *p) { return _mm512_loadu_si512(p); }
INLINE void i32_store(int32_t *p, vi32 a) { _mm512_storeu_si512(p, a); }
INLINE vi32 i32_add(vi32 a, vi32 b) { return _mm512_add_epi32(a, b); }
INLINE vi32 i32_sub(vi32 a, vi32 b) { return _mm512_sub_epi32(a, b); }
INLINE vi32 i32_mul(vi32 a, vi32 b) { return _mm512_mullo_epi32(a, b); }
INLINE vi32 i32_and(vi32 a, vi32 b) { return _mm512_and_si512(a, b); }
INLINE vi32 i32_or(vi32 a, vi32 b) { return _mm512_or_si512(a, b); }
INLINE vi32 i32_shl(vi32 a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
INLINE vi32 i32_shr(vi32 a, int n) { return _mm512_srai_epi32(a, (unsigned)n); }
INLINE int32_t i32_sum(vi32 a) { return _mm512_reduce_add_epi32(a); }
INLINE void i32_store_s8(int8_t *p, vi32 a) { _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(a)); }

/* ---- f16 and bf16 ---- */
INLINE float f16_value(uint16_t h) { return _cvtsh_ss(h); }
INLINE uint16_t f16_bits(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
INLINE vf32 f32_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)); }
INLINE void f32_store_f16(uint16_t *p, vf32 a) {
  _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vf32 f32_load_bf16(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)), 16));
}
INLINE void f32_store_bf16(uint16_t *p, vf32 a) {
  const __m512i u = _mm512_castps_si512(a), one = _mm512_set1_epi32(1);
  const __m512i even = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(u, 16), one), _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, even), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  const __m512i r = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), rounded, quiet);
  _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(r));
}
#ifdef __AVX512BF16__
INLINE vf32 dot2_bf16(vf32 acc, vi32 w, vi32 x) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x); }
#else
INLINE vf32 f32_flushed_where(vf32 a, __mmask16 tiny) { return _mm512_mask_and_ps(a, tiny, a, f32_splat(-0.0f)); }
INLINE vf32 f32_flushed(vf32 a) { return f32_flushed_where(a, _mm512_cmp_ps_mask(f32_abs(a), f32_splat(0x1p-126f), _CMP_LT_OQ)); }
INLINE vf32 fma_flushed(vf32 a, vf32 b, vf32 c) {
  const vf32 up = f32_splat(0x1p32f), scaled = f32_fma(f32_mul(a, up), f32_mul(b, up), f32_mul(c, f32_splat(0x1p64f)));
  return f32_flushed_where(f32_fma(a, b, c), _mm512_cmp_ps_mask(f32_abs(scaled), f32_splat(0x1p-62f), _CMP_LT_OQ));
}
INLINE vf32 bf16_odd(vi32 pairs) { return f32_flushed(f32_of_bits(i32_and(pairs, i32_splat((int32_t)0xffff0000)))); }
INLINE vf32 bf16_even(vi32 pairs) { return f32_flushed(f32_of_bits(i32_shl(pairs, 16))); }
INLINE vf32 dot2_bf16(vf32 acc, vi32 w, vi32 x) {
  return fma_flushed(bf16_even(x), bf16_even(w), fma_flushed(bf16_odd(x), bf16_odd(w), f32_flushed(acc)));
}
#endif

/* ---- bytes and dot products: vpdpbusd sums in 32 bits ---- */
INLINE vu8 u8_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE void u8_store(uint8_t *p, vu8 a) { _mm512_storeu_si512(p, a); }
INLINE vu8 u8_and_splat(vu8 a, uint8_t x) { return _mm512_and_si512(a, _mm512_set1_epi8((char)x)); }
INLINE vu8 u8_sub_splat(vu8 a, uint8_t x) { return _mm512_sub_epi8(a, _mm512_set1_epi8((char)x)); }
INLINE vu8 u8_or(vu8 a, vu8 b) { return _mm512_or_si512(a, b); }
INLINE vu8 u8_shr16(vu8 a, int n) { return _mm512_srli_epi16(a, (unsigned)n); }
INLINE vu8 u8_shl16(vu8 a, int n) { return _mm512_slli_epi16(a, (unsigned)n); }
INLINE vquad quad_load(const int8_t *p) { int32_t x; memcpy(&x, p, 4); return _mm512_set1_epi32(x); }
INLINE vu8 u8_lookup(const uint8_t *codes, vu8 index) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)codes)), index);
}
#define DOT_QUADS(bits) 8
INLINE vdot dot4_u7s8(vdot d, vu8 w, vquad x) { return _mm512_dpbusd_epi32(d, w, x); }
enum { S8_ZERO = 128 };
INLINE vu8 s8_weights(vu8 w) { return _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)); }
INLINE vdot dot4_s8s8(vdot d, vu8 w, vquad x) { return _mm512_dpbusd_epi32(d, w, x); }
INLINE vdot dot_begin(vi32 sum) { return sum; }
INLINE vi32 dot_end(vi32 sum, vdot d) { (void)sum; return d; }

#if defined(__AMX_INT8__) || defined(__AMXINT8__) /* the older name is that of clang 14 */
/* ---- AMX: sums[token][row] = x[token][group] * quad[group / 4][row][4], all int8, for 16 tokens and 16 rows ----
 *
 * Sums are stored as the bits of TILE_START + sum, which is exact below 2^22: taking TILE_START away gives the sum as a
 * float, by an addition where a conversion would take the only port that multiplies 512 bits while tiles are in use. */
#define TILE_START 0x1.8p23f
/* The tiles of this thread, from here to tile_end, are for so many values in a group, to 64. */
INLINE void tile_begin(int group) {
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
  for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;     /* 0 to 3: sums */
  shape.bytes[4] = shape.bytes[5] = (uint16_t)group;                       /* 4, 5: x */
  shape.rows[6] = shape.rows[7] = (uint8_t)(group / 4);                    /* 6, 7: weights */
  _tile_loadconfig(&shape);
}
INLINE void tile_end(void) { _tile_release(); }
/* The activations of products 0 and 2, or of 1 and 3. */
INLINE void tile_x(int which, const void *x, size_t x_row) {
  if (which) _tile_loadd(5, x, x_row);
  else _tile_loadd(4, x, x_row);
}
/* Starts a product and stores the sums of the third before it, which are ready by now: `turn` counts 0 to 3 and again,
 * so that no product waits for another's registers. */
INLINE void tile_sum(int turn, const uint8_t *quad, size_t quad_row, int32_t *third) {
  static const _Alignas(64) float START[16] = {TILE_START, TILE_START, TILE_START, TILE_START, TILE_START, TILE_START,
    TILE_START, TILE_START, TILE_START, TILE_START, TILE_START, TILE_START, TILE_START, TILE_START, TILE_START, TILE_START};
#define TILE_SUM_(sum, a, b, done) \
  _tile_stored(done, third, 64); _tile_loadd(sum, START, 0); _tile_loadd(b, quad, quad_row); \
  _tile_dpbssd(sum, a, b); break
  switch (turn) {
    case 0: TILE_SUM_(0, 4, 6, 1);
    case 1: TILE_SUM_(1, 5, 7, 2);
    case 2: TILE_SUM_(2, 4, 6, 3);
    default: TILE_SUM_(3, 5, 7, 0);
  }
#undef TILE_SUM_
}
INLINE void tile_store(int turn, int32_t *sums) {
  switch (turn) {
    case 0: _tile_stored(0, sums, 64); break;
    case 1: _tile_stored(1, sums, 64); break;
    case 2: _tile_stored(2, sums, 64); break;
    default: _tile_stored(3, sums, 64); break;
  }
}
/* y + (scale * *of_x) * sums[16], the sums as tiles store them. The compiler must keep tokens in their order: all of
 * them at once do not fit the registers. */
INLINE vf32 tile_scaled(vf32 y, vf32 scale, const float *of_x, const int32_t *sums) {
  const vf32 minus = _mm512_sub_ps(_mm512_set1_ps(TILE_START), _mm512_loadu_ps(sums));
  y = _mm512_sub_ps(y, _mm512_mul_ps(_mm512_mul_ps(scale, _mm512_set1_ps(*of_x)), minus));
  __asm__ volatile("" : "+v"(y));
  return y;
}
/* y + offset * *term */
INLINE vf32 tile_offset(vf32 y, vf32 offset, const float *term) {
  return _mm512_add_ps(y, _mm512_mul_ps(offset, _mm512_set1_ps(*term)));
}
#endif
#endif
