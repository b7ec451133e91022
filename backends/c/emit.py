"""What the functions of a lowered module are called and given: names, parameters, parts, arenas, constants."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ...ir.graph import Graph, IRError, Node
from ...ir.types import CALLS, Dim, DimCall, Expr, Sym, Type, bounds, symbol, symbols
from .control import Use
from .kernels import THREADS, DimValue
from .lower import CONTEXT, Function
from .state import Region
from .text import LIBRARY, Names, aligned, c_type, constant_array, dim_c, folded

SESSIONS = "S"  # a symbol that is no parameter, as CONTEXT and THREADS: the run's session count
THREADS_NAME = str(THREADS)
_SUFFIXES = ("_parts", "_at", "_arena", "_arena_bytes")  # of what else a graph's function needs
ENTRY_NAMES = ("model", "workspace", "bytes", "entered")  # what an entry's public function has besides its parameters


@dataclass(frozen=True)
class Parameter:
    """One parameter of a graph's function: a dimension, an argument or a result."""

    name: str
    type: Type | None = None  # None for a dimension
    const: bool = False

    @property
    def declaration(self) -> str:
        if self.type is None:
            return f"int32_t {self.name}"
        return f"{'const ' * self.const}{c_type(self.type.dtype)} *{self.name}"


@dataclass(frozen=True)
class Part:
    """A field of a graph's parts: an input of its own, or the parts of a graph that it calls, one for each use."""

    name: str
    source: Node | Graph
    uses: tuple[Use, ...] = ()


