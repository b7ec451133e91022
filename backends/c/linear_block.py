"""The C of products with block formats: one recipe, driven by the format's record and the target's tile shape.

For a format F it writes F_quad, F_scale and F_pair, what lies in a packed block; F_planes, what a block of k looks like
unpacked; F_unpack; F_tile, the micro-kernel; F_stream, its sum for one token straight from the packed bytes; F_panels,
the loop over k and tokens; and F_terms, what a token contributes beside its dots, computed once for all rows.
"""

from __future__ import annotations

from ...ir.quant import Format, planes_of
from .kernels import Kernel
from .linear_job import JOB, KBLOCK, TILES, Tile, each, tiles

FIELD = Kernel("u8_field", """\
/* `bits` bits of each byte from `shift` moved to `position`. */
INLINE vu8 u8_field(vu8 v, int shift, int bits, int position) {
  if (shift > position) v = u8_shr16(v, shift - position);
  if (shift < position) v = u8_shl16(v, position - shift);
  return u8_and_splat(v, (uint8_t)(((1 << bits) - 1) << position));
}
/* The field of `bits` bits of packed value v, in words of 16 lanes, moved to `position`. */
INLINE vi32 word_field(const uint8_t *words, int v, int bits, int position) {
  int32_t lanes[16];
  memcpy(lanes, words + v / (32 / bits) * 64, sizeof lanes);
  const vi32 field = i32_shr(i32_load(lanes), bits * (v % (32 / bits)));
  return i32_shl(i32_and(field, i32_splat((1 << bits) - 1)), position);
}
/* Two values of 16 bits in each lane, the even one low. */
INLINE vi32 s16_pair(vi32 even, vi32 odd) { return i32_or(i32_and(even, i32_splat(0xffff)), i32_shl(odd, 16)); }
""")


def block_panels(fmt: Format, target: str) -> Kernel:
    """`static void F_panels(job, w, panel_bytes, acc)`, a linear_panels."""
    tile = TILES[target]["block"]
    micro, stream = (_tile_32, _stream_32) if fmt.block == 32 else (_tile_256, _stream_256)
    parts = [_packed(fmt), _planes(fmt, tile.panels), _unpack(fmt, tile.panels), micro(fmt, tile), stream(fmt)]
    text = "\n".join([*parts, _panels(fmt, tile)])
    return Kernel(f"{fmt.dtype}_panels", text, (JOB, FIELD))


def terms_per_block(fmt: Format) -> int:
    """Words of terms for a token's block of activations."""
    return 1 if fmt.block == 32 else fmt.groups // 2


def block_terms(fmt: Format) -> Kernel:
    """`static void F_terms(x, x_row, tokens, k, terms)`, a linear_terms: a word a block of 32 or pair of groups."""
    dtype, count = fmt.dtype, f"k / {fmt.block // terms_per_block(fmt)}"
    if fmt.block == 32 and fmt.mins:
        what = "scale * sum of x, as a float"
        body = "const float term = scale[i] * (float)sum[i];\n      memcpy(&terms[i], &term, sizeof term);"
    elif fmt.block == 32:
        zero = "S8_ZERO" if fmt.signed else str(fmt.zero)
        what, body = f"-{zero} * sum of x: where dots start from", f"terms[i] = -{zero} * sum[i];"
    else:
        sign = "-" if fmt.zero else ""
        low, high = ("sum[2 * i]", "sum[2 * i + 1]") if fmt.group == 16 else (
            "(sum[4 * i] + sum[4 * i + 1])", "(sum[4 * i + 2] + sum[4 * i + 3])")  # fmt: skip
        what = f"{'negated ' if fmt.zero else ''}sums of x over groups of {fmt.group}, two int16 a word"
        body = f"terms[i] = (int32_t)(((uint32_t){sign}{low} & 0xffff) | (uint32_t){sign}{high} << 16);"
    scale = "    const float *scale = (const void *)(x + k);\n" if "scale[i]" in body else ""
    return Kernel(f"{dtype}_terms", f"""\
/* {dtype}: {what} */
static void {dtype}_terms(const uint8_t *x, size_t x_row, int32_t tokens, int32_t k, int32_t *terms) {{
  for (int32_t t = 0; t < tokens; t++, x += x_row, terms += {count}) {{
{scale}    const int32_t *sum = (const void *)(x + k + k / {fmt.block} * 4);
    for (int32_t i = 0; i < {count}; i++) {{
      {body}
    }}
  }}
}}
""")  # fmt: skip


