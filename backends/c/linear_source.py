"""The C text of linear products: one recipe for block formats, one for dense, driven by format records and tile shapes.

A worker takes panels in pairs. It walks k in blocks of at most 256: unpacks the pair's block to bytes in the first-level
cache once, then runs tiles of panels x tokens over it, their accumulators going through scratch from block to block, in
the fixed order of `ir.numerics.linear`. A finishing pass adds bias and residual, or gates, and writes row-major results.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.quant import FORMATS, Format, planes_of
from .kernels import Kernel

KBLOCK = 256  # values of k unpacked at a time


@dataclass(frozen=True)
class Tile:
    """The micro-kernel's shape: `panels` (1 or 2) by each of `tokens`, ascending from 1."""

    panels: int
    tokens: tuple[int, ...]  # one number: any number up to it, as a variable

    def plan(self) -> list[int]:
        """The next tile for each number of tokens left below twice the largest: fewest steps, a tile of t tokens costing
        about t + 1, since a thin tile waits on latency and unpacked weights."""
        best, first = [0], [0]
        for left in range(1, 2 * self.tokens[-1]):
            cost, tile = min((best[left - t] + t + 1, -t) for t in self.tokens if t <= left)
            best.append(cost)
            first.append(-tile)
        return first


# By target: what fits the registers, for integer dot products ("block") and for float ones ("dense").
TILES = {
    "generic": {"block": Tile(1, (4,)), "dense": Tile(1, (4,))},
    "avx2": {"block": Tile(1, (1, 2, 3)), "dense": Tile(2, (1, 2, 3))},
    "avx512vnni": {"block": Tile(2, (1, 2, 3, 4, 6)), "dense": Tile(2, (1, 2, 3, 4, 6))},
}

