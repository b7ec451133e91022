"""Attention of a few query rows over one block of 256 keys: products, softmax, sum of values; partials and their merge.

Rows never mix, and every sum is one chain in the order that `ir.numerics.attention` says, so the shape of a tile
changes no bit. A tile is rows by keys, or rows by values: as many sums as the registers hold, so many chains that they
hide an addition's latency.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.types import DType
from .kernels import Kernel

TILE_ROWS = 12  # at most, on any target
_SIZES = (12, 8, 6, 4, 3, 2, 1)  # numbers of rows that code is unrolled for

ROWS = Kernel("attention_rows", """\
/* Sums that the registers hold; query rows that share a load of K or V, at most if those are f32, or are as the cache
 * holds them; vectors that exp takes at a time. */
enum {
  TILE_SUMS = REGISTERS >= 32 ? 24 : REGISTERS >= 8 ? 6 : 2,
  TILE_ROWS = TILE_SUMS > 12 ? 12 : TILE_SUMS,
  STREAM_ROWS = TILE_ROWS > 6 ? 6 : TILE_ROWS,
  EXP_WIDTH = REGISTERS >= 32 ? 4 : 1,
};

/* Panels of 16 keys, or of 16 values, that a tile of so many rows takes at a time. */
INLINE int tile_width(int rows) { return 4 * rows <= TILE_SUMS ? 4 : 2 * rows <= TILE_SUMS ? 2 : 1; }

/* How many rows a tile of `count` is computed as: the sizes that code is unrolled for. */
static inline int tile_rows(int32_t count) {
  return count <= 4 ? count : count <= 6 ? 6 : count <= 8 ? 8 : 12;
}

