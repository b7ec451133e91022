"""Rotary position embedding: the angles of positions, and the rotation of heads by them."""

from __future__ import annotations

from ...ir.graph import Node
from ...ir.target import Target
from ...ir.types import f32
from .kernels import Arg, Call, DimValue, Kernel, Literal, Operand, Result, Run
from .scalar import literal

_ANGLES = Kernel("rope_angles", """\
typedef struct {
  int32_t n;
  float scale;
  const int32_t *position;
  const float *inv_freq;
  float *cos, *sin;
} rope_angles_args;

static void rope_angles_tokens(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const rope_angles_args *a = args;
  (void)worker;
  for (int32_t t = begin; t < end; t++)
    for (int32_t i = 0; i < a->n; i++) {
      const float angle = (float)a->position[t] * a->inv_freq[i];
      a->cos[(size_t)t * a->n + i] = m_cos(angle) * a->scale;
      a->sin[(size_t)t * a->n + i] = m_sin(angle) * a->scale;
    }
}

/* cos, sin [tokens, n] of position[tokens] * inv_freq[n], times scale */
static void rope_angles(const run *r, int32_t tokens, int32_t n, float scale, const int32_t *position,
    const float *inv_freq, float *cos, float *sin) {
  const rope_angles_args args = {n, scale, position, inv_freq, cos, sin};
  parallel(r, tokens, 8, rope_angles_tokens, &args);
}
""")

_ROW = {
    "neox": Kernel("rope_row_neox", """\
/* One head: rotates the pairs (i, i + n); y may be x. */
static inline void rope_row_neox(const float *x, const float *cos, const float *sin, int32_t n, int32_t size,
    float *y) {
  for (int32_t i = 0; i < n; i += 16) {
    const int count = n - i < 16 ? n - i : 16;
    const vf32 a = f32_load_n(x + i, count), b = f32_load_n(x + n + i, count);
    const vf32 c = f32_load_n(cos + i, count), s = f32_load_n(sin + i, count);
    f32_store_n(y + i, f32_sub(f32_mul(a, c), f32_mul(b, s)), count);
    f32_store_n(y + n + i, f32_add(f32_mul(b, c), f32_mul(a, s)), count);
  }
  for (int32_t i = 2 * n; i < size; i++) y[i] = x[i];
}
"""),
    "interleaved": Kernel("rope_row_interleaved", """\
/* One head: rotates the pairs (2i, 2i + 1); y may be x. */
static inline void rope_row_interleaved(const float *x, const float *cos, const float *sin, int32_t n, int32_t size,
    float *y) {
  for (int32_t i = 0; i < n; i++) {
    const float a = x[2 * i], b = x[2 * i + 1];
    y[2 * i] = a * cos[i] - b * sin[i];
    y[2 * i + 1] = b * cos[i] + a * sin[i];
  }
  for (int32_t i = 2 * n; i < size; i++) y[i] = x[i];
}
"""),
}  # fmt: skip


def rope_row(style: str) -> Kernel:
    """`static void rope_row_STYLE(x, cos, sin, n, size, y)`, one head of `size` values of which 2n are rotated."""
    return _ROW[style]


def _rope_kernel(style: str) -> Kernel:
    return Kernel(f"rope_{style}", f"""\
typedef struct {{ int32_t heads, size, n; const float *x, *cos, *sin; float *y; }} rope_{style}_args;

static void rope_{style}_tokens(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const rope_{style}_args *a = args;
  (void)worker;
  for (int32_t t = begin; t < end; t++)
    for (int32_t h = 0; h < a->heads; h++) {{
      const size_t at = ((size_t)t * a->heads + h) * a->size, angle = (size_t)t * a->n;
      rope_row_{style}(a->x + at, a->cos + angle, a->sin + angle, a->n, a->size, a->y + at);
    }}
}}

/* y[tokens, heads, size]: x with the first 2n values of each head rotated by cos, sin [tokens, n] */
static void rope_{style}(const run *r, int32_t tokens, int32_t heads, int32_t size, int32_t n, const float *x,
    const float *cos, const float *sin, float *y) {{
  const rope_{style}_args args = {{heads, size, n, x, cos, sin, y}};
  parallel(r, tokens, 1 + 8192 / (heads * size), rope_{style}_tokens, &args);
}}
""", (rope_row(style),))  # fmt: skip


def rope_angles(node: Node, target: Target) -> Call:
    """position i32[T], inv_freq f32[n] -> cos, sin f32[T, n]."""
    tokens, n = node.types[0].shape
    scale = Literal(literal(node.attr("scale"), f32))
    return Call(_ANGLES, (Run(), DimValue(tokens), DimValue(n), scale, Operand(0), Operand(1), Result(0), Result(1)))


def rope(node: Node, target: Target) -> Call:
    """x f32[T, H, D], cos and sin f32[T, n] -> f32[T, H, D]."""
    dims = (*node.types[0].shape, node.inputs[1].shape[1])
    args: tuple[Arg, ...] = (Run(), *map(DimValue, dims), Operand(0), Operand(1), Operand(2), Result())
    return Call(_rope_kernel(node.attr("style")), args, in_place=((0, 0),))


LOWERINGS = {"rope_angles": rope_angles, "rope": rope}
