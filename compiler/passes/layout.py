"""Weights of products lie as the target reads them: `pack`, after `recode` where a dtype has no packed form. Both are
hoisted into `Module.prepare`."""

from __future__ import annotations

from ...ir.graph import Graph, Module, Node, Value, make, map_graphs, rebuild
from ...ir.ops import OPS
from ...ir.quant import is_direct
from ...ir.rewrite import cse
from ...ir.target import Target
from .hoist import hoist
from .operands import weight_operands


def run(module: Module, target: Target) -> Module:
    """Packs every weight input that a product reads; a weight of two products, such as a tied head, is packed once."""

    def transform(node: Node, operands: tuple[Value, ...]) -> Node | None:
        packed = {i: _packed(operands[i], target.weight_layout) for i in weight_operands(node)}
        new = tuple(packed.get(i, v) for i, v in enumerate(operands))
        return None if new == operands else make(node.op, *new, origin=node.origin, **dict(node.attrs))

    def pack(graph: Graph) -> Graph:
        return cse(rebuild(graph, transform))

    return hoist(map_graphs(module, pack)) if target.weight_layout else module


def _packed(value: Value, layout: str) -> Value:
    """The weight in the layout; values that are no weights, and packed ones, stay."""
    node = value.node
    if node.op.name != "input" or node.attr("role") != "weight" or value.type.layout:
        return value
    direct = value if is_direct(value.dtype) else make(OPS["recode"], value, origin=node.origin)[0]
    return make(OPS["pack"], direct, origin=node.origin, layout=layout)[0]