JOB = Kernel("linear_job", """\
/* ---- Linear products: y[token][row] = sum over k of x[token][k] * w[row][k], w in panels of 16 rows ---- */

typedef struct linear_job linear_job;
/* acc[token][2][16] = the products of two panels, `panel_bytes` apart, with every token of the job. */
typedef void linear_panels(const linear_job *job, const uint8_t *w, size_t panel_bytes, float *acc);
typedef void linear_gate(float *gate, const float *up, int32_t tokens);

struct linear_job {
  const uint8_t *x;     /* rows of activations */
  size_t x_row;         /* bytes from a row to the next */
  const int32_t *terms; /* what a row gives to products beside its dots, term_row a token; see FORMAT_terms */
  int32_t term_row, tokens, k, n;
  const uint8_t *w;
  size_t panel_bytes;
  linear_panels *panels;
  const linear_job *up;         /* of a gated product: what is multiplied with gate's activation of this one */
  linear_gate *gate;
  const float *bias, *residual; /* [n] and [tokens][n], or null */
  float *y;                     /* [tokens][n] */
};

typedef struct {
  const linear_job *jobs;
  int32_t count;
  char *scratch;       /* of all workers */
  size_t worker_bytes; /* of each, holding the accumulators of one or two pairs */
} linear_region;

static inline int32_t linear_pairs(int32_t n) { return (n + 31) / 32; }

/* Bytes of accumulators that a worker needs: two pairs' where products are gated. */
static inline size_t linear_worker_bytes(int32_t tokens, int gated) { return (size_t)tokens * (gated ? 256 : 128); }

/* Rows of one panel from accumulators to y, bias added first, then the residual. */
static inline void linear_finish(const linear_job *job, int32_t panel, const float *acc) {
  const int32_t row = 16 * panel, rows = job->n - row < 16 ? job->n - row : 16;
  for (int32_t t = 0; t < job->tokens; t++, acc += 32) {
    const size_t at = (size_t)t * (size_t)job->n + (size_t)row;
    vf32 y = f32_load(acc);
    if (job->bias) y = f32_add(y, f32_load_n(job->bias + row, rows));
    if (job->residual) y = f32_add(f32_load_n(job->residual + at, rows), y);
    if (rows == 16) f32_store(job->y + at, y);
    else f32_store_n(job->y + at, y, rows);
  }
}

static inline void linear_two(const linear_job *job, int32_t pair, int count, float *acc) {
  job->panels(job, job->w + 2 * (size_t)pair * job->panel_bytes, count == 2 ? job->panel_bytes : 0, acc);
}

/* One pair of panels; of the last pair there may be only one, which is then computed twice. */
static void linear_pair(const linear_job *job, int32_t pair, float *acc) {
  const int32_t panels = (job->n + 15) / 16, count = panels - 2 * pair < 2 ? 1 : 2;
  float *up = acc + (size_t)job->tokens * 32;
  linear_two(job, pair, count, acc);
  if (job->up) {
    linear_two(job->up, pair, count, up);
    job->gate(acc, up, job->tokens);
  }
  for (int p = 0; p < count; p++) linear_finish(job, 2 * pair + p, acc + 16 * p);
}

/* Pairs [begin, end) of all the jobs' pairs, counted through. */
static void linear_body(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const linear_region *region = args;
  float *acc = (void *)(region->scratch + (size_t)worker * region->worker_bytes);
  for (int32_t j = 0, base = 0; j < region->count; j++) {
    const linear_job *job = &region->jobs[j];
    const int32_t pairs = linear_pairs(job->n);
    for (int32_t i = begin > base ? begin - base : 0; i < pairs && base + i < end; i++) linear_pair(job, i, acc);
    base += pairs;
  }
}

/* The terms of all tokens, by many workers where there are many. */
typedef void linear_terms(const uint8_t *x, size_t x_row, int32_t tokens, int32_t k, int32_t *terms);
typedef struct { linear_terms *terms; const uint8_t *x; size_t x_row; int32_t k, term_row; int32_t *out; } linear_terms_args;

static void linear_terms_body(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const linear_terms_args *a = args;
  (void)worker;
  a->terms(a->x + (size_t)begin * a->x_row, a->x_row, end - begin, a->k, a->out + (size_t)begin * (size_t)a->term_row);
}

static inline void linear_prepare(const run *r, linear_terms *terms, const uint8_t *x, size_t x_row, int32_t tokens, int32_t k,
                                  int32_t term_row, int32_t *out) {
  const linear_terms_args args = {terms, x, x_row, k, term_row, out};
  parallel(r, tokens, 64, linear_terms_body, &args);
}

/* All jobs in one region. A chunk streams at least 256 KB, unless the workers would not all have one. */
static inline void linear_run(const run *r, const linear_job *jobs, int32_t count, char *scratch, size_t worker_bytes) {
  const linear_region region = {jobs, count, scratch, worker_bytes};
  int32_t pairs = 0;
  size_t bytes = 0;
  for (int32_t j = 0; j < count; j++) {
    const int32_t more = linear_pairs(jobs[j].n);
    pairs += more;
    bytes += (size_t)more * 2 * (jobs[j].panel_bytes + (jobs[j].up ? jobs[j].up->panel_bytes : 0));
  }
  const int32_t stream = (int32_t)(((size_t)1 << 18) * (size_t)pairs / (bytes + 1)) + 1;
  const int32_t share = (pairs + r->threads - 1) / r->threads;
  parallel(r, pairs, stream < share ? stream : share, linear_body, &region);
}
""")  # fmt: skip

FIELD = Kernel("u8_field", """\
/* `bits` bits of each byte from `shift` moved to `position`. */
INLINE vu8 u8_field(vu8 v, int shift, int bits, int position) {
  const vu8 moved = shift > position ? u8_shr16(v, shift - position) : shift < position ? u8_shl16(v, position - shift) : v;
  return u8_and_splat(moved, (uint8_t)(((1 << bits) - 1) << position));
}
/* A plane's p-bit field of packed value v in words of 16 lanes. */
INLINE vi32 word_field(const uint8_t *words, int v, int bits, int position) {
  int32_t lanes[16];
  memcpy(lanes, words + v / (32 / bits) * 64, 64);
  return i32_shl(i32_and(i32_shr(i32_load(lanes), bits * (v % (32 / bits))), i32_splat((1 << bits) - 1)), position);
}
/* Two values of 16 bits: even in the low half. */
INLINE vi32 s16_pair(vi32 even, vi32 odd) { return i32_or(i32_and(even, i32_splat(0xffff)), i32_shl(odd, 16)); }
""")


