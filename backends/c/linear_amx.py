"""The C of products of many tokens on AMX: int8 tiles of 16 tokens by 16 rows, their sums scaled by vectors.

A tile product sums a group for 16 tokens and 16 rows in 16 cycles. The scales then cost 4 vector instructions (6 with
an offset) for each token's 16 rows, and these are the limit: while tiles are in use the CPU multiplies and converts
512-bit vectors on one port only and stores tiles through the other, which it adds on. So sums start from an integer
that makes them floats without a conversion (`tile_scaled` in isa/avx512vnni.h), and the vectors of one unit, two groups
of two panels, are computed among the tiles of a later one. Activations are packed in the order that units meet them.
Sums and their order are those of F_tile in `linear_block`, and so are the bits.
"""

from __future__ import annotations

from ...ir.quant import Format
from .kernels import Kernel
from .linear_job import AMX, JOB, each

LEAST_TOKENS = 32  # fewer are multiplied by F_tile


def uses_tiles(fmt: Format, target: str) -> bool:
    """Whether products of many tokens with the format are by tiles on the target."""
    return target in AMX


def unit_bytes(fmt: Format) -> int:
    """Bytes of a unit of activations: 16 tokens' int8 values of two groups, then as vectors their scales and, where the
    format has offsets, for each group scale * sum of x."""
    return 16 * 2 * fmt.group + 64 * (_scales(fmt) + (2 if fmt.mins else 0))


def _scales(fmt: Format) -> int:
    """Scales of activations that a unit has for a token."""
    return 2 * fmt.group // 32


def unit_words(fmt: Format, k: int | str) -> str:
    """C for the words of k values of a token in units."""
    return f"({k} + {2 * fmt.group - 1}) / {2 * fmt.group} * {unit_bytes(fmt) // 64}"


def block_units(fmt: Format, kblock: int) -> Kernel:
    """`static void F_units(args, begin, end)`, a linear_terms: activations as tiles and vectors meet them."""
    dtype, group, scales, size = fmt.dtype, fmt.group, _scales(fmt), unit_bytes(fmt)
    per, width = kblock // (2 * group), 2 * group
    terms, sum_of = "", ""
    if fmt.mins:
        total = "sum[2 * g] + sum[2 * g + 1]" if group == 32 else "sum[g]"
        of = "scale[g]" if group == 32 else "scale[g / 2]"
        sum_of = "\n    const int32_t *sum = (const void *)(scale + k / 32);"
        terms = f"""
        {each(2, "i")} {{
          const int32_t g = 2 * u + i;
          column[{16 * scales} + 16 * i] = g < groups ? {of} * (float)({total}) : 0;
        }}"""
    scale_of = "column[0] = scale[u];"
    if scales == 2:
        last = "2 * u + 1 < groups ? scale[2 * u + 1] : 0" if fmt.groups % 2 else "scale[2 * u + 1]"
        scale_of = f"column[0] = scale[2 * u], column[16] = {last};"
    also = ", scale * sum of x [2][16]" if fmt.mins else ""
    return Kernel(f"{dtype}_units", f"""\
/* {dtype}: [k / {kblock}][tokens / 16][k / {width} of these] units: x [16][{width}], scale of x [{scales}][16]{also}.
 * The last token fills up; a last group that is none has scale 0. */
static void {dtype}_units(const linear_terms_args *a, int32_t begin, int32_t end) {{
  const int32_t k = a->k, groups = k / {group}, units = (groups + 1) / 2, rows = linear_padded(a->tokens) / 16;
  const int32_t stop = end == a->tokens ? linear_padded(end) : end;
  for (int32_t t = begin; t < stop; t++) {{
    const uint8_t *x = a->x + (size_t)int_min(t, a->tokens - 1) * a->x_row;
    const float *scale = (const void *)(x + k);{sum_of}
    for (int32_t first = 0; first < units; first += {per}) {{ /* of a block */
      const int32_t some = int_min(units - first, {per});
      uint8_t *out = (uint8_t *)(void *)a->out
          + ((size_t)first * (size_t)rows + (size_t)(t / 16) * (size_t)some) * {size};
      for (int32_t u = first; u < first + some; u++, out += {size}) {{
        float *column = (float *)(void *)(out + {16 * width}) + t % 16;
        for (int i = 0; i < {width}; i++) out[t % 16 * {width} + i] = x[u * {width} + i]; /* gcc 12 drops a memcpy */
        {scale_of}{terms}
      }}
    }}
  }}
}}
""", (JOB,))  # fmt: skip


