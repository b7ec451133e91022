"""Dense attention in products and softmax, whichever axes a library has its heads on.

Every axis of the probabilities is one of four kinds: keys are contracted with the values; heads and batch are in
queries, keys and values; what only the queries have is the tokens, and a group of heads that shares keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ...ir.graph import Node, Value, make
from ...ir.ops import OPS
from ...ir.ops.decompose import constant
from ...ir.types import Dim, boolean, f32
from .spread import Seen, number, peeled, seen

LOW = -1e9  # what a score is replaced by, or more, where a key is not seen


@dataclass
class Scores:
    """What is found between the softmax and the product of queries and keys."""

    scale: float = 1.0
    softcap: float = 0.0
    seen: list[tuple[Seen, float]] = field(default_factory=list)  # conditions, and what other scores become
    added: list[Seen] = field(default_factory=list)


def attention(node: Node) -> Value | None:
    """`attention` for a product of a softmax with values, None where it is none or has another form."""
    if node.types[0].dtype != f32:
        return None
    for side in (0, 1):
        p = node.inputs[side]
        base = peeled(seen(p))
        if base.op == "softmax":
            made = _attention(node, side, p.shape, base)
            if made is not None:
                return made
    return None


def _attention(node: Node, side: int, sizes: tuple[Dim, ...], softmax: Seen) -> Value | None:
    contracting, batch = node.attr("contracting"), node.attr("batch")
    v, summed = node.inputs[1 - side], [d for d in contracting[side] if sizes[d] != 1]
    if len(summed) != 1 or softmax.axes[summed[0]] != softmax.value.node.attr("axis"):
        return None
    keys = summed[0]
    found = _product(softmax.operand(0), Scores())
    if found is None:
        return None
    product, scores = found
    own = _axes_of_operands(product)
    if own is None:
        return None
    of_first, of_second, deep = own
    q_side = 0 if keys in of_second and keys not in of_first else 1
    of_q, of_k = (of_first, of_second) if q_side == 0 else (of_second, of_first)
    of_v = {p: w for p, w in zip(batch[side], batch[1 - side])}
    of_v[keys] = contracting[1 - side][contracting[side].index(keys)]
    varying = [a for a, size in enumerate(sizes) if size != 1]
    shared = [a for a in varying if a in of_q and a in of_k and a in of_v]
    queries = [a for a in varying if a in of_q and a not in of_k and a not in of_v]
    if keys in of_q or keys not in of_k or set(varying) != {keys, *shared, *queries} or len(queries) > 2:
        return None
    q, k = product.value.node.inputs[q_side], product.value.node.inputs[1 - q_side]
    wide = [d for d in range(v.type.rank) if d not in of_v.values() and v.shape[d] != 1]
    if len(wide) > 1:
        return None
    tokens = _tokens(queries, scores, of_q)
    groups = [a for a in queries if a != tokens]
    heads = [a for a in shared if isinstance(sizes[a], int)][-1:]
    lead = [a for a in shared if a not in heads]
    if any(not isinstance(sizes[a], int) for a in groups):
        return None

    def arranged(x: Value, of: dict[int, int], parts: Sequence[Sequence[int]], rest: Iterable[int]) -> Value:
        """x as [*parts, rest]: each part the product of its axes."""
        ends = list(rest)
        order = [of[a] for part in parts for a in part] + ends
        units = [d for d in range(x.type.rank) if d not in order]
        moved = _transposed(node, x, [*units, *order])
        shape = [prod((sizes[a] for a in part), start=1) for part in parts]
        return _reshaped(node, moved, (*shape, prod((x.shape[d] for d in ends), start=1)))

    q4 = arranged(q, of_q, (lead, heads + groups, [tokens] if tokens is not None else []), [deep[q_side]])
    k4 = arranged(k, of_k, (lead, heads, [keys]), [deep[1 - q_side]])
    v4 = arranged(v, of_v, (lead, heads, [keys]), wide)
    order = [lead, heads + groups, [tokens] if tokens is not None else [], [keys]]
    mask = _mask(node, scores, order, sizes)
    out = make(OPS["attention"], q4, k4, v4, *mask, origin=node.origin, scale=scores.scale,
               softcap=scores.softcap)[0]  # fmt: skip
    return _returned(node, side, out, [a for part in order[:3] for a in part], sizes, v, of_v, wide)


def _product(s: Seen, found: Scores) -> tuple[Seen, Scores] | None:
    """The product of queries and keys below masks, softcap and scale, and what these are; None for another form."""
    while s.op != "dot_general":
        inner = s.value.node
        if s.op == "select" and (low := number(s.operand(2))) is not None and low <= LOW and _unscaled(found):
            found.seen.append((s.operand(0), low))
            s = s.operand(1)
        elif s.op == "add" and _unscaled(found):
            one, other = s.operands()
            leads = [_leads_to_product(one), _leads_to_product(other)]
            if leads[0] == leads[1]:
                return None
            s, mask = (one, other) if leads[0] else (other, one)
            found.added.append(mask)
        elif s.op == "softcap" and _unscaled(found) and not found.softcap:
            found.softcap = inner.attr("cap")
            s = s.operand(0)
        elif s.op in ("mul", "div"):
            one, other = s.operands()
            if s.op == "mul" and number(one) is not None:
                one, other = other, one
            factor = number(other)
            if not factor:
                return None
            found.scale *= factor if s.op == "mul" else 1 / factor
            s = one
        else:
            return None
    return s, found


def _unscaled(found: Scores) -> bool:
    """Scores are scaled first, then capped, then masked."""
    return found.scale == 1.0


def _leads_to_product(s: Seen) -> bool:
    """Whether a product of two values is below, through scores' own ops."""
    while s.op in ("mul", "div", "add", "select", "softcap"):
        operands = s.operands()[1:2] if s.op == "select" else s.operands()
        inner = [o for o in operands if number(o) is None]
        if s.op == "add":
            return any(map(_leads_to_product, inner))
        if len(inner) != 1:
            return False
        s = inner[0]
    return s.op == "dot_general"


