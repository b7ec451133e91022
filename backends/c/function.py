"""The C text of a graph's function: pointers into the arena, then one call a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping

from ...ir.graph import Graph, Node, Value
from ...ir.types import Dim, Type, substitute
from .control import Use, carried, control_text
from .emit import SESSIONS, THREADS_NAME, Emitter
from .kernels import Arg, DimValue, Literal, Operand, Result, Run, Scratch
from .lower import CONTEXT, Function, Line
from .memory import storage_bytes
from .text import LIBRARY, Names, aligned, c_type, dim_c, folded, indented


def function_text(emitter: Emitter, graph: Graph) -> str:
    """The definition of a graph's function, after a comment with its types."""
    return FunctionText(emitter, emitter.functions[graph]).text()


class FunctionText:
    """The text of one function."""

    def __init__(self, emitter: Emitter, function: Function) -> None:
        self.emitter, self.function, self.graph = emitter, function, function.graph
        self.parameters = emitter.parameters(self.graph)
        self.names = Names(emitter.names.taken - LIBRARY)
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
        self.declarations: dict[tuple[str, str, Type], str] = {}  # pointer names by leaf of the origin, slot and type
        self.nexts: dict[tuple[int, int], str] = {}
        for at, line in enumerate(function.lines):
            for i, value in enumerate(line.node.values):
                self._declare(line.node, i, value)
            for i, _ in enumerate(carried(line.node)):
                name, type = f"{self.value(line.node[i])}_next", line.node[i].type
                key = name, self.slot_of["next", at, i], type
                self.nexts[at, i] = self.declarations.setdefault(key, self.names.new(name))
        self.counter, self.more = self.names.new("i"), self.names.new("more")  # of scans and whiles

    def _declare(self, node: Node, index: int, value: Value) -> None:
        """A pointer for a buffer of this function's own; values of one kind that take turns in a slot share it."""
        if value in self.pointers or value not in self.function.plan.hosts:
            return
        leaf = re.sub(r"[\d.+]*$", "", node.origin.path).rpartition(".")[2] or node.op.name
        if sum(map(self._is_data, node.values)) > 1:
            leaf += str(index)
        key = leaf, self.slot_of[self.function.plan.hosts[value]], value.type
        if key not in self.declarations:
            self.declarations[key] = self.names.new(leaf, node.op.name)
        self.pointers[value] = self.declarations[key], value.type

    def dim(self, dim: Dim, wide: bool = False, sizes: Container[str] = ()) -> str:
        dim = substitute(dim, {CONTEXT: self.emitter.context})
        return dim_c(dim, {SESSIONS: "r->session_count", THREADS_NAME: "r->threads"}, wide=wide, sizes=sizes)

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

    def typed(self, value: Value) -> str:
        """`value` as an expression whose type is a pointer to its elements, which that of a weight is not yet."""
        node = self.function.plan.storage[value].node
        is_weight = node.op.name == "input" and node.attr("role") == "weight"
        return f"((const {c_type(value.dtype)} *){self.value(value)})" if is_weight else self.value(value)

    def next(self, at: int, index: int) -> str:
        """Where a step of the loop in line `at` leaves its carried value `index` for the next one."""
        return self.nexts[at, index]

    def copy(self, to: str, value: Value, source: str = "") -> str:
        """A statement that copies a value, or one of its type from `source`."""
        return f"memcpy({to}, {source or self.value(value)}, {self.dim(storage_bytes(value), wide=True)});"

    def share(self, a: Value, b: Value) -> bool:
        """Whether two values are in one buffer of the arena."""
        of, hosts = self.function.plan.storage, self.function.plan.hosts
        return of[a] in hosts and hosts[of[a]] == hosts.get(of[b])

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

    def line(self, at: int, line: Line) -> str:
        if not line.call:
            return control_text(self, at, line.node, line.uses)
        args = ", ".join(self.argument(a, at, line.node) for a in line.call.args)
        return folded(f"  {line.call.kernel.symbol}({args});")

    def graph_call(self, at: int, use: Use, given: Mapping[int, str], result: Callable[[int], str]) -> str:
        """A call of another graph's function in line `at`. `given` says what is passed for some of the operands instead
        of their own pointers, `result` where each output goes."""
        callee, emitter = use.graph, self.emitter
        args = ["r"]
        if emitter.parts[callee]:
            part = self.part[callee]
            args.append(f"&at->{part.name}[{part.uses.index(use)}]")
        args += [s.name for s in emitter.dimensions(callee)]
        for i, (value, node) in enumerate(zip(use.operands, callee.inputs)):
            if node.attr("role") == "arg":
                args.append(given[i] if i in given else self.value(value))
        args += map(result, emitter.results(callee))
        if emitter.functions[callee].plan.plan.slots:
            args.append(self.slot_of["scratch", at])
        return f"{emitter.function_names[callee]}({', '.join(args)});"

    def text(self) -> str:
        emitter, graph = self.emitter, self.graph
        head, body = self._pointers(), self._calls()
        signature = emitter.signature(graph)
        inside = "\n".join(head + body)
        names = [parameter.split()[-1].lstrip("*") for parameter in signature]
        unused = [f"  (void){name};" for name in names if not re.search(rf"\b{name}\b", inside)]
        opening = folded(f"static void {emitter.function_names[graph]}({', '.join(signature)}) {{", "    ")
        return "\n".join([self._comment(), opening, *unused, *head, *([""] if head else []), *body, "}"])

    def _pointers(self) -> list[str]:
        """Where the parts, slots and buffers of the function are."""
        emitter, graph = self.emitter, self.graph
        name = emitter.function_names[graph]
        lines = []
        if graph in emitter.entries and emitter.parts[graph]:
            lines.append(f"  const {name}_parts *const at = &{name}_at;")
        slot_bytes = emitter.slot_bytes(graph)[:-1]  # the last one's end is nowhere in the text
        lines += emitter.arena_lines(graph, slot_bytes, "r->threads")
        sizes = {emitter.arena_name(callee) for callee in emitter.arenas_in(graph, slot_bytes)}
        start = "arena"
        for i, slot in enumerate(self.slots):
            lines.append(folded(f"  uint8_t *const {slot} = {start};"))
            if i < len(slot_bytes):
                start = f"{slot} + {self.dim(slot_bytes[i], wide=True, sizes=sizes)}"
        pointers = []
        for (_, slot, type), pointer in self.declarations.items():
            kind = c_type(type.dtype)
            pointers.append((f"  {kind} *const {pointer} = ({kind} *){slot};", str(type)))
        return lines + aligned(pointers)

    def _calls(self) -> list[str]:
        """The lines that compute, each with its origin and result types, then copies of outputs stored elsewhere."""
        rows = []
        for at, line in enumerate(self.function.lines):
            types = ", ".join(str(v.type) for v in line.node.values if self._is_data(v))
            path, code = line.node.origin.path, self.line(at, line)
            if line.uses and line.node.op.name != "call":
                rows.append((f"{indented(_wrapped(f'{path or line.node.op.name}: {types}'))}\n{code}", ""))
            else:
                rows.append((code, ": ".join(filter(None, (path, types))).replace("*/", "* /")))
        lines = aligned(rows)
        if self.function.optional is not None:
            wanted = " || ".join(f"!{p.name}" for p in self.output.values())
            early = f"  if ({wanted}) return; /* a chunk whose logits nobody wants ends here */"
            lines.insert(self.function.optional, early)
        for index in self.function.plan.copies:
            lines.append(f"  {self.copy(self.output[index].name, self.graph.outputs[index])}")
        return lines

    def _is_data(self, value: Value) -> bool:
        own = self.function.plan.storage[value].node
        return not (own.op.name == "input" and own.attr("role") == "state")

    def _comment(self) -> str:
        inputs = ", ".join(f"{n.attr('name')} {n.types[0]}" for n in self.graph.inputs_of("arg"))
        outputs = ", ".join(str(self.graph.outputs[i].type) for i in self.output)
        return _wrapped(f"{self.graph.name}: {inputs} -> {outputs}")


def _wrapped(text: str, width: int = 114) -> str:
    """A comment of as many lines as the text needs."""
    lines, row = [], "/*"
    for word in text.replace("*/", "* /").split(" "):
        if len(row) + len(word) + 1 > width:
            lines.append(row)
            row = " *"
        row += " " + word
    return "\n".join([*lines, row + " */"])
