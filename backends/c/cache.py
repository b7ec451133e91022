"""Writes to the KV cache: pages of 256 positions, keys as panels of 16 and values as rows, of f16 or q8_0.

In its page, K of a layer is [kv_head][16 panels] and V is [kv_head]. Of f16, a panel is [head size][16 keys], and V of
a head [256 positions][head size]. Of q8_0, a panel is [head size / 32] of 16 keys' f16 scales and [32][16 keys] int8,
and V of a head [256 positions][head size] int8, then [256 positions][head size / 32] f16 scales.
"""

from __future__ import annotations

from ...ir.graph import IRError, Node
from ...ir.target import Target
from ...ir.types import DType, f16
from .kernels import THREADS, Arg, Call, DimValue, Kernel, Operand, Run, Scratch
from .rope import rope_row

_Q8_0 = Kernel("quantize_q8_0", """\
/* x[32] as int8; gives their scale in f16 */
static inline uint16_t quantize_q8_0(const float *x, int8_t *q) {
  const vf32 low = f32_load(x), high = f32_load(x + 16), most = f32_splat(127.0f), least = f32_splat(-127.0f);
  const float amax = f32_hmax(f32_max(f32_abs(low), f32_abs(high)));
  const int some = amax > 1e-30f;
  const vf32 inverse = f32_splat(some ? 127.0f / amax : 0.0f);
  i32_store_s8(q, i32_from_f32(f32_rint(f32_min(f32_max(f32_mul(low, inverse), least), most))));
  i32_store_s8(q + 16, i32_from_f32(f32_rint(f32_min(f32_max(f32_mul(high, inverse), least), most))));
  return f16_bits(some ? amax / 127.0f : 0.0f);
}
""")

_STORE = {
    ("k", "f16"): Kernel("store_key", """\
/* x[size] as key `at` of a head's panels in a page */
static inline void store_key(const float *x, int32_t size, int32_t at, void *head) {
  uint16_t *panel = (uint16_t *)head + (size_t)(at >> 4) * 16 * size + (at & 15), half[16];
  for (int32_t d = 0; d < size; d += 16) {
    const int count = size - d < 16 ? size - d : 16;
    f32_store_f16(half, f32_load_n(x + d, count));
    for (int i = 0; i < count; i++) panel[(size_t)(d + i) * 16] = half[i];
  }
}
"""),
    ("v", "f16"): Kernel("store_value", """\
/* x[size] as value `at` of a head in a page */
static inline void store_value(const float *x, int32_t size, int32_t at, void *head) {
  uint16_t *row = (uint16_t *)head + (size_t)at * size, half[16];
  for (int32_t d = 0; d < size; d += 16) {
    const int count = size - d < 16 ? size - d : 16;
    f32_store_f16(half, f32_load_n(x + d, count));
    memcpy(row + d, half, (size_t)count * sizeof *row);
  }
}
"""),
    ("k", "q8_0"): Kernel("store_key_q8_0", """\
/* x[size] as key `at` of a head's panels in a page */
static inline void store_key_q8_0(const float *x, int32_t size, int32_t at, void *head) {
  uint8_t *group = (uint8_t *)head + (size_t)(at >> 4) * 17 * size;
  for (int32_t d = 0; d < size; d += 32, group += 17 * 32) {
    int8_t q[32];
    const uint16_t scale = quantize_q8_0(x + d, q);
    memcpy(group + 2 * (at & 15), &scale, sizeof scale);
    for (int i = 0; i < 32; i++) group[32 + 16 * i + (at & 15)] = (uint8_t)q[i];
  }
}
""", (_Q8_0,)),
    ("v", "q8_0"): Kernel("store_value_q8_0", """\
/* x[size] as value `at` of a head in a page */
static inline void store_value_q8_0(const float *x, int32_t size, int32_t at, void *head) {
  int8_t *row = (int8_t *)head + (size_t)at * size;
  uint16_t *scale = (uint16_t *)head + (size_t)128 * size + (size_t)at * (size / 32);
  for (int32_t d = 0; d < size; d += 32) *scale++ = quantize_q8_0(x + d, row + d);
}
""", (_Q8_0,)),
}  # fmt: skip