def panels_function(dtype: str, target: str) -> Kernel:
    """`static void DTYPE_panels(job, w, panel_bytes, acc)`, a linear_panels."""
    return _block(FORMATS[dtype], target) if dtype in FORMATS else _dense(dtype, target)


def terms_function(dtype: str) -> Kernel | None:
    """`static void DTYPE_terms(x, x_row, tokens, k, terms)`: a token's contribution to products with this format beside its
    dots, `terms_per_block` words a block. None where there is none on any ISA."""
    fmt = FORMATS.get(dtype)
    if fmt is None or not terms_per_block(dtype):
        return None
    if fmt.block == 32:
        word = "float term = scale[g] * (float)sum[g];\n      memcpy(&terms[g], &term, 4);" if fmt.mins else (
            f"terms[g] = -{'S8_ZERO' if fmt.signed else fmt.zero} * sum[g];")  # fmt: skip
        text = f"""\
/* {'scale * sum' if fmt.mins else '-zero * sum'} of every group of 32 */
static void {dtype}_terms(const uint8_t *x, size_t x_row, int32_t tokens, int32_t k, int32_t *terms) {{
  for (int32_t t = 0; t < tokens; t++, x += x_row, terms += k / 32) {{
    const float *scale = (const void *)(x + k);
    const int32_t *sum = (const void *)(scale + k / 32);
    for (int32_t g = 0; g < k / 32; g++) {{
      {word}
    }}
    (void)scale;
  }}
}}
"""
    else:
        per, sign = fmt.group // 16, "-" if fmt.zero else ""
        even, odd = ("sum[2 * i]", "sum[2 * i + 1]") if per == 1 else (
            "(sum[4 * i] + sum[4 * i + 1])", "(sum[4 * i + 2] + sum[4 * i + 3])")  # fmt: skip
        text = f"""\
/* {'negated ' if fmt.zero else ''}sums of groups of {fmt.group}, in pairs of int16 */
static void {dtype}_terms(const uint8_t *x, size_t x_row, int32_t tokens, int32_t k, int32_t *terms) {{
  const int32_t pairs = k / {2 * fmt.group};
  for (int32_t t = 0; t < tokens; t++, x += x_row, terms += pairs) {{
    const int32_t *sum = (const void *)(x + k + k / 256 * 4);
    for (int32_t i = 0; i < pairs; i++)
      terms[i] = (int32_t)(((uint32_t){sign}{even} & 0xffff) | (uint32_t){sign}{odd} << 16);
  }}
}}
"""
    return Kernel(f"{dtype}_terms", text)


def terms_per_block(dtype: str) -> int:
    """Words of terms for a token's block of activations."""
    fmt = FORMATS.get(dtype)
    if fmt is None or not (fmt.zero or fmt.signed or fmt.mins):
        return 0
    return 1 if fmt.block == 32 else fmt.groups // 2


def _tiles(tile: Tile, call: str) -> str:
    """The loop over tokens: full tiles, and a table for the last ones. `call` is C with the place {T}."""
    largest = tile.tokens[-1]
    if len(tile.tokens) == 1:
        return f"""\
      for (int32_t t = 0, n; t < job->tokens; t += n) {{
        n = job->tokens - t < {largest} ? job->tokens - t : {largest};
        {call.format(T="n")}
      }}"""
    plan = tile.plan()
    cases = "\n".join(f"          case {t}: {call.format(T=t)} break;" for t in tile.tokens)
    return f"""\
      for (int32_t t = 0, n; t < job->tokens; t += n) {{
        static const int8_t next[{len(plan)}] = {{{", ".join(map(str, plan))}}};
        const int32_t left = job->tokens - t;
        switch (n = left < {len(plan)} ? next[left] : {largest}) {{
{cases}
        }}
      }}"""


def _block(fmt: Format, target: str) -> Kernel:
    tile = TILES[target]["block"]
    dtype, panels = fmt.dtype.name, tile.panels
    text = "\n".join([_planes_type(fmt, panels), _unpack(fmt, panels), _tile(fmt, tile), _block_panels(fmt, tile)])
    return Kernel(f"{dtype}_panels", text, (JOB, FIELD))


