/* Elementary functions of f32, bit for bit those of ir/numerics/elementary.py: each as plain C, m_NAME of one float,
 * and, where kernels need it, as f32_NAME of a vector. Every operation rounds once, in the order written. */
#ifndef INFERC_ELEMENTARY_H
#define INFERC_ELEMENTARY_H

#include "scalar.h"

/* ---- polynomials, highest power first ---- */

static const float EXP[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                             5.0000001201e-1f};
static const float EXP_FUSED[7] = {0.0013814539415761828f, 0.00836874544620514f, 0.04166838899254799f,
                                   0.1666652113199234f, 0.4999999403953552f, 1.0f, 1.0f};
static const float TANH[5] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                              -3.33332819422e-1f};
static const float LOG[9] = {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                             -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
static const float ERF_SMALL[7] = {7.898201874922961e-05f, -0.000802435155492276f, 0.0051900530233979225f,
                                   -0.026854807510972023f, 0.11283612251281738f, -0.3761262893676758f,
                                   0.12837916612625122f};
static const float ERF_LARGE[7] = {-0.00018655171152204275f, 0.002948945853859186f, -0.021841706708073616f,
                                   0.10311145335435867f, 0.638142466545105f, 1.1270889043807983f,
                                   0.0003419623535592109f};
static const double LOG_64[9] = {1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0};
static const double EXP_64[13] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                  1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1.0};
static const double SIN_64[8] = {-1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880,
                                 -1.0 / 5040, 1.0 / 120, -1.0 / 6, 1.0};
static const double COS_64[9] = {1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800,
                                 1.0 / 40320, -1.0 / 720, 1.0 / 24, -1.0 / 2, 1.0};

#define LOG2E 1.44269504088896341f
#define LN2_HIGH 0.693359375f
#define LN2_LOW (-2.12194440e-4f)
#define LN2 0x1.62e43p-1f
#define LN2_LESS (-0x1.05c610p-29f)
#define LN2_64 0x1.62e42fefa39efp-1
#define SQRT_HALF_BITS 0x3f3504f3

/* ---- of one float ---- */

static inline float horner(const float *c, int n, float x) {
  float p = c[0];
  UNROLL for (int i = 1; i < n; i++) p = p * x + c[i];
  return p;
}

static inline double horner_64(const double *c, int n, double x) {
  double p = c[0];
  UNROLL for (int i = 1; i < n; i++) p = p * x + c[i];
  return p;
}

/* x * 2^n, n in [-126, 127] */
static inline float scale2(float x, int32_t n) { return x * bitcast_u32_f32((uint32_t)(n + 127) << 23); }

/* `magnitude` with the sign of x */
static inline float with_sign_of(float x, float magnitude) {
  return bitcast_u32_f32((bitcast_f32_u32(x) & 0x80000000u) | bitcast_f32_u32(magnitude));
}

static inline float m_exp(float x) {
  const float t = min_f32(88.8f, max_f32(-104.0f, x));          /* NaN stays */
  const float n = rintf(max_f32(t * LOG2E, -151.0f));           /* NaN goes */
  const float r = (t - n * LN2_HIGH) - n * LN2_LOW;
  const float y = (horner(EXP, 6, r) * (r * r) + r) + 1.0f;
  const int32_t i = (int32_t)n;
  return scale2(scale2(y, i >> 1), i - (i >> 1));
}

static inline float m_log(float x) {
  const int tiny = 0x1p-126f > x;
  const uint32_t bits = bitcast_f32_u32(tiny ? x * 16777216.0f : x);
  const int32_t exponent = (int32_t)(bits - SQRT_HALF_BITS) >> 23;
  const float f = bitcast_u32_f32(bits - ((uint32_t)exponent << 23)) - 1.0f;
  const float e = (float)(exponent - (tiny ? 24 : 0));
  const float z = f * f;
  const float y = (f + (((horner(LOG, 9, f) * f) * z + e * LN2_LOW) - 0.5f * z)) + e * LN2_HIGH;
  return x > 0.0f ? (x > 0x1.fffffep127f ? x : y) : 0.0f > x ? NAN : x - INFINITY;
}

