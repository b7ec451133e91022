"""Attention of tokens over the KV cache: blocks of 256 keys, merged in order, as `ir.numerics.attention` says.

The query heads that share a key head, and neighbouring tokens of one sequence, are rows of one tile: a K panel or V row
is loaded, and widened to f32, once for as many rows as the registers hold. Rows never mix, so no tiling changes a bit.
With too few (token, key head) pairs for the threads, the blocks of each are computed apart and then merged in order.
"""

from __future__ import annotations

from ...ir.graph import IRError, Node
from ...ir.target import Target
from ...ir.types import Dim, dim_min, f32, floordiv
from .kernels import THREADS, Arg, Call, DimValue, Kernel, Literal, Operand, Result, Run, Scratch
from .scalar import literal

_BLOCK = 256  # keys; one page of the cache


_ROWS = Kernel("attention_rows", """\
/* Query rows that share a load of K or V, and K panels that a row is multiplied with at a time. */
enum { TILE_ROWS = REGISTERS >= 32 ? 8 : REGISTERS >= 8 ? 4 : 2, TILE_PANELS = REGISTERS >= 32 ? 2 : 1 };

/* How many rows a tile of `count` is computed as: the sizes that code is unrolled for. */
static inline int tile_rows(int32_t count) { return count > 4 ? TILE_ROWS : count; }

/* One row's products p[from .. to), multiples of 16, to exp(score - m), zero outside of low .. high; gives m and l. */
static void attention_softmax(float *p, int32_t from, int32_t to, int32_t low, int32_t high, float scale, float cap,
    float *m, float *l) {
  static const float LANE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const vf32 lane = f32_load(LANE), none = f32_splat(-INFINITY);
  const vf32 before = f32_splat((float)(low - 1)), after = f32_splat((float)(high + 1));
  vf32 largest = none, sum = f32_zero();
  for (int32_t key = from; key < to; key += 16) {
    const vf32 at = f32_add(lane, f32_splat((float)key));
    vf32 score = f32_mul(f32_load(p + key), f32_splat(scale));
    if (cap != 0.0f) score = f32_softcap(score, f32_splat(cap));
    score = f32_select_gt(at, before, f32_select_gt(after, at, score, none), none);
    f32_store(p + key, score);
    largest = f32_max(largest, score);
  }
  *m = f32_hmax(largest);
  for (int32_t key = from; key < to; key += 16) {
    const vf32 e = f32_exp(f32_sub(f32_load(p + key), f32_splat(*m)));
    f32_store(p + key, e);
    sum = f32_add(sum, e);
  }
  *l = f32_sum(sum);
}

/* (m, l, o) of the keys of both partials, into the first */
static void merge_partials(float *m, float *l, float *o, float m2, float l2, const float *o2, int32_t size) {
  const float largest = max_f32(*m, m2), scale = m_exp(*m - largest), scale2 = m_exp(m2 - largest);
  *m = largest;
  *l = *l * scale + l2 * scale2;
  for (int32_t d = 0; d < size; d++) o[d] = o[d] * scale + o2[d] * scale2;
}
""")


