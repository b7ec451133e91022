"""Rows of activations as the linears take them: int8 with scales and sums (a8g32), or bf16."""

from __future__ import annotations

from .kernels import Kernel

_INT8_ROW = Kernel("store_row_a8g32", """\
/* x[k] to a row of a8g32: k int8, a scale for every 32, a sum for every 16. */
static inline void store_row_a8g32(const float *x, int32_t k, void *row) {
  int8_t *q = row;
  float *scale = (void *)(q + k);
  int32_t *sum = (void *)(scale + k / 32);
  for (int32_t at = 0; at < k; at += 32) {
    const vf32 low = f32_load(x + at), high = f32_load(x + at + 16);
    const float amax = f32_hmax(f32_max(f32_abs(low), f32_abs(high)));
    const int some = amax > 1e-30f;
    const vf32 inverse = f32_splat(some ? 127.0f / amax : 0.0f), most = f32_splat(127.0f), least = f32_splat(-127.0f);
    const vi32 a = i32_from_f32(f32_rint(f32_min(f32_max(f32_mul(low, inverse), least), most)));
    const vi32 b = i32_from_f32(f32_rint(f32_min(f32_max(f32_mul(high, inverse), least), most)));
    *scale++ = some ? amax / 127.0f : 0.0f;
    i32_store_s8(q + at, a);
    i32_store_s8(q + at + 16, b);
    *sum++ = i32_sum(a);
    *sum++ = i32_sum(b);
  }
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