static inline float m_tanh(float x) {
  const float a = fabsf(x), s = a * a;
  const float small = (horner(TANH, 5, s) * s) * a + a;
  const float large = 1.0f - 2.0f / (m_exp(a + a) + 1.0f);
  return with_sign_of(x, 0.625f > a ? small : large);
}

static inline float m_erf(float x) {
  const float a = fabsf(x);
  const float small = horner(ERF_SMALL, 7, a * a) * a + a;
  const float large = 1.0f - m_exp(0.0f - horner(ERF_LARGE, 7, min_f32(4.0f, a)));
  return with_sign_of(x, 1.0f > a ? small : large);
}

static inline float m_logistic(float x) { return 1.0f / (1.0f + m_exp(0.0f - x)); }
static inline float m_silu(float x) { return x / (1.0f + m_exp(0.0f - x)); }
static inline float m_gelu_tanh(float x) {
  return (0.5f * x) * (1.0f + m_tanh(0.7978845608f * (x + 0.044715f * ((x * x) * x))));
}
static inline float m_gelu(float x) { return (0.5f * x) * (1.0f + m_erf(x * 0.70710678118654752f)); }
static inline float m_softcap(float x, float cap) { return cap * m_tanh(x / cap); }

/* ---- of one float, computed in f64 and rounded once ---- */

static inline double exp_64(double x, double offset) {
  x = min_f64(90.0, max_f64(-110.0, x));
  const double n = x != x ? 0.0 : rint(x * 0x1.71547652b82fep+0);
  const double r = x - n * LN2_64;
  const double power = bitcast_u64_f64((uint64_t)((int64_t)n + 1023) << 52);
  return power * (horner_64(EXP_64, 13, r) * r) + (power + offset);
}

/* log(2^e * (1 + s)/(1 - s)) */
static inline double log_64(double s, double e) { return e * LN2_64 + (s + s) * horner_64(LOG_64, 9, s * s); }

/* m in [sqrt(1/2), sqrt(2)) of x = m * 2^e, positive and normal */
static inline double split_64(double x, double *e) {
  const uint64_t bits = bitcast_f64_u64(x);
  const double m = bitcast_u64_f64((bits & 0xfffffffffffffu) | (uint64_t)1022 << 52);
  const int low = m < 0.7071067811865476;
  *e = (double)((int64_t)(bits >> 52) - 1022 - low);
  return low ? m + m : m;
}

static inline float m_expm1(float x) { return x == 0.0f ? x : (float)exp_64((double)x, -1.0); }

static inline float m_log1p(float x) {
  if (!(x > -1.0f)) return x < -1.0f ? NAN : x == -1.0f ? -INFINITY : x;
  if (x == 0.0f || x > 0x1.fffffep127f) return x;
  double e;
  const double m = split_64(1.0 + (double)x, &e);
  return (float)log_64(e == 0.0 ? (double)x / (2.0 + (double)x) : (m - 1.0) / (m + 1.0), e);
}

static inline float m_pow(float x, float y) {
  const float a = fabsf(x);
  if (y == 0.0f || x == 1.0f) return 1.0f;
  const int whole = rintf(y) == y, odd = whole && fabsf(y) < 16777216.0f && rintf(y * 0.5f) != y * 0.5f;
  if (x < 0.0f && a < INFINITY && !whole) return NAN;
  double log_a = a == 0.0f ? -INFINITY : (double)a;
  if (a > 0.0f && a < INFINITY) {
    double e;
    const double m = split_64((double)a, &e);
    log_a = log_64((m - 1.0) / (m + 1.0), e);
  }
  const float z = a == 1.0f && y == y ? 1.0f : (float)exp_64((double)y * log_a, 0.0);
  return odd && signbit(x) ? -z : z;
}

