"""Elementwise functions that are made of others: NumPy says what they mean, decompositions how backends compute them.

A decomposition computes in f32, halves rounded once; it is within a few units in the last place of the reference. In
f64 there are fewer: backends have `atan2`, `cbrt` and `erfc` of f64 themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..graph import IRError, Op, Value
from ..types import Type, f32, f64, i32, i64
from .common import Types, expect, in_f32, kind_of, same
from .decompose import add, constant, div, emit, mul, sub

Values = tuple[Value, ...]
LN2 = 0.6931471805599453


def _infer(count: int) -> Callable[..., Types]:
    def infer(*types: Type) -> Types:
        expect(len(types) == count, f"takes {count} operands, not {len(types)}")
        same(*types)
        expect(kind_of(types[0].dtype) == "float", f"takes float, not {types[0].dtype}")
        return types[:1]

    return infer


def _like(value: float, x: Value) -> Value:
    return constant(value, x.shape, x.dtype)


def _abs(x: Value) -> Value:
    return emit("abs", x)


def _less(a: Value, b: Value) -> Value:
    return emit("compare", a, b, direction="lt")


def _select(condition: Value, a: Value, b: Value) -> Value:
    return emit("select", condition, a, b)


def _bits(x: Value) -> Value:
    return emit("bitcast", x, dtype=i64 if x.dtype == f64 else i32)


def _negative(x: Value) -> Value:
    """Whether the sign bit is set, of -0 too."""
    return _less(_bits(x), _like(0, _bits(x)))


def _with_sign(magnitude: Value, x: Value) -> Value:
    """The magnitude, which is not negative, with the sign of x."""
    return _select(_negative(x), emit("neg", magnitude), magnitude)


def _polynomial(x: Value, *coefficients: float) -> Value:
    """By Horner's rule, the highest coefficient first."""
    total = _like(coefficients[0], x)
    for c in coefficients[1:]:
        total = add(mul(total, x), _like(c, x))
    return total


# --- Exponential ---


def exp2(x: Value) -> Value:
    """2^x = 2^n e^(f ln 2) with n the nearest whole number; the power in two factors, so that denormals come out."""
    if x.dtype == f64:
        return emit("exp", mul(x, _like(LN2, x)))
    bounded = emit("clamp", _like(-160, x), x, _like(160, x))
    n = emit("round", bounded, mode="even")
    fraction = emit("exp", mul(sub(bounded, n), _like(LN2, x)))
    half = emit("convert", emit("floor", mul(n, _like(0.5, x))), dtype=i32)
    rest = emit("sub", emit("convert", n, dtype=i32), half)
    result = mul(mul(fraction, _power_of_two(half)), _power_of_two(rest))
    return _select(emit("compare", x, x, direction="ne"), x, result)


def _power_of_two(n: Value) -> Value:
    """2^n for i32 n in -126 … 127."""
    exponent = emit("add", n, constant(127, n.shape, i32))
    return emit("bitcast", emit("shift_left", exponent, constant(23, n.shape, i32)), dtype=f32)


def sinh(x: Value) -> Value:
    """For small x by e = expm1|x|: (e + e / (e + 1)) / 2; else t² / 2, t = e^(|x| / 2), which does not overflow."""
    size = _abs(x)
    e = emit("expm1", size)
    small = mul(_like(0.5, x), add(e, div(e, add(e, _like(1, x)))))
    t = emit("exp", mul(size, _like(0.5, x)))
    large = mul(mul(_like(0.5, x), t), t)
    return _with_sign(_select(_less(size, _like(20 if x.dtype == f64 else 8, x)), small, large), x)


def cosh(x: Value) -> Value:
    t = emit("exp", mul(_abs(x), _like(0.5, x)))
    return add(mul(mul(_like(0.5, x), t), t), div(div(_like(0.5, x), t), t))


# --- Trigonometric: the reductions and polynomials of Moshier's Cephes (atanf) ---


def tan(x: Value) -> Value:
    return div(emit("sin", x), emit("cos", x))


