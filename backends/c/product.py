"""Products of windows with weights in panels, and whatever follows them element by element.

A worker takes 64 outputs (four panels) by a chunk of rows. It walks k in blocks whose weights stay in the first-level
cache, meets each with tiles of rows, and hands the finished sums of a tile, still in that cache, to the C of the ops
that follow. A row is found by pointers to its runs of adjacent values, one for each position of the window that has no
neighbour in memory, so that a convolution needs no copy of its windows. Each output is one chain, k ascending.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ...ir.graph import Node, Value
from ...ir.target import Target
from ...ir.types import Dim
from .epilogue import epilogue, named
from .kernels import THREADS, Call, Kernel, Scratch
from .loop_function import bracketed, dim_text, kernel_name, size_name
from .loop_model import Loop, Read, axes
from .loop_words import SIDE_BY_SIDE
from .text import indented

GROUP = SIDE_BY_SIDE  # panels that a worker computes together
BLOCK = 128  # values of k whose weights stay in the first-level cache: 32 KB of four panels
SHORT = 96  # the same of large weights: 24 KB, beside as much of the next block's, fetched meanwhile
SHORTEST = 64  # the same with less than FEW rows to fetch them behind
FEW = 48  # rows
LONGEST = BLOCK * 3 // 2  # values of k that are not worth dividing
LARGE = 1 << 19  # bytes of weights that do not stay in the second-level cache beside all else
FETCHING = 4  # tiles that are enough to fetch the next block's weights meanwhile; with fewer the loads themselves do
CHUNK = 256  # rows of a chunk at most
PASS = 12  # rows whose work takes as long as reading a chunk's weights once more
LEAST = 24  # rows of a chunk, where there are several
OWN = 48  # rows that are worth reading all weights for, rather than have other threads compute part of their outputs
SERIAL = 1 << 19  # multiplications, and 16 for each weight, that are not worth a second worker

# By target, rows of a tile for each number of panels from 1: what the registers hold.
WIDE = (14, 12, 8, 6)
TILES: Mapping[str, tuple[int, ...]] = {
    "avx512vnni": WIDE, "avx512bf16": WIDE, "amx": WIDE, "avx2": (6,), "avxvnni": (6,), "neon": (6,),
    "neon_i8mm": (6,),
}  # fmt: skip
DEFAULT_TILES = (4,)
MOST = max(WIDE)


def tiles(target: Target) -> tuple[int, ...]:
    """Rows of a tile for each number of panels from 1."""
    return TILES.get(target.name, DEFAULT_TILES)


PRODUCT = Kernel("product", f"""\
/* ---- Products: sums[row][n] = chain over k of x[row][k] * w[n][k], w in panels of 16 rows ---- */
enum {{ GROUP = {GROUP * 16} }}; /* outputs that are computed together */

typedef struct product product;
struct product {{
  const float *x, *w;
  int32_t rows, n, runs, run; /* of a row: runs of adjacent values, and the values of one */
  int32_t runs_block, run_block;
  int32_t chunk, fetching; /* rows of a chunk at most; whether weights are fetched ahead */
  /* Where the runs of `count` rows from `row` on begin. */
  void (*find)(const product *p, int32_t row, int32_t count, const float **at);
  /* Takes sums[rows][GROUP] of the outputs [col, col + cols). */
  void (*finish)(const void *args, const float *sums, int32_t row, int32_t rows, int32_t col, int32_t cols);
  /* Fetches what `finish` will read besides; may be null. */
  void (*fetch)(const void *args, int32_t row, int32_t rows, int32_t col, int32_t cols);
  const void *args;
  char *scratch;
  size_t scratch_bytes; /* of each worker: sums[chunk][GROUP], then pointers to the runs of each row */
}};

/* A tile over one block of k: weights from `w` on; a line's, a panel's and a run's distance in floats. The weights of
 * the block that follows are fetched meanwhile: `lines_ahead` of each of `panels_ahead` panels. */
