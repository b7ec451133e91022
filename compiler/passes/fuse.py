"""Ops that one kernel computes better together. Every fused op has the bits of the ops that it stands for.

What is a tree is a rule; linears that share an operand are no tree, and joined by a pass over the graph. A target
allows fusions by name: that of a rule, "linear_group", or "concat_rows", which makes one weight of several.
"""

from __future__ import annotations

from ...ir.graph import Graph, Module, Node, Origin, Value, make, map_graphs
from ...ir.ops import OPS
from ...ir.rewrite import Match, P, Rule, rewrite, substitute
from ...ir.target import Target
from ...ir.types import f32
from .hoist import hoist


def run(module: Module, target: Target) -> Module:
    """Applies the rules that the target allows, then joins what linears are left, in every graph."""
    rules = [rule for rule in RULES if rule.name in target.fusions]

    def fuse(graph: Graph) -> Graph:
        graph = rewrite(graph, rules)
        if "concat_rows" in target.fusions:
            graph = stack_siblings(graph)
        return join_siblings(graph) if "linear_group" in target.fusions else graph

    fused = map_graphs(module, fuse)
    return hoist(fused) if "concat_rows" in target.fusions else fused


def _attrs(m: Match, *names: str) -> dict[str, object]:
    """Attributes of matched nodes: "NAME.ATTRIBUTE" for each."""
    pairs = (name.split(".") for name in names)
    return {attr: m[node].node.attr(attr) for node, attr in pairs}


RULES = (
    Rule("linear_add", P("add", "residual", P("linear", "x", "w", "*bias", single_use=True)),
         lambda m: m.make("linear_add", m["x"], m["w"], m["residual"], *m["bias"]), "r + (x w' + b)"),
    Rule("gated_linear",
         P("gated", P("linear", "x", "gate", single_use=True), P("linear", "x", "up", single_use=True), name="y"),
         lambda m: m.make("gated_linear", m["x"], m["gate"], m["up"], **_attrs(m, "y.activation")),
         "act(x g') * (x u'): both products read x once"),
    Rule("gated_linear_quantize",
         P("quantize", P("gated_linear", "x", "gate", "up", name="y", single_use=True, dtype=f32), name="q"),
         lambda m: m.make("gated_linear", m["x"], m["gate"], m["up"], **_attrs(m, "y.activation", "q.dtype")),
         "quantize(act(x g') * (x u'))"),
    Rule("rms_norm_quantize", P("quantize", P("rms_norm", "x", "w", name="y", single_use=True, dtype=f32), name="q"),
         lambda m: m.make("rms_norm", m["x"], m["w"], **_attrs(m, "y.eps", "q.dtype")), "quantize(norm(x))"),
    Rule("rope_cache_write", P("cache_write", "cache", P("rope", "x", "cos", "sin", name="rope", single_use=True),
                               "sequence", "position", name="y"),
         lambda m: m.make("rope_cache_write", *(m[v] for v in ("cache", "x", "cos", "sin", "sequence", "position")),
                          **_attrs(m, "rope.style", "y.window")), "write(cache, rope(x))"),
)  # fmt: skip


def _families(graph: Graph) -> dict[Value, list[Node]]:
    """Linears by the activation that they share: only those whose weights and biases are inputs of the graph, so that
    none can depend on another."""
    families: dict[Value, list[Node]] = {}
    for node in graph.nodes():
        if node.op.name == "linear" and all(v.node.op.name == "input" for v in node.inputs[1:]):
            families.setdefault(node.inputs[0], []).append(node)
    return families


def stack_siblings(graph: Graph) -> Graph:
    """Linears of one activation whose weights have one type become one linear of all their rows, and theirs are columns
    of its result: x (w_1; w_2)' = (x w_1', x w_2')."""
    replaced: dict[Node, tuple[Value, ...]] = {}
    for x, family in _families(graph).items():
        kinds: dict[object, list[Node]] = {}
        for node in family:
            w = node.inputs[1]
            if w.node.attr("role") == "weight" and not w.type.layout:
                kinds.setdefault((w.dtype, len(node.inputs)), []).append(node)
        for members in kinds.values():
            if len(members) > 1:
                replaced |= _stacked(x, members)
    return substitute(graph, replaced)


def _stacked(x: Value, members: list[Node]) -> dict[Node, tuple[Value, ...]]:
    where = Origin.merge(n.origin for n in members)
    operands = [make(OPS["concat_rows"], *(n.inputs[1] for n in members), origin=where)[0]]
    if len(members[0].inputs) > 2:
        operands.append(make(OPS["concatenate"], *(n.inputs[2] for n in members), origin=where, axis=0)[0])
    y = make(OPS["linear"], x, *operands, origin=where)[0]
    columns: dict[Node, tuple[Value, ...]] = {}
    start = 0
    for node in members:
        tokens, rows = node.types[0].shape
        assert isinstance(rows, int)
        part = make(OPS["slice"], y, origin=node.origin, start=(0, start), limit=(tokens, start + rows), stride=(1, 1))
        columns[node], start = (part[0],), start + rows
    return columns


def join_siblings(graph: Graph) -> Graph:
    """Linears of one activation become one linear_group, whose results are theirs: y_i = x w_i' + b_i."""
    replaced: dict[Node, tuple[Value, ...]] = {}
    for x, members in _families(graph).items():
        if len(members) > 1:
            weights, biases = [n.inputs[1] for n in members], [n.inputs[2] for n in members if len(n.inputs) > 2]
            group = make(OPS["linear_group"], x, *weights, *biases, origin=Origin.merge(n.origin for n in members),
                         biases=tuple(len(n.inputs) > 2 for n in members))  # fmt: skip
            replaced |= {n: (y,) for n, y in zip(members, group.values)}
    return substitute(graph, replaced)