def _atan_of_ratio(y: Value, x: Value) -> Value:
    """atan(y / x) for 0 <= y, x, not both 0: by 3π/8 and π/8 brought below tan(π/8)."""
    large = _less(mul(_like(2.414213562373095, x), x), y)
    middle = _less(mul(_like(0.4142135623730950, x), x), y)
    top = _select(large, emit("neg", x), _select(middle, sub(y, x), y))
    bottom = _select(large, y, _select(middle, add(y, x), x))
    start = _select(large, _like(math.pi / 2, x), _select(middle, _like(math.pi / 4, x), _like(0, x)))
    t = div(top, bottom)
    z = mul(t, t)
    p = _polynomial(z, 8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
    return add(start, add(mul(mul(p, z), t), t))


def atan(x: Value) -> Value:
    if x.dtype == f64:
        return emit("atan2", x, _like(1, x))
    size = _abs(x)
    bounded = emit("min", size, _like(1e30, x))
    result = _with_sign(_atan_of_ratio(bounded, _like(1, x)), x)
    return _select(emit("compare", x, x, direction="ne"), x, result)


def atan2(y: Value, x: Value) -> Value:
    """The angle of (x, y): of two infinities that of (1, 1), of two zeros 0 or π, with the sign of y."""
    a, b = _abs(y), _abs(x)
    infinite = _like(math.inf, x)
    both = emit("and", emit("compare", a, infinite, direction="eq"), emit("compare", b, infinite, direction="eq"))
    a, b = (_select(both, _like(1, x), v) for v in (a, b))
    swapped = _less(b, a)
    low, high = emit("min", a, b), emit("max", a, b)
    zero = emit("compare", high, _like(0, x), direction="eq")
    ratio = _select(zero, low, div(low, _select(zero, _like(1, x), high)))
    angle = _atan_of_ratio(ratio, _like(1, x))
    angle = _select(swapped, sub(_like(math.pi / 2, x), angle), angle)
    angle = _select(_negative(x), sub(_like(math.pi, x), angle), angle)
    unordered = emit("compare", add(x, y), add(x, y), direction="ne")
    nan = emit("and", unordered, emit("not", both))
    opposite = emit("and", both, unordered)  # inf - inf is no NaN here
    return _select(emit("and", nan, emit("not", opposite)), add(x, y), _with_sign(angle, y))


def asin(x: Value) -> Value:
    """atan2(x, sqrt(1 - x²)), with the root of (1 - x) (1 + x)."""
    root = emit("sqrt", mul(sub(_like(1, x), x), add(_like(1, x), x)))
    return emit("atan2", x, root) if x.dtype == f64 else atan2(x, root)


def acos(x: Value) -> Value:
    """2 atan2(sqrt(1 - x), sqrt(1 + x))."""
    above, below = (emit("sqrt", v) for v in (sub(_like(1, x), x), add(_like(1, x), x)))
    half = emit("atan2", above, below) if x.dtype == f64 else atan2(above, below)
    return mul(_like(2, x), half)


# --- Inverses of the hyperbolic ---


def asinh(x: Value) -> Value:
    """log1p(|x| + x² / (1 + sqrt(1 + x²))); above 1e9 log|x| + log 2."""
    size = _abs(x)
    bounded = emit("min", _like(1e9, x), size)  # in this order a NaN stays
    square = mul(bounded, bounded)
    root = emit("sqrt", add(square, _like(1, x)))
    small = emit("log1p", add(bounded, div(square, add(root, _like(1, x)))))
    large = add(emit("log", size), _like(LN2, x))
    return _with_sign(_select(_less(_like(1e9, x), size), large, small), x)


def acosh(x: Value) -> Value:
    """log1p(t + sqrt(2 t + t²)) with t = x - 1; above 1e9 log x + log 2."""
    bounded = emit("max", _like(0, x), emit("min", _like(1e9, x), x))
    t = sub(bounded, _like(1, x))
    small = emit("log1p", add(t, emit("sqrt", mul(t, add(t, _like(2, x))))))
    return _select(_less(_like(1e9, x), x), add(emit("log", x), _like(LN2, x)), small)


def atanh(x: Value) -> Value:
    """log1p(2 |x| / (1 - |x|)) / 2."""
    size = _abs(x)
    return _with_sign(mul(_like(0.5, x), emit("log1p", div(add(size, size), sub(_like(1, x), size)))), x)


# --- Roots and errors ---


def cbrt(x: Value) -> Value:
    """e^(log|x| / 3), and one step of Newton's, which zeros and infinities do not take."""
    size = _abs(x)
    t = emit("exp", mul(emit("log", size), _like(1 / 3, x)))
    step = sub(t, div(sub(t, div(div(size, t), t)), _like(3, x)))
    odd = emit("or", emit("compare", size, _like(0, x), direction="eq"),
               emit("not", emit("is_finite", x)))  # fmt: skip
    return _with_sign(_select(odd, size, step), x)


def erfc(x: Value) -> Value:
    """1 - erf(x) below 1; above e^(-x²) / |x| times a polynomial in 1 / x² (Cephes, erfcf); 2 - that below -1."""
    size = _abs(x)
    bounded = emit("clamp", _like(1, x), size, _like(11, x))
    q = div(_like(1, x), mul(bounded, bounded))
    near = _polynomial(q, 2.326819970068386e-2, -1.387039388740657e-1, 3.687424674597105e-1, -5.824733027278666e-1,
                       6.210004621745983e-1, -4.944515323274145e-1, 3.404879937665872e-1, -2.741127028184656e-1,
                       5.638259427386472e-1)  # fmt: skip
    far = _polynomial(q, -1.047766399936249e1, 1.297719955372516e1, -7.495518717768503, 2.921019019210786,
                      -1.015265279202700, 4.218463358204948e-1, -2.820767439740514e-1,
                      5.641895067754075e-1)  # fmt: skip
    p = _select(_less(bounded, _like(2, x)), near, far)
    # e^(-x²) from x² in two parts: the upper half of x's bits squares without rounding.
    high = emit("bitcast", emit("and", _bits(bounded), constant(-4096, x.shape, i32)), dtype=f32)
    low = mul(sub(bounded, high), add(bounded, high))
    e = mul(emit("exp", emit("neg", mul(high, high))), emit("exp", emit("neg", low)))
    tail = div(mul(e, p), bounded)
    large = _select(_negative(x), sub(_like(2, x), tail), tail)
    return _select(_less(_like(1, x), size), large, sub(_like(1, x), emit("erf", x)))


# --- The table ---


def _in_f32(function: Callable[..., Value]) -> Callable[..., Values]:
    """The decomposition on operands of any float, those below 32 bits in f32."""

    def decompose(*operands: Value) -> Values:
        dtype = operands[0].dtype
        if dtype == f64 and function in (atan2, cbrt, erfc):
            raise IRError(f"{function.__name__} of f64 has no decomposition: convert it to f32")
        if dtype == f64:
            return (function(*operands),)
        wide = (v if dtype == f32 else emit("convert", v, dtype=f32) for v in operands)
        result = function(*wide)
        return (result if dtype == f32 else emit("convert", result, dtype=dtype),)

    return decompose


def _double(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """In f64, rounded once."""
    return lambda *arrays: function(*(a.astype(np.float64) for a in arrays)).astype(arrays[0].dtype)


_ERFC = np.vectorize(math.erfc, otypes=[np.float64])
# name: (operands, meaning, decomposition)
FUNCTIONS: dict[str, tuple[int, Callable[..., np.ndarray], Callable[..., Value]]] = {
    "exp2": (1, np.exp2, exp2), "sinh": (1, np.sinh, sinh), "cosh": (1, np.cosh, cosh), "tan": (1, np.tan, tan),
    "atan": (1, np.arctan, atan), "atan2": (2, np.arctan2, atan2), "asin": (1, np.arcsin, asin),
    "acos": (1, np.arccos, acos), "asinh": (1, np.arcsinh, asinh), "acosh": (1, np.arccosh, acosh),
    "atanh": (1, np.arctanh, atanh), "cbrt": (1, np.cbrt, cbrt), "erfc": (1, _ERFC, erfc),
}  # fmt: skip
SPECIAL = tuple(Op(name, _infer(count), in_f32(_double(meaning)), _in_f32(function))
                for name, (count, meaning, function) in FUNCTIONS.items())  # fmt: skip
