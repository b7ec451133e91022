"""The C of products with block formats: one recipe, driven by the format's record and the target's tile shape.

For a format F it writes F_planes, what a block of k looks like unpacked; F_unpack; F_tile, the micro-kernel; F_panels,
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
    micro = _tile_32 if fmt.block == 32 else _tile_256
    text = "\n".join([_planes(fmt, tile.panels), _unpack(fmt, tile.panels), micro(fmt, tile), _panels(fmt, tile)])
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


def _planes(fmt: Format, panels: int) -> str:
    lines = [f"/* {_describe(fmt)}. */", "typedef struct {", f"  uint8_t quad[{KBLOCK // 4}][{panels}][64];"]
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


def _unpack(fmt: Format, panels: int) -> str:
    """C: headers and bit planes of up to KBLOCK values of each panel, to floats, 32-bit lanes and bytes."""
    dtype, size, at = fmt.dtype, 16 * fmt.dtype.block_bytes, 32
    lines = ["f32_store(u->d[b][p], f32_load_f16((const void *)w));"]
    if fmt.mins:
        lines.append("f32_store(u->m[b][p], f32_load_f16((const void *)(w + 32)));")
        at += 32
    if fmt.scale_bits:
        lines += _unpack_scales(fmt, at)
        at += fmt.scale_count * fmt.scale_bits * 2
    fields, first, group = [], 0, "b" if fmt.block == 32 else "g"
    for bits, position in planes_of(fmt.bits):
        line = f"u8_load(line + {f'({first} + j % {bits})' if first else f'j % {bits}'} * 64)"
        field = f"u8_field({line}, {bits} * (j / {bits}), {bits}, {position})"
        fields.append(field if bits < 8 else f"s8_weights({line})")
        first += bits
    bytes_ = fields[0] if len(fields) == 1 else f"u8_or({fields[0]},\n              {fields[1]})"
    part = size * 32 // fmt.block
    quads = [f"const uint8_t *line = w + {at}{f' + g * {fmt.bits * 64}' if fmt.block == 256 else ''};",
             f"prefetch(w + {KBLOCK // fmt.block * size}{f' + g * {part}' if fmt.block == 256 else ''}, {part});",
             each(8, "j"), f"  u8_store(u->quad[8 * {group} + j][p],\n           {bytes_});"]  # fmt: skip
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


def _unpack_scales(fmt: Format, at: int) -> list[str]:
    """C: packed integer scales, one 32-bit lane a row, and what meets the terms, in pairs."""

    def value(index: str) -> str:
        fields, base = [], at
        for bits, position in planes_of(fmt.scale_bits):
            fields.append(f"word_field(w + {base}, {index}, {bits}, {position})")
            base += fmt.scale_count * bits * 2
        text = fields[0] if len(fields) == 1 else f"i32_or({fields[0]}, {fields[1]})"
        if fmt.scale_signed:
            text = f"i32_shr(i32_shl({text}, {32 - fmt.scale_bits}), {32 - fmt.scale_bits})"
        return f"i32_sub({text}, i32_splat({fmt.scale_zero}))" if fmt.scale_zero else text

    first = f"{fmt.groups} + 2 * i" if fmt.mins else "2 * i"
    return [
        each(fmt.groups, "g"), f"  i32_store(u->scale[g][p], dot_scale({value('g')}, {fmt.bits}));",
        f"{each(fmt.groups // 2, 'i')} {{",
        f"  const vi32 even = {value(first)};", f"  const vi32 odd = {value(f'{first} + 1')};",
        "  i32_store(u->pair[i][p], s16_pair(even, odd));", "}",
    ]  # fmt: skip


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
  memset(acc, 0, (size_t)job->tokens * 32 * sizeof *acc);
  for (int p = 0; p < 2; p += {tile.panels})
    for (int32_t b = 0, count; b < blocks; b += count) {{
      count = blocks - b < step ? blocks - b : step;
      {dtype}_unpack(w + (size_t)p * panel_bytes + (size_t)b * {16 * fmt.dtype.block_bytes}, panel_bytes, count, &u);
{tiles(tile, pointers, call)}
    }}
}}
"""