def _kernel(kind: str, dtype: DType, style: str = "") -> Kernel:
    """Writes x[tokens, heads, size], rotated in `style` if there is one, to the cache."""
    store = _STORE[kind, dtype.name]
    name = f"cache_write_{kind}" + ("" if dtype == f16 else f"_{dtype}") + (f"_rope_{style}" if style else "")
    row_bytes = 256 * dtype.block_bytes // dtype.block  # in a head's page, for each of `size`
    rotation = f"""
      rope_row_{style}(x, a->cos + (size_t)t * a->n, a->sin + (size_t)t * a->n, a->n, a->size, turned);
      x = turned;""" if style else ""  # fmt: skip
    extra = ", int32_t n, void *scratch" if style else ""
    angles = "const float *cos, const float *sin, " if style else ""
    return Kernel(name, f"""\
typedef struct {{
  const run *r;
  int32_t heads, size;
  const cache_region *region;
  const float *x;
  const int32_t *sequence, *position;{'''
  int32_t n;
  const float *cos, *sin;
  float *scratch;''' if style else ""}
}} {name}_args;

static void {name}_tokens(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const {name}_args *a = args;
  {"float *turned = a->scratch + (size_t)worker * a->size;" if style else "(void)worker;"}
  for (int32_t t = begin; t < end; t++) {{
    if (a->sequence[t] < 0 || a->sequence[t] >= a->r->session_count) continue;
    char *page = cache_page(a->r->sessions[a->sequence[t]], a->region, a->position[t] >> 8);
    for (int32_t h = 0; h < a->heads; h++) {{
      const float *x = a->x + ((size_t)t * a->heads + h) * a->size;{rotation}
      {store.symbol}(x, a->size, a->position[t] & 255, page + (size_t)h * {row_bytes} * a->size);
    }}
  }}
}}

/* region[sequence, :, position] = {"rope(x)" if style else "x"} [tokens, heads, size] */
static void {name}(const run *r, int32_t tokens, int32_t heads, int32_t size, const cache_region *region,
    const float *x, {angles}const int32_t *sequence, const int32_t *position{extra}) {{
  const {name}_args args = {{r, heads, size, region, x, sequence, position{", n, cos, sin, scratch" if style else ""}}};
  parallel(r, tokens, 16, {name}_tokens, &args);
}}
""", (store, rope_row(style)) if style else (store,))  # fmt: skip


def cache_kind(node: Node) -> str:
    """"k" or "v" of the state that a write changes: what the last part of the state's name begins with.

    Raises IRError for a cache that is no state, or named otherwise.
    """
    source = node.inputs[0].node
    while source.op.name in ("cache_write", "rope_cache_write"):
        source = source.inputs[0].node
    if source.op.name != "input":
        raise IRError(f"the cache must be a state of the graph, not a result of {source.op.name}")
    kind = source.attr("name").rpartition(".")[2][:1]
    if kind not in ("k", "v"):
        raise IRError(f"state {source.attr('name')!r}: the name of a cache ends in .k or .v")
    return kind


def _write(node: Node, style: str = "") -> Call:
    sizes = map(DimValue, node.inputs[1].shape)
    kind, dtype = cache_kind(node), node.inputs[0].dtype
    if not style:
        return Call(_kernel(kind, dtype), (Run(), *sizes, *map(Operand, range(4))))
    head = node.inputs[1].shape[-1]
    args: tuple[Arg, ...] = (Run(), *sizes, *map(Operand, range(6)), DimValue(node.inputs[2].shape[1]), Scratch())
    return Call(_kernel(kind, dtype, style), args, THREADS * head * 4)


def cache_write(node: Node, target: Target) -> Call:
    """cache[S, H, C, D], x f32[T, H, D], sequence and position i32[T]; the result is the cache itself."""
    return _write(node)


def rope_cache_write(node: Node, target: Target) -> Call:
    """cache, x, cos and sin f32[T, n], sequence, position."""
    return _write(node, node.attr("style"))


LOWERINGS = {"cache_write": cache_write, "rope_cache_write": rope_cache_write}