def _block_kernel(d: int, dv: int) -> Kernel:
    """Up to TILE_ROWS query rows against one block of keys of size `d` and values of size `dv`."""
    name = f"attend_{d}" + (f"_{dv}" if dv != d else "")
    part, load = "", "f32_load_f16(v)"
    if dv % 16:
        load = f"{name}_part(v, {dv} - at < 16 ? {dv} - at : 16)"
        part = f"""\
/* The first values of a row's end, which may be the end of the memory. */
INLINE vf32 {name}_part(const uint16_t *v, int count) {{
  uint16_t part[16] = {{0}};
  memcpy(part, v, (size_t)count * sizeof *v);
  return f32_load_f16(part);
}}

"""
    return Kernel(name, f"""\
/* p[rows][256] at `key`: q [{d}][rows] times TILE_PANELS panels of 16 keys, each product a chain over d. */
INLINE void {name}_scores(const int rows, const float *q, const uint16_t *k, float (*p)[256], int32_t key) {{
  vf32 s[TILE_ROWS][TILE_PANELS];
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < TILE_PANELS; j++) s[i][j] = f32_zero();
  for (int d = 0; d < {d}; d++)
    UNROLL for (int j = 0; j < TILE_PANELS; j++) {{
      const vf32 keys = f32_load_f16(k + (key + 16 * j) * {d} + 16 * d);
      UNROLL for (int i = 0; i < rows; i++) s[i][j] = f32_add(s[i][j], f32_mul(f32_splat(q[d * rows + i]), keys));
    }}
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < TILE_PANELS; j++) f32_store(p[i] + key + 16 * j, s[i][j]);
}}

{part}/* o[rows][{dv}] += p * v of keys from .. to, 16 values at a time, each a chain over the keys. */
INLINE void {name}_values(const int rows, float (*p)[256], const uint16_t *values, int32_t from, int32_t to,
    float (*o)[{dv}]) {{
  for (int at = 0; at < {dv}; at += 16) {{
    const uint16_t *v = values + from * {dv} + at;
    vf32 sum[TILE_ROWS];
    UNROLL for (int i = 0; i < rows; i++) sum[i] = {_lanes("f32_load", dv, "o[i] + at")};
    for (int32_t key = from; key < to; key++, v += {dv}) {{
      const vf32 value = {load};
      UNROLL for (int i = 0; i < rows; i++) sum[i] = f32_add(sum[i], f32_mul(f32_splat(p[i][key]), value));
    }}
    UNROLL for (int i = 0; i < rows; i++) {_lanes("f32_store", dv, "o[i] + at, sum[i]")};
  }}
}}

/* One function for each number of rows, so that their sums stay in registers. */
static void {name}_all_scores(int rows, const float *q, const uint16_t *k, float (*p)[256], int32_t from, int32_t to) {{
  for (int32_t key = from; key < to; key += 16 * TILE_PANELS)
    if (rows == TILE_ROWS) {name}_scores(TILE_ROWS, q, k, p, key);
    else if (TILE_ROWS > 4 && rows == 4) {name}_scores(4, q, k, p, key);
    else if (TILE_ROWS > 3 && rows == 3) {name}_scores(3, q, k, p, key);
    else if (TILE_ROWS > 2 && rows == 2) {name}_scores(2, q, k, p, key);
    else {name}_scores(1, q, k, p, key);
}}

static void {name}_all_values(int rows, float (*p)[256], const uint16_t *v, int32_t from, int32_t to,
    float (*o)[{dv}]) {{
  if (from >= to) return;
  if (rows == TILE_ROWS) {name}_values(TILE_ROWS, p, v, from, to, o);
  else if (TILE_ROWS > 4 && rows == 4) {name}_values(4, p, v, from, to, o);
  else if (TILE_ROWS > 3 && rows == 3) {name}_values(3, p, v, from, to, o);
  else if (TILE_ROWS > 2 && rows == 2) {name}_values(2, p, v, from, to, o);
  else {name}_values(1, p, v, from, to, o);
}}

/* The partial (m, l, o) of each row over a block, where row i sees keys low[i] .. high[i], none if low > high. */
static void {name}(int rows, const float *q, const uint16_t *k, const uint16_t *v, const int32_t *low,
    const int32_t *high, float scale, float cap, float *m, float *l, float (*o)[{dv}]) {{
  float p[TILE_ROWS][256];
  int32_t from = 256, to = 0, shared_from = 0, shared_to = 256; /* keys that some row sees, and that every row sees */
  for (int i = 0; i < rows; i++) {{
    if (low[i] <= high[i]) from = int_min(from, low[i]), to = int_max(to, high[i] + 1);
    shared_from = int_max(shared_from, low[i]), shared_to = int_min(shared_to, high[i] + 1);
  }}
  if (shared_from >= shared_to) shared_from = shared_to = to;
  const int32_t step = 16 * TILE_PANELS, first = from / step * step, end = (to + step - 1) / step * step;
  {name}_all_scores(rows, q, k, p, first, end);
  for (int i = 0; i < rows; i++) attention_softmax(p[i], first, end, low[i], high[i], scale, cap, &m[i], &l[i]);
  memset(o, 0, (size_t)rows * sizeof *o);
  for (int i = 0; i < rows; i++) {name}_all_values(1, p + i, v, low[i], int_min(shared_from, high[i] + 1), o + i);
  {name}_all_values(rows, p, v, shared_from, shared_to, o);
  for (int i = 0; i < rows; i++) {name}_all_values(1, p + i, v, shared_to, high[i] + 1, o + i);
}}
""", (_ROWS,))  # fmt: skip


