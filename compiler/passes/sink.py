"""Transposes move behind what they need not stand before, until they meet their inverse or the end.

Convolutions have channels last; of a model that has them elsewhere, every convolution is between two transposes. An op
that works element by element, a reduction, a window or a padding does the same before a transpose as after it, with its
axes renamed. So the transposes between two convolutions cancel. Every bit stays: sequences that are reduced keep their
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...ir.graph import Graph, Node, Value, make, rebuild
from ...ir.ops import OPS
from ...ir.ops.elementwise import ELEMENTWISE
from ...ir.rewrite import cse, rewrite
from .canonical import EXACT

SCALAR = {op.name for op in ELEMENTWISE} | {"silu", "gelu", "gelu_tanh", "softcap", "gated"}
Order = tuple[int, ...]
Sunk = tuple[Value, Order] | None  # what an op gives where its operands are not transposed, and the transpose after it


def run(graph: Graph, fixed_values: Callable[[Graph], set[Node]]) -> Graph:
    """The graph with transposes as late as they go."""
    while True:
        fixed, changed = fixed_values(graph), False

        def transform(node: Node, operands: tuple[Value, ...], fixed: set[Node] = fixed) -> tuple[Value, ...] | None:
            nonlocal changed
            rule = RULES.get("elementwise" if node.op.name in SCALAR else node.op.name)
            if rule is None or node in fixed or len(node.types) != 1:
                return None
            given = node if operands == node.inputs else make(node.op, *operands, origin=node.origin,
                                                              **dict(node.attrs))  # fmt: skip
            known = {new for old, new in zip(node.inputs, operands) if old.node in fixed}
            sunk = rule(given, known)
            if sunk is None:
                return None
            changed = True
            return (_emit(node, "transpose", sunk[0], permutation=sunk[1]),)

        graph = cse(rewrite(rebuild(graph, transform), EXACT))
        if not changed:
            return graph


def _emit(like: Node, op: str, *operands: Value, **attrs: Any) -> Value:
    return make(OPS[op], *operands, origin=like.origin, **attrs)[0]


def _order(value: Value) -> Order | None:
    return value.node.attr("permutation") if value.node.op.name == "transpose" else None


def _inverse(order: Order) -> Order:
    return tuple(order.index(i) for i in range(len(order)))


def _before(value: Value, order: Order, known: set[Value]) -> Value | None:
    """What, transposed by `order`, is `value`, where that costs nothing at run time."""
    node = value.node
    if _order(value) == order:
        return node.inputs[0]
    if node.op.name == "broadcast":
        source, dims = node.inputs[0], [order[d] for d in node.attr("dims")]
        by_axis = tuple(sorted(range(len(dims)), key=lambda i: dims[i]))
        moved = source if by_axis == tuple(range(len(dims))) else _emit(node, "transpose", source, permutation=by_axis)
        shape = tuple(value.shape[i] for i in _inverse(order))
        return _emit(node, "broadcast", moved, shape=shape, dims=tuple(sorted(dims)))
    if value in known or value.type.rank == 0:
        return _emit(node, "transpose", value, permutation=_inverse(order)) if value.type.rank else value
    return None


def _elementwise(node: Node, known: set[Value]) -> Sunk:
    for value in node.inputs:
        if (order := _order(value)) is None or value.node.inputs[0] in known:
            continue
        operands = [_before(v, order, known) for v in node.inputs]
        if all(v is not None for v in operands):
            return _emit(node, node.op.name, *(v for v in operands if v is not None), **dict(node.attrs)), order
    return None


def _reduce(node: Node, known: set[Value]) -> Sunk:
    order = _order(node.inputs[0])
    if order is None:
        return None
    axes = [order[a] for a in node.attr("axes")]
    kept = [order[a] for a in range(len(order)) if a not in node.attr("axes")]
    if axes != sorted(axes):
        return None
    y = _emit(node, "reduce", node.inputs[0].node.inputs[0], kind=node.attr("kind"), axes=tuple(axes))
    return y, tuple(sorted(kept).index(a) for a in kept)


def _renamed(values: Sequence[Any], order: Order) -> tuple[Any, ...]:
    """Settings of the transposed axes as those of the axes before."""
    return tuple(values[i] for i in _inverse(order))


def _reduce_window(node: Node, known: set[Value]) -> Sunk:
    order = _order(node.inputs[0])
    if order is None:
        return None
    wide = [order[a] for a, size in enumerate(node.attr("window")) if size != 1]
    if wide != sorted(wide):
        return None
    names = ("window", "strides", "low", "high", "base_dilation", "dilation")
    settings = {name: _renamed(node.attr(name), order) for name in names}
    return _emit(node, "reduce_window", node.inputs[0].node.inputs[0], kind=node.attr("kind"), **settings), order


def _pad(node: Node, known: set[Value]) -> Sunk:
    order = _order(node.inputs[0])
    if order is None:
        return None
    settings = {name: _renamed(node.attr(name), order) for name in ("low", "high", "interior")}
    return _emit(node, "pad", node.inputs[0].node.inputs[0], node.inputs[1], **settings), order


def _concatenate(node: Node, known: set[Value]) -> Sunk:
    order = _order(node.inputs[0])
    if order is None or any(_order(v) != order for v in node.inputs):
        return None
    return _emit(node, "concatenate", *(v.node.inputs[0] for v in node.inputs), axis=order[node.attr("axis")]), order


RULES: dict[str, Callable[[Node, set[Value]], Sunk]] = {
    "elementwise": _elementwise, "reduce": _reduce, "reduce_window": _reduce_window, "pad": _pad,
    "concatenate": _concatenate,
}  # fmt: skip
