"""Values seen through views: what patterns over rows look at, wherever a library put its broadcasts and transposes.

A library spreads a mean over its row by keeping an axis of 1, by a broadcast, or before a transpose. `Seen` is a value
as the axes of one array, the frame, find it: `axes[i]` is the axis of `value` along frame axis i, None where it does
not vary along it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph import Value
from ...ir.ops.elementwise import ELEMENTWISE
from ...ir.rewrite import splat
from ...ir.types import Dim

SCALAR = {op.name for op in ELEMENTWISE}


@dataclass(frozen=True)
class Seen:
    """A value in a frame of the shape `frame`."""

    value: Value
    axes: tuple[int | None, ...]
    frame: tuple[Dim, ...]

    @property
    def op(self) -> str:
        return self.value.node.op.name

    @property
    def identical(self) -> bool:
        """Whether the value has the frame's axes in their order."""
        own = all(a == i or a is None and self.frame[i] == 1 for i, a in enumerate(self.axes))
        return own and self.value.shape == self.frame

    def operand(self, index: int) -> Seen:
        """An operand of an elementwise node."""
        return peeled(self.at(self.value.node.inputs[index]))

    def at(self, value: Value) -> Seen:
        """Another value of the same axes."""
        return Seen(value, self.axes, self.frame)

    def operands(self) -> tuple[Seen, ...]:
        return tuple(map(self.operand, range(len(self.value.node.inputs))))


def seen(value: Value) -> Seen:
    """The value in a frame of its own axes."""
    return Seen(value, tuple(range(value.type.rank)), value.shape)


def peeled(s: Seen) -> Seen:
    """What is spread, moved or reshaped, without the views around it. Axes of 1 do not vary."""
    while True:
        node = s.value.node
        match node.op.name:
            case "broadcast":
                dims = node.attr("dims")
                places: list[int | None] = [dims.index(d) if d in dims else None for d in range(s.value.type.rank)]
            case "transpose":
                places = list(node.attr("permutation"))
            case "reshape":
                found = _unit_reshape(node.inputs[0].shape, s.value.shape)
                if found is None:
                    return _without_units(s)
                places = found
            case _:
                return _without_units(s)
        s = Seen(node.inputs[0], tuple(None if a is None else places[a] for a in s.axes), s.frame)


def _without_units(s: Seen) -> Seen:
    axes = tuple(a if a is not None and s.value.shape[a] != 1 else None for a in s.axes)
    return Seen(s.value, axes, s.frame)


def _unit_reshape(source: tuple[Dim, ...], shape: tuple[Dim, ...]) -> list[int | None] | None:
    """For each axis of `shape` that of `source`, where the two differ in axes of 1 only; else None."""
    kept = [i for i, d in enumerate(source) if d != 1]
    if [source[i] for i in kept] != [d for d in shape if d != 1]:
        return None
    rest = iter(kept)
    return [None if d == 1 else next(rest) for d in shape]


def same(a: Seen, b: Seen) -> bool:
    return peeled(a) == peeled(b)


def number(s: Seen) -> float | None:
    """The one number that it is, or None."""
    found = splat(s.value)
    return None if found is None or s.value.dtype.numpy == "" else float(found)


def reduced(s: Seen, kind: str) -> tuple[Seen, int] | None:
    """What a reduction of this kind, spread over the frame again, reduces, and along which axis of the frame.

    `max(-inf, m)` is m.
    """
    s = peeled(s)
    if s.op == "max" and kind == "max":
        for one, other in (s.operands(), s.operands()[::-1]):
            if number(one) == float("-inf"):
                return reduced(other, kind)
    node = s.value.node
    if s.op != "reduce" or node.attr("kind") != kind:
        return None
    x = node.inputs[0]
    axes = [a for a in node.attr("axes") if x.shape[a] != 1]
    kept = [a for a in range(x.type.rank) if a not in node.attr("axes")]
    inner = [None if a is None else kept[a] for a in s.axes]
    missing = [i for i, a in enumerate(inner) if a is None and s.frame[i] != 1]
    if len(axes) != 1 or len(missing) != 1:
        return None
    i = missing[0]
    return peeled(Seen(x, (*inner[:i], axes[0], *inner[i + 1 :]), s.frame)), i


def column(s: Seen, axis: int) -> Value | None:
    """The vector that a value is along one axis of the frame, if it varies along no other; None else."""
    s = peeled(s)
    if any(a is not None for i, a in enumerate(s.axes) if i != axis) or s.axes[axis] is None:
        return None
    return s.value if sum(d != 1 for d in s.value.shape) == 1 else None
