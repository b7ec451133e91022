"""What a lowering hands to the program writer: C functions, and calls of them with arguments in terms of a node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...ir.types import Dim, symbol

THREADS = symbol("threads", 1, 1 << 16)  # the pool's size, for scratch that every worker needs its own part of


_FUNCTION = re.compile(r"^(?:static|INLINE)\b[^(=;{]*?(\w+)\(", re.MULTILINE)


def functions_of(text: str) -> list[str]:
    """The functions that C text defines at the start of lines."""
    return _FUNCTION.findall(text)


@dataclass(frozen=True)
class Kernel:
    """C text of one static function (its bodies and helpers included), emitted once per symbol, after `needs`."""

    symbol: str
    source: str
    needs: tuple[Kernel, ...] = ()

    @property
    def functions(self) -> list[str]:
        """The names that its text defines as functions."""
        return functions_of(self.source)

    def closure(self) -> Iterator[Kernel]:
        """This kernel after everything it needs; a kernel may come more than once."""
        for kernel in self.needs:
            yield from kernel.closure()
        yield self


@dataclass(frozen=True)
class Operand:
    """Pointer to the node's i-th operand."""

    index: int = 0


@dataclass(frozen=True)
class Result:
    """Pointer to the node's i-th result."""

    index: int = 0


@dataclass(frozen=True)
class DimValue:
    """The value of a dimension, as int32_t."""

    dim: Dim


@dataclass(frozen=True)
class Literal:
    """C text, as it is."""

    text: str


@dataclass(frozen=True)
class Scratch:
    """Pointer to the call's scratch bytes, 64-byte aligned; dead after the call."""


@dataclass(frozen=True)
class Run:
    """The `const run *` of the step."""


Arg = Operand | Result | DimValue | Literal | Scratch | Run


@dataclass(frozen=True)
class Call:
    """One line of the step function. `scratch` is in bytes, over the graph's symbols and `THREADS`.

    `regions` is the number of parallel regions that it opens for one token, at a position within the first page.

    `in_place` lists (result, operand) pairs that may be given the same pointer: the kernel then reads every element of
    the operand before it, and only it, writes the element in the same place.
    """

    kernel: Kernel
    args: tuple[Arg, ...]
    scratch: Dim = 0
    in_place: tuple[tuple[int, int], ...] = ()
    regions: int = 0
