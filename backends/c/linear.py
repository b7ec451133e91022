"""Linear products, their fused forms and the quantisation of activations, as calls of C kernels.

A kernel here fills in one `linear_job` a product and runs them in one parallel region. Its shapes are arguments: one
function serves every shape of the same dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from textwrap import fill

from ...ir.graph import IRError, Node
from ...ir.quant import FORMATS, is_direct, panel_bytes
from ...ir.target import Target
from ...ir.types import DTYPES, Dim, DType, Type, f32
from .activation import LINEAR_STORE, STORE_ROW
from .kernels import THREADS, Call, DimValue, Kernel, Literal, Operand, Result, Run, Scratch
from .linear_amx import LEAST_TOKENS, block_units, unit_bytes, unit_words, uses_tiles
from .linear_block import block_panels, block_terms
from .linear_dense import BLOCK, DENSE_BLOCKS, dense_panels
from .linear_job import JOB, PAIRS
from .tuning import tuning_of

LINE = 64  # bytes that parts of scratch are aligned to


@dataclass(frozen=True)
class Product:
    """One product of a call. `index` numbers its arguments: n, w, y, and those of its second weight, bias and residual
    that it has. `up` is the dtype of the second weight of a gated product, `stored` that of its result if not f32."""

    dtype: DType
    index: int = 0
    bias: bool = False
    residual: bool = False
    up: DType | None = None
    activation: str = ""
    stored: DType | None = None

    @property
    def parameters(self) -> str:
        i = self.index
        optional = [(self.up, f"const uint8_t *up{i}"), (self.bias, f"const float *bias{i}"),
                    (self.residual, f"const float *residual{i}")]  # fmt: skip
        y = f"{'void' if self.stored else 'float'} *y{i}"
        parts = [f"int32_t n{i}", f"const uint8_t *w{i}", *(text for has, text in optional if has), y]
        return ", ".join(parts)

    @property
    def job(self) -> str:
        """C for its linear_job."""
        i = self.index
        epilogue = {"bias": f"bias{i}"} if self.bias else {}
        epilogue |= {"residual": f"residual{i}"} if self.residual else {}
        if self.up:
            up = self._fields(self.up, f"up{i}", {})
            epilogue |= {"up": f"&(const linear_job){up}", "gate": f"gate_{self.activation}"}
        if self.stored:
            epilogue |= {"store": f"linear_store_{self.stored}", "y_row": _row_bytes(self.stored, f"n{i}")}
        return self._fields(self.dtype, f"w{i}", epilogue | {"y": f"y{i}"})

    def _fields(self, dtype: DType, w: str, more: Mapping[str, str]) -> str:
        terms = {"terms": f"terms_{dtype if dtype.is_block else 'dense'}"}
        terms |= {"term_row": _term_row(dtype)} if dtype.is_block else {}
        fields = {"x": "x", "x_row": "x_row", **terms, "tokens": "tokens", "k": "k", "n": f"n{self.index}", "w": w,
                  "panel_bytes": _panel_bytes(dtype), "panels": f"{dtype}_panels", **more}  # fmt: skip
        return f"{{{fill(', '.join(f'.{k} = {v}' for k, v in fields.items()), 105, subsequent_indent='     ')}}}"

    @property
    def dtypes(self) -> tuple[DType, ...]:
        return (self.dtype, self.up) if self.up else (self.dtype,)


def _term_row(dtype: DType) -> str:
    """C for the words of terms of a row of k activations: one a group."""
    return f"k / {FORMATS[dtype.name].group}"


def _panel_bytes(dtype: DType) -> str:
    """C for the bytes of a panel of 16 rows of k values."""
    if dtype.name == "bf16":
        return "(size_t)((k + 1) / 2) * 64"
    size = panel_bytes(dtype, dtype.block)
    return f"(size_t)(k / {dtype.block}) * {size}" if dtype.is_block else f"(size_t)k * {size}"


def _row_bytes(x: DType, k: str = "k") -> str:
    """C for the bytes of a row of k activations."""
    return f"(size_t)({k} / {x.block}) * {x.block_bytes}" if x.is_block else f"(size_t){k} * {x.block_bytes}"


def _panels(dtypes: Iterable[DType], target: Target) -> tuple[Kernel, ...]:
    """The kernels that multiply panels of each dtype."""
    unique = dict.fromkeys(dtypes)
    return tuple(block_panels(FORMATS[d.name], target) if d.is_block else dense_panels(d.name, target) for d in unique)


def _terms(dtypes: Iterable[DType], target: Target, one: bool = False) -> tuple[str, tuple[Kernel, ...]]:
    """C that computes each format's terms at the start of scratch and moves `scratch` past them; what it needs.
    `one`: every product will be of one token."""
    text, needs = "", list[Kernel]()
    for d in dict.fromkeys(dtypes):
        if not d.is_block:
            continue
        fmt, terms, words = FORMATS[d.name], f"{d}_terms", f"(size_t)tokens * (size_t)({_term_row(d)})"
        needs.append(block_terms(fmt))
        if not one and uses_tiles(fmt, target.name):
            many = f"tokens >= {LEAST_TOKENS}"
            units = f"(size_t)linear_padded(tokens) * (size_t)({unit_words(fmt, 'k')})"
            terms, words = f"{many} ? {d}_units : {terms}", f"({many} ? {units} : {words})"
            needs.append(block_units(fmt, tuning_of(target).kblock))
        text += f"""\
  int32_t *terms_{d} = (void *)scratch;
  linear_prepare(r, {terms}, x, x_row, tokens, k, terms_{d});
  scratch += ({words} * 4 + {LINE - 1}) / {LINE} * {LINE};
