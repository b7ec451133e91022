"""Rows of activations as the linears take them: int8 with scales and sums (a8g32, a8g256), or bf16."""

from __future__ import annotations

from ...ir.types import ACTIVATION_SIZES
from .kernels import Kernel


def _int8_row(name: str, group: int) -> Kernel:
    """{name}[K]: K bytes of q, K/{block} f32 scales, K/{group} i32 sums of q."""
    block = ACTIVATION_SIZES[name][0]
    return Kernel(f"store_row_{name}", f"""\
/* x[k] to a row of {name}: k int8, a scale for every {block}, a sum for every {group}. */
static inline void store_row_{name}(const float *x, int32_t k, void *row) {{
  int8_t *q = row;
  float *scale = (void *)(q + k);
  int32_t *sum = (void *)(scale + k / {block});
  for (int32_t at = 0; at < k; at += {block}) {{
    vf32 largest = f32_splat(-INFINITY);
    for (int i = 0; i < {block}; i += 16) largest = f32_max(largest, f32_abs(f32_load(x + at + i)));
    const float amax = f32_hmax(largest);
    const int some = amax > 1e-30f;
    const vf32 inverse = f32_splat(some ? 127.0f / amax : 0.0f);
    *scale++ = some ? amax / 127.0f : 0.0f;
    for (int i = 0; i < {block}; i += {group}) {{
      vi32 total = i32_zero();
      for (int j = i; j < i + {group}; j += 16) {{
        const vf32 scaled = f32_max(f32_mul(f32_load(x + at + j), inverse), f32_splat(-127.0f));
        const vi32 rounded = i32_from_f32(f32_rint(f32_min(scaled, f32_splat(127.0f))));
        i32_store_s8(q + at + j, rounded);
        total = i32_add(total, rounded);
      }}
      *sum++ = i32_sum(total);
    }}
  }}
}}
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
STORE_ROW = {"a8g32": _int8_row("a8g32", 32), "a8g256": _int8_row("a8g256", 16), "bf16": _BF16_ROW}
