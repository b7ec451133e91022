"""Several tokens in one call: a loop on the device that evaluates a token and takes the likeliest as the next.

    main(token i32[1], position i32[1], count i32, ends i32[ENDS], weights …, states …)
      -> made i32, ids i32[MOST], states …

`count` is at most MOST; `ends` are ids after which it stops, the rest of them -1. `made` ids were made, the last of
them not evaluated yet.
"""

from __future__ import annotations

from ...ir.graph import Graph
from .context import Context
from .lower import function_of
from .text import Tensor, Writer, module_text

MOST, ENDS = 64, 8


def write(context: Context, graph: Graph, name: str) -> str:
    """The module of a step for one token of one slot. Its inputs are those that `blocks.step` has, in that order."""
    step = function_of(context, graph)
    w = Writer()
    token, position = (w.fresh((1,), "i32") for _ in range(2))
    count, ends = w.fresh((), "i32"), w.fresh((ENDS,), "i32")
    given: list[tuple[Tensor, str]] = [(t, "") for t in (token, position, count, ends)]
    weights: list[Tensor] = []
    states: list[Tensor] = []
    for node in graph.inputs:
        role = node.attr("role")
        for shape, element in context.held(node.types[0]) if role != "arg" else ():
            tensor = w.fresh(shape, element)
            alias = f"{{tf.aliasing_output = {2 + len(states)} : i32}}" if role == "state" else ""
            (states if role == "state" else weights).append(tensor)
            given.append((tensor, alias))
    like = [h for v in graph.outputs for h in context.held(v.type)]
    zero, one, none = w.constant(0, "i32"), w.constant(1, "i32"), w.constant(0, "i32", (1,))

    def going(made: Tensor, ended: Tensor, *_: Tensor) -> Tensor:
        return w.both(w.compare(made, count, "LT"), w.map("not", ended))

    def body(made: Tensor, ended: Tensor, token: Tensor, ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        here = w.add(position, w.reshape(made, (1,)))
        by_name = {"tokens": token, "sequence": none, "position": here, "rows": none}
        operands, held, fixed = [], iter(state), iter(weights)
        for node in graph.inputs:
            role = node.attr("role")
            source = {"state": held, "weight": fixed}.get(role)
            parts = context.held(node.types[0])
            operands += [by_name[node.attr("name")]] if source is None else [next(source) for _ in parts]
        logits, *new = w.call(step, operands, like)
        best = likeliest(w, logits)
        ended = w.reduce(w.compare(w.broadcast(best, (ENDS,), (0,)), ends, "EQ"), "or", (0,), False)
        return w.add(made, one), ended, best, w.dynamic_update_slice(ids, best, (made,)), *new

    first = (zero, w.constant(False, "i1"), token, w.constant(0, "i32", (MOST,)), *states)
    made, _, _, ids, *new = w.loop(first, going, body)
    main = w.function("main", given, [made, ids, *new], True)
    return module_text(name, [*context.texts, main])


def likeliest(w: Writer, logits: Tensor) -> Tensor:
    """The first index of the highest logit of each row, i32 [rows], as NumPy's argmax but for NaN."""
    best = w.broadcast(w.highest(logits, (1,)), logits.shape, (0,))
    index, size = w.iota(logits.shape, 1), w.splat(logits.shape[1], w.iota(logits.shape, 1))
    found = w.reduce(w.select(w.compare(logits, best, "EQ"), index, size), "minimum", (1,), logits.shape[1])
    return w.map("minimum", found, w.splat(logits.shape[1] - 1, found))
