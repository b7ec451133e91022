"""What the integers of a format's values are, in the fewest operations of a TPU.

Its vector unit has no table to look in, and 32-bit words alone: a choice by bits is 15 selects for a code of 4 bits,
and an unsigned integer is converted in two halves. Here integers are signed words, and codes are computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...ir.quant import Format, code_books
from . import blocks
from .text import Tensor, Writer

# Polynomials, from the constant up, that rounded down are the codes of the integers 0, 1, …: of all of them, or of
# those without their highest bit, which is then the sign. Each is the closest of its degree, and a half.
ORDERED: Mapping[Sequence[int], Sequence[float]] = {
    code_books.IQ4_NL: (-126.06701, 24.17383, -1.371927, 0.03108644, 0.0015860428),
}
MAGNITUDES: Mapping[Sequence[int], Sequence[float]] = {
    code_books.IQ2: (8.5, -4.1666667, 31.5, -10.333333),
    code_books.IQ3_XXS: (4.2142857, 8.952381, -0.42857143, 0.047619048),
    code_books.IQ3_S: (1.0, 2.0),
}


def numbers(w: Writer, fmt: Format, q: Tensor) -> Tensor:
    """Integers ui8 as f32, as `blocks.numbers` has them; zero may have a sign."""
    if fmt.bits == 8:
        return blocks.numbers(w, fmt, q)
    q = w.convert(q, "i32")
    if not fmt.codes:
        x = w.convert(q, "f32")
        return w.sub(x, w.splat(fmt.zero, x)) if fmt.zero else x
    if fmt.codes == code_books.E2M1:
        return _with_sign(w, _e2m1(w, q), q, 3)
    if fmt.codes in ORDERED:
        return _rounded(w, ORDERED[fmt.codes], q)
    if fmt.codes in MAGNITUDES:
        sign = len(fmt.codes).bit_length() - 2
        low = w.map("and", q, w.splat((1 << sign) - 1, q))
        return _with_sign(w, _rounded(w, MAGNITUDES[fmt.codes], low), q, sign)
    return blocks.chosen(w, fmt.codes, q)


def _rounded(w: Writer, coefficients: Sequence[float], q: Tensor) -> Tensor:
    """A polynomial of q, rounded down."""
    x = w.convert(q, "f32")
    total = w.splat(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        total = w.add(w.mul(total, x), w.splat(c, x))
    return w.map("floor", total) if any(c % 1 for c in coefficients) else total


def _e2m1(w: Writer, q: Tensor) -> Tensor:
    """Twice the 4-bit float without its sign. As bits of an f32, its two of exponent and one of fraction are that but
    below two, where there is no hidden one: 1 and 1.5 are to be 0 and 1."""
    low = w.map("shift_left", w.map("and", q, w.splat(7, q)), w.splat(22, q))
    x = w.bitcast(w.add(low, w.splat(127 << 23, q)), "f32")
    return w.map("minimum", x, w.sub(w.add(x, x), w.splat(2, x)))


def _with_sign(w: Writer, x: Tensor, q: Tensor, bit: int) -> Tensor:
    """x, which is not negative, with a bit of q as its sign."""
    sign = w.map("shift_left", w.map("and", q, w.splat(1 << bit, q)), w.splat(31 - bit, q))
    return w.bitcast(w.map("or", w.bitcast(x, "i32"), sign), "f32")