@dataclass
class Emitter:
    """The names and declarations of one module. `offsets` and `regions` say where weights and states lie, by name.

    The function of an entry is called through the program's table: it finds its parts itself and always takes an arena.
    """

    functions: Mapping[Graph, Function]
    entries: frozenset[Graph]
    context: int
    offsets: Mapping[str, int]
    regions: Mapping[str, Region]
    names: Names = field(default_factory=Names)
    function_names: dict[Graph, str] = field(default_factory=dict)
    constants: dict[tuple[bytes, Type], str] = field(default_factory=dict)
    parts: dict[Graph, tuple[Part, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for function in self.functions.values():
            for line in function.lines:
                if entry := next((f.graph for f in line.callees if f.graph in self.entries), None):
                    raise IRError(f"{line.node.op.name} at {line.node.origin}: {entry.name} is an entry itself")
                if line.call:
                    for kernel in line.call.kernel.closure():
                        self.names.taken.update((kernel.symbol, *kernel.functions))
        for graph, function in self.functions.items():
            name = self.names.new(graph.name, "graph")
            while not self.names.taken.isdisjoint(also := [name + suffix for suffix in _SUFFIXES]):
                name = self.names.new(graph.name, "graph")
            self.function_names[graph] = name
            self.names.taken.update(also)
            self.parts[graph] = tuple(self._parts(function))
            for node in graph.nodes():
                if node.op.name == "constant":
                    self._constant(node)

    def _constant(self, node: Node) -> str:
        key = node.attr("value"), node.types[0]
        if key not in self.constants:
            leaf = node.origin.path.rpartition(".")[2]
            self.constants[key] = self.names.new(leaf if leaf and leaf != "constant" else "constant", "constant")
        return self.constants[key]

    def _parts(self, function: Function) -> Iterator[Part]:
        graph, of = function.graph, function.plan.storage
        names = Names()
        uses: dict[Graph, dict[Use, None]] = {}
        for use in (use for line in function.lines for use in line.uses):
            if self.parts[use.graph]:
                uses.setdefault(use.graph, {})[use] = None
        used = {of[v] for line in function.lines for v in line.reads}
        used.update(of[graph.outputs[i]] for i in function.plan.copies)
        for node in graph.inputs:
            if node.attr("role") != "arg" and node[0] in used:
                yield Part(names.new(node.attr("name"), node.attr("role")), node)
        for callee, found in uses.items():
            yield Part(names.new(self.function_names[callee]), callee, tuple(found))

    # ---- parameters -------------------------------------------------------------------------------------------------

    def dimensions(self, graph: Graph) -> list[Sym]:
        """The symbols that a graph's function takes: of its values' types and of what its lines are given, T first."""
        dims = [d for n in graph.nodes() for t in n.types for d in t.shape]
        for line in self.functions[graph].lines:
            dims += [a.dim for a in line.call.args if isinstance(a, DimValue)] if line.call else []
            dims += [line.node.attr("length")] if line.node.op.name == "scan" else []
        found = {s for d in dims for s in symbols(d)}
        found.update(s for callee in self.functions[graph].callees for s in self.dimensions(callee.graph))
        taken = [s for s in found if s.name not in (SESSIONS, CONTEXT, THREADS_NAME)]
        return sorted(taken, key=lambda s: (s.name != "T", s.name))

    def parameters(self, graph: Graph) -> list[Parameter]:
        """Dimensions, arguments and results of a graph's function, in the order of its C parameters."""
        found = [Parameter(s.name) for s in self.dimensions(graph)]
        others = ENTRY_NAMES if graph in self.entries else ()
        names = Names((self.names.taken - LIBRARY).union(others, (p.name for p in found)))
        found += [Parameter(names.new(n.attr("name"), "x"), n.types[0], True) for n in graph.inputs_of("arg")]
        for i in self.results(graph):
            found.append(Parameter(names.new(self._output_name(graph, i), "out"), graph.outputs[i].type))
        return found

    def results(self, graph: Graph) -> list[int]:
        """The outputs that a graph's function writes through a pointer: all but its states."""
        plan = self.functions[graph].plan
        return sorted({*plan.results.values(), *plan.copies})

    def _output_name(self, graph: Graph, index: int) -> str:
        if index < len(graph.output_names) and graph.output_names[index]:
            return graph.output_names[index]
        return "out" if len(self.results(graph)) == 1 else f"out{index}"

    # ---- arenas -----------------------------------------------------------------------------------------------------

    def arena_name(self, graph: Graph) -> str:
        """What the size of a graph's arena is called, in C and in formulas."""
        return f"{self.function_names[graph]}_arena"

    def slot_bytes(self, graph: Graph) -> list[Dim]:
        """The sizes of a graph's slots, over its symbols and the sizes of the arenas of the graphs that it calls."""
        function = self.functions[graph]
        totals: dict[Dim, Dim] = {}
        for callee in function.callees:
            total = callee.plan.plan.bytes  # equal ones go by the first's name
            if isinstance(total, Expr):
                totals.setdefault(total, symbol(self.arena_name(callee.graph), *bounds(total)))
        return [_with_names(slot.bytes, totals) for slot in function.plan.plan.slots]

    def arenas_in(self, graph: Graph, sizes: Iterable[Dim]) -> list[Graph]:
        """The graphs called by a graph whose arena sizes are in some of its slots' sizes."""
        used = {s.name for size in sizes for s in symbols(size)}
        return [f.graph for f in self.functions[graph].callees if self.arena_name(f.graph) in used]

    def measured(self) -> list[Graph]:
        """The graphs whose arena size is asked for, by the interface or in the text of a function; callees first."""
        used = set(self.entries)
        for graph in reversed(list(self.functions)):
            sizes = self.slot_bytes(graph)
            used.update(self.arenas_in(graph, sizes if graph in used else sizes[:-1]))
        return [graph for graph in self.functions if graph in used]

    def arena_lines(self, graph: Graph, sizes: Iterable[Dim], threads: str) -> list[str]:
        """Definitions of the arena sizes of called graphs that some of a graph's slots' sizes are over, in C."""
        lines = []
        for callee in self.arenas_in(graph, sizes):
            dims = ", ".join([threads, *(s.name for s in self.dimensions(callee))])
            name = self.arena_name(callee)
            lines.append(f"  const size_t {name} = {name}_bytes({dims});")
        return lines

    def arena_function(self, graph: Graph) -> str:
        """`GRAPH_arena_bytes(threads, dimensions)`: the exact size of a graph's arena."""
        sizes = self.slot_bytes(graph)
        names = {self.arena_name(callee) for callee in self.arenas_in(graph, sizes)}
        total = dim_c(sum(sizes, start=0), wide=True, sizes=names)
        dims = ["threads", *(s.name for s in self.dimensions(graph))]
        lines = [*self.arena_lines(graph, sizes, "threads"), folded(f"  return {total};")]
        unused = [f"  (void){d};" for d in dims if not re.search(rf"\b{d}\b", "\n".join(lines))]
        head = f"static size_t {self.arena_name(graph)}_bytes({', '.join(f'int32_t {d}' for d in dims)}) {{"
        return "\n".join([head, *unused, *lines, "}"])

    # ---- signatures and parts ---------------------------------------------------------------------------------------

    def signature(self, graph: Graph) -> list[str]:
        """Declarations of every parameter of a graph's function."""
        found = ["const run *r"]
        entry = graph in self.entries
        if self.parts[graph] and not entry:
            found.append(f"const {self.function_names[graph]}_parts *at")
        found += [p.declaration for p in self.parameters(graph)]
        return found + (["uint8_t *arena"] if self.functions[graph].plan.plan.slots or entry else [])

    def parts_type(self, graph: Graph) -> str:
        """The struct of what a graph's function is given once for all runs; empty where it needs nothing."""
        if not self.parts[graph]:
            return ""
        rows = []
        for part in self.parts[graph]:
            if isinstance(part.source, Graph):
                rows.append((f"  {self.function_names[part.source]}_parts {part.name}[{len(part.uses)}];", ""))
            else:
                kind = "size_t" if part.source.attr("role") == "weight" else "cache_region"
                rows.append((f"  {kind} {part.name};", str(part.source.types[0])))
        name = f"{self.function_names[graph]}_parts"
        return "\n".join([f"typedef struct {name} {{", *aligned(rows), f"}} {name};"])

    def parts_value(self, graph: Graph, entry_inputs: Mapping[Node, Node] | None = None, depth: int = 1) -> str:
        """The initialiser of a graph's parts; `entry_inputs` maps a callee's inputs to the entry's that they are."""
        bound = entry_inputs if entry_inputs is not None else {n: n for n in graph.inputs}
        pad = "  " * depth
        lines = []
        for part in self.parts[graph]:
            if isinstance(part.source, Node):
                node = bound[part.source]
                name = node.attr("name")
                if node.attr("role") == "weight":
                    lines.append(f"{pad}.{part.name} = {self.offsets[name]}, /* {name} */")
                else:
                    region = self.regions[name]
                    lines.append(
                        f"{pad}.{part.name} = {{{region.base}, {region.page_bytes}, {region.pages}}}, /* {name} */"
                    )
                continue
            lines.append(f"{pad}.{part.name} = {{")
            for use in part.uses:
                inner = self._bind(graph, use, bound)
                lines += [f"{pad}  {{", self.parts_value(part.source, inner, depth + 2), f"{pad}  }},"]
            lines.append(f"{pad}}},")
        return "\n".join(lines)

    def _bind(self, graph: Graph, use: Use, bound: Mapping[Node, Node]) -> dict[Node, Node]:
        of = self.functions[graph].plan.storage
        inner = {}
        for value, node in zip(use.operands, use.graph.inputs):
            if node.attr("role") == "arg":
                continue
            if of[value].node not in bound:
                what, maker = f"{node.attr('role')} {node.attr('name')}", value.node.op.name
                raise IRError(
                    f"call of {use.graph.name}: its {what} is computed by {maker} in {graph.name} at "
                    f"{value.node.origin}; weights are computed in Module.prepare only"
                )
            inner[node] = bound[of[value].node]
        return inner

    def constant_definitions(self) -> list[str]:
        return [constant_array(name, raw, type) for (raw, type), name in self.constants.items()]


def _with_names(dim: Dim, known: Mapping[Dim, Dim]) -> Dim:
    """`dim` with symbols in the place of the dimensions that are known by name."""
    if dim in known or not isinstance(dim, Expr):
        return known.get(dim, dim)
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        product: Dim = coefficient
        for atom, power in monomial:
            inner: Dim = Expr((((((atom, 1),)), 1),))
            if isinstance(atom, DimCall):
                inner = CALLS[atom.op](*(_with_names(arg, known) for arg in atom.args))
            for _ in range(power):
                product = product * inner
        total = total + product
    return total
