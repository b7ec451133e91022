"""Computation on weights alone moves out of calls and entries into `Module.prepare`, where it is evaluated once.

A pass that wants a weight in another form writes that form into the graph, `linear(x, pack(w))`; `hoist` then lifts
every value that depends on weights only: the callee takes the value as a weight input, each of its call sites computes
it from the operands it passed before, and what reaches an entry that way becomes an output of `prepare`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ...ir import rewrite
from ...ir.graph import Graph, Module, Node, Value, make_input, rebuild
from ...ir.types import Expr, evaluate
from .calls import Resigned, resign, sources, transplant

# Results that are cheaper to make again than to store and read: never lifted themselves, their operands are.
EXPANDING = {"broadcast", "constant", "iota"}
LARGEST_CONSTANT = 1024  # bytes; computation on constants that gives more is lifted like computation on weights


def hoist(module: Module) -> Module:
    """The module with all computation on weights alone in `prepare`.

    A prepared weight keeps the name of the one weight it was made from, unless another form of that weight has the
    name: then it is called `NAME.OP` after its last op. Where several weights make one, their names are joined by `+`.
    """
    return _prepare(module, resign(module, _lift))


def _lift(graph: Graph, is_entry: bool) -> Resigned:
    """The graph with weight inputs in place of the values that it computed from weights alone."""
    graph = rewrite.cse(graph)  # what a call passes may be what the graph computes too
    lifted = _worth_lifting(graph)
    reached = _reached(graph.outputs, lifted)
    kept = [n for n in graph.inputs if n.attr("role") != "weight" or n in reached]
    taken = {n.attr("name") for n in kept}
    fresh = {v: make_input(_unused_name(v, taken), "weight", v.type) for v in lifted}
    nodes = {v.node: tuple(fresh[w][0] if w in fresh else w for w in v.node.values) for v in lifted}
    outputs = rewrite.substitute(graph, nodes).outputs
    beside: dict[Node | None, list[Value]] = {}  # a lifted value stands where the first weight it was made from stood
    for value in lifted:
        beside.setdefault(next(iter(sources([value])), None), []).append(value)
    operands: dict[Node, Value] = {}
    for node in (*graph.inputs, None):
        if node in kept:
            operands[node] = node[0]
        operands |= {fresh[v]: v for v in beside.get(node, ())}
    return Resigned(replace(graph, inputs=tuple(operands), outputs=outputs), tuple(operands.values()))


def _worth_lifting(graph: Graph) -> list[Value]:
    """The weight-only values that other computation reads, in graph order, seen through what is not worth storing."""
    order: dict[Node, int] = {}
    fixed: dict[Node, bool] = {}  # weight-only nodes, and whether they depend on any weight
    read = list(graph.outputs)
    for node in graph.nodes():
        order[node] = len(order)
        if node.op.name == "input":
            if node.attr("role") == "weight":
                fixed[node] = True
        elif all(v.node in fixed for v in node.inputs) and not is_symbolic(node):
            fixed[node] = any(fixed[v.node] for v in node.inputs)
        if node not in fixed:
            read += node.inputs
    lifted: set[Value] = set()
    while read:
        value = read.pop()
        node = value.node
        if node not in fixed or node.op.name == "input":
            continue
        if node.op.name in EXPANDING or not (fixed[node] or size(value) > LARGEST_CONSTANT):
            read += node.inputs
        else:
            lifted.add(value)
    return sorted(lifted, key=lambda v: (order[v.node], v.index))


def is_symbolic(node: Node) -> bool:
    """Whether the size of a result is known only at run time."""
    return any(isinstance(d, Expr) for t in node.types for d in t.shape)


def size(value: Value) -> int:
    """Bytes of a value whose node is not symbolic."""
    return evaluate(value.type.bytes, {})


def _reached(outputs: Iterable[Value], given: Iterable[Value]) -> set[Node]:
    """The nodes that `outputs` need when the values in `given` are known."""
    known, seen, stack = set(given), set(), list(outputs)
    while stack:
        value = stack.pop()
        if value not in known and value.node not in seen:
            seen.add(value.node)
            stack += value.node.inputs
    return seen


def _unused_name(value: Value, taken: set[str]) -> str:
    """A name for a value that was made from weights, which is `taken` from now on."""
    base = "+".join(n.attr("name") for n in sources([value])) or "constant"
    last = f"{base}.{value.node.op.name}"
    names = itertools.chain((base, last), (f"{last}{i}" for i in itertools.count(2)))
    name = next(n for n in names if n not in taken)
    taken.add(name)
    return name


def _prepare(module: Module, entries: Mapping[str, Resigned]) -> Module:
    """Moves what the entries' weight inputs stand for into `prepare`, and names the inputs after its outputs."""
    if module.prepare is not None:
        known = dict(zip(module.prepare.output_names, module.prepare.outputs))
    else:
        known = {name: make_input(name, "weight", w.type)[0] for name, w in module.weights.items()}
    leaves = {n[0]: known[n.attr("name")] for graph in module.entries.values() for n in graph.inputs_of("weight")}
    wanted = {n: v for resigned in entries.values() for n, v in zip(resigned.graph.inputs, resigned.operands)
              if n.attr("role") == "weight"}  # fmt: skip
    values = transplant(wanted.values(), leaves)
    values = rewrite.cse(Graph("prepare", sources(values), values)).outputs
    named = {v: v.node.attr("name") for v in values if v.node.op.name == "input"}
    unchanged = len(named) == len(set(values))
    others = {n.attr("name") for r in entries.values() for n in r.graph.inputs if n not in wanted}
    taken = others | set(named.values())
    for value in values:
        if value not in named:
            named[value] = _unused_name(value, taken)
    inputs = {v: make_input(named[v], "weight", v.type) for v in values}
    renamed = {n: inputs[v] for n, v in zip(wanted, values)}
    graphs = {name: _with_inputs(r.graph, renamed) for name, r in entries.items()}
    prepare = Graph("prepare", sources(inputs), tuple(inputs), tuple(named[v] for v in inputs))
    return replace(module, entries=graphs, prepare=None if unchanged else prepare)


def _with_inputs(graph: Graph, inputs: Mapping[Node, Node]) -> Graph:
    """The graph with inputs replaced; several may become one."""
    new = rebuild(graph, lambda node, operands: None, inputs)
    return replace(new, inputs=tuple(dict.fromkeys(new.inputs)))
