"""The key and value caches, [slots, heads, rows, width], and attention over them.

How tokens belong to slots decides the form (`context.Facts`): tokens of one sequence write one slice and read one slot,
a token for each slot is a batch, and any mixture attends to a few slots after another, masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.types import DTYPES, Type, f32
from . import tpu
from .blocks import widen
from .context import Lowering, Step, Value
from .linear import FEW, in_groups
from .text import Tensor, Writer, element_of

LOWEST, TINY = (float(x) for x in (np.finfo(np.float32).min, np.finfo(np.float32).tiny))
KEYS = 512  # keys of a block, where attention of many tokens goes block by block
SCORES = 1 << 23  # of them that exist at once, where such tokens are of several slots


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
    if step.context.platform == "tpu":
        return tpu.write_rows(w, cache, new, sequence, row, is_live(step, sequence, slots))
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
    def live(self) -> Tensor:
        return is_live(self.step, self.sequence, self.slots)

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
        live = w.broadcast(self.live, shape, (token_axis,))
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
    if alone and tokens <= FEW or facts.form == "each" and tokens == slots:
        mixed = _of_own_slot(a, alone)
    else:
        mixed = _in_blocks(a, alone)
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
    """Few tokens, each over one slot: multiplications and reductions that read the cache as it lies, or products."""
    w = a.step.writer
    (k, k_type), (v, v_type) = (_slot(a, i) if alone else a.cache(i) for i in (1, 2))
    lead = () if alone else (0,)  # the slots' axis, which is the tokens'
    head = a.q.shape[:3]  # token, kv head, query of it; then key, and the width, in groups where the cache has blocks
    platform = a.step.context.platform

    def over(x: Tensor, rows: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """x, whose axes after the heads' are `axes`, and rows, over [*head, key, …inner]."""
        full = (*head, a.span, *rows.shape[len(lead) + 2 :])
        return w.broadcast(x, full, (0, 1, 2, *axes)), w.broadcast(rows, full, (*lead, 1, *range(3, len(full))))

    if platform == "tpu":
        raw = _scored_by_product(a, _rows(w, k_type, k), alone)
    else:
        keys = _rows(w, k_type, k)
        inner = keys.shape[len(lead) + 2 :]
        across = tuple(range(4, 4 + len(inner)))
        raw = w.total(w.mul(*over(w.reshape(a.q, (*head, *inner)), keys, across)), across)
    scores = a.scores(raw)
    p, total = _weights(a, scores, a.visible(w.iota((a.span,), 0), scores.shape, 0, 3), (3,))
    if platform:
        mixed = _mixed_by_product(a, p, _rows(w, v_type, v) if platform == "tpu" else widen(w, v_type, v), alone)
    else:
        mixed = w.total(w.mul(*over(p, _rows(w, v_type, v), (3,))), (3,))
    mixed = w.reshape(mixed, (*head, v_type.sizes[-1]))
    return w.div(mixed, w.broadcast(total, mixed.shape, (0, 1, 2)))


def _scored_by_product(a: Attention, keys: Tensor, alone: bool) -> Tensor:
    """Raw scores [token, kv head, query of it, key] as a matrix product for each head, of several rows each."""
    w, element = a.step.writer, _element(a, a.step.operand_type(1))
    batch = 1 if alone else 2
    q = _heads_first(w, w.convert(a.q, element), alone)
    queries = tpu.padded(w, q, batch) if q.shape[batch] == 1 else q
    queries = w.reshape(queries, (*queries.shape[:-1], *keys.shape[batch + 1 :]))
    axes, heads = tuple(range(batch + 1, keys.rank)), tuple(range(batch))
    raw = w.dot(queries, w.convert(keys, element), (axes, axes), (heads, heads), "f32")
    return _tokens_first(w, w.part(raw, batch, 0, q.shape[batch]), a.q.shape[:3], alone)


def _mixed_by_product(a: Attention, p: Tensor, values: Tensor, alone: bool) -> Tensor:
    """The mixture as a matrix product for each head: XLA for GPUs would transpose the cache in memory to reduce it, and
    for TPUs widen it there."""
    w, element = a.step.writer, _element(a, a.step.operand_type(2))
    batch = 1 if alone else 2
    p = _heads_first(w, w.convert(p, element), alone)
    rows = tpu.padded(w, p, batch) if a.step.context.platform == "tpu" and p.shape[batch] == 1 else p
    heads = tuple(range(batch))
    mixed = w.dot(rows, w.convert(values, element), ((batch + 1,), (batch,)), (heads, heads), "f32")
    return _tokens_first(w, w.part(mixed, batch, 0, p.shape[batch]), a.q.shape[:3], alone)


def _heads_first(w: Writer, x: Tensor, alone: bool) -> Tensor:
    """[token, head, query of it, …] as [head, token and query, …], where all tokens are of one slot."""
    if not alone:
        return x
    tokens, heads, each, *rest = x.shape
    return w.reshape(w.transpose(x, (1, 0, *range(2, x.rank))), (heads, tokens * each, *rest))


def _tokens_first(w: Writer, x: Tensor, head: tuple[int, ...], alone: bool) -> Tensor:
    """The inverse, for `head` tokens, heads and queries of each."""
    if not alone:
        return x
    tokens, heads, each = head
    split = w.reshape(x, (heads, tokens, each, *x.shape[2:]))
    return w.transpose(split, (1, 0, *range(2, split.rank)))


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