typedef struct product_block {{
  const float *w;
  const float *const *at;
  float *sums;
  size_t line, panel, w_run;
  int32_t stride, runs, first, count; /* of `at` for a row; runs, and which part of each */
  int start;
  int32_t panels_ahead, lines_ahead;
  const float *ahead;
}} product_block;
typedef void product_tile(const product_block *b);

INLINE void product_rows(const int M, const int P, const product_block *b) {{
  vf32 y[{MOST}][{GROUP}];
  UNROLL for (int m = 0; m < M; m++)
    UNROLL for (int p = 0; p < P; p++) y[m][p] = b->start ? f32_zero() : f32_load(b->sums + m * GROUP + p * 16);
  const float *w = b->w;
  const float *const *at = b->at;
  const size_t panel = b->panel, line = b->line;
  const int32_t count = b->count;
  float *const sums = b->sums;
  for (int32_t s = 0; s < b->runs; s++, w += b->w_run, at++) {{
    const float *x[{MOST}];
    UNROLL for (int m = 0; m < M; m++) x[m] = at[m * b->stride] + b->first;
    for (int32_t k = 0; k < count; k++) {{
      vf32 v[{GROUP}];
      UNROLL for (int p = 0; p < P; p++) v[p] = f32_load(w + (size_t)p * panel + (size_t)k * line);
      UNROLL for (int m = 0; m < M; m++) {{
        const vf32 a = f32_splat(x[m][k]);
        UNROLL for (int p = 0; p < P; p++) y[m][p] = f32_fma(a, v[p], y[m][p]);
      }}
    }}
  }}
  UNROLL for (int m = 0; m < M; m++)
    UNROLL for (int p = 0; p < P; p++) f32_store(sums + m * GROUP + p * 16, y[m][p]);
}}
""")


def _tiles(panels: int, most: int) -> Kernel:
    """A function for each number of rows of a tile so many panels wide, in a table."""
    names = [f"product_{m}x{panels}" for m in range(1, most + 1)]
    functions = "\n".join(f"static void {name}(const product_block *b) {{ product_rows({m}, {panels}, b); }}"
                          for m, name in enumerate(names, 1))  # fmt: skip
    return Kernel(f"product_tiles_{panels}", f"{functions}\nstatic product_tile *const product_tiles_{panels}[] = {{"
                  f"{', '.join(names)}}};\n", (PRODUCT,))  # fmt: skip


def panels(sizes: Sequence[int]) -> Kernel:
    """Tiles of many rows and panels; a tile is at most len(sizes) panels wide."""
    widest = len(sizes)
    cases = "\n".join(f"    case {p}: tiles = product_tiles_{p}, most = {m}; break;"
                      for p, m in enumerate(sizes[:-1], 1))  # fmt: skip
    last = f"    default: tiles = product_tiles_{widest}, most = {sizes[-1]};"
    choice = f"    switch (wide) {{\n{cases}\n{last}\n    }}" if cases else "    " + last.split(": ")[1]
    half = widest // 2
    width = f"rows > {sizes[-1]} && rows <= {sizes[half - 1]} ? {half} : {widest}" if half else f"{widest}"
    return Kernel("product_panels", f"""\
/* Fetches part t of `count` of the weights that follow those of `wide` panels from `first` on. */
INLINE void product_fetch(const product_block *b, int32_t first, int32_t wide, int32_t t, int32_t count) {{
  const int32_t begin = b->lines_ahead * t / count, end = b->lines_ahead * (t + 1) / count;
  for (int32_t p = first; p < int_min(first + wide, b->panels_ahead); p++)
    for (int32_t l = begin; l < end; l++) __builtin_prefetch(b->ahead + (size_t)p * b->panel + (size_t)l * 16);
}}