/* k and r with a = k*(pi/2) + r modulo a turn, for finite a >= 0 */
static inline int32_t quarter_turns(float a, double *r) {
  static const uint64_t two_over_pi[7] = {0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0,
                                          0xDB629599, 0x3C439041, 0xFE5163AB};
  if (a < 67108864.0f) { /* pi/2 in three parts; the first two products are exact */
    const double x = (double)a, k = rint(x * 0x1.45f306dc9c883p-1);
    *r = ((x - k * 0x1.921fb5p+0) - k * 0x1.110b46p-26) - k * 0x1.1a62633145c07p-54;
    return (int32_t)k;
  }
  /* Payne and Hanek: the significand times the 96 bits of 2/pi that matter modulo 4, in units of 2^-62 */
  const uint32_t bits = bitcast_f32_u32(a), first = (bits >> 23) - 152, shift = first & 31;
  const uint64_t *w = two_over_pi + (first >> 5);
  uint64_t part[3];
  for (int i = 0; i < 3; i++) part[i] = (w[i] << 32 | w[i + 1]) << shift >> 32;
  const uint64_t significand = (bits & 0x7fffffu) | 0x800000u;
  const uint64_t turns = significand * (part[0] << 32 | part[1]) + (significand * part[2] >> 32);
  const uint64_t k = (turns + ((uint64_t)1 << 61)) >> 62;
  *r = (double)(int64_t)(turns - (k << 62)) * 0x1p-62 * 0x1.921fb54442d18p+0;
  return (int32_t)k;
}

/* sin(|x| + quadrants * pi/2) */
static inline float circular(float x, int32_t quadrants) {
  if (!(fabsf(x) < INFINITY)) return NAN;
  double r;
  const int32_t k = quarter_turns(fabsf(x), &r) + quadrants;
  const double y = k & 1 ? horner_64(COS_64, 9, r * r) : horner_64(SIN_64, 8, r * r) * r;
  return (float)(k & 2 ? -y : y);
}

static inline float m_sin(float x) { return signbit(x) ? -circular(x, 0) : circular(x, 0); }
static inline float m_cos(float x) { return circular(x, 1); }

/* ---- of a vector: the same operations in words ---- */

INLINE vf32 f32_horner(const float *c, int n, vf32 x) {
  vf32 p = f32_splat(c[0]);
  UNROLL for (int i = 1; i < n; i++) p = f32_add(f32_mul(p, x), f32_splat(c[i]));
  return p;
}

INLINE vf32 f32_with_sign_of(vf32 x, vf32 magnitude) {
  return f32_of_bits(i32_or(i32_and(f32_bits(x), i32_splat(INT32_MIN)), f32_bits(magnitude)));
}

/* exp of each, step by step for all of them, at most 8: alone, a chain of dependent steps leaves the CPU waiting. */
INLINE void f32_exp_each(vf32 *x, const int count) {
  vf32 n[8], y[8];
  UNROLL for (int i = 0; i < count; i++) {
    x[i] = f32_min(f32_splat(88.8f), f32_max(f32_splat(-104.0f), x[i]));
    n[i] = f32_rint(f32_max(f32_mul(x[i], f32_splat(LOG2E)), f32_splat(-151.0f)));
  }
  UNROLL for (int i = 0; i < count; i++) {
    x[i] = f32_sub(f32_sub(x[i], f32_mul(n[i], f32_splat(LN2_HIGH))), f32_mul(n[i], f32_splat(LN2_LOW)));
    y[i] = f32_splat(EXP[0]);
  }
  UNROLL for (int j = 1; j < 6; j++)
    UNROLL for (int i = 0; i < count; i++) y[i] = f32_add(f32_mul(y[i], x[i]), f32_splat(EXP[j]));
  UNROLL for (int i = 0; i < count; i++)
    y[i] = f32_add(f32_add(f32_mul(y[i], f32_mul(x[i], x[i])), x[i]), f32_splat(1.0f));
  UNROLL for (int i = 0; i < count; i++) x[i] = f32_ldexp(y[i], n[i]);
}