def _lanes(word: str, size: int, args: str) -> str:
    """`word` on 16 lanes of a row of `size` values at offset `at`, or on those that are left at its end."""
    return f"{word}({args})" if size % 16 == 0 else f"{word}_n({args}, {size} - at < 16 ? {size} - at : 16)"


def _attention(group: int, d: int, dv: int) -> Kernel:
    """The kernel for `group` query heads a key head, key size `d` and value size `dv`."""
    block = _block_kernel(d, dv)
    name = f"cached_attention_{group}x{d}" + (f"_{dv}" if dv != d else "")
    return Kernel(name, f"""\
typedef struct {{
  const run *r;
  int32_t tokens, kv_heads, window, blocks, tile;
  float scale, cap;
  const cache_region *k, *v;
  const float *q;
  const int32_t *sequence, *position;
  float *out, *partials; /* partials: for each (token, key head, block): {group} m, {group} l, {group} rows of {dv} */
}} {name}_args;

static inline int32_t {name}_first(const {name}_args *a, int32_t t) {{ /* position that token t sees first */
  return a->window && a->position[t] >= a->window ? a->position[t] - a->window + 1 : 0;
}}

/* Where row i of a tile lies in q and out: head i % {group} of the key head's, of token t + i / {group}. */
static inline size_t {name}_row(const {name}_args *a, int32_t t, int32_t head, int32_t i) {{
  return (((size_t)t + i / {group}) * a->kv_heads + head) * {group} + i % {group};
}}

/* Rows [row, row + count) of a tile against block b. */
static void {name}_rows(int rows, const {name}_args *a, int32_t t, int32_t head, int32_t row, int32_t count,
    const float *q, int32_t b, float *m, float *l, float (*o)[{dv}], int32_t *low, int32_t *high) {{
  char *session = a->r->sessions[a->sequence[t]];
  const uint16_t *k = (const void *)cache_page(session, a->k, b), *v = (const void *)cache_page(session, a->v, b);
  for (int i = 0; i < rows; i++) {{ /* rows beyond the count repeat the last */
    const int32_t token = t + (row + int_min(i, count - 1)) / {group};
    low[i] = int_max({name}_first(a, token) - b * 256, 0);
    high[i] = int_min(a->position[token] - b * 256, 255);
  }}
  k += (size_t)head * {256 * d}, v += (size_t)head * {256 * dv};
  {block.symbol}(rows, q, k, v, low, high, a->scale, a->cap, m, l, o);
}}

/* q of a tile's rows, transposed: [{d}][rows] */
static void {name}_queries(int rows, const {name}_args *a, int32_t t, int32_t head, int32_t row, int32_t count,
    float *q) {{
  for (int i = 0; i < rows; i++) {{
    const float *x = a->q + {name}_row(a, t, head, row + int_min(i, count - 1)) * {d};
    for (int d = 0; d < {d}; d++) q[d * rows + i] = x[d];
  }}
}}

/* One tile over all its blocks. */
static void {name}_tile(const {name}_args *a, int32_t t, int32_t head, int32_t row, int32_t count) {{
  const int rows = tile_rows(count);
  float q[{d} * TILE_ROWS], m[TILE_ROWS] = {{0}}, l[TILE_ROWS] = {{0}};
  float m2[TILE_ROWS], l2[TILE_ROWS], o2[TILE_ROWS][{dv}];
  int32_t low[TILE_ROWS], high[TILE_ROWS], seen[TILE_ROWS] = {{0}};
  {name}_queries(rows, a, t, head, row, count, q);
  const int32_t last = t + (row + count - 1) / {group};
  for (int32_t b = {name}_first(a, t + row / {group}) >> 8; b <= a->position[last] >> 8; b++) {{
    {name}_rows(rows, a, t, head, row, count, q, b, m2, l2, o2, low, high);
    for (int i = 0; i < count; i++) {{
      float *o = a->out + {name}_row(a, t, head, row + i) * {dv};
      if (low[i] > high[i]) continue;
      if (seen[i]) {{
        merge_partials(&m[i], &l[i], o, m2[i], l2[i], o2[i], {dv});
        continue;
      }}
      seen[i] = 1, m[i] = m2[i], l[i] = l2[i];
      memcpy(o, o2[i], sizeof o2[i]);
    }}
  }}
  for (int i = 0; i < count; i++) {{
    float *o = a->out + {name}_row(a, t, head, row + i) * {dv};
    for (int d = 0; d < {dv}; d++) o[d] /= l[i];
  }}
}}

/* Jobs: tiles of tokens by key head. In each, tokens that follow each other in a sequence share their loads. */
static void {name}_tiles(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const {name}_args *a = args;
  (void)worker;
  for (int32_t job = begin; job < end; job++) {{
    const int32_t head = job % a->kv_heads, from = job / a->kv_heads * a->tile;
    const int32_t to = int_min(from + a->tile, a->tokens);
    for (int32_t t = from, next; t < to; t = next) {{
      next = t + 1;
      if (a->sequence[t] < 0 || a->sequence[t] >= a->r->session_count) {{
        memset(a->out + ((size_t)t * a->kv_heads + head) * {group * dv}, 0, {group * dv} * sizeof(float));
        continue;
      }}
      while (next < to && a->sequence[next] == a->sequence[t] && a->position[next] == a->position[next - 1] + 1) next++;
      const int32_t rows = (next - t) * {group};
      for (int32_t row = 0; row < rows; row += TILE_ROWS) {{
        const int32_t count = int_min(rows - row, TILE_ROWS);
        {name}_tile(a, t, head, row, count);
      }}
    }}
  }}
}}

/* Jobs: blocks of (token, key head) pairs, to partials. */
static void {name}_blocks(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const {name}_args *a = args;
  (void)worker;
  for (int32_t job = begin; job < end; job++) {{
    const int32_t pair = job / a->blocks, t = pair / a->kv_heads, head = pair % a->kv_heads;
    if (a->sequence[t] < 0 || a->sequence[t] >= a->r->session_count) continue;
    const int32_t b = ({name}_first(a, t) >> 8) + job % a->blocks;
    if (b > a->position[t] >> 8) continue;
    float *m = a->partials + (size_t)job * {group * (dv + 2)}, *l = m + {group}, *o = l + {group};
    float q[{d} * TILE_ROWS], m2[TILE_ROWS], l2[TILE_ROWS], o2[TILE_ROWS][{dv}];
    int32_t low[TILE_ROWS], high[TILE_ROWS];
    for (int32_t row = 0; row < {group}; row += TILE_ROWS) {{
      const int32_t count = int_min({group} - row, TILE_ROWS), rows = tile_rows(count);
      {name}_queries(rows, a, t, head, row, count, q);
      {name}_rows(rows, a, t, head, row, count, q, b, m2, l2, o2, low, high);
      memcpy(m + row, m2, (size_t)count * sizeof *m);
      memcpy(l + row, l2, (size_t)count * sizeof *l);
      memcpy(o + (size_t)row * {dv}, o2, (size_t)count * sizeof *o2);
    }}
  }}
}}

/* Jobs: (token, key head) pairs, from partials. */
static void {name}_merge(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const {name}_args *a = args;
  (void)worker;
  for (int32_t pair = begin; pair < end; pair++) {{
    const int32_t t = pair / a->kv_heads;
    float *out = a->out + (size_t)pair * {group * dv};
    if (a->sequence[t] < 0 || a->sequence[t] >= a->r->session_count) {{
      memset(out, 0, {group * dv} * sizeof *out);
      continue;
    }}
    const int32_t count = (a->position[t] >> 8) - ({name}_first(a, t) >> 8) + 1;
    float *m = a->partials + (size_t)pair * a->blocks * {group * (dv + 2)}, *l = m + {group}, *o = l + {group};
    for (int32_t b = 1; b < count; b++) {{
      const float *m2 = m + (size_t)b * {group * (dv + 2)}, *l2 = m2 + {group}, *o2 = l2 + {group};
      for (int i = 0; i < {group}; i++) merge_partials(m + i, l + i, o + i * {dv}, m2[i], l2[i], o2 + i * {dv}, {dv});
    }}
    for (int i = 0; i < {group}; i++)
      for (int d = 0; d < {dv}; d++) out[i * {dv} + d] = o[i * {dv} + d] / l[i];
  }}
}}

/* out[tokens, kv_heads * {group}, {dv}] of q[tokens, kv_heads * {group}, {d}]; a token sees at most max_blocks */
static void {name}(const run *r, int32_t tokens, int32_t kv_heads, int32_t max_blocks, int32_t window, float scale,
    float cap, const float *q, const cache_region *k, const cache_region *v, const int32_t *sequence,
    const int32_t *position, float *out, void *scratch) {{
  {name}_args args = {{r, tokens, kv_heads, window, 1, 1, scale, cap, k, v, q, sequence, position, out, scratch}};
  const int32_t pairs = tokens * kv_heads;
  for (int32_t t = 0; t < tokens; t++) {{
    const int32_t blocks = (position[t] >> 8) - ({name}_first(&args, t) >> 8) + 1;
    args.blocks = int_max(args.blocks, int_min(blocks, max_blocks));
  }}
  if (r->threads > 1 && pairs < 4 * r->threads && args.blocks > 1) {{
    parallel(r, pairs * args.blocks, 1, {name}_blocks, &args);
    parallel(r, pairs, 1, {name}_merge, &args);
    return;
  }}
  args.tile = int_max(1, int_min(16, pairs / (4 * r->threads)));
  parallel(r, (tokens + args.tile - 1) / args.tile * kv_heads, 1, {name}_tiles, &args);
}}
""", (_ROWS, block))  # fmt: skip


