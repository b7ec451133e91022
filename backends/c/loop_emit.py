"""Any `Loop` as readable C: one function, whose outermost axis is split among the workers where the work is large."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ...ir.types import DType, bounds, f32
from .loop_function import Emitted, Parameters, counted, dim_text, finish, is_parallel, size_name, symbols_of
from .loop_model import (
    Affine,
    Apply,
    Axis,
    Body,
    Guard,
    Lookup,
    Loop,
    Position,
    Read,
    axes,
    collapse,
    flatten,
    index_of,
    move,
    parts,
)
from .loop_scope import Scope, unguarded_lookups
from .loop_words import SIDE_BY_SIDE, WordScope, in_words, slow, work
from .scalar import HALVES, VALUE_TYPES, expression, store
from .text import C_TYPES, Names

OUTER_NAMES, REDUCED_NAMES = "ijkmno", "pquvw"
# What the lines name themselves.
LOCALS = ("width", "to", "half", "args", "g", "begin", "end", "worker", "l", "lane", "count", "total", "last", "q")

TILES = (64, 32, 16)  # outputs of a dot product computed side by side: wide ones where words can be loaded

COLUMNS, MOST_COLUMNS = 16, 256  # neighbours that are reduced side by side: a stream that the CPU foresees

# monoid → (identity for floats, for integers and bool as a C expression of the type's name, combining operation)
MONOIDS = {
    "sum": ("0", "0", "add"), "prod": ("1", "1", "mul"), "max": ("-INFINITY", "{low}", "max"),
    "min": ("INFINITY", "{high}", "min"), "and": ("", "{ones}", "and"), "or": ("", "0", "or"),
    "xor": ("", "0", "xor"),
}  # fmt: skip


def emit(loop: Loop, name: str, operand_names: Sequence[str] = ()) -> Emitted:
    """The loop as a C function whose symbol begins with `name`; equal text gives equal symbols.

    `operand_names` are wished names for `loop.operands`; without them they are called a, b, c …
    """
    loop = collapse(loop)
    writer = _Writer(loop, operand_names)
    return finish(writer.lines(), writer.context(), name)


# ---- loops ----------------------------------------------------------------------------------------------------------


class _Writer:
    """The body of one collapsed loop's function."""

    def __init__(self, loop: Loop, operand_names: Sequence[str]) -> None:
        self.loop, self.rank = loop, len(loop.shape)
        sizes = [*loop.shape, *loop.reduced]
        indices = [p for p in parts(loop.body) if isinstance(p, Affine)]
        found = [d for i in indices for d in (i.offset, *(c for _, c in i.terms))]
        found += [g.limit for g in parts(loop.body) if isinstance(g, Guard)]
        found += [d for a in parts(loop.body) if isinstance(a, Lookup) and a.clamp for d in a.clamp]
        self.dims = symbols_of(*sizes, *found)
        names = Names([*map(size_name, self.dims), *LOCALS])
        wished = list(operand_names) or list("abcdefgh"[: len(loop.operands)])
        wished += [f"x{n}" for n in range(len(wished), len(loop.operands))]
        self.operand = {v: names.new(n) for v, n in zip(loop.operands, wished)}
        self.out = names.new("out")
        outer = [names.new(OUTER_NAMES[n] if n < len(OUTER_NAMES) else f"i{n}") for n in range(self.rank)]
        inner = [names.new(REDUCED_NAMES[n] if n < len(REDUCED_NAMES) else f"p{n}") for n in range(len(loop.reduced))]
        moved_only = not loop.monoid and not any(isinstance(p, (Apply, Position)) for p in parts(loop.body))
        self.scope = Scope(outer + inner, self.operand, raw=moved_only)

    def context(self) -> Parameters:
        loop = self.loop
        reads = ", ".join(f"{self.operand[v]} {v.type}" for v in loop.operands)
        comment = f"{reads} -> {loop.result.type}" if reads else str(loop.result.type)
        count = loop.shape[0] if self.rank else 1
        each = work(prod(loop.shape[1:]) * prod(loop.reduced), loop.body)
        return Parameters(self.dims, tuple((n, v) for v, n in self.operand.items()), ((self.out, loop.result.type),),
                          count, each, comment)  # fmt: skip

    def lines(self) -> list[str]:
        loop, found = self.loop, self._lookups()
        tiled = self._tile_axis() if loop.monoid == "dot" and not any(found) else None
        if tiled is None and self._has_columns() and not any(found):
            tiled = self.rank - 1
            inside = self._columns(tiled)
        elif tiled is not None:
            inside = self._tiles(tiled)
        elif self._has_words() and not any(found):
            tiled = self.rank - 1
            inside = self._words(tiled)
        else:
            target = self._target(axes(self.rank))
            inside = self._reduction(target) if loop.monoid else self._assignment(target)
            inside = [*found[self.rank], *inside]
        for n in reversed(range(self.rank)):
            if n != tiled:
                inside = [*found[n], *counted(self.scope.axis[n], *self._range(n), inside)]
        return inside

    def _range(self, n: int) -> tuple[str, str]:
        """Where the counter of output axis n begins and ends."""
        split = n == 0 and is_parallel(self.loop.shape[0], self.context().work)
        return ("begin", "end") if split else ("0", dim_text(self.loop.shape[n]))

    def _target(self, index: Sequence[Affine]) -> str:
        """The place of an element of the result."""
        return f"{self.out}[{Scope(self.scope.axis, {}).index(flatten(index, self.loop.shape))}]"

    def _lookups(self) -> list[list[str]]:
        """Declarations of looked-up indices that need no guard: entry n belongs inside of n output axes."""
        lines: list[list[str]] = [[] for _ in range(self.rank + 1)]
        for atom in dict.fromkeys(unguarded_lookups(self.loop.body)):
            depth = max((p.number + 1 for p in parts(atom) if isinstance(p, Axis)), default=0)
            if depth <= self.rank:
                name = f"at{len(self.scope.found)}"
                lines[depth].append(f"const int64_t {name} = {self.scope.lookup(atom).removeprefix('(int64_t)')};")
                self.scope.found[atom] = name
        return lines

    def _assignment(self, target: str) -> list[str]:
        bindings = list(self.scope.bindings(self.loop.body))
        text = self.scope.body(self.loop.body)
        return [*bindings, f"{target} = {text if self.scope.raw else store(text, self.loop.result.dtype)};"]

    def _has_words(self) -> bool:
        """Whether the last axis is walked in vectors, which is worth it for several slow functions."""
        loop, last = self.loop, self.rank - 1
        wide = last >= 0 and bounds(loop.shape[last])[0] >= COLUMNS
        return wide and not loop.monoid and loop.result.dtype == f32 and slow(loop.body) > 1 and in_words(
            loop.body, (last,))  # fmt: skip

    def _words(self, n: int) -> list[str]:
        """Sixteen neighbours along axis n at a time, and four times as many as long as there are."""
        counter, (low, high) = self.scope.axis[n], self._range(n)
        target, wide = self._target(axes(self.rank)), 16 * SIDE_BY_SIDE

        def stored(**lanes: Any) -> list[str]:
            scope = WordScope(self.scope.axis, self.operand, along=(n,), **lanes)
            return [f"  {line}" for line in scope.stored(target, self.loop.body)]

        lines = [f"int64_t {counter} = {low};", f"for (; {counter} + {wide} <= {high}; {counter} += {wide}) {{",
                 *stored(vectors=SIDE_BY_SIDE), "}"]  # fmt: skip
        size = self.loop.shape[n]
        if low == "0" and isinstance(size, int) and size % wide == 0:
            return lines
        return [*lines, f"for (; {counter} < {high}; {counter} += 16) {{",
                f"  const int last = {high} - {counter} < 16 ? (int)({high} - {counter}) : 16;",
                *stored(last="last"), "}"]  # fmt: skip

    def _reduction(self, target: str) -> list[str]:
        dtype = self.loop.result.dtype
        kind = VALUE_TYPES[dtype.name]
        if self.loop.monoid == "dot":
            start, total = [f"{VALUE_TYPES[self.loop.body.dtype.name]} total = 0;"], "total"
            lines = self._nest([self._multiply_add(total, self.loop.body)])
        elif dtype.is_float:
            start, lines, total = self._lanes(kind)
        else:
            start = [f"{kind} total = {identity(self.loop.monoid, dtype)};"]
            bindings, text = list(self.scope.bindings(self.loop.body)), self.scope.body(self.loop.body)
            update = expression(MONOIDS[self.loop.monoid][2], ["total", text], dtype, dtype)
            lines, total = self._nest([*bindings, f"total = {update};"]), "total"
        return [*start, *lines, f"{target} = {store(total, dtype)};"]

    def _nest(self, inside: list[str]) -> list[str]:
        """The lines inside loops over the reduced axes."""
        for n in reversed(range(len(self.loop.reduced))):
            inside = counted(self.scope.axis[self.rank + n], "0", dim_text(self.loop.reduced[n]), inside)
        return inside

    def _multiply_add(self, total: str, product: Body) -> str:
        """A step of a chain of fused multiply-adds; for integers of a sum of products."""
        assert isinstance(product, Apply) and product.op == "mul"
        a, b = (self.scope.body(x) for x in product.args)
        dtype = product.dtype
        if dtype.is_integer:
            return f"{total} = {expression('add', [total, expression('mul', [a, b], dtype, dtype)], dtype, dtype)};"
        return f"{total} = {'fma' if dtype.name == 'f64' else 'fmaf'}({a}, {b}, {total});"

    def _walks(self, n: int) -> bool:
        """Whether an operand has what one step of axis n adds right behind: then the compiler loads whole words."""
        return any(isinstance(p, Read) and p.index[0].coefficient(n) == 1 for p in parts(self.loop.body))

    def _tile_axis(self) -> int | None:
        """The output axis along which chains of multiply-adds run side by side, one being as slow as the latency."""
        large = [n for n, size in enumerate(self.loop.shape) if bounds(size)[1] >= TILES[-1]]
        return max(large, key=lambda n: (bounds(self.loop.shape[n])[0] >= TILES[-1], self._walks(n), n), default=None)

    def _tiles(self, n: int) -> list[str]:
        """Tiles of outputs along axis n, then those that are left, one by one. Each output is still one chain."""
        size, counter, (low, high) = self.loop.shape[n], self.scope.axis[n], self._range(n)
        tile = min(TILES, key=lambda t: size % t if isinstance(size, int) else t != 32) if self._walks(n) else TILES[-1]
        self.scope.axis.append("l")
        along = list(axes(self.rank + len(self.loop.reduced)))
        along[n] += index_of(Axis(len(along)))
        lanes = f"for (int l = 0; l < {tile}; l++)"
        step = self._multiply_add("total[l]", move(self.loop.body, along))
        lines = [
            f"int64_t {counter} = {low};",
            f"for (; {counter} + {tile} <= {high}; {counter} += {tile}) {{",
            f"  {VALUE_TYPES[self.loop.body.dtype.name]} total[{tile}] = {{0}};",
            *(f"  {line}" for line in self._nest([lanes, f"  {step}"])),
            f"  {lanes} {self._target(along[: self.rank])} = {store('total[l]', self.loop.result.dtype)};",
            "}",
        ]
        if low == "0" and isinstance(size, int) and size % tile == 0:
            return lines
        one_by_one = (f"  {line}" for line in self._reduction(self._target(axes(self.rank))))
        return [*lines, f"for (; {counter} < {high}; {counter}++) {{", *one_by_one, "}"]

    def _has_columns(self) -> bool:
        """Whether a reduction of floats reads neighbours along the last output axis: then many go side by side."""
        loop, last = self.loop, self.rank - 1
        if loop.monoid == "dot" or not loop.monoid or not loop.result.dtype.is_float or last < 0:
            return False
        steps = [p.index[0].coefficient(last) for p in parts(loop.body) if isinstance(p, Read)]
        along = {p.index[0].coefficient(last + 1 + n) for p in parts(loop.body) if isinstance(p, Read)
                 for n in range(len(loop.reduced))}  # fmt: skip
        guarded = any(g.index.coefficient(last) != 0 for g in parts(loop.body) if isinstance(g, Guard))
        wide = bounds(loop.shape[last])[0] >= COLUMNS
        return wide and 1 in steps and set(steps) <= {0, 1} and 1 not in along and not guarded

    def _columns(self, n: int) -> list[str]:
        """Reductions of neighbours along axis n, each with its sixteen accumulators, folded at the end."""
        loop, scope, counter, (low, high) = self.loop, self.scope, self.scope.axis[n], self._range(n)
        dtype = loop.result.dtype
        kind, start = VALUE_TYPES[dtype.name], MONOIDS[loop.monoid][0]
        size = loop.shape[n]
        width = next((w for w in range(MOST_COLUMNS, COLUMNS, -1) if isinstance(size, int) and size % w == 0), COLUMNS)
        wide = f32 if loop.body.dtype.name in HALVES else loop.body.dtype
        scope.axis.append("l")
        along = list(axes(self.rank + len(loop.reduced)))
        along[n] += index_of(Axis(len(along)))
        body = move(loop.body, along)
        every = f"for (int l = 0; l < {width}; l++)"

        def combined(a: str, b: str) -> str:
            return expression(MONOIDS[loop.monoid][2], [a, b], wide, wide)

        step = combined("to[l]", scope.body(body))
        fill = f"  for (int q = count & 15; q && q < 16; q++) {every} lane[q][l] = {combined('lane[q][l]', start)};"
        return [
            f"for (int64_t {counter} = {low}; {counter} < {high}; {counter} += {width}) {{",
            f"  const int64_t width = {high} - {counter} < {width} ? {high} - {counter} : {width};",
            f"  {kind} lane[16][{width}];",
            f"  for (int q = 0; q < 16; q++) {every} lane[q][l] = {start};",
            "  int count = 0;",
            *(f"  {line}" for line in self._nest([
                f"{kind} *const to = lane[count++ & 15];", "if (width == " + str(width) + f") {every} to[l] = {step};",
                f"else for (int l = 0; l < width; l++) to[l] = {step};"])),
            *([fill] if loop.monoid in ("max", "min") else []),
            "  for (int half = 8; half; half /= 2)",
            f"    for (int q = 0; q < half; q++) {every} lane[q][l] = {combined('lane[q][l]', 'lane[q + half][l]')};",
            f"  for (int l = 0; l < width; l++) {self._target(along[: self.rank])} = {store('lane[0][l]', dtype)};",
            "}",
        ]  # fmt: skip

    def _lanes(self, kind: str) -> tuple[list[str], list[str], str]:
        """Sixteen accumulators, element n of the reduced sequence in lane n % 16, folded at the end."""
        loop, scope = self.loop, self.scope
        computed = "f64" if kind == "double" else "f32"
        monoid, start = loop.monoid, MONOIDS[loop.monoid][0]
        head = [f"{kind} lane[16];", f"for (int l = 0; l < 16; l++) lane[l] = {start};"]
        wide = f32 if loop.body.dtype.name in HALVES else loop.body.dtype

        def update(lane: str, body: Body) -> str:
            return f"{lane} = {expression(MONOIDS[monoid][2], [lane, scope.body(body)], wide, wide)};"

        # A lane that the last line does not fill takes the identity, which drops a NaN from a maximum.
        fill = f"lane[l] = {monoid}_{computed}(lane[l], {start})" if monoid in ("max", "min") else ""
        if len(loop.reduced) == 1:
            size, p = loop.reduced[0], scope.axis[self.rank]
            scope.axis.append("l")
            body = move(loop.body, [*axes(self.rank), index_of(Axis(self.rank)) + index_of(Axis(self.rank + 1))])
            step = update("lane[l]", body)
            whole = isinstance(size, int) and size % 16 == 0
            lines = [f"int64_t {p} = 0;"] if not whole else []
            first = f"int64_t {p} = 0" if whole else ""
            lines += [f"for ({first}; {p} + 16 <= {dim_text(size)}; {p} += 16)"]
            lines += [f"  for (int l = 0; l < 16; l++) {step}"]
            if not whole:
                lines += [f"for (int l = 0; {p} + l < {dim_text(size)}; l++) {step}"]
                if fill:
                    lines += [f"for (int l = (int)({dim_text(size)} - {p}); l && l < 16; l++) {fill};"]
        else:
            head.append("int count = 0;")
            lines = self._nest([update("lane[count & 15]", loop.body), "count++;"])
            if fill:
                lines.append(f"for (int l = count & 15; l && l < 16; l++) {fill};")
        return head, lines, f"fold_{monoid}_{computed}(lane)"


def identity(monoid: str, dtype: DType) -> str:
    """The start of an integer or boolean reduction."""
    bits, signed = dtype.block_bytes * 8, dtype.name[0] == "i"
    if dtype.name == "bool":
        names = {"low": "false", "high": "true", "ones": "true"}
    else:
        low = f"INT{bits}_MIN" if signed else "0"
        names = {"low": low, "high": f"{'' if signed else 'U'}INT{bits}_MAX", "ones": f"({C_TYPES[dtype.name]})-1"}
    return MONOIDS[monoid][1].format(**names)