/* Tiles of all rows of a chunk over one block of k, for `panels` panels side by side. */
static void product_panels(const product *p, product_block b, int32_t panels, int32_t row, int32_t rows, int32_t col,
                           int finish) {{
  const int32_t widest = {width}; /* narrow tiles where all rows fit one: then each weight is met once */
  for (int32_t first = 0; first < panels; first += widest) {{
    const int32_t wide = int_min(panels - first, widest);
    product_tile *const *tiles;
    int32_t most;
{choice}
    const int32_t count = (rows + most - 1) / most;
    const float *const *at = b.at;
    float *sums = b.sums;
    for (int32_t t = 0, m; t < count; t++, at += (size_t)m * (size_t)b.stride, sums += m * GROUP) {{
      m = rows / count + (t < rows % count);
      product_block tile = b;
      tile.w += (size_t)first * b.panel, tile.at = at, tile.sums = sums + first * 16;
      if (count >= {FETCHING}) product_fetch(&b, first, wide, t, count);
      if (!finish || first + wide < panels) {{
        tiles[m - 1](&tile);
        continue;
      }}
      const int32_t from = row + rows / count * t + int_min(t, rows % count), cols = int_min(p->n - col, GROUP);
      if (p->fetch) p->fetch(p->args, from, m, col, cols);
      tiles[m - 1](&tile);
      p->finish(p->args, sums, from, m, col, cols);
    }}
  }}
}}
""", tuple(_tiles(p, m) for p, m in enumerate(sizes, 1)))  # fmt: skip


def part(sizes: Sequence[int]) -> Kernel:
    """What a worker does with its groups of outputs and chunks of rows."""
    return Kernel("product_part", f"""\
static void product_part(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const product *p = args;
  const int32_t groups = (p->n + GROUP - 1) / GROUP;
  const size_t panel = (size_t)p->runs * (size_t)p->run * 16;
  char *scratch = p->scratch + (size_t)worker * p->scratch_bytes;
  const float **at = (const float **)(void *)(scratch + (size_t)p->chunk * GROUP * 4);
  int32_t found = -1;
  for (int32_t i = begin; i < end; i++) {{
    const int32_t chunk = i / groups, group = i % groups, row = chunk * p->chunk;
    const int32_t rows = int_min(p->chunk, p->rows - row), panels = int_min((p->n - group * GROUP + 15) / 16, {GROUP});
    if (chunk != found) p->find(p, row, rows, at);
    found = chunk;
    const float *w = p->w + (size_t)group * {GROUP} * panel;
    const int32_t after = (group + 1) % groups;
    for (int32_t s = 0; s < p->runs; s += p->runs_block)
      for (int32_t c = 0; c < p->run; c += p->run_block) {{
        product_block block = {{
            w + ((size_t)s * (size_t)p->run + (size_t)c) * 16, at + s, (float *)(void *)scratch, 16, panel,
            (size_t)p->run * 16, p->runs, int_min(p->runs - s, p->runs_block), c, int_min(p->run - c, p->run_block),
            s == 0 && c == 0, panels, 0, NULL}};
        const int32_t lines = block.runs * block.count, left = (p->runs - s) * p->run - c - lines;
        if (left > 0) block.ahead = block.w + (size_t)lines * 16;
        else {{ /* the next group's first */
          block.ahead = p->w + (size_t)after * {GROUP} * panel;
          block.panels_ahead = int_min((p->n - after * GROUP + 15) / 16, {GROUP});
        }}
        if (p->fetching) block.lines_ahead = int_min(left > 0 ? left : p->runs * p->run, p->runs_block * p->run_block);
        product_panels(p, block, panels, row, rows, group * GROUP, left == 0);
      }}
  }}
}}

/* Rows of a chunk. With enough rows each thread has chunks of its own: then what it reads of them it mostly wrote itself
 * in the product before, which matters most where cores share no cache. Otherwise several threads have outputs of the
 * same rows: with few chunks weights are read few times, with many all threads end at the same time. */