def _in_blocks(a: Attention, alone: bool) -> Tensor:
    """Many tokens, of one slot or of any: blocks of keys one after another, with the running maximum, sum and mixture
    (Dao et al., FlashAttention, 2022), from the first block that any token sees to the last. Slots are taken several
    at once where tokens are of any, each token seeing its own."""
    w, (tokens, heads, each, _) = a.step.writer, a.q.shape
    shape = (heads, tokens * each)
    start = (w.constant(LOWEST, "f32", shape), w.constant(0, "f32", shape),
             w.constant(0, "f32", (*shape, a.step.operand_type(2).sizes[3])))  # fmt: skip
    if alone:
        slot = _first(a.step, a.sequence) if a.slots > 1 else w.constant(0, "i32")
        _, total, mixed = _over_blocks(a, slot, 0, a.live, start)
    else:
        most = max(1, SCORES // (heads * tokens * each * min(KEYS, a.span)))
        together = max(n for n in range(1, min(most, a.slots) + 1) if a.slots % n == 0)
        step, end = w.constant(together, "i32"), w.constant(a.slots, "i32")

        def body(slot: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            low = w.compare(a.sequence, w.broadcast(slot, a.sequence.shape, ()), "GE")
            high = w.compare(a.sequence, w.broadcast(w.add(slot, step), a.sequence.shape, ()), "LT")
            return w.add(slot, step), *_over_blocks(a, slot, together, w.both(low, high), state)

        every = w.loop((w.constant(0, "i32"), *start), lambda slot, *_: w.compare(slot, end, "LT"), body)
        _, _, total, mixed = every
    total = w.map("maximum", total, w.splat(TINY, total))
    result = w.div(mixed, w.broadcast(total, mixed.shape, (0, 1)))
    return w.transpose(w.reshape(result, (heads, tokens, each, result.shape[-1])), (1, 0, 2, 3))


def _over_blocks(a: Attention, slot: Tensor, together: int, mine: Tensor,
                 state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # fmt: skip
    """The running maximum, sum and mixture, [heads, token and query of it, …], after the rows of a slot, or of
    `together` slots from it on where that is not 0; the tokens that see any of them are `mine`, i1 [T]."""
    w, (tokens, heads, each, _) = a.step.writer, a.q.shape
    (k, k_type), (v, v_type) = a.cache(1), a.cache(2)
    block = min(KEYS, a.span)
    element = _element(a, k_type)
    q = w.convert(_heads_first(w, a.q, True), element)
    zero, one, size = (w.constant(n, "i32") for n in (0, 1, block))
    last = w.reduce(w.select(mine, a.position, w.splat(-1, a.position)), "maximum", (0,), -1)
    end = w.map("minimum", w.add(last, one), w.constant(a.span, "i32"))
    blocks = w.div(w.add(end, w.constant(block - 1, "i32")), size)
    first = zero
    if a.window and not a.ring:
        furthest = 2**31 - 1
        least = w.reduce(w.select(mine, a.position, w.splat(furthest, a.position)), "minimum", (0,), furthest)
        first = w.div(w.map("maximum", w.sub(least, w.constant(a.window - 1, "i32")), zero), size)
    slots = (together,) if together else ()
    own = tuple(range(len(slots)))  # the axis of slots: scores are [slots, heads, token and query of it, key]
    at_head, at_key = len(slots), len(slots) + 2
    batch, inner = (*own, at_head), (*own, at_key)
    q = w.broadcast(q, (*slots, *q.shape), range(at_head, at_head + 3))

    def cut(parts: Value, t: Type, start: Tensor) -> Tensor:
        taken = []
        for p in parts:
            starts = [slot, zero, start, *[zero] * (p.rank - 3)]
            piece = w.dynamic_slice(p, starts, (together or 1, heads, block, *p.shape[3:]))
            taken.append(piece if together else w.reshape(piece, piece.shape[1:]))
        return w.convert(widen(w, Type((*slots, heads, block, t.sizes[3]), t.dtype), tuple(taken)), element)

    def body(i: Tensor, m: Tensor, l: Tensor, o: Tensor) -> tuple[Tensor, ...]:
        begin = w.mul(i, size)
        start = w.map("minimum", begin, w.constant(a.span - block, "i32"))
        row = w.add(w.iota((block,), 0), w.broadcast(start, (block,), ()))
        scores = a.scores(w.dot(q, cut(k, k_type, start), ((at_key,), (at_key,)), (batch, batch), "f32"))
        full = (*slots, heads, tokens, each, block)
        visible = a.visible(row, full, at_head + 1, at_head + 3)
        if together:
            of = w.sub(a.sequence, w.broadcast(slot, a.sequence.shape, ()))
            visible = w.both(visible, w.compare(w.broadcast(of, full, (at_head + 1,)), w.iota(full, 0), "EQ"))
        if a.span % block:  # the last block is moved inside, and its first rows were seen
            fresh = w.compare(row, w.broadcast(begin, row.shape, ()), "GE")
            visible = w.both(visible, w.broadcast(fresh, full, (at_head + 3,)))
        visible = w.reshape(visible, scores.shape)
        seen = w.select(visible, scores, w.splat(LOWEST, scores))
        highest = w.map("maximum", m, w.highest(seen, inner))
        weights = w.map("exponential", w.sub(seen, w.broadcast(highest, seen.shape, (at_head, at_head + 1))))
        weights = w.select(visible, weights, w.splat(0, weights))
        fade = w.map("exponential", w.sub(m, highest))
        values = cut(v, v_type, start)
        mixed = w.dot(w.convert(weights, element), values, ((at_key,), (at_head + 1,)), (batch, batch), "f32")
        total = w.add(w.mul(l, fade), w.total(weights, inner))
        return w.add(i, one), highest, total, w.add(w.mul(o, w.broadcast(fade, o.shape, (0, 1))), w.total(mixed, own))

    return w.loop((first, *state), lambda i, *_: w.compare(i, blocks, "LT"), body)[1:]


CACHE: dict[str, Lowering] = {"cache_write": _cache_write, "cached_attention": _cached_attention}
