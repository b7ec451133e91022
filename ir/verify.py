"""Checks that a module or graph is valid IR: closed, typed as its ops infer, states linear, dimensions sound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .graph import Graph, IRError, Module, Node, Value, make, subgraphs
from .ops import OPS, STATE_USES
from .types import Sym, Type, bounds, symbols


def verify(program: Module | Graph) -> None:
    """Raises IRError, naming the graph, the op and its origin, for the first thing that is wrong.

    Graphs: inputs are distinct and the only inputs read; attributes and types are what the op infers; a dimension can
    be non-negative and a symbol has one pair of bounds; a state is written once, and not read after that; called graphs
    too. Modules: weights that entries read exist and have the stated type; every state of an entry is an output by its
    name.
    """
    checker = _Checker()
    if isinstance(program, Graph):
        checker.effects(program)
        return
    for name, graph in program.entries.items():
        checker.entry(name, graph)
    weights = {name: w.type for name, w in program.weights.items()}
    if prepare := program.prepare:
        checker.effects(prepare)
        if others := [n for n in prepare.inputs if n.attr("role") != "weight"]:
            raise IRError(f"{prepare.name}: {others[0].attr('name')} is no weight; prepare reads nothing else")
        if not prepare.output_names:
            raise IRError(f"{prepare.name}: its outputs need the names of the weights they are")
        _check_weights(prepare, weights)
        weights = dict(zip(prepare.output_names, prepare.output_types))
    for graph in program.entries.values():
        _check_weights(graph, weights)


def _check_weights(graph: Graph, weights: dict[str, Type]) -> None:
    for node in graph.inputs_of("weight"):
        name, t = node.attr("name"), node.types[0]
        if name not in weights:
            raise IRError(f"{graph.name}: there is no weight {name}")
        if weights[name] != t:
            raise IRError(f"{graph.name}: the weight {name} is {weights[name]}, read as {t}")


@dataclass(frozen=True)
class _Effects:
    """What a graph does to the states it takes: input positions that it writes, and outputs that are a state."""

    written: frozenset[int]
    states: dict[int, int]  # output position: input position


class _Checker:
    """Verifies each graph once, callees first; symbols have one pair of bounds throughout."""

    def __init__(self) -> None:
        self.done: dict[Graph, _Effects] = {}
        self.symbols: dict[str, Sym] = {}

    def effects(self, graph: Graph) -> _Effects:
        if graph not in self.done:
            self.inputs(graph)
            for node in graph.nodes():
                for callee in subgraphs(node):
                    self.effects(callee)
                self.node(graph, node)
            if graph.output_names and len(set(graph.output_names)) != len(graph.outputs):
                raise IRError(f"{graph.name}: {len(graph.outputs)} outputs need as many distinct names")
            self.done[graph] = self.states(graph)
        return self.done[graph]

    def inputs(self, graph: Graph) -> None:
        names = set()
        for node in graph.inputs:
            if node.op.name != "input":
                raise IRError(f"{graph.name}: {_where(node)} stands among the inputs")
            if node.attr("name") in names:
                raise IRError(f"{graph.name}: two inputs are called {node.attr('name')}")
            names.add(node.attr("name"))

    def node(self, graph: Graph, node: Node) -> None:
        where = f"{graph.name}: {_where(node)}"
        if OPS.get(node.op.name, node.op) is not node.op:
            raise IRError(f"{where}: this is not the op of that name in the table")
        if node.op.name == "input" and node not in graph.inputs:
            raise IRError(f"{where}: the graph is not closed, this is no input of it")
        for v in node.inputs:
            if not 0 <= v.index < len(v.node.types):
                raise IRError(f"{where}: {_where(v.node)} has no result {v.index}")
        try:
            types = make(node.op, *node.inputs, origin=node.origin, **dict(node.attrs)).types
        except IRError as error:
            raise IRError(f"{graph.name}: {error}") from error
        if types != node.types:
            raise IRError(f"{where}: typed {_list(node.types)}, its op infers {_list(types)}")
        for t in types:
            for dim in t.shape:
                if bounds(dim)[1] < 0:
                    raise IRError(f"{where}: the dimension {dim} is negative")
                for s in symbols(dim):
                    if self.symbols.setdefault(s.name, s) != s or s.lo > s.hi:
                        raise IRError(f"{where}: {s.name} in {s.lo}..{s.hi} contradicts other bounds of it")

    # --- States ---

    def states(self, graph: Graph) -> _Effects:
        """Follows every state from its input through the writes; a written value may only be read before the write."""
        source: dict[Value, int] = {n[0]: i for i, n in enumerate(graph.inputs) if n.attr("role") == "state"}
        readers: dict[Value, list[Node]] = {}
        writer: dict[Value, Node] = {}
        for node in graph.nodes():
            for operand, v in enumerate(node.inputs):
                if v not in source:
                    continue
                where = f"{graph.name}: {_where(node)}"
                writes, result = self.use(where, node, operand)
                if not writes:
                    readers.setdefault(v, []).append(node)
                elif v in writer:
                    raise IRError(f"{where}: {_state(graph, source[v])} was already written by {_where(writer[v])}")
                else:
                    writer[v] = node
                if result is not None:
                    source[node[result]] = source[v]
        for v, node in writer.items():
            _check_reads(graph, source[v], v, node, readers.get(v, []))
        found: dict[int, int] = {}
        for position, v in enumerate(graph.outputs):
            if v in writer:
                raise IRError(f"{graph.name}: output {position} is {_state(graph, source[v])} from before a write")
            if v in source:
                if source[v] in found.values():
                    raise IRError(f"{graph.name}: {_state(graph, source[v])} is an output twice")
                found[position] = source[v]
        return _Effects(frozenset(source[v] for v in writer), found)

    def use(self, where: str, node: Node, operand: int) -> tuple[bool, int | None]:
        """Whether an op writes the state that it takes as an operand, and which of its results is the state then."""
        if use := STATE_USES.get(node.op.name, {}).get(operand):
            return use == "write", 0 if use == "write" else None
        first = {"call": 0, "cond": 1}.get(node.op.name)
        if first is None or operand < first:
            raise IRError(f"{where}: a state is not what operand {operand} may be")
        uses = set()
        for callee in subgraphs(node):
            if callee.inputs[operand - first].attr("role") != "state":
                raise IRError(f"{where}: {callee.name} takes operand {operand} as no state")
            effects = self.effects(callee)
            results = [out for out, source in effects.states.items() if source == operand - first]
            uses.add((operand - first in effects.written or bool(results), results[0] if results else None))
        if len(uses) > 1:
            raise IRError(f"{where}: its branches use the state in operand {operand} differently")
        return uses.pop()

    def entry(self, name: str, graph: Graph) -> None:
        """Every state comes out again, by the name it went in by."""
        states = self.effects(graph).states
        for i, node in enumerate(graph.inputs):
            if node.attr("role") != "state":
                continue
            outputs = [o for o, source in states.items() if source == i]
            if not outputs or not graph.output_names or graph.output_names[outputs[0]] != node.attr("name"):
                raise IRError(f"entry {name}: the state {node.attr('name')} is no output of that name")


def _check_reads(graph: Graph, source: int, value: Value, write: Node, readers: Iterable[Node]) -> None:
    """Nothing orders a read of the value that is written, but a path from the read to the write."""
    if not (waiting := set(readers)):
        return
    seen, stack = {write}, [write]
    while stack:
        for v in stack.pop().inputs:
            if v.node not in seen:
                seen.add(v.node)
                stack.append(v.node)
    if late := sorted(map(_where, waiting - seen | waiting & {write})):
        raise IRError(f"{graph.name}: {late[0]} reads {_state(graph, source)} from before the write by {_where(write)}")


def _state(graph: Graph, source: int) -> str:
    return f"the state {graph.inputs[source].attr('name')}"


def _where(node: Node) -> str:
    name = node.attr("name") if node.op.name == "input" else ""
    where = name or (f"at {node.origin}" if node.origin.path else "")
    return f"{node.op.name} {where}".rstrip()


def _list(types: tuple[Type, ...]) -> str:
    return ", ".join(map(str, types))
