"""The general kernel family as data: loops over output and reduced axes that evaluate one scalar body.

A `Loop` computes `result[o] = monoid over r of body(o, r)`, where o runs over the result's axes and r over the reduced
ones. The body is a tree of scalar operations over reads, and a read has an affine index per axis of what it reads. An
index may hold values that are themselves read from an integer operand (gather), and a read may be guarded (padding), so
views, padding, gathers, elementwise chains and reductions are all instances. Loops compose: `fuse` puts the body of the
loop that makes a value in the place of its reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ...ir.graph import Value
from ...ir.types import Dim, DType, bounds

# Indices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """The counter of a loop axis: output axes first, then reduced ones."""

    number: int


@dataclass(frozen=True)
class Lookup:
    """An element of an integer operand as an index, brought into `clamp` = (lowest, highest) where that is given."""

    read: Read
    clamp: tuple[Dim, Dim] | None = None


@dataclass(frozen=True)
class Quotient:
    """index / divisor, rounded down, of an index that is not negative or is a multiple, as a guard has made sure."""

    index: Affine
    divisor: int


Atom = Axis | Lookup | Quotient


@dataclass(frozen=True)
class Affine:
    """offset + Σ coefficient · atom; no atom comes twice, no coefficient is zero."""

    offset: Dim = 0
    terms: tuple[tuple[Atom, Dim], ...] = ()

    def __add__(self, other: Affine | Dim) -> Affine:
        if not isinstance(other, Affine):
            return Affine(self.offset + other, self.terms)
        total = dict(self.terms)
        for atom, coefficient in other.terms:
            total[atom] = total.get(atom, 0) + coefficient
        return Affine(self.offset + other.offset, tuple((a, c) for a, c in total.items() if c != 0))

    def __mul__(self, factor: Dim) -> Affine:
        return Affine(self.offset * factor, tuple((a, c * factor) for a, c in self.terms if factor != 0))

    def coefficient(self, number: int) -> Dim:
        """What one step of a loop axis adds."""
        return dict(self.terms).get(Axis(number), 0)


def index_of(atom: Atom) -> Affine:
    return Affine(0, ((atom, 1),))


def axes(count: int, start: int = 0) -> tuple[Affine, ...]:
    """The loop axes start … start+count-1, each as an index: what visits an array of that rank in order."""
    return tuple(index_of(Axis(start + n)) for n in range(count))


def flatten(index: Sequence[Affine], shape: Sequence[Dim]) -> Affine:
    """The row-major position of `index` in an array of `shape`."""
    flat = Affine()
    for position, size in zip(index, shape, strict=True):
        flat = flat * size + position
    return flat


# Scalar bodies ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """An element of `source`; `shape` is what the index counts in, the source's own or another view of its elements."""

    source: Value
    index: tuple[Affine, ...]
    shape: tuple[Dim, ...]

    @property
    def dtype(self) -> DType:
        return self.source.dtype


@dataclass(frozen=True)
class Constant:
    """A number or truth value."""

    value: int | float | bool
    dtype: DType


@dataclass(frozen=True)
class Position:
    """An index as a number (iota)."""

    index: Affine
    dtype: DType


@dataclass(frozen=True)
class Apply:
    """A scalar operation of `scalar.SCALARS` on values of the dtypes of `args`."""

    op: str
    args: tuple[Body, ...]
    dtype: DType


@dataclass(frozen=True)
class Guard:
    """0 <= index < limit, and `divisor` divides the index."""

    index: Affine
    limit: Dim
    divisor: int = 1


@dataclass(frozen=True)
class Within:
    """`value` where every guard holds, else `fill`; only the chosen one is evaluated."""

    guards: tuple[Guard, ...]
    value: Body
    fill: Body

    @property
    def dtype(self) -> DType:
        return self.value.dtype


Body = Read | Constant | Position | Apply | Within


@dataclass(frozen=True)
class Loop:
    """result[o] = body(o), or with reduced axes the `monoid` of body(o, r) over r ascending, row-major.

    Axes 0 … len(shape)-1 are the result's, the rest `reduced`. Monoids: "sum" (floats in the 16-way order of
    `ir.numerics`), "prod", "max", "min", "and", "or", and "dot", whose body is a product that is added by a chain of
    fused multiply-adds.
    """

    result: Value
    shape: tuple[Dim, ...]
    body: Body
    reduced: tuple[Dim, ...] = ()
    monoid: str = ""

    @property
    def operands(self) -> tuple[Value, ...]:
        """The values that the loop reads, each once, in the order in which the body first reads them."""
        return tuple(dict.fromkeys(p.source for p in parts(self.body) if isinstance(p, Read)))


# Walking ---------------------------------------------------------------------------------------------------------

Part = Body | Guard | Affine | Atom
P = TypeVar("P", Body, Affine, Guard)


def children(part: Part) -> tuple[Part, ...]:
    """The parts right inside a part."""
    match part:
        case Affine():
            return tuple(atom for atom, _ in part.terms)
        case Read():
            return part.index
        case Lookup():
            return (part.read,)
        case Quotient() | Guard() | Position():
            return (part.index,)
        case Apply():
            return part.args
        case Within():
            return (*part.guards, part.value, part.fill)
    return ()