def _planes_type(fmt: Format, panels: int) -> str:
    dtype, blocks = fmt.dtype.name, KBLOCK // fmt.block
    kinds = f"{fmt.bits} bits, groups of {fmt.group}"
    if fmt.zero:
        kinds += f", zero at {fmt.zero}"
    if fmt.scale_bits:
        kinds += f", {fmt.scale_bits}-bit scales"
    kinds += {"": "", "add": ", an offset", "subtract": " and mins"}[fmt.mins]
    lines = [f"/* {dtype}: {kinds}; {fmt.dtype.block_bytes} bytes a block of {fmt.block}. */",
             "typedef struct {", f"  uint8_t quad[{KBLOCK // 32}][8][{panels}][64];"]  # fmt: skip
    if fmt.scale_bits:
        lines.append(f"  int32_t scale[{fmt.groups}][{panels}][16];")
    if fmt.block == 256 and (fmt.mins or fmt.zero):
        lines.append(f"  int32_t pair[{fmt.groups // 2}][{panels}][16]; /* {'mins' if fmt.mins else 'scales'}, by twos, int16 */")
    lines.append(f"  float d[{blocks}][{panels}][16]{f', m[{blocks}][{panels}][16]' if fmt.mins else ''};")
    return "\n".join([*lines, f"}} {dtype}_planes;", ""])


def _unpack(fmt: Format, panels: int) -> str:
    """Header and bit planes of up to KBLOCK values of each panel, to bytes and 32-bit lanes."""
    dtype, at = fmt.dtype.name, 32
    header = ["f32_store(u->d[b][p], f32_load_f16((const void *)w));"]
    if fmt.mins:
        header.append("f32_store(u->m[b][p], f32_load_f16((const void *)(w + 32)));")
        at += 32
    if fmt.scale_bits:
        header += _unpack_scales(fmt, at)
        at += fmt.scale_count * fmt.scale_bits // 8 * 16
    terms, line = [], 0
    for bits, position in planes_of(fmt.bits):
        index = f"({line} + j % {bits})" if line else f"(j % {bits})"
        load = f"u8_load(w + {at} + ({fmt.bits} * g + {index[1:-1]}) * 64)" if fmt.block == 256 else (
            f"u8_load(w + {at} + {index} * 64)")  # fmt: skip
        terms.append(f"s8_weights({load})" if bits == 8 else f"u8_field({load}, {bits} * (j / {bits}), {bits}, {position})")
        line += bits
    value = terms[0] if len(terms) == 1 else f"u8_or({terms[0]},\n                                            {terms[1]})"
    if fmt.block == 32:
        inner = f"""\
      UNROLL for (int j = 0; j < 8; j++)
        u8_store(u->quad[b][j][p], {value});"""
    else:
        inner = f"""\
      for (int g = 0; g < 8; g++)
        UNROLL for (int j = 0; j < 8; j++)
          u8_store(u->quad[g][j][p], {value});"""
    head = "\n".join(f"      {line}" for line in header)
    return f"""\
static void {dtype}_unpack(const uint8_t *first, size_t panel_bytes, int32_t blocks, {dtype}_planes *u) {{
  for (int p = 0; p < {panels}; p++) {{
    const uint8_t *w = first + (size_t)p * panel_bytes;
    for (int32_t b = 0; b < blocks; b++, w += {16 * fmt.dtype.block_bytes}) {{
{head}
{inner}
    }}
  }}
}}
"""


