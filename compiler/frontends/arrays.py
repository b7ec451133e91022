"""NumPy's notation for building graphs: what front ends that import another graph write their operators in.

An `Array` is a value of the graph that a `Body` builds. Operators broadcast as NumPy does and take Python numbers, in
the array's dtype. Nothing is computed: each operation makes nodes.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from ...ir.graph import Graph, IRError, Node, Origin, Value, Weight, make, make_input
from ...ir.ops import OPS
from ...ir.ops.decompose import length
from ...ir.types import (
    DTYPES,
    Dim,
    DimCall,
    DType,
    Expr,
    Type,
    bf16,
    dim_max,
    dim_min,
    evaluate,
    f32,
    f64,
    floordiv,
    i64,
    numpy_dtype,
    symbols,
)

CONSTANT_BYTES = 1024  # a larger constant becomes a weight
Number = int | float | bool
OF_NUMPY = {d.numpy or "bfloat16": d for d in DTYPES.values() if d.numpy or d.name == "bf16"}


def dtype_of(array: np.ndarray | np.dtype) -> DType:
    """The dtype of the IR for NumPy's (bf16 is that of ml_dtypes). Raises IRError for one that the IR has not."""
    name = str(getattr(array, "dtype", array))
    if name not in OF_NUMPY:
        raise IRError(f"the dtype {name} is not supported")
    return OF_NUMPY[name]


def numpy_of(dtype: DType) -> np.dtype:
    """The dtype whose arithmetic is that of the IR's: bf16 is that of ml_dtypes, not its bits."""
    return np.dtype(ml_dtypes.bfloat16) if dtype == bf16 else numpy_dtype(dtype)


def as_bits(array: np.ndarray) -> np.ndarray:
    """The array as the interpreter holds it: bf16 as its bits."""
    return array.view(np.uint16) if str(array.dtype) == "bfloat16" else array