def _with_children(part: Part, new: tuple[Any, ...]) -> Part:
    match part:
        case Affine():
            moved = (Affine(0, ((atom, c),)) for atom, (_, c) in zip(new, part.terms))
            return sum(moved, start=Affine(part.offset))
        case Read():
            return replace(part, index=new)
        case Lookup():
            return replace(part, read=new[0])
        case Quotient() | Guard() | Position():
            return replace(part, index=new[0])
        case Apply():
            return replace(part, args=new)
        case Within():
            return Within(new[:-2], *new[-2:])
    return part


def parts(part: Part) -> Iterator[Part]:
    """The part and everything in it, a part before its children."""
    yield part
    for child in children(part):
        yield from parts(child)


def rewrite(part: P, change: Callable[[Part], Part]) -> P:
    """The part with every part in it, innermost first, replaced by `change` of it, which keeps the kind of part."""

    def visit(p: Part) -> Part:
        inside = children(p)
        new = tuple(map(visit, inside))
        return change(p if new == inside else _with_children(p, new))

    return visit(part)  # type: ignore[return-value]


def move(part: Body, new: Sequence[Affine]) -> Body:
    """The body with loop axis n replaced by the index `new[n]`."""

    def change(p: Part) -> Part:
        if not isinstance(p, Affine):
            return p
        moved = (new[a.number] * c if isinstance(a, Axis) else Affine(0, ((a, c),)) for a, c in p.terms)
        return sum(moved, start=Affine(p.offset))

    return rewrite(part, change)


# Composition -----------------------------------------------------------------------------------------------------


def fuse(producer: Loop, consumer: Loop) -> Loop | None:
    """The consumer with `producer`'s body in the place of every read of its result, or None where that cannot be.

    A reduction is not recomputed at each read, and an index is looked up in memory only. A read through another view of
    the result (a reshape) composes only with a producer that is one flat loop once `collapse`d.
    """
    reads = [p for p in parts(consumer.body) if isinstance(p, Read) and p.source == producer.result]
    looked_up = any(isinstance(p, Lookup) and p.read.source == producer.result for p in parts(consumer.body))
    if producer.reduced or not reads or looked_up:
        return None
    flat = producer if all(r.shape == producer.shape for r in reads) else collapse(producer)
    if flat is not producer and len(flat.shape) > 1:
        return None

    def inline(part: Part) -> Part:
        if not isinstance(part, Read) or part.source != producer.result:
            return part
        if part.shape == producer.shape:
            return move(producer.body, part.index)
        return move(flat.body, [flatten(part.index, part.shape)] * len(flat.shape))

    return replace(consumer, body=rewrite(consumer.body, inline))


def flat_reads(part: P) -> P:
    """The part with the one index of every read in it the row-major position."""

    def flat(p: Part) -> Part:
        return Read(p.source, (flatten(p.index, p.shape),), (p.source.type.elements,)) if isinstance(p, Read) else p

    return rewrite(part, flat)


def window_starts(x: Value, indices: Value, batch: tuple[Affine, ...], sizes: tuple[Dim, ...],
                  index_map: tuple[int, ...], operand_batching: tuple[int, ...], indices_batching: tuple[int, ...],
                  clip: bool) -> tuple[list[Affine], tuple[Guard, ...]]:  # fmt: skip
    """Where a gather's or scatter's window begins on each axis of `x`, and what makes it fit: as `ir.ops.index`."""
    starts, guards = [Affine()] * x.type.rank, []
    for k, d in enumerate(index_map):
        highest = x.shape[d] - sizes[d]
        element = Read(indices, (*batch, Affine(k)), indices.shape)
        starts[d] = index_of(Lookup(element, (0, highest) if clip else None))
        if not clip:
            guards.append(Guard(starts[d], highest + 1))
    for d, b in zip(operand_batching, indices_batching):
        starts[d] = batch[b]
    return starts, tuple(guards)


LARGEST = (1 << 31) - 1  # `parallel` splits a range of int32_t


def collapse(loop: Loop) -> Loop:
    """The same loop over as few axes as possible: sizes of one go, neighbours that every index walks as one are merged.

    Reads become flat: their one index is the row-major position.
    """

    sizes, rank, body = [*loop.shape, *loop.reduced], len(loop.shape), flat_reads(loop.body)
    n = 0
    while n < len(sizes):
        if sizes[n] != 1:
            neighbours = n + 1 < len(sizes) and n + 1 != rank
            if not neighbours or not _walked_as_one(body, n, sizes):
                n += 1
                continue
            sizes[n + 1] = sizes[n] * sizes[n + 1]  # a·|b| + b counts a and b at once, and takes b's place
        body = move(body, [*axes(n), Affine(), *axes(len(sizes) - n - 1, n)])
        del sizes[n]
        rank -= n < rank
    return replace(loop, shape=tuple(sizes[:rank]), body=body, reduced=tuple(sizes[rank:]))


def _walked_as_one(body: Body, n: int, sizes: Sequence[Dim]) -> bool:
    """Whether every index moves as far for one step of axis n as for all of axis n+1."""
    if bounds(sizes[n] * sizes[n + 1])[0] > LARGEST:
        return False
    indices = (p for p in parts(body) if isinstance(p, Affine))
    return all(i.coefficient(n) == i.coefficient(n + 1) * sizes[n + 1] for i in indices)
