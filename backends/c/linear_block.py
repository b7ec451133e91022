"""The C of products with block formats: one recipe, driven by the format's record and the target's tile shape.

For a format F it writes F_quad, F_scale and F_offset, what lies in a packed block; F_planes, what a block of k looks
like unpacked; F_unpack; F_tile, the micro-kernel; F_stream, its sums for one token straight from packed bytes;
F_panels, the loop over k and tokens; and F_terms, what a token contributes beside its dots, computed once for all rows.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir.quant import Format, planes_of
from ...ir.target import Target
from .kernels import Kernel
from .linear_amx import LEAST_TOKENS, amx_recipe, uses_tiles
from .linear_i8mm import I8MM, pair_stores, pair_tile
from .linear_job import JOB, each, tiles
from .tuning import Tile, Tuning, tuning_of

FIELD = Kernel("u8_field", """\
/* `bits` bits of each byte from `shift` moved to `position`. */
INLINE vu8 u8_field(vu8 v, int shift, int bits, int position) {
  if (shift > position) v = u8_shr16(v, shift - position);
  if (shift < position) v = u8_shl16(v, position - shift);
  return u8_and_splat(v, (uint8_t)(((1 << bits) - 1) << position));
}
/* The field of `bits` bits of packed value v, in words of 16 lanes of `size` bits, moved to `position`. */
INLINE vi32 word_field(const uint8_t *words, int size, int v, int bits, int position) {
  int32_t lanes[16];
  words += v / (size / bits) * 2 * size;
  if (size == 32) memcpy(lanes, words, sizeof lanes);
  else for (int i = 0; i < 16; i++) lanes[i] = size == 8 ? words[i] : words[2 * i] | words[2 * i + 1] << 8;
  const vi32 field = i32_shr(i32_load(lanes), bits * (v % (size / bits)));
  return i32_shl(i32_and(field, i32_splat((1 << bits) - 1)), position);
}
/* 2^(s - 128), in two factors: their exponents fit. */
INLINE vf32 e8m0_value(vi32 s) {
  const vi32 half = i32_shr(s, 1), rest = i32_sub(s, half), bias = i32_splat(63);
  return f32_mul(f32_of_bits(i32_shl(i32_add(half, bias), 23)), f32_of_bits(i32_shl(i32_add(rest, bias), 23)));
}
/* Half of a float of 4 bits of exponent and 3 of fraction; its NaN is zero, the bit above is ignored. */
INLINE vf32 ue4m3_value(vi32 s) {
  const vf32 value = f32_mul(f32_of_bits(i32_shl(i32_and(s, i32_splat(0x7f)), 20)), f32_splat(0x1p119f));
  const vf32 from_nan = f32_abs(f32_from_i32(i32_sub(s, i32_splat(0x7f))));
  return f32_select_gt(from_nan, f32_zero(), value, f32_zero());
}
""")


def block_panels(fmt: Format, target: Target) -> Kernel:
    """`static void F_panels(job, pair, count, acc)`, a linear_panels."""
    tuning = tuning_of(target)
    tile, tiled = tuning.block, uses_tiles(fmt, target.name)
    store, micro = (pair_stores, pair_tile) if target.name in I8MM else (_stores, _tile)
    parts = [_packed(fmt), _planes(fmt, tuning), _unpack(fmt, tuning, store), micro(fmt, tile)]
    parts += [_stream(fmt, tuning)]
    parts += [amx_recipe(fmt, tuning.kblock)] if tiled else []
    text = "\n".join([*parts, _panels(fmt, tuning, tiled)])
    return Kernel(f"{fmt.dtype}_panels", text, (JOB, FIELD))


def block_terms(fmt: Format) -> Kernel:
    """`static void F_terms(args, begin, end)`, a linear_terms: a word for each group."""
    total = "sum[2 * g] + sum[2 * g + 1]" if fmt.group == 32 else "sum[g]"
    if fmt.mins:
        what = "scale * sum of x, as a float"
        of = "g" if fmt.group == 32 else "g / 2"
        body = f"const float term = scale[{of}] * (float)({total});\n      memcpy(&terms[g], &term, sizeof term);"
    else:
        zero = "S8_ZERO" if fmt.signed else str(fmt.zero)
        what, body = f"-{zero} * sum of x: where dots start from", f"terms[g] = -{zero} * ({total});"
    return Kernel(f"{fmt.dtype}_terms", f"""\