/* Fetches `bytes`, at least a line, into the second-level cache. */
INLINE void attention_fetch(const uint8_t *p, int bytes) {
  UNROLL for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

/* The first values of 16, which may be the end of the memory. */
INLINE vf32 attention_end(const uint8_t *v, int count) {
  uint16_t end[16] = {0};
  memcpy(end, v, (size_t)count * sizeof *end);
  return f32_load_f16(end);
}

/* p to exp(p - m), of `count` times 16; gives sum + them, one after another. */
INLINE vf32 attention_exp(float *p, const int count, float m, vf32 sum) {
  vf32 e[EXP_WIDTH];
  UNROLL for (int i = 0; i < count; i++) e[i] = f32_sub(f32_load(p + 16 * i), f32_splat(m));
  f32_exp_each(e, count);
  UNROLL for (int i = 0; i < count; i++) {
    f32_store(p + 16 * i, e[i]);
    sum = f32_add(sum, e[i]);
  }
  return sum;
}

/* One row's products p[from .. to), multiples of 16, to exp(score - m), zero outside of low .. high; gives m and l. */
static void attention_softmax(float *p, int32_t from, int32_t to, int32_t low, int32_t high, float scale, float cap,
    float *m, float *l) {
  static const float LANE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const vf32 lane = f32_load(LANE), none = f32_splat(-INFINITY);
  const vf32 before = f32_splat((float)(low - 1)), after = f32_splat((float)(high + 1));
  vf32 largest = none, sum = f32_zero();
  for (int32_t key = from; key < to; key += 16) {
    vf32 score = f32_mul(f32_load(p + key), f32_splat(scale));
    if (cap != 0.0f) score = f32_softcap(score, f32_splat(cap));
    if (key < low || key + 15 > high) {
      const vf32 at = f32_add(lane, f32_splat((float)key));
      score = f32_select_gt(at, before, f32_select_gt(after, at, score, none), none);
    }
    f32_store(p + key, score);
    largest = f32_max(largest, score);
  }
  *m = f32_hmax(largest);
  int32_t key = from;
  for (; key + 16 * EXP_WIDTH <= to; key += 16 * EXP_WIDTH) sum = attention_exp(p + key, EXP_WIDTH, *m, sum);
  for (; key < to; key += 16) sum = attention_exp(p + key, 1, *m, sum);
  *l = f32_sum(sum);
}

/* (m, l) of the keys of both partials of each row, 16 at most, into the first, and what their o count in the sum. */
static inline void merge_rows(int rows, float *m, float *l, const float *m2, const float *l2, float *scale,
    float *scale2) {
  const vf32 a = f32_load_n(m, rows), b = f32_load_n(m2, rows), largest = f32_max(a, b);
  const vf32 of_a = f32_exp(f32_sub(a, largest)), of_b = f32_exp(f32_sub(b, largest));
  f32_store_n(m, largest, rows);
  f32_store_n(l, f32_add(f32_mul(f32_load_n(l, rows), of_a), f32_mul(f32_load_n(l2, rows), of_b)), rows);
  f32_store_n(scale, of_a, rows);
  f32_store_n(scale2, of_b, rows);
}

static inline void merge_values(float *o, const float *o2, float scale, float scale2, int32_t size) {
  for (int32_t d = 0; d < size; d++) o[d] = o[d] * scale + o2[d] * scale2;
}
""")


def _by_rows(function: str, args: str, wide: bool) -> str:
    """C: a call for each number of rows."""
    most = "TILE_ROWS" if wide else "STREAM_ROWS"
    cases = (f"if ({most} >= {n} && rows == {n}) {function}({n}, {args});" for n in _SIZES if wide or n <= 6)
    return "\n  else ".join(cases)


@dataclass(frozen=True)
class _Storage:
    """How a tile reads panel j of K at element `g + d`, and value `at + 16 * j` of V's key; `k` and `v` are bytes.

    `k_bytes` are those of an element of 16 keys, and `group` elements of a key share a scale (0: none). `end` reads the
    values that a row has beyond a multiple of 16. `widen` is the body of `widen_kernel`.
    """

    k_bytes: int
    key: str
    value: str
    end: str = ""
    group: int = 0
    key_scale: str = ""
    value_scale: str = ""
    widen: str = ""


def _f32(d: int, dv: int) -> _Storage:
    return _Storage(
        64,
        key=f"f32_load((const float *)(const void *)k + {16 * d} * j + 16 * d)",
        value=f"f32_load((const float *)(const void *)v + key * {dv} + at + 16 * j)",
        end=f"f32_load_n((const float *)(const void *)v + key * {dv} + at, {dv % 16})",
    )


def _f16(d: int, dv: int) -> _Storage:
    return _Storage(
        32,
        key=f"f32_load_f16((const void *)(k + {32 * d} * j + 32 * d))",
        value=f"f32_load_f16((const void *)(v + 2 * (key * {dv} + at + 16 * j)))",
        end=f"attention_end(v + 2 * (key * {dv} + at), {dv % 16})",
        widen=f"""\
  for (int i = from * {d}; i < to * {d}; i += 16) f32_store(wide_k + i, f32_load_f16((const void *)(k + 2 * i)));
  for (int i = from * {dv}; i < to * {dv}; i += 16) f32_store(wide_v + i, f32_load_f16((const void *)(v + 2 * i)));
""",
    )


def _q8_0(d: int, dv: int) -> _Storage:
    groups = dv // 32
    return _Storage(
        17,
        group=32,
        key=f"f32_mul(scale[j], f32_load_s8((const void *)(k + {17 * d} * j + 17 * g + 32 + 16 * d)))",
        value=f"f32_mul(f32_splat(scale[key * {groups} + (at + 16 * j) / 32]), "
              f"f32_load_s8((const void *)(v + key * {dv} + at + 16 * j)))",
        key_scale=f"""
    vf32 scale[4];
    UNROLL for (int j = 0; j < width; j++) scale[j] = f32_load_f16((const void *)(k + {17 * d} * j + 17 * g));""",
        value_scale=f"""
  float scale[{256 * groups}];
  for (int i = (from * {groups}) & ~15; i < to * {groups}; i += 16)
    f32_store(scale + i, f32_load_f16((const void *)(v + {256 * dv} + 2 * i)));""",
        widen=f"""\
  for (int i = from * {d}; i < to * {d}; i += 512) {{
    const uint8_t *group = k + i / 512 * 544;
    const vf32 scale = f32_load_f16((const void *)group);
    for (int j = 0; j < 512; j += 16)
      f32_store(wide_k + i + j, f32_mul(scale, f32_load_s8((const void *)(group + 32 + j))));
  }}
  for (int i = from * {groups}; i < to * {groups}; i++) {{
    const vf32 scale = f32_splat(f16_value(((const uint16_t *)(const void *)(v + {256 * dv}))[i]));
    f32_store(wide_v + 32 * i, f32_mul(scale, f32_load_s8((const void *)(v + 32 * i))));
    f32_store(wide_v + 32 * i + 16, f32_mul(scale, f32_load_s8((const void *)(v + 32 * i + 16))));
  }}
""",
    )  # fmt: skip


_STORAGE = {"f32": _f32, "f16": _f16, "q8_0": _q8_0}


def widen_kernel(d: int, dv: int, dtype: DType) -> Kernel:
    """K and V of a block, stored as `dtype`, to f32: what many rows read. Keys from .. to, multiples of 16."""
    name = f"widen_{_sizes(d, dv)}_{dtype}"
    return Kernel(name, f"""\
static void {name}(const uint8_t *k, const uint8_t *v, int32_t from, int32_t to, float *wide_k, float *wide_v) {{
{_STORAGE[dtype.name](d, dv).widen}}}
""")


def _sizes(d: int, dv: int) -> str:
    return f"{d}" + (f"_{dv}" if dv != d else "")


def block_kernel(d: int, dv: int, dtype: DType, wide: bool) -> Kernel:
    """Some query rows against one block of keys of size `d` and values of size `dv`, from a cache of `dtype`.

    If `wide`, of what `widen_kernel` gives and up to TILE_ROWS; else of what the cache holds and up to STREAM_ROWS.
    """
    name = f"attend_{_sizes(d, dv)}_{dtype}" + ("_wide" if wide else "")
    storage = _STORAGE["f32" if wide else dtype.name](d, dv)
    group, step = storage.group or d, storage.k_bytes
    ahead_k, ahead_v = (16 * size // dtype.block * dtype.block_bytes // size for size in (d, dv))
    scale, of = (", const float *scale", ", scale") if storage.value_scale else ("", "")
    value, last = storage.value, ""
    if dv % 16:
        value = f"count < 16 ? {storage.end} : {value}"
        last = f"\n  {name}_sums(rows, 1, {dv % 16}, p, v{of}, at, from, to, o, ahead);"
    scores = _by_rows(f"{name}_scores", "q, k, p, from, to, ahead", wide)
    values = _by_rows(f"{name}_values", f"p, v{of}, from, to, o, ahead", wide)
    return Kernel(name, f"""\
/* p[rows][256] at `key`: q [{d}][rows] times `width` panels of 16 keys, each product a chain over d. */
INLINE void {name}_products(const int rows, const int width, const float *q, const uint8_t *k, float (*p)[256],
    int32_t key, const uint8_t *ahead) {{
  vf32 s[TILE_ROWS][4];
  k += key / 16 * {step * d}, ahead += key / 16 * {ahead_k * d};
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < width; j++) s[i][j] = f32_zero();
  for (int g = 0; g < {d}; g += {group}) {{{storage.key_scale}
    for (int d = 0; d < {group}; d++, ahead += {ahead_k} * width) {{
      vf32 keys[4];
      UNROLL for (int j = 0; j < width; j++) keys[j] = {storage.key};
      attention_fetch(ahead, {ahead_k} * width);
      UNROLL for (int i = 0; i < rows; i++) {{
        const vf32 x = f32_splat(q[(g + d) * rows + i]);
        UNROLL for (int j = 0; j < width; j++) s[i][j] = f32_add(s[i][j], f32_mul(x, keys[j]));
      }}
    }}
  }}
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < width; j++) f32_store(p[i] + key + 16 * j, s[i][j]);
}}

