"""Nodes to calls: which kernel computes each node of a graph, and in which order the lines of its function run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ...ir.graph import Graph, IRError, Module, Node, Value
from ...ir.target import Target
from ...ir.types import Dim, substitute
from . import attention, cache, dense_attention, depthwise, embedding, fused, linear, loop, norm, product, rope
from .control import Use, carried, uses_of
from .kernels import Call
from .memory import GraphPlan, largest, plan_graph, view_of

CONTEXT = "C"  # the symbol of a state's positions
Lowering = Callable[[Node, Target], Call]
# A later family's kernel replaces an earlier one's.
FAMILIES = (loop, embedding, linear, norm, rope, cache, attention, product, depthwise,
            dense_attention, fused)
LOWERINGS: Mapping[str, Lowering] = {op: rule for family in FAMILIES for op, rule in family.LOWERINGS.items()}


@dataclass(frozen=True)
class Line:
    """One statement of a function: a kernel's call, or what calls the functions of other graphs, one for each use."""

    node: Node
    call: Call | None = None
    uses: tuple[Use, ...] = ()
    callees: tuple[Function, ...] = ()

    @property
    def scratch(self) -> Dim:
        """Bytes of arena that only this line uses; of functions, one runs at a time."""
        return self.call.scratch if self.call else largest(f.plan.plan.bytes for f in self.callees)

    @property
    def in_place(self) -> tuple[tuple[int, int], ...]:
        """(result, operand) pairs that may share a buffer."""
        return self.call.in_place if self.call else tuple(enumerate(carried(self.node)))

    @property
    def reads(self) -> tuple[Value, ...]:
        """The values whose pointers its text has: not the weights and states that functions find themselves."""
        if self.call:
            return self.node.inputs
        index = self.node.inputs[:1] if self.node.op.name == "cond" else ()
        return (*index, *(v for use in self.uses for v in use.arguments))


@dataclass(frozen=True, eq=False)
class Function:
    """One graph as a C function. `optional` is the first line that a step needs only where logits are wanted."""

    graph: Graph
    lines: tuple[Line, ...]
    plan: GraphPlan
    optional: int | None = None

    @property
    def callees(self) -> tuple[Function, ...]:
        """The distinct functions that its lines call."""
        return tuple(dict.fromkeys(callee for line in self.lines for callee in line.callees))


def is_silent(node: Node) -> bool:
    """Whether a node computes nothing: its value is there without a line."""
    return node.op.name in ("input", "constant") or view_of(node) is not None


def lower_node(node: Node, target: Target, lowerings: Mapping[str, Lowering] = LOWERINGS) -> Call:
    """The kernel call that computes a node. Raises IRError, naming the op and where it was traced, if there is none."""
    where = f"{node.op.name} at {node.origin}" if node.origin.path else node.op.name
    rule = lowerings.get(node.op.name)
    if rule is None:
        raise IRError(f"{where}: the C backend has no kernel for this op; add one to a family in backends/c")
    try:
        return rule(node, target)
    except (IRError, TypeError) as error:
        operands = ", ".join(str(v.type) for v in node.inputs)
        raise IRError(f"{where}({operands}): {error}") from error


def lower_module(module: Module, target: Target, context: int,
                 lowerings: Mapping[str, Lowering] = LOWERINGS) -> dict[Graph, Function]:  # fmt: skip
    """A function for every distinct graph that the entries reach, callees before callers.

    `context` is what the symbol C stands for in the sizes of scratch.
    """
    functions: dict[Graph, Function] = {}

    def visit(graph: Graph, entry: str = "") -> None:
        if graph in functions:
            return
        for node in graph.nodes():
            for use in uses_of(node):
                visit(use.graph)
        late = _needs_rows(graph) if entry == "step" else frozenset()
        nodes = [n for n in graph.nodes() if not is_silent(n)]
        ordered = [n for n in nodes if n not in late] + [n for n in nodes if n in late]
        lines = tuple(map(line, ordered))
        optional = len(nodes) - sum(n in late for n in nodes) if late else None
        functions[graph] = Function(graph, lines, plan_graph(graph, lines), optional)

    def line(node: Node) -> Line:
        if uses := uses_of(node):
            return Line(node, uses=uses, callees=tuple(functions[use.graph] for use in uses))
        call = lower_node(node, target, lowerings)
        return Line(node, replace(call, scratch=substitute(call.scratch, {CONTEXT: context})))

    for name, graph in module.entries.items():
        visit(graph, name)
    return functions


def _needs_rows(graph: Graph) -> frozenset[Node]:
    """The nodes that depend on which rows are wanted: they can wait, and are left out where none is."""
    found = {n for n in graph.inputs if n.attr("name") == "rows"}
    for node in graph.nodes():
        if any(v.node in found for v in node.inputs):
            found.add(node)
    return frozenset(found)