"""
    if one and not all(d.is_block for d in dtypes):
        text += "  const int32_t *terms_dense = NULL; /* a token alone is read where it is */\n"
    elif not all(d.is_block for d in dtypes):
        needs.append(DENSE_BLOCKS)
        text += f"""\
  int32_t *terms_dense = (void *)scratch;
  if (tokens > 1) linear_prepare(r, dense_blocks, x, x_row, tokens, k, terms_dense);
  scratch += (size_t)tokens * ((x_row + {BLOCK - 1}) / {BLOCK} * {BLOCK});
"""
    return text, tuple(needs)


def _terms_bytes(dtypes: Iterable[DType], x: Type, k: int, target: Target) -> Dim:
    blocks = [d for d in dict.fromkeys(dtypes) if d.is_block]
    words = 0
    for d in blocks:
        fmt = FORMATS[d.name]
        units = -(-k // (2 * fmt.group)) * unit_bytes(fmt) // 64 if uses_tiles(fmt, target.name) else 0
        words += max(k // fmt.group, units)
    dense = -(-k * x.dtype.block_bytes // BLOCK) * BLOCK if len(blocks) < len(set(dtypes)) else 0
    return (x.shape[0] + 15) * (words * 4 + dense) + LINE * len(blocks)


GATES = {
    name: Kernel(f"gate_{name}", f"""\
/* gate = {name}(gate) * up, [tokens][32] */
static void gate_{name}(float *gate, const float *up, int32_t tokens) {{
  for (int32_t i = 0; i < 32 * tokens; i += 16)
    f32_store(gate + i, f32_mul(f32_{name}(f32_load(gate + i)), f32_load(up + i)));
}}
""")
    for name in ("silu", "gelu_tanh", "gelu")
}  # fmt: skip


def _symbol(op: str, products: Sequence[Product]) -> str:
    parts = [op]
    for p in products:
        parts += [p.activation] if p.activation else []
        parts += dict.fromkeys(str(d) for d in p.dtypes)
        parts += ["bias"] if p.bias else []
        parts += ["add"] if p.residual else []
        parts += [str(p.stored)] if p.stored else []
    return "_".join(parts)


def _kernel(op: str, x: DType, products: Sequence[Product], target: Target) -> Kernel:
    symbol, dtypes = _symbol(op, products), [d for p in products for d in p.dtypes]
    terms, needs = _terms(dtypes, target)
    ends = tuple(GATES[p.activation] for p in products if p.activation)
    ends += tuple(LINEAR_STORE[p.stored.name] for p in products if p.stored)
    jobs = ",\n".join(f"    {p.job}" for p in products)
    parameters = ",\n".join(f"    {p.parameters}" for p in products)
    text = f"""\
