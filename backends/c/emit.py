"""Functions of a lowered module as C text: one function a graph, one call a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...ir.graph import Graph, IRError, Node, Value
from ...ir.types import Dim, Sym, Type, substitute, symbols
from .kernels import THREADS, Arg, DimValue, Literal, Operand, Result, Run, Scratch
from .lower import CONTEXT, Function, Line
from .memory import storage_bytes
from .state import Region
from .text import Names, aligned, c_type, constant_array, dim_c

SESSIONS = "S"  # a symbol that is no parameter, as CONTEXT: the run's session count
THREADS_NAME = str(THREADS)


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
    """A field of a graph's parts: an input of its own, or the parts of the graphs it calls, one for each call."""

    name: str
    source: Node | Graph
    calls: tuple[Node, ...] = ()


@dataclass
class Emitter:
    """Writes the functions of one module. `offsets` and `regions` say where weights and states lie, by name.

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
                if line.callee and line.callee.graph in self.entries:
                    raise IRError(f"call at {line.node.origin}: {line.callee.graph.name} is an entry itself")
                if line.call:
                    self.names.taken.update(k.symbol for k in line.call.kernel.closure())
        for graph, function in self.functions.items():
            self.function_names[graph] = self.names.new(graph.name, "graph")
            self.names.taken.update((f"{self.function_names[graph]}_parts", f"{self.function_names[graph]}_at"))
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
        calls: dict[Graph, list[Node]] = {}
        used: set[Value] = set()
        for line in function.lines:
            if line.callee and self.parts[line.callee.graph]:
                calls.setdefault(line.callee.graph, []).append(line.node)
            if line.callee:
                args = [v for v, n in zip(line.node.inputs, line.callee.graph.inputs) if n.attr("role") == "arg"]
                used.update(of[v] for v in args)
            else:
                used.update(of[v] for v in line.node.inputs)
        used.update(of[graph.outputs[i]] for i in function.plan.copies)
        for node in graph.inputs:
            if node.attr("role") != "arg" and node[0] in used:
                yield Part(names.new(node.attr("name"), node.attr("role")), node)
        for callee, nodes in calls.items():
            yield Part(names.new(self.function_names[callee]), callee, tuple(nodes))

    # ---- parameters -------------------------------------------------------------------------------------------------

    def dimensions(self, graph: Graph) -> list[Sym]:
        """The symbols that a graph's function takes: all of its values' types, T first."""
        found = {s for n in graph.nodes() for t in n.types for d in t.shape for s in symbols(d)}
        taken = [s for s in found if s.name not in (SESSIONS, CONTEXT)]
        return sorted(taken, key=lambda s: (s.name != "T", s.name))

    def parameters(self, graph: Graph) -> list[Parameter]:
        """Dimensions, arguments and results of a graph's function, in the order of its C parameters."""
        found = [Parameter(s.name) for s in self.dimensions(graph)]
        names = Names(self.names.taken.union(p.name for p in found))
        found += [Parameter(names.new(n.attr("name"), "x"), n.types[0], True) for n in graph.inputs_of("arg")]
        for i in self.results(graph):
            found.append(Parameter(names.new(self._output_name(graph, i), "out"), graph.outputs[i].type))
        return found

    def results(self, graph: Graph) -> list[int]:
        """The outputs that a graph's function writes through a pointer: all but its states."""
        plan = self.functions[graph].plan
        return sorted({*plan.results.values(), *plan.copies})

    @staticmethod
    def _output_name(graph: Graph, index: int) -> str:
        if index < len(graph.output_names) and graph.output_names[index]:
            return graph.output_names[index]
        return "out" if len(graph.outputs) == 1 else f"out{index}"

    # ---- functions --------------------------------------------------------------------------------------------------

    def signature(self, graph: Graph) -> list[str]:
        """Declarations of every parameter of a graph's function."""
        found = ["const run *r"]
        entry = graph in self.entries
        if self.parts[graph] and not entry:
            found.append(f"const {self.function_names[graph]}_parts *at")
        found += [p.declaration for p in self.parameters(graph)]
        return found + (["uint8_t *arena"] if self.functions[graph].plan.plan.slots or entry else [])

    def function(self, graph: Graph) -> str:
        """The C text of a graph's function, after a comment with its types."""
        return _FunctionText(self, self.functions[graph]).text()

    def parts_type(self, graph: Graph) -> str:
        """The struct of what a graph's function is given once for all runs; empty where it needs nothing."""
        if not self.parts[graph]:
            return ""
        rows = []
        for part in self.parts[graph]:
            if isinstance(part.source, Graph):
                rows.append((f"  {self.function_names[part.source]}_parts {part.name}[{len(part.calls)}];", ""))
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
            for call in part.calls:
                inner = self._bind(graph, call, bound)
                lines += [f"{pad}  {{", self.parts_value(part.source, inner, depth + 2), f"{pad}  }},"]
            lines.append(f"{pad}}},")
        return "\n".join(lines)

    def _bind(self, graph: Graph, call: Node, bound: Mapping[Node, Node]) -> dict[Node, Node]:
        of = self.functions[graph].plan.storage
        callee: Graph = call.attr("graph")
        inner = {}
        for value, node in zip(call.inputs, callee.inputs):
            if node.attr("role") == "arg":
                continue
            if of[value].node not in bound:
                what, maker = f"{node.attr('role')} {node.attr('name')}", value.node.op.name
                raise IRError(
                    f"call of {callee.name} at {call.origin}: its {what} is computed by {maker} in {graph.name}; "
                    "weights are computed in Module.prepare only"
                )
            inner[node] = bound[of[value].node]
        return inner

    def constant_definitions(self) -> list[str]:
        return [constant_array(name, raw, type) for (raw, type), name in self.constants.items()]


