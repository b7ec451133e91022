"""Changing what graphs take, with every call of them: shared layers stay one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ...ir.graph import Graph, Module, Node, Value, make, rebuild


@dataclass(frozen=True)
class Resigned:
    """A graph that takes other inputs, and what to pass for each of them in terms of the inputs that it took before."""

    graph: Graph
    operands: tuple[Value, ...]


def resign(module: Module, change: Callable[[Graph, bool], Resigned]) -> dict[str, Resigned]:
    """Applies `change(graph, is_entry)` once to every graph that is an entry or called, callees first, and rewrites the
    calls. Returns the entries, whose callers are the caller's to care for."""
    done: dict[Graph, Resigned] = {}

    def visit(graph: Graph, is_entry: bool = False) -> Resigned:
        if graph not in done:
            done[graph] = change(rebuild(graph, call), is_entry)
        return done[graph]

    def call(node: Node, operands: tuple[Value, ...]) -> Node | None:
        if node.op.name != "call":
            return None
        callee: Graph = node.attr("graph")
        resigned = visit(callee)
        leaves = {n[0]: v for n, v in zip(callee.inputs, operands)}
        return make(node.op, *transplant(resigned.operands, leaves), origin=node.origin, graph=resigned.graph)

    return {name: visit(graph, True) for name, graph in module.entries.items()}


def transplant(values: Iterable[Value], leaves: Mapping[Value, Value]) -> tuple[Value, ...]:
    """`values` computed again with each value in `leaves` replaced. Every input they depend on must be a leaf."""
    new, values = dict(leaves), tuple(values)
    for node in Graph("", (), values).nodes():
        if node.op.name != "input" and node[0] not in new:
            made = make(node.op, *(new[v] for v in node.inputs), origin=node.origin, **dict(node.attrs))
            new.update(zip(node.values, made.values))
    return tuple(new[v] for v in values)


def sources(values: Iterable[Value]) -> tuple[Node, ...]:
    """The inputs that `values` depend on, in the order in which they are read."""
    return tuple(n for n in Graph("", (), tuple(values)).nodes() if n.op.name == "input")
