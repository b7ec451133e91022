"""The C of products of many tokens on AMX: int8 tiles of 16 tokens by 16 rows, their sums scaled by vectors.

A tile product sums a group of 32 for 16 tokens and 16 rows in 16 cycles; the scales then cost 4 vector instructions (6
with an offset) for each token's 16 rows, two a cycle. So vectors are the limit, 32 cycles a tile where dot products
alone would take 64, and they work on one unit, 16 tokens by 16 rows by at most 8 groups, while tiles sum the next one's
integers. Sums and their order are those of F_tile in `linear_block`, and so are the bits. Formats of groups of 16,
whose scales would cost twice as much, are left to F_tile.
"""

from __future__ import annotations

from ...ir.quant import Format
from .kernels import Kernel
from .linear_job import AMX, JOB, each

LEAST_TOKENS = 32  # fewer are multiplied by F_tile

UNIT = Kernel("amx_unit", """\
enum { UNIT_TOKENS = 16, UNIT_GROUPS = 8 };

/* 16 tokens (`tokens`, at the end) by a panel by `groups` groups of 32: where its parts lie. */
typedef struct {
  int tokens, groups, ahead;   /* ahead: whether to fetch the activations of the tokens behind */
  const int8_t *x;             /* of the first token and group */
  const uint8_t *quad;         /* the panel's signed weights, 128 bytes from a quad to the next */
  const float *scale, *offset; /* of the rows, [groups][2][16] */
  const float *column;         /* of the tokens, see F_columns */
  float *acc;                  /* [16][32] */
} amx_unit;

typedef int32_t amx_sums[UNIT_GROUPS][16][16]; /* [group][token][row] */

/* Where the sums that tiles still hold belong: product g of a unit is in tile g % 4 until the third after it starts. */
typedef struct { int32_t *of[4]; } amx_tiles;

/* The integers of group g of a unit. */
INLINE void amx_sum(amx_tiles *tiles, const amx_unit *unit, size_t x_row, int g, amx_sums sums) {
  if (unit->ahead) /* a line holds two groups */
    UNROLL for (int i = 0; i < 8; i++)
      __builtin_prefetch(unit->x + (size_t)(UNIT_TOKENS + g % 2 * 8 + i) * x_row + g / 2 * 64);
  tile_product(g % 4, unit->x + g * 32, x_row, unit->quad + g * 8 * 128, 128, tiles->of[(g + 1) % 4]);
  tiles->of[g % 4] = sums[g][0];
}

static inline void amx_drain(const amx_tiles *tiles) {
  UNROLL for (int i = 0; i < 4; i++) tile_store(i, tiles->of[i]);
}
""", (JOB,))


def uses_tiles(fmt: Format, target: str) -> bool:
    """Whether products of many tokens with the format are by tiles on the target."""
    return target in AMX and fmt.group == 32


def column_words(fmt: Format) -> int:
    """Words of a column of F_columns: for 16 tokens and 32 values the scales and, with an offset, the sums."""
    return 32 if fmt.mins else 16


def block_columns(fmt: Format) -> Kernel:
    """`static void F_columns(args, begin, end)`, a linear_terms: what vectors meet, a unit's tokens side by side."""
    dtype, sums, also, words = fmt.dtype, "", "", column_words(fmt)
    if fmt.mins:
        also = ", then their products with sums of x"
        sums = "\n      column[16] = scale[g] * (float)(sum[2 * g] + sum[2 * g + 1]);"
    sum_of = "\n    const int32_t *sum = (const void *)(scale + k / 32);" if fmt.mins else ""
    return Kernel(f"{dtype}_columns", f"""\
/* {dtype}: [tokens / 16][k / 32] columns of 16 scales of x{also}. The last token fills up. */
static void {dtype}_columns(const linear_terms_args *a, int32_t begin, int32_t end) {{
  const int32_t k = a->k, stop = end == a->tokens ? linear_padded(end) : end;
  for (int32_t t = begin; t < stop; t++) {{
    const float *scale = (const void *)(a->x + (size_t)int_min(t, a->tokens - 1) * a->x_row + k);{sum_of}
    float *column = (float *)(void *)a->out + (size_t)(t / 16) * (size_t)(k / 32) * {words} + t % 16;
    for (int32_t g = 0; g < k / 32; g++, column += {words}) {{
      column[0] = scale[g];{sums}
    }}
  }}
}}
""", (JOB,))  # fmt: skip


