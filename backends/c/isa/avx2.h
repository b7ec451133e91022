/* The vector words for AVX2, FMA and F16C (VNNI where the compiler has it): two halves of eight lanes. Their meaning:
 * isa/generic.h. */
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

enum { LANES = 16, REGISTERS = 8 };
typedef struct { __m256 a, b; } vf32;
typedef struct { __m256i a, b; } vi32;
typedef vi32 vu8, vdot;
typedef __m256i vquad;
#define F32_(x, y) ((vf32){x, y})
#define I32_(x, y) ((vi32){x, y})

/* ---- f32 ---- */
INLINE vf32 f32_splat(float x) { const __m256 v = _mm256_set1_ps(x); return F32_(v, v); }
INLINE vf32 f32_zero(void) { return F32_(_mm256_setzero_ps(), _mm256_setzero_ps()); }
INLINE vf32 f32_load(const float *p) { return F32_(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE void f32_store(float *p, vf32 v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
INLINE __m256i first_lanes(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
INLINE vf32 f32_load_n(const float *p, int n) {
  return F32_(_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8)));
}
INLINE void f32_store_n(float *p, vf32 v, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), v.a);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), v.b);
}
INLINE vf32 f32_add(vf32 x, vf32 y) { return F32_(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
INLINE vf32 f32_sub(vf32 x, vf32 y) { return F32_(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
INLINE vf32 f32_mul(vf32 x, vf32 y) { return F32_(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
INLINE vf32 f32_div(vf32 x, vf32 y) { return F32_(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
INLINE vf32 f32_max(vf32 x, vf32 y) { return F32_(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
INLINE vf32 f32_min(vf32 x, vf32 y) { return F32_(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
INLINE vf32 f32_sqrt(vf32 x) { return F32_(_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)); }
INLINE vf32 f32_fma(vf32 x, vf32 y, vf32 z) { return F32_(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)); }
INLINE vf32 f32_abs(vf32 x) { const __m256 s = _mm256_set1_ps(-0.0f); return F32_(_mm256_andnot_ps(s, x.a), _mm256_andnot_ps(s, x.b)); }
INLINE vf32 f32_rint(vf32 x) {
  enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
  return F32_(_mm256_round_ps(x.a, NEAREST), _mm256_round_ps(x.b, NEAREST));
}
INLINE vf32 f32_select_gt(vf32 p, vf32 q, vf32 x, vf32 y) {
  return F32_(_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(p.a, q.a, _CMP_GT_OQ)), _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(p.b, q.b, _CMP_GT_OQ)));
}
INLINE vi32 f32_bits(vf32 x) { return I32_(_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)); }
INLINE vf32 f32_of_bits(vi32 x) { return F32_(_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)); }
INLINE vf32 f32_from_i32(vi32 x) { return F32_(_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)); }
INLINE __m256 s8_8(const int8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p))); }
INLINE vf32 f32_load_s8(const int8_t *p) { return F32_(s8_8(p), s8_8(p + 8)); }
INLINE vi32 i32_from_f32(vf32 x) { return I32_(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)); }
INLINE __m256 exponent2(__m256i n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
INLINE __m256 ldexp_(__m256 v, __m256 n) {
  const __m256i power = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(power, 1);
  return _mm256_mul_ps(_mm256_mul_ps(v, exponent2(half)), exponent2(_mm256_sub_epi32(power, half)));
}
INLINE vf32 f32_ldexp(vf32 v, vf32 n) { return F32_(ldexp_(v.a, n.a), ldexp_(v.b, n.b)); }
INLINE float f32_sum(vf32 x) {
  const __m256 b = _mm256_add_ps(x.a, x.b);
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
INLINE float f32_hmax(vf32 x) {
  const __m256 b = _mm256_max_ps(x.a, x.b);
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
INLINE void transpose_eight(__m256 *x) {
  __m256 t[8];
  UNROLL for (int i = 0; i < 8; i += 4) { /* four by four within each 128 bits */
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(x[i], x[i + 1])), b = _mm256_castps_pd(_mm256_unpackhi_ps(x[i], x[i + 1]));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(x[i + 2], x[i + 3])), d = _mm256_castps_pd(_mm256_unpackhi_ps(x[i + 2], x[i + 3]));
    t[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c)), t[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    t[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d)), t[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
  UNROLL for (int i = 0; i < 4; i++) {
    x[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
}
INLINE void f32_transpose(vf32 *x) {
  __m256 m[2][2][8]; /* by rows, columns and row of a block of eight by eight */
  UNROLL for (int i = 0; i < 16; i++) m[i / 8][0][i % 8] = x[i].a, m[i / 8][1][i % 8] = x[i].b;
  UNROLL for (int i = 0; i < 4; i++) transpose_eight(m[i / 2][i % 2]);
  UNROLL for (int i = 0; i < 16; i++) x[i] = F32_(m[0][i / 8][i % 8], m[1][i / 8][i % 8]);
}

/* ---- i32 ---- */
INLINE vi32 i32_splat(int32_t x) { const __m256i v = _mm256_set1_epi32(x); return I32_(v, v); }
INLINE vi32 i32_zero(void) { return I32_(_mm256_setzero_si256(), _mm256_setzero_si256()); }
INLINE __m256i load256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void store256(void *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }
INLINE vi32 i32_load(const int32_t *p) { return I32_(load256(p), load256(p + 8)); }
INLINE void i32_store(int32_t *p, vi32 x) { store256(p, x.a); store256(p + 8, x.b); }
INLINE vi32 i32_add(vi32 x, vi32 y) { return I32_(_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)); }
INLINE vi32 i32_sub(vi32 x, vi32 y) { return I32_(_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)); }
INLINE vi32 i32_mul(vi32 x, vi32 y) { return I32_(_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)); }
INLINE vi32 i32_and(vi32 x, vi32 y) { return I32_(_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)); }
INLINE vi32 i32_or(vi32 x, vi32 y) { return I32_(_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)); }
INLINE vi32 i32_shl(vi32 x, int n) { return I32_(_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)); }
INLINE vi32 i32_shr(vi32 x, int n) { return I32_(_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)); }
INLINE int32_t i32_sum(vi32 x) {
  const __m256i b = _mm256_add_epi32(x.a, x.b);
  __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  c = _mm_add_epi32(c, _mm_unpackhi_epi64(c, c));
  return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 1)));
}
INLINE void i32_store_s8(int8_t *p, vi32 x) {
  const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  _mm_storeu_si128((__m128i *)(void *)p, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}

/* ---- f16 and bf16 ---- */
INLINE __m128i load128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
INLINE float f16_value(uint16_t h) { return _cvtsh_ss(h); }
INLINE uint16_t f16_bits(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
INLINE vf32 f32_load_f16(const uint16_t *p) { return F32_(_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))); }
INLINE void f32_store_f16(uint16_t *p, vf32 x) {
  _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i *)(void *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
INLINE __m256 bf16_8(const uint16_t *p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16)); }
INLINE vf32 f32_load_bf16(const uint16_t *p) { return F32_(bf16_8(p), bf16_8(p + 8)); }
INLINE __m256i bf16_bits_8(__m256 x) {
  const __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
  const __m256i even = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, even), 16), quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
