"""Unpacking weights in the graph: elementwise operations over packed bytes, which XLA computes where they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...ir import quant
from ...ir.quant import Format
from ...ir.types import ACTIVATION_SIZES, Type, u8
from .context import Value
from .parts import part_names
from .text import Shape, Tensor, Writer

Numbers = Callable[[Writer, Format, Tensor], Tensor]  # what the integers of a format's values are, without a scale


def numbers(w: Writer, fmt: Format, q: Tensor) -> Tensor:
    """Integers ui8 as f32: less the format's zero, or its codes'."""
    return chosen(w, fmt.codes, q) if fmt.codes else _minus_zero(w, fmt, q)


def widen(w: Writer, t: Type, value: Value, numbers: Numbers = numbers) -> Tensor:
    """A value of any weight or activation dtype as f32, of its whole shape."""
    if not t.dtype.is_block:
        return w.convert(value[0], "f32")
    if t.dtype.name in ACTIVATION_SIZES:
        q, d, _ = value
        groups = (*d.shape, t.dtype.block)
        scaled = w.mul(w.reshape(w.convert(q, "f32"), groups), w.broadcast(d, groups, range(d.rank)))
        return w.reshape(scaled, q.shape)
    grouped = unpack(w, t, value, numbers)
    return w.reshape(grouped, (*grouped.shape[:-3], t.sizes[-1]))


def unpack(w: Writer, t: Type, value: Value, numbers: Numbers = numbers) -> Tensor:
    """A weight in blocks as f32 [..., blocks, groups, values of a group]: scale * (q - zero) + offset."""
    fmt = quant.FORMATS[quant.computed(t.dtype).name]
    parts = dict(zip(part_names(fmt), value))
    lead = value[0].shape[: len(t.sizes)]  # [..., blocks]
    shape = (*lead, fmt.groups, fmt.group)
    q = w.reshape(_planes(w, fmt, parts, "q", (*lead, fmt.block)), shape)
    signed = numbers(w, fmt, q)
    scale, offset = _scales(w, fmt, parts, lead)
    result = w.mul(signed, _spread(w, scale, shape))
    return result if offset is None else w.add(result, _spread(w, offset, shape))


def _spread(w: Writer, x: Tensor, shape: Shape) -> Tensor:
    """[..., blocks] or [..., blocks, groups] over all values."""
    return w.broadcast(x, shape, range(x.rank))


def _minus_zero(w: Writer, fmt: Format, q: Tensor) -> Tensor:
    if fmt.bits == 8:
        return w.convert(w.bitcast(q, "i8"), "f32")
    x = w.convert(q, "f32")
    return w.sub(x, w.splat(fmt.zero, x)) if fmt.zero else x


def chosen(w: Writer, codes: Sequence[int], q: Tensor) -> Tensor:
    """codes[q] as choices by the bits of q, the lowest first: no memory is read for it."""
    level: list[float | Tensor] = [float(c) for c in codes]
    bit = 1
    while len(level) > 1:
        picked = w.compare(w.map("and", q, w.splat(bit, q)), w.splat(0, q), "NE")
        wide = [x if isinstance(x, Tensor) else w.constant(x, "f32", q.shape) for x in level]
        level = [w.select(picked, high, low) for low, high in zip(wide[::2], wide[1::2])]
        bit *= 2
    assert isinstance(level[0], Tensor)
    return level[0]


def _planes(w: Writer, fmt: Format, parts: dict[str, Tensor], kind: str, shape: Shape) -> Tensor:
    """The integers of the parts of one kind, ui8 of `shape`: their planes' bits, each at its position."""
    total: Tensor | None = None
    for name, part in zip(part_names(fmt), fmt.parts):
        if part.kind != kind:
            continue
        data, plane = parts[name], part.plane
        assert plane is not None
        if plane.bits < 8:
            lead, steps = data.shape[:-1], 8 // plane.bits
            runs = (*lead, data.shape[-1] // plane.run, steps, plane.run)
            dims = (*range(len(lead) + 1), len(lead) + 2)
            data = w.broadcast(w.reshape(data, (*lead, runs[-3], plane.run)), runs, dims)
            shifts = w.array(np.arange(0, 8, plane.bits, dtype=np.uint8), u8)
            data = w.map("shift_right_logical", data, w.broadcast(shifts, runs, (len(lead) + 1,)))
            data = w.map("and", data, w.splat((1 << plane.bits) - 1, data))
        data = w.reshape(data, shape)
        if plane.position:
            data = w.map("shift_left", data, w.splat(plane.position, data))
        total = data if total is None else w.map("or", total, data)
    assert total is not None
    return total


def _scales6(w: Writer, data: Tensor) -> Tensor:
    """Q4_K's 12 bytes [..., 12] → 8 scales and 8 mins of 6 bits [..., 16], as `quant.formats` has them."""
    last = data.rank - 1
    first, second, low = (w.part(data, last, i, i + 4) for i in (0, 4, 8))

    def bits(x: Tensor, shift: int, mask: int) -> Tensor:
        moved = w.map("shift_right_logical", x, w.splat(shift, x)) if shift else x
        return w.map("and", moved, w.splat(mask, x))

    return w.concatenate([
        bits(first, 0, 63), w.map("or", bits(low, 0, 15), bits(first, 2, 0x30)),
        bits(second, 0, 63), w.map("or", bits(low, 4, 15), bits(second, 2, 0x30)),
    ], last)  # fmt: skip


def _e8m0(w: Writer, s: Tensor) -> Tensor:
    """2 ** (s - 128): the exponent's bits of an f32, or below its least exponent those of a denormal."""
    wide = w.convert(s, "i32")
    ordinary = w.map("shift_left", w.sub(wide, w.splat(1, wide)), w.splat(23, wide))
    denormal = w.map("shift_left", w.splat(1 << 21, wide), wide)
    bits = w.select(w.compare(wide, w.splat(2, wide), "LT"), denormal, ordinary)
    return w.bitcast(bits, "f32")


def _ue4m3(w: Writer, s: Tensor) -> Tensor:
    """Half of the 8-bit float without its sign; its NaN is zero."""
    wide = w.convert(s, "i32")
    fraction = w.convert(w.map("and", wide, w.splat(7, wide)), "f32")
    exponent = w.map("and", w.map("shift_right_logical", wide, w.splat(3, wide)), w.splat(15, wide))
    zero = w.splat(0, exponent)
    normal = w.compare(exponent, zero, "GT")
    mantissa = w.select(normal, w.add(fraction, w.splat(8, fraction)), fraction)
    power = w.sub(w.map("maximum", exponent, w.splat(1, exponent)), w.splat(11, exponent))
    bits = w.map("shift_left", w.add(power, w.splat(127, power)), w.splat(23, power))
    value = w.mul(mantissa, w.bitcast(bits, "f32"))
    return w.select(w.compare(wide, w.splat(0x7F, wide), "EQ"), w.splat(0, value), value)


def _odd(w: Writer, s: Tensor) -> Tensor:
    x = w.convert(s, "f32")
    return w.add(w.mul(x, w.splat(2, x)), w.splat(1, x))


# What a group's packed scale means as f32, as `quant.formats.SCALES` has it.
SCALES: dict[str, Callable[[Writer, Tensor], Tensor]] = {
    "unsigned": lambda w, s: w.convert(s, "f32"),
    "signed": lambda w, s: w.convert(w.bitcast(s, "i8"), "f32"),
    "odd": _odd,
    "e8m0": _e8m0,
    "ue4m3": _ue4m3,
}


def _scales(w: Writer, fmt: Format, parts: dict[str, Tensor], lead: Shape) -> tuple[Tensor, Tensor | None]:
    """Scale and offset as f32, [..., blocks] where all groups of a block share them, else [..., blocks, groups]."""
    whole = w.convert(parts["d"], "f32") if "d" in parts else None
    if whole is not None and fmt.unit != 1:
        whole = w.mul(whole, w.splat(fmt.unit, whole))
    offset = w.convert(parts["m"], "f32") if "m" in parts else None
    if not fmt.scale_bits:
        assert whole is not None
        return whole, offset
    count = (*lead, fmt.scale_count)
    if any(p.kind == "scale" and p.plane is None for p in fmt.parts):
        packed = _scales6(w, parts["scale"])
    else:
        packed = _planes(w, fmt, parts, "scale", count)
    axis, groups = len(lead), (*lead, fmt.groups)
    scale = SCALES[fmt.scale_kind](w, w.part(packed, axis, 0, fmt.groups))
    if fmt.scale_zero:
        scale = w.sub(scale, w.splat(fmt.scale_zero, scale))
    if whole is not None:
        scale = w.mul(_spread(w, whole, groups), scale)
    if offset is not None and fmt.mins == "subtract":
        mins = w.convert(w.part(packed, axis, fmt.groups, 2 * fmt.groups), "f32")
        offset = w.map("negate", w.mul(_spread(w, offset, groups), mins))
    return scale, offset


# --- Runs: values of a block that lie alike ---


def runs_of(fmt: Format) -> tuple[int, tuple[int, ...]]:
    """How many values a run of a format has, and the shape in which they are seen."""
    planes = [p.plane for p in fmt.parts if p.kind == "q" and p.plane]
    size = min(fmt.group, *(p.run for p in planes if p.run > 1))
    # Where a byte of a plane holds neighbours, as eights.
    return size, (size // 8, 8) if any(p.run == 1 for p in planes) else (size,)


def run_values(w: Writer, fmt: Format, parts: dict[str, Tensor], start: int, size: int, run: tuple[int, ...]) -> Tensor:
    """The values start … start + size of every block, f32 [N, blocks, *run], as `unpack` computes them."""
    q = _run_of(w, fmt, parts, start, size, run)
    signed = numbers(w, fmt, q)
    scale = w.convert(parts["d"], "f32") if "d" in parts else None
    if scale is not None and fmt.unit != 1:
        scale = w.mul(scale, w.splat(fmt.unit, scale))
    offset = w.convert(parts["m"], "f32") if "m" in parts else None
    if fmt.scale_bits:
        own, least = _scale_of(w, fmt, parts, start // fmt.group)
        scale = own if scale is None else w.mul(scale, own)
        if offset is not None and least is not None:
            offset = w.map("negate", w.mul(offset, least))
    assert scale is not None
    result = w.mul(signed, _spread(w, scale, q.shape))
    return result if offset is None else w.add(result, _spread(w, offset, q.shape))



def multiplied(w: Writer, t: Type, value: Value, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """x f32 [T, K] times a weight in blocks [N, K], not yet summed: f32 [T, N, blocks, …] and the axes to sum over.

    A block is taken in runs of values that lie alike: of each run the bytes are read once, and shifted by one number.
    So every step is elementwise over [T, N, blocks, values of a run], and a reduction over it is one kernel.
    """
    fmt = quant.FORMATS[quant.computed(t.dtype).name]
    parts = dict(zip(part_names(fmt), value))
    n, blocks = value[0].shape[:2]
    size, run = runs_of(fmt)
    tokens = (x.shape[0],) if x.shape[0] > 1 else ()
    full = (*tokens, n, blocks, *run)
    rows = len(tokens)  # the axis of the weight's rows

    def over(piece: Tensor) -> Tensor:
        """[N, blocks, …run] over all tokens."""
        return w.broadcast(piece, full, range(rows, rows + piece.rank))

    def given(start: int) -> Tensor:
        """The run of x that stands against the weight's."""
        piece = w.part(w.reshape(x, (*tokens, blocks, fmt.block)), rows + 1, start, start + size)
        axes = (*range(rows), *range(rows + 1, rows + 2 + len(run)))
        return w.broadcast(w.reshape(piece, (*tokens, blocks, *run)), full, axes)

    total: Tensor | None = None
    plain: Tensor | None = None  # what the offset, or the scale of the mins, is to be multiplied by

    def added(a: Tensor | None, b: Tensor) -> Tensor:
        return b if a is None else w.add(a, b)

    for start in range(0, fmt.block, size):
        q, piece = _run_of(w, fmt, parts, start, size, run), given(start)
        signed = numbers(w, fmt, q)
        product = w.mul(over(signed), piece)
        if fmt.scale_bits:
            scale, least = _scale_of(w, fmt, parts, start // fmt.group)
            product = w.mul(product, over(scale))
            piece = piece if least is None else w.mul(piece, over(least))
        if "m" in parts:
            plain = added(plain, piece)
        total = added(total, product)
    assert total is not None
    if "d" in parts:
        d = w.convert(parts["d"], "f32")
        total = w.mul(total, over(d if fmt.unit == 1 else w.mul(d, w.splat(fmt.unit, d))))
    if plain is not None:
        offset = w.mul(plain, over(w.convert(parts["m"], "f32")))
        total = w.sub(total, offset) if fmt.mins == "subtract" else w.add(total, offset)
    return total, tuple(range(rows + 1, len(full)))


def _scale_of(w: Writer, fmt: Format, parts: dict[str, Tensor], group: int) -> tuple[Tensor, Tensor | None]:
    """The small scale of one group of every block, and its min if it has one, as numbers that d and dmin multiply: f32
    [N, blocks], from the bytes that hold them and no others."""
    scale = SCALES[fmt.scale_kind](w, _packed(w, fmt, parts, group))
    if fmt.scale_zero:
        scale = w.sub(scale, w.splat(fmt.scale_zero, scale))
    least = _packed(w, fmt, parts, fmt.groups + group) if fmt.mins == "subtract" else None
    return scale, None if least is None else w.convert(least, "f32")


def _packed(w: Writer, fmt: Format, parts: dict[str, Tensor], index: int) -> Tensor:
    """The packed integer `index` of a block's scales and mins, ui8 [N, blocks]."""

    def field(name: str, byte: int, shift: int, bits: int, position: int) -> Tensor:
        data = parts[name]
        x = w.reshape(w.part(data, 2, byte, byte + 1), data.shape[:2])
        x = w.map("shift_right_logical", x, w.splat(shift, x)) if shift else x
        x = w.map("and", x, w.splat((1 << bits) - 1, x)) if bits < 8 else x
        return w.map("shift_left", x, w.splat(position, x)) if position else x

    fields: list[Tensor] = []
    for name, part in zip(part_names(fmt), fmt.parts):
        if part.kind != "scale":
            continue
        if part.plane is None:  # Q4_K's: the first four of scales and of mins are whole, the others in two pieces
            which, four = divmod(index, 8)
            if four < 4:
                return field(name, 4 * which + four, 0, 6, 0)
            high = field(name, 4 * which + four - 4, 6, 2, 4)
            return w.map("or", field(name, 8 + four - 4, 4 * which, 4, 0), high)
        plane = part.plane
        chunk, within = divmod(index, plane.run * (8 // plane.bits))
        step, first = divmod(within, plane.run)
        fields.append(field(name, chunk * plane.run + first, step * plane.bits, plane.bits, plane.position))
    total = fields[0]
    for more in fields[1:]:
        total = w.map("or", total, more)
    return total


def _run_of(w: Writer, fmt: Format, parts: dict[str, Tensor], start: int, size: int, run: tuple[int, ...]) -> Tensor:
    """The integers of values start … start + size of every block, ui8 [N, blocks, *run]."""
    total: Tensor | None = None
    for name, part in zip(part_names(fmt), fmt.parts):
        plane = part.plane
        if part.kind != "q" or plane is None:
            continue
        data, steps = parts[name], 8 // plane.bits
        lead = data.shape[:2]
        if plane.run == 1:
            data = w.part(data, 2, start // steps, (start + size) // steps)
            data = w.broadcast(data, (*lead, size // steps, steps), (0, 1, 2))
            shifts = w.map("multiply", w.iota(data.shape, 3, "ui8"), w.constant(plane.bits, "ui8", data.shape))
            data = w.reshape(w.map("shift_right_logical", data, shifts), (*lead, *run))
        else:
            chunk, within = divmod(start, plane.run * steps)
            step, first = divmod(within, plane.run)
            at = chunk * plane.run + first
            data = w.reshape(w.part(data, 2, at, at + size), (*lead, *run))
            if step:
                data = w.map("shift_right_logical", data, w.splat(step * plane.bits, data))
        if plane.bits < 8:
            data = w.map("and", data, w.splat((1 << plane.bits) - 1, data))
        if plane.position:
            data = w.map("shift_left", data, w.splat(plane.position, data))
        total = data if total is None else w.map("or", total, data)
    assert total is not None
    return total
