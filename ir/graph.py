"""Nodes, values, graphs and modules. Nothing here knows a backend, and no op but `input` has a meaning here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .types import Dim, DType, Type


class IRError(Exception):
    """An invalid graph, type or attribute: the message names the op and where it came from."""


Attrs = tuple[tuple[str, Any], ...]  # sorted by name; every value hashable


@dataclass(frozen=True)
class Origin:
    """Where a node was traced: its call path, and all sources it was made from, so that a fused op is still located."""

    path: str = ""
    sources: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.path

    @staticmethod
    def merge(origins: Iterable[Origin]) -> Origin:
        """The origin of a node that replaces several: their common path and what follows it, a+b, and all sources."""
        unique = list(dict.fromkeys(origins))
        if len(unique) == 1:
            return unique[0]
        parts = [o.path.split(".") for o in unique if o.path]
        common = []
        for names in zip(*parts):
            if len(set(names)) > 1:
                break
            common.append(names[0])
        last = list(dict.fromkeys(p[len(common)] for p in parts if len(p) > len(common)))
        path = ".".join(common + (["+".join(last)] if last else []))
        return Origin(path, frozenset().union(*(o.sources | ({o.path} if o.path else set()) for o in unique)))


@dataclass(frozen=True)
class Op:
    """A primitive: its typing and its meaning, once, for all backends.

    `infer(*types, **attrs)` returns the result types as a tuple and raises IRError for operands it does not take.
    `reference(types, *arrays, **attrs)` returns the results as a tuple of arrays; it is bit-exact where `ir.numerics`
    specifies bits. `types` are the operands'; there and in attributes dimensions are ints, and graphs are functions.
    `decompose(*values, **attrs)` returns values made of simpler ops, a tuple as long as the results.
    `attributes` names each attribute with its default; `REQUIRED` has none.
    """

    name: str
    infer: Callable[..., tuple[Type, ...]]
    reference: Callable[..., tuple[Any, ...]]
    decompose: Callable[..., tuple[Value, ...]] | None = None
    attributes: tuple[tuple[str, Any], ...] = ()
    commutative: bool = False

    def __repr__(self) -> str:
        return self.name


REQUIRED = object()


@dataclass(frozen=True, eq=False)
class Node:
    """One application of an op. Compared by identity: a node is a definition, as in SSA."""

    op: Op
    inputs: tuple[Value, ...]
    attrs: Attrs
    types: tuple[Type, ...]
    origin: Origin = Origin()

    def __getitem__(self, index: int) -> Value:
        return Value(self, index)

    @property
    def values(self) -> tuple[Value, ...]:
        return tuple(Value(self, i) for i in range(len(self.types)))

    def attr(self, name: str) -> Any:
        return dict(self.attrs)[name]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two nodes that compute the same thing: what common-subexpression elimination compares."""
        return self.op.name, self.inputs, self.attrs

    def __repr__(self) -> str:
        return f"<{self.op.name} {', '.join(map(str, self.types))}>"


@dataclass(frozen=True)
class Value:
    """One result of a node."""

    node: Node
    index: int = 0

    @property
    def type(self) -> Type:
        return self.node.types[self.index]

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def __repr__(self) -> str:
        return f"{self.node!r}.{self.index}"


