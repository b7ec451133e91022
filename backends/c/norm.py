"""Norms and softmax over rows, in the order of `ir.numerics.reductions`; rms_norm also stores quantised rows."""

from __future__ import annotations

from math import prod

from ...ir.graph import IRError, Node
from ...ir.target import Target
from ...ir.types import ACTIVATION_SIZES, Dim, DType, f32
from .activation import STORE_ROW
from .kernels import THREADS, Call, DimValue, Kernel, Literal, Operand, Result, Run, Scratch
from .scalar import literal

_GRAIN = Kernel("row_grain", """\
/* Rows of k values that are worth handing to a thread. */
static inline int32_t row_grain(int32_t k) { return 1 + 16384 / k; }
""")

_RMS_ROW = Kernel("rms_norm_row", """\
/* y = (x * (1 / sqrt(mean(x * x) + eps))) * weight */
static inline void rms_norm_row(const float *x, const float *weight, int32_t k, float eps, float *y) {
  vf32 squares = f32_zero();
  int32_t i = 0;
  for (; i + 16 <= k; i += 16) squares = f32_add(squares, f32_mul(f32_load(x + i), f32_load(x + i)));
  const int rest = k - i;
  if (rest) squares = f32_add(squares, f32_mul(f32_load_n(x + i, rest), f32_load_n(x + i, rest)));
  const vf32 scale = f32_splat(1.0f / sqrtf(f32_sum(squares) / (float)k + eps));
  for (i = 0; i + 16 <= k; i += 16) f32_store(y + i, f32_mul(f32_mul(f32_load(x + i), scale), f32_load(weight + i)));
  if (rest) f32_store_n(y + i, f32_mul(f32_mul(f32_load_n(x + i, rest), scale), f32_load_n(weight + i, rest)), rest);
}
""")

_RMS_NORM = Kernel("rms_norm", """\
typedef struct { int32_t k; float eps; const float *x, *weight; float *y; } rms_norm_args;

static void rms_norm_rows(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const rms_norm_args *a = args;
  (void)worker;
  for (int32_t i = begin; i < end; i++)
    rms_norm_row(a->x + (size_t)i * a->k, a->weight, a->k, a->eps, a->y + (size_t)i * a->k);
}

/* y[rows, k] = rms_norm(x[rows, k], weight[k]) */
static void rms_norm(const run *r, int32_t rows, int32_t k, float eps, const float *x, const float *weight, float *y) {
  const rms_norm_args args = {k, eps, x, weight, y};
  parallel(r, rows, row_grain(k), rms_norm_rows, &args);
}
""", (_GRAIN, _RMS_ROW))  # fmt: skip


def _rms_norm_stored(dtype: DType) -> Kernel:
    """rms_norm with its rows stored in an activation format; each worker has one f32 row of scratch."""
    name = f"rms_norm_{dtype}"
    block, block_bytes = ACTIVATION_SIZES.get(dtype.name, (1, dtype.block_bytes))
    return Kernel(name, f"""\
typedef struct {{ int32_t k; float eps; const float *x, *weight; uint8_t *y; float *scratch; }} {name}_args;

static void {name}_rows(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const {name}_args *a = args;
  const size_t row_bytes = (size_t)(a->k / {block}) * {block_bytes};
  float *row = a->scratch + (size_t)worker * a->k;
  for (int32_t i = begin; i < end; i++) {{
    rms_norm_row(a->x + (size_t)i * a->k, a->weight, a->k, a->eps, row);
    store_row_{dtype}(row, a->k, a->y + (size_t)i * row_bytes);
  }}
}}

/* y[rows, k] in {dtype} = rms_norm(x[rows, k], weight[k]) */
static void {name}(const run *r, int32_t rows, int32_t k, float eps, const float *x, const float *weight, void *y,
    void *scratch) {{
  const {name}_args args = {{k, eps, x, weight, y, scratch}};
  parallel(r, rows, row_grain(k), {name}_rows, &args);
}}
""", (_GRAIN, _RMS_ROW, STORE_ROW[dtype.name]))  # fmt: skip


_LAYER_NORM = Kernel("layer_norm", """\
typedef struct { int32_t k; float eps; const float *x, *weight, *bias; float *y; } layer_norm_args;

static void layer_norm_rows(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const layer_norm_args *a = args;
  const int32_t k = a->k, full = k & ~15, rest = k & 15;
  (void)worker;
  for (int32_t row = begin; row < end; row++) {
    const float *x = a->x + (size_t)row * k;
    float *y = a->y + (size_t)row * k;
    vf32 sum = f32_zero(), squares = f32_zero();
    for (int32_t i = 0; i < full; i += 16) sum = f32_add(sum, f32_load(x + i));
    if (rest) sum = f32_add(sum, f32_load_n(x + full, rest));
    const vf32 mean = f32_splat(f32_sum(sum) / (float)k);
    for (int32_t i = 0; i < full; i += 16) f32_store(y + i, f32_sub(f32_load(x + i), mean));
    if (rest) f32_store_n(y + full, f32_sub(f32_load_n(x + full, rest), mean), rest);
    for (int32_t i = 0; i < full; i += 16) squares = f32_add(squares, f32_mul(f32_load(y + i), f32_load(y + i)));
    if (rest) squares = f32_add(squares, f32_mul(f32_load_n(y + full, rest), f32_load_n(y + full, rest)));
    const vf32 scale = f32_splat(1.0f / sqrtf(f32_sum(squares) / (float)k + a->eps));
    for (int32_t i = 0; i < full; i += 16) {
      const vf32 scaled = f32_mul(f32_mul(f32_load(y + i), scale), f32_load(a->weight + i));
      f32_store(y + i, f32_add(scaled, f32_load(a->bias + i)));
    }
    if (rest) {
      const vf32 scaled = f32_mul(f32_mul(f32_load_n(y + full, rest), scale), f32_load_n(a->weight + full, rest));
      f32_store_n(y + full, f32_add(scaled, f32_load_n(a->bias + full, rest)), rest);
    }
  }
}

/* y[rows, k] = ((x - mean) * (1 / sqrt(variance + eps))) * weight[k] + bias[k] */
static void layer_norm(const run *r, int32_t rows, int32_t k, float eps, const float *x, const float *weight,
    const float *bias, float *y) {
  const layer_norm_args args = {k, eps, x, weight, bias, y};
  parallel(r, rows, row_grain(k), layer_norm_rows, &args);
}
""", (_GRAIN,))  # fmt: skip

