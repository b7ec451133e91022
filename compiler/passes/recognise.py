"""Named ops in chains of simpler ones, whatever library wrote them: norms, softmax, activations, attention.

`canonical` finds what is written in one way only. Here a rule looks at values through views (`spread`), so that it
does not matter where a library keeps axes of 1, squares, divides or transposes. Like those of `RECOGNISED` in
`canonical`, a named op has its own order of rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Graph, Module, Node, Value, make, map_graphs
from ...ir.numerics import elementary
from ...ir.ops import OPS
from ...ir.ops.decompose import constant
from ...ir.rewrite import cse, rewrite, splat, substitute
from ...ir.target import Target
from ...ir.types import f32
from . import canonical
from .attend import attention
from .hoist import hoist
from .spread import SCALAR, Seen, column, number, peeled, reduced, same, seen

Made = Value | None


@dataclass(frozen=True)
class Rule:
    """At a node of one of these ops `find` gives what replaces its result, or None. `algebra` says why it may.

    A rule is for the targets that have a kernel for `op`.
    """

    op: str
    roots: tuple[str, ...]
    find: Callable[[Node], Made]
    algebra: str


def run(module: Module, target: Target) -> Module:
    """The rules of the ops that the target has a kernel for, in every graph, until none applies."""
    rules = [r for r in RULES if not target.ops or r.op in target.ops]
    return hoist(map_graphs(module, lambda graph: _rewritten(graph, rules)))


def _rewritten(graph: Graph, rules: list[Rule]) -> Graph:
    by_op: dict[str, list[Rule]] = {}
    for rule in rules:
        for op in rule.roots:
            by_op.setdefault(op, []).append(rule)
    graph = cse(rewrite(graph, canonical.RULES))  # what folding made simple
    while True:
        made = {}
        for node in graph.nodes():
            found = (rule.find(node) for rule in by_op.get(node.op.name, ()) if node.types[0].dtype == f32)
            if (value := next((v for v in found if v is not None), None)) is not None:
                made[node] = (value,)
        if not made:
            return graph
        graph = cse(rewrite(substitute(graph, made), canonical.RULES))


def _emit(like: Node, op: str, *operands: Value, **attrs: object) -> Value:
    return make(OPS[op], *operands, origin=like.origin, **attrs)[0]


# --- Softmax ---


def _factors(s: Seen, sign: int = 1) -> Iterator[tuple[Seen, int]]:
    """The factors of a product, with 1, and of what it is divided by, with -1, through views."""
    s = peeled(s)
    if s.op == "mul":
        for operand in s.operands():
            yield from _factors(operand, sign)
    elif s.op == "div":
        yield from _factors(s.operand(0), sign)
        yield from _factors(s.operand(1), -sign)
    elif number(s) != 1:
        yield s, sign


def _softmax(node: Node) -> Made:
    found = list(_factors(seen(node[0])))
    if len(found) != 2 or sorted(sign for _, sign in found) != [-1, 1]:
        return None
    (e, _), (total, _) = sorted(found, key=lambda pair: -pair[1])
    summed = reduced(total, "sum")
    if e.op != "exp" or summed is None or not same(summed[0], e):
        return None
    axis = summed[1]
    difference = e.operand(0)
    if difference.op == "sub":
        x, highest = map(difference.at, difference.value.node.inputs)
        most = reduced(highest, "max")
        if most is not None and most[1] == axis and same(most[0], x):
            return _emit(node, "softmax", x.value, axis=axis) if x.identical else None
    return None


# --- Norms over the last axis ---


def _mean(s: Seen) -> tuple[Seen, int] | None:
    """What is averaged, and along which axis of the frame."""
    s = peeled(s)
    if s.op not in ("div", "mul"):
        return None
    for total, count in ((s.operand(0), s.operand(1)), (s.operand(1), s.operand(0)))[: 1 + (s.op == "mul")]:
        summed, n = reduced(total, "sum"), number(count)
        if summed is None or n is None:
            continue
        x, axis = summed
        place = x.axes[axis]
        size = x.value.shape[place] if place is not None else 1
        if isinstance(size, int) and math.isclose(n if s.op == "div" else 1 / n if n else 0, size, rel_tol=1e-6):
            return summed
    return None


def _square(s: Seen) -> Seen | None:
    """x of x * x."""
    s = peeled(s)
    return s.operand(0) if s.op == "mul" and same(s.operand(0), s.operand(1)) else None


def _mean_square(s: Seen) -> tuple[Seen, int] | None:
    found = _mean(s)
    x = _square(found[0]) if found else None
    return (x, found[1]) if found and x else None


def _variance(s: Seen) -> tuple[Seen, bool, int] | None:
    """(y, False, axis) of mean(y²), (x, True, axis) of mean(x²) - mean(x)²; max(0, v) is v."""
    s = peeled(s)
    if s.op == "max":
        for one, other in (s.operands(), s.operands()[::-1]):
            if number(one) == 0:
                return _variance(other)
    if s.op == "sub":
        square, mean = _mean_square(s.operand(0)), _square(s.operand(1))
        of = _mean(mean) if mean else None
        if square and of and of[1] == square[1] and same(of[0], square[0]):
            return square[0], True, square[1]
        return None
    found = _mean_square(s)
    return (found[0], False, found[1]) if found else None


def _root(s: Seen, sign: int) -> Seen | None:
    """v where a factor with this sign is 1 / sqrt(v)."""
    s = peeled(s)
    if s.op == ("rsqrt" if sign > 0 else "sqrt"):
        return s.operand(0)
    if s.op == "pow" and number(s.operand(1)) == -0.5 * sign:
        return s.operand(0)
    return None


def _norm(node: Node) -> Made:
    """x / sqrt(mean(x²) + eps) * w, as rms_norm; with x - mean(x) for x as layer_norm without a bias."""
    last = node.types[0].rank - 1
    root = seen(node[0])
    inverse = [(s, sign) for s, sign in _factors(root) if _root(s, sign) is not None]
    for s, sign in inverse:
        inside = _root(s, sign)
        assert inside
        if inside.op != "add":
            continue
        for one, other in (inside.operands(), inside.operands()[::-1]):
            eps, spread = number(other), _variance(one)
            if eps is None or spread is None or spread[2] != last:
                continue
            made = _scaled(node, root, s, *spread[:2], eps, last)
            if made is not None:
                return made
    return None


def _scaled(node: Node, root: Seen, inverse: Seen, y: Seen, centred: bool, eps: float, last: int) -> Made:
    """The norm op of a product of `inverse`, of what was squared, and of what varies along the last axis alone.

    With `centred` the mean of y is taken off in the variance already; else y itself may be x less its mean.
    """
    found: list[Seen] = []
    weights: list[Value] = []
    x = y if centred else _less_mean(y, None, last)  # of a layer_norm; None for an rms_norm of y

    def collect(s: Seen) -> bool:
        p = peeled(s)
        if p == inverse:
            return True
        less = None if x is None else _less_mean(p, x, last)
        if less is not None or same(p, y) and not centred:
            found.append(less or x or s)
            return True
        operands, before = [p.at(v) for v in p.value.node.inputs], (len(found), len(weights))
        if p.op == "mul" and all(map(collect, operands)):
            return True
        if p.op == "div" and peeled(operands[1]) == inverse and collect(operands[0]):
            return True
        del found[before[0] :], weights[before[1] :]
        if (vector := column(p, last)) is not None:
            weights.append(vector)
            return True
        return number(p) == 1

    if not collect(root) or len(found) != 1 or not found[0].identical:
        return None
    source = found[0]
    size = (node.types[0].shape[last],)
    weight: Value | None = None
    for vector in weights:
        flat = vector if vector.shape == size else _emit(node, "reshape", vector, shape=size)
        weight = flat if weight is None else _emit(node, "mul", weight, flat)
    weight = constant(1.0, size) if weight is None else weight
    if x is None:
        return _emit(node, "rms_norm", source.value, weight, eps=eps)
    return _emit(node, "layer_norm", source.value, weight, constant(0.0, size), eps=eps)


def _less_mean(s: Seen, x: Seen | None, axis: int) -> Seen | None:
    """x where s is x - mean(x) along the axis; `x` is what it must be, if that is known."""
    s = peeled(s)
    if s.op != "sub":
        return None
    first, mean = s.at(s.value.node.inputs[0]), _mean(s.operand(1))
    if mean is None or mean[1] != axis or not same(mean[0], first) or x is not None and not same(first, x):
        return None
    return first


def _with_scale(node: Node) -> Made:
    """layer_norm(x, w, 0) * c, rms_norm(x, w) * c: the weight takes the factor."""
    last = node.types[0].rank - 1
    for norm, factor in (node.inputs, node.inputs[::-1]):
        inner = norm.node
        vector = column(peeled(seen(factor)), last) if inner.op.name in ("layer_norm", "rms_norm") else None
        if vector is None or inner.op.name == "layer_norm" and splat(inner.inputs[2]) != 0:
            continue
        flat = vector if vector.type.rank == 1 else _emit(node, "reshape", vector, shape=inner.inputs[1].shape)
        weight = flat if splat(inner.inputs[1]) == 1 else _emit(node, "mul", inner.inputs[1], flat)
        return _emit(node, inner.op.name, inner.inputs[0], weight, *inner.inputs[2:], **dict(inner.attrs))
    return None


def _with_shift(node: Node) -> Made:
    """layer_norm(x, w, 0) + b."""
    last = node.types[0].rank - 1
    for norm, shift in (node.inputs, node.inputs[::-1]):
        inner = norm.node
        if inner.op.name != "layer_norm" or splat(inner.inputs[2]) != 0:
            continue
        vector = column(peeled(seen(shift)), last)
        if vector is not None:
            flat = vector if vector.type.rank == 1 else _emit(node, "reshape", vector, shape=inner.inputs[1].shape)
            return _emit(node, "layer_norm", *inner.inputs[:2], flat, **dict(inner.attrs))
    return None


# --- Activations: chains of smooth functions of one value, known by what they compute ---

# Only these: a chain of them is analytic, so that one which agrees with an activation along the whole axis is it.
SMOOTH = {"add", "sub", "mul", "div", "neg", "exp", "erf", "erfc", "tanh", "logistic"}
LONGEST = 12  # ops of a chain
POINTS = np.concatenate([np.linspace(-12, 12, 481), np.linspace(-80, 80, 33)]).astype(np.float32)


def _activation(node: Node) -> Made:
    """silu, gelu or gelu_tanh of x, however it is written."""
    chain, sources = _chain(node)
    if len(sources) != 1 or not 3 <= len(chain) <= LONGEST or not {n.op.name for n in chain} & TELLING:
        return None
    x = next(iter(sources))
    got = _evaluated(node[0], x)
    for name in ACTIVATIONS:
        wanted = elementary.ACTIVATIONS[name](POINTS)
        if np.all(np.abs(got - wanted) <= 2e-6 * np.maximum(np.abs(POINTS), 1)):
            return _emit(node, name, x)
    return None


ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
TELLING = {"exp", "erf", "erfc", "tanh", "logistic"}


def _chain(node: Node) -> tuple[list[Node], set[Value]]:
    """The smooth nodes of one shape that end in a node, and the values, numbers apart, that they begin with."""
    chain: dict[Node, None] = {}
    sources: dict[Value, None] = {}
    stack = [node]
    while stack and len(chain) <= LONGEST:
        n = stack.pop()
        if n in chain:
            continue
        chain[n] = None
        for v in n.inputs:
            if splat(v) is not None:
                continue
            if v.node.op.name in SMOOTH and v.shape == node.types[0].shape:
                stack.append(v.node)
            else:
                sources[v] = None
    return _trimmed(list(chain), set(sources), node)


def _trimmed(chain: list[Node], sources: set[Value], root: Node) -> tuple[list[Node], set[Value]]:
    """The chain above the one value that all of it passes through, where it begins with more than an activation's x.

    In x * 0.5 * (1 + erf(x / 1.4)), x is the value that the telling function and the product share.
    """
    for split in sorted((n for n in chain if n is not root), key=lambda n: chain.index(n)):
        above: list[Node] = []
        stack, begins = [root], set()
        while stack:
            n = stack.pop()
            if n in above:
                continue
            above.append(n)
            for v in n.inputs:
                if v.node is split:
                    begins.add(v)
                elif v.node in chain:
                    stack.append(v.node)
                elif splat(v) is None:
                    begins.add(v)
        if begins == {split[0]} and {n.op.name for n in above} & TELLING and len(above) >= 3:
            return above, begins
    return chain, sources


def _evaluated(value: Value, x: Value) -> np.ndarray:
    """The chain at the points, each op as its reference computes it."""
    known: dict[Value, np.ndarray] = {x: POINTS}

    def visit(v: Value) -> np.ndarray:
        if v not in known:
            n = splat(v)
            if n is not None:
                known[v] = np.full(POINTS.shape, n, np.float32)
            else:
                types = tuple(i.type for i in v.node.inputs)
                known[v] = v.node.op.reference(types, *map(visit, v.node.inputs), **dict(v.node.attrs))[0]
        return known[v]

    return visit(value)


RULES = (
    Rule("attention", ("dot_general",), attention, "softmax(q k' scale + mask) v, in any order of axes"),
    Rule("softmax", ("div", "mul"), _softmax, "exp(x - max x) / sum exp(x - max x)"),
    Rule("layer_norm", ("mul", "div"), _norm, "(x - mean x) / sqrt(var x + eps) * w; var x = mean (x - mean x)² = "
         "mean x² - (mean x)²; rms_norm without the means"),
    Rule("layer_norm", ("mul",), _with_scale, "(n * w) * c = n * (w * c)"),
    Rule("layer_norm", ("add",), _with_shift, "n * w + b"),
    Rule("gelu", ("mul", "div"), _activation, "the same function of x at every point"),
)  # fmt: skip
assert SMOOTH <= SCALAR | {"erfc"}