/* {fmt.dtype}, for every group of {fmt.group}: {what} */
static void {fmt.dtype}_terms(const linear_terms_args *a, int32_t begin, int32_t end) {{
  const int32_t k = a->k;
  for (int32_t t = begin; t < end; t++) {{
    int32_t *terms = a->out + (size_t)t * (size_t)(k / {fmt.group});
    const float *scale = (const void *)(a->x + (size_t)t * a->x_row + k);
    const int32_t *sum = (const void *)(scale + k / 32);
    for (int32_t g = 0; g < k / {fmt.group}; g++) {{
      {body}
    }}
  }}
}}
""", (JOB,))  # fmt: skip


def _describe(fmt: Format) -> str:
    parts = [f"{fmt.bits} bits", f"groups of {fmt.group}"]
    parts += ["a code book"] if fmt.codes else []
    parts += [f"zero at {fmt.zero}"] if fmt.zero else []
    parts += [f"{fmt.scale_bits}-bit scales"] if fmt.scale_bits else []
    parts += {"": [], "add": ["an offset"], "subtract": ["mins"]}[fmt.mins]
    return f"{fmt.dtype}: {', '.join(parts)}; {fmt.dtype.block_bytes} bytes a block of {fmt.block}"


def _lines(fmt: Format) -> int:
    """Where a packed block's lines of bit planes begin, after d, m and the integer scales."""
    return 32 * (fmt.has_d + bool(fmt.mins)) + fmt.scale_count * fmt.scale_bits * 2


def _packed(fmt: Format) -> str:
    """C: what lies in a packed block, in registers: bytes of weights, scales and offsets of groups."""
    dtype, fields, first = fmt.dtype, [], 0
    for bits, position in planes_of(fmt.bits):
        line = f"u8_load(line + {f'({first} + j % {bits})' if first else f'j % {bits}'} * 64)"
        field = f"u8_field({line}, {bits} * (j / {bits}), {bits}, {position})"
        fields.append(field if bits < 8 else f"s8_weights({line})")
        first += bits
    quad = _either("u8", fields)
    if fmt.codes:
        quad = f"u8_lookup({dtype}_codes, {quad})"
    text = f"""\
/* {_describe(fmt)}. */
{_code_book(fmt)}/* Values 4j .. 4j+3 of 32, of 16 rows, from their {fmt.bits} lines. */
INLINE vu8 {dtype}_quad(const uint8_t *line, int j) {{
  return {quad};
}}
/* Of group g, of 16 rows. */
INLINE vf32 {dtype}_scale(const uint8_t *w, int g) {{
  (void)g;
  return {_scale(fmt)};
}}
"""
    if not fmt.mins:
        return text
    offset = _halves("w + 32")
    if fmt.mins == "subtract":
        offset = f"f32_mul(f32_sub(f32_zero(), {offset}), f32_from_i32({_packed_field(fmt, f'{fmt.groups} + g')}))"
    return f"""{text}\
INLINE vf32 {dtype}_offset(const uint8_t *w, int g) {{
  (void)g;
  return {offset};
}}
"""


def _code_book(fmt: Format) -> str:
    """C: the code book in the form that dot products take."""
    if not fmt.codes:
        return ""
    codes = (f"(uint8_t)({c} + S8_ZERO)" if fmt.signed else str(c + fmt.zero) for c in fmt.codes)
    return f"static const uint8_t {fmt.dtype}_codes[16] = {{{', '.join(codes)}}};\n"


def _halves(at: str) -> str:
    return f"f32_load_f16((const void *)({at}))"


# C: what packed scales mean, as in `ir.quant.formats.SCALES`.
_SCALES = {
    "unsigned": "f32_from_i32({})",
    "signed": "f32_from_i32(i32_shr(i32_shl({}, 24), 24))",
    "odd": "f32_from_i32(i32_or(i32_shl({}, 1), i32_splat(1)))",
    "e8m0": "e8m0_value({})",
    "ue4m3": "ue4m3_value({})",
}


