"""Sizes of torch and numbers that are computed from them: expressions of sympy → dimensions and scalars."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from math import prod
from operator import add, mul, sub, truediv
from typing import Any

import numpy as np
import sympy  # type: ignore[import-untyped]

from ...ir.graph import IRError, Value
from ...ir.types import Dim, array_dtype, dim_max, dim_min, f64, floordiv, mod
from .arrays import Array, Body

COMPUTE = "compute with tensors, without item() and tolist()"


def dim_of(size: Any, known: Mapping[str, Dim]) -> Dim:
    """A size, which may be an expression over torch's symbols. Raises IRError for an operation that sizes have not."""
    if isinstance(size, (int, np.integer)):
        return int(size)
    return _expression(size.node.expr, known)


def _expression(e: sympy.Expr, known: Mapping[str, Dim]) -> Dim:
    if e.is_Integer:
        return int(e)
    if e.is_Symbol:
        if str(e) not in known:
            raise IRError(f"{e} is a number that depends on the data; {COMPUTE}")
        return known[str(e)]
    name = type(e).__name__
    if name in ROUNDED:
        above, below = _fraction(e.args[0], known)
        return floordiv(above, below) if name != "CeilToInt" else -floordiv(-above, below)
    if e.is_Pow or name == "PowByNatural":
        if e.args[1].is_Integer and int(e.args[1]) > 0:
            return prod([_expression(e.args[0], known)] * int(e.args[1]))
    elif name in OF_SIZES:
        return OF_SIZES[name](*(_expression(a, known) for a in e.args))
    raise IRError(f"the size {e} is none that can be computed; give the dimension a fixed size")


ROUNDED = ("TruncToInt", "FloorToInt", "CeilToInt", "floor")  # sizes are never negative
OF_SIZES: Mapping[str, Callable[..., Dim]] = {
    "Add": lambda *args: reduce(add, args), "Mul": lambda *args: prod(args), "FloorDiv": floordiv,
    "CleanDiv": floordiv, "Mod": mod, "PythonMod": mod, "ModularIndexing": lambda a, b, c: mod(floordiv(a, b), c),
    "Max": lambda *args: reduce(dim_max, args), "Min": lambda *args: reduce(dim_min, args),
}  # fmt: skip


def _fraction(e: sympy.Expr, known: Mapping[str, Dim]) -> tuple[Dim, int]:
    """A float that is a size times or plus numbers, as a fraction."""
    name = type(e).__name__
    if e.is_Float or e.is_Rational:
        number = Fraction(float(e)).limit_denominator(1 << 12)
        return number.numerator, number.denominator
    if name == "ToFloat":
        return _expression(e.args[0], known), 1
    if name in ("Add", "Mul", "IntTrueDiv", "FloatTrueDiv"):
        (a, b), *rest = (_fraction(x, known) for x in e.args)
        for c, d in rest:
            if name == "Add":
                a, b = a * d + c * b, b * d
            elif name == "Mul":
                a, b = a * c, b * d
            elif isinstance(c, int) and c > 0:
                a, b = a * d, b * c
            else:
                raise IRError(f"the size {e} is none that can be computed; give the dimension a fixed size")
        return a, b
    return _expression(e, known), 1


def number_of(e: sympy.Expr, known: Mapping[str, Dim], body: Body) -> Array:
    """A float that is computed from sizes, as a scalar in f64, or a comparison of such. Raises IRError for a function
    that is not known."""
    if e.is_Float or e.is_Rational:
        return body.constant(float(e), f64)
    name = type(e).__name__
    if name in OF_NUMBERS:
        return reduce(OF_NUMBERS[name], (number_of(a, known, body) for a in e.args))
    if name == "Not":
        return ~number_of(e.args[0], known, body)
    if name.startswith("OpaqueUnaryFn_") and (op := name.removeprefix("OpaqueUnaryFn_")) in UNARY:
        return number_of(e.args[0], known, body).unary(op)
    return body.dim(_expression(e.args[0] if name == "ToFloat" else e, known), f64)


UNARY = ("sqrt", "exp", "log", "sin", "cos", "tanh")
OF_NUMBERS: Mapping[str, Callable[[Array, Array], Array]] = {
    "Add": add, "Mul": mul, "IntTrueDiv": truediv, "FloatTrueDiv": truediv,
    "Pow": lambda a, b: a.body.apply("pow", a, b), "FloatPow": lambda a, b: a.body.apply("pow", a, b),
    "Max": Array.maximum, "Min": Array.minimum, "And": Array.__and__, "Or": Array.__or__,
    "Equality": lambda a, b: a.compare("eq", b), "Unequality": lambda a, b: a.compare("ne", b),
    "LessThan": Array.__le__, "GreaterThan": Array.__ge__, "StrictLessThan": Array.__lt__,
    "StrictGreaterThan": Array.__gt__,
}  # fmt: skip


def size_in(value: Value) -> Dim:
    """The size that a scalar holds. Raises IRError for one that depends on data."""
    node = value.node
    if node.op.name == "constant" and value.dtype.is_integer:
        return int(np.frombuffer(node.attr("value"), array_dtype(value.type))[0])
    if node.op.name in ("reshape", "convert", "broadcast") and value.dtype.is_integer:
        return size_in(node.inputs[0])
    if node.op.name == "reduce" and node.attr("kind") == "sum" and node.inputs[0].node.op.name == "broadcast":
        (ones,) = node.inputs
        return prod(ones.shape[a] for a in node.attr("axes")) * size_in(ones.node.inputs[0])  # as `length` writes it
    if node.op.name in OF_SCALARS:
        return OF_SCALARS[node.op.name](*(size_in(v) for v in node.inputs))
    raise IRError("a number that depends on the data decides how the program goes on; compute with a tensor instead")


OF_SCALARS: Mapping[str, Callable[..., Dim]] = {"add": add, "sub": sub, "mul": mul, "min": dim_min, "max": dim_max}

# What Python computes with numbers that depend on the data, as scalars.
OF_PYTHON: Mapping[str, Callable[..., Array]] = {
    **{name: getattr(operator, name) for name in "add sub mul truediv neg lt le gt ge and_ or_".split()},
    **{name: (lambda a, b, n=name: a.compare(n, b)) for name in ("eq", "ne")}, "not": operator.invert,
    "floordiv": Array.floordiv, "mod": lambda a, b: a - a.floordiv(b) * b, "max": Array.maximum, "min": Array.minimum,
    "float": lambda a: a,
}  # fmt: skip