def _unpack_scales(fmt: Format, at: int) -> list[str]:
    """Packed integer scales (and mins after them) to one 32-bit lane a row, and pairs of 16 bits for the terms."""

    def value(index: str) -> str:
        fields, base = [], at
        for bits, position in planes_of(fmt.scale_bits):
            fields.append(f"word_field(w + {base}, {index}, {bits}, {position})")
            base += fmt.scale_count * bits // 8 * 16
        text = fields[0] if len(fields) == 1 else f"i32_or({fields[0]}, {fields[1]})"
        if fmt.scale_signed:
            text = f"i32_shr(i32_shl({text}, {32 - fmt.scale_bits}), {32 - fmt.scale_bits})"
        return f"i32_sub({text}, i32_splat({fmt.scale_zero}))" if fmt.scale_zero else text

    lines = [f"UNROLL for (int g = 0; g < {fmt.groups}; g++)",
             f"  i32_store(u->scale[g][p], dot_scale({value('g')}, {fmt.bits}));"]  # fmt: skip
    if fmt.mins or fmt.zero:
        even, odd = (f"{fmt.groups} + 2 * i", f"{fmt.groups} + 2 * i + 1") if fmt.mins else ("2 * i", "2 * i + 1")
        lines += [f"UNROLL for (int i = 0; i < {fmt.groups // 2}; i++)",
                  f"  i32_store(u->pair[i][p], s16_pair({value(even)},\n                                              {value(odd)}));"]  # fmt: skip
    return lines


def _tile(fmt: Format, tile: Tile) -> str:
    return _tile_32(fmt, tile) if fmt.block == 32 else _tile_256(fmt, tile)


def _each(count: str, name: str) -> str:
    return f"UNROLL for (int {name} = 0; {name} < {count}; {name}++)"


def _tile_32(fmt: Format, tile: Tile) -> str:
    dtype, most = fmt.dtype.name, tile.tokens[-1]
    panels = str(tile.panels)
    start = "i32_splat(terms[t * term_row + g])" if fmt.zero or fmt.signed else "i32_zero()"
    dot = "dot4_s8s8" if fmt.signed else "dot4_u7s8"
    offset = f"""
      {_each("T", "t")} {{
        float term;
        memcpy(&term, &terms[t * term_row + g], 4);
        y[p][t] = f32_add(y[p][t], f32_mul(f32_load(u->m[g][p]), f32_splat(term)));
      }}""" if fmt.mins else ""  # fmt: skip
    return f"""\
/* T tokens over `groups` groups of 32: y += (d * scale) * sum{", then y += m * (scale * sum of x)" if fmt.mins else ""}. */
INLINE void {dtype}_tile(const int T, const {dtype}_planes *u, int32_t groups, const int8_t *x, size_t x_row,
                         const float *scale, const int32_t *terms, size_t term_row, float *acc) {{
  vf32 y[{panels}][{most}];
  {_each(panels, "p")} {_each("T", "t")} y[p][t] = f32_load(acc + t * 32 + p * 16);
  for (int32_t g = 0; g < groups; g++, x += 32) {{
    vi32 sum[{panels}][{most}];
    {_each("T", "t")} {_each(panels, "p")} sum[p][t] = {start};
    {_each(f"8 / DOT_QUADS({fmt.bits})", "c")} {{
      vdot dot[{panels}][{most}];
      {_each(panels, "p")} {_each("T", "t")} dot[p][t] = dot_begin(sum[p][t]);
      {_each(f"DOT_QUADS({fmt.bits})", "i")} {{
        const int j = c * DOT_QUADS({fmt.bits}) + i;
        {_each("T", "t")} {{
          const vquad quad = quad_load(x + t * x_row + 4 * j);
          {_each(panels, "p")} dot[p][t] = {dot}(dot[p][t], u8_load(u->quad[g][j][p]), quad);
        }}
      }}
      {_each(panels, "p")} {_each("T", "t")} sum[p][t] = dot_end(sum[p][t], dot[p][t]);
    }}
    {_each(panels, "p")} {{
      {_each("T", "t")} {{
        const vf32 d = f32_mul(f32_load(u->d[g][p]), f32_splat(*(const float *)((const char *)scale + t * x_row + 4 * g)));
        y[p][t] = f32_add(y[p][t], f32_mul(d, f32_from_i32(sum[p][t])));
      }}{offset}
    }}
  }}
  {_each(panels, "p")} {_each("T", "t")} f32_store(acc + t * 32 + p * 16, y[p][t]);
}}
"""