@dataclass
class Body:
    """A graph while it is built. `weights` collects those that its nodes read, `origin` is given to new nodes.

    Inside `scope`, nodes are those of a graph of control flow, which `close` makes of them.
    """

    weights: dict[str, Weight] = field(default_factory=dict)
    origin: Origin = Origin()
    inputs: dict[str, Node] = field(default_factory=dict)  # of weights, by name
    made: list[set[Node]] = field(default_factory=lambda: [set()])

    def make(self, op: str, *operands: Value, **attrs: Any) -> tuple[Value, ...]:
        """Applies an op of the IR here."""
        node = make(OPS[op], *operands, origin=self.origin, **attrs)
        self.made[-1].add(node)
        return node.values

    def apply(self, op: str, *operands: Array, **attrs: Any) -> Array:
        """The one result of an op."""
        return Array(self.make(op, *(a.value for a in operands), **attrs)[0], self)

    def apply_all(self, op: str, *operands: Array, **attrs: Any) -> tuple[Array, ...]:
        return tuple(Array(v, self) for v in self.make(op, *(a.value for a in operands), **attrs))

    def weight(self, weight: Weight) -> Array:
        """The weight as an array; it is read when the artifact is written."""
        if weight.name not in self.inputs:
            self.weights[weight.name] = weight
            self.inputs[weight.name] = make_input(weight.name, "weight", weight.type)
        return Array(self.inputs[weight.name][0], self)

    def constant(self, value: Any, dtype: DType | None = None) -> Array:
        """Numbers as an array: a constant of the graph, or above 1 KiB a weight."""
        array = np.asarray(value, None if dtype is None else numpy_of(dtype))
        type = Type(array.shape, dtype or dtype_of(array))
        bits = np.ascontiguousarray(as_bits(array)).reshape(array.shape)
        if array.size > 1 and bits.tobytes() == bits.reshape(-1)[:1].tobytes() * array.size:
            return self.constant(array.reshape(-1)[0], type.dtype).broadcast_to(type.shape)
        if bits.nbytes <= CONSTANT_BYTES:
            return Array(self.make("constant", value=bits.tobytes(), type=type)[0], self)
        digest = hashlib.sha256(repr(type).encode() + bits.tobytes()).hexdigest()
        return self.weight(Weight(f"constants.{digest[:12]}", type, lambda: bits))

    def full(self, shape: Sequence[Dim], value: Number, dtype: DType = f32) -> Array:
        return self.constant(value, dtype).broadcast_to(tuple(shape))

    def arange(self, count: Dim, dtype: DType = i64) -> Array:
        return Array(self.make("iota", type=Type((count,), dtype), dim=0)[0], self)

    def iota(self, shape: Sequence[Dim], dim: int, dtype: DType = i64) -> Array:
        return Array(self.make("iota", type=Type(tuple(shape), dtype), dim=dim)[0], self)

    def dim(self, size: Dim, dtype: DType = i64) -> Array:
        """A dimension as a scalar."""
        return self.constant(size, dtype) if isinstance(size, int) else Array(length(size), self).astype(dtype)

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.made.append(set())
        try:
            yield
        finally:
            self.made[-2].update(self.made.pop())

    def close(self, name: str, inputs: Sequence[Node], outputs: Sequence[Array]) -> tuple[Graph, list[Value]]:
        """The graph of nodes made in this scope, and the values from outside that it reads: inputs before `inputs`."""
        inside, captured = self.made[-1], dict[Value, Node]()
        whole = Graph(name, tuple(inputs), tuple(o.value for o in outputs))
        order = [n for n in whole.nodes() if n in inside or n in inputs or _is_constant(n)]
        reached = {n for n in order}
        for value in [v for n in order for v in n.inputs] + list(whole.outputs):
            if value.node not in reached and value not in captured:
                node, taken = value.node, len(captured)
                weight = node.op.name == "input" and node.attr("role") == "weight"
                known = node.attr("name") if weight else f"outer{taken}"
                captured[value] = make_input(known, "weight" if weight else "arg", value.type)
        return _with_inputs(whole, captured), list(captured)

    def closed_together(self, graphs: Sequence[tuple[Graph, list[Value]]]) -> tuple[list[Graph], list[Value]]:
        """The same graphs with one list of captured values before their inputs, and that list."""
        union = list(dict.fromkeys(v for _, captured in graphs for v in captured))
        result = []
        for graph, captured in graphs:
            own = dict(zip(captured, graph.inputs))
            extra = [own.get(v) or make_input(f"unused{i}", "arg", v.type) for i, v in enumerate(union)]
            result.append(Graph(graph.name, (*extra, *graph.inputs[len(captured) :]), graph.outputs))
        return result, union


def _is_constant(node: Node) -> bool:
    return node.op.name == "constant"


def _with_inputs(graph: Graph, captured: dict[Value, Node]) -> Graph:
    """`graph` with inputs in the place of values from outside."""
    new: dict[Value, Value] = {v: n[0] for v, n in captured.items()}
    own = set(graph.inputs)

    def visit(value: Value) -> Value:
        stack = [value.node]
        while stack:
            node = stack[-1]
            if node[0] in new or node in own or value in new:
                stack.pop()
                continue
            waiting = [v.node for v in node.inputs if v not in new and v.node not in own]
            waiting = [n for n in waiting if n[0] not in new]
            if waiting:
                stack += waiting
                continue
            stack.pop()
            operands = tuple(new.get(v, v) for v in node.inputs)
            made = node if operands == node.inputs else make(node.op, *operands, origin=node.origin, **dict(node.attrs))
            new.update(zip(node.values, made.values))
        return new.get(value, value)

    outputs = tuple(visit(v) for v in graph.outputs)
    return Graph(graph.name, (*captured.values(), *graph.inputs), outputs)