class _FunctionText:
    """The text of one function."""

    def __init__(self, emitter: Emitter, function: Function) -> None:
        self.emitter, self.function, self.graph = emitter, function, function.graph
        self.parameters = emitter.parameters(self.graph)
        self.names = Names(emitter.names.taken)
        self.names.taken.update(p.name for p in self.parameters)
        slots = function.plan.plan.slots
        self.slots = [self.names.new(f"slot{i}") for i in range(len(slots))]
        self.slot_of = {b.key: self.slots[i] for i, slot in enumerate(slots) for b in slot.buffers}
        typed = [p for p in self.parameters if p.type is not None]
        arguments = self.graph.inputs_of("arg")
        self.pointers: dict[Value, tuple[str, Type]] = {
            n[0]: (p.name, n.types[0]) for n, p in zip(arguments, typed)
        }
        self.output = {i: p for i, p in zip(emitter.results(self.graph), typed[len(arguments):])}
        for value, index in function.plan.results.items():
            self.pointers[value] = self.output[index].name, self.graph.outputs[index].type
        self.part = {p.source: p for p in emitter.parts[self.graph]}
        self.declarations: list[tuple[str, str]] = []
        for line in function.lines:
            for i, value in enumerate(line.node.values):
                self._declare(line, i, value)

    def _declare(self, line: Line, index: int, value: Value) -> None:
        """A pointer for a buffer that is this function's own."""
        if value in self.pointers or value not in self.function.plan.hosts:
            return
        leaf = re.sub(r"[\d.+]*$", "", line.node.origin.path).rpartition(".")[2] or line.node.op.name
        name = self.names.new(leaf if len(line.node.types) == 1 else f"{leaf}{index}", line.node.op.name)
        kind = c_type(value.dtype)
        slot = self.slot_of[self.function.plan.hosts[value]]
        self.declarations.append((f"{kind} *const {name} = ({kind} *){slot};", str(value.type)))
        self.pointers[value] = name, value.type

    def dim(self, dim: Dim, wide: bool = False) -> str:
        dim = substitute(dim, {CONTEXT: self.emitter.context})
        return dim_c(dim, {SESSIONS: "r->session_count", THREADS_NAME: "r->threads"}, wide=wide)

    def value(self, value: Value) -> str:
        """The C expression of a pointer to a value."""
        own = self.function.plan.storage[value]
        node = own.node
        if node.op.name == "input" and node.attr("role") == "weight":
            return f"weight(r, at->{self.part[node].name})"
        if node.op.name == "input" and node.attr("role") == "state":
            return f"&at->{self.part[node].name}"
        name, type = (
            (self.emitter.constants[node.attr("value"), node.types[0]], node.types[0])
            if node.op.name == "constant"
            else self.pointers[own]
        )
        if c_type(type.dtype) == c_type(value.dtype):
            return name
        return f"(const {c_type(value.dtype)} *){name}"

    def argument(self, arg: Arg, at: int, node: Node) -> str:
        match arg:
            case Operand(index):
                return self.value(node.inputs[index])
            case Result(index):
                return self.value(node[index])
            case DimValue(dim):
                return self.dim(dim)
            case Literal(text):
                return text
            case Scratch():
                return f"(void *){self.slot_of['scratch', at]}"
            case Run():
                return "r"
        raise TypeError(f"{arg!r} is no argument of a kernel")

    def call_line(self, at: int, line: Line) -> str:
        if line.call:
            name, args = line.call.kernel.symbol, [self.argument(a, at, line.node) for a in line.call.args]
        else:
            name, args = self._graph_call(at, line)
        text = f"  {name}({', '.join(args)});"
        if len(text) > 118:
            text, row = "", f"  {name}("
            for i, arg in enumerate(args):
                piece = arg + (", " if i + 1 < len(args) else ");")
                if len(row) + len(piece) > 118:
                    text, row = text + row.rstrip() + "\n", "      "
                row += piece
            text += row
        return text

    def _graph_call(self, at: int, line: Line) -> tuple[str, list[str]]:
        assert line.callee is not None
        callee, emitter = line.callee.graph, self.emitter
        args = ["r"]
        if emitter.parts[callee]:
            part = self.part[callee]
            args.append(f"&at->{part.name}[{part.calls.index(line.node)}]")
        args += [s.name for s in emitter.dimensions(callee)]
        args += [self.value(v) for v, n in zip(line.node.inputs, callee.inputs) if n.attr("role") == "arg"]
        args += [self.value(line.node[i]) for i in emitter.results(callee)]
        if line.callee.plan.plan.slots:
            args.append(self.slot_of["scratch", at])
        return emitter.function_names[callee], args

    def text(self) -> str:
        plan, rows = self.function.plan.plan, []
        for at, line in enumerate(self.function.lines):
            types = ", ".join(str(t) for i, t in enumerate(line.node.types) if self._is_data(line.node[i]))
            comment = ": ".join(filter(None, (line.node.origin.path, types)))
            rows.append((self.call_line(at, line), comment.replace("*/", "* /")))
        copies = []
        for index in self.function.plan.copies:
            value, size = self.graph.outputs[index], self.dim(storage_bytes(self.graph.outputs[index]), wide=True)
            copies.append(f"  memcpy({self.output[index].name}, {self.value(value)}, {size});")
        body = aligned(rows)
        if self.function.optional is not None:
            wanted = " || ".join(f"!{p.name}" for p in self.output.values())
            early = f"  if ({wanted}) return; /* a chunk whose logits nobody wants ends here */"
            body.insert(self.function.optional, early)
        name = self.emitter.function_names[self.graph]
        head = []
        if self.graph in self.emitter.entries and self.emitter.parts[self.graph]:
            head.append(f"  const {name}_parts *const at = &{name}_at;")
        head += [f"  uint8_t *const {self.slots[0]} = arena;"] if plan.slots else []
        for i in range(1, len(plan.slots)):
            head.append(f"  uint8_t *const {self.slots[i]} = {self.slots[i - 1]} + {self._slot_bytes(i - 1)};")
        head += aligned([(f"  {code}", comment) for code, comment in self.declarations])
        signature = self.emitter.signature(self.graph)
        inside = "\n".join(head + body + copies)
        unused = [n for n in (s.split()[-1].lstrip("*") for s in signature) if not re.search(rf"\b{n}\b", inside)]
        voids = [f"  (void){name};" for name in unused]
        head += [""] if head else []
        return "\n".join([self._comment(), self._head(signature), *voids, *head, *body, *copies, "}"])

    def _slot_bytes(self, index: int) -> str:
        return self.dim(self.function.plan.plan.slots[index].bytes, wide=True)

    def _is_data(self, value: Value) -> bool:
        own = self.function.plan.storage[value].node
        return not (own.op.name == "input" and own.attr("role") == "state")

    def _comment(self) -> str:
        inputs = ", ".join(f"{n.attr('name')} {n.types[0]}" for n in self.graph.inputs_of("arg"))
        outputs = ", ".join(str(self.graph.outputs[i].type) for i in self.output)
        total = self.function.plan.plan.bytes
        arena = f"; arena: {total} bytes" if total != 0 else ""
        return _wrapped(f"{self.graph.name}: {inputs} -> {outputs}{arena}")

    def _head(self, signature: Sequence[str]) -> str:
        text = f"static void {self.emitter.function_names[self.graph]}({', '.join(signature)}) {{"
        if len(text) <= 118:
            return text
        lines, row = [], f"static void {self.emitter.function_names[self.graph]}("
        for i, item in enumerate(signature):
            piece = item + (", " if i + 1 < len(signature) else ") {")
            if len(row) + len(piece) > 118:
                lines.append(row.rstrip())
                row = "    "
            row += piece
        return "\n".join([*lines, row])


def _wrapped(text: str, width: int = 114) -> str:
    """A comment of as many lines as the text needs."""
    lines, row = [], "/*"
    for word in text.replace("*/", "* /").split(" "):
        if len(row) + len(word) + 1 > width:
            lines.append(row)
            row = " *"
        row += " " + word
    return "\n".join([*lines, row + " */"])