/* exp of each in fused steps: exp_fused of ir/numerics/linear.py. */
INLINE void f32_exp_fused_each(vf32 *x, const int count) {
  const vf32 rounding = f32_splat(12582912.0f);
  vf32 n[8], y[8];
  UNROLL for (int i = 0; i < count; i++) {
    x[i] = f32_max(f32_splat(-104.0f), x[i]);
    n[i] = f32_sub(f32_fma(x[i], f32_splat(LOG2E), rounding), rounding);
  }
  UNROLL for (int i = 0; i < count; i++) {
    x[i] = f32_fma(n[i], f32_splat(-LN2_LESS), f32_fma(n[i], f32_splat(-LN2), x[i]));
    y[i] = f32_splat(EXP_FUSED[0]);
  }
  UNROLL for (int j = 1; j < 7; j++)
    UNROLL for (int i = 0; i < count; i++) y[i] = f32_fma(y[i], x[i], f32_splat(EXP_FUSED[j]));
  UNROLL for (int i = 0; i < count; i++) x[i] = f32_ldexp(y[i], n[i]);
}

INLINE vf32 f32_exp(vf32 x) {
  f32_exp_each(&x, 1);
  return x;
}

INLINE vf32 f32_log(vf32 x) {
  const vf32 least = f32_splat(0x1p-126f), one = f32_splat(1.0f), zero = f32_zero();
  const vi32 bits = f32_bits(f32_select_gt(least, x, f32_mul(x, f32_splat(16777216.0f)), x));
  const vi32 exponent = i32_shr(i32_sub(bits, i32_splat(SQRT_HALF_BITS)), 23);
  const vf32 f = f32_sub(f32_of_bits(i32_sub(bits, i32_shl(exponent, 23))), one);
  const vf32 e = f32_sub(f32_from_i32(exponent), f32_select_gt(least, x, f32_splat(24.0f), zero));
  const vf32 z = f32_mul(f, f);
  vf32 y = f32_add(f32_mul(f32_mul(f32_horner(LOG, 9, f), f), z), f32_mul(e, f32_splat(LN2_LOW)));
  y = f32_add(f32_add(f, f32_sub(y, f32_mul(f32_splat(0.5f), z))), f32_mul(e, f32_splat(LN2_HIGH)));
  y = f32_select_gt(x, f32_splat(0x1.fffffep127f), x, y);
  return f32_select_gt(x, zero, y, f32_select_gt(zero, x, f32_splat(NAN), f32_sub(x, f32_splat(INFINITY))));
}

/* The next, too, work step by step on each of at most 8 vectors. */
INLINE void f32_tanh_each(vf32 *x, const int count) {
  const vf32 one = f32_splat(1.0f);
  vf32 a[8], s[8], small[8], large[8];
  UNROLL for (int i = 0; i < count; i++) {
    a[i] = f32_abs(x[i]), s[i] = f32_mul(a[i], a[i]), large[i] = f32_add(a[i], a[i]);
    small[i] = f32_splat(TANH[0]);
  }
  f32_exp_each(large, count);
  UNROLL for (int j = 1; j < 5; j++)
    UNROLL for (int i = 0; i < count; i++) small[i] = f32_add(f32_mul(small[i], s[i]), f32_splat(TANH[j]));
  UNROLL for (int i = 0; i < count; i++) {
    large[i] = f32_sub(one, f32_div(f32_splat(2.0f), f32_add(large[i], one)));
    small[i] = f32_add(f32_mul(f32_mul(small[i], s[i]), a[i]), a[i]);
    x[i] = f32_with_sign_of(x[i], f32_select_gt(f32_splat(0.625f), a[i], small[i], large[i]));
  }
}