@dataclass(frozen=True)
class Array:
    """A value of a graph in NumPy's notation."""

    value: Value
    body: Body

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.value.shape

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    @property
    def rank(self) -> int:
        return self.value.type.rank

    # --- elementwise ---

    def _with(self, op: str, other: Array | Number, swapped: bool = False, **attrs: Any) -> Array:
        a, b = together(self, self.like(other))
        return self.body.apply(op, *((b, a) if swapped else (a, b)), **attrs)

    def like(self, other: Array | Number) -> Array:
        """A Python number as a scalar of this dtype; an array as it is."""
        return other if isinstance(other, Array) else self.body.constant(other, self.dtype)

    def __add__(self, other: Array | Number) -> Array:
        return self._with("add", other)

    def __sub__(self, other: Array | Number) -> Array:
        return self._with("sub", other)

    def __mul__(self, other: Array | Number) -> Array:
        return self._with("mul", other)

    def __truediv__(self, other: Array | Number) -> Array:
        return self._with("div", other)

    def __radd__(self, other: Number) -> Array:
        return self._with("add", other, swapped=True)

    def __rsub__(self, other: Number) -> Array:
        return self._with("sub", other, swapped=True)

    def __rmul__(self, other: Number) -> Array:
        return self._with("mul", other, swapped=True)

    def __rtruediv__(self, other: Number) -> Array:
        return self._with("div", other, swapped=True)

    def __neg__(self) -> Array:
        return self.body.apply("neg", self)

    def __and__(self, other: Array) -> Array:
        return self._with("and", other)

    def __or__(self, other: Array) -> Array:
        return self._with("or", other)

    def __invert__(self) -> Array:
        return self.body.apply("not", self)

    def compare(self, direction: str, other: Array | Number) -> Array:
        return self._with("compare", other, direction=direction)

    def __lt__(self, other: Array | Number) -> Array:
        return self.compare("lt", other)

    def __le__(self, other: Array | Number) -> Array:
        return self.compare("le", other)

    def __gt__(self, other: Array | Number) -> Array:
        return self.compare("gt", other)

    def __ge__(self, other: Array | Number) -> Array:
        return self.compare("ge", other)

    def maximum(self, other: Array | Number) -> Array:
        return self._with("max", other)

    def minimum(self, other: Array | Number) -> Array:
        return self._with("min", other)

    def rem(self, other: Array | Number) -> Array:
        return self._with("rem", other)

    def unary(self, op: str, **attrs: Any) -> Array:
        return self.body.apply(op, self, **attrs)

    def exp(self) -> Array:
        return self.unary("exp")

    def log(self) -> Array:
        return self.unary("log")

    def sqrt(self) -> Array:
        return self.unary("sqrt")

    def tanh(self) -> Array:
        return self.unary("tanh")

    def abs(self) -> Array:
        return self.unary("abs")

    def floor(self) -> Array:
        return self.unary("floor")

    def ceil(self) -> Array:
        return self.unary("ceil")

    def logistic(self) -> Array:
        return self.unary("logistic")

    def astype(self, dtype: DType) -> Array:
        return self if dtype == self.dtype else self.unary("convert", dtype=dtype)

    def floordiv(self, other: Array | Number) -> Array:
        """Toward minus infinity, for integers and floats."""
        other = self.like(other)
        if self.dtype.is_float:
            return (self / other).floor()
        quotient, rest = self / other, self.rem(other)
        wrong = rest.compare("ne", 0) & (rest < 0).compare("ne", together(rest, other)[1] < 0)
        return where(wrong, quotient - 1, quotient)

    # --- views and moves ---

    def reshape(self, *shape: Dim | Sequence[Dim]) -> Array:
        """One size may be -1."""
        sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else tuple(shape)
        if -1 in sizes:
            sizes = infer_size(self.shape, sizes)  # type: ignore[arg-type]
        return self if sizes == self.shape else self.unary("reshape", shape=sizes)

    def transpose(self, *permutation: int) -> Array:
        """Axis i of the result is axis permutation[i]; without arguments the axes are reversed."""
        order = permutation or tuple(reversed(range(self.rank)))
        order = tuple(p % self.rank for p in order)
        return self if order == tuple(range(self.rank)) else self.unary("transpose", permutation=order)

    def swapaxes(self, a: int, b: int) -> Array:
        order = list(range(self.rank))
        order[a], order[b] = order[b], order[a]
        return self.transpose(*order)

    def moveaxis(self, source: int, target: int) -> Array:
        source, target = source % self.rank, target % self.rank
        order = [i for i in range(self.rank) if i != source]
        return self.transpose(*order[:target], source, *order[target:])

    def broadcast_to(self, shape: Sequence[Dim]) -> Array:
        """Raises IRError where a size is neither 1 nor that of `shape`."""
        shape = tuple(shape)
        if shape == self.shape:
            return self
        return self.unary("broadcast", shape=shape, dims=tuple(range(len(shape) - self.rank, len(shape))))

    def expand(self, shape: Sequence[Dim], dims: Sequence[int]) -> Array:
        """Axis i lands on axis dims[i]."""
        return self.unary("broadcast", shape=tuple(shape), dims=tuple(dims))

    def unsqueeze(self, *axes: int) -> Array:
        """Axes of one, at these places of the result."""
        rank = self.rank + len(axes)
        places = sorted(a % rank for a in axes)
        rest = iter(self.shape)
        return self.reshape([1 if i in places else next(rest) for i in range(rank)])

    def squeeze(self, *axes: int) -> Array:
        gone = {a % self.rank for a in axes}
        return self.reshape([d for i, d in enumerate(self.shape) if i not in gone])

    def slice(self, axis: int, start: Dim = 0, stop: Dim | None = None, step: int = 1) -> Array:
        """Elements start, start + step … below stop of an axis: 0 <= start <= stop <= its size, step > 0."""
        axis %= self.rank
        size = self.shape[axis]
        stop = size if stop is None else stop
        if (start, stop, step) == (0, size, 1):
            return self
        low: list[Dim] = [0] * self.rank
        low[axis] = start
        high = (*self.shape[:axis], stop, *self.shape[axis + 1 :])
        strides = [step if i == axis else 1 for i in range(self.rank)]
        return self.unary("slice", start=tuple(low), limit=high, stride=tuple(strides))

    def at(self, axis: int, index: Dim) -> Array:
        """One element of an axis, which goes."""
        return self.slice(axis, index, index + 1).squeeze(axis)

    def split(self, axis: int, sizes: Sequence[Dim]) -> list[Array]:
        parts, start = [], 0
        for size in sizes:
            parts.append(self.slice(axis, start, start + size))
            start = start + size  # type: ignore[assignment]
        return parts

    def reverse(self, *axes: int) -> Array:
        return self.unary("reverse", axes=tuple(sorted(a % self.rank for a in axes)))

    def pad(self, low: Sequence[Dim], high: Sequence[Dim], value: Number | Array = 0,
            interior: Sequence[int] | None = None) -> Array:  # fmt: skip
        """Negative amounts cut."""
        if not any((*low, *high, *(interior or ()))):
            return self
        given = self.like(value)
        return self.body.apply("pad", self, given, low=tuple(low), high=tuple(high),
                               interior=tuple(interior or [0] * self.rank))  # fmt: skip

    def take(self, indices: Array, axis: int = 0) -> Array:
        """x[..., indices, ...]; negative indices count from the end, those outside read NaN or a limit."""
        axis %= self.rank
        size = self.shape[axis]
        indices = where(indices < 0, indices + self.body.dim(size, indices.dtype), indices)
        sizes = tuple(1 if i == axis else d for i, d in enumerate(self.shape))
        batch = range(axis, axis + indices.rank)
        offsets = tuple(i for i in range(self.rank - 1 + indices.rank) if i not in batch)
        return self.body.apply("gather", self, indices.unsqueeze(-1), offset_dims=offsets, collapsed_slice_dims=(axis,),
                               start_index_map=(axis,), slice_sizes=sizes, mode="fill")  # fmt: skip

    # --- reductions ---

    def reduce(self, kind: str, axes: Sequence[int] | None = None, keepdims: bool = False) -> Array:
        """`kind` as of the op reduce; all axes without `axes`."""
        gone = sorted({a % self.rank for a in axes}) if axes is not None else list(range(self.rank))
        result = self.unary("reduce", kind=kind, axes=tuple(gone)) if gone else self
        return result.reshape([1 if i in gone else d for i, d in enumerate(self.shape)]) if keepdims else result

    def sum(self, *axes: int, keepdims: bool = False) -> Array:
        return self.reduce("sum", axes, keepdims)

    def max(self, *axes: int, keepdims: bool = False) -> Array:
        return self.reduce("max", axes, keepdims)

    def mean(self, *axes: int, keepdims: bool = False) -> Array:
        count = prod(self.shape[a % self.rank] for a in axes)
        return self.sum(*axes, keepdims=keepdims) / self.body.dim(count, self.dtype)

    def softmax(self, axis: int) -> Array:
        axis %= self.rank
        if self.dtype == f32:
            return self.unary("softmax", axis=axis)
        wide = self if self.dtype == f64 else self.astype(f32)
        e = (wide - wide.max(axis, keepdims=True)).exp()
        return (e / e.sum(axis, keepdims=True)).astype(self.dtype)


