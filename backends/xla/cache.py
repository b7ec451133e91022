"""The key and value caches, [slots, heads, rows, width], and attention over them.

How tokens belong to slots decides the form (`context.Facts`): tokens of one sequence write one slice and read one slot,
a token for each slot is a batch, and any mixture attends to all slots, masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.types import DTYPES, Type, f32
from .blocks import widen
from .context import Lowering, Step, Value
from .linear import FEW, in_groups
from .text import Tensor, Writer, element_of

LOWEST, TINY = (float(x) for x in (np.finfo(np.float32).min, np.finfo(np.float32).tiny))
KEYS = 512  # keys of a block, where attention of many tokens goes block by block


# --- Writing ---


def stored(step: Step, x: Tensor, cache: Type) -> Value:
    """x f32 [T, heads, width] as a cache holds it."""
    w = step.writer
    if cache.dtype != DTYPES["q8_0"]:
        return (w.convert(x, element_of(cache.dtype)),)
    groups = w.reshape(x, (*x.shape[:-1], x.shape[-1] // 32, 32))
    q, d = in_groups(w, groups)
    return w.convert(d, "f16"), w.bitcast(w.convert(q, "i8"), "ui8")


def _cache_write(step: Step) -> tuple[Value, ...]:
    w, facts = step.writer, step.context.facts
    cache, (x,), (sequence,), (position,) = step.operands
    t = step.operand_type(0)
    slots, _, rows, _ = t.sizes
    tokens = x.shape[0]
    new = stored(step, x, t)
    ring = bool(step.attr("window")) and not 0 < facts.span <= rows
    row = w.map("remainder", position, w.splat(rows, position)) if ring else position
    alone = tokens == 1 or facts.form == "one" and not ring
    return (tuple((_write_slice if alone else _write_rows)(step, c, n, sequence, row, slots)
                  for c, n in zip(cache, new)),)  # fmt: skip


def is_live(step: Step, sequence: Tensor, slots: int) -> Tensor:
    """Whether each token is of a slot, rather than padding."""
    w = step.writer
    below = w.compare(sequence, w.splat(slots, sequence), "LT")
    return w.both(w.compare(sequence, w.splat(0, sequence), "GE"), below)


def _write_slice(step: Step, cache: Tensor, new: Tensor, sequence: Tensor, row: Tensor, slots: int) -> Tensor:
    """Tokens of one slot at rows one after another; rows of padding keep what they hold."""
    w, tokens = step.writer, new.shape[0]
    zero = w.constant(0, "i32")
    starts = [_first(step, sequence) if slots > 1 else zero, zero, _first(step, row), *[zero] * (cache.rank - 3)]
    whole = (1, new.shape[1], tokens, *new.shape[2:])
    update = w.reshape(w.transpose(new, (1, 0, *range(2, new.rank))), whole)
    old = w.dynamic_slice(cache, starts, whole)
    kept = w.broadcast(is_live(step, sequence, slots), whole, (2,))
    return w.dynamic_update_slice(cache, w.select(kept, update, old), starts)


def _first(step: Step, x: Tensor) -> Tensor:
    return step.writer.reshape(step.writer.part(x, 0, 0, 1), ())


def _write_rows(step: Step, cache: Tensor, new: Tensor, sequence: Tensor, row: Tensor, slots: int) -> Tensor:
    """Any tokens: each is scattered to its slot and row, padding outside, where it is dropped."""
    w = step.writer
    slot = w.select(is_live(step, sequence, slots), sequence, w.splat(slots, sequence))
    indices = w.concatenate([w.reshape(i, (*i.shape, 1)) for i in (slot, row)], 1)
    window = ", ".join(str(i) for i in range(1, new.rank))
    numbers = (f"update_window_dims = [{window}], inserted_window_dims = [0, 2], "
               "scatter_dims_to_operand_dims = [0, 2], index_vector_dim = 1")  # fmt: skip
    return w.scatter(cache, indices, new, numbers, lambda old, update: update)


# --- Reading ---


@dataclass(frozen=True)
class Attention:
    """One cached attention: q [T, kv heads, queries of each, width], and the numbers of it."""

    step: Step
    q: Tensor
    sequence: Tensor
    position: Tensor
    slots: int
    rows: int  # of the cache
    span: int  # of them, those that are read

    @property
    def window(self) -> int:
        return self.step.attr("window")

    @property
    def ring(self) -> bool:
        return bool(self.window) and self.span == self.rows

    def cache(self, which: int) -> tuple[Value, Type]:
        """The rows of the key cache, 1, or the value cache, 2, that are read: its tensors and its type."""
        t = self.step.operand_type(which)
        parts = tuple(self.step.writer.part(p, 2, 0, self.span) for p in self.step.operands[which])
        return parts, Type((*t.sizes[:2], self.span, t.sizes[3]), t.dtype)

    def scores(self, raw: Tensor) -> Tensor:
        """Scaled and capped."""
        w = self.step.writer
        scaled = w.mul(raw, w.splat(self.step.attr("scale"), raw))
        cap = self.step.attr("softcap")
        if not cap:
            return scaled
        limit = w.splat(cap, scaled)
        return w.mul(limit, w.map("tanh", w.div(scaled, limit)))

    def visible(self, row: Tensor, shape: tuple[int, ...], token_axis: int, row_axis: int) -> Tensor:
        """Whether a token sees the row of its own slot, i1 of `shape`: row i32 [n] are rows of the cache."""
        w = self.step.writer
        live = w.broadcast(is_live(self.step, self.sequence, self.slots), shape, (token_axis,))
        position = w.broadcast(self.position, shape, (token_axis,))
        row = w.broadcast(row, shape, (row_axis,))
        age = w.sub(position, row)  # of the position that the row holds, seen from the token's
        if self.ring:
            # The row holds the last position up to the token's that falls on it.
            whole = w.splat(self.rows, age)
            age = w.map("remainder", w.add(w.map("remainder", age, whole), whole), whole)
            seen = w.compare(age, position, "LE")
        else:
            seen = w.compare(age, w.splat(0, age), "GE")
        if self.window:
            seen = w.both(seen, w.compare(age, w.splat(self.window, age), "LT"))
        return w.both(seen, live)


def _cached_attention(step: Step) -> Tensor:
    w, facts = step.writer, step.context.facts
    (q,), _, _, (sequence,), (position,) = step.operands
    slots, kv_heads, rows, _ = step.operand_type(1).sizes
    tokens, heads, width = q.shape
    span = facts.span if 0 < facts.span < rows else rows
    grouped = w.reshape(q, (tokens, kv_heads, heads // kv_heads, width))
    a = Attention(step, grouped, sequence, position, slots, rows, span)
    alone = slots == 1 or facts.form == "one"
    if alone and tokens > FEW:
        mixed = _in_blocks(a)
    elif alone or facts.form == "each" and tokens == slots:
        mixed = _of_own_slot(a, alone)
    else:
        mixed = _of_all_slots(a)
    return w.reshape(mixed, (tokens, heads, mixed.shape[-1]))


def _slot(a: Attention, which: int) -> tuple[Value, Type]:
    """The cache of the one slot that tokens are of, without the axis of slots."""
    w = a.step.writer
    parts, t = a.cache(which)
    if a.slots > 1:
        zero = w.constant(0, "i32")
        first = _first(a.step, a.sequence)
        parts = tuple(w.dynamic_slice(p, [first, *[zero] * (p.rank - 1)], (1, *p.shape[1:])) for p in parts)
    return tuple(w.reshape(p, p.shape[1:]) for p in parts), Type(t.sizes[1:], t.dtype)


def _weights(a: Attention, scores: Tensor, visible: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """exp(score - highest) where visible, and its sum over `axes`, at least a tiny number."""
    w = a.step.writer
    others = [i for i in range(scores.rank) if i not in axes]
    seen = w.select(visible, scores, w.splat(LOWEST, scores))
    highest = w.broadcast(w.highest(seen, axes), scores.shape, others)
    p = w.select(visible, w.map("exponential", w.sub(seen, highest)), w.splat(0, scores))
    total = w.total(p, axes)
    return p, w.map("maximum", total, w.splat(TINY, total))


def _of_own_slot(a: Attention, alone: bool) -> Tensor:
    """Few tokens, each over one slot: multiplications and reductions that read the cache as it lies."""
    w = a.step.writer
    (k, k_type), (v, v_type) = (_slot(a, i) if alone else a.cache(i) for i in (1, 2))
    lead = () if alone else (0,)  # the slots' axis, which is the tokens'
    keys, values = _rows(w, k_type, k), _rows(w, v_type, v)
    head = a.q.shape[:3]  # token, kv head, query of it; then key, and the width, in groups where the cache has blocks
    inner = keys.shape[len(lead) + 2 :]
    full, across = (*head, a.span, *inner), tuple(range(4, 4 + len(inner)))
    queries = w.broadcast(w.reshape(a.q, (*head, *inner)), full, (0, 1, 2, *across))
    scores = a.scores(w.total(w.mul(queries, w.broadcast(keys, full, (*lead, 1, 3, *across))), across))
    p, total = _weights(a, scores, a.visible(w.iota((a.span,), 0), scores.shape, 0, 3), (3,))
    if a.step.context.platform == "cuda":
        mixed = _mixed_by_product(a, p, widen(w, v_type, v), alone)
        return w.div(mixed, w.broadcast(total, mixed.shape, (0, 1, 2)))
    inner = values.shape[len(lead) + 2 :]
    full, across = (*head, a.span, *inner), tuple(range(4, 4 + len(inner)))
    mixed = w.mul(w.broadcast(p, full, (0, 1, 2, 3)), w.broadcast(values, full, (*lead, 1, 3, *across)))
    mixed = w.reshape(w.total(mixed, (3,)), (*head, v_type.sizes[-1]))
    return w.div(mixed, w.broadcast(total, mixed.shape, (0, 1, 2)))


def _mixed_by_product(a: Attention, p: Tensor, values: Tensor, alone: bool) -> Tensor:
    """The mixture as a matrix product for each head: XLA for GPUs would transpose the cache in memory to reduce it."""
    w, (tokens, heads, each, span) = a.step.writer, p.shape
    element = _element(a, a.step.operand_type(2))
    p, values = w.convert(p, element), w.convert(values, element)
    if not alone:  # a slot for each token: [slots, heads, rows, width]
        return w.dot(p, values, ((3,), (2,)), ((0, 1), (0, 1)), "f32")
    by_head = w.reshape(w.transpose(p, (1, 0, 2, 3)), (heads, tokens * each, span))
    mixed = w.dot(by_head, values, ((2,), (1,)), ((0,), (0,)), "f32")
    return w.transpose(w.reshape(mixed, (heads, tokens, each, mixed.shape[-1])), (1, 0, 2, 3))


def _rows(w: Writer, t: Type, value: Value) -> Tensor:
    """A cache as f32 [..., rows, width], or, where it holds blocks, [..., rows, blocks, 32], each where it lies."""
    if not t.dtype.is_block:
        return w.convert(value[0], "f32")
    d, q = value
    wide = w.convert(w.bitcast(q, "i8"), "f32")
    return w.mul(wide, w.broadcast(w.convert(d, "f32"), wide.shape, range(d.rank)))


def _element(a: Attention, t: Type) -> str:
    """What products of many tokens with a cache multiply in: f32, or with halves asked for the cache's own."""
    compute = a.step.context.compute
    return "f32" if compute == f32 else element_of(compute if t.dtype.is_block else t.dtype)