def _scale(fmt: Format) -> str:
    """C: the scale of group g of the packed block at w, of 16 rows."""
    d = _halves("w")
    if fmt.unit != 1:
        d = f"f32_mul({d}, f32_splat({fmt.unit}f))"
    if not fmt.scale_bits:
        return d
    field = _packed_field(fmt, "g")
    if fmt.scale_zero:
        field = f"i32_sub({field}, i32_splat({fmt.scale_zero}))"
    scale = _SCALES[fmt.scale_kind].format(field)
    return f"f32_mul({d}, {scale})" if fmt.has_d else scale


def _packed_field(fmt: Format, index: str) -> str:
    """C: the packed scale or min number `index` of a block, of 16 rows."""
    fields, base = [], _lines(fmt) - fmt.scale_count * fmt.scale_bits * 2
    for bits, position in planes_of(fmt.scale_bits):
        fields.append(f"word_field(w + {base}, {min(32, fmt.scale_count * bits)}, {index}, {bits}, {position})")
        base += fmt.scale_count * bits * 2
    return _either("i32", fields)


def _either(word: str, fields: list[str]) -> str:
    return fields[0] if len(fields) == 1 else f"{word}_or({fields[0]},\n               {fields[1]})"


def _planes(fmt: Format, tuning: Tuning) -> str:
    panels, kblock = tuning.block.panels, tuning.kblock
    lines = ["typedef struct {", f"  uint8_t quad[{kblock // 4}][{panels}][64];"]
    lines.append(f"  float scale[{kblock // fmt.group}][{panels}][16];")
    if fmt.mins:
        lines.append(f"  float offset[{kblock // fmt.group}][{panels}][16];")
    return "\n".join([*lines, f"}} {fmt.dtype}_planes;", ""])


def _stores(fmt: Format, at: str) -> str:
    """C: 32 values of panel p from `line` to the quads `at` onwards."""
    return f"{each(8, 'j')} u8_store(u->quad[{at} + j][p], {fmt.dtype}_quad(line, j));"


def _unpack(fmt: Format, tuning: Tuning, store: Callable[[Format, str], str]) -> str:
    """F_unpack: `blocks` blocks of `panels` panels to planes."""
    panels, kblock = tuning.block.panels, tuning.kblock
    dtype, size, groups = fmt.dtype, 16 * fmt.dtype.block_bytes, fmt.groups
    at_g = f"{_times('b', groups)} + g" if groups > 1 else "b"
    lines = [f"f32_store(u->scale[{at_g}][p], {dtype}_scale(w, g));"]
    if fmt.mins:
        lines.append(f"f32_store(u->offset[{at_g}][p], {dtype}_offset(w, g));")
    per = fmt.block // 32  # times 32 values in a block
    part = size // per
    at = f"{_times('b', per)} + h" if per > 1 else "b"
    return f"""\
static void {dtype}_unpack(const uint8_t *first, size_t panel_bytes, int32_t blocks, {dtype}_planes *u) {{
  for (int p = 0; p < {panels}; p++) {{
    const uint8_t *w = first + (size_t)p * panel_bytes;
    for (int32_t b = 0; b < blocks; b++, w += {size}) {{
      {each(groups, "g")} {{
        {(chr(10) + "        ").join(lines)}
      }}
      for (int h = 0; h < {per}; h++) {{
        const uint8_t *line = w + {_lines(fmt)} + h * {fmt.bits * 64};
        prefetch(w + {kblock // fmt.block * size} + h * {part}, {part});
        {store(fmt, f"8 * ({at})")}
      }}
    }}
  }}
}}
"""