INLINE void f32_erf_each(vf32 *x, const int count) {
  const vf32 one = f32_splat(1.0f);
  vf32 a[8], s[8], b[8], small[8], large[8];
  UNROLL for (int i = 0; i < count; i++) {
    a[i] = f32_abs(x[i]), s[i] = f32_mul(a[i], a[i]), b[i] = f32_min(f32_splat(4.0f), a[i]);
    small[i] = f32_splat(ERF_SMALL[0]), large[i] = f32_splat(ERF_LARGE[0]);
  }
  UNROLL for (int j = 1; j < 7; j++)
    UNROLL for (int i = 0; i < count; i++) {
      large[i] = f32_add(f32_mul(large[i], b[i]), f32_splat(ERF_LARGE[j]));
      small[i] = f32_add(f32_mul(small[i], s[i]), f32_splat(ERF_SMALL[j]));
    }
  UNROLL for (int i = 0; i < count; i++) {
    large[i] = f32_sub(f32_zero(), large[i]);
    small[i] = f32_add(f32_mul(small[i], a[i]), a[i]);
  }
  f32_exp_each(large, count);
  UNROLL for (int i = 0; i < count; i++)
    x[i] = f32_with_sign_of(x[i], f32_select_gt(one, a[i], small[i], f32_sub(one, large[i])));
}

/* x[i] becomes 1 + exp(0 - x[i]). */
INLINE void f32_one_plus_exp_minus_each(vf32 *x, const int count) {
  UNROLL for (int i = 0; i < count; i++) x[i] = f32_sub(f32_zero(), x[i]);
  f32_exp_each(x, count);
  UNROLL for (int i = 0; i < count; i++) x[i] = f32_add(f32_splat(1.0f), x[i]);
}

INLINE void f32_logistic_each(vf32 *x, const int count) {
  f32_one_plus_exp_minus_each(x, count);
  UNROLL for (int i = 0; i < count; i++) x[i] = f32_div(f32_splat(1.0f), x[i]);
}

INLINE void f32_silu_each(vf32 *x, const int count) {
  vf32 y[8];
  UNROLL for (int i = 0; i < count; i++) y[i] = x[i];
  f32_one_plus_exp_minus_each(y, count);
  UNROLL for (int i = 0; i < count; i++) x[i] = f32_div(x[i], y[i]);
}

INLINE void f32_gelu_tanh_each(vf32 *x, const int count) {
  vf32 t[8];
  UNROLL for (int i = 0; i < count; i++) {
    const vf32 cube = f32_mul(f32_mul(x[i], x[i]), x[i]);
    t[i] = f32_mul(f32_splat(0.7978845608f), f32_add(x[i], f32_mul(f32_splat(0.044715f), cube)));
  }
  f32_tanh_each(t, count);
  UNROLL for (int i = 0; i < count; i++)
    x[i] = f32_mul(f32_mul(f32_splat(0.5f), x[i]), f32_add(f32_splat(1.0f), t[i]));
}

INLINE void f32_gelu_each(vf32 *x, const int count) {
  vf32 e[8];
  UNROLL for (int i = 0; i < count; i++) e[i] = f32_mul(x[i], f32_splat(0.70710678118654752f));
  f32_erf_each(e, count);
  UNROLL for (int i = 0; i < count; i++)
    x[i] = f32_mul(f32_mul(f32_splat(0.5f), x[i]), f32_add(f32_splat(1.0f), e[i]));
}

#define ONE_OF_EACH(name)              \
  INLINE vf32 f32_##name(vf32 x) {     \
    f32_##name##_each(&x, 1);          \
    return x;                          \
  }
ONE_OF_EACH(tanh)
ONE_OF_EACH(erf)
ONE_OF_EACH(logistic)
ONE_OF_EACH(silu)
ONE_OF_EACH(gelu_tanh)
ONE_OF_EACH(gelu)
#undef ONE_OF_EACH

INLINE vf32 f32_softcap(vf32 x, vf32 cap) { return f32_mul(cap, f32_tanh(f32_div(x, cap))); }

#endif