def _by_head(a: Attention, element: str) -> Tensor:
    """The queries [kv head, token and query of it, width]."""
    w, (tokens, heads, each, width) = a.step.writer, a.q.shape
    return w.convert(w.reshape(w.transpose(a.q, (1, 0, 2, 3)), (heads, tokens * each, width)), element)


def _in_blocks(a: Attention) -> Tensor:
    """Many tokens of one slot: blocks of keys one after another, with the running maximum, sum and mixture
    (Dao et al., FlashAttention, 2022), from the first block that any token sees to the last."""
    w, (tokens, heads, each, _) = a.step.writer, a.q.shape
    (k, k_type), (v, v_type) = a.cache(1), a.cache(2)
    block = min(KEYS, a.span)
    element = _element(a, k_type)
    q = _by_head(a, element)
    slot = _first(a.step, a.sequence) if a.slots > 1 else w.constant(0, "i32")
    zero, one, size = (w.constant(n, "i32") for n in (0, 1, block))
    live = is_live(a.step, a.sequence, a.slots)
    last = w.reduce(w.select(live, a.position, w.splat(-1, a.position)), "maximum", (0,), -1)
    end = w.map("minimum", w.add(last, one), w.constant(a.span, "i32"))
    blocks = w.div(w.add(end, w.constant(block - 1, "i32")), size)
    first = zero
    if a.window and not a.ring:
        unseen = w.sub(_first(a.step, a.position), w.constant(a.window - 1, "i32"))
        first = w.div(w.map("maximum", unseen, zero), size)
    shape = (heads, tokens * each)
    state = (first, w.constant(LOWEST, "f32", shape), w.constant(0, "f32", shape),
             w.constant(0, "f32", (*shape, v_type.sizes[3])))  # fmt: skip

    def cut(parts: Value, t: Type, start: Tensor) -> Tensor:
        taken = []
        for p in parts:
            starts = [slot, zero, start, *[zero] * (p.rank - 3)]
            taken.append(w.reshape(w.dynamic_slice(p, starts, (1, p.shape[1], block, *p.shape[3:])),
                                   (p.shape[1], block, *p.shape[3:])))  # fmt: skip
        return w.convert(widen(w, Type((t.sizes[1], block, t.sizes[3]), t.dtype), tuple(taken)), element)

    def body(i: Tensor, m: Tensor, l: Tensor, o: Tensor) -> tuple[Tensor, ...]:
        begin = w.mul(i, size)
        start = w.map("minimum", begin, w.constant(a.span - block, "i32"))
        row = w.add(w.iota((block,), 0), w.broadcast(start, (block,), ()))
        scores = a.scores(w.dot(q, cut(k, k_type, start), ((2,), (2,)), ((0,), (0,)), "f32"))
        full = (heads, tokens, each, block)
        visible = a.visible(row, full, 1, 3)
        if a.span % block:  # the last block is moved inside, and its first rows were seen
            fresh = w.compare(row, w.broadcast(begin, row.shape, ()), "GE")
            visible = w.both(visible, w.broadcast(fresh, full, (3,)))
        visible = w.reshape(visible, scores.shape)
        seen = w.select(visible, scores, w.splat(LOWEST, scores))
        highest = w.map("maximum", m, w.highest(seen, (2,)))
        weights = w.map("exponential", w.sub(seen, w.broadcast(highest, seen.shape, (0, 1))))
        weights = w.select(visible, weights, w.splat(0, weights))
        fade = w.map("exponential", w.sub(m, highest))
        mixed = w.dot(w.convert(weights, element), cut(v, v_type, start), ((2,), (1,)), ((0,), (0,)), "f32")
        total = w.add(w.mul(l, fade), w.total(weights, (2,)))
        return w.add(i, one), highest, total, w.add(w.mul(o, w.broadcast(fade, o.shape, (0, 1))), mixed)

    _, _, total, mixed = w.loop(state, lambda i, *_: w.compare(i, blocks, "LT"), body)
    total = w.map("maximum", total, w.splat(TINY, total))
    result = w.div(mixed, w.broadcast(total, mixed.shape, (0, 1)))
    return w.transpose(w.reshape(result, (heads, tokens, each, result.shape[-1])), (1, 0, 2, 3))