/* {op} of x[tokens][k] in {x} and {', '.join(map(str, dtypes))} */
static void {symbol}(const run *r, int32_t tokens, int32_t k, const void *x,
{parameters},
    char *scratch) {{
  const size_t x_row = {_row_bytes(x)};
{terms}  const linear_job jobs[{len(products)}] = {{
{jobs},
  }};
  const size_t worker_bytes = linear_worker_bytes(tokens, {int(bool(ends))});
  linear_run(r, jobs, {len(products)}, {tuning_of(target).chunk}, scratch, worker_bytes);
}}
"""
    return Kernel(symbol, text, (JOB, *needs, *_panels(dtypes, target), *ends))


def _inner(x: Type) -> int:
    k = x.shape[-1]
    if not isinstance(k, int):
        raise IRError(f"the inner dimension of {x} must be known")
    return k


def _check(x: Type, w: Type) -> None:
    if w.layout != "panel16" or not is_direct(w.dtype):
        raise IRError(f"needs weights of a directly computed dtype in layout panel16, not {w}")
    fits = x.dtype.name == "a8g32" if w.dtype.is_block else (
        x.dtype == (w.dtype if w.dtype.name == "bf16" else DTYPES["f32"]))  # fmt: skip
    if not fits:
        raise IRError(f"no kernel multiplies {x.dtype} with {w.dtype}; the quantize pass chooses a pair that has one")


def _call(op: str, node: Node, target: Target, products: Sequence[Product], operands: Sequence[Sequence[int]]) -> Call:
    """`operands`: for each product the numbers of its operands, in the order of its parameters."""
    types = [v.type for v in node.inputs]
    x, k = types[0], _inner(types[0])
    args: list[Operand | Result | DimValue | Literal | Scratch | Run] = [
        Run(), DimValue(x.shape[0]), DimValue(k), Operand(0)]  # fmt: skip
    for product, numbers in zip(products, operands):
        weights = [types[i] for i in numbers[: len(product.dtypes)]]
        for w in weights:
            _check(x, w)
        args += [DimValue(weights[0].shape[0]), *map(Operand, numbers), Result(product.index)]
    dtypes = [d for p in products for d in p.dtypes]
    gated = any(p.up for p in products)
    sums = (x.shape[0] + 15) * (128 * PAIRS * (2 if gated else 1))
    scratch = _terms_bytes(dtypes, x, k, target) + THREADS * sums
    return Call(_kernel(op, x.dtype, products, target), (*args, Scratch()), scratch, regions=1)


def linear(node: Node, target: Target) -> Call:
    """linear(x[T,K], w[N,K], [bias[N]])"""
    bias = len(node.inputs) == 3
    return _call("linear", node, target, [Product(node.inputs[1].dtype, bias=bias)], [(1, 2)[: 1 + bias]])


def linear_add(node: Node, target: Target) -> Call:
    """linear_add(x[T,K], w[N,K], residual[T,N], [bias[N]]): an element of the residual is read right before the sum is
    written, so that they may share a buffer."""
    bias = len(node.inputs) == 4
    product = Product(node.inputs[1].dtype, bias=bias, residual=True)
    call = _call("linear", node, target, [product], [(1, 3, 2) if bias else (1, 2)])
    return replace(call, in_place=((0, 2),))


def linear_group(node: Node, target: Target) -> Call:
    """linear_group(x[T,K], w_0[N_0,K] …, biases)"""
    biases = node.attr("biases")
    products, operands, at = [], [], 1 + len(biases)
    for i, bias in enumerate(biases):
        products.append(Product(node.inputs[1 + i].dtype, i, bias=bias))
        operands.append((1 + i, at) if bias else (1 + i,))
        at += bias
    return _call("linear_group", node, target, products, operands)


def gated_linear(node: Node, target: Target) -> Call:
    """gated_linear(x[T,K], gate[N,K], up[N,K])"""
    gate, up = node.inputs[1].dtype, node.inputs[2].dtype
    stored = None if node.attr("dtype") == f32 else node.attr("dtype")
    product = Product(gate, up=up, activation=node.attr("activation"), stored=stored)
    return _call("gated_linear", node, target, [product], [(1, 2)])


def _expert_kernel(x: DType, w: DType, target: Target) -> Kernel:
    product = Product(w)
    terms, needs = _terms([w], target, one=True)
    offset = "\n    job.terms += (size_t)token * (size_t)job.term_row;" if needs else ""
    text = f"""\