INLINE void {name}_scores(const int rows, const float *q, const uint8_t *k, float (*p)[256], int32_t from, int32_t to,
    const uint8_t *ahead) {{
  const int width = tile_width(rows);
  int32_t key = from;
  for (; key + 16 * width <= to; key += 16 * width) {name}_products(rows, width, q, k, p, key, ahead);
  for (; key < to; key += 16) {name}_products(rows, 1, q, k, p, key, ahead);
}}

/* o[rows][{dv}] at `at` += p * v of keys from .. to: `width` times 16 values, or `count`, each a chain over keys. */
INLINE void {name}_sums(const int rows, const int width, const int count, float (*p)[256], const uint8_t *v{scale},
    int at, int32_t from, int32_t to, float (*o)[{dv}], const uint8_t *ahead) {{
  vf32 sum[TILE_ROWS][4];
  ahead += at * {16 * ahead_v} + from * width * {ahead_v};
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < width; j++) sum[i][j] = f32_load_n(o[i] + at + 16 * j, count);
  for (int32_t key = from; key < to; key++, ahead += {ahead_v} * width) {{
    vf32 values[4];
    UNROLL for (int j = 0; j < width; j++) values[j] = {value};
    attention_fetch(ahead, {ahead_v} * width);
    UNROLL for (int i = 0; i < rows; i++) {{
      const vf32 x = f32_splat(p[i][key]);
      UNROLL for (int j = 0; j < width; j++) sum[i][j] = f32_add(sum[i][j], f32_mul(x, values[j]));
    }}
  }}
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < width; j++) f32_store_n(o[i] + at + 16 * j, sum[i][j], count);
}}