def amx_recipe(fmt: Format, kblock: int) -> str:
    """C of F_unit and F_tiles, a linear_panels for `LEAST_TOKENS` or more. They need F_planes, of two panels, and
    F_unpack."""
    dtype, size, blocks = fmt.dtype, 16 * fmt.dtype.block_bytes, kblock // fmt.block
    groups, words = f"count * {fmt.groups}" if fmt.groups > 1 else "count", column_words(fmt)
    signed = "s8_weights(q)" if fmt.signed else f"u8_sub_splat(q, {fmt.zero})"
    sign = f"""
      for (int j = 0; j < {kblock // 4}; j++)
        for (int p = 0; p < 2; p++) {{
          const vu8 q = u8_load(u.quad[j][p]);
          u8_store(u.quad[j][p], {signed});
        }}""" if fmt.signed or fmt.zero else ""  # fmt: skip
    more = "y[i] = f32_add(y[i], f32_mul(offset, f32_splat(column[16 + i])));"
    offset = f"""
      const vf32 offset = f32_load(now->offset + g * 32);
      {each("UNIT_TOKENS", "i")} {more}""" if fmt.mins else ""
    unit_offset = "\n            next.offset = u.offset[g][p];" if fmt.mins else ""
    return f"""\
/* The scaled sums of groups [from, from + count) of unit `now`, while tiles sum the integers of those of `next`; either
 * may be null. */
INLINE void {dtype}_both(const int count, int from, amx_tiles *tiles, const amx_unit *now, amx_sums now_sums,
                         const amx_unit *next, amx_sums next_sums, size_t x_row) {{
  vf32 y[UNIT_TOKENS];
  if (now) {each("UNIT_TOKENS", "i")} y[i] = f32_load(now->acc + i * 32);
  {each("count", "c")} {{
    const int g = from + c;
    if (next) amx_sum(tiles, next, x_row, g, next_sums);
    if (now) {{
      const vf32 scale = f32_load(now->scale + g * 32);
      const float *column = now->column + g * {words};
      {each("UNIT_TOKENS", "i")} {{
        const vf32 d = f32_mul(scale, f32_splat(column[i]));
        y[i] = f32_add(y[i], f32_mul(d, f32_from_i32(i32_load(now_sums[g][i]))));
      }}{offset}
    }}
  }}
  if (now) {each("UNIT_TOKENS", "i")} f32_store(now->acc + i * 32, y[i]);
}}

/* The same for all groups of both; tiles are drained where no full unit follows. */
static void {dtype}_unit(amx_tiles *tiles, const amx_unit *now, amx_sums now_sums, const amx_unit *next,
                         amx_sums next_sums, size_t x_row) {{
  if (now && next && now->groups == UNIT_GROUPS && next->groups == UNIT_GROUPS) {{
    {dtype}_both(UNIT_GROUPS, 0, tiles, now, now_sums, next, next_sums, x_row);
    return;
  }}
  if (next) {{
    for (int g = 0; g < next->groups; g++) amx_sum(tiles, next, x_row, g, next_sums);
    amx_drain(tiles);
  }}
  if (now)
    for (int g = 0; g < now->groups; g++) {dtype}_both(1, g, NULL, now, now_sums, NULL, NULL, 0);
}}

/* {dtype}_panels of many tokens. */
static void {dtype}_tiles(const linear_job *job, int32_t pair, int32_t pairs, float *acc) {{
  _Alignas(64) {dtype}_planes u;
  _Alignas(64) amx_sums both[2];
  const int32_t blocks = job->k / {fmt.block};
  const size_t floats = linear_floats(job->tokens);
  const float *columns = (const float *)(const void *)job->terms;
  _Alignas(64) int32_t nowhere[16][16]; /* for the sums of tiles that hold none yet */
  amx_tiles tiles = {{{{0}}}};
  amx_unit now = {{0}}, next = {{0}};
  memset(both, 0, sizeof both); /* rows of tokens that there are not stay zero */
  memset(acc, 0, (size_t)pairs * floats * sizeof *acc);
  for (int32_t b = 0, count; b < blocks; b += count) {{
    count = int_min(blocks - b, {blocks});
    for (int32_t i = 0; i < pairs; i++) {{
      const uint8_t *w = linear_first(job, pair + i) + (size_t)b * {size};
      {dtype}_unpack(w, linear_second(job, pair + i), count, &u);{sign}
      int turn = 0;
      for (int32_t t = 0; t < job->tokens; t += UNIT_TOKENS)
        for (int32_t g = 0; g < {groups}; g += UNIT_GROUPS)
          for (int p = 0; p < 2; p++, turn++) {{
            const int tokens = int_min(job->tokens - t, UNIT_TOKENS);
            const size_t at = (size_t)(b * {fmt.groups} + g);
            if (tokens != next.tokens) {{
              if (turn) amx_drain(&tiles);
              tile_begin(tokens, 32);
              for (int j = 0; j < 4; j++) tiles.of[j] = nowhere[0];
            }}
            next.tokens = tokens, next.groups = int_min({groups} - g, UNIT_GROUPS), next.ahead = p == 0;
            next.x = (const int8_t *)job->x + (size_t)t * job->x_row + at * 32;
            next.quad = u.quad[g * 8][p];
            next.scale = u.scale[g][p];{unit_offset}
            next.column = columns + ((size_t)(t / 16) * (size_t)(job->k / 32) + at) * {words};
            next.acc = acc + (size_t)i * floats + (size_t)t * 32 + p * 16;
            {dtype}_unit(&tiles, turn ? &now : NULL, both[(turn + 1) % 2], &next, both[turn % 2], job->x_row);
            now = next;
          }}
      amx_drain(&tiles);
      {dtype}_unit(&tiles, &now, both[(turn + 1) % 2], NULL, NULL, 0);
    }}
  }}
  tile_end();
}}
"""