typedef struct {{
  linear_job job;
  const int32_t *ids;
  int32_t used, pairs;
  size_t expert_bytes;
  float *scratch;
}} expert_{w}_args;

/* Pairs of panels, counted through the (token, expert used) pairs: each a product of one token. */
static void expert_{w}_body(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const expert_{w}_args *a = args;
  for (int32_t i = begin; i < end; i++) {{
    const int32_t which = i / a->pairs, token = which / a->used;
    linear_job job = a->job;
    job.tokens = 1;
    job.x += (size_t)token * job.x_row;
    job.w += (size_t)a->ids[which] * a->expert_bytes;
    job.y = (float *)job.y + (size_t)which * (size_t)job.n;{offset}
    linear_some(&job, i % a->pairs, 1, a->scratch + (size_t)worker * linear_floats(1));
  }}
}}

/* y[tokens][used][n] = x[tokens][k] in {x} times expert ids[tokens][used] of w[experts][n][k] in {w} */
static void expert_linear_{w}(const run *r, int32_t tokens, int32_t k, const void *x, int32_t n0, const uint8_t *w0,
    int32_t used, const int32_t *ids, float *y0, char *scratch) {{
  const size_t x_row = {_row_bytes(x)};
{terms}  const linear_job job = {product.job};
  const int32_t pairs = linear_pairs(n0);
  const expert_{w}_args args = {{job, ids, used, pairs, (size_t)((n0 + 15) / 16) * job.panel_bytes, (void *)scratch}};
  parallel(r, tokens * used * pairs, (pairs + 3) / 4, expert_{w}_body, &args);
}}
"""
    return Kernel(f"expert_linear_{w}", text, (JOB, *needs, *_panels([w], target)))


def expert_linear(node: Node, target: Target) -> Call:
    """expert_linear(x[T,K], w[E,N,K], ids i32[T,used])"""
    x, w, ids = (v.type for v in node.inputs)
    _check(x, w)
    k = _inner(x)
    args = (Run(), DimValue(x.shape[0]), DimValue(k), Operand(0), DimValue(w.shape[1]), Operand(1),
            DimValue(ids.shape[1]), Operand(2), Result(), Scratch())  # fmt: skip
    scratch = _terms_bytes([w.dtype], x, k, target) + THREADS * (16 * 128)
    return Call(_expert_kernel(x.dtype, w.dtype, target), args, scratch, regions=1)


def _quantize_kernel(dtype: DType) -> Kernel:
    return Kernel(f"quantize_{dtype}", f"""\
typedef struct {{ const float *x; uint8_t *y; int32_t k; }} quantize_{dtype}_args;

static void quantize_{dtype}_rows(const void *args, int32_t begin, int32_t end, int32_t worker) {{
  const quantize_{dtype}_args *a = args;
  const int32_t k = a->k;
  const size_t row = {_row_bytes(dtype)};
  (void)worker;
  for (int32_t i = begin; i < end; i++) store_row_{dtype}(a->x + (size_t)i * (size_t)k, k, a->y + (size_t)i * row);
}}

/* x[rows][k] to rows of {dtype} */
static void quantize_{dtype}(const run *r, int32_t rows, int32_t k, const float *x, uint8_t *y) {{
  const quantize_{dtype}_args args = {{x, y, k}};
  parallel(r, rows, 1 + 16384 / k, quantize_{dtype}_rows, &args);
}}
""", (STORE_ROW[dtype.name],))  # fmt: skip


def quantize(node: Node, target: Target) -> Call:
    """quantize(x[..., K]; dtype)"""
    x = node.inputs[0].type
    args = (Run(), DimValue(prod(x.shape[:-1])), DimValue(_inner(x)), Operand(0), Result())
    return Call(_quantize_kernel(node.attr("dtype")), args)


LOWERINGS: Mapping[str, Callable[[Node, Target], Call]] = {
    "linear": linear, "linear_add": linear_add, "linear_group": linear_group, "gated_linear": gated_linear,
    "expert_linear": expert_linear, "quantize": quantize,
}  # fmt: skip