def amx_recipe(fmt: Format, kblock: int) -> str:
    """C of F_unit and F_tiles, a linear_panels for `LEAST_TOKENS` or more. They need F_planes, of two panels, and
    F_unpack."""
    dtype, size, group = fmt.dtype, 16 * fmt.dtype.block_bytes, fmt.group
    blocks, scales, bytes_ = kblock // fmt.block, _scales(fmt), unit_bytes(fmt)
    groups = f"count * {fmt.groups}" if fmt.groups > 1 else "count"
    signed = "s8_weights(q)" if fmt.signed else f"u8_sub_splat(q, {fmt.zero})"
    sign = f"""
      for (int j = 0; j < {kblock // 4}; j++)
        for (int p = 0; p < 2; p++) {{
          const vu8 q = u8_load(u.quad[j][p]);
          u8_store(u.quad[j][p], {signed});
        }}""" if fmt.signed or fmt.zero else ""  # fmt: skip
    column = "column + g * 16" if scales == 2 else "column"
    scaled = f"tile_scaled(y[i], scale, {column} + i, late[turn] + i * 16)"
    offset = ""
    if fmt.mins:
        offset = "\n        const vf32 offset = f32_load(u->offset[at + g][p]);"
        scaled = f"tile_offset({scaled}, offset, column + {16 * scales} + g * 16 + i)"
    clear = "\n        memset(u.offset[groups], 0, sizeof u.offset[groups]);" if fmt.mins else ""
    odd = f"""
      if (groups % 2) {{ /* the last unit has a group that is none */
        memset(u.scale[groups], 0, sizeof u.scale[groups]);{clear}
      }}""" if fmt.groups % 2 else ""
    return f"""\
/* What the unit of activations at x meets at group `at` of two panels: their integers into `sums`, by tiles, while
 * vectors add the sums of an earlier one, `before`, to its accumulators. Tiles lag: each stores the sums of the third
 * before it, the first three those at `late`. */
INLINE void {dtype}_unit(const int by_tiles, const int by_vectors, const {dtype}_planes *u, const uint8_t *x,
                         int32_t next, int32_t (*sums)[256], int32_t (*late)[256], const uint8_t *before, int32_t at,
                         float *acc) {{
  const float *column = (const float *)(const void *)(before + {32 * group});
  {each(2, "p")} {{
    vf32 y[16];
    if (by_vectors) {each(16, "i")} y[i] = f32_load(acc + i * 32 + p * 16);
    {each(2, "g")} {{
      const int turn = 2 * p + g;
      if (by_tiles) {{
        if (p == 0) tile_x(g, x + g * {group}, {2 * group});
        tile_sum(turn, u->quad[(next + g) * {group // 4}][p], 128, turn < 3 ? late[turn + 1] : sums[0]);
      }}
      if (by_vectors) {{
        const vf32 scale = f32_load(u->scale[at + g][p]);{offset}
        {each(16, "i")} y[i] = {scaled};
      }}
    }}
    if (by_vectors) {each(16, "i")} f32_store(acc + i * 32 + p * 16, y[i]);
  }}
}}

/* {dtype}_panels of many tokens. */
static void {dtype}_tiles(const linear_job *job, int32_t pair, int32_t pairs, float *acc) {{
  _Alignas(64) {dtype}_planes u;
  _Alignas(64) int32_t sums[2][4][256]; /* of two units: [panel][group], [token][row] */
  const int32_t blocks = job->k / {fmt.block}, rows = linear_padded(job->tokens) / 16;
  const size_t floats = linear_floats(job->tokens);
  const uint8_t *x = (const uint8_t *)(const void *)job->terms;
  memset(acc, 0, (size_t)pairs * floats * sizeof *acc);
  tile_begin({group});
  for (int32_t b = 0, count; b < blocks; b += count) {{
    count = int_min(blocks - b, {blocks});
    const int32_t groups = {groups}, width = (groups + 1) / 2, units = rows * width;
    for (int32_t i = 0; i < pairs; i++) {{
      const uint8_t *w = linear_first(job, pair + i) + (size_t)b * {size};
      float *y = acc + (size_t)i * floats;
      {dtype}_unpack(w, linear_second(job, pair + i), count, &u);{sign}{odd}
      {dtype}_unit(1, 0, &u, x, 0, sums[0], sums[1], x, 0, y);
      int32_t at = 0, n = 1;
      for (; n < units; n++) {{
        const uint8_t *here = x + (size_t)n * {bytes_};
        const int32_t from = at;
        at = at + 1 < width ? at + 1 : 0;
        {dtype}_unit(1, 1, &u, here, 2 * at, sums[n % 2], sums[(n + 1) % 2], here - {bytes_}, 2 * from, y);
        if (at == 0) y += 16 * 32;
      }}
      UNROLL for (int turn = 1; turn < 4; turn++) tile_store(turn, sums[(n + 1) % 2][turn]);
      {dtype}_unit(0, 1, &u, x, 0, sums[n % 2], sums[(n + 1) % 2], x + (size_t)(n - 1) * {bytes_}, 2 * at, y);
    }}
    x += (size_t)units * {bytes_};
  }}
  tile_end();
}}
"""