def freeze(value: Any) -> Any:
    """A hashable form of an attribute: lists become tuples, dicts sorted tuples of pairs. Raises IRError if none."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, freeze(v)) for k, v in value.items()))
    try:
        hash(value)
    except TypeError as error:
        raise IRError(f"an attribute of type {type(value).__name__} cannot be kept in the IR") from error
    return value


def make(op: Op, *inputs: Value, origin: Origin = Origin(), **attrs: Any) -> Node:
    """The only way to build a node: attributes are checked against the op's schema, types are always inferred.

    Raises IRError, naming the op and its origin, for unknown or missing attributes and operands of wrong types.
    """
    schema = dict(op.attributes)
    where = f"{op.name}" + (f" at {origin}" if origin.path else "")
    if unknown := set(attrs) - set(schema):
        known = ", ".join(schema) or "none"
        raise IRError(f"{where}: unknown attribute {', '.join(sorted(unknown))}; it takes {known}")
    full = {name: freeze(attrs.get(name, default)) for name, default in schema.items()}
    if missing := [name for name, value in full.items() if value is REQUIRED]:
        raise IRError(f"{where}: missing attribute {', '.join(missing)}")
    try:
        types = op.infer(*(v.type for v in inputs), **full)
    except (IRError, TypeError) as error:
        operands = ", ".join(str(v.type) for v in inputs)
        raise IRError(f"{where}({operands}): {error}") from error
    return Node(op, tuple(inputs), tuple(sorted(full.items())), types, origin)


def _infer_input(*, name: str, role: str, type: Type) -> tuple[Type, ...]:
    if role not in ROLES:
        raise IRError(f"role must be one of {', '.join(ROLES)}, not {role!r}")
    return (type,)


def _no_reference(*_: Any, **__: Any) -> tuple[Any, ...]:
    raise IRError("an input has no value of its own: the interpreter is given one")


ROLES = ("arg", "weight", "state")
INPUT = Op(
    "input", _infer_input, _no_reference, attributes=(("name", REQUIRED), ("role", REQUIRED), ("type", REQUIRED))
)


def make_input(name: str, role: str, type: Type) -> Node:
    """A graph input. role "arg" is given at each call, "weight" once, "state" lives across calls and is linear."""
    return make(INPUT, origin=Origin(name), name=name, role=role, type=type)


@dataclass(frozen=True, eq=False)
class Graph:
    """A closed function: it reads only its inputs. A node that its outputs do not need is absent by construction."""

    name: str
    inputs: tuple[Node, ...]
    outputs: tuple[Value, ...]
    output_names: tuple[str, ...] = ()

    def nodes(self) -> Iterator[Node]:
        """Every node once, inputs first, then operands before users, in the order the outputs need them."""
        seen: set[Node] = set(self.inputs)
        yield from self.inputs
        stack = [(v.node, False) for v in reversed(self.outputs)]
        while stack:
            node, ready = stack.pop()
            if ready:
                yield node
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack += [(v.node, False) for v in reversed(node.inputs)]

    def inputs_of(self, role: str) -> tuple[Node, ...]:
        return tuple(n for n in self.inputs if n.attr("role") == role)

    @property
    def output_types(self) -> tuple[Type, ...]:
        return tuple(v.type for v in self.outputs)

    def __repr__(self) -> str:
        return f"<graph {self.name}>"


@dataclass(frozen=True)
class Weight:
    """A named constant: its type and a function that gives its raw bytes (uint8, 1-D) or array, read when asked."""

    name: str
    type: Type
    load: Callable[[], Any] = field(compare=False)


@dataclass(frozen=True)
class Module:
    """What is compiled: entry graphs by name, the weights they read, and the graph that prepares those weights.

    Entry graphs take inputs of role "arg", "weight" and "state"; a new state is an output named like the state.
    `prepare` reads the weights of the source and its outputs, named in `output_names`, are the weights that the entries
    read in their stead; None while every entry reads the source's weights. It is evaluated one output at a time.
    """

    entries: Mapping[str, Graph]
    weights: Mapping[str, Weight]
    prepare: Graph | None = None

    def with_entries(self, entries: Mapping[str, Graph]) -> Module:
        return replace(self, entries=dict(entries))


def subgraphs(node: Node) -> tuple[Graph, ...]:
    """The graphs that a node calls: attributes that are graphs or tuples of graphs."""
    found = (v if isinstance(v, tuple) else (v,) for _, v in node.attrs)
    return tuple(g for group in found for g in group if isinstance(g, Graph))


def rebuild(graph: Graph, transform: Callable[[Node, tuple[Value, ...]], Node | tuple[Value, ...] | None],
            inputs: Mapping[Node, Node] | None = None) -> Graph:  # fmt: skip
    """The loop that every pass is an interpreter over.

    Visits nodes operands first and calls `transform(node, new_inputs)`. It returns None to keep the node (its types are
    inferred again where an operand changed), a node with as many results, or a tuple of values in their place.
    `inputs` maps old input nodes to new ones, which may differ in type.
    """
    inputs = inputs or {}
    new: dict[Value, Value] = {v: w for n in graph.inputs for v, w in zip(n.values, inputs.get(n, n).values)}
    for node in graph.nodes():
        if node[0] in new:
            continue
        operands = tuple(new[v] for v in node.inputs)
        made = transform(node, operands)
        if made is None:
            same = all(a is b or a == b for a, b in zip(operands, node.inputs))
            made = node if same else make(node.op, *operands, origin=node.origin, **dict(node.attrs))
        results = made.values if isinstance(made, Node) else made
        if len(results) != len(node.types):
            count = f"{len(results)} values, it has {len(node.types)}"
            raise IRError(f"{node.op.name} at {node.origin}: replaced by {count}")
        new.update(zip(node.values, results))
    return Graph(graph.name, tuple(inputs.get(n, n) for n in graph.inputs), tuple(new[v] for v in graph.outputs),
                 graph.output_names)  # fmt: skip


def map_graphs(module: Module, transform: Callable[[Graph], Graph]) -> Module:
    """Applies `transform` once to every distinct graph, callees before callers: equal layers stay one function."""
    done: dict[Graph, Graph] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(replaced, value))
        return visit(value) if isinstance(value, Graph) else value

    def calls(node: Node, operands: tuple[Value, ...]) -> Node | None:
        if all(visit(g) is g for g in subgraphs(node)):
            return None
        return make(node.op, *operands, origin=node.origin, **{k: replaced(v) for k, v in node.attrs})

    def visit(graph: Graph) -> Graph:
        if graph not in done:
            done[graph] = transform(rebuild(graph, calls))
        return done[graph]

    return module.with_entries({name: visit(graph) for name, graph in module.entries.items()})
