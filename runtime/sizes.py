"""Sizes of arrays that are known when a function is called: numbers, names, and expressions of names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

FUNCTIONS: Mapping[str, Callable[[int, int], int]] = {
    "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "min": min, "max": max,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z_]\w*")
_TOKEN = re.compile(r"\s*(\d+|[A-Za-z_]\w*|[-+*(),])")


def size_of(dim: int | str, dims: Mapping[str, int]) -> int:
    """The value of a size: a number, a name, or sums and products of names, and of `floordiv`, `mod`, `min`, `max`."""
    if isinstance(dim, int):
        return dim
    tokens = _TOKEN.findall(dim)[::-1]

    def term() -> int:
        word = tokens.pop()
        if word == "-":
            return -term()
        if word.isdigit():
            return int(word)
        if word in FUNCTIONS:
            tokens.pop()  # (
            left = total()
            tokens.pop()  # ,
            right = total()
            tokens.pop()  # )
            return FUNCTIONS[word](left, right)
        return dims[word]

    def product() -> int:
        value = term()
        while tokens and tokens[-1] == "*":
            tokens.pop()
            value *= term()
        return value

    def total() -> int:
        value = product()
        while tokens and tokens[-1] in "+-":
            value += product() if tokens.pop() == "+" else -product()
        return value

    return total()


HOLE = re.compile(r"\$\[([^\]]*)\]")


def filled(text: str, dims: Mapping[str, int]) -> str:
    """A text with each `$[expression]` replaced by its number."""
    known: dict[str, str] = {}

    def number(expression: str) -> str:
        if expression not in known:
            known[expression] = str(size_of(expression, dims))
        return known[expression]

    return HOLE.sub(lambda m: number(m[1]), text)


def named_sizes(shapes: Sequence[Sequence[int | str]], given: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """The names in `shapes`, with the sizes that they have where arrays have the shapes `given`: of an axis that is the
    name alone, else of one that is a multiple of it and a number, such as 2*n + 1."""
    axes = [(d, size) for shape, sizes in zip(shapes, given) for d, size in zip(shape, sizes) if isinstance(d, str)]
    found = {d: size for d, size in reversed(axes) if d.isidentifier()}
    for d, size in axes:
        if (known := _multiple(d)) and known[0] not in found:
            name, factor, offset = known
            found[name] = (size - offset) // factor
    return found


def names_in(shape: Sequence[int | str]) -> list[str]:
    """The names that sizes of a shape are computed from."""
    words = (word for d in shape if isinstance(d, str) for word in _NAME.findall(d))
    return [w for w in dict.fromkeys(words) if w not in FUNCTIONS]


def _multiple(dim: str) -> tuple[str, int, int] | None:
    """(name, a, b) where the size is a * name + b with a > 0."""
    names = _NAME.findall(dim)
    if len(names) != 1:
        return None
    zero, one, two = (size_of(dim, {names[0]: i}) for i in range(3))
    return (names[0], one - zero, zero) if two - one == one - zero > 0 else None