def _tile_256(fmt: Format, tile: Tile) -> str:
    dtype, most, panels = fmt.dtype.name, tile.tokens[-1], str(tile.panels)
    quads, pairs = fmt.group // 4, fmt.groups // 2
    chain = f"({quads} < DOT_SCALED_QUADS({fmt.bits}) ? {quads} : DOT_SCALED_QUADS({fmt.bits}))"
    zero = fmt.zero.bit_length() - 1
    pair_chain = f"""\
    vi32 {{name}} = i32_zero();
    {_each(str(pairs), "i")} {{name}} = dot2_s16({{name}}, i32_load(u->pair[i][p]), i32_splat(terms[t * term_row + i]));"""
    begin = "\n".join([f"  {_each(panels, 'p')} {_each('T', 't')} {{", pair_chain.format(name="zeros"),
                       f"    sum[p][t] = i32_shl(zeros, {zero});", "  }"]) if fmt.zero else (
        f"  {_each(panels, 'p')} {_each('T', 't')} sum[p][t] = i32_zero();")  # fmt: skip
    mins = "\n" + pair_chain.format(name="mins") + """
    y = f32_sub(y, f32_mul(f32_mul(f32_load(u->m[0][p]), d_x), f32_from_i32(mins)));""" if fmt.mins else ""
    return f"""\
/* T tokens over one block: y += (d * scale) * sum of scaled groups{", then y -= (dmin * scale) * sum of mins" if fmt.mins else ""}. */
INLINE void {dtype}_tile(const int T, const {dtype}_planes *u, const int8_t *x, size_t x_row, const float *scale,
                         const int32_t *terms, size_t term_row, float *acc) {{
  vi32 sum[{panels}][{most}];
{begin}
  for (int g = 0; g < {256 // fmt.group}; g++, x += {fmt.group}) {{
    {_each(f"{quads} / {chain}", "c")} {{
      vdot dot[{panels}][{most}];
      {_each(panels, "p")} {_each("T", "t")} dot[p][t] = dot_zero();
      {_each(chain, "i")} {{
        const int j = c * {chain} + i;
        {_each("T", "t")} {{
          const vquad quad = quad_load(x + t * x_row + 4 * j);
          {_each(panels, "p")} dot[p][t] = dot4_u7s8(dot[p][t], u8_load((&u->quad[0][0] + {quads} * g)[j][p]), quad);
        }}
      }}
      {_each(panels, "p")} {_each("T", "t")} sum[p][t] = dot_scaled(sum[p][t], dot[p][t], i32_load(u->scale[g][p]), {fmt.bits});
    }}
  }}
  {_each(panels, "p")} {_each("T", "t")} {{
    const vf32 d_x = f32_splat(*(const float *)((const char *)scale + t * x_row));
    vf32 y = f32_load(acc + t * 32 + p * 16);
    y = f32_add(y, f32_mul(f32_mul(f32_load(u->d[0][p]), d_x), f32_from_i32(sum[p][t])));{mins}
    f32_store(acc + t * 32 + p * 16, y);
  }}
}}
"""


def _block_panels(fmt: Format, tile: Tile) -> str:
    dtype, block_bytes = fmt.dtype.name, 16 * fmt.dtype.block_bytes
    blocks = KBLOCK // fmt.block
    terms = terms_per_block(dtype)
    term_at = f" + b * {terms}" if terms > 1 else " + b"
    arguments = (
        "(const int8_t *)job->x + (size_t)t * job->x_row + b * {block}, job->x_row, "
        "(const float *)(const void *)(job->x + (size_t)t * job->x_row + job->k) + b"
    ).format(block=fmt.block)
    tail = f"job->terms{f' + t * job->term_row{term_at}' if terms else ''}, (size_t)job->term_row, acc + t * 32 + p * 16"
    count = "count, " if fmt.block == 32 else ""
    call = f"{dtype}_tile({{T}}, &u, {count}{arguments},\n                                {tail});"
    return f"""\
static void {dtype}_panels(const linear_job *job, const uint8_t *w, size_t panel_bytes, float *acc) {{
  _Alignas(64) {dtype}_planes u;
  const int32_t blocks = job->k / {fmt.block}, steps = (blocks + {blocks - 1}) / {blocks}, step = (blocks + steps - 1) / steps;
  memset(acc, 0, (size_t)job->tokens * 32 * sizeof *acc);
  for (int p = 0; p < 2; p += {tile.panels})
    for (int32_t b = 0, count; b < blocks; b += count) {{
      count = blocks - b < step ? blocks - b : step;
      {dtype}_unpack(w + (size_t)p * panel_bytes + (size_t)b * {block_bytes}, panel_bytes, count, &u);
{_tiles(tile, call)}
    }}
}}
"""


