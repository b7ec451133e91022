"""Ops that make, move, order and reduce elements, and contraction."""

from __future__ import annotations

import numpy as np

from ...ir.types import Type, numpy_dtype
from .context import Lowering, Step, Value
from .text import FLOATS, Tensor, Writer, element_of

# StableHLO's operation for each kind of reduction.
KINDS = {"sum": "add", "prod": "multiply", "max": "maximum", "min": "minimum", "and": "and", "or": "or", "xor": "xor"}


def identity(kind: str, element: str) -> float | int | bool:
    """The value that changes no other in a reduction of `kind`."""
    fixed: dict[str, int] = {"sum": 0, "prod": 1, "or": 0, "xor": 0}
    if kind in fixed:
        return fixed[kind]
    if kind == "and":
        return True if element == "i1" else -1 if element[0] == "i" else np.iinfo(f"uint{element[2:]}").max
    low, high = limits(element)
    return low if kind == "max" else high


def limits(element: str) -> tuple[float, float]:
    """The values that none is below, or above."""
    if element in FLOATS:
        return -np.inf, np.inf
    if element == "i1":
        return False, True
    info = np.iinfo(("uint" if element[0] == "u" else "int") + element.lstrip("ui"))
    return info.min, info.max


def _constant(step: Step) -> Tensor:
    t: Type = step.attr("type")
    values = np.frombuffer(step.attr("value"), numpy_dtype(t.dtype)).reshape(t.sizes)
    return step.writer.array(values, t.dtype)


def _broadcast(step: Step) -> Tensor:
    """StableHLO's own broadcast too repeats axes of one element."""
    return step.writer.broadcast(step.x, step.shape, step.attr("dims"))


def _slice(step: Step) -> Tensor:
    start, limit = (step.context.shape(step.attr(n)) for n in ("start", "limit"))
    return step.writer.slice(step.x, start, limit, step.attr("stride"), step.shape)


def _pad(step: Step) -> Tensor:
    low, high = (step.context.shape(step.attr(n)) for n in ("low", "high"))
    x, value = step.tensors
    return step.writer.pad(x, value, low, high, step.attr("interior"), step.shape)


def _reduce(step: Step) -> Tensor:
    kind = step.attr("kind")
    return step.writer.reduce(step.x, KINDS[kind], step.attr("axes"), identity(kind, step.x.element))


def _iota(step: Step) -> Tensor:
    return step.writer.iota(step.shape, step.attr("dim"), element_of(step.node.types[0].dtype))


# --- Orders ---


def _unequal(w: Writer, x: Tensor) -> Tensor:
    """Whether x is a NaN."""
    return w.compare(x, x, "NE")


def _before(w: Writer, a: Tensor, b: Tensor, direction: str) -> Tensor:
    """a stands before b; a NaN is beyond every number: last where the order ascends (LT), first where it descends."""
    better = w.compare(a, b, direction)
    if not a.is_float:
        return better
    nan, other = (a, b) if direction == "GT" else (b, a)
    beyond = w.both(_unequal(w, nan), w.map("not", _unequal(w, other)))
    return w.map("or", better, beyond)


def _arg(direction: str) -> Lowering:
    """The first index of the extreme, where a NaN counts as it."""

    def lower(step: Step) -> Tensor:
        w, x, axis = step.writer, step.x, step.attr("axis")
        element = element_of(step.attr("dtype"))
        low, high = limits(x.element)
        start = w.constant(low if direction == "GT" else high, x.element), w.constant(limits(element)[1], element)

        def better(a: Tensor, i: Tensor, b: Tensor, j: Tensor) -> tuple[Tensor, ...]:
            first = w.compare(a, b, direction)
            equal = w.compare(a, b, "EQ")
            if a.is_float:
                first = w.map("or", first, w.both(_unequal(w, a), w.map("not", _unequal(w, b))))
                equal = w.map("or", equal, w.both(_unequal(w, a), _unequal(w, b)))
            chosen = w.map("or", first, w.both(equal, w.compare(i, j, "LT")))
            return w.select(chosen, a, b), w.select(chosen, i, j)

        return w.reduce_pairs((x, w.iota(x.shape, axis, element)), axis, start, better)[1]

    return lower


def _top_k(step: Step) -> tuple[Value, ...]:
    w, x, last = step.writer, step.x, step.x.rank - 1
    index = w.iota(x.shape, last)
    values, order = w.sort((x, index), last, lambda a, b, i, j: _before(w, a, b, "GT"))
    k = step.attr("k")
    return (w.part(values, last, 0, k),), (w.part(order, last, 0, k),)


def _sort(step: Step) -> tuple[Value, ...]:
    w, keys = step.writer, step.attr("keys")

    def before(*pairs: Tensor) -> Tensor:
        """By the first key that differs."""
        found = None
        for i in reversed(range(keys)):
            a, b = pairs[2 * i], pairs[2 * i + 1]
            first = _before(w, a, b, "LT")
            if found is None:
                found = first
            else:
                tie = w.map("not", w.map("or", first, _before(w, b, a, "LT")))
                found = w.map("or", first, w.both(tie, found))
        assert found is not None
        return found

    return tuple((t,) for t in w.sort(step.tensors, step.attr("axis"), before))


def _dot_general(step: Step) -> Tensor:
    (a, b), dtype = step.tensors, step.attr("dtype")
    element = element_of(dtype) if dtype else ""
    return step.writer.dot(a, b, step.attr("contracting"), step.attr("batch"), element)


SHAPE: dict[str, Lowering] = {
    "constant": _constant,
    "iota": _iota,
    "broadcast": _broadcast,
    "reshape": lambda step: step.writer.reshape(step.x, step.shape),
    "transpose": lambda step: step.writer.transpose(step.x, step.attr("permutation")),
    "reverse": lambda step: step.writer.reverse(step.x, step.attr("axes")),
    "slice": _slice,
    "pad": _pad,
    "concatenate": lambda step: step.writer.concatenate(step.tensors, step.attr("axis")),
    "reduce": _reduce,
    "argmax": _arg("GT"),
    "argmin": _arg("LT"),
    "top_k": _top_k,
    "sort": _sort,
    "dot_general": _dot_general,
}
