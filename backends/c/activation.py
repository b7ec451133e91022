"""Rows of activations as the linears take them: int8 with scales and sums (a8g32), or bf16."""

from __future__ import annotations

from .kernels import Kernel

_INT8_ROW = Kernel("store_row_a8g32", """\
/* x[32] to the values from `at` on of a row of k in a8g32: k int8, a scale for every 32, a sum for every 16. */
static inline void store_group_a8g32(const float *x, int32_t at, int32_t k, void *row) {
  int8_t *q = row;
  float *scale = (void *)(q + k);
  int32_t *sum = (void *)(scale + k / 32);
  const vf32 low = f32_load(x), high = f32_load(x + 16);
  const float amax = f32_hmax(f32_max(f32_abs(low), f32_abs(high)));
  const int some = amax > 1e-30f;
  const vf32 inverse = f32_splat(some ? 127.0f / amax : 0.0f), most = f32_splat(127.0f), least = f32_splat(-127.0f);
  const vi32 a = i32_from_f32(f32_rint(f32_min(f32_max(f32_mul(low, inverse), least), most)));
  const vi32 b = i32_from_f32(f32_rint(f32_min(f32_max(f32_mul(high, inverse), least), most)));
  scale[at / 32] = some ? amax / 127.0f : 0.0f;
  i32_store_s8(q + at, a);
  i32_store_s8(q + at + 16, b);
  sum[at / 16] = i32_sum(a);
  sum[at / 16 + 1] = i32_sum(b);
}
/* x[k] to a row of a8g32 */
static inline void store_row_a8g32(const float *x, int32_t k, void *row) {
  for (int32_t at = 0; at < k; at += 32) store_group_a8g32(x + at, at, k, row);
}
""")

_BF16_ROW = Kernel("store_row_bf16", """\
/* x[k] rounded to bf16 */
static inline void store_row_bf16(const float *x, int32_t k, void *row) {
  uint16_t *y = row, last[16];
  int32_t i = 0;
  for (; i + 16 <= k; i += 16) f32_store_bf16(y + i, f32_load(x + i));
  if (i == k) return;
  f32_store_bf16(last, f32_load_n(x + i, k - i));
  memcpy(y + i, last, (size_t)(k - i) * sizeof *y);
}
""")

# dtype → `static void store_row_DTYPE(const float *x, int32_t k, void *row)`
STORE_ROW = {"a8g32": _INT8_ROW, "bf16": _BF16_ROW}

# dtype → `static void linear_store_DTYPE(x, at, count, n, row)`, a linear_store; and C for the bytes of a row of n
LINEAR_STORE = {
    "a8g32": Kernel("linear_store_a8g32", """\
static void linear_store_a8g32(const float *x, int32_t at, int32_t count, int32_t n, void *row) {
  enum { AHEAD = 8 }; /* rows: they lie far apart, the hardware foresees none */
  const char *next = (const char *)row + AHEAD * ((size_t)(n / 32) * 44);
  (void)count;
  __builtin_prefetch(next + at, 1);
  __builtin_prefetch(next + n + at / 8, 1);
  __builtin_prefetch(next + n + n / 8 + at / 4, 1);
  store_group_a8g32(x, at, n, row);
}
""", (_INT8_ROW,)),
    "bf16": Kernel("linear_store_bf16", """\
static void linear_store_bf16(const float *x, int32_t at, int32_t count, int32_t n, void *row) {
  (void)n;
  store_row_bf16(x, count, (uint16_t *)row + at);
}
""", (_BF16_ROW,)),
}  # fmt: skip