_SOFTMAX = Kernel("softmax", """\
typedef struct { int32_t k, inner; const float *x; float *y, *scratch; } softmax_args;

static inline void softmax_row(const float *x, int32_t k, float *y) {
  const int32_t full = k & ~15, rest = k & 15;
  float last[16];
  for (int i = 0; i < 16; i++) last[i] = i < rest ? x[full + i] : -INFINITY;
  vf32 largest = f32_splat(-INFINITY), sum = f32_zero();
  for (int32_t i = 0; i < full; i += 16) largest = f32_max(largest, f32_load(x + i));
  if (rest) largest = f32_max(largest, f32_load(last));
  const vf32 m = f32_splat(f32_hmax(largest));
  for (int32_t i = 0; i < full; i += 16) {
    const vf32 e = f32_exp(f32_sub(f32_load(x + i), m));
    f32_store(y + i, e);
    sum = f32_add(sum, e);
  }
  if (rest) {
    f32_store_n(y + full, f32_exp(f32_sub(f32_load(last), m)), rest);
    sum = f32_add(sum, f32_load_n(y + full, rest));
  }
  const vf32 total = f32_splat(f32_sum(sum));
  for (int32_t i = 0; i < full; i += 16) f32_store(y + i, f32_div(f32_load(y + i), total));
  if (rest) f32_store_n(y + full, f32_div(f32_load_n(y + full, rest), total), rest);
}

static void softmax_rows(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const softmax_args *a = args;
  float *row = a->scratch + (size_t)worker * a->k;
  for (int32_t i = begin; i < end; i++) {
    const size_t at = (size_t)(i / a->inner) * a->inner * a->k + (size_t)(i % a->inner);
    if (a->inner == 1) {
      softmax_row(a->x + at, a->k, a->y + at);
      continue;
    }
    for (int32_t j = 0; j < a->k; j++) row[j] = a->x[at + (size_t)j * a->inner];
    softmax_row(row, a->k, row);
    for (int32_t j = 0; j < a->k; j++) a->y[at + (size_t)j * a->inner] = row[j];
  }
}

/* y[outer, k, inner] = softmax of x over k; rows = outer * inner */
static void softmax(const run *r, int32_t rows, int32_t k, int32_t inner, const float *x, float *y, void *scratch) {
  const softmax_args args = {k, inner, x, y, scratch};
  parallel(r, rows, row_grain(k), softmax_rows, &args);
}
""", (_GRAIN,))  # fmt: skip


def _rows(shape: tuple[Dim, ...]) -> Dim:
    return prod(shape[:-1], start=1)


def _eps(node: Node) -> Literal:
    return Literal(literal(node.attr("eps"), f32))


def rms_norm(node: Node, target: Target) -> Call:
    """x[..., K], weight[K] -> [..., K] in f32, bf16 or a8g32."""
    (type_,) = node.types
    head = Run(), DimValue(_rows(type_.shape)), DimValue(type_.shape[-1]), _eps(node), Operand(0), Operand(1), Result()
    if type_.dtype == f32:
        return Call(_RMS_NORM, head, in_place=((0, 0),))
    return Call(_rms_norm_stored(type_.dtype), (*head, Scratch()), THREADS * type_.shape[-1] * 4)


def layer_norm(node: Node, target: Target) -> Call:
    """x[..., K], weight[K], bias[K] -> f32[..., K]."""
    shape = node.types[0].shape
    head = Run(), DimValue(_rows(shape)), DimValue(shape[-1]), _eps(node)
    args = (*head, Operand(0), Operand(1), Operand(2), Result())
    return Call(_LAYER_NORM, args, in_place=((0, 0),))


def softmax(node: Node, target: Target) -> Call:
    """Over any axis; rows whose values are not adjacent are gathered in scratch. Raises IRError for a symbolic axis."""
    shape, axis = node.types[0].shape, node.attr("axis")
    inner = prod(shape[axis + 1 :], start=1)
    if inner != 1 and not isinstance(shape[axis], int):
        raise IRError(f"softmax over axis {axis} of {node.types[0]}: only the last axis may be of unknown length")
    args = (Run(), DimValue(prod(shape[:axis], start=1) * inner), DimValue(shape[axis]), DimValue(inner), Operand(0),
            Result(), Scratch())  # fmt: skip
    return Call(_SOFTMAX, args, THREADS * shape[axis] * 4 if inner != 1 else 64, in_place=((0, 0),))


LOWERINGS = {"rms_norm": rms_norm, "layer_norm": layer_norm, "softmax": softmax}