def _describe(fmt: Format) -> str:
    parts = [f"{fmt.bits} bits", f"groups of {fmt.group}"]
    parts += [f"zero at {fmt.zero}"] if fmt.zero else []
    parts += [f"{fmt.scale_bits}-bit scales"] if fmt.scale_bits else []
    parts += {"": [], "add": ["an offset"], "subtract": ["mins"]}[fmt.mins]
    return f"{fmt.dtype}: {', '.join(parts)}; {fmt.dtype.block_bytes} bytes a block of {fmt.block}"


def _lines(fmt: Format) -> int:
    """Where a packed block's lines of bit planes begin, after d, m and the integer scales."""
    return 32 + (32 if fmt.mins else 0) + fmt.scale_count * fmt.scale_bits * 2


def _packed(fmt: Format) -> str:
    """C: what lies in a packed block, in registers: bytes of weights, integer scales and what meets the terms."""
    dtype, fields, first = fmt.dtype, [], 0
    for bits, position in planes_of(fmt.bits):
        line = f"u8_load(line + {f'({first} + j % {bits})' if first else f'j % {bits}'} * 64)"
        field = f"u8_field({line}, {bits} * (j / {bits}), {bits}, {position})"
        fields.append(field if bits < 8 else f"s8_weights({line})")
        first += bits
    text = f"""\
/* {_describe(fmt)}. */
/* Values 4j .. 4j+3 of 32, of 16 rows, from their {fmt.bits} lines. */
INLINE vu8 {dtype}_quad(const uint8_t *line, int j) {{
  return {_either("u8", fields)};
}}
"""
    if not fmt.scale_bits:
        return text
    fields, base = [], _lines(fmt) - fmt.scale_count * fmt.scale_bits * 2
    for bits, position in planes_of(fmt.scale_bits):
        fields.append(f"word_field(w + {base}, i, {bits}, {position})")
        base += fmt.scale_count * bits * 2
    value = _either("i32", fields)
    if fmt.scale_signed:
        value = f"i32_shr(i32_shl({value}, {32 - fmt.scale_bits}), {32 - fmt.scale_bits})"
    if fmt.scale_zero:
        value = f"i32_sub({value}, i32_splat({fmt.scale_zero}))"
    at = f"{fmt.groups} + 2 * i" if fmt.mins else "2 * i"
    return f"""{text}\
INLINE vi32 {dtype}_scale(const uint8_t *w, int i) {{
  return {value};
}}
/* {_paired(fmt).capitalize()} 2i and 2i + 1. */
INLINE vi32 {dtype}_pair(const uint8_t *w, int i) {{
  return s16_pair({dtype}_scale(w, {at}), {dtype}_scale(w, {at} + 1));
}}
"""


def _either(word: str, fields: list[str]) -> str:
    return fields[0] if len(fields) == 1 else f"{word}_or({fields[0]},\n               {fields[1]})"


def _planes(fmt: Format, panels: int) -> str:
    lines = ["typedef struct {", f"  uint8_t quad[{KBLOCK // 4}][{panels}][64];"]
    if fmt.scale_bits:
        lines.append(f"  int32_t scale[{fmt.groups}][{panels}][16];")
    if fmt.block == 256:
        lines.append(f"  int32_t pair[{fmt.groups // 2}][{panels}][16]; /* {_paired(fmt)}, two int16 a lane */")
    lines.append(f"  float d[{KBLOCK // fmt.block}][{panels}][16];")
    if fmt.mins:
        lines.append(f"  float m[{KBLOCK // fmt.block}][{panels}][16];")
    return "\n".join([*lines, f"}} {fmt.dtype}_planes;", ""])


def _paired(fmt: Format) -> str:
    return "mins" if fmt.mins else "scales"


D, M = "f32_load_f16((const void *)w)", "f32_load_f16((const void *)(w + 32))"  # C: of the packed block at w


