"""Elementwise ops: one operation each, or a few."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.graph import IRError
from ...ir.numerics import elementary
from .context import Lowering, Step
from .text import Tensor, Writer, element_of

# StableHLO's operation for each op of the same meaning.
SAME = {
    "add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "rem": "remainder", "max": "maximum",
    "min": "minimum", "pow": "power", "neg": "negate", "abs": "abs", "sign": "sign", "floor": "floor", "ceil": "ceil",
    "sqrt": "sqrt", "rsqrt": "rsqrt", "exp": "exponential", "expm1": "exponential_minus_one", "log": "log",
    "log1p": "log_plus_one", "tanh": "tanh", "logistic": "logistic", "sin": "sine", "cos": "cosine", "not": "not",
    "and": "and", "or": "or", "xor": "xor", "shift_left": "shift_left",
    "shift_right_logical": "shift_right_logical", "shift_right_arithmetic": "shift_right_arithmetic",
}  # fmt: skip
DOUBLE = {"atan2": "atan2", "cbrt": "cbrt"}  # of f64; of other dtypes they are decomposed
ROUND = {"even": "round_nearest_even", "away": "round_nearest_afz"}


def _same(operation: str) -> Lowering:
    return lambda step: step.writer.map(operation, *step.tensors)


def _round(step: Step) -> Tensor:
    return step.writer.map(ROUND[step.attr("mode")], step.x)


def _clamp(step: Step) -> Tensor:
    low, x, high = step.tensors
    return step.writer.map("minimum", step.writer.map("maximum", x, low), high)


def _compare(step: Step) -> Tensor:
    a, b = step.tensors
    return step.writer.compare(a, b, step.attr("direction").upper())


def _convert(step: Step) -> Tensor:
    """To bool is comparing with zero."""
    element = element_of(step.attr("dtype"))
    if element == "i1" and step.x.element != "i1":
        return step.writer.compare(step.x, step.writer.splat(0, step.x), "NE")
    return step.writer.convert(step.x, element)


def _horner(w: Writer, coefficients: Sequence[float], x: Tensor) -> Tensor:
    """The polynomial with these coefficients, the highest power's first."""
    total = w.splat(coefficients[0], x)
    for c in coefficients[1:]:
        total = w.add(w.mul(total, x), w.splat(c, x))
    return total


def _erf(step: Step) -> Tensor:
    """As `numerics.elementary.erf` has it: StableHLO has no operation for it."""
    w = step.writer
    if step.x.element == "f64":
        raise IRError("erf of f64 is not supported for XLA: convert to f32 first")
    x = w.convert(step.x, "f32")
    a = w.map("abs", x)
    small = w.add(w.mul(_horner(w, elementary.ERF_SMALL, w.mul(a, a)), a), a)
    most = w.map("minimum", w.splat(4, a), a)
    large = w.sub(w.splat(1, a), w.map("exponential", w.map("negate", _horner(w, elementary.ERF_LARGE, most))))
    size = w.select(w.compare(a, w.splat(1, a), "LT"), small, large)
    signed = w.select(w.compare(x, w.splat(0, x), "LT"), w.map("negate", size), size)
    return w.convert(signed, step.x.element)


ELEMENTWISE: dict[str, Lowering] = {
    **{name: _same(operation) for name, operation in {**SAME, **DOUBLE}.items()},
    "erf": _erf,
    "round": _round,
    "clamp": _clamp,
    "compare": _compare,
    "select": lambda step: step.writer.select(*step.tensors),
    "is_finite": lambda step: step.writer.is_finite(step.x),
    "convert": _convert,
    "bitcast": lambda step: step.writer.bitcast(step.x, element_of(step.attr("dtype"))),
}
