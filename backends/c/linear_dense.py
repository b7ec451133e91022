"""The C of products with f32, f16 and bf16 weights: one chain of fused steps an output, k ascending."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.target import Target
from .kernels import Kernel
from .linear_job import JOB, each, tiles
from .tuning import tuning_of

LINES = 128  # lines of 16 rows unpacked at a time: 16 KB of two panels
BLOCK = 4 * LINES  # bytes of a row of activations that meet them


@dataclass(frozen=True)
class Dense:
    """How a dense panel is read: lines of `step` values of k, `bytes` each, unpacked by `load` to lanes of type `lane`.
    `x` is what meets line i in every lane, of the row at `row`; `fma` adds its product with a line {w} to {y}."""

    step: int
    bytes: int
    lane: str
    load: str
    x: str
    fma: str


def _float(line_bytes: int, load: str) -> Dense:
    x, fma = "f32_splat(f32_at(row + 4 * i))", "f32_fma(x, {w}, {y})"
    return Dense(1, line_bytes, "float", load, x, fma)


DENSE_FORMATS = {
    "f32": _float(64, "f32_load((const void *)w)"),
    "f16": _float(32, "f32_load_f16((const void *)w)"),
    "bf16": Dense(2, 64, "int32_t", "i32_load((const void *)w)", "i32_splat(i32_at(row + 4 * i))",
                  "dot2_bf16({y}, {w}, x)"),
}  # fmt: skip

AT = Kernel("at", """\
/* One element, or a pair of bf16, of a row of activations. */
INLINE float f32_at(const uint8_t *p) { float x; memcpy(&x, p, sizeof x); return x; }
INLINE int32_t i32_at(const uint8_t *p) { int32_t x; memcpy(&x, p, sizeof x); return x; }
INLINE uint16_t u16_at(const uint8_t *p) { uint16_t x; memcpy(&x, p, sizeof x); return x; }
""")


DENSE_BLOCKS = Kernel("dense_blocks", f"""\
/* Rows of activations in blocks, [block][token][{BLOCK} bytes], the last filled up with zeros: rows that lie a power of
 * two apart would share few lines of a cache. */
static void dense_blocks(const linear_terms_args *a, int32_t begin, int32_t end) {{
  for (int32_t t = begin; t < end; t++) {{
    const uint8_t *x = a->x + (size_t)t * a->x_row;
    uint8_t *out = (uint8_t *)(void *)a->out + (size_t)t * {BLOCK};
    for (size_t at = 0; at < a->x_row; at += {BLOCK}, out += (size_t)a->tokens * {BLOCK}) {{
      const size_t size = size_min(a->x_row - at, {BLOCK});
      memcpy(out, x + at, size);
      memset(out + size, 0, {BLOCK} - size);
    }}
  }}
}}
""", (JOB,))


def dense_panels(dtype: str, target: Target) -> Kernel:
    """`static void F_panels(job, pair, count, acc)`, a linear_panels."""
    d, tuning = DENSE_FORMATS[dtype], tuning_of(target)
    tile = tuning.dense
    panels, tokens, word = each(tile.panels, "p"), each("T", "t"), "f32" if d.lane == "float" else "i32"
    step = f"y[p][t] = {d.fma.format(w=f'{word}_load(u[i][p])', y='y[p][t]')};"
    streamed = f"""{{
      const uint8_t *w = first + (size_t)p * panel_bytes + (size_t)i * {d.bytes};
      prefetch(w + {tuning.ahead}, {d.bytes});
      y[p] = {d.fma.format(w=d.load, y='y[p]')};
    }}"""
    both = each(2, "p")
    lines, whole, last = "job->k", "job->k", ""
    if d.step == 2:  # an odd k ends in a pair of which x has one
        lines, whole, last = "(job->k + 1) / 2", "job->k / 2", f"""\
  if (job->k % 2) {{
    const vi32 x = i32_splat(u16_at(row + 4 * i));
    {both} {streamed}
  }}
"""
    pointers = [f"const uint8_t *row = block + (size_t)t * {BLOCK};", "float *to = sums + t * 32;"]
    call = f"{dtype}_tile({{T}}, u, some, row, to);"
    return Kernel(f"{dtype}_panels", f"""\
/* {dtype}: T tokens over `count` lines of {d.step} k. */
INLINE void {dtype}_tile(const int T, {d.lane} (*u)[{tile.panels}][16], int32_t count, const uint8_t *first,
                         float *acc) {{
  vf32 y[{tile.panels}][{tile.tokens[-1]}];
  {panels} {tokens} y[p][t] = f32_load(acc + t * 32 + p * 16);
  for (int32_t i = 0; i < count; i++)
    {tokens} {{
      const uint8_t *row = first + t * {BLOCK};
      const v{word} x = {d.x};
      {panels} {step}
    }}
  {panels} {tokens} f32_store(acc + t * 32 + p * 16, y[p][t]);
}}

/* One token, straight from the panels: the sum of {dtype}_tile. */
static void {dtype}_stream(const linear_job *job, const uint8_t *first, size_t panel_bytes, float *acc) {{
  const uint8_t *row = job->x;
  vf32 y[2] = {{f32_zero(), f32_zero()}};
  int32_t i = 0;
  for (; i < {whole}; i++) {{
    const v{word} x = {d.x};
    {both} {streamed}
  }}
{last}  {each(2, "p")} f32_store(acc + p * 16, y[p]);
}}

static void {dtype}_panels(const linear_job *job, int32_t pair, int32_t count, float *acc) {{
  _Alignas(64) {d.lane} u[{LINES}][{tile.panels}][16];
  const int32_t lines = {lines};
  const size_t floats = linear_floats(job->tokens);
  if (job->tokens == 1) {{
    for (int32_t i = 0; i < count; i++)
      {dtype}_stream(job, linear_first(job, pair + i), linear_second(job, pair + i), acc + (size_t)i * floats);
    return;
  }}
  memset(acc, 0, (size_t)count * floats * sizeof *acc);
  for (int32_t l = 0, some; l < lines; l += some) {{
    const uint8_t *block = (const uint8_t *)(const void *)job->terms;
    block += (size_t)(l / {LINES}) * (size_t)job->tokens * {BLOCK};
    some = int_min(lines - l, {LINES});
    for (int32_t i = pair; i < pair + count; i++)
      for (int p = 0; p < 2; p += {tile.panels}) {{
        float *sums = acc + (size_t)(i - pair) * floats + p * 16;
        {each(tile.panels, "q")} {{
          const uint8_t *w = linear_first(job, i) + (size_t)(p + q) * linear_second(job, i) + (size_t)l * {d.bytes};
          for (int32_t j = 0; j < some; j++, w += {d.bytes}) {{
            prefetch(w + {LINES * d.bytes}, {d.bytes});
            {word}_store(u[j][q], {d.load});
          }}
        }}
{tiles(tile, pointers, call)}
      }}
  }}
}}
""", (JOB, AT))  # fmt: skip