INLINE void f32_store_bf16(uint16_t *p, vf32 x) {
  store256(p, _mm256_permute4x64_epi64(_mm256_packus_epi32(bf16_bits_8(x.a), bf16_bits_8(x.b)), 0xd8));
}
INLINE __m256 flushed_where(__m256 x, __m256 magnitude, float limit) {
  const __m256 sign = _mm256_set1_ps(-0.0f), tiny = _mm256_cmp_ps(_mm256_andnot_ps(sign, magnitude), _mm256_set1_ps(limit), _CMP_LT_OQ);
  return _mm256_andnot_ps(_mm256_andnot_ps(sign, tiny), x);
}
INLINE __m256 flushed(__m256 x) { return flushed_where(x, x, 0x1p-126f); }
INLINE __m256 fma_flushed(__m256 x, __m256 y, __m256 z) {
  const __m256 up = _mm256_set1_ps(0x1p32f), high = _mm256_mul_ps(z, _mm256_set1_ps(0x1p64f));
  return flushed_where(_mm256_fmadd_ps(x, y, z), _mm256_fmadd_ps(_mm256_mul_ps(x, up), _mm256_mul_ps(y, up), high), 0x1p-62f);
}
INLINE __m256 bf16_odd(__m256i pairs) { return flushed(_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)))); }
INLINE __m256 bf16_even(__m256i pairs) { return flushed(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))); }
INLINE __m256 dot2_bf16_8(__m256 acc, __m256i w, __m256i x) {
  return fma_flushed(bf16_even(x), bf16_even(w), fma_flushed(bf16_odd(x), bf16_odd(w), flushed(acc)));
}
INLINE vf32 dot2_bf16(vf32 acc, vi32 w, vi32 x) { return F32_(dot2_bf16_8(acc.a, w.a, x.a), dot2_bf16_8(acc.b, w.b, x.b)); }

