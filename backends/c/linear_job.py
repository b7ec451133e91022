"""What all linear products share: the C that hands panels to workers and finishes their results.

A worker takes panels of 16 rows in pairs, `PAIRS` at a time. It walks k in blocks of at most `Tuning.kblock`, whose
activations stay in the second-level cache: for each pair it unpacks the block into the first-level cache once, then
runs tiles of panels x tokens over it, their accumulators going through scratch from one block to the next, in the fixed
order of `ir.numerics.linear`. One token alone meets the packed bytes as they come from memory, in the same order. Then
bias and residual are added, or two products gated, and rows are written. Which worker, which chunk and which tile
computes a row never changes its bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from .kernels import Kernel
from .tuning import Tile

PAIRS = 4  # pairs of panels that meet a block of activations before the next block
AMX = frozenset({"amx"})  # targets with tile products of int8

JOB = Kernel("linear_job", f"enum {{ PAIRS = {PAIRS} }}; /* of panels, computed together */" + """
/* ---- Linear products: y[token][row] = sum over k of x[token][k] * w[row][k], w in panels of 16 rows ---- */

typedef struct linear_job linear_job;
/* acc[pair][token, padded][2][16] = products of pairs [pair, pair + count) of panels with every token of the job. */
typedef void linear_panels(const linear_job *job, int32_t pair, int32_t count, float *acc);
/* gate[token][2][16] = activation(gate) * up */
typedef void linear_gate(float *gate, const float *up, int32_t tokens);
/* Stores x[count] as values `at` onwards of a row of n activations of some format; `at` is a multiple of 32. */
typedef void linear_store(const float *x, int32_t at, int32_t count, int32_t n, void *row);

struct linear_job {
  const uint8_t *x;     /* rows of activations */
  size_t x_row;         /* bytes from a row to the next */
  const int32_t *terms; /* FORMAT_terms, term_row words a token; of many tokens FORMAT_units or dense_blocks */
  int32_t term_row, tokens, k, n;
  const uint8_t *w;
  size_t panel_bytes;
  linear_panels *panels;
  const linear_job *up; /* of a gated product: what is multiplied with gate's activation of this one */
  linear_gate *gate;
  linear_store *store; /* or null: y is rows of f32 */
  const float *bias, *residual; /* [n] and [tokens][n], or null */
  void *y;                      /* tokens rows of n values */
  size_t y_row;                 /* bytes from a row to the next */
};

typedef struct {
  const linear_job *jobs;
  int32_t count;
  char *scratch;       /* of all workers */
  size_t worker_bytes; /* of each, holding the accumulators of PAIRS pairs of panels, or twice that where gated */
} linear_region;

static inline int32_t linear_pairs(int32_t n) { return (n + 31) / 32; }

/* Tokens that accumulators have room for: tiles may take 16 at a time. */
static inline int32_t linear_padded(int32_t tokens) { return (tokens + 15) / 16 * 16; }

/* Accumulators of a pair. */
static inline size_t linear_floats(int32_t tokens) { return (size_t)linear_padded(tokens) * 32; }

static inline size_t linear_worker_bytes(int32_t tokens, int gated) {
  return linear_floats(tokens) * sizeof(float) * (gated ? 2 * PAIRS : PAIRS);
}

/* The first panel of a pair, and how far the second lies behind: a last one that is alone is computed twice. */
static inline const uint8_t *linear_first(const linear_job *job, int32_t pair) {
  return job->w + 2 * (size_t)pair * job->panel_bytes;
}
static inline size_t linear_second(const linear_job *job, int32_t pair) {
  return 32 * pair + 16 < job->n ? job->panel_bytes : 0;
}

/* The rows of `count` pairs of panels from accumulators to y in an activation format. */
static inline void linear_finish_stored(const linear_job *job, int32_t pair, int32_t count, const float *acc) {
  const size_t floats = linear_floats(job->tokens);
  for (int32_t t = 0; t < job->tokens; t++)
    for (int32_t i = 0; i < count; i++) {
      const int32_t row = 32 * (pair + i);
      job->store(acc + (size_t)i * floats + t * 32, row, int_min(job->n - row, 32), job->n,
                 (uint8_t *)job->y + (size_t)t * job->y_row);
    }
}

/* The rows of `count` pairs of panels from accumulators to y, bias added first, then the residual. */
static inline void linear_finish(const linear_job *job, int32_t pair, int32_t count, const float *acc) {
  const size_t floats = linear_floats(job->tokens);
  const int32_t first = 32 * pair, panels = int_min((job->n - first + 15) / 16, 2 * count);
  enum { AHEAD = 8 }; /* rows */
  float *const y = job->y;
  for (int32_t t = 0; t < job->tokens; t++) {
    if (t + AHEAD < job->tokens) { /* rows lie far apart: the hardware foresees none */
      const size_t next = (size_t)(t + AHEAD) * (size_t)job->n + (size_t)first;
      for (int32_t p = 0; p < panels; p++) __builtin_prefetch(y + next + 16 * p, 1);
      if (job->residual) for (int32_t p = 0; p < panels; p++) __builtin_prefetch(job->residual + next + 16 * p);
    }
    for (int32_t p = 0; p < panels; p++) {
      const int32_t row = first + 16 * p, rows = int_min(job->n - row, 16);
      const size_t at = (size_t)t * (size_t)job->n + (size_t)row;
      vf32 sum = f32_load(acc + (size_t)(p / 2) * floats + t * 32 + p % 2 * 16);
      if (job->bias) sum = f32_add(sum, f32_load_n(job->bias + row, rows));
      if (job->residual) sum = f32_add(f32_load_n(job->residual + at, rows), sum);
      if (rows == 16) f32_store(y + at, sum);
      else f32_store_n(y + at, sum, rows);
    }
  }
}

