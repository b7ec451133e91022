"""StableHLO as text: tensors, a writer of operations, functions and modules.

One method of `Writer` is one operation in StableHLO's own syntax; it takes and gives `Tensor`s, whose types it writes.
A size that is known only when the program is called is a hole in the text, `$[2*n + 1]` (`number`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from ...ir.types import Dim, DType, Expr, Sym, bounds, dim_max, evaluate, floordiv, numpy_dtype, parse_dim

Size = Any  # an int; an `Expr` where a function leaves sizes open
Shape = tuple[Size, ...]
HOLE = re.compile(r"\$\[([^\]]*)\]")

# Element types by the IR's names, as StableHLO spells them.
ELEMENTS = {
    "f32": "f32", "f16": "f16", "bf16": "bf16", "f64": "f64", "bool": "i1",
    **{f"i{n}": f"i{n}" for n in (8, 16, 32, 64)}, **{f"u{n}": f"ui{n}" for n in (8, 16, 32, 64)},
}  # fmt: skip
FLOATS = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32, "f64": np.uint64}  # and integers that hold their bits


@dataclass(frozen=True)
class Tensor:
    """A value in the text: its name, its shape, and its element type as StableHLO spells it."""

    name: str
    shape: Shape
    element: str

    @property
    def type(self) -> str:
        return tensor_type(self.shape, self.element)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        return self.element in FLOATS

    def __str__(self) -> str:
        return self.name


def number(dim: Dim) -> str:
    """A size in the text, or the hole for one."""
    return f"$[{dim}]" if isinstance(dim, Expr) else str(dim)


def filled(text: str, dims: Mapping[str, int]) -> str:
    """The text with its holes filled, given the sizes by name."""
    known = {name: Sym(name) for name in dims}
    return HOLE.sub(lambda m: str(evaluate(parse_dim(m[1], known), dims)), text)


def largest(dim: Dim) -> int:
    """What a size is at most."""
    return bounds(dim)[1]


def tensor_type(shape: Sequence[Size], element: str) -> str:
    """`tensor<2x3xf32>`"""
    return f"tensor<{''.join(f'{number(d)}x' for d in shape)}{element}>"


def element_of(dtype: DType) -> str:
    """How StableHLO spells an element dtype. KeyError for block formats, which are several tensors."""
    return ELEMENTS[dtype.name]


def _types(tensors: Sequence[Tensor]) -> str:
    return ", ".join(t.type for t in tensors)


def _results(tensors: Sequence[Tensor]) -> str:
    inside = _types(tensors)
    return inside if len(tensors) == 1 else f"({inside})"


def _names(tensors: Sequence[Tensor]) -> str:
    return ", ".join(t.name for t in tensors)


def _numbers(values: Sequence[Size]) -> str:
    return f"[{', '.join(map(number, values))}]"


def _array(values: Sequence[Size]) -> str:
    return f"array<i64: {', '.join(map(number, values))}>" if values else "array<i64>"


def literal(value: Any, element: str) -> str:
    """A number as MLIR writes it: floats with all their digits, those that are not finite by their bits."""
    if isinstance(value, Expr):
        return number(value)
    if element == "i1":
        return "true" if value else "false"
    if element not in FLOATS:
        return str(int(value))
    if isfinite(value):
        digits = f"{float(value):.17e}" if element == "f64" else f"{float(np.float32(value)):.9e}"
        return digits
    if element == "bf16":
        return f"0x{int(np.float32(value).view(np.uint32)) >> 16:04X}"
    bits = np.array(value, {"f16": np.float16, "f32": np.float32, "f64": np.float64}[element])
    return f"0x{int(bits.view(FLOATS[element])):0{bits.itemsize * 2}X}"


class Writer:
    """Writes the body of one function. Names are numbers in the order of writing."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0
        self._depth = 1
        self._known: dict[str, Tensor] = {}  # constants and what is made of nothing, by their text

    def line(self, text: str) -> None:
        self.lines.append("  " * self._depth + text)

    def comment(self, text: str) -> None:
        self.line(f"// {text}")

    def fresh(self, shape: Sequence[Size], element: str) -> Tensor:
        """A name that is not in use."""
        self._count += 1
        return Tensor(f"%{self._count - 1}", tuple(shape), element)

    def assign(self, text: str, shape: Sequence[Size], element: str) -> Tensor:
        """One operation with one result."""
        result = self.fresh(shape, element)
        self.line(f"{result} = {text}")
        return result

    def several(self, text: str, like: Sequence[tuple[Shape, str]]) -> tuple[Tensor, ...]:
        """One operation with any number of results."""
        if not like:
            self.line(text)
            return ()
        name = self.fresh((), "").name
        self.line(f"{name}{f':{len(like)}' if len(like) > 1 else ''} = {text}")
        many = len(like) > 1
        return tuple(Tensor(f"{name}#{i}" if many else name, shape, element)
                     for i, (shape, element) in enumerate(like))  # fmt: skip

    @contextmanager
    def indented(self):
        """A region: what is made inside is not known outside."""
        known, self._known = self._known, dict(self._known)
        self._depth += 1
        yield
        self._depth -= 1
        self._known = known

    def _once(self, text: str, shape: Shape, element: str) -> Tensor:
        if text not in self._known:
            self._known[text] = self.assign(text, shape, element)
        return self._known[text]

    # --- What is made of nothing ---

    def constant(self, value: Any, element: str, shape: Shape = ()) -> Tensor:
        """A number, repeated over `shape`; a size as an integer."""
        kind = tensor_type(shape, element)
        return self._once(f"stablehlo.constant dense<{literal(value, element)}> : {kind}", shape, element)

    def array(self, values: np.ndarray, dtype: DType) -> Tensor:
        """A constant array; bf16 is given as bits in uint16."""
        element, shape = element_of(dtype), tuple(values.shape)
        if values.size == 0:
            return self.assign(f"stablehlo.constant dense<> : {tensor_type(shape, element)}", shape, element)
        flat = np.ascontiguousarray(values).reshape(-1)
        if dtype.name == "bool":
            inside = "[" + ", ".join("true" if v else "false" for v in flat) + "]"
            vector = self._once(f"stablehlo.constant dense<{inside}> : {tensor_type(flat.shape, element)}",
                                flat.shape, element)  # fmt: skip
            return self.reshape(vector, shape)
        flat = flat.astype(numpy_dtype(dtype), copy=False)
        if flat.size == 1 and dtype.name != "bf16":
            return self.constant(flat[0].item(), element, shape)
        data = flat[:1] if (flat.view(np.uint8).reshape(flat.size, -1) == flat[:1].view(np.uint8)).all() else flat
        little = data.astype(data.dtype.newbyteorder("<"), copy=False)
        text = f'dense<"0x{little.tobytes().hex().upper()}"> : {tensor_type(shape, element)}'
        return self._once(f"stablehlo.constant {text}", shape, element)

    def iota(self, shape: Shape, dim: int, element: str = "i32") -> Tensor:
        return self._once(f"stablehlo.iota dim = {dim} : {tensor_type(shape, element)}", shape, element)

    # --- Elements ---

    def map(self, name: str, *operands: Tensor, element: str = "") -> Tensor:
        """An elementwise operation on operands of one type, whose result has it too."""
        first = operands[0]
        return self.assign(f"stablehlo.{name} {_names(operands)} : {first.type}", first.shape, element or first.element)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self.map("add", a, b)

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return self.map("subtract", a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return self.map("multiply", a, b)

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return self.map("divide", a, b)

    def both(self, a: Tensor, b: Tensor) -> Tensor:
        return self.map("and", a, b)

    def compare(self, a: Tensor, b: Tensor, direction: str) -> Tensor:
        """`direction` as in LT, GE; a bool for each element."""
        kind = "FLOAT" if a.is_float else "UNSIGNED" if a.element[0] == "u" or a.element == "i1" else "SIGNED"
        result = tensor_type(a.shape, "i1")
        text = f"stablehlo.compare {direction}, {a}, {b}, {kind} : ({a.type}, {b.type}) -> {result}"
        return self.assign(text, a.shape, "i1")

    def select(self, pred: Tensor, on_true: Tensor, on_false: Tensor) -> Tensor:
        text = f"stablehlo.select {pred}, {on_true}, {on_false} : {pred.type}, {on_true.type}"
        return self.assign(text, on_true.shape, on_true.element)

    def _as(self, name: str, x: Tensor, shape: Shape, element: str, options: str = "") -> Tensor:
        text = f"stablehlo.{name} {x}{options} : ({x.type}) -> {tensor_type(shape, element)}"
        return self.assign(text, shape, element)

    def convert(self, x: Tensor, element: str) -> Tensor:
        return x if x.element == element else self._as("convert", x, x.shape, element)

    def bitcast(self, x: Tensor, element: str) -> Tensor:
        return x if x.element == element else self._as("bitcast_convert", x, x.shape, element)

    def is_finite(self, x: Tensor) -> Tensor:
        return self._as("is_finite", x, x.shape, "i1")

    # --- Shapes ---

    def broadcast(self, x: Tensor, shape: Shape, dims: Sequence[int]) -> Tensor:
        """Axis i of `x` becomes axis dims[i] of `shape`."""
        if x.shape == tuple(shape):
            return x
        return self._as("broadcast_in_dim", x, tuple(shape), x.element, f", dims = {_numbers(dims)}")

    def splat(self, value: float | int | bool, like: Tensor) -> Tensor:
        """A number as a tensor like another."""
        return self.constant(value, like.element, like.shape)

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        return x if x.shape == tuple(shape) else self._as("reshape", x, tuple(shape), x.element)

    def transpose(self, x: Tensor, permutation: Sequence[int]) -> Tensor:
        if list(permutation) == list(range(x.rank)):
            return x
        shape = tuple(x.shape[i] for i in permutation)
        return self._as("transpose", x, shape, x.element, f", dims = {_numbers(permutation)}")

    def reverse(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        return self.assign(f"stablehlo.reverse {x}, dims = {_numbers(axes)} : {x.type}", x.shape, x.element)

    def slice(self, x: Tensor, start: Sequence[Size], limit: Sequence[Size], stride: Sequence[int] = (),
              shape: Shape = ()) -> Tensor:  # fmt: skip
        """`shape` is the result's, where the caller knows its form."""
        stride = tuple(stride) or (1,) * x.rank
        shape = shape or tuple(dim_max(0, floordiv(h - l + s - 1, s)) for l, h, s in zip(start, limit, stride))
        if shape == x.shape:
            return x
        ranges = ", ".join(f"{number(l)}:{number(h)}" + (f":{s}" if s != 1 else "")
                           for l, h, s in zip(start, limit, stride))  # fmt: skip
        return self._as("slice", x, shape, x.element, f" [{ranges}]")

    def part(self, x: Tensor, axis: int, start: Size, limit: Size) -> Tensor:
        """x[…, start:limit, …] along one axis."""
        low, high = list[Size]([0] * x.rank), list(x.shape)
        low[axis], high[axis] = start, limit
        return self.slice(x, low, high)

    def pad(self, x: Tensor, value: Tensor, low: Sequence[Size], high: Sequence[Size], interior: Sequence[int],
            shape: Shape = ()) -> Tensor:  # fmt: skip
        """`shape` is the result's, where the caller knows its form."""
        shape = shape or tuple(dim_max(l + d + (dim_max(d - 1, 0) * i if i else 0) + h, 0)
                               for d, l, h, i in zip(x.shape, low, high, interior))  # fmt: skip
        options = f"low = {_numbers(low)}, high = {_numbers(high)}, interior = {_numbers(interior)}"
        text = f"stablehlo.pad {x}, {value}, {options} : ({x.type}, {value.type}) -> {tensor_type(shape, x.element)}"
        return self.assign(text, shape, x.element)

    def concatenate(self, xs: Sequence[Tensor], axis: int) -> Tensor:
        if len(xs) == 1:
            return xs[0]
        shape = list(xs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in xs)
        result = tensor_type(shape, xs[0].element)
        text = f"stablehlo.concatenate {_names(xs)}, dim = {axis} : ({_types(xs)}) -> {result}"
        return self.assign(text, shape, xs[0].element)

    # --- Reductions and products ---

    def reduce(self, x: Tensor, kind: str, axes: Sequence[int], initial: float | int | bool) -> Tensor:
        """`kind` is an operation of two operands, such as add."""
        if not axes:
            return x
        start = self.constant(initial, x.element)
        shape = tuple(d for i, d in enumerate(x.shape) if i not in axes)
        text = (f"stablehlo.reduce({x} init: {start}) applies stablehlo.{kind} across dimensions = {_numbers(axes)} : "
                f"({x.type}, {start.type}) -> {tensor_type(shape, x.element)}")  # fmt: skip
        return self.assign(text, shape, x.element)

    def total(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        return self.reduce(x, "add", axes, 0)

    def highest(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        return self.reduce(x, "maximum", axes, -np.inf)

    def dot(self, a: Tensor, b: Tensor, contracting: tuple[Sequence[int], Sequence[int]],
            batch: tuple[Sequence[int], Sequence[int]] = ((), ()), element: str = "") -> Tensor:  # fmt: skip
        """Products summed in `element`, by default the operands' own; f32 is computed as f32 on every device."""
        free = [[i for i in range(x.rank) if i not in (*c, *n)] for x, c, n in zip((a, b), contracting, batch)]
        shape = (*(a.shape[i] for i in batch[0]), *(a.shape[i] for i in free[0]), *(b.shape[i] for i in free[1]))
        element = element or a.element
        precision = "HIGHEST" if a.element == "f32" else "DEFAULT"
        batching = f"batching_dims = {_numbers(batch[0])} x {_numbers(batch[1])}, " if batch[0] else ""
        axes = f"{batching}contracting_dims = {_numbers(contracting[0])} x {_numbers(contracting[1])}"
        types = f"({a.type}, {b.type}) -> {tensor_type(shape, element)}"
        text = f"stablehlo.dot_general {a}, {b}, {axes}, precision = [{precision}, {precision}] : {types}"
        return self.assign(text, shape, element)

    def sum_of_devices(self, x: Tensor, count: int) -> Tensor:
        """The sum of what each of the devices 0 … count has, on all of them."""
        result = self.fresh(x.shape, x.element)
        channel = "channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>, use_global_device_ids"
        groups = f"replica_groups = dense<[{list(range(count))}]> : tensor<1x{count}xi64>"
        self.line(f'{result} = "stablehlo.all_reduce"({x}) <{{{groups}, {channel}}}> ({{')
        self._body([((), x.element)] * 2, lambda a, b: (self.add(a, b),))
        self.line(f"}}) : ({x.type}) -> {result.type}")
        return result

    # --- Addresses ---

    def dynamic_slice(self, x: Tensor, starts: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
        if tuple(sizes) == x.shape:
            return x
        operands = (x, *starts)
        text = (f"stablehlo.dynamic_slice {_names(operands)}, sizes = {_numbers(sizes)} : "
                f"({_types(operands)}) -> {tensor_type(sizes, x.element)}")  # fmt: skip
        return self.assign(text, tuple(sizes), x.element)

    def dynamic_update_slice(self, x: Tensor, update: Tensor, starts: Sequence[Tensor]) -> Tensor:
        operands = (x, update, *starts)
        text = f"stablehlo.dynamic_update_slice {_names(operands)} : ({_types(operands)}) -> {x.type}"
        return self.assign(text, x.shape, x.element)

    def gather(self, x: Tensor, indices: Tensor, shape: Shape, numbers: str, sizes: Sequence[Size]) -> Tensor:
        """`numbers` are the fields of `#stablehlo.gather`."""
        text = (f'"stablehlo.gather"({x}, {indices}) <{{dimension_numbers = #stablehlo.gather<{numbers}>, '
                f"indices_are_sorted = false, slice_sizes = {_array(sizes)}}}> : "
                f"({x.type}, {indices.type}) -> {tensor_type(shape, x.element)}")  # fmt: skip
        return self.assign(text, shape, x.element)

    def scatter(self, x: Tensor, indices: Tensor, updates: Tensor, numbers: str,
                combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:  # fmt: skip
        """`combine(old, new)` writes the body; updates that fall outside are dropped."""
        result = self.fresh(x.shape, x.element)
        options = f"scatter_dimension_numbers = #stablehlo.scatter<{numbers}>, unique_indices = false"
        self.line(f'{result} = "stablehlo.scatter"({x}, {indices}, {updates}) '
                  f"<{{indices_are_sorted = false, {options}}}> ({{")  # fmt: skip
        self._body([((), x.element)] * 2, lambda a, b: (combine(a, b),))
        self.line(f"}}) : ({_types((x, indices, updates))}) -> {x.type}")
        return result

    def sort(self, xs: Sequence[Tensor], axis: int, before: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """Stable; `before(a0, b0, a1, b1, …)` says whether elements a stand before elements b."""
        name = self.fresh((), "").name
        many = len(xs) > 1
        self.line(f'{name}{f":{len(xs)}" if many else ""} = "stablehlo.sort"({_names(xs)}) '
                  f"<{{dimension = {axis} : i64, is_stable = true}}> ({{")  # fmt: skip
        self._body([((), x.element) for x in xs for _ in "ab"], lambda *p: (before(*p),))
        self.line(f"}}) : ({_types(xs)}) -> {_results(xs)}")
        return tuple(Tensor(f"{name}#{i}" if many else name, x.shape, x.element) for i, x in enumerate(xs))

    def reduce_pairs(self, xs: Sequence[Tensor], axis: int, initial: Sequence[Tensor],
                     combine: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor, ...]:  # fmt: skip
        """Several tensors reduced together: `combine(*left, *right)` gives one element of each."""
        shape = tuple(d for i, d in enumerate(xs[0].shape) if i != axis)
        name = self.fresh((), "").name
        self.line(f'{name}:{len(xs)} = "stablehlo.reduce"({_names((*xs, *initial))}) '
                  f"<{{dimensions = array<i64: {axis}>}}> ({{")  # fmt: skip
        self._body([((), x.element) for _ in "ab" for x in xs], combine)
        results = tuple(Tensor(f"{name}#{i}", shape, x.element) for i, x in enumerate(xs))
        self.line(f"}}) : ({_types((*xs, *initial))}) -> {_results(results)}")
        return results

    def reduce_window(self, x: Tensor, kind: str, shape: Shape, settings: Mapping[str, Sequence[int]],
                      padding: Sequence[tuple[Size, Size]], initial: float | int | bool) -> Tensor:  # fmt: skip
        """`settings` are the operation's arrays by their names, one number for each axis."""
        start = self.constant(initial, x.element)
        result = self.fresh(shape, x.element)
        options = ", ".join(f"{name} = {_array(values)}" for name, values in settings.items())
        pairs = ", ".join(_numbers(p) for p in padding)
        pads = f"padding = dense<[{pairs}]> : tensor<{len(padding)}x2xi64>"
        self.line(f'{result} = "stablehlo.reduce_window"({x}, {start}) <{{{options}, {pads}}}> ({{')
        self._body([((), x.element)] * 2, lambda a, b: (self.map(kind, a, b),))
        self.line(f"}}) : ({x.type}, {start.type}) -> {result.type}")
        return result

    # --- Control ---

    def _body(self, parameters: Sequence[tuple[Shape, str]], write: Callable[..., Sequence[Tensor]]) -> None:
        """The lines of a region whose arguments are new names, with its return."""
        with self.indented():
            self._known = {}  # what operations such as sort compute with may not be read from outside
            given = [self.fresh(*p) for p in parameters]
            if given:
                self.line(f"^bb0({', '.join(f'{t}: {t.type}' for t in given)}):")
            self.give(write(*given))

    def give(self, results: Sequence[Tensor]) -> None:
        """The end of a region."""
        self.line(f"stablehlo.return {_names(results)} : {_types(results)}" if results else "stablehlo.return")

    def call(self, function: str, operands: Sequence[Tensor], like: Sequence[tuple[Shape, str]]) -> tuple[Tensor, ...]:
        types = ", ".join(tensor_type(*l) for l in like)
        return self.several(f"func.call @{function}({_names(operands)}) : ({_types(operands)}) -> ({types})", like)

    def loop(self, carry: Sequence[Tensor], cond: Callable[..., Tensor],
             body: Callable[..., Sequence[Tensor]]) -> tuple[Tensor, ...]:  # fmt: skip
        """While `cond(*carry)`, the carry becomes `body(*carry)`. Both may read what was made before the loop."""
        name = self.fresh((), "").name
        many = len(carry) > 1
        inner = [self.fresh(t.shape, t.element) for t in carry]
        given = ", ".join(f"{i} = {t}" for i, t in zip(inner, carry))
        self.line(f"{name}{f':{len(carry)}' if many else ''} = stablehlo.while({given}) : {_types(carry)}")
        with self.indented():
            self.line("cond {")
            with self.indented():
                self.give([cond(*inner)])
            self.line("} do {")
            with self.indented():
                self.give(body(*inner))
            self.line("}")
        return tuple(Tensor(f"{name}#{i}" if many else name, t.shape, t.element) for i, t in enumerate(carry))

    def case(self, index: Tensor, branches: Sequence[Callable[[], Sequence[Tensor]]],
             like: Sequence[tuple[Shape, str]]) -> tuple[Tensor, ...]:  # fmt: skip
        """The results of branch `index`, an i32 scalar; the last one where it is outside."""
        name = self.fresh((), "").name
        many = len(like) > 1
        self.line(f'{name}{f":{len(like)}" if many else ""} = "stablehlo.case"({index}) ({{')
        for i, branch in enumerate(branches):
            if i:
                self.line("}, {")
            self._body([], branch)
        types = ", ".join(tensor_type(*l) for l in like)
        self.line(f"}}) : ({index.type}) -> ({types})")
        return tuple(Tensor(f"{name}#{i}" if many else name, s, e) for i, (s, e) in enumerate(like))

    # --- Functions ---

    def function(self, name: str, inputs: Sequence[tuple[Tensor, str]], outputs: Sequence[Tensor], public: bool,
                 notes: Sequence[str] = ()) -> str:  # fmt: skip
        """The text of the function whose body has been written; inputs with their attributes, or ""."""
        given = ",\n    ".join(f"{t}: {t.type}" + (f" {attributes}" if attributes else "") for t, attributes in inputs)
        types = ", ".join(t.type for t in outputs)
        head = f"func.func {'public' if public else 'private'} @{name}(\n    {given}) -> ({types}) {{"
        last = f"  return {_names(outputs)} : {types}" if outputs else "  return"
        return "\n".join([*(f"// {n}" for n in notes), head, *self.lines, last, "}"])


def identifier(name: str) -> str:
    """A name as MLIR takes one after @: letters, digits and _ of ASCII, no digit first."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"_{plain}" if plain[:1].isdigit() else plain


def module_text(name: str, functions: Sequence[str]) -> str:
    """A module of functions."""
    inside = "\n\n".join(functions)
    return f"module @{identifier(name) or 'program'} {{\n{inside}\n}}\n"