static int32_t product_chunk(const product *p, int32_t threads, int32_t groups) {{
  const int32_t fewest = (p->rows + p->chunk - 1) / p->chunk;
  if (p->rows / threads >= {OWN}) {{
    const int32_t chunks = (fewest + threads - 1) / threads * threads;
    return (p->rows + chunks - 1) / chunks;
  }}
  int32_t best = p->chunk;
  int64_t least = INT64_MAX;
  for (int32_t n = fewest; n == fewest || (n <= fewest + threads && p->rows / n >= {LEAST}); n++) {{
    const int32_t rows = (p->rows + n - 1) / n, turns = (n * groups + threads - 1) / threads;
    const int64_t cost = (4 * (int64_t)turns + 1) * (rows + {PASS}); /* a quarter of a turn is waited for others */
    if (cost < least) least = cost, best = rows;
  }}
  return best;
}}

static void product_run(const run *r, product p, int32_t grain) {{
  const int32_t groups = (p.n + GROUP - 1) / GROUP;
  if (p.rows > 0) p.chunk = product_chunk(&p, grain == 1 ? r->threads : 1, groups);
  parallel(r, (p.rows + p.chunk - 1) / p.chunk * groups, grain, product_part, &p);
}}
""", (panels(sizes),))


@dataclass(frozen=True)
class Rows:
    """How the rows of x are found: `source` is the body of NAME_rows, after declarations of globals `before`."""

    runs: int
    run: int
    source: str
    before: str = ""


def _rows(node: Node, zeros: str) -> Rows:
    """Rows of patch_linear's x. The window's innermost axes that touch in memory become one run."""
    x = node.inputs[0]
    window, strides, low, high, dilation = (node.attr(n) for n in ("window", "strides", "low", "high", "dilation"))
    channels = x.shape[-1]
    assert isinstance(channels, int)
    count = len(window)
    if not window:
        return Rows(1, channels, f"for (int32_t i = 0; i < count; i++) at[i] = p->x + (int64_t)(row + i) * {channels};")
    sizes = x.shape[x.type.rank - 1 - count : -1]
    out = node.types[0].shape[x.type.rank - 1 - count : -1]
    steps = [bracketed(prod(sizes[n + 1 :]) * channels) for n in range(count)]
    merged = count - 1 if low[-1] == 0 and high[-1] == 0 and dilation[-1] == 1 else count
    run = channels * (window[-1] if merged < count else 1)
    runs = prod(window[:merged])
    at, place, tests = "ijk", "yzv", []
    lines = ["const float *const x = p->x;"]
    left = "row"
    for n in reversed(range(count)):
        lines.append(f"int32_t {at[n]} = {left} % {bracketed(out[n])};")
        left = f"{left} / {bracketed(out[n])}"
    lines += [f"int64_t b = {left};", "for (int32_t r = 0; r < count; r++) {",
              f"  const float *image = x + b * {bracketed(prod(sizes) * channels)};"]  # fmt: skip
    inner: list[str] = []
    offset = " + ".join(f"(int64_t){place[n]} * {steps[n]}" for n in range(count))
    depth = 1
    for n in range(count):
        tap = f" + {'pqu'[n]} * {dilation[n]}" if n < merged and window[n] > 1 else ""
        if n < merged and window[n] > 1:
            inner.append("  " * depth + f"for (int32_t {'pqu'[n]} = 0; {'pqu'[n]} < {window[n]}; {'pqu'[n]}++) {{")
            depth += 1
        shift = f" - {bracketed(low[n])}" if low[n] != 0 else ""
        inner.append("  " * depth + f"const int32_t {place[n]} = {at[n]} * {strides[n]}{tap}{shift};")
        if low[n] != 0 or high[n] != 0:
            tests.append(f"{place[n]} >= 0 && {place[n]} < {bracketed(sizes[n])}")
    value = f"image + ({offset})"
    inner.append("  " * depth + f"*at++ = {' && '.join(tests)} ? {value} : {zeros};" if tests else
                 "  " * depth + f"*at++ = {value};")  # fmt: skip
    inner += ["  " * d + "}" for d in reversed(range(1, depth))]
    lines += inner
    carry = ""
    for n in reversed(range(count)):
        carry += f"if (++{at[n]} == {bracketed(out[n])}) {{ {at[n]} = 0; "
    lines += ["  " + carry + "b++; " + "} " * count, "}"]
    return Rows(runs, run, "\n".join(lines), f"static const float {zeros}[{channels}];\n" if tests else "")


def product(node: Node, anchor: Node, finish: Loop, operands: Mapping[Value, int], target: Target) -> Call:
    """The call for `node`, which computes `finish` of the product `anchor`. `operands` says which operand of the node
    each value is that either reads."""
    x, w = anchor.inputs
    n, k = anchor.types[0].shape[-1], w.shape[1]
    rows = prod(anchor.types[0].shape[:-1], start=1)
    assert isinstance(n, int) and isinstance(k, int)
    sizes = tiles(target)
    end = epilogue(anchor, finish, (*anchor.types[0].shape[:-1], *x.shape), fetching=True)
    found = _rows(anchor, "@_zeros")
    chunk = max(1, min(rows, CHUNK)) if isinstance(rows, int) else CHUNK
    large = 4 * n * k >= LARGE
    whole = isinstance(rows, int) and rows <= sizes[max(0, len(sizes) // 2 - 1)]  # one tile meets each weight once
    block = BLOCK if not large else SHORTEST if isinstance(rows, int) and rows < FEW else SHORT
    run_block = found.run if whole or found.run <= LONGEST else _block(found.run, block)
    runs_block = found.runs if whole or k <= LONGEST else 1 if found.run > LONGEST else max(1, BLOCK // found.run)
    given = [f"const int64_t {size_name(s)} = ((const @_args *)p->args)->{size_name(s)};" for s in end.dims
             if re.search(rf"\b{size_name(s)}\b", found.source)]  # fmt: skip
    grain = _grain(rows, n, k)
    worker_bytes = -(-chunk * (GROUP * 64 + found.runs * 8) // 64) * 64
    text = f"""\
