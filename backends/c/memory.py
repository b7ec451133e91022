"""The memory plan: which buffers of a graph share which bytes of its arena, exactly, for every value of its symbols.

A buffer lives from the step that writes it to the last step that reads it. Buffers whose lives are apart may share a
slot; a slot is as large as the largest of them, and slots follow one another at 64-byte aligned offsets. Sizes are
dimensions, so the plan holds for all T and R, and its total is the formula that the header publishes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from ...ir.graph import Graph, Node, Value
from ...ir.ops.cache import STATE_USES
from ...ir.quant.panels import packed_bytes
from ...ir.types import Dim, DimCall, Expr, Monomial, bounds, dim_max, evaluate, floordiv, symbols
from .control import carried

if TYPE_CHECKING:
    from .lower import Line

ALIGNMENT = 64
TYPICAL = 512  # what an unbounded symbol counts for when sizes are compared; it affects how well slots are shared only


@dataclass(frozen=True)
class Buffer:
    """`bytes` that hold a live value from step `first` to step `last` of a schedule, both included."""

    key: Hashable
    bytes: Dim
    first: int
    last: int


@dataclass(frozen=True)
class Slot:
    """Bytes of the arena from `offset`, used by buffers that never live at the same time."""

    offset: Dim
    bytes: Dim
    buffers: tuple[Buffer, ...]


@dataclass(frozen=True)
class Plan:
    """Where each buffer lies, by its key, and how many bytes the arena has."""

    slots: tuple[Slot, ...]
    bytes: Dim

    @property
    def offsets(self) -> Mapping[Hashable, Dim]:
        return {b.key: slot.offset for slot in self.slots for b in slot.buffers}


def _is_aligned(dim: Dim) -> bool:
    if isinstance(dim, int):
        return dim % ALIGNMENT == 0
    return all(_is_aligned_term(term) for term in dim.terms)


def _is_aligned_term(term: tuple[Monomial, int]) -> bool:
    """Whether a term is a multiple of the alignment for its coefficient, or as a bound of two that are."""
    monomial, coefficient = term
    bounded = (a for a, _ in monomial if isinstance(a, DimCall) and a.op in ("max", "min"))
    return coefficient % ALIGNMENT == 0 or any(all(map(_is_aligned, a.args)) for a in bounded)


def align(size: Dim) -> Dim:
    """`size` rounded up to the alignment, which only the terms that are no multiples of it need."""
    if isinstance(size, int):
        return -(-size // ALIGNMENT) * ALIGNMENT
    loose = [term for term in size.terms if not _is_aligned_term(term)]
    rest: Dim = sum((Expr((term,)) if term[0] else term[1] for term in loose), start=0)
    return size - rest + floordiv(rest + (ALIGNMENT - 1), ALIGNMENT) * ALIGNMENT


def largest(sizes: Iterable[Dim]) -> Dim:
    """The largest size for any value of the symbols: a maximum of those that none other is known to cover."""
    kept: list[Dim] = []
    for size in sizes:
        if not any(bounds(other - size)[0] >= 0 for other in kept):
            kept = [other for other in kept if bounds(size - other)[0] < 0] + [size]
    return reduce(dim_max, kept) if kept else 0


def typical(size: Dim) -> int:
    return evaluate(size, {s.name: min(s.hi, max(s.lo, TYPICAL)) for s in symbols(size)})


def assign(buffers: Iterable[Buffer]) -> Plan:
    """Puts buffers into slots, largest first, each into the first slot where no other lives at the same time."""
    shared: list[list[Buffer]] = []
    for buffer in sorted(buffers, key=lambda b: -typical(b.bytes)):
        for slot in shared:
            if all(buffer.last < other.first or other.last < buffer.first for other in slot):
                slot.append(buffer)
                break
        else:
            shared.append([buffer])
    slots: list[Slot] = []
    offset: Dim = 0
    for members in shared:
        size = largest(align(buffer.bytes) for buffer in members)
        slots.append(Slot(offset, size, tuple(members)))
        offset = offset + size
    return Plan(tuple(slots), offset)


def view_of(node: Node) -> int | None:
    """The operand whose bytes the node's result is, for a node that computes nothing."""
    if node.op.name == "reshape" and not node.types[0].layout:
        return 0
    if node.op.name == "bitcast" and node.types[0].dtype.block_bytes == node.inputs[0].dtype.block_bytes:
        return 0
    return None