def _axes_of_operands(product: Seen) -> tuple[dict[int, int], dict[int, int], tuple[int, int]] | None:
    """For each operand of a product, its axis by the frame's; and the axes of the two that are contracted."""
    node = product.value.node
    (a_sum, b_sum), (a_batch, b_batch) = node.attr("contracting"), node.attr("batch")
    a, b = node.inputs
    a_free = [d for d in range(a.type.rank) if d not in (*a_sum, *a_batch)]
    b_free = [d for d in range(b.type.rank) if d not in (*b_sum, *b_batch)]
    if len(a_sum) != 1:
        return None
    places = [*((i, j) for i, j in zip(a_batch, b_batch)), *((i, None) for i in a_free), *((None, j) for j in b_free)]
    of_a: dict[int, int] = {}
    of_b: dict[int, int] = {}
    for axis, place in enumerate(product.axes):
        if place is not None:
            i, j = places[place]
            of_a |= {} if i is None else {axis: i}
            of_b |= {} if j is None else {axis: j}
    return of_a, of_b, (a_sum[0], b_sum[0])


def _tokens(queries: Sequence[int], scores: Scores, of_q: dict[int, int]) -> int | None:
    """Which of the axes that only queries have is the tokens': the one that a mask varies along, else their first."""
    masks = [m for m, _ in scores.seen] + scores.added
    masked = [a for a in queries if any(m.axes[a] is not None for m in masks)]
    return next(iter(masked or sorted(queries, key=lambda a: of_q[a])), None)


