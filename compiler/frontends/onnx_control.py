"""ONNX's control flow: If, Loop and Scan become cond, while and scan of the IR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from onnx import GraphProto

from ...ir.graph import Graph, Value
from ...ir.types import Dim, Type, boolean, i64
from .arrays import Array, stack
from .onnx_import import Call, Rule, Tensor, UnknownShape


def if_(c: Call) -> list[Tensor | Array]:
    condition = c.maybe(0)
    branches = [c.attr("else_branch"), c.attr("then_branch")]  # index 0 is false
    if condition is not None:
        return list(c.importer.subgraph(branches[bool(condition.reshape(-1)[0])], c.frame, []))
    built = [c.importer.close(name, [], partial(_branch, c, g)) for name, g in zip(("else", "then"), branches)]
    if built[0][0].output_types != built[1][0].output_types:  # then it decides shapes
        chosen = branches[bool(c.numbers(0).reshape(-1)[0])]
        return list(c.importer.subgraph(chosen, c.frame, []))
    graphs, captured = c.body.closed_together(built)
    made = c.body.make("cond", c.x(0).reshape(()).value, *captured, branches=tuple(graphs))
    return [Array(v, c.body) for v in made]


def _branch(c: Call, graph: GraphProto, arguments: list[Array]) -> list[Tensor]:
    return c.importer.subgraph(graph, c.frame, [])


def loop(c: Call) -> list[Array]:
    """A scan where the number of turns is known and no turn ends it, else a while.

    Raises InfercError where outputs have a row for each turn and their number is not known.
    """
    body = c.attr("body")
    states = [c.x(i) for i in range(2, len(c.operands))]
    has_rows = len(body.output) - 1 > len(states)
    read = c.numbers if has_rows else c.maybe
    turns = read(0) if c.has(0) else None
    started = read(1) if c.has(1) else np.array(True)
    if has_rows and turns is None:
        raise c.error("its outputs have a row for each turn, but it has no number of turns; give it one")
    if turns is not None and started is not None and (has_rows or _never_ends(c, body, states)):
        return _counted(c, body, states, int(turns.reshape(-1)[0]) if started.reshape(-1)[0] else 0)
    return _while(c, body, states)


def _types(arrays: Sequence[Array]) -> list[Type]:
    return [a.value.type for a in arrays]


def _turn(c: Call, body: GraphProto, number: Array, condition: Tensor, states: Sequence[Array]) -> list[Tensor]:
    arguments = [Tensor(array=number), condition, *(Tensor(array=s) for s in states)]
    return c.importer.subgraph(body, c.frame, arguments)


def _never_ends(c: Call, body: GraphProto, states: Sequence[Array]) -> bool:
    """Whether a turn that may run says that the next may."""
    found: list[Tensor] = []

    def build(arguments: list[Array]) -> list[Tensor]:
        found.extend(_turn(c, body, arguments[0], Tensor(known=np.array(True)), arguments[1:]))
        return found[1:]

    c.importer.close("probe", [Type((), i64), *_types(states)], build)
    return found[0].known is not None and bool(found[0].known.reshape(-1)[0])


WRITTEN_OUT = 64  # turns of a loop whose shapes depend on the number of the turn


def _written_out(c: Call, body: GraphProto, states: Sequence[Array], length: int) -> list[Array]:
    made: list[list[Array]] = []
    for turn in range(length):
        arguments = [Tensor(known=np.array(turn)), Tensor(known=np.array(True)), *(Tensor(array=s) for s in states)]
        _, *results = map(c.importer.array, c.importer.subgraph(body, c.frame, arguments))
        states = results[: len(states)]
        made.append(results[len(states) :])
    return [*states, *(stack(column, 0) for column in zip(*made))]


def _counted(c: Call, body: GraphProto, states: Sequence[Array], length: int) -> list[Array]:
    try:
        endless = _never_ends(c, body, states)
    except UnknownShape:
        if not 0 < length <= WRITTEN_OUT:
            raise
        return _written_out(c, body, states, length)
    if not endless:
        raise c.error("how many rows its outputs have depends on the data; loop a fixed number of times")

    def build(arguments: list[Array]) -> list[Tensor]:
        *carried, number = arguments
        return _turn(c, body, number, Tensor(known=np.array(True)), carried)[1:]

    graph, captured = c.importer.close("body", [*_types(states), Type((), i64)], build)
    return _scan(c, graph, captured, states, [c.body.arange(length)], length)


def _scan(c: Call, graph: Graph, captured: Sequence[Value], states: Sequence[Array], rows: Sequence[Array],
          length: Dim, reverse: bool = False) -> list[Array]:  # fmt: skip
    operands = (*captured, *(a.value for a in (*states, *rows)))
    made = c.body.make("scan", *operands, body=graph, length=length, consts=len(captured), carry=len(states),
                       reverse=reverse)  # fmt: skip
    return [Array(v, c.body) for v in made]


def _while(c: Call, body: GraphProto, states: Sequence[Array]) -> list[Array]:
    types = [Type((), i64), Type((), boolean), *_types(states)]
    limit = c.optional(0)

    def condition(arguments: list[Array]) -> list[Tensor]:
        go = arguments[1]
        if limit is not None:
            go = go & (arguments[0] < limit.reshape(()))
        return [Tensor(array=go)]

    def turn(arguments: list[Array]) -> list[Tensor]:
        go, *new = _turn(c, body, arguments[0], Tensor(array=arguments[1]), arguments[2:])
        again = c.importer.array(go).reshape(())
        return [Tensor(array=arguments[0] + 1), Tensor(array=again), *new]

    test, for_test = c.importer.close("condition", types, condition)
    step, for_step = c.importer.close("body", types, turn)
    begin = [c.body.constant(0, i64), c.x(1).reshape(()) if c.has(1) else c.body.constant(True, boolean), *states]
    made = c.body.make("while", *for_test, *for_step, *(a.value for a in begin), cond=test, body=step,
                       cond_consts=len(for_test), body_consts=len(for_step))  # fmt: skip
    return [Array(v, c.body) for v in made[2:]]


def scan(c: Call) -> list[Array]:
    body, count = c.attr("body"), c.attr("num_scan_inputs")
    operands = c.xs() if c.version >= 9 else [c.x(i) for i in range(1, len(c.operands))]
    batched = c.version < 9  # then every operand has a batch axis first
    if batched:
        if any(x.shape[0] != 1 for x in operands) or c.has(0):
            raise c.error("a batch or sequence lengths are not supported; convert the model to opset 9 or later")
        operands = [x.squeeze(0) for x in operands]
    states, inputs = operands[: len(operands) - count], operands[len(operands) - count :]
    axes = c.attr("scan_input_axes") or [0] * count
    turned = c.attr("scan_input_directions" if not batched else "directions") or [0] * count
    rows = []
    for x, axis, backward in zip(inputs, axes, turned):
        row = x.moveaxis(axis, 0)
        rows.append(row.reverse(0) if backward else row)

    def build(arguments: list[Array]) -> list[Tensor]:
        return c.importer.subgraph(body, c.frame, [Tensor(array=a) for a in arguments])

    types = [*_types(states), *(Type(r.shape[1:], r.dtype) for r in rows)]
    graph, captured = c.importer.close("body", types, build)
    results = _scan(c, graph, captured, states, rows, rows[0].shape[0])
    made = results[len(states) :]
    out_axes = c.attr("scan_output_axes") or [0] * len(made)
    out_turned = c.attr("scan_output_directions") or [0] * len(made)
    stacked = [y.reverse(0) if backward else y for y, backward in zip(made, out_turned)]
    final = [*results[: len(states)], *(y.moveaxis(0, axis) for y, axis in zip(stacked, out_axes))]
    return [y.unsqueeze(0) for y in final] if batched else final


CONTROL: Mapping[str, Rule] = {"If": if_, "Loop": loop, "Scan": scan}