def storage(graph: Graph) -> dict[Value, Value]:
    """For every value, the value whose bytes it is: views are their operand, a written state is the state before.

    A result of a called graph that is one of the callee's states is the operand that was passed for it.
    """
    of: dict[Value, Value] = {}
    for node in graph.nodes():
        same = dict(state_results(node))
        if (viewed := view_of(node)) is not None:
            same[0] = viewed
        for i, value in enumerate(node.values):
            of[value] = of[node.inputs[same[i]]] if i in same else value
    return of


def state_results(node: Node) -> tuple[tuple[int, int], ...]:
    """(result, operand) pairs of the results that are states, with the operands that hold them."""
    if node.op.name != "call":
        return tuple((0, i) for i, use in STATE_USES.get(node.op.name, {}).items() if use == "write")
    callee: Graph = node.attr("graph")
    of = storage(callee)
    position = {n[0]: i for i, n in enumerate(callee.inputs) if n.attr("role") == "state"}
    return tuple((i, position[of[v]]) for i, v in enumerate(callee.outputs) if of[v] in position)


@dataclass(frozen=True)
class GraphPlan:
    """The arena of one graph.

    `storage` is `storage(graph)`; `hosts` gives for each value stored in the arena the value whose buffer it uses (its
    own, or the operand's that it overwrites), and `plan` is keyed by hosts, by ("scratch", line index) and by ("next",
    line index, i) for what a step of a loop gives for its carried value i. `results` gives for each value that the
    function writes through a pointer of its own the output's index; an output whose bytes are elsewhere (an input, or
    another output) is in `copies` by index, to be copied last.
    """

    storage: Mapping[Value, Value]
    hosts: Mapping[Value, Value]
    plan: Plan
    results: Mapping[Value, int]
    copies: tuple[int, ...]


def plan_graph(graph: Graph, lines: Sequence[Line]) -> GraphPlan:
    """Plans the buffers and scratch of the lines of one function.

    A result may take its operand's buffer where the kernel allows it and the operand is not read later.
    """
    of = storage(graph)
    fixed = {n[0] for n in graph.nodes() if n.op.name in ("input", "constant")}
    states = {n[0] for n in graph.inputs if n.attr("role") == "state"}
    results: dict[Value, int] = {}
    copies = []
    for i, value in enumerate(graph.outputs):
        if of[value] in states:
            continue
        if of[value] in fixed or of[value] in results:
            copies.append(i)
        else:
            results[of[value]] = i
    last: dict[Value, int] = {}
    for at, line in enumerate(lines):
        for value in line.node.inputs:
            last[of[value]] = at
        for value in line.node.values:
            last.setdefault(of[value], at)
    spans: dict[Value, tuple[int, int]] = {}
    joined: dict[Value, Value] = {}
    for at, line in enumerate(lines):
        for i, value in enumerate(line.node.values):
            if of[value] != value or value in results or value in fixed:
                continue
            host = _operand_to_reuse(line, i, at, of, last, joined, spans)
            if host is None:
                spans[value] = at, last[value]
            else:
                joined[value] = host
                spans[host] = spans[host][0], max(spans[host][1], last[value])
    buffers = [Buffer(v, storage_bytes(v), *span) for v, span in spans.items()]
    for at, line in enumerate(lines):
        buffers += [Buffer(("scratch", at), line.scratch, at, at)] if line.scratch != 0 else []
        carry = enumerate(carried(line.node))
        buffers += [Buffer(("next", at, i), storage_bytes(line.node.inputs[n]), at, at) for i, n in carry]
    hosts = {v: joined.get(v, v) for v in (*spans, *joined)}
    return GraphPlan(of, hosts, assign(buffers), results, tuple(copies))


def _operand_to_reuse(
    line: Line, result: int, at: int, of: Mapping[Value, Value], last: Mapping[Value, int],
    joined: Mapping[Value, Value], spans: Mapping[Value, tuple[int, int]],
) -> Value | None:  # fmt: skip
    """The buffer that a result may overwrite: its operand's, if that ends here and is read in no other way."""
    permitted = {operand for r, operand in line.in_place if r == result}
    for i in sorted(permitted):
        own = of[line.node.inputs[i]]
        host = joined.get(own, own)
        if host not in spans or spans[host][1] != at or storage_bytes(host) != storage_bytes(line.node[result]):
            continue
        readers = {j for j, v in enumerate(line.node.inputs) if joined.get(of[v], of[v]) == host}
        taken = any(joined.get(v) == host for v in line.node.values)
        if readers <= permitted and not taken:
            return host
    return None


def storage_bytes(value: Value) -> Dim:
    """Bytes of a value in memory, its layout's padding included."""
    return packed_bytes(value.type) if value.type.layout else value.type.bytes


