"""Constants are computed at compile time, and computation on weights alone moves into `Module.prepare`."""

from __future__ import annotations

import numpy as np

from ...ir import interpret
from ...ir.graph import Graph, Module, Node, Value, make, map_graphs, rebuild
from ...ir.ops import OPS
from ...ir.ops.elementwise import ELEMENTWISE
from ...ir.rewrite import splat
from ...ir.target import Target
from ...ir.types import Type
from .hoist import EXPANDING, LARGEST_CONSTANT, hoist, is_symbolic, size

LARGEST_OPERAND = 1 << 20  # bytes; folding reads no larger arrays


def run(module: Module, target: Target) -> Module:
    """Folds constants in every graph, then hoists; a result too large for a constant is left to the hoisting."""
    return hoist(map_graphs(module, lambda graph: rebuild(graph, _fold)))


def _fold(node: Node, operands: tuple[Value, ...]) -> tuple[Value, ...] | None:
    if not operands or node.op.name in EXPANDING:
        return None
    numbers = [splat(v) for v in operands]
    if node.op in ELEMENTWISE and all(n is not None for n in numbers):
        scalars = (_constant(np.asarray(n), Type((), v.dtype), node) for n, v in zip(numbers, operands))
        (result,) = _evaluate(make(node.op, *scalars, origin=node.origin, **dict(node.attrs)))
        shape = node.types[0].shape
        return (make(OPS["broadcast"], result, origin=node.origin, shape=shape, dims=())[0],) if shape else (result,)
    fits = not is_symbolic(node) and all(size(v) <= LARGEST_CONSTANT and not v.dtype.is_block for v in node.values)
    if fits and all(map(_is_constant, operands)):
        return _evaluate(make(node.op, *operands, origin=node.origin, **dict(node.attrs)))
    return None


def _is_constant(value: Value) -> bool:
    """A constant, or one that is expanded to an array of moderate size."""
    node = value.node
    expanded = node.op.name in EXPANDING and not is_symbolic(node) and size(value) <= LARGEST_OPERAND
    return expanded and all(map(_is_constant, node.inputs))


def _evaluate(node: Node) -> tuple[Value, ...]:
    """The results of a node that depends on constants only, as constants."""
    arrays = interpret.run(Graph("constants", (), node.values), (), {}, None)
    return tuple(_constant(array, t, node) for array, t in zip(arrays, node.types))


def _constant(array: np.ndarray, type: Type, source: Node) -> Value:
    data = np.ascontiguousarray(array).tobytes()
    return make(OPS["constant"], origin=source.origin, value=data, type=type)[0]
