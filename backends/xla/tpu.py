"""Forms for TPUs, and how weights lie in their memory.

Their compiler unpacks a weight inside a matrix product, and writes it nowhere, where x has several rows, the weight's
own rows are fastest in memory, and tiles of bytes have eight lines, so that planes and groups are whole tiles. One row
of x alone would become a reduction, many times slower. It scatters and gathers rows only after it has copied all of a
cache or table to another layout: here a loop takes or writes them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import quant
from ...ir.types import Type
from .blocks import unpack, widen
from .context import Value
from .text import Tensor, Writer
from .tpu_numbers import numbers

ROWS = 8  # the least that a product has
TILES = ((8, 128), (4, 1))  # of bytes: lines and columns, four lines to a word


def layouts(t: Type, shapes: Sequence[Sequence[int]]) -> list[dict[str, Any]] | None:
    """For each tensor of a matrix in blocks, [rows, blocks] or [rows, blocks, bytes], or of one for each expert, its
    axes, the slowest first, and its tiles where they are not what XLA takes; None for other weights, which lie as XLA
    chooses."""
    if not t.dtype.is_block or len(t.sizes) not in (2, 3):
        return None
    experts = len(t.sizes) - 2
    found: list[dict[str, Any]] = []
    for shape in shapes:
        of_bytes = len(shape) == len(t.sizes) + 1
        order = [1, 0] if not of_bytes else [1, 2, 0] if shape[-1] >= TILES[0][0] else [2, 1, 0]
        layout = {"order": [*range(experts), *(experts + i for i in order)]}
        found.append(layout | ({"tiles": TILES} if of_bytes else {}))
    return found


def product(w: Writer, t: Type, weight: Value, x: Tensor) -> Tensor:
    """x [T, K], in the dtype to multiply in, times the rows of a weight [N, K] of any dtype: f32 [T, N]."""
    tokens = x.shape[0]
    x = padded(w, x, 0)
    if not t.dtype.is_block:
        rows = weight[0]
    elif quant.FORMATS[quant.computed(t.dtype).name].bits < 8:
        rows = widen(w, t, weight, numbers)
    else:  # without planes the reshape of `widen` would part unpacking from the product
        rows = unpack(w, t, weight, numbers)
        x = w.reshape(x, (x.shape[0], *rows.shape[1:]))
    axes = tuple(range(1, x.rank))
    return w.part(w.dot(x, w.convert(rows, x.element), (axes, axes), element="f32"), 0, 0, tokens)


def of_experts(w: Writer, t: Type, weight: Value, x: Tensor, ids: Tensor) -> Tensor:
    """x [T, K], in the dtype to multiply in, times the rows of the experts ids i32 [T, used] of a weight [E, N, K]:
    f32 [T, used, N]. Each pair is a product of its own: an expert is read as it lies, and nothing is gathered."""
    (tokens, used), (_, n, k) = ids.shape, t.sizes
    zero, one, count, each = (w.constant(i, "i32") for i in (0, 1, tokens * used, used))
    flat = w.reshape(ids, (tokens * used,))

    def body(i: Tensor, total: Tensor) -> tuple[Tensor, ...]:
        expert = at(w, flat, i)
        parts = []
        for part in weight:
            piece = w.dynamic_slice(part, [expert, *[zero] * (part.rank - 1)], (1, *part.shape[1:]))
            parts.append(w.reshape(piece, part.shape[1:]))
        row = w.dynamic_slice(x, [w.div(i, each), zero], (1, k))
        y = product(w, Type((n, k), t.dtype), tuple(parts), row)
        return w.add(i, one), w.dynamic_update_slice(total, y, (i, zero))

    start = (zero, w.constant(0, "f32", (tokens * used, n)))
    return w.reshape(w.loop(start, lambda i, _: w.compare(i, count, "LT"), body)[1], (tokens, used, n))


def padded(w: Writer, x: Tensor, axis: int) -> Tensor:
    """With zeros up to ROWS along an axis of fewer."""
    high = [max(ROWS - size, 0) if i == axis else 0 for i, size in enumerate(x.shape)]
    none = [0] * x.rank
    return w.pad(x, w.constant(0, x.element), none, high, none) if any(high) else x


def rows_of(w: Writer, t: Type, table: Value, ids: Tensor) -> Tensor:
    """The rows of a matrix in blocks at ids i32 [T], unpacked: f32 [T, K]."""
    zero, one, count = (w.constant(i, "i32") for i in (0, 1, ids.shape[0]))
    row_type = Type((1, t.sizes[1]), t.dtype)
    layouts_of = layouts(t, [part.shape for part in table])
    assert layouts_of is not None

    def body(i: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        row = at(w, ids, i)
        parts = []
        for part, layout in zip(table, layouts_of):
            piece = w.dynamic_slice(part, [row, *[zero] * (part.rank - 1)], (1, *part.shape[1:]))
            parts.append(lying(w, piece, layout["order"]))  # else the table would take the layout that its row has next
        return w.add(i, one), w.dynamic_update_slice(rows, widen(w, row_type, tuple(parts), numbers), (i, zero))

    start = (zero, w.constant(0, "f32", (ids.shape[0], t.sizes[1])))
    return w.loop(start, lambda i, _: w.compare(i, count, "LT"), body)[1]


def lying(w: Writer, x: Tensor, order: Sequence[int]) -> Tensor:
    """x, whose axes XLA is to have in memory in this order, the slowest first."""
    minor = f"dense<[{', '.join(map(str, reversed(order)))}]> : tensor<{x.rank}xindex>"
    options = f"operand_layouts = [{minor}], result_layouts = [{minor}]"
    text = f"stablehlo.custom_call @LayoutConstraint({x}) {{{options}}} : ({x.type}) -> {x.type}"
    return w.assign(text, x.shape, x.element)


def write_rows(w: Writer, cache: Tensor, new: Tensor, slot: Tensor, row: Tensor, live: Tensor) -> Tensor:
    """new [T, heads, …], each token's at its slot and row of a cache [slots, heads, rows, …] where it is live."""
    zero, one, count = (w.constant(i, "i32") for i in (0, 1, new.shape[0]))
    size = (1, new.shape[1], 1, *new.shape[2:])
    rows = w.reshape(new, (new.shape[0], *size[1:]))  # in the loop it would be the cache that changes its layout

    def body(i: Tensor, cache: Tensor) -> tuple[Tensor, ...]:
        starts = [at(w, slot, i), zero, at(w, row, i), *[zero] * (cache.rank - 3)]
        update = w.dynamic_slice(rows, [i, *[zero] * (rows.rank - 1)], size)
        old = w.dynamic_slice(cache, starts, size)
        kept = w.broadcast(at(w, live, i), size, ())
        return w.add(i, one), w.dynamic_update_slice(cache, w.select(kept, update, old), starts)

    return w.loop((zero, cache), lambda i, _: w.compare(i, count, "LT"), body)[1]


def at(w: Writer, x: Tensor, i: Tensor) -> Tensor:
    """x[i] of a vector, as a scalar."""
    return w.reshape(w.dynamic_slice(x, [i], (1,)), ())
