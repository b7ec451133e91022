"""What follows a product element by element, as the C that takes its finished sums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...ir.graph import Node, Value
from ...ir.types import Dim, DType, Sym, f32, symbol
from .kernels import Arg, DimValue, Kernel, Operand, Result, Run
from .loop_function import bracketed, size_name, symbols_of, wrapped
from .loop_model import (
    Affine,
    Axis,
    Body,
    Guard,
    Lookup,
    Loop,
    Part,
    Quotient,
    Read,
    Within,
    axes,
    collapse,
    index_of,
    parts,
    rewrite,
)
from .loop_scope import Scope
from .loop_words import SIDE_BY_SIDE, WordScope, in_words
from .scalar import store
from .text import C_TYPES, Names, indented

TAKEN = (*"rngxwpqluvyzbijkms", "args", "at", "row", "rows", "col", "cols", "sums", "out", "scratch", "sum", "run",
         "count", "begin", "end", "worker", "zeros", "last")  # fmt: skip


@dataclass(frozen=True)
class Epilogue:
    """`source` is C: the struct @_args of the operands, the function @_finish, which takes sums[rows][GROUP], and where
    it `fetches` the function @_fetch."""

    source: str
    others: Mapping[Value, str]
    dims: tuple[Sym, ...]
    result: DType
    fetches: bool

    def signature(self, *more: str) -> str:
        """The parameters of a kernel that multiplies x by w and ends with this."""
        pointers = ["const float *x", "const float *w",
                    *(f"const {C_TYPES[v.dtype.name]} *{m}" for v, m in self.others.items()),
                    f"{C_TYPES[self.result.name]} *out"]  # fmt: skip
        return ", ".join(["const run *r", *(f"int32_t {size_name(s)}" for s in self.dims), *pointers, *more])

    @property
    def values(self) -> str:
        """What fills @_args, in terms of the parameters."""
        return ", ".join([*self.others.values(), "out", *map(size_name, self.dims)])

    def arguments(self, operands: Mapping[Value, int], x: Value, w: Value) -> tuple[Arg, ...]:
        """What the kernel is called with, up to its result."""
        dims = (DimValue(symbol(s.name, s.lo, s.hi)) for s in self.dims)
        return Run(), *dims, *(Operand(operands[v]) for v in (x, w, *self.others)), Result()


def epilogue(anchor: Node, finish: Loop, sizes: Sequence[Dim], fetching: bool = False) -> Epilogue:
    """The loop `finish` over the sums of `anchor`; `sizes` are further dimensions that the kernel's text needs. If
    `fetching`, there is a function that fetches what it reads, where it reads more than a vector."""
    n = anchor.types[0].shape[-1]
    flat = collapse(Loop(finish.result, tuple(finish.shape[:-1]), finish.body, (n,)))
    leading, body = flat.shape, _inside(flat.body, anchor[0], len(flat.shape) + 1)
    others = tuple(v for v in dict.fromkeys(p.source for p in parts(body) if isinstance(p, Read)) if v != anchor[0])
    dims = symbols_of(*sizes, *leading,
                      *(d for p in parts(body) if isinstance(p, Affine) for d in (p.offset, *(c for _, c in p.terms))),
                      *(p.limit for p in parts(body) if isinstance(p, Guard)),
                      *(d for p in parts(body) if isinstance(p, Lookup) and p.clamp for d in p.clamp))  # fmt: skip
    names = Names([*map(size_name, dims), *TAKEN])
    name_of = {v: names.new(v.node.attr("name") if v.node.op.name == "input" else "x") for v in others}
    result = finish.result.dtype

    counters = [f"i{d}" for d in range(len(leading))]
    scope = Scope([*counters, "n", "l"], {**name_of, anchor[0]: "sum"})
    index = Affine()
    for position, size in zip(axes(len(leading) + 1), (*leading, n), strict=True):
        index = index * size + position
    target, along = f"out[{scope.index(index)}]", (len(leading), len(leading) + 1)
    if result == f32 and in_words(body, along):
        lines = _in_words(body, scope, target, along)
    else:
        inner = [*scope.bindings(body), f"{target} = {store(scope.body(body), result)};"]
        each = ["const int64_t n = col + l;", *inner]
        lines = ["for (int64_t l = 0; l < cols; l++) {", *(f"  {s}" for s in each), "}"]
    unravel, left = [], "(row + m)"
    for d in reversed(range(len(leading))):
        unravel.append(f"const int64_t {counters[d]} = {left}" + (f" % {bracketed(leading[d])};" if d else ";"))
        left = f"{left} / {bracketed(leading[d])}"
    fields = "".join(f" const {C_TYPES[v.dtype.name]} *{m};" for v, m in name_of.items())
    fields += f" {C_TYPES[result.name]} *out;" + "".join(f" int64_t {size_name(s)};" for s in dims)
    used = "\n".join([*lines, *unravel])
    sizes_used = [f"const int64_t {size_name(s)} = g->{size_name(s)};" for s in dims if size_name(s) in used]
    unpack = [*sizes_used]
    unpack += [f"const {C_TYPES[v.dtype.name]} *restrict {m} = g->{m};" for v, m in name_of.items()]
    unpack += [f"{C_TYPES[result.name]} *restrict out = g->out;"]
    unpack += [] if unravel else ["(void)row, (void)m;"]
    source = f"""\
