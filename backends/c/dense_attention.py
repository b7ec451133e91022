"""Attention over arrays, as `ir.numerics.attention.attention`: scores never leave the caches.

A worker takes a chunk of the queries of one head. It packs the head's keys in panels and its values one after another,
then for `ROWS` queries at a time walks blocks of 256 keys: scores by tiles of the product kernel, exponentials, and the
product with the values. Arrays may be views whose axes are permuted: all is done in strides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from ...ir.graph import Node, Value
from ...ir.target import Target
from ...ir.types import Dim, boolean, f32, floordiv
from .epilogue import named
from .kernels import THREADS, Arg, Call, DimValue, Kernel, Literal, Operand, Result, Run, Scratch
from .product import panels, tiles
from .scalar import literal

ROWS, KEYS = 24, 256

_TEXT = f"""\
/* ---- Attention: out[b, h, i] = softmax(q[b, h, i] k[b, h / group]' * scale + mask) v[b, h / group] ---- */
enum {{ ATTENTION_ROWS = {ROWS}, ATTENTION_SIDE = {-(-ROWS // 16) * 16}, ATTENTION_KEYS = {KEYS} }};

typedef struct dense_attention {{
  const float *q, *k, *v;
  const void *mask;
  float *out;
  int32_t batch, heads, group, queries, keys, width, value_width, chunk;
  int64_t q_step[3], k_step[3], v_step[3], out_step[3]; /* of batch, head and row */
  int64_t mask_step[4];
  int32_t mask_kind, causal; /* 0: none, 1: bool, 2: f32 that is added */
  float scale, softcap;
  char *scratch;
  size_t scratch_bytes;
}} dense_attention;

/* Keys in panels [width][16], the last filled up with zeros. */
static void attention_pack_keys(const dense_attention *a, const float *k, float *panels) {{
  for (int32_t j = 0; j < a->keys; j += 16)
    for (int32_t d = 0; d < a->width; d += 16) {{
      vf32 x[16];
      const int32_t count = int_min(a->width - d, 16);
      for (int32_t l = 0; l < 16; l++)
        x[l] = j + l < a->keys ? f32_load_n(k + (int64_t)(j + l) * a->k_step[2] + d, count) : f32_zero();
      f32_transpose(x);
      for (int32_t l = 0; l < count; l++) f32_store(panels + (size_t)j * (size_t)a->width + (size_t)(d + l) * 16, x[l]);
    }}
}}

/* Values in rows of `wide`, filled up with zeros. */
static void attention_pack_values(const dense_attention *a, const float *v, int32_t wide, float *values) {{
  for (int32_t j = 0; j < a->keys; j++, values += wide) {{
    memcpy(values, v + (int64_t)j * a->v_step[2], (size_t)a->value_width * sizeof *v);
    memset(values + a->value_width, 0, (size_t)(wide - a->value_width) * sizeof *v);
  }}
}}

/* Whether scores but for their scale are products: where not, `attention_score` applies it. */
INLINE int attention_plain(const dense_attention *a) {{
  return a->mask_kind == 0 && a->softcap == 0.0f && a->scale > 0.0f;
}}

/* Scores of one query with up to 64 keys from `key` on, as they enter the softmax: hidden ones are -inf. */
INLINE void attention_score(const dense_attention *a, const char *mask, int64_t limit, int32_t key, int32_t count,
                            float *s) {{
  for (int32_t l = 0; l < count && !attention_plain(a); l += 16) {{
    vf32 x = f32_mul(f32_load(s + l), f32_splat(a->scale));
    if (a->softcap != 0.0f) x = f32_softcap(x, f32_splat(a->softcap));
    f32_store(s + l, x);
  }}
  if (a->mask_kind == 2) {{
    const float *m = (const float *)(const void *)mask + key * a->mask_step[3];
    for (int32_t l = 0; l < count; l++) s[l] += m[l * a->mask_step[3]];
  }}
  if (a->mask_kind == 1) {{
    const uint8_t *m = (const uint8_t *)mask + key * a->mask_step[3];
    for (int32_t l = 0; l < count; l++) s[l] = m[l * a->mask_step[3]] ? s[l] : -INFINITY;
  }}
  for (int64_t l = limit > key ? limit - key : 0; l < GROUP; l++) s[l] = -INFINITY;
  for (int32_t l = count; l < GROUP; l++) s[l] = -INFINITY;
}}

enum {{ EXP_GROUPS = REGISTERS >= 32 ? 2 : 1 }}; /* whose exponentials are computed side by side */

/* One query's scores s of some groups to exp(s * scale - highest); gives sum + them, one after another. */
INLINE vf32 attention_exponentials(const int groups, float *s, vf32 scale, vf32 highest, vf32 sum) {{
  enum {{ WORDS = GROUP / 16, NEXT = ATTENTION_ROWS * GROUP }};
  vf32 p[EXP_GROUPS * WORDS];
  UNROLL for (int i = 0; i < groups * WORDS; i++)
    p[i] = f32_sub(f32_mul(f32_load(s + i / WORDS * NEXT + i % WORDS * 16), scale), highest);
  f32_exp_fused_each(p, groups * WORDS);
  UNROLL for (int i = 0; i < groups * WORDS; i++) {{
    sum = f32_add(sum, p[i]);
    f32_store(s + i / WORDS * NEXT + i % WORDS * 16, p[i]);
  }}
  return sum;
}}

/* Lane i is the greatest lane, or the sum of the lanes, of x[i]. */
INLINE vf32 f32_hmax_each(vf32 *x) {{
  f32_transpose(x);
  UNROLL for (int n = 8; n; n >>= 1)
    UNROLL for (int i = 0; i < n; i++) x[i] = f32_max(x[i], x[i + n]);
  return x[0];
}}
INLINE vf32 f32_sum_each(vf32 *x) {{
  f32_transpose(x);
  UNROLL for (int n = 8; n; n >>= 1)
    UNROLL for (int i = 0; i < n; i++) x[i] = f32_add(x[i], x[i + n]);
  return x[0];
}}

/* Scores of `count` keys from `block` on to exp(score - highest), in place; the highest and the sum of each row. */
INLINE void attention_softmax(const dense_attention *a, const char *mask, int32_t first, int32_t rows, int32_t block,
                              int32_t count, float *scores, float *highest, float *sums) {{
  const int32_t groups = (count + GROUP - 1) / GROUP;
  const vf32 scale = f32_splat(attention_plain(a) ? a->scale : 1.0f);
  for (int32_t from = 0; from < rows; from += 16) {{
    const int32_t some = int_min(rows - from, 16);
    vf32 most[16], sum[16];
    for (int32_t i = 0; i < 16; i++) most[i] = f32_splat(-INFINITY), sum[i] = f32_zero();
    for (int32_t i = 0; i < some; i++) {{
      const int32_t query = first + from + i;
      const int64_t limit = a->causal ? (int64_t)query + 1 + a->keys - a->queries : a->keys;
      const char *row = mask + query * a->mask_step[2] * (a->mask_kind == 2 ? 4 : 1);
      float *s = scores + (from + i) * GROUP;
      for (int32_t g = 0; g < groups; g++, s += ATTENTION_ROWS * GROUP) {{
        attention_score(a, row, limit, block + g * GROUP, int_min(count - g * GROUP, GROUP), s);
        UNROLL for (int l = 0; l < GROUP; l += 16) most[i] = f32_max(most[i], f32_load(s + l));
      }}
    }}
    f32_store(highest + from, f32_mul(f32_hmax_each(most), scale));
    for (int32_t i = 0; i < some; i++) {{
      float *s = scores + (from + i) * GROUP;
      const vf32 m = f32_splat(highest[from + i]);
      int32_t g = 0;
      for (; g + EXP_GROUPS <= groups; g += EXP_GROUPS, s += EXP_GROUPS * ATTENTION_ROWS * GROUP)
        sum[i] = attention_exponentials(EXP_GROUPS, s, scale, m, sum[i]);
      for (; g < groups; g++, s += ATTENTION_ROWS * GROUP) sum[i] = attention_exponentials(1, s, scale, m, sum[i]);
    }}
    f32_store(sums + from, f32_sum_each(sum));
  }}
}}

/* What some rows have of the keys so far: the highest score, the sum of exponentials and of values times them. */
typedef struct attention_total {{
  float highest[ATTENTION_SIDE], sums[ATTENTION_SIDE], *values;
  int begun[ATTENTION_ROWS];
}} attention_total;

/* Adds what they have of one more block. */
INLINE void attention_merge(attention_total *t, int32_t rows, int32_t wide, const float *highest, const float *sums,
                            const float *values) {{
  float before[ATTENTION_SIDE], now[ATTENTION_SIDE];
  for (int32_t r = 0; r < rows; r += 16) {{ /* not read where a row has not begun */
    const vf32 old = f32_load(t->highest + r), new = f32_load(highest + r), m = f32_max(old, new);
    vf32 factors[2] = {{f32_sub(old, m), f32_sub(new, m)}};
    f32_exp_each(factors, 2);
    f32_store(before + r, factors[0]), f32_store(now + r, factors[1]);
  }}
  for (int32_t r = 0; r < rows; r++) {{
    if (!(highest[r] > -INFINITY)) continue; /* no key that it sees */
    float *old = t->values + r * GROUP;
    const float *new = values + r * GROUP;
    if (!t->begun[r]) {{
      for (int32_t c = 0; c < wide; c += GROUP)
        memcpy(old + c * ATTENTION_ROWS, new + c * ATTENTION_ROWS, GROUP * sizeof *old);
      t->highest[r] = highest[r], t->sums[r] = sums[r], t->begun[r] = 1;
      continue;
    }}
    for (int32_t c = 0; c < wide * ATTENTION_ROWS; c += GROUP * ATTENTION_ROWS)
      for (int i = 0; i < GROUP; i++) old[c + i] = old[c + i] * before[r] + new[c + i] * now[r];
    t->sums[r] = t->sums[r] * before[r] + sums[r] * now[r];
    t->highest[r] = t->highest[r] > highest[r] ? t->highest[r] : highest[r];
  }}
}}

/* out[rows] of the queries from `first` on. */
static void attention_rows(const dense_attention *a, const float *q, const float *values, const char *mask,
                           float *out, int32_t first, int32_t rows, const float *panels, float *scores, float *parts,
                           float *total) {{
  const float *at[ATTENTION_ROWS * (ATTENTION_KEYS / GROUP)];
  attention_total t = {{.values = total}};
  const int32_t width = a->value_width, wide = (width + GROUP - 1) / GROUP * GROUP;
  const int64_t visible = a->causal ? (int64_t)first + rows + a->keys - a->queries : a->keys;
  const int32_t end = visible < a->keys ? (int32_t)visible : a->keys;
  for (int32_t block = 0; block < end; block += ATTENTION_KEYS) {{
    const int32_t count = int_min(end - block, ATTENTION_KEYS), groups = (count + GROUP - 1) / GROUP;
    const int32_t whole = count / GROUP, left = count % GROUP;
    float highest[ATTENTION_SIDE], sums[ATTENTION_SIDE];
    for (int32_t r = 0; r < rows; r++) at[r] = q + (int64_t)(first + r) * a->q_step[2];
    for (int32_t g = 0; g < groups; g++) {{
      const int32_t key = block + g * GROUP, panel_count = (int_min(count - g * GROUP, GROUP) + 15) / 16;
      const product_block b = {{panels + (size_t)key * (size_t)a->width, at, scores + g * ATTENTION_ROWS * GROUP, 16,
                               (size_t)a->width * 16, 0, 1, 1, 0, a->width, 1, 0, 0, NULL}};
      product_panels(NULL, b, panel_count, 0, rows, 0, 0);
    }}
    attention_softmax(a, mask, first, rows, block, count, scores, highest, sums);
    for (int32_t r = 0; r < rows; r++)
      for (int32_t g = 0; g < groups; g++) at[r * groups + g] = scores + (g * ATTENTION_ROWS + r) * GROUP;
    for (int32_t column = 0; column < width; column += GROUP) {{
      const int32_t panel_count = (int_min(width - column, GROUP) + 15) / 16;
      product_block b = {{values + (size_t)block * (size_t)wide + column, at, parts + column * ATTENTION_ROWS,
                         (size_t)wide, 16, (size_t)wide * GROUP, groups, whole, 0, GROUP, 1, 0, 0, NULL}};
      if (whole) product_panels(NULL, b, panel_count, 0, rows, 0, 0);
      if (!left) continue;
      b.w += (size_t)whole * b.w_run, b.at += whole, b.runs = 1, b.count = left, b.start = !whole;
      product_panels(NULL, b, panel_count, 0, rows, 0, 0);
    }}
    attention_merge(&t, rows, wide, highest, sums, parts);
  }}
  for (int32_t r = 0; r < rows; r++) {{
    float *to = out + (int64_t)(first + r) * a->out_step[2];
    for (int32_t c = 0; c < width; c += GROUP) {{
      const float *from = total + (c * ATTENTION_ROWS + r * GROUP);
      for (int32_t i = 0; i < int_min(width - c, GROUP); i++) to[c + i] = t.begun[r] ? from[i] / t.sums[r] : 0.0f;
    }}
  }}
}}

static void dense_attention_part(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const dense_attention *a = args;
  const int32_t chunks = (a->queries + a->chunk - 1) / a->chunk, wide = (a->value_width + GROUP - 1) / GROUP * GROUP;
  float *scores = (float *)(void *)(a->scratch + (size_t)worker * a->scratch_bytes);
  float *parts = scores + ATTENTION_ROWS * ATTENTION_KEYS, *total = parts + ATTENTION_ROWS * wide;
  float *panels = total + ATTENTION_ROWS * wide, *values = panels + (size_t)(a->keys + 15) / 16 * 16 * (size_t)a->width;
  int32_t packed = -1;
  for (int32_t i = begin; i < end; i++) {{
    const int32_t head = i / chunks % a->heads, b = i / chunks / a->heads, other = head / a->group;
    const int32_t whole = b * a->heads + other;
    if (whole != packed) {{
      attention_pack_keys(a, a->k + b * a->k_step[0] + other * a->k_step[1], panels);
      attention_pack_values(a, a->v + b * a->v_step[0] + other * a->v_step[1], wide, values);
    }}
    packed = whole;
    const int64_t mask_at = b * a->mask_step[0] + head * a->mask_step[1];
    const char *mask = a->mask ? (const char *)a->mask + mask_at * (a->mask_kind == 2 ? 4 : 1) : "";
    const int32_t from = i % chunks * a->chunk, to = int_min(from + a->chunk, a->queries);
    for (int32_t row = from; row < to; row += ATTENTION_ROWS)
      attention_rows(a, a->q + b * a->q_step[0] + head * a->q_step[1], values, mask,
                     a->out + b * a->out_step[0] + head * a->out_step[1], row, int_min(to - row, ATTENTION_ROWS),
                     panels, scores, parts, total);
  }}
}}

static void dense_attention_run(const run *r, const dense_attention *a) {{
  const int64_t work = (int64_t)a->queries * a->keys * (a->width + a->value_width) * a->heads * a->batch;
  const int32_t count = (a->queries + a->chunk - 1) / a->chunk * a->heads * a->batch;
  parallel(r, count, work < 500000 ? count : 1, dense_attention_part, a);
}}
"""

_CALL = Kernel("dense_attention_call", """\
static void dense_attention_call(const run *r, const dense_attention *shape, const float *q, const float *k,
                                 const float *v, const void *mask, float *out, void *scratch) {
  dense_attention a = *shape;
  a.q = q, a.k = k, a.v = v, a.mask = mask, a.out = out, a.scratch = scratch;
  dense_attention_run(r, &a);
}
""")


def strides(shape: Sequence[Dim]) -> list[Dim]:
    """How many elements lie between neighbours along each axis of a row-major array."""
    return [prod(shape[n + 1 :], start=1) for n in range(len(shape))]


def attend(node: Node, anchor: Node, views: Mapping[Value, tuple[int, ...]], out: tuple[int, ...],
           operands: Mapping[Value, int], target: Target) -> Call:  # fmt: skip
    """The call for an `attention` whose operands are those of `node`, permuted: axis i of an operand is axis views[i]
    of what the node is given, and `out` likewise of what it gives."""
    q, k, v, *mask = anchor.inputs
    batch, heads, queries, width = q.shape
    keys, value_width = k.shape[2], v.shape[3]

    def steps(value: Value) -> list[Dim]:
        permutation = views.get(value, (0, 1, 2, 3))
        shape: list[Dim] = [0] * 4
        for axis, source in enumerate(permutation):
            shape[source] = value.shape[axis]
        flat = strides(shape)
        return [flat[source] for source in permutation]

    given = [steps(value) for value in (q, k, v)]
    made: list[Dim] = [0] * 4
    for axis, place in enumerate(out):
        made[place] = anchor.types[0].shape[axis]
    flat = strides(made)
    given.append([flat[place] for place in out])
    for s in given:
        if s[3] != 1:
            raise ValueError("a head's values must be adjacent")
    masked: list[Dim] = [0] * 4
    if mask:
        masked = [0 if size == 1 else step for size, step in zip(mask[0].shape, strides(mask[0].shape))]
    kind = 0 if not mask else 1 if mask[0].dtype == boolean else 2
    chunk = _chunk(batch, heads, queries)
    scratch_bytes = 4 * (ROWS * KEYS + 2 * ROWS * 64 * floordiv(value_width + 63, 64)
                         + floordiv(keys + 15, 16) * 16 * width
                         + keys * 64 * floordiv(value_width + 63, 64))  # fmt: skip
    scratch_bytes = floordiv(scratch_bytes + 63, 64) * 64
    shared = k.shape[1]
    assert isinstance(heads, int) and isinstance(shared, int)
    numbers: list[Dim] = [batch, heads, heads // shared, queries, keys, width, value_width, chunk]
    pointers = [*(s[n] for s in given for n in range(3)), *masked]
    kernel, args = _shape(numbers, pointers, kind, anchor, scratch_bytes, target)
    which = [Operand(operands[value]) for value in (q, k, v)]
    masks: list[Arg] = [Operand(operands[mask[0]])] if mask else [Literal("NULL")]
    return Call(kernel, (Run(), *args, *which, *masks, Result(), Scratch()), THREADS * scratch_bytes, regions=1)


def _shape(numbers: Sequence[Dim], steps: Sequence[Dim], kind: int, anchor: Node, scratch_bytes: Dim,
           target: Target) -> tuple[Kernel, list[Arg]]:  # fmt: skip
    """The function of one shape; what is known only at run time is passed."""
    dims = [*numbers, *steps, scratch_bytes]
    unknown = [d for d in dict.fromkeys(dims) if not isinstance(d, int)]
    text = {d: str(d) if isinstance(d, int) else f"n{unknown.index(d)}" for d in dims}
    parameters = "".join(f"int32_t {text[d]}, " for d in unknown)
    listed = ", ".join(text[d] for d in numbers)
    rows = ", ".join("{" + ", ".join(text[d] for d in steps[n : n + 3]) + "}" for n in range(0, 12, 3))
    mask = ", ".join(text[d] for d in steps[12:])
    scale, softcap = (literal(anchor.attr(name), f32) for name in ("scale", "softcap"))
    name = "attention_" + "x".join(text[d] for d in numbers[:-1])
    body = (f"{{NULL, NULL, NULL, NULL, NULL, {listed}, {rows}, {{{mask}}}, {kind}, {int(anchor.attr('causal'))}, "
            f"{scale}, {softcap}, NULL, (size_t){text[scratch_bytes]}}}")  # fmt: skip
    source = f"""\
/* Attention of {', '.join(str(v.type) for v in anchor.inputs)} */
static void @(const run *r, {parameters}const float *q, const float *k, const float *v, const void *mask, float *out,
    void *scratch) {{
  const dense_attention shape = {body};
  dense_attention_call(r, &shape, q, k, v, mask, out, scratch);
}}
"""
    shared = Kernel("dense_attention_run", _TEXT, (panels(tiles(target)),))
    call = Kernel(_CALL.symbol, _CALL.source, (shared,))
    return named(source, name, (call,)), [DimValue(d) for d in unknown]


def _chunk(batch: Dim, heads: Dim, queries: Dim) -> Dim:
    """Queries of a chunk: whole heads where there are enough of them for two workers to have equal shares."""
    if not all(isinstance(d, int) for d in (batch, heads, queries)):
        return 4 * ROWS
    assert isinstance(batch, int) and isinstance(heads, int) and isinstance(queries, int)
    chunks = 1
    while batch * heads * chunks % 2 and queries // (chunks + 1) >= ROWS or batch * heads * chunks < 4 and (
        queries // (chunks + 1) >= 2 * ROWS):  # fmt: skip
        chunks += 1
    each = -(-queries // chunks)
    return -(-each // ROWS) * ROWS


def attention(node: Node, target: Target) -> Call:
    """q[B, H, Tq, D], k, v [B, Hkv, Tk, D], mask -> f32[B, H, Tq, Dv]."""
    return attend(node, node, {}, (0, 1, 2, 3), {v: i for i, v in enumerate(node.inputs)}, target)


LOWERINGS = {"attention": attention}