/* Pairs [pair, pair + count) of panels. */
static void linear_some(const linear_job *job, int32_t pair, int32_t count, float *acc) {
  const size_t floats = linear_floats(job->tokens);
  float *up = acc + PAIRS * floats;
  job->panels(job, pair, count, acc);
  if (job->up) {
    job->up->panels(job->up, pair, count, up);
    for (int32_t i = 0; i < count; i++) job->gate(acc + (size_t)i * floats, up + (size_t)i * floats, job->tokens);
  }
  if (job->store) linear_finish_stored(job, pair, count, acc);
  else linear_finish(job, pair, count, acc);
}

/* Pairs [begin, end) of all the jobs' pairs, counted through. */
static void linear_body(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const linear_region *region = args;
  float *acc = (void *)(region->scratch + (size_t)worker * region->worker_bytes);
  for (int32_t j = 0, base = 0; j < region->count; j++) {
    const linear_job *job = &region->jobs[j];
    const int32_t pairs = linear_pairs(job->n);
    const int32_t stop = int_min(pairs, end - base);
    for (int32_t i = int_max(begin - base, 0); i < stop; i += PAIRS) linear_some(job, i, int_min(PAIRS, stop - i), acc);
    base += pairs;
  }
}

typedef struct linear_terms_args linear_terms_args;
/* Writes the terms of tokens [begin, end). */
typedef void linear_terms(const linear_terms_args *a, int32_t begin, int32_t end);

struct linear_terms_args {
  linear_terms *terms;
  const uint8_t *x; /* rows of activations, x_row bytes apart */
  size_t x_row;
  int32_t tokens, k;
  int32_t *out;
};

static void linear_terms_body(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const linear_terms_args *a = args;
  (void)worker;
  a->terms(a, begin, end);
}

/* The terms of all tokens, by many workers where there are many. */
static inline void linear_prepare(const run *r, linear_terms *terms, const uint8_t *x, size_t x_row, int32_t tokens,
                                  int32_t k, int32_t *out) {
  const linear_terms_args args = {terms, x, x_row, tokens, k, out};
  parallel(r, tokens, 64, linear_terms_body, &args);
}

/* All jobs in one region, in pieces of about `chunk` bytes of weights, unless the workers would not all have one; of
 * many tokens in whole PAIRS where each worker has several, so that these share each block of activations. */
static inline void linear_run(const run *r, const linear_job *jobs, int32_t count, size_t chunk, char *scratch,
                              size_t worker_bytes) {
  const linear_region region = {jobs, count, scratch, worker_bytes};
  int32_t pairs = 0;
  size_t bytes = 1;
  for (int32_t j = 0; j < count; j++) {
    const int32_t more = linear_pairs(jobs[j].n);
    pairs += more;
    bytes += (size_t)more * 2 * (jobs[j].panel_bytes + (jobs[j].up ? jobs[j].up->panel_bytes : 0));
  }
  enum { MANY = 32, SEVERAL = 4 };
  int32_t stream = (int32_t)(chunk * (size_t)pairs / bytes) + 1;
  if (jobs[0].tokens >= MANY && pairs >= SEVERAL * PAIRS * r->threads) stream = (stream + PAIRS - 1) / PAIRS * PAIRS;
  const int32_t share = (pairs + r->threads - 1) / r->threads;
  parallel(r, pairs, stream < share ? stream : share, linear_body, &region);
}

/* Fetches bytes that are wanted in a while: the next k-block, since unpacking reads in bursts that the hardware does
 * not foresee, or for one token what lies `Tuning.ahead` bytes on. */
INLINE void prefetch(const uint8_t *p, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}
""")  # fmt: skip


def each(count: int | str, name: str) -> str:
    """C: an unrolled loop over a constant number of things."""
    return f"UNROLL for (int {name} = 0; {name} < {count}; {name}++)"


def tiles(tile: Tile, pointers: Sequence[str], call: str) -> str:
    """C: the loop over tokens, full tiles first, a table choosing the last ones. `call` runs a tile of {T} tokens from
    token t, given `pointers`, declarations that depend on t."""
    largest = tile.tokens[-1]
    if len(tile.tokens) == 1:
        choose = f"        n = job->tokens - t < {largest} ? job->tokens - t : {largest};\n        {call.format(T='n')}"
    else:
        plan = tile.plan()
        cases = "\n".join(f"          case {t}: {call.format(T=t)} break;" for t in tile.tokens)
        choose = f"""\
        static const int8_t next[{len(plan)}] = {{{", ".join(map(str, plan))}}};
        const int32_t left = job->tokens - t;
        switch (n = left < {len(plan)} ? next[left] : {largest}) {{
{cases}
        }}"""
    lines = "\n".join(f"        {p}" for p in pointers)
    return f"      for (int32_t t = 0, n; t < job->tokens; t += n) {{\n{lines}\n{choose}\n      }}"
