"""The C text of bodies, one element at a time: names of axes and operands, values that are used twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir.graph import Value
from ...ir.ops.common import narrow
from ...ir.types import DType, bounds
from .loop_function import bracketed, dim_text
from .loop_model import (
    Affine,
    Apply,
    Axis,
    Body,
    Constant,
    Guard,
    Lookup,
    Part,
    Position,
    Read,
    Within,
    children,
)
from .scalar import HALVES, VALUE_TYPES, enclosed, expression, literal, load, rounded
from .text import C_TYPES


@dataclass
class Scope:
    """Names of axes and operands while text is printed. `raw`: elements are only moved, halves stay bits."""

    axis: list[str]
    operand: dict[Value, str]
    raw: bool = False
    found: dict[Lookup, str] = field(default_factory=dict)
    bound: dict[Body, str] = field(default_factory=dict)

    def value_type(self, dtype: DType) -> str:
        return (C_TYPES if self.raw else VALUE_TYPES)[dtype.name]

    def index(self, index: Affine) -> str:
        """C text of an index, an int64_t: every product has a counter for a factor, not only sizes."""
        text = ""
        for atom, coefficient in index.terms:
            match atom:
                case Axis(number):
                    inner = self.axis[number]
                case Lookup():
                    inner = self.found.get(atom) or self.lookup(atom)
                case _:
                    inner = f"({self.index(atom.index)}) / {atom.divisor}"
            negative = bounds(coefficient)[1] < 0
            size = -coefficient if negative else coefficient
            scaled = inner if size == 1 else f"{inner} * {bracketed(size)}"
            text += (f" {'-' if negative else '+'} " if text else "-" * negative) + scaled
        if index.offset == 0 and text:
            return text
        offset = dim_text(index.offset)
        if not text:
            return offset
        return f"{offset} {text[0]} {text[1:]}" if text[0] == "-" else f"{text} + {offset}".replace("+ -", "- ")

    def lookup(self, atom: Lookup) -> str:
        element = self.body(atom.read)
        if atom.clamp is None:
            return f"(int64_t){element}"
        return f"clamp_index({element}, {dim_text(atom.clamp[0])}, {dim_text(atom.clamp[1])})"

    def guards(self, guards: Sequence[Guard]) -> str:
        """C text of the test that all of them hold; what the counters' ranges give away is not tested."""
        tests = []
        for guard in guards:
            index = self.index(guard.index)
            if not _never_negative(guard.index):
                tests.append(f"{index} >= 0")
            if guard.divisor > 1:
                tests.append(f"({index}) % {guard.divisor} == 0")
            tests.append(f"{index} < {dim_text(guard.limit)}")
        return " && ".join(tests)

    def body(self, body: Body) -> str:
        """C text of a value, names of bound subexpressions in their place."""
        if body in self.bound:
            return self.bound[body]
        match body:
            case Read(source=source, index=(index,)):
                element = f"{self.operand[source]}[{self.index(index)}]"
                return element if self.raw else load(element, body.dtype)
            case Constant(value=value, dtype=dtype):
                return str(half_bits(value, dtype)) if self.raw and dtype.name in HALVES else literal(value, dtype)
            case Position(index=index, dtype=dtype):
                return rounded(f"({VALUE_TYPES[dtype.name]}){enclosed(self.index(index))}", dtype)
            case Within(guards=guards, value=value, fill=fill):
                return f"{self.guards(guards)} ? {self.body(value)} : {enclosed(self.body(fill))}"
            case Apply(op=op, args=args, dtype=dtype):
                return expression(op, [self.body(a) for a in args], args[-1].dtype, dtype)
        raise TypeError(f"{body!r} is no body")

    def bindings(self, body: Body) -> Iterator[str]:
        """Declarations of what is used more than once and always evaluated; later text uses their names."""
        counts = Counter(always(body))
        for part in dict.fromkeys(always(body)):
            if counts[part] > 1 and isinstance(part, (Apply, Within)) and part not in self.bound:
                text = self.body(part)
                name = f"v{len(self.bound)}"
                self.bound[part] = name
                yield f"const {self.value_type(part.dtype)} {name} = {text};"


def always(body: Body) -> Iterator[Body]:
    """The values that are evaluated whatever the guards say, innermost first."""
    if isinstance(body, Apply):
        for arg in body.args:
            yield from always(arg)
    yield body


def unguarded_lookups(part: Part) -> Iterator[Lookup]:
    """The looked-up indices that are evaluated whatever the guards say, innermost first."""
    for inside in part.guards if isinstance(part, Within) else children(part):
        yield from unguarded_lookups(inside)
    if isinstance(part, Lookup):
        yield part


def _never_negative(index: Affine) -> bool:
    steps = all(isinstance(a, Axis) and bounds(c)[0] >= 0 for a, c in index.terms)
    return steps and bounds(index.offset)[0] >= 0


def half_bits(value: float, dtype: DType) -> int:
    """A number as the bits of a half float."""
    return int(narrow(np.array(value, np.float32), dtype).view(np.uint16))
