"""Ops that the target has no kernel for become simpler ones, until it has one for each.

That is for ops as such, and for products whose weight cannot be packed: it is computed at run time, or stands in a
graph that runs many times or perhaps, out of which nothing is hoisted. Only the order of rounding may change.
"""

from __future__ import annotations

from ...ir.graph import Graph, Module, Node, Value, map_graphs, subgraphs
from ...ir.rewrite import cse, expand
from ...ir.target import Target
from .operands import weight_operands


def run(module: Module, target: Target) -> Module:
    """Expands, in every graph, what has a decomposition and no kernel."""
    inside = inputs_under_control(module)

    def is_packed(weight: Value) -> bool:
        if weight.type.layout:
            return True
        node = weight.node
        return node.op.name == "input" and node.attr("role") == "weight" and node not in inside

    def wanted(node: Node) -> bool:
        name = node.op.name
        if target.ops and not {name, f"{name} {node.types[0].dtype}"} & target.ops:
            return True
        return bool(target.weight_layout) and not all(is_packed(node.inputs[i]) for i in weight_operands(node))

    return map_graphs(module, lambda graph: cse(expand(graph, wanted)))


def inputs_under_control(module: Module) -> frozenset[Node]:
    """The inputs of branches, conditions and loop bodies, and of the graphs that these call."""
    seen: set[tuple[Graph, bool]] = set()

    def visit(graph: Graph, under: bool) -> None:
        if (graph, under) not in seen:
            seen.add((graph, under))
            for node in graph.nodes():
                for inner in subgraphs(node):
                    visit(inner, under or node.op.name != "call")

    for entry in module.entries.values():
        visit(entry, False)
    return frozenset(n for graph, under in seen if under for n in graph.inputs)
