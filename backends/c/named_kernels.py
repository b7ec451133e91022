"""Ops that are no loop over a scalar body: arg-extremes, running sums, orders and scatter, one short C text each.

All but scatter work on the lines along one axis: element k of line (i, j) lies at (i * n + k) * inner + j.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from ...ir.graph import IRError, Node
from ...ir.types import Dim, DType, f32
from .loop_function import (
    Emitted,
    Parameters,
    bracketed,
    counted,
    dim_text,
    finish,
    is_parallel,
    kernel_name,
    symbols_of,
)
from .loop_model import Read, axes, flat_reads, flatten, window_starts
from .loop_scope import Scope
from .scalar import HALVES, VALUE_TYPES, expression, load, store
from .text import C_TYPES


@dataclass(frozen=True)
class Lines:
    """The lines along one axis of a node's operands, and how C says where they lie."""

    node: Node
    axis: int

    @property
    def sizes(self) -> tuple[Dim, Dim, Dim]:
        """(outer, n, inner)"""
        shape = self.node.inputs[0].shape
        return prod(shape[: self.axis]), shape[self.axis], prod(shape[self.axis + 1 :])

    @property
    def n(self) -> str:
        return bracketed(self.sizes[1])

    def at(self, k: str) -> str:
        """The offset of element k from the line's first."""
        return k if self.sizes[2] == 1 else f"{k} * {bracketed(self.sizes[2])}"

    def first(self, count: Dim | None = None) -> str:
        """The offset of a line's first element where a line has `count` elements (the operand's without it)."""
        _, n, inner = self.sizes
        step = (n if count is None else count) * inner
        outer = [] if self.sizes[0] == 1 else ["i" if step == 1 else f"i * {bracketed(step)}"]
        return " + ".join(outer + ["j"] * (inner != 1)) or "0"

    def pointer(self, name: str, array: str, dtype: DType, const: bool = True) -> str:
        return f"{'const ' * const}{C_TYPES[dtype.name]} *{name} = {array} + {self.first()};"

    def kernel(self, inside: list[str], results: tuple[str, ...], scratch: str = "") -> Emitted:
        """`inside` for every line; parallel over the outer lines, unless they share a scratch array."""
        outer, n, inner = self.sizes
        work = n * inner
        split = not scratch and is_parallel(outer, work)
        body = inside if inner == 1 else counted("j", "0", dim_text(inner), inside)
        if outer != 1:
            body = counted("i", *(("begin", "end") if split else ("0", dim_text(outer))), body)
        inputs = self.node.inputs
        names = ["x"] if len(inputs) == 1 else [f"x{k}" for k in range(len(inputs))]
        comment = f"lines along axis {self.axis} of {inputs[0].type}"
        given = Parameters(symbols_of(outer, n, inner), tuple(zip(names, inputs)), tuple(zip(results, self.node.types)),
                           outer if split else 1, work, comment, scratch)  # fmt: skip
        return finish(body, given, kernel_name(self.node.op.name, self.node.types[0]))


def above(a: str, b: str, dtype: DType) -> str:
    """Whether a > b as orders see it: every NaN is the greatest."""
    return f"above_{'f64' if dtype.name == 'f64' else 'f32'}({a}, {b})" if dtype.is_float else f"{a} > {b}"


def arg_extreme(node: Node) -> Emitted:
    """The first index of the extreme; a NaN counts as it."""
    lines, dtype = Lines(node, node.attr("axis")), node.inputs[0].dtype
    sign = ">" if node.op.name == "argmax" else "<"
    better = f"value {sign} most" + (" || (value != value && most == most)" if dtype.is_float else "")
    kind, element = VALUE_TYPES[dtype.name], load(f"line[{lines.at('k')}]", dtype)
    return lines.kernel([
        lines.pointer("line", "x", dtype),
        "int64_t best = 0;",
        f"{kind} most = {load('line[0]', dtype)};",
        f"for (int64_t k = 1; k < {lines.n}; k++) {{",
        f"  const {kind} value = {element};",
        f"  if ({better}) most = value, best = k;",
        "}",
        f"out[{lines.first(1)}] = ({C_TYPES[node.types[0].dtype.name]})best;",
    ], ("out",))  # fmt: skip