@dataclass(frozen=True)
class Dense:
    """How a dense panel is read: `step` values of k a line of `line` bytes; the words that load and accumulate one."""

    step: int
    line: int
    load: str  # from w
    x: str  # from x, the element type of a row
    splat: str
    fma: str
    lines: str  # the C type of unpacked lines


DENSE_FORMATS = {
    "f32": Dense(1, 64, "f32_load((const void *)w)", "float", "f32_splat(x[i])", "f32_fma({x}, {w}, {y})", "float"),
    "f16": Dense(1, 32, "f32_load_f16((const void *)w)", "float", "f32_splat(x[i])", "f32_fma({x}, {w}, {y})", "float"),
    "bf16": Dense(2, 64, "i32_load((const void *)w)", "uint16_t", "bf16_pair(x + 2 * i, left - 2 * i)",
                  "dot2_bf16({y}, {w}, {x})", "int32_t"),
}  # fmt: skip

BF16_PAIR = Kernel("bf16_pair", """\
/* Two bf16 values in every lane; the last of an odd number comes with zero. */
INLINE vi32 bf16_pair(const uint16_t *x, int32_t left) {
  int32_t pair = 0;
  if (left > 1) memcpy(&pair, x, 4);
  else memcpy(&pair, x, 2);
  return i32_splat(pair);
}
""")


def _dense(dtype: str, target: str) -> Kernel:
    d, tile = DENSE_FORMATS[dtype], TILES[target]["dense"]
    panels, most = str(tile.panels), tile.tokens[-1]
    word = "i32" if dtype == "bf16" else "f32"
    lines = KBLOCK // 2
    x = d.splat
    row = f"(const {d.x} *)(const void *)((const char *)x_first + t * x_row)"
    call = (f"{dtype}_tile({{T}}, u, count, (const char *)job->x + (size_t)t * job->x_row + (size_t)l * {d.step} * sizeof({d.x}),\n"
            f"                        job->k - {d.step} * l, job->x_row, acc + t * 32 + p * 16);")  # fmt: skip
    text = f"""\
/* {dtype}: T tokens over `count` lines of {d.step} k; one chain of fused steps an output. `left` values of x remain. */
INLINE void {dtype}_tile(const int T, {d.lines} (*u)[{panels}][16], int32_t count, const char *x_first, int32_t left, size_t x_row,
                         float *acc) {{
  vf32 y[{panels}][{most}];
  (void)left;
  {_each(panels, "p")} {_each("T", "t")} y[p][t] = f32_load(acc + t * 32 + p * 16);
  for (int32_t i = 0; i < count; i++)
    {_each("T", "t")} {{
      const {d.x} *x = {row};
      const v{word} value = {x};
      {_each(panels, "p")} y[p][t] = {d.fma.format(y="y[p][t]", x="value", w=f"{word}_load(u[i][p])")};
    }}
  {_each(panels, "p")} {_each("T", "t")} f32_store(acc + t * 32 + p * 16, y[p][t]);
}}

static void {dtype}_panels(const linear_job *job, const uint8_t *first, size_t panel_bytes, float *acc) {{
  _Alignas(64) {d.lines} u[{lines}][{panels}][16];
  const int32_t lines = {"job->k" if d.step == 1 else "(job->k + 1) / 2"};
  memset(acc, 0, (size_t)job->tokens * 32 * sizeof *acc);
  for (int p = 0; p < 2; p += {panels})
    for (int32_t l = 0, count; l < lines; l += count) {{
      count = lines - l < {lines} ? lines - l : {lines};
      {_each(panels, "q")} {{
        const uint8_t *w = first + (size_t)(p + q) * panel_bytes + (size_t)l * {d.line};
        for (int32_t i = 0; i < count; i++, w += {d.line}) {word}_store(u[i][q], {d.load});
      }}
{_tiles(tile, call)}
    }}
}}
"""
    return Kernel(f"{dtype}_panels", text, (JOB, BF16_PAIR) if dtype == "bf16" else (JOB,))