/* {x.type} by {w.type}, {anchor.op.name}{_settings(anchor)}, to {finish.result.type} */
{end.source}
{found.before}
static void @_rows(const product *p, int32_t row, int32_t count, const float **at) {{
{indented(chr(10).join([*given, found.source]))}
}}

static void @({end.signature("void *scratch")}) {{
  const product p = {{x, w, {dim_text(rows)}, {n}, {found.runs}, {found.run}, {runs_block}, {run_block}, {chunk},
      {int(large)}, @_rows, @_finish, {"@_fetch" if end.fetches else "NULL"}, &(@_args){{{end.values}}}, scratch,
      {worker_bytes}}};
  product_run(r, p, {grain});
}}
"""
    kernel = named(text, kernel_name("product", finish.result.type), (part(sizes),))
    args = end.arguments(operands, x, w)
    return Call(kernel, (*args, Scratch()), THREADS * worker_bytes, regions=int(grain == "1"))


def _settings(node: Node) -> str:
    window = node.attr("window")
    if not window:
        return ""
    return f" of windows {'x'.join(map(str, window))}, strides {'x'.join(map(str, node.attr('strides')))}"


def _block(run: int, most: int) -> int:
    """Values of k of a block: about equal ones, at most `most`."""
    return -(-run // -(-run // most) // 8) * 8


def _grain(rows: Dim, n: int, k: int) -> str:
    """C text of the pieces that a worker claims: all where the work is small."""
    if isinstance(rows, int):
        return "1" if (rows + 16) * n * k >= SERIAL else "1 << 30"
    return f"({dim_text(rows)} + 16) * (int64_t){n * k} >= {SERIAL} ? 1 : 1 << 30"


def patch_linear(node: Node, target: Target) -> Call:
    """x[lead..., spatial..., C], w[N, K] in panels -> f32[lead..., spatial'..., N]."""
    shape = node.types[0].shape
    loop = Loop(node[0], shape, Read(node[0], axes(len(shape)), shape))
    return product(node, node, loop, {v: i for i, v in enumerate(node.inputs)}, target)


LOWERINGS = {"patch_linear": patch_linear}