RUNNING = {"cumsum": "add", "cumprod": "mul", "cummax": "max", "cummin": "min"}


def running(node: Node) -> Emitted:
    """One chain along the axis, in f32 for half floats: sums, products, maxima or minima of what came so far."""
    lines, dtype = Lines(node, node.attr("axis")), node.inputs[0].dtype
    at = f"{lines.n} - 1 - k" if node.attr("reverse") else "k"
    element = load(f"line[{lines.at('at')}]", dtype)
    wide = f32 if dtype.name in HALVES else dtype
    combined = expression(RUNNING[node.op.name], ["total", element], wide, wide)
    return lines.kernel([
        lines.pointer("line", "x", dtype),
        lines.pointer("sums", "out", dtype, const=False),
        f"{VALUE_TYPES[dtype.name]} total = 0;",
        f"for (int64_t k = 0; k < {lines.n}; k++) {{",
        f"  const int64_t at = {at};",
        f"  total = k ? {combined} : {element};",
        f"  sums[{lines.at('at')}] = {store('total', dtype)};",
        "}",
    ], ("out",))  # fmt: skip


def top_k(node: Node) -> Emitted:
    """Insertion into the k largest so far; an equal one goes after those before it."""
    lines, dtype, k = Lines(node, node.inputs[0].type.rank - 1), node.inputs[0].dtype, node.attr("k")
    kind, held = VALUE_TYPES[dtype.name], load("top[at - 1]", dtype)
    return lines.kernel([
        lines.pointer("line", "x", dtype),
        f"{C_TYPES[dtype.name]} *top = values + {lines.first(k)};",
        f"int32_t *top_index = indices + {lines.first(k)};",
        f"for (int32_t m = 0; m < {lines.n}; m++) {{",
        f"  const {kind} value = {load('line[m]', dtype)};",
        f"  int32_t at = m < {k} ? m : {k};",
        f"  for (; at > 0 && ({above('value', held, dtype)}); at--)",
        f"    if (at < {k}) top[at] = top[at - 1], top_index[at] = top_index[at - 1];",
        f"  if (at < {k}) top[at] = line[m], top_index[at] = m;",
        "}",
    ], ("values", "indices"))  # fmt: skip


def sort(node: Node) -> Emitted:
    """Merges runs of positions, bottom up: stable and ascending by the first keys, NaN last."""
    lines, n = Lines(node, node.attr("axis")), len(node.inputs)
    pointers = [lines.pointer(f"line{k}", "x" if n == 1 else f"x{k}", v.dtype) for k, v in enumerate(node.inputs)]
    test = "false"
    for k in reversed(range(node.attr("keys"))):
        dtype = node.inputs[k].dtype
        a, b = (load(f"line{k}[{lines.at(f'from[{side}]')}]", dtype) for side in ("left", "right"))
        later = "" if test == "false" else f" || (!({above(b, a, dtype)}) && ({test}))"
        test = above(a, b, dtype) + later
    outs = ("out",) if n == 1 else tuple(f"out{k}" for k in range(n))
    return lines.kernel([
        *pointers,
        f"int32_t *from = order, *to = order + {lines.n};",
        f"for (int32_t k = 0; k < {lines.n}; k++) from[k] = k;",
        f"for (int64_t width = 1; width < {lines.n}; width *= 2) {{",
        f"  for (int64_t low = 0; low < {lines.n}; low += 2 * width) {{",
        f"    const int64_t middle = clamp_index(low + width, 0, {lines.n});",
        f"    const int64_t high = clamp_index(middle + width, 0, {lines.n});",
        "    int64_t left = low, right = middle;",
        "    for (int64_t k = low; k < high; k++) {",
        f"      const bool swapped = left == middle || (right < high && ({test}));",
        "      to[k] = swapped ? from[right++] : from[left++];",
        "    }",
        "  }",
        "  int32_t *const other = from;",
        "  from = to, to = other;",
        "}",
        f"for (int64_t k = 0; k < {lines.n}; k++) {{",
        *(f"  {out}[{lines.first()} + {lines.at('k')}] = line{k}[{lines.at('from[k]')}];"
          for k, out in enumerate(outs)),
        "}",
    ], outs, scratch="order")  # fmt: skip


