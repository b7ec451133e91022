"""Control flow in C: which graphs a node calls with which values, and the if, while or for around the calls.

A loop's carried values live in the buffers of its results: they are copied there first, and again after each step,
which writes the next ones beside them. A scan's rows are read and written where their arrays have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...ir.graph import Graph, IRError, Node, Value
from ...ir.types import Expr, Type
from .text import folded, indented

if TYPE_CHECKING:
    from .function import FunctionText


@dataclass(frozen=True)
class Use:
    """A graph that a node calls, and the values that it is given, one for each input.

    In a loop it is given others for the inputs in `changing`: what is carried, or a row.
    """

    graph: Graph
    operands: tuple[Value, ...]
    changing: range = range(0)

    @property
    def arguments(self) -> tuple[Value, ...]:
        """The values that are passed as arguments; weights and states are found by the called function itself."""
        return tuple(v for v, n in zip(self.operands, self.graph.inputs) if n.attr("role") == "arg")


def uses_of(node: Node) -> tuple[Use, ...]:
    """The graphs that a node calls, in the order of its attributes. Raises IRError for what C cannot give them."""
    found = USES[node.op.name](node) if node.op.name in USES else ()
    for use in found:
        refused = [n for i, n in enumerate(use.graph.inputs) if i in use.changing and n.attr("role") != "arg"]
        refused += use.graph.inputs_of("state") if node.op.name != "call" else ()
        if refused:
            what = f"{refused[0].attr('role')} {refused[0].attr('name')}"
            raise IRError(
                f"{node.op.name} at {node.origin}: C does not give {what} to {use.graph.name}: branches and loops take "
                "arguments, and weights that stay the same; keep caches outside of them"
            )
    return found


def _cond(node: Node) -> tuple[Use, ...]:
    return tuple(Use(branch, node.inputs[1:]) for branch in node.attr("branches"))


def _while(node: Node) -> tuple[Use, ...]:
    for_cond, for_body = node.attr("cond_consts"), node.attr("body_consts")
    constants, rest = node.inputs[:for_cond], node.inputs[for_cond:]
    carry = rest[for_body:]
    return (Use(node.attr("cond"), constants + carry, range(for_cond, for_cond + len(carry))),
            Use(node.attr("body"), rest, range(for_body, len(rest))))  # fmt: skip


USES: Mapping[str, Callable[[Node], tuple[Use, ...]]] = {
    "call": lambda node: (Use(node.attr("graph"), node.inputs),),
    "cond": _cond,
    "while": _while,
    "scan": lambda node: (Use(node.attr("body"), node.inputs, range(node.attr("consts"), len(node.inputs))),),
}


def carried(node: Node) -> range:
    """The operands that a loop carries. What they are after its last step are its first results."""
    if node.op.name == "while":
        return range(node.attr("cond_consts") + node.attr("body_consts"), len(node.inputs))
    if node.op.name == "scan":
        return range(node.attr("consts"), node.attr("consts") + node.attr("carry"))
    return range(0)


# ---- text -----------------------------------------------------------------------------------------------------------


def control_text(text: FunctionText, at: int, node: Node, uses: tuple[Use, ...]) -> str:
    """The statements of line `at` of a function, whose node calls graphs."""
    return indented("\n".join(map(folded, TEXTS[node.op.name](text, at, node, uses))))


def _call_text(text: FunctionText, at: int, node: Node, uses: tuple[Use, ...]) -> list[str]:
    return [text.graph_call(at, uses[0], {}, lambda i: text.value(node[i]))]


def _cond_text(text: FunctionText, at: int, node: Node, uses: tuple[Use, ...]) -> list[str]:
    """Branches in order, the first and the last for all indices beyond them."""
    index, lines = text.typed(node.inputs[0]), []
    for i, use in enumerate(uses):
        test = f"if (*{index} < {i + 1}) " if use is not uses[-1] else ""
        call = text.graph_call(at, use, {}, lambda r: text.value(node[r]))
        lines += [f"{'} else ' if i else ''}{test}{{", f"  {call}"]
    return [*lines, "}"]


def _while_text(text: FunctionText, at: int, node: Node, uses: tuple[Use, ...]) -> list[str]:
    condition, body = uses
    return [
        *_enter(text, node),
        "for (;;) {",
        f"  uint8_t {text.more};",
        f"  {text.graph_call(at, condition, _carry(text, node, condition), lambda i: f'&{text.more}')}",
        f"  if (!{text.more}) break;",
        f"  {text.graph_call(at, body, _carry(text, node, body), lambda i: text.next(at, i))}",
        *_advance(text, at, node),
        "}",
    ]


def _scan_text(text: FunctionText, at: int, node: Node, uses: tuple[Use, ...]) -> list[str]:
    (body,), count, i = uses, node.attr("carry"), text.counter
    length = text.dim(node.attr("length"))
    steps = f"int32_t {i} = {length}; {i}-- > 0;" if node.attr("reverse") else f"int32_t {i} = 0; {i} < {length}; {i}++"
    rows = range(body.changing.start + count, len(node.inputs))
    given = _carry(text, node, body) | {n: _row(text, node.inputs[n]) for n in rows}

    def result(n: int) -> str:
        return text.next(at, n) if n < count else _row(text, node[n])

    call = text.graph_call(at, body, given, result)
    return [*_enter(text, node), f"for ({steps}) {{", f"  {call}", *_advance(text, at, node), "}"]


TEXTS: Mapping[str, Callable[[FunctionText, int, Node, tuple[Use, ...]], list[str]]] = {
    "call": _call_text, "cond": _cond_text, "while": _while_text, "scan": _scan_text,
}  # fmt: skip


def _carry(text: FunctionText, node: Node, use: Use) -> dict[int, str]:
    """What a graph is given for the inputs that are carried."""
    return {use.changing.start + i: text.value(node[i]) for i in range(len(carried(node)))}


def _enter(text: FunctionText, node: Node) -> list[str]:
    """The carried values come into the results' buffers, where they are not there already."""
    pairs = [(node[i], node.inputs[n]) for i, n in enumerate(carried(node))]
    return [text.copy(text.value(to), value) for to, value in pairs if not text.share(to, value)]


def _advance(text: FunctionText, at: int, node: Node) -> list[str]:
    return [f"  {text.copy(text.value(node[i]), node[i], text.next(at, i))}" for i in range(len(carried(node)))]


def _row(text: FunctionText, value: Value) -> str:
    """The row of an array that a scan's counter is at."""
    row = Type(value.shape[1:], value.dtype)
    size = row.bytes if value.dtype.is_block else row.elements
    factor = text.dim(size, wide=True)
    factor = f"({factor})" if isinstance(size, Expr) and len(size.terms) > 1 else factor
    return f"{text.typed(value)} + " + (text.counter if size == 1 else f"(size_t){text.counter} * {factor}")