def _unpack(fmt: Format, panels: int) -> str:
    """C: headers and bit planes of up to KBLOCK values of each panel, to floats, 32-bit lanes and bytes."""
    dtype, size, group = fmt.dtype, 16 * fmt.dtype.block_bytes, "b" if fmt.block == 32 else "g"
    lines = [f"f32_store(u->d[b][p], {D});"]
    if fmt.mins:
        lines.append(f"f32_store(u->m[b][p], {M});")
    if fmt.scale_bits:
        lines += [each(fmt.groups, "g"), f"  i32_store(u->scale[g][p], dot_scale({dtype}_scale(w, g), {fmt.bits}));",
                  each(fmt.groups // 2, "i"), f"  i32_store(u->pair[i][p], {dtype}_pair(w, i));"]  # fmt: skip
    part = size * 32 // fmt.block
    quads = [f"const uint8_t *line = w + {_lines(fmt)}{f' + g * {fmt.bits * 64}' if fmt.block == 256 else ''};",
             f"prefetch(w + {KBLOCK // fmt.block * size}{f' + g * {part}' if fmt.block == 256 else ''}, {part});",
             each(8, "j"), f"  u8_store(u->quad[8 * {group} + j][p], {dtype}_quad(line, j));"]  # fmt: skip
    if fmt.block == 256:
        quads = ["for (int g = 0; g < 8; g++) {", *(f"  {q}" for q in quads), "}"]
    body = "\n".join(f"      {line}" for line in lines + quads)
    return f"""\
static void {dtype}_unpack(const uint8_t *first, size_t panel_bytes, int32_t blocks, {dtype}_planes *u) {{
  for (int p = 0; p < {panels}; p++) {{
    const uint8_t *w = first + (size_t)p * panel_bytes;
    for (int32_t b = 0; b < blocks; b++, w += {size}) {{
{body}
    }}
  }}
}}
"""


def _tile_32(fmt: Format, tile: Tile) -> str:
    dtype, most, quads = fmt.dtype, tile.tokens[-1], f"DOT_QUADS({fmt.bits})"
    panels, tokens = each(tile.panels, "p"), each("T", "t")
    start = "i32_zero()" if fmt.mins else "i32_splat(terms[t * term_row + g])"
    dot = "dot4_s8s8" if fmt.signed else "dot4_u7s8"
    also = ", then y += m * (scale * sum of x)" if fmt.mins else ""
    offset = f"""
      {tokens} {{
        float term;
        memcpy(&term, &terms[t * term_row + g], sizeof term);
        y[p][t] = f32_add(y[p][t], f32_mul(f32_load(u->m[g][p]), f32_splat(term)));
      }}""" if fmt.mins else ""  # fmt: skip
    return f"""\
/* T tokens over `groups` groups of 32: y += (d * scale) * sum{also}. */
INLINE void {dtype}_tile(const int T, const {dtype}_planes *u, int32_t groups, const int8_t *x, size_t x_row,
                         const float *scale, const int32_t *terms, size_t term_row, float *acc) {{
  const size_t scale_row = x_row / sizeof *scale;
  vf32 y[{tile.panels}][{most}];
  {panels} {tokens} y[p][t] = f32_load(acc + t * 32 + p * 16);
  for (int32_t g = 0; g < groups; g++, x += 32) {{
    vi32 sum[{tile.panels}][{most}];
    {tokens} {panels} sum[p][t] = {start};
    {each(f"8 / {quads}", "c")} {{
      vdot dot[{tile.panels}][{most}];
      {panels} {tokens} dot[p][t] = dot_begin(sum[p][t]);
      {each(quads, "i")} {{
        const int j = c * {quads} + i;
        {tokens} {{
          const vquad quad = quad_load(x + t * x_row + 4 * j);
          {panels} dot[p][t] = {dot}(dot[p][t], u8_load(u->quad[8 * g + j][p]), quad);
        }}
      }}
      {panels} {tokens} sum[p][t] = dot_end(sum[p][t], dot[p][t]);
    }}
    {panels} {{
      {tokens} {{
        const vf32 d = f32_mul(f32_load(u->d[g][p]), f32_splat(scale[t * scale_row + g]));
        y[p][t] = f32_add(y[p][t], f32_mul(d, f32_from_i32(sum[p][t])));
      }}{offset}
    }}
  }}
  {panels} {tokens} f32_store(acc + t * 32 + p * 16, y[p][t]);
}}
"""


def _tile_256(fmt: Format, tile: Tile) -> str:
    dtype, most, quads = fmt.dtype, tile.tokens[-1], fmt.group // 4
    panels, tokens = each(tile.panels, "p"), each("T", "t")
    meet = "{0} = dot2_s16({0}, i32_load(u->pair[i][p]), i32_splat(terms[t * term_row + i]));"
    zeros = "" if fmt.mins else f"""
    {each(fmt.groups // 2, "i")} {meet.format("sum[p][t]")}
    sum[p][t] = i32_shl(sum[p][t], {fmt.zero.bit_length() - 1}); /* times the zero, {fmt.zero} */"""
    mins = f"""
    vi32 mins = i32_zero();
    {each(fmt.groups // 2, "i")} {meet.format("mins")}
    y = f32_sub(y, f32_mul(f32_mul(f32_load(u->m[0][p]), d_x), f32_from_i32(mins)));""" if fmt.mins else ""
    also = ", then y -= (dmin * scale) * sum of mins" if fmt.mins else ""
    return f"""\
/* T tokens over one block: y += (d * scale) * sum of scaled groups{also}. */
INLINE void {dtype}_tile(const int T, const {dtype}_planes *u, const int8_t *x, size_t x_row, const float *scale,
                         const int32_t *terms, size_t term_row, float *acc) {{
  enum {{ CHAIN = {quads} < DOT_SCALED_QUADS({fmt.bits}) ? {quads} : DOT_SCALED_QUADS({fmt.bits}) }};
  const size_t scale_row = x_row / sizeof *scale;
  vi32 sum[{tile.panels}][{most}];
  {panels} {tokens} {{
    sum[p][t] = i32_zero();{zeros}
  }}
  for (int g = 0; g < {fmt.groups}; g++, x += {fmt.group}) {{
    const uint8_t (*w)[{tile.panels}][64] = &u->quad[{quads} * g];
    {each(f"{quads} / CHAIN", "c")} {{
      vdot dot[{tile.panels}][{most}];
      {panels} {tokens} dot[p][t] = dot_zero();
      {each("CHAIN", "i")} {{
        const int j = c * CHAIN + i;
        {tokens} {{
          const vquad quad = quad_load(x + t * x_row + 4 * j);
          {panels} dot[p][t] = dot4_u7s8(dot[p][t], u8_load(w[j][p]), quad);
        }}
      }}
      {panels} {tokens} sum[p][t] = dot_scaled(sum[p][t], dot[p][t], i32_load(u->scale[g][p]), {fmt.bits});
    }}
  }}
  {panels} {tokens} {{
    const vf32 d_x = f32_splat(scale[t * scale_row]);
    vf32 y = f32_load(acc + t * 32 + p * 16);
    y = f32_add(y, f32_mul(f32_mul(f32_load(u->d[0][p]), d_x), f32_from_i32(sum[p][t])));{mins}
    f32_store(acc + t * 32 + p * 16, y);
  }}
}}
"""


def _stream_32(fmt: Format) -> str:
    dtype, size, quads = fmt.dtype, 16 * fmt.dtype.block_bytes, f"DOT_QUADS({fmt.bits})"
    start = "i32_zero()" if fmt.mins else "i32_splat(job->terms[g])"
    dot = "dot4_s8s8" if fmt.signed else "dot4_u7s8"
    offset = f"""
    float term;
    memcpy(&term, &job->terms[g], sizeof term);
    y = f32_add(y, f32_mul({M}, f32_splat(term)));""" if fmt.mins else ""  # fmt: skip
    return f"""\
/* One token and panel, straight from the packed bytes: the sum of {dtype}_tile. */
static void {dtype}_stream(const linear_job *job, const uint8_t *w, float *acc) {{
  const int8_t *x = (const int8_t *)job->x;
  const float *scale = (const float *)(const void *)(x + job->k);
  vf32 y = f32_zero();
  for (int32_t g = 0; g < job->k / 32; g++, w += {size}, x += 32) {{
    vi32 sum = {start};
    prefetch(w + STREAM_AHEAD, {size});
    {each(f"8 / {quads}", "c")} {{
      vdot dot = dot_begin(sum);
      {each(quads, "i")} {{
        const int j = c * {quads} + i;
        dot = {dot}(dot, {dtype}_quad(w + {_lines(fmt)}, j), quad_load(x + 4 * j));
      }}
      sum = dot_end(sum, dot);
    }}
    y = f32_add(y, f32_mul(f32_mul({D}, f32_splat(scale[g])), f32_from_i32(sum)));{offset}
  }}
  f32_store(acc, y);
}}
"""


def _stream_256(fmt: Format) -> str:
    dtype, size, quads = fmt.dtype, 16 * fmt.dtype.block_bytes, fmt.group // 4
    meet = f"{each(fmt.groups // 2, 'i')} {{0}} = dot2_s16({{0}}, {dtype}_pair(w, i), i32_splat(terms[i]));"
    zeros = "" if fmt.mins else f"""
    {meet.format("sum")}
    sum = i32_shl(sum, {fmt.zero.bit_length() - 1}); /* times the zero, {fmt.zero} */"""
    mins = f"""
    vi32 mins = i32_zero();
    {meet.format("mins")}
    y = f32_sub(y, f32_mul(f32_mul({M}, d_x), f32_from_i32(mins)));""" if fmt.mins else ""
    return f"""\
/* One token and panel, straight from the packed bytes: the sum of {dtype}_tile. */
static void {dtype}_stream(const linear_job *job, const uint8_t *w, float *acc) {{
  enum {{ CHAIN = {quads} < DOT_SCALED_QUADS({fmt.bits}) ? {quads} : DOT_SCALED_QUADS({fmt.bits}) }};
  const int8_t *x = (const int8_t *)job->x;
  const float *scale = (const float *)(const void *)(x + job->k);
  const int32_t *terms = job->terms;
  vf32 y = f32_zero();
  for (int32_t b = 0; b < job->k / 256; b++, w += {size}, terms += {fmt.groups // 2}) {{
    vi32 sum = i32_zero();{zeros}
    {each(8, "h")} {{ /* 32 values */
      const uint8_t *line = w + {_lines(fmt)} + h * {fmt.bits * 64};
      prefetch(w + STREAM_AHEAD + h * {size // 8}, {size // 8});
      {each("8 / CHAIN", "c")} {{
        vdot dot = dot_zero();
        {each("CHAIN", "i")} {{
          const int j = c * CHAIN + i;
          dot = dot4_u7s8(dot, {dtype}_quad(line, j), quad_load(x + 4 * j));
        }}
        const vi32 s = {dtype}_scale(w, (8 * h + c * CHAIN) / {quads});
        sum = dot_scaled(sum, dot, dot_scale(s, {fmt.bits}), {fmt.bits});
      }}
      x += 32;
    }}
    const vf32 d_x = f32_splat(scale[b]);
    y = f32_add(y, f32_mul(f32_mul({D}, d_x), f32_from_i32(sum)));{mins}
  }}
  f32_store(acc, y);
}}
"""


def _panels(fmt: Format, tile: Tile) -> str:
    dtype, blocks = fmt.dtype, KBLOCK // fmt.block
    words = terms_per_block(fmt)
    pointers = [
        "const uint8_t *row = job->x + (size_t)t * job->x_row;",
        "const float *scale = (const float *)(const void *)(row + job->k) + b;",
        f"const int32_t *terms = job->terms + t * job->term_row + b{f' * {words}' if words > 1 else ''};",
        "float *to = acc + t * 32 + p * 16;",
    ]
    count = "count, " if fmt.block == 32 else ""
    x = f"(const int8_t *)row + b * {fmt.block}"
    call = f"{dtype}_tile({{T}}, &u, {count}{x}, job->x_row, scale, terms, (size_t)job->term_row, to);"
    steps = f"(blocks + {blocks - 1}) / {blocks}" if blocks > 1 else "blocks"
    return f"""\
static void {dtype}_panels(const linear_job *job, const uint8_t *w, size_t panel_bytes, float *acc) {{
  _Alignas(64) {dtype}_planes u;
  const int32_t blocks = job->k / {fmt.block}, steps = {steps}, step = (blocks + steps - 1) / steps;
  if (job->tokens == 1) {{
    for (int p = 0; p < 2; p++) {dtype}_stream(job, w + (size_t)p * panel_bytes, acc + p * 16);
    return;
  }}
  memset(acc, 0, (size_t)job->tokens * 32 * sizeof *acc);
  for (int p = 0; p < 2; p += {tile.panels})
    for (int32_t b = 0, count; b < blocks; b += count) {{
      count = blocks - b < step ? blocks - b : step;
      {dtype}_unpack(w + (size_t)p * panel_bytes + (size_t)b * {16 * fmt.dtype.block_bytes}, panel_bytes, count, &u);
{tiles(tile, pointers, call)}
    }}
}}
"""