def sort_scratch(node: Node) -> Dim:
    """Bytes of the two arrays of positions that `sort` merges between."""
    return node.inputs[0].shape[node.attr("axis")] * 8


COMBINE = {"set": "", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def scatter(node: Node) -> Emitted:
    """A copy of the operand, then the updates in row-major order of the windows' batch, then of the window."""
    (x, indices, updates), kind = node.inputs, node.attr("kind")
    dtype, window_dims = x.dtype, node.attr("update_window_dims")
    if dtype.name in HALVES and kind in ("add", "mul"):
        raise IRError(f"C does not scatter {dtype} with {kind}, which sums in f32; convert to f32 first")
    rank = updates.type.rank
    order = [*(d for d in range(rank) if d not in window_dims), *window_dims]  # loop axis n is update axis order[n]
    at = [axes(rank)[order.index(d)] for d in range(rank)]
    batch = tuple(at[d] for d in range(rank) if d not in window_dims)
    dropped = (*node.attr("inserted_window_dims"), *node.attr("operand_batching_dims"))
    steps = iter(window_dims)
    window = {d: next(steps) for d in range(x.type.rank) if d not in dropped}
    sizes = tuple(updates.shape[window[d]] if d in window else 1 for d in range(x.type.rank))
    starts, guards = window_starts(
        x, indices, batch, sizes, node.attr("scatter_dims_to_operand_dims"), node.attr("operand_batching_dims"),
        node.attr("scatter_indices_batching_dims"), node.attr("mode") == "clip")  # fmt: skip
    address = flatten([s + at[window[d]] if d in window else s for d, s in enumerate(starts)], x.shape)

    update = flat_reads(Read(updates, tuple(at), updates.shape))
    names = [f"{'ijkmno'[n] if n < 6 else f'i{n}'}" for n in range(rank)]
    scope = Scope(names, {indices: "indices", updates: "updates"}, raw=kind == "set")
    target = f"out[{scope.index(flat_reads(address))}]"
    value = scope.body(update)
    if kind != "set":
        value = store(expression(COMBINE[kind], [load(target, dtype), value], dtype, dtype), dtype)
    inside = [f"{target} = {value};"]
    if guards:
        inside = [f"if ({scope.guards([flat_reads(g) for g in guards])})", f"  {inside[0]}"]
    for n in reversed(range(rank)):
        inside = counted(names[n], "0", dim_text(updates.shape[order[n]]), inside)
    copy = f"memcpy(out, x, sizeof *out * ({dim_text(x.type.elements, wide=True)}));"
    dims = symbols_of(*x.shape, *updates.shape, *indices.shape)
    given = Parameters(dims, (("x", x), ("indices", indices), ("updates", updates)), (("out", node.types[0]),),
                       comment=f"{kind} {updates.type} at {indices.type} into {x.type}")  # fmt: skip
    return finish([copy, *inside], given, kernel_name("scatter", node.types[0]))


KERNELS: Mapping[str, Callable[[Node], Emitted]] = {
    "argmax": arg_extreme, "argmin": arg_extreme, **dict.fromkeys(RUNNING, running), "top_k": top_k, "sort": sort,
    "scatter": scatter,
}  # fmt: skip
SCRATCH: Mapping[str, Callable[[Node], Dim]] = {"sort": sort_scratch}
