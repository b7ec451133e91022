"""The dtypes that the target computes in: of a function's matrices, floats that products multiply with, activations
before products, and caches.

The one lossy pass.
"""

from __future__ import annotations

from functools import cache

from ...ir.graph import Graph, IRError, Module, Node, Value, make, make_input, rebuild
from ...ir.ops import OPS, STATE_USES
from ...ir.rewrite import cse
from ...ir.target import Target
from ...ir.types import Type, bf16, f16, f32
from . import rounding
from .hoist import hoist
from .operands import weight_operands

FLOATS = (f32, f16, bf16)
QUANTISED = {"linear", "expert_linear"}  # the ops that take a quantised activation, and then a weight


def run(module: Module, target: Target) -> Module:
    """Rounds the matrices of functions, inserts `quantize` once per activation and dtype, and retypes caches."""
    module = rounding.run(module, target)

    @cache
    def caches(graph: Graph) -> frozenset[Node]:
        """The inputs that are caches: what ops of STATE_USES read or write as a state, here or in a called graph."""
        states: set[Value] = set()
        for node in graph.nodes():
            if node.op.name == "call":
                callee: Graph = node.attr("graph")
                states |= {v for n, v in zip(callee.inputs, node.inputs) if n in caches(callee)}
            states |= {node.inputs[i] for i in STATE_USES.get(node.op.name, ())}
        return frozenset(n for n in graph.inputs if n[0] in states)

    @cache
    def visit(graph: Graph) -> Graph:
        retyped = {n: _cache(n, target) for n in graph.inputs if n in caches(graph)}
        return cse(rebuild(graph, transform, retyped))

    def transform(node: Node, operands: tuple[Value, ...]) -> Node | None:
        if node.op.name == "call":
            return make(node.op, *operands, origin=node.origin, graph=visit(node.attr("graph")))
        if node.op.name == "scan":
            body = {"body": visit(node.attr("body"))}
            return make(node.op, *operands, origin=node.origin, **dict(node.attrs) | body)
        new = _converted(node, operands, target)
        return None if new == operands else make(node.op, *new, origin=node.origin, **dict(node.attrs))

    return hoist(module.with_entries({name: visit(graph) for name, graph in module.entries.items()}))


def _cache(state: Node, target: Target) -> Node:
    """The state as the target holds it. Raises IRError for heads that its dtype has no blocks for."""
    try:
        return make_input(state.attr("name"), state.attr("role"), Type(state.types[0].shape, target.cache))
    except TypeError as error:
        raise IRError(f"cache {state.attr('name')}: {error}") from error


def _is_weight(x: Value) -> bool:
    return x.node.op.name == "input" and x.node.attr("role") == "weight"


def _converted(node: Node, operands: tuple[Value, ...], target: Target) -> tuple[Value, ...]:
    """The operands of a product in the dtypes that the target computes it in. Weights of floats are stored in the dtype
    that products multiply in, where that is a narrow one, so that no device converts them."""
    for i in weight_operands(node) if target.compute != f32 else ():
        if operands[i].dtype in FLOATS and operands[i].dtype != target.compute and _is_weight(operands[i]):
            matrix = make(OPS["convert"], operands[i], origin=node.origin, dtype=target.compute)[0]
            operands = (*operands[:i], matrix, *operands[i + 1 :])
    if node.op.name not in QUANTISED or operands[0].dtype != f32:
        return operands
    activation = target.activation(operands[1].dtype)
    if activation is None:
        return operands
    x = make(OPS["quantize"], operands[0], origin=operands[0].node.origin, dtype=activation)[0]
    return (x, *operands[1:])