# --- of several arrays ---


class Limited(IRError):
    """Shapes broadcast only where a size, of the symbol `name`, is within `bounds`, narrower ones than it has."""

    def __init__(self, name: str, bounds: tuple[int, int]) -> None:
        super().__init__(f"the size {name} must be from {bounds[0]} to {bounds[1]} here")
        self.name, self.bounds = name, bounds


def common_shape(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """What shapes broadcast to. Raises IRError where they do not, `Limited` where some sizes of a symbol would."""
    rank = max(map(len, shapes))
    result: list[Dim] = []
    for column in zip(*((1,) * (rank - len(s)) + tuple(s) for s in shapes)):
        sizes = {d for d in column if d != 1}
        if len(sizes) > 1:
            if len(sizes) == 2:
                _limit(*sizes)
            raise IRError(f"the shapes {', '.join(str(list(s)) for s in shapes)} do not broadcast together")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def _limit(*sizes: Dim) -> None:
    """Raises `Limited` where one of two sizes is the other one, cut to a number, and narrower bounds of its symbol
    would leave it uncut: min(64, n) and n, as of a table with 64 rows, or max(0, n - 3) and n - 3."""
    for cut, size in (sizes, reversed(sizes)):
        match cut, tuple(symbols(size)):
            case Expr(terms=((((DimCall(op=("min" | "max") as op, args=args), 1),), 1),)), (s,) if size in args:
                is_cut = [evaluate(cut, {s.name: v}) != evaluate(size, {s.name: v}) for v in (s.lo, s.hi)]
                if symbols(cut) == {s} and is_cut == [op == "max", op == "min"]:  # it is from, or up to, some value
                    values = range(s.lo, s.hi + 1)
                    changed = bisect_left(values, 1, key=lambda v: is_cut[0] != (evaluate(cut, {s.name: v})
                                                                                != evaluate(size, {s.name: v})))
                    low, high = (values[changed], s.hi) if op == "max" else (s.lo, values[changed] - 1)
                    raise Limited(s.name, (low, high))


def together(*arrays: Array) -> tuple[Array, ...]:
    """The arrays in their common shape."""
    shape = common_shape(*(a.shape for a in arrays))
    return tuple(a.broadcast_to(shape) for a in arrays)


def where(condition: Array, on_true: Array | Number, on_false: Array | Number) -> Array:
    if not isinstance(on_true, Array):
        assert isinstance(on_false, Array)
        on_true = on_false.like(on_true)
    return condition.body.apply("select", *together(condition, on_true, on_true.like(on_false)))


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    axis %= arrays[0].rank
    return arrays[0] if len(arrays) == 1 else arrays[0].body.apply("concatenate", *arrays, axis=axis)


def stack(arrays: Sequence[Array], axis: int) -> Array:
    axis %= arrays[0].rank + 1
    return concatenate([a.unsqueeze(axis) for a in arrays], axis)


def infer_size(shape: Sequence[Dim], wanted: Sequence[Dim]) -> tuple[Dim, ...]:
    """`wanted` with its -1 the size that keeps the number of elements."""
    left = list(shape)  # what both have cancels, so that quotients of symbols are not left
    rest: Dim = 1
    for d in wanted:
        if d in left:
            left.remove(d)
        elif d != -1:
            rest = rest * d
    size = 0 if rest == 0 else floordiv(prod(left), rest)
    return tuple(size if d == -1 else d for d in wanted)


def clamp_dim(value: Dim, low: Dim, high: Dim) -> Dim:
    return dim_min(dim_max(value, low), high)
