"""Trigonometric and hyperbolic functions that the IR has no op for, of those it has. All in f32 or f64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ...ir.types import f64
from .arrays import Array, where

# Cephes atanf: atan(x) = x + x³ p(x²) for |x| <= tan(π/8), from Moshier's Methods and Programs, public domain.
ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)


def atan(x: Array) -> Array:
    """The argument is brought below tan(π/8) by atan x = π/2 - atan 1/x and π/4 + atan (x-1)/(x+1)."""
    t = x.abs()
    large, middle = t > math.tan(3 * math.pi / 8), t > math.tan(math.pi / 8)
    reduced = where(large, -1 / t, where(middle, (t - 1) / (t + 1), t))
    base = where(large, t.like(math.pi / 2), where(middle, t.like(math.pi / 4), t.like(0.0)).broadcast_to(t.shape))
    if x.dtype == f64:
        y = base + _atan_series(reduced)
    else:
        z, p = reduced * reduced, reduced.like(ATAN[0])
        for coefficient in ATAN[1:]:
            p = p * z + coefficient
        y = base + (p * z * reduced + reduced)
    return where(x < 0, -y, y)


def _atan_series(x: Array) -> Array:
    """Halved three times by atan x = 2 atan(x / (1 + √(1 + x²))), then the series."""
    for _ in range(3):
        x = x / (1 + (1 + x * x).sqrt())
    z, p = x * x, x.like(1 / 17)
    for n in range(15, 0, -2):
        p = (1 / n) - z * p
    return 8 * x * p


def atan2(y: Array, x: Array) -> Array:
    """The angle of (x, y), in (-π, π]."""
    flat = atan(y.abs() / x.abs())
    both = x.compare("eq", 0) & y.compare("eq", 0)
    angle = where(both, flat.like(0.0), flat)
    angle = where(x < 0, math.pi - angle, angle)
    return where(y < 0, -angle, angle)


def asin(x: Array) -> Array:
    return atan(x / ((1 - x) * (1 + x)).sqrt())


def acos(x: Array) -> Array:
    """2 atan(√((1-x) / (1+x)))."""
    return 2 * atan(((1 - x) / (1 + x)).sqrt())


def sinh(x: Array) -> Array:
    """From expm1, so that small arguments keep their digits."""
    e = x.unary("expm1")
    small = 0.5 * (e + e / (e + 1))
    return where(x.abs() > 20, 0.5 * (x.exp() - (-x).exp()), small)


def cosh(x: Array) -> Array:
    return 0.5 * x.exp() + 0.5 * (-x).exp()


def asinh(x: Array) -> Array:
    t = x.abs()
    square = t * t
    y = (t + square / (1 + (1 + square).sqrt())).unary("log1p")
    return where(x < 0, -y, y)


def acosh(x: Array) -> Array:
    t = x - 1
    return (t + (2 * t + t * t).sqrt()).unary("log1p")


def atanh(x: Array) -> Array:
    return 0.5 * (x.unary("log1p") - (-x).unary("log1p"))


def tan(x: Array) -> Array:
    return x.unary("sin") / x.unary("cos")


FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "tan": tan, "asin": asin, "acos": acos, "atan": atan, "sinh": sinh, "cosh": cosh, "asinh": asinh, "acosh": acosh,
    "atanh": atanh,
}  # fmt: skip