typedef struct {{{fields} }} @_args;

INLINE void @_row(const @_args *g, const float *restrict sum, int32_t row, int32_t m, int32_t col, int32_t cols) {{
{indented(chr(10).join([*unpack, *unravel, *lines]))}
}}

static void @_finish(const void *args, const float *sums, int32_t row, int32_t rows, int32_t col, int32_t cols) {{
  for (int32_t m = 0; m < rows; m++, sums += GROUP)
    if (cols == GROUP) @_row(args, sums, row, m, col, GROUP);
    else @_row(args, sums, row, m, col, cols);
}}
"""
    fetch = _fetch(body, scope, name_of, [*sizes_used, *unravel], len(leading)) if fetching else ""
    return Epilogue(source + fetch, name_of, dims, result, bool(fetch))


def _in_words(body: Body, scope: Scope, target: str, along: tuple[int, int]) -> list[str]:
    """Lines for a row: GROUP outputs as vectors side by side, fewer one vector at a time."""
    whole = WordScope(scope.axis, scope.operand, along=along, vectors=SIDE_BY_SIDE).stored(target, body)
    each = WordScope(scope.axis, scope.operand, along=along, last="last").stored(target, body)
    return ["if (cols == GROUP) {", "  const int64_t l = 0, n = col;", *(f"  {s}" for s in whole), "  return;", "}",
            "for (int64_t l = 0; l < cols; l += 16) {", "  const int64_t n = col + l;",
            "  const int last = int_min((int)(cols - l), 16);", *(f"  {s}" for s in each), "}"]  # fmt: skip


def _fetch(body: Body, scope: Scope, names: Mapping[Value, str], position: Sequence[str], rank: int) -> str:
    """The function that fetches the tile of every array that the body reads as it writes its result, or nothing."""
    if any(isinstance(p, (Within, Lookup, Quotient)) for p in parts(body)):
        return ""
    reads = [p for p in dict.fromkeys(parts(body)) if isinstance(p, Read) and p.source in names]
    tiles = [r for r in reads if r.index[0].coefficient(rank) == 1 and len(r.index[0].terms) > 1]
    if not tiles:
        return ""
    lines = [f"__builtin_prefetch(&g->{names[r.source]}[{scope.index(r.index[0])}]);" for r in tiles]
    return f"""
static void @_fetch(const void *args, int32_t row, int32_t rows, int32_t col, int32_t cols) {{
  const @_args *g = args;
  for (int32_t m = 0; m < rows; m++) {{
{indented(chr(10).join(position), "    ")}
    for (int64_t n = col; n < col + cols; n += 16) {{
{indented(chr(10).join(lines), "      ")}
    }}
  }}
}}
"""


def _inside(body: Body, anchor: Value, axis: int) -> Body:
    """The body with reads of the product's own element as reads of the tile's sums along `axis`."""

    def change(part: Part) -> Part:
        if isinstance(part, Read) and part.source == anchor:
            return replace(part, index=(index_of(Axis(axis)),))
        return part

    return rewrite(body, change)


def named(text: str, name: str, needs: tuple[Kernel, ...]) -> Kernel:
    symbol = f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    source = "\n".join(wrapped(line) for line in text.replace("@", symbol).splitlines()) + "\n"
    return Kernel(symbol, source, needs)