def _mask(node: Node, scores: Scores, order: Sequence[Sequence[int]], sizes: tuple[Dim, ...]) -> list[Value]:
    """What is added to the scores, f32 with four axes, each whole or 1: where a key is not seen, the low number."""
    total: Value | None = None
    for m in scores.added:
        part = _four_axes(node, m, order, sizes)
        total = part if total is None else _wide("add", node, total, part)
    for m, low in reversed(scores.seen):
        condition = _four_axes(node, m, order, sizes)
        if condition.dtype != boolean:
            return [condition]
        total = _wide("select", node, condition, constant(0.0) if total is None else total, constant(low))
    return [] if total is None else [total]


def _wide(op: str, node: Node, *operands: Value) -> Value:
    """An elementwise op on operands of four axes, each whole or 1, and scalars."""
    rank = max(v.type.rank for v in operands)
    full = [v for v in operands if v.type.rank]
    shape = tuple(next((v.shape[d] for v in full if v.shape[d] != 1), 1) for d in range(rank))
    spread = (v if v.shape == shape else make(OPS["broadcast"], v, origin=node.origin, shape=shape,
              dims=tuple(range(v.type.rank)))[0] for v in operands)  # fmt: skip
    return make(OPS[op], *spread, origin=node.origin)[0]


def _four_axes(node: Node, m: Seen, order: Sequence[Sequence[int]], sizes: tuple[Dim, ...]) -> Value:
    """A mask as [batch, heads, tokens, keys], 1 where it does not vary."""
    flat = [a for part in order for a in part]
    places = [m.axes[a] for a in flat]
    varying = [p for p in places if p is not None]
    moved = _transposed(node, m.value, [*(d for d in range(m.value.type.rank) if d not in varying), *varying])
    kept = [sizes[a] if p is not None else 1 for a, p in zip(flat, places)]
    value = _reshaped(node, moved, tuple(kept))
    shape: list[Dim] = []
    spread: list[Dim] = []
    for part in order:
        own = [kept[flat.index(a)] for a in part]
        mixed = len({d == 1 for d in own}) > 1
        spread += [sizes[a] for a in part] if mixed else own
        shape.append(prod(([sizes[a] for a in part] if mixed else own), start=1))
    if tuple(spread) != value.shape:
        value = make(OPS["broadcast"], value, origin=node.origin, shape=tuple(spread),
                     dims=tuple(range(len(spread))))[0]  # fmt: skip
    return _reshaped(node, value, tuple(shape))


def _returned(node: Node, side: int, out: Value, axes: list[int], sizes: tuple[Dim, ...], v: Value,
              of_v: dict[int, int], wide: list[int]) -> Value:  # fmt: skip
    """[batch, heads, tokens, width] in the order of axes that the product gave."""
    batch, contracting = node.attr("batch"), node.attr("contracting")
    p_free = [d for d in range(len(sizes)) if d not in (*batch[side], *contracting[side])]
    v_free = [d for d in range(v.type.rank) if d not in (*batch[1 - side], *contracting[1 - side])]
    frees: list[list[Any]] = [[("p", d) for d in p_free], [("v", d) for d in v_free]]
    result = [("p", d) for d in batch[side]] + (frees[0] + frees[1] if side == 0 else frees[1] + frees[0])
    given = [("p", a) for a in axes] + [("v", d) for d in wide]
    shape = tuple(sizes[a] for a in axes) + tuple(v.shape[d] for d in wide)
    split = _reshaped(node, out, shape)
    order = [given.index(axis) for axis in result if axis in given]
    return _reshaped(node, _transposed(node, split, order), node.types[0].shape)


def _transposed(node: Node, x: Value, order: Sequence[int]) -> Value:
    if list(order) == list(range(len(order))):
        return x
    return make(OPS["transpose"], x, origin=node.origin, permutation=tuple(order))[0]


def _reshaped(node: Node, x: Value, shape: tuple[Dim, ...]) -> Value:
    return x if x.shape == shape else make(OPS["reshape"], x, origin=node.origin, shape=shape)[0]