def _of_all_slots(a: Attention) -> Tensor:
    """Any tokens: scores with the rows of all slots, of which each sees those of its own."""
    w, (tokens, heads, each, _) = a.step.writer, a.q.shape
    (k, k_type), (v, v_type) = a.cache(1), a.cache(2)
    element = _element(a, k_type)
    keys, values = (w.convert(widen(w, t, c), element) for c, t in ((k, k_type), (v, v_type)))
    raw = w.dot(_by_head(a, element), keys, ((2,), (3,)), ((0,), (1,)), "f32")  # head, token and query, slot, row
    scores = a.scores(w.reshape(raw, (heads, tokens, each, a.slots, a.span)))
    own = w.compare(w.broadcast(a.sequence, scores.shape, (1,)), w.iota(scores.shape, 3), "EQ")
    visible = w.both(own, a.visible(w.iota((a.span,), 0), scores.shape, 1, 4))
    p, total = _weights(a, scores, visible, (3, 4))
    flat = w.convert(w.reshape(p, (heads, tokens * each, a.slots, a.span)), element)
    mixed = w.dot(flat, values, ((2, 3), (0, 2)), ((0,), (1,)), "f32")
    mixed = w.reshape(mixed, (heads, tokens, each, values.shape[-1]))
    return w.transpose(w.div(mixed, w.broadcast(total, mixed.shape, (0, 1, 2))), (1, 0, 2, 3))


CACHE: dict[str, Lowering] = {"cache_write": _cache_write, "cached_attention": _cached_attention}
