"""Evaluates graphs and modules with NumPy: the meaning of the IR, and the oracle of every backend.

Arrays hold values so: NumPy's own element types as they are; bf16 as uint16 bits; block weights as uint8, the bytes of
each row along the last axis; packed weights as their flat bytes; int8 activations as uint8, each row its int8 values,
its f32 scales, then its i32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Graph, IRError, Module, Node, Value
from .types import Expr, Sym, Type, array_dtype, array_shape, evaluate, multiple_of, symbols

Arrays = tuple[np.ndarray, ...]
Dims = Mapping[str, int]
Observer = Callable[[Node, Arrays, Arrays], None]


def interpret(program: Graph | Module, inputs: Mapping[str, Any], dims: Dims | None = None,
              observer: Observer | None = None, entry: str = "step") -> Any:  # fmt: skip
    """The outputs of a graph, or of a module's entry: a dict by output name, or a tuple where they have no names.

    `inputs` are arrays (or numbers and lists) by input name; a module brings its own weights, prepared, but for those
    in `inputs`. Symbols get their values from the inputs' shapes and from `dims`. `observer(node, operands, results)`
    sees every node evaluated, those of called graphs too. Raises IRError for missing or unknown inputs, shapes that
    contradict the types, and symbols without a value or outside their bounds.
    """
    graph = program.entries[entry] if isinstance(program, Module) else program
    if isinstance(program, Module):
        wanted = {n.attr("name") for n in graph.inputs_of("weight")} - set(inputs)
        inputs = {**inputs, **{name: array for name, _, array in prepare_weights(program, wanted)}}
    names = [n.attr("name") for n in graph.inputs]
    if missing := [name for name in names if name not in inputs]:
        raise IRError(f"{graph.name} needs the inputs {', '.join(missing)}")
    if unknown := sorted(set(inputs) - set(names)):
        raise IRError(f"{graph.name} has no inputs {', '.join(unknown)}")
    arrays = tuple(to_array(n.types[0], inputs[name]) for n, name in zip(graph.inputs, names))
    results = run(graph, arrays, dims or {}, observer)
    return dict(zip(graph.output_names, results)) if graph.output_names else results


def prepare_weights(module: Module, names: set[str] | None = None) -> Iterator[tuple[str, Type, np.ndarray]]:
    """(name, type, array) of each weight that the entries read, evaluated one at a time so that memory holds only one.

    `names` restricts them. Without a `prepare` graph they are the source's.
    """
    if module.prepare is None:
        for name, weight in module.weights.items():
            if names is None or name in names:
                yield name, weight.type, to_array(weight.type, weight.load())
        return
    prepare = module.prepare
    for name, output in zip(prepare.output_names, prepare.outputs):
        if names is None or name in names:
            alone = Graph(name, (), (output,))
            alone = Graph(name, tuple(n for n in alone.nodes() if n.op.name == "input"), (output,))
            sources = (module.weights[n.attr("name")] for n in alone.inputs)
            yield name, output.type, run(alone, tuple(to_array(w.type, w.load()) for w in sources), {}, None)[0]


def run(graph: Graph, arrays: Arrays, dims: Dims, observer: Observer | None) -> Arrays:
    """The outputs of a graph, given its inputs in order. Frees each value after its last use."""
    dims = _bind(graph, arrays, dims)
    values: dict[Value, np.ndarray] = {n[0]: a for n, a in zip(graph.inputs, arrays)}
    nodes = [n for n in graph.nodes() if n[0] not in values]
    last = {v: node for node in nodes for v in node.inputs}
    for v in graph.outputs:
        last.pop(v, None)
    for node in nodes:
        operands = tuple(values[v] for v in node.inputs)
        results = _apply(node, operands, dims, observer)
        if observer:
            observer(node, operands, results)
        values.update(zip(node.values, results))
        for v in set(node.inputs):
            if last.get(v) is node:
                del values[v]
    return tuple(values[v] for v in graph.outputs)


@dataclass(frozen=True)
class Function:
    """A graph as the references of control ops see it: called with arrays, it gives a tuple of arrays."""

    graph: Graph
    dims: Dims
    observer: Observer | None

    def __call__(self, *arrays: np.ndarray) -> Arrays:
        return run(self.graph, arrays, self.dims, self.observer)

    @property
    def output_types(self) -> tuple[Type, ...]:
        return tuple(_concrete(t, self.dims, None) for t in self.graph.output_types)


def _apply(node: Node, operands: Arrays, dims: Dims, observer: Observer | None) -> Arrays:
    types = tuple(_concrete(v.type, dims, None) for v in node.inputs)
    attrs = {k: _concrete(v, dims, observer) for k, v in node.attrs}
    where = f"{node.op.name} at {node.origin}" if node.origin.path else node.op.name
    try:
        results = node.op.reference(types, *operands, **attrs)
    except IRError as error:
        raise IRError(f"{where}: {error}") from error
    for array, t in zip(results, node.types, strict=True):
        _check(where, array, _concrete(t, dims, None))
    return results


def _concrete(attr: Any, dims: Dims, observer: Observer | None) -> Any:
    """An attribute or type with dimensions as ints and graphs as functions."""
    match attr:
        case tuple():
            return tuple(_concrete(a, dims, observer) for a in attr)
        case Expr():
            return evaluate(attr, dims)
        case Type():
            if all(isinstance(d, int) for d in attr.shape):
                return attr
            return Type(tuple(evaluate(d, dims) for d in attr.shape), attr.dtype, attr.layout)
        case Graph():
            return Function(attr, dims, observer)
    return attr


def _bind(graph: Graph, arrays: Arrays, outer: Dims) -> Dims:
    """The value of every symbol: from a dimension that is that symbol alone, else as the caller has it, else from one
    that is a multiple of it."""
    bound: dict[str, int] = {}
    divided: dict[str, int] = {}
    known: set[Sym] = set()
    for node, array in zip(graph.inputs, arrays, strict=True):
        t = node.types[0]
        for dim, size in zip(t.shape, array.shape):
            known |= symbols(dim)
            if told := multiple_of(dim):
                s, factor, offset = told
                (bound if (factor, offset) == (1, 0) else divided).setdefault(s.name, (size - offset) // factor)
    dims = {**divided, **outer, **bound}
    for s in known:
        if s.name in dims and not s.lo <= dims[s.name] <= s.hi:
            raise IRError(f"{graph.name}: {s.name} is {dims[s.name]}, outside {s.lo}..{s.hi}")
    for node, array in zip(graph.inputs, arrays):
        where = f"{graph.name}: input {node.attr('name')}"
        try:
            concrete = _concrete(node.types[0], dims, None)
        except KeyError as error:
            raise IRError(f"{where}: {error.args[0]}") from error
        _check(where, array, concrete)
    return dims


def _check(where: str, array: np.ndarray, t: Type) -> None:
    fits = array.ndim == 1 if t.layout else array.shape == array_shape(t)
    if not fits or array.dtype != array_dtype(t):
        raise IRError(f"{where}: {array.dtype.name}{list(array.shape)} is no {t}")


def to_array(t: Type, value: Any) -> np.ndarray:
    """A value of type `t` as the array that holds it: from an array like it, from its raw bytes, or from numbers."""
    if not isinstance(value, np.ndarray):
        return np.asarray(value, array_dtype(t))
    raw = value.dtype == np.uint8 and value.ndim == 1
    if not raw or t.layout or value.nbytes != t.bytes:
        return value
    return value.view(array_dtype(t)).reshape(array_shape(t))
