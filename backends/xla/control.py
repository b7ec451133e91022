"""Ops whose attributes are graphs: a graph is a function of the module, which regions call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir.graph import Graph
from .context import Lowering, Step, Value
from .text import Tensor

Emit = Callable[[Step, Graph, Sequence[Tensor]], tuple[Tensor, ...]]


def flat(values: Sequence[Value]) -> tuple[Tensor, ...]:
    return tuple(t for v in values for t in v)


def grouped(step: Step, tensors: Sequence[Tensor]) -> tuple[Value, ...]:
    """The tensors of all results, by result."""
    rest = iter(tensors)
    return tuple(tuple(next(rest) for _ in step.context.held(t)) for t in step.node.types)


def control(emit: Emit) -> dict[str, Lowering]:
    """The rows of the control ops; `emit` calls the function of a graph."""

    def call(step: Step) -> tuple[Value, ...]:
        return grouped(step, emit(step, step.attr("graph"), flat(step.operands)))

    def cond(step: Step) -> tuple[Value, ...]:
        """Branch `index`, moved into range; false is branch 0."""
        w, given = step.writer, flat(step.operands[1:])
        index = w.convert(step.x, "i32")
        index = w.map("maximum", index, w.splat(0, index))
        like = [h for t in step.node.types for h in step.context.held(t)]
        branches = [lambda graph=graph: emit(step, graph, given) for graph in step.attr("branches")]
        return grouped(step, w.case(index, branches, like))

    def loop(step: Step) -> tuple[Value, ...]:
        first, second = step.attr("cond_consts"), step.attr("body_consts")
        for_cond, for_body = flat(step.operands[:first]), flat(step.operands[first : first + second])
        made = step.writer.loop(
            flat(step.operands[first + second :]),
            lambda *carry: emit(step, step.attr("cond"), (*for_cond, *carry))[0],
            lambda *carry: emit(step, step.attr("body"), (*for_body, *carry)),
        )
        return grouped(step, made)

    def scan(step: Step) -> tuple[Value, ...]:
        """A loop over the rows; what each makes is written where its row was."""
        w, consts, carried = step.writer, step.attr("consts"), step.attr("carry")
        length = step.context.size(step.attr("length"))
        fixed, state = flat(step.operands[:consts]), flat(step.operands[consts : consts + carried])
        rows = flat(step.operands[consts + carried :])
        made = [h for t in step.node.types[carried:] for h in step.context.held(t)]
        if not length:
            return grouped(step, (*state, *(w.constant(0, element, shape) for shape, element in made)))
        zero, one = w.constant(0, "i32"), w.constant(1, "i32")
        count = w.constant(length, "i32")
        stacks = tuple(w.constant(0, element, shape) for shape, element in made)

        def body(i: Tensor, *carry: Tensor) -> tuple[Tensor, ...]:
            at = w.sub(w.constant(length - 1, "i32"), i) if step.attr("reverse") else i
            taken = [w.reshape(w.dynamic_slice(r, (at, *[zero] * (r.rank - 1)), (1, *r.shape[1:])), r.shape[1:])
                     for r in rows]  # fmt: skip
            results = emit(step, step.attr("body"), (*fixed, *carry[: len(state)], *taken))
            new = tuple(
                w.dynamic_update_slice(stack, w.reshape(y, (1, *y.shape)), (at, *[zero] * y.rank))
                for stack, y in zip(carry[len(state) :], results[len(state) :])
            )
            return (w.add(i, one), *results[: len(state)], *new)

        _, *found = w.loop((zero, *state, *stacks), lambda i, *_: w.compare(i, count, "LT"), body)
        return grouped(step, found)

    return {"call": call, "fused": call, "cond": cond, "while": loop, "scan": scan}
