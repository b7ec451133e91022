"""Attention of tokens over the KV cache: blocks of 256 keys, merged in order, as `ir.numerics.attention` says.

The query heads that share a key head, and neighbouring tokens of one sequence, are rows of one job: a block of K and V
is read for as many rows as there are. With too few (token, key head) pairs for the threads, as when one token is
decoded, the blocks of each are computed apart, in the order in which they lie in memory, and whoever does a pair's last
block merges them in their own order.
"""

from __future__ import annotations

from ...ir.graph import IRError, Node
from ...ir.target import Target
from ...ir.types import Dim, DType, dim_max, dim_min, f32, floordiv
from .attention_block import ROWS, TILE_ROWS, block_kernel, widen_kernel
from .kernels import THREADS, Arg, Call, DimValue, Kernel, Literal, Operand, Result, Run, Scratch
from .scalar import literal

_BLOCK = 256  # keys; one page of the cache
_JOB_ROWS = 96  # rows of a job, if a token does not have more
_APART = 4  # pairs (token, key head) a thread up to which blocks are computed apart


def _job_rows(group: int) -> int:
    """The most rows of a job, as whole tiles."""
    return -(-max(_JOB_ROWS, group) // TILE_ROWS) * TILE_ROWS


def _attention(group: int, d: int, dv: int, dtype: DType) -> Kernel:
    """The kernel for `group` query heads a key head, key size `d` and value size `dv`, caches of `dtype`."""
    block, wide = block_kernel(d, dv, dtype, wide=False), block_kernel(d, dv, dtype, wide=True)
    widen = widen_kernel(d, dv, dtype)
    name = f"cached_attention_{group}x{block.symbol.removeprefix('attend_')}"
    k_bytes, v_bytes = (_BLOCK * size // dtype.block * dtype.block_bytes for size in (d, dv))
    return Kernel(name, f"""\
typedef struct {{
  const run *r;
  int32_t tokens, kv_heads, window, blocks, tile;
  float scale, cap;
  const cache_region *k, *v;
  const float *q;
  const int32_t *sequence, *position;
  float *out;
  void *scratch; /* a {name}_state of each worker; or, for blocks apart, pairs and then partials */
}} {name}_args;

/* What a job keeps: its rows' totals so far, their q, transposed in each tile, and a block of K and V for many rows. */
typedef struct {{
  float m[{_job_rows(group)}], l[{_job_rows(group)}], q[{_job_rows(group) * d}], k[{_BLOCK * d}], v[{_BLOCK * dv}];
}} {name}_state;

/* For each (token, key head, block). */
typedef struct {{
  float m[{group}], l[{group}], o[{group * dv}];
}} {name}_partial;

/* For each (token, key head). */
typedef struct {{
  int32_t left; /* blocks to be computed */
  float q[{_job_rows(group) * d}];
}} {name}_pair;

static inline int32_t {name}_first(const {name}_args *a, int32_t t) {{ /* position that token t sees first */
  return a->window && a->position[t] >= a->window ? a->position[t] - a->window + 1 : 0;
}}

static inline int {name}_padding(const {name}_args *a, int32_t t) {{ /* a token of no session */
  return a->sequence[t] < 0 || a->sequence[t] >= a->r->session_count;
}}

/* Where row i of the rows from token t on lies in q and out: that of token t + i / {group}, head i % {group} of its key
 * head's. */
static inline size_t {name}_row(const {name}_args *a, int32_t t, int32_t head, int32_t i) {{
  return (((size_t)t + i / {group}) * a->kv_heads + head) * {group} + i % {group};
}}

/* Block b of a region, of the session of token t, in which a key head has so many bytes. */
static inline const uint8_t *{name}_at(const {name}_args *a, const cache_region *region, size_t bytes, int32_t t,
    int32_t head, int32_t b) {{
  return (const uint8_t *)cache_page(a->r->sessions[a->sequence[t]], region, b) + (size_t)head * bytes;
}}

static inline const uint8_t *{name}_keys(const {name}_args *a, int32_t t, int32_t head, int32_t b) {{
  return {name}_at(a, a->k, {k_bytes}, t, head, b);
}}

static inline const uint8_t *{name}_values(const {name}_args *a, int32_t t, int32_t head, int32_t b) {{
  return {name}_at(a, a->v, {v_bytes}, t, head, b);
}}

/* q of the rows from token t on, by tiles of at most `tile`: [{d}][rows of the tile]. Rows beyond the count repeat the
 * last. */
static void {name}_queries(const {name}_args *a, int32_t t, int32_t head, int32_t count, int32_t tile, float *q) {{
  for (int32_t row = 0; row < count; row += tile) {{
    const int32_t some = int_min(count - row, tile), rows = tile_rows(some);
    for (int i = 0; i < rows; i++) {{
      const float *x = a->q + {name}_row(a, t, head, row + int_min(i, some - 1)) * {d};
      for (int d = 0; d < {d}; d++) q[row * {d} + d * rows + i] = x[d];
    }}
  }}
}}

/* The keys of block b that a tile sees, whose rows are `count` from `row` of those from token t on; gives its rows. */
static int {name}_seen(const {name}_args *a, int32_t t, int32_t row, int32_t count, int32_t b, int32_t *low,
    int32_t *high) {{
  const int rows = tile_rows(count);
  for (int i = 0; i < rows; i++) {{
    const int32_t token = t + (row + int_min(i, count - 1)) / {group};
    low[i] = int_max({name}_first(a, token) - b * 256, 0);
    high[i] = int_min(a->position[token] - b * 256, 255);
  }}
  return rows;
}}

/* The rows of `tokens` tokens that follow each other in a sequence, with their key head: all rows for each block. */
static void {name}_rows(const {name}_args *a, int32_t t, int32_t tokens, int32_t head, {name}_state *state) {{
  const int32_t count = tokens * {group}, start = {name}_first(a, t), end = a->position[t + tokens - 1];
  const int many = count > TILE_ROWS;
  const int32_t tile = many ? TILE_ROWS : STREAM_ROWS;
  float m[16], l[16], scale[16], scale2[16], o[TILE_ROWS][{dv}];
  int32_t low[TILE_ROWS], high[TILE_ROWS];
  {name}_queries(a, t, head, count, tile, state->q);
  for (int32_t i = 0; i < count; i++) {{
    state->m[i] = -INFINITY, state->l[i] = 0.0f;
    memset(a->out + {name}_row(a, t, head, i) * {dv}, 0, {dv} * sizeof(float));
  }}
  for (int32_t b = start >> 8; b <= end >> 8; b++) {{
    const uint8_t *k = {name}_keys(a, t, head, b), *v = {name}_values(a, t, head, b);
    const int32_t next = int_min(b + 1, end >> 8);
    const uint8_t *ahead_k = {name}_keys(a, t, head, next), *ahead_v = {name}_values(a, t, head, next);
    if (many) {{
      const int32_t low_key = int_max(start - b * 256, 0) & ~15, high_key = int_min((end - b * 256 + 16) & ~15, 256);
      {widen.symbol}(k, v, low_key, high_key, state->k, state->v);
      k = (const void *)state->k, v = (const void *)state->v;
    }}
    for (int32_t row = 0; row < count; row += tile) {{
      int32_t from = 0, to = int_min(count - row, tile); /* the rows that see some of the block */
      if (a->position[t + (row + to - 1) / {group}] >> 8 < b) continue;
      const int rows = {name}_seen(a, t, row, to, b, low, high);
      const float *q = state->q + row * {d};
      if (many) {wide.symbol}(rows, q, k, v, ahead_k, ahead_v, low, high, a->scale, a->cap, m, l, o);
      else {block.symbol}(rows, q, k, v, v, ahead_k, low, high, a->scale, a->cap, m, l, o);
      while (from < to && low[from] > high[from]) from++;
      while (from < to && low[to - 1] > high[to - 1]) to--;
      const int32_t seen = to - from;
      merge_rows(seen, state->m + row + from, state->l + row + from, m + from, l + from, scale, scale2);
      for (int32_t i = 0; i < seen; i++) {{
        float *out = a->out + {name}_row(a, t, head, row + from + i) * {dv};
        merge_values(out, o[from + i], scale[i], scale2[i], {dv});
      }}
    }}
  }}
  for (int32_t i = 0; i < count; i++) {{
    float *o = a->out + {name}_row(a, t, head, i) * {dv};
    for (int d = 0; d < {dv}; d++) o[d] /= state->l[i];
  }}
}}

/* Jobs: some tokens with a key head; of a head the last tokens first, since they see most. */
static void {name}_tiles(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const {name}_args *a = args;
  {name}_state *state = ({name}_state *)a->scratch + worker;
  for (int32_t job = begin; job < end; job++) {{
    const int32_t tiles = (a->tokens + a->tile - 1) / a->tile, head = job / tiles;
    const int32_t from = (tiles - 1 - job % tiles) * a->tile, to = int_min(from + a->tile, a->tokens);
    for (int32_t t = from, next; t < to; t = next) {{
      next = t + 1;
      if ({name}_padding(a, t)) {{
        memset(a->out + ((size_t)t * a->kv_heads + head) * {group * dv}, 0, {group * dv} * sizeof(float));
        continue;
      }}
      while (next < to && a->sequence[next] == a->sequence[t] && a->position[next] == a->position[next - 1] + 1) next++;
      {name}_rows(a, t, next - t, head, state);
    }}
  }}
}}

static inline int32_t {name}_blocks(const {name}_args *a, int32_t t) {{ /* that token t sees */
  return (a->position[t] >> 8) - ({name}_first(a, t) >> 8) + 1;
}}

/* The partials of a pair, in order, to out. */
static void {name}_merge(const {name}_args *a, int32_t t, int32_t head, {name}_partial *total) {{
  const int32_t blocks = {name}_blocks(a, t);
  float *out = a->out + {name}_row(a, t, head, 0) * {dv}, scale[16], scale2[16];
  for (int32_t b = 1; b < blocks; b++) {{
    {name}_partial *next = total + (size_t)b * a->kv_heads;
    for (int row = 0; row < {group}; row += 16) {{
      const int rows = {group} - row < 16 ? {group} - row : 16;
      merge_rows(rows, total->m + row, total->l + row, next->m + row, next->l + row, scale, scale2);
      for (int i = 0; i < rows; i++)
        merge_values(total->o + (row + i) * {dv}, next->o + (row + i) * {dv}, scale[i], scale2[i], {dv});
    }}
  }}
  for (int i = 0; i < {group}; i++)
    for (int d = 0; d < {dv}; d++) out[i * {dv} + d] = total->o[i * {dv} + d] / total->l[i];
}}

/* Jobs: (token, block, key head) in this order, which is that of K and V in memory. */
static void {name}_apart(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const {name}_args *a = args;
  {name}_pair *pairs = a->scratch;
  {name}_partial *partials = (void *)(pairs + a->tokens * a->kv_heads);
  float m[16], l[16], o[STREAM_ROWS][{dv}];
  int32_t low[STREAM_ROWS], high[STREAM_ROWS];
  (void)worker;
  for (int32_t job = begin; job < end; job++) {{
    const int32_t head = job % a->kv_heads, t = job / a->kv_heads / a->blocks, at = job / a->kv_heads % a->blocks;
    if ({name}_padding(a, t) || at >= {name}_blocks(a, t)) continue;
    const int32_t b = ({name}_first(a, t) >> 8) + at;
    const int next_head = head + 1 < a->kv_heads, next_block = at + 1 < {name}_blocks(a, t);
    const uint8_t *k = {name}_keys(a, t, head, b), *v = {name}_values(a, t, head, b);
    const uint8_t *ahead = {name}_keys(a, t, next_head ? head + 1 : 0, next_head || !next_block ? b : b + 1);
    {name}_pair *pair = pairs + t * a->kv_heads + head;
    {name}_partial *partial = partials + job;
    for (int32_t row = 0; row < {group}; row += STREAM_ROWS) {{
      const int32_t count = int_min({group} - row, STREAM_ROWS);
      const int rows = {name}_seen(a, t, row, count, b, low, high);
      {block.symbol}(rows, pair->q + row * {d}, k, v, v, ahead, low, high, a->scale, a->cap, m, l, o);
      memcpy(partial->m + row, m, (size_t)count * sizeof *m);
      memcpy(partial->l + row, l, (size_t)count * sizeof *l);
      memcpy(partial->o + row * {dv}, o, (size_t)count * sizeof *o);
    }}
    if (__atomic_sub_fetch(&pair->left, 1, __ATOMIC_ACQ_REL) == 0)
      {name}_merge(a, t, head, partial - (size_t)at * a->kv_heads);
  }}
}}

/* What the blocks of all pairs need, before they are computed. */
static void {name}_prepare(const {name}_args *a) {{
  {name}_pair *pair = a->scratch;
  for (int32_t t = 0; t < a->tokens; t++)
    for (int32_t head = 0; head < a->kv_heads; head++, pair++) {{
      if ({name}_padding(a, t)) memset(a->out + {name}_row(a, t, head, 0) * {dv}, 0, {group * dv} * sizeof(float));
      else pair->left = {name}_blocks(a, t), {name}_queries(a, t, head, {group}, STREAM_ROWS, pair->q);
    }}
}}

/* out[tokens, kv_heads * {group}, {dv}] of q[tokens, kv_heads * {group}, {d}]; a token sees at most max_blocks */
static void {name}(const run *r, int32_t tokens, int32_t kv_heads, int32_t max_blocks, int32_t window, float scale,
    float cap, const float *q, const cache_region *k, const cache_region *v, const int32_t *sequence,
    const int32_t *position, float *out, void *scratch) {{
  {name}_args args = {{r, tokens, kv_heads, window, 1, 1, scale, cap, k, v, q, sequence, position, out, scratch}};
  const int32_t pairs = tokens * kv_heads;
  for (int32_t t = 0; t < tokens; t++)
    if (!{name}_padding(&args, t)) args.blocks = int_max(args.blocks, int_min({name}_blocks(&args, t), max_blocks));
  if (r->threads > 1 && pairs <= {_APART} * r->threads && args.blocks > 1) {{
    const int32_t jobs = pairs * args.blocks, share = (jobs + r->threads - 1) / r->threads;
    {name}_prepare(&args);
    parallel(r, jobs, int_min({max(1, (1 << 18) // (k_bytes + v_bytes))}, share), {name}_apart, &args);
    return;
  }}
  args.tile = int_max(1, int_min({max(1, _JOB_ROWS // group)}, pairs / (4 * r->threads)));
  parallel(r, (tokens + args.tile - 1) / args.tile * kv_heads, 1, {name}_tiles, &args);
}}
""", (ROWS, block, wide, widen))  # fmt: skip


def cached_attention(node: Node, target: Target) -> Call:
    """q f32[T, Hq, D], K and V caches, sequence and position i32[T] -> f32[T, Hq, Dv].

    Scratch holds what each worker needs for a job, or the partials of `_APART` pairs (token, key head) a thread.
    Raises IRError for symbolic head sizes.
    """
    (tokens, heads, d), (_, kv_heads, rows, dv) = node.inputs[0].shape, node.inputs[2].shape
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(d, int) and isinstance(dv, int)):
        raise IRError("the heads and their sizes must be known when compiling")
    group, window = heads // kv_heads, node.attr("window")
    blocks: Dim = floordiv(rows + (_BLOCK - 1), _BLOCK)
    if window:
        blocks = dim_min(blocks, (window + _BLOCK - 2) // _BLOCK + 1)
    pair = (1 + _job_rows(group) * d) * 4
    apart = dim_min(tokens * kv_heads, _APART * THREADS) * (blocks * (group * (dv + 2) * 4) + pair)
    scratch = dim_max(THREADS * ((_job_rows(group) * (d + 2) + _BLOCK * (d + dv)) * 4), apart)
    args: tuple[Arg, ...] = (
        Run(), DimValue(tokens), DimValue(kv_heads), DimValue(blocks), Literal(str(window)),
        Literal(literal(node.attr("scale"), f32)), Literal(literal(node.attr("softcap"), f32)),
        *map(Operand, range(5)), Result(), Scratch(),
    )  # fmt: skip
    return Call(_attention(group, d, dv, node.inputs[1].dtype), args, scratch, regions=int(kv_heads > 1))


LOWERINGS = {"cached_attention": cached_attention}