/* ---- bytes ---- */
INLINE vu8 u8_load(const uint8_t *p) { return I32_(load256(p), load256(p + 32)); }
INLINE void u8_store(uint8_t *p, vu8 v) { store256(p, v.a); store256(p + 32, v.b); }
INLINE vu8 u8_and_splat(vu8 v, uint8_t x) { const __m256i m = _mm256_set1_epi8((char)x); return I32_(_mm256_and_si256(v.a, m), _mm256_and_si256(v.b, m)); }
INLINE vu8 u8_or(vu8 x, vu8 y) { return i32_or(x, y); }
INLINE vu8 u8_shr16(vu8 x, int n) { return I32_(_mm256_srli_epi16(x.a, n), _mm256_srli_epi16(x.b, n)); }
INLINE vu8 u8_shl16(vu8 x, int n) { return I32_(_mm256_slli_epi16(x.a, n), _mm256_slli_epi16(x.b, n)); }
INLINE vquad quad_load(const int8_t *p) { int32_t x; memcpy(&x, p, 4); return _mm256_set1_epi32(x); }
INLINE vu8 u8_lookup(const uint8_t *codes, vu8 index) {
  const __m256i table = _mm256_broadcastsi128_si256(load128(codes));
  return I32_(_mm256_shuffle_epi8(table, index.a), _mm256_shuffle_epi8(table, index.b));
}

#ifdef __AVXVNNI__
/* ---- dot products: vpdpbusd sums in 32 bits ---- */
#define DOT_QUADS(bits) 8
INLINE vdot dot4_u7s8(vdot d, vu8 w, vquad x) {
  return I32_(_mm256_dpbusd_avx_epi32(d.a, w.a, x), _mm256_dpbusd_avx_epi32(d.b, w.b, x));
}
enum { S8_ZERO = 128 };
INLINE vu8 s8_weights(vu8 w) {
  const __m256i sign = _mm256_set1_epi8((char)0x80);
  return I32_(_mm256_xor_si256(w.a, sign), _mm256_xor_si256(w.b, sign));
}
INLINE vdot dot4_s8s8(vdot d, vu8 w, vquad x) { return dot4_u7s8(d, w, x); }
INLINE vdot dot_begin(vi32 sum) { return sum; }
INLINE vi32 dot_end(vi32 sum, vdot d) { (void)sum; return d; }
#else
/* ---- dot products: maddubs sums pairs in 16 bits, which a vdot holds, madd widens them ---- */
#define DOT_QUADS(bits) ((bits) == 8 ? 1 : (bits) < 4 ? 8 : 32767 / (254 * ((1 << (bits)) - 1)))
INLINE vdot dot4_u7s8(vdot d, vu8 w, vquad x) {
  return I32_(_mm256_add_epi16(d.a, _mm256_maddubs_epi16(w.a, x)), _mm256_add_epi16(d.b, _mm256_maddubs_epi16(w.b, x)));
}
enum { S8_ZERO = 0 };
INLINE vu8 s8_weights(vu8 w) { return w; }
INLINE __m256i pairs_s8(__m256i w, __m256i x) { return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); }
INLINE vdot dot4_s8s8(vdot d, vu8 w, vquad x) {
  return I32_(_mm256_add_epi16(d.a, pairs_s8(w.a, x)), _mm256_add_epi16(d.b, pairs_s8(w.b, x)));
}
INLINE vdot dot_begin(vi32 sum) { (void)sum; return i32_zero(); }
INLINE vi32 dot_end(vi32 sum, vdot d) {
  const __m256i one = _mm256_set1_epi16(1);
  return I32_(_mm256_add_epi32(sum.a, _mm256_madd_epi16(d.a, one)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(d.b, one)));
}
#endif
#undef F32_
#undef I32_
#endif