INLINE void {name}_values(const int rows, float (*p)[256], const uint8_t *v{scale}, int32_t from, int32_t to,
    float (*o)[{dv}], const uint8_t *ahead) {{
  const int width = tile_width(rows);
  int at = 0;
  for (; at + 16 * width <= {dv}; at += 16 * width)
    {name}_sums(rows, width, 16, p, v{of}, at, from, to, o, ahead);
  for (; at + 16 <= {dv}; at += 16) {name}_sums(rows, 1, 16, p, v{of}, at, from, to, o, ahead);{last}
}}

/* One function for each number of rows, so that their sums stay in registers. */
static void {name}_all_scores(int rows, const float *q, const uint8_t *k, float (*p)[256], int32_t from, int32_t to,
    const uint8_t *ahead) {{
  {scores}
}}

static void {name}_all_values(int rows, float (*p)[256], const uint8_t *v{scale}, int32_t from, int32_t to,
    float (*o)[{dv}], const uint8_t *ahead) {{
  if (from >= to) return;
  {values}
}}

/* The partial (m, l, o) of each row over a block, where row i sees keys low[i] .. high[i], none if low > high. It
 * fetches what is wanted next: a block of K or V while it multiplies by K, and another while it sums V. */
static void {name}(int rows, const float *q, const uint8_t *k, const uint8_t *v, const uint8_t *ahead_k,
    const uint8_t *ahead_v, const int32_t *low, const int32_t *high, float factor, float cap, float *m, float *l,
    float (*o)[{dv}]) {{
  float p[{"TILE" if wide else "STREAM"}_ROWS][256];
  int32_t from = 256, to = 0, shared_from = 0, shared_to = 256; /* keys that some row sees, and that every row sees */
  for (int i = 0; i < rows; i++) {{
    if (low[i] <= high[i]) from = int_min(from, low[i]), to = int_max(to, high[i] + 1);
    shared_from = int_max(shared_from, low[i]), shared_to = int_min(shared_to, high[i] + 1);
  }}
  if (shared_from >= shared_to) shared_from = shared_to = to;
  const int32_t first = from & ~15, end = (to + 15) & ~15;{storage.value_scale}
  {name}_all_scores(rows, q, k, p, first, end, ahead_k);
  for (int i = 0; i < rows; i++) attention_softmax(p[i], first, end, low[i], high[i], factor, cap, &m[i], &l[i]);
  memset(o, 0, (size_t)rows * sizeof *o);
  for (int i = 0; i < rows; i++)
    {name}_all_values(1, p + i, v{of}, low[i], int_min(shared_from, high[i] + 1), o + i, ahead_v);
  {name}_all_values(rows, p, v{of}, shared_from, shared_to, o, ahead_v);
  for (int i = 0; i < rows; i++) {name}_all_values(1, p + i, v{of}, shared_to, high[i] + 1, o + i, ahead_v);
}}
""", (ROWS,))  # fmt: skip