def _tile(fmt: Format, tile: Tile) -> str:
    dtype, most, quads = fmt.dtype, tile.tokens[-1], fmt.group // 4
    panels, tokens = each(tile.panels, "p"), each("T", "t")
    start = "i32_zero()" if fmt.mins else "i32_splat(terms[t * term_row + g])"
    dot = "dot4_s8s8" if fmt.signed else "dot4_u7s8"
    scale = f"scale[t * scale_row + {'g' if fmt.group == 32 else 'g / 2'}]"
    also = ", then y += offset * (scale * sum of x)" if fmt.mins else ""
    offset = f"""
      {tokens} {{
        float term;
        memcpy(&term, &terms[t * term_row + g], sizeof term);
        y[p][t] = f32_add(y[p][t], f32_mul(f32_load(u->offset[g][p]), f32_splat(term)));
      }}""" if fmt.mins else ""  # fmt: skip
    return f"""\
/* T tokens over `groups` groups of {fmt.group}: y += (scale * scale of x) * sum of q * x{also}. */
INLINE void {dtype}_tile(const int T, const {dtype}_planes *u, int32_t groups, const int8_t *x, size_t x_row,
                         const float *scale, const int32_t *terms, size_t term_row, float *acc) {{
  {_chain(fmt)}
  const size_t scale_row = x_row / sizeof *scale;
  vf32 y[{tile.panels}][{most}];
  {panels} {tokens} y[p][t] = f32_load(acc + t * 32 + p * 16);
  for (int32_t g = 0; g < groups; g++, x += {fmt.group}) {{
    vi32 sum[{tile.panels}][{most}];
    {tokens} {panels} sum[p][t] = {start};
    {each(f"{quads} / CHAIN", "c")} {{
      vdot dot[{tile.panels}][{most}];
      {panels} {tokens} dot[p][t] = dot_begin(sum[p][t]);
      {each("CHAIN", "i")} {{
        const int j = c * CHAIN + i;
        {tokens} {{
          const vquad quad = quad_load(x + t * x_row + 4 * j);
          {panels} dot[p][t] = {dot}(dot[p][t], u8_load(u->quad[{quads} * g + j][p]), quad);
        }}
      }}
      {panels} {tokens} sum[p][t] = dot_end(sum[p][t], dot[p][t]);
    }}
    {panels} {{
      {tokens} {{
        const vf32 d = f32_mul(f32_load(u->scale[g][p]), f32_splat({scale}));
        y[p][t] = f32_add(y[p][t], f32_mul(d, f32_from_i32(sum[p][t])));
      }}{offset}
    }}
  }}
  {panels} {tokens} f32_store(acc + t * 32 + p * 16, y[p][t]);
}}
"""


def _chain(fmt: Format) -> str:
    quads = fmt.group // 4
    most = f"DOT_QUADS({fmt.dot_bits})"
    return f"enum {{ CHAIN = {quads} < {most} ? {quads} : {most} }}; /* quads that a vdot sums */"


def _stream(fmt: Format, tuning: Tuning) -> str:
    dtype, size, quads = fmt.dtype, 16 * fmt.dtype.block_bytes, fmt.group // 4
    per, split, panels = fmt.block // 32, 32 // fmt.group, each("P", "p")
    start = "i32_zero()" if fmt.mins else "i32_splat(terms[g])"
    dot, most = "dot4_s8s8" if fmt.signed else "dot4_u7s8", tuning.streams
    names = ["scale", "offset"] if fmt.mins else ["scale"]
    of_group = {name: f"{dtype}_{name}(w + p * panel_bytes, g)" for name in names}
    first = ""
    if fmt.groups > 1:
        first = f"""
    float {", ".join(f"{name}s[{fmt.groups}][{most}][16]" for name in names)};
    {each(fmt.groups, "g")} {panels} {{
      {(chr(10) + "      ").join(f"f32_store({name}s[g][p], {value});" for name, value in of_group.items())}
    }}"""
        of_group = {name: f"f32_load({name}s[g][p])" for name in names}
    offset = f"""
        float term;
        memcpy(&term, &terms[g], sizeof term);
        {panels} y[p] = f32_add(y[p], f32_mul({of_group["offset"]}, f32_splat(term)));""" if fmt.mins else ""
    return f"""\
/* One token and P panels side by side, straight from the packed bytes: the sums of {dtype}_tile. */
INLINE void {dtype}_stream(const int P, const linear_job *job, int32_t panel, float *acc) {{
  {_chain(fmt)}
  const size_t panel_bytes = job->panel_bytes;
  const uint8_t *w = job->w + (size_t)panel * panel_bytes;
  const int8_t *x = (const int8_t *)job->x;
  const float *scale = (const float *)(const void *)(x + job->k);
  const int32_t *terms = job->terms;
  vf32 y[{most}];
  {panels} y[p] = f32_zero();
  for (int32_t b = 0; b < job->k / {fmt.block}; b++, w += {size}, terms += {fmt.groups}) {{{first}
    /* 32 values at a time, by the same few loads: their strides are what hardware foresees. */
    for (int h = 0; h < {per}; h++, x += 32, scale++) {{
      const uint8_t *line = w + {_lines(fmt)} + h * {fmt.bits * 64};
      {panels} prefetch(w + p * panel_bytes + {tuning.ahead} + h * {size // per}, {size // per});
      {each(split, "s")} {{
        const int g = {f"{split} * h + s" if split > 1 else "h"};
        vi32 sum[{most}];
        {panels} sum[p] = {start};
        {each(f"{quads} / CHAIN", "c")} {{
          vdot dot[{most}];
          {panels} dot[p] = dot_begin(sum[p]);
          {each("CHAIN", "i")} {{
            const int j = {f"{quads} * s + " if split > 1 else ""}c * CHAIN + i;
            const vquad quad = quad_load(x + 4 * j);
            {panels} dot[p] = {dot}(dot[p], {dtype}_quad(line + p * panel_bytes, j), quad);
          }}
          {panels} sum[p] = dot_end(sum[p], dot[p]);
        }}
        {panels} {{
          const vf32 d = f32_mul({of_group["scale"]}, f32_splat(*scale));
          y[p] = f32_add(y[p], f32_mul(d, f32_from_i32(sum[p])));
        }}{offset}
      }}
    }}
  }}
  {panels} f32_store(acc + p / 2 * linear_floats(1) + p % 2 * 16, y[p]);
}}
"""