def cached_attention(node: Node, target: Target) -> Call:
    """q f32[T, Hq, D], K and V caches, sequence and position i32[T] -> f32[T, Hq, Dv].

    Scratch holds the partials of fewer than 4 pairs (token, key head) a thread. Raises IRError for symbolic head sizes.
    """
    (tokens, heads, d), (_, kv_heads, rows, dv) = node.inputs[0].shape, node.inputs[2].shape
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(d, int) and isinstance(dv, int)):
        raise IRError("the heads and their sizes must be known when compiling")
    group, window = heads // kv_heads, node.attr("window")
    blocks: Dim = floordiv(rows + (_BLOCK - 1), _BLOCK)
    if window:
        blocks = dim_min(blocks, (window + _BLOCK - 2) // _BLOCK + 1)
    scratch = dim_min(tokens * kv_heads, 4 * THREADS) * blocks * (group * (dv + 2) * 4)
    args: tuple[Arg, ...] = (
        Run(), DimValue(tokens), DimValue(kv_heads), DimValue(blocks), Literal(str(window)),
        Literal(literal(node.attr("scale"), f32)), Literal(literal(node.attr("softcap"), f32)),
        *map(Operand, range(5)), Result(), Scratch(),
    )  # fmt: skip
    return Call(_attention(group, d, dv), args, scratch)


LOWERINGS = {"cached_attention": cached_attention}
