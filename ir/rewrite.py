"""Rules as data: a pattern, what to put in its place, and the algebra that allows it.

    Rule("silu", P("mul", "x", P("logistic", "x")), lambda m: m.make("silu", m["x"]), "x*sigmoid(x)")

In a pattern a string names any value (the same value wherever it repeats), "*name" takes the remaining operands, a
number is a constant whose every element is that number, and P(op, …) is an op applied to patterns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .graph import Attrs, Graph, IRError, Node, Origin, Value, freeze, make, rebuild
from .ops import OPS
from .types import numpy_dtype

Operand = "Pat | str | float"
Uses = Mapping[Value, int]


@dataclass(frozen=True)
class Pat:
    """An op of one of these names, applied to patterns, with at least these attributes; made by `P`."""

    ops: tuple[str, ...]
    inputs: tuple[Any, ...]
    attrs: Attrs = ()
    name: str = ""
    single_use: bool = False
    index: int = 0


def P(op: str | tuple[str, ...], *inputs: Any, name: str = "", single_use: bool = False, index: int = 0,
      **attrs: Any) -> Pat:  # fmt: skip
    """A pattern: `op` may be several names. `name` binds the value; `single_use` demands that nothing else reads any
    result of the node; `index` says which result the value is. Ops that commute match in either order."""
    names = (op,) if isinstance(op, str) else op
    if unknown := [n for n in names if n not in OPS]:
        raise IRError(f"a pattern names the unknown op {', '.join(unknown)}")
    return Pat(names, inputs, tuple(sorted((k, freeze(v)) for k, v in attrs.items())), name, single_use, index)


@dataclass(frozen=True)
class Match:
    """What a pattern found: values by name, and the nodes it covers, operands before users."""

    values: Mapping[str, Any] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()

    def __getitem__(self, name: str) -> Any:
        """The value bound to a name; for "*name" in the pattern, the tuple bound to `name`."""
        return self.values[name]

    @property
    def origin(self) -> Origin:
        return Origin.merge(n.origin for n in self.nodes)

    def make(self, op: str, *operands: Value, **attrs: Any) -> Value:
        """The first result of a new node that comes from where the matched nodes did."""
        return make(OPS[op], *operands, origin=self.origin, **attrs)[0]


Made = Value | tuple[Value, ...] | None


@dataclass(frozen=True)
class Rule:
    """`rewrite` gives the value that replaces the pattern's root, a tuple if it has several results, None to decline.

    The types must stay. `algebra` says why the two are equal.
    """

    name: str
    pattern: Pat
    rewrite: Callable[[Match], Made]
    algebra: str = ""


def splat(value: Value) -> np.generic | None:
    """The one number that every element of a constant has, seen through broadcast and reshape; None otherwise."""
    node = value.node
    while node.op.name in ("broadcast", "reshape"):
        node = node.inputs[0].node
    if node.op.name != "constant":
        return None
    elements = np.frombuffer(node.attr("value"), numpy_dtype(node.types[0].dtype))
    return elements[0] if elements.size and (elements == elements[0]).all() else None


def match(pattern: Any, value: Value, uses: Uses, found: Match = Match()) -> Iterator[Match]:
    """Every way in which `value` fits the pattern, given what was found already."""
    if isinstance(pattern, Pat):
        yield from _match_node(pattern, value, uses, found)
    elif isinstance(pattern, str):
        if (bound := _bind(found, pattern, value)) is not None:
            yield bound
    else:
        number = splat(value)
        if number is not None and value.dtype.numpy and number == numpy_dtype(value.dtype).type(pattern):
            yield found


def _match_node(pattern: Pat, value: Value, uses: Uses, found: Match) -> Iterator[Match]:
    node = value.node
    if node.op.name not in pattern.ops or value.index != pattern.index or not set(pattern.attrs) <= set(node.attrs):
        return
    if pattern.single_use and sum(uses[v] for v in node.values) != 1:
        return
    bound = _bind(found, pattern.name, value)
    if bound is None:
        return
    orders = [node.inputs]
    if node.op.commutative and node.inputs[0] != node.inputs[1]:
        orders.append(node.inputs[::-1])
    for operands in orders:
        for whole in _match_all(pattern.inputs, operands, uses, bound):
            yield replace(whole, nodes=(*whole.nodes, node))


def _match_all(patterns: tuple[Any, ...], operands: tuple[Value, ...], uses: Uses, found: Match) -> Iterator[Match]:
    if not patterns:
        if not operands:
            yield found
    elif isinstance(patterns[0], str) and patterns[0].startswith("*"):
        if (bound := _bind(found, patterns[0][1:], operands)) is not None:
            yield bound
    elif operands:
        for first in match(patterns[0], operands[0], uses, found):
            yield from _match_all(patterns[1:], operands[1:], uses, first)


def _bind(found: Match, name: str, value: Any) -> Match | None:
    """`found` with a name bound; None if it is bound to another value."""
    if not name:
        return found
    if name in found.values:
        return found if found.values[name] == value else None
    return replace(found, values={**found.values, name: value})


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """The graph after every rule that applies, the first in the list where several do, until none does.

    It goes in sweeps. Each matches all nodes of one graph, whose uses are counted, then replaces every root at once; so
    the next sweep visits the nodes that rules made, with uses counted anew, and what nothing needs is gone. Raises
    IRError for a rule that changes a type, and for rules that do not come to an end.
    """
    by_op: dict[str, list[Rule]] = {}
    for rule in rules:
        for op in rule.pattern.ops:
            by_op.setdefault(op, []).append(rule)
    limit = 100 + sum(1 for _ in graph.nodes())
    for _ in range(limit):
        uses = count_uses(graph)
        fired: dict[Node, tuple[Rule, tuple[Value, ...]]] = {}
        for node in graph.nodes():
            for rule in by_op.get(node.op.name, ()):
                if (made := _fire(rule, node, uses)) is not None:
                    fired[node] = rule, made
                    break
        if not fired:
            return graph
        graph = substitute(graph, {node: made for node, (_, made) in fired.items()})
    names = ", ".join(sorted({rule.name for rule, _ in fired.values()}))
    raise IRError(f"{graph.name}: the rules {names} still apply after {limit} sweeps: they undo each other or grow")


def _fire(rule: Rule, node: Node, uses: Uses) -> tuple[Value, ...] | None:
    for found in match(rule.pattern, node[rule.pattern.index], uses):
        made = rule.rewrite(found)
        if made is None:
            continue
        results = made if isinstance(made, tuple) else (made,)
        if tuple(v.type for v in results) != node.types:
            was, now = ", ".join(map(str, node.types)), ", ".join(str(v.type) for v in results)
            raise IRError(f"rule {rule.name} changes the type of {node.op.name} at {node.origin}: {was} became {now}")
        return results
    return None


def count_uses(graph: Graph) -> Counter[Value]:
    """How often each value is read, by nodes and as an output."""
    uses = Counter(v for node in graph.nodes() for v in node.inputs)
    uses.update(graph.outputs)
    return uses


def substitute(graph: Graph, replaced: Mapping[Node, tuple[Value, ...]]) -> Graph:
    """The graph with every result of some nodes replaced by values of equal types, which may be replaced in turn.

    Raises IRError where a replacement needs what it replaces.
    """

    def resolve(v: Value) -> Value:
        for _ in range(len(replaced) + 1):
            if v.node not in replaced:
                return v
            v = replaced[v.node][v.index]
        raise IRError(f"{graph.name}: {v.node.op.name} at {v.node.origin} is replaced by itself")

    new: dict[Node, Node] = {n: n for n in graph.inputs}
    under_way: set[Node] = set()
    stack = [resolve(v).node for v in reversed(graph.outputs)]
    while stack:
        node = stack[-1]
        if node in new:
            stack.pop()
            continue
        operands = [resolve(v) for v in node.inputs]
        if waiting := [v.node for v in operands if v.node not in new]:
            if node in under_way:
                raise IRError(f"{graph.name}: {node.op.name} at {node.origin} is replaced by what needs it")
            under_way.add(node)
            stack += reversed(waiting)
            continue
        inputs = tuple(Value(new[v.node], v.index) for v in operands)
        new[node] = node if inputs == node.inputs else replace(node, inputs=inputs)
        stack.pop()
    outputs = (resolve(v) for v in graph.outputs)
    return replace(graph, outputs=tuple(Value(new[v.node], v.index) for v in outputs))


def cse(graph: Graph) -> Graph:
    """The graph with nodes of equal op, operands and attributes made one."""
    first: dict[Any, Node] = {}

    def merge(node: Node, operands: tuple[Value, ...]) -> Node:
        same = operands == node.inputs
        made = node if same else replace(node, inputs=operands)
        return first.setdefault(made.key, made)

    return rebuild(graph, merge)


def expand(graph: Graph, wanted: Callable[[Node], bool]) -> Graph:
    """The graph with the wanted nodes replaced by their op's decomposition, until none is left that has one."""

    def decompose(node: Node, operands: tuple[Value, ...]) -> tuple[Value, ...] | None:
        return _located(node, operands) if node.op.decompose and wanted(node) else None

    while any(n.op.decompose and wanted(n) for n in graph.nodes()):
        graph = rebuild(graph, decompose)
    return graph


def _located(node: Node, operands: tuple[Value, ...]) -> tuple[Value, ...]:
    """A node's decomposition, made of nodes that come from where it does."""
    assert node.op.decompose
    made = node.op.decompose(*operands, **dict(node.attrs))
    inner = Graph("", tuple(dict.fromkeys(v.node for v in operands)), made)
    return rebuild(inner, lambda n, inputs: replace(n, inputs=inputs, origin=node.origin)).outputs