def _times(name: str, factor: int) -> str:
    """C: a product, left out where it is by one."""
    return f"{name} * {factor}" if factor > 1 else name


def _panels(fmt: Format, tuning: Tuning, tiled: bool) -> str:
    dtype, tile, blocks = fmt.dtype, tuning.block, tuning.kblock // fmt.block
    pointers = [
        "const uint8_t *row = job->x + (size_t)t * job->x_row;",
        f"const float *scale = (const float *)(const void *)(row + job->k) + {_times('b', fmt.block // 32)};",
        f"const int32_t *terms = job->terms + t * job->term_row + {_times('b', fmt.groups)};",
        "float *to = sums + t * 32;",
    ]
    x = f"(const int8_t *)row + b * {fmt.block}"
    groups = _times("some", fmt.groups)
    call = f"{dtype}_tile({{T}}, &u, {groups}, {x}, job->x_row, scale, terms, (size_t)job->term_row, to);"
    steps = f"(blocks + {blocks - 1}) / {blocks}" if blocks > 1 else "blocks"
    streams, side_by_side = tuning.streams, ""
    if streams > 1:
        side_by_side = f"""
    for (; panel + {streams} <= int_min(end, last + 1); panel += {streams})
      {dtype}_stream({streams}, job, panel, acc + (panel - 2 * pair) / 2 * floats);"""
    many = f"""
  if (job->tokens >= {LEAST_TOKENS}) {{
    {dtype}_tiles(job, pair, count, acc);
    return;
  }}""" if tiled else ""
    return f"""\
static void {dtype}_panels(const linear_job *job, int32_t pair, int32_t count, float *acc) {{
  _Alignas(64) {dtype}_planes u;
  const int32_t blocks = job->k / {fmt.block}, steps = {steps}, step = (blocks + steps - 1) / steps;
  const size_t floats = linear_floats(job->tokens);
  if (job->tokens == 1) {{
    int32_t panel = 2 * pair;
    const int32_t end = panel + 2 * count, last = (job->n - 1) / 16;{side_by_side}
    for (; panel < end; panel++)
      {dtype}_stream(1, job, int_min(panel, last), acc + (panel - 2 * pair) / 2 * floats + panel % 2 * 16);
    return;
  }}{many}
  memset(acc, 0, (size_t)count * floats * sizeof *acc);
  for (int32_t b = 0, some; b < blocks; b += some) {{
    some = int_min(blocks - b, step);
    for (int32_t i = pair; i < pair + count; i++)
      for (int p = 0; p < 2; p += {tile.panels}) {{
        const size_t second = linear_second(job, i);
        const uint8_t *w = linear_first(job, i) + (size_t)p * second + (size_t)b * {16 * fmt.dtype.block_bytes};
        float *sums = acc + (size_t)(i - pair) * floats + p * 16;
        {dtype}_unpack(w, second, some, &u);
{tiles(tile, pointers, call)}
      }}
  }}
}}
"""
