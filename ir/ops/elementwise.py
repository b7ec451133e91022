"""Ops on equal shapes, one element at a time. NumPy gives the exact ones, `ir.numerics` the transcendental ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..graph import REQUIRED, Op
from ..numerics import elementary
from ..numerics.elementary import maximum, minimum
from ..types import Type, boolean, f64, numpy_dtype
from .common import Arrays, Types, expect, in_f32, kind_of, moves, narrow, plain, same, widen

DIRECTIONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def _infer(arity: int, *kinds: str) -> Callable[..., Types]:
    """Typing of an op whose `arity` operands and one result have one type, of one of these kinds."""

    def infer(*types: Type, **_: Any) -> Types:
        expect(len(types) == arity, f"takes {arity} operands, not {len(types)}")
        same(*types)
        expect(kind_of(types[0].dtype) in kinds, f"takes {' or '.join(kinds)}, not {types[0].dtype}")
        return types[:1]

    return infer


def _infer_compare(a: Type, b: Type, *, direction: str) -> Types:
    same(a, b)
    expect(direction in DIRECTIONS, f"direction must be one of {', '.join(DIRECTIONS)}, not {direction!r}")
    return (Type(a.shape, boolean),)


def _infer_select(pred: Type, on_true: Type, on_false: Type) -> Types:
    same(on_true, on_false)
    expect(pred == Type(on_true.shape, boolean), f"the condition must be {Type(on_true.shape, boolean)}, not {pred}")
    return (on_true,)


def _infer_is_finite(x: Type) -> Types:
    plain(x)
    expect(x.dtype.is_float, f"takes float, not {x.dtype}")
    return (Type(x.shape, boolean),)


def _infer_round(x: Type, *, mode: str) -> Types:
    expect(mode in ("even", "away"), f"mode must be even or away, not {mode!r}")
    return _infer(1, "float")(x)


def _infer_convert(x: Type, *, dtype: Any) -> Types:
    plain(x)
    expect(not dtype.is_block, f"{dtype} is made by quantize, not by convert")
    return (Type(x.shape, dtype),)


def _infer_bitcast(x: Type, *, dtype: Any) -> Types:
    plain(x)
    expect(dtype.block_bytes == x.dtype.block_bytes and not dtype.is_block, f"{dtype} and {x.dtype} differ in size")
    return (Type(x.shape, dtype),)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IEEE for floats. Integers truncate toward zero; x / 0 is -1 and the lowest value / -1 is itself, as in XLA."""
    if a.dtype.kind == "f":
        return a / b
    safe = np.where(b == 0, 1, b).astype(a.dtype)
    quotient = a // safe
    quotient += ((a % safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    if a.dtype.kind == "i":
        quotient = np.where(safe == -1, -a, quotient)
    return np.where(b == 0, np.array(-1).astype(a.dtype), quotient)


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The remainder with the sign of `a`; for integers x rem 0 is x, as in XLA."""
    if a.dtype.kind == "f":
        return np.fmod(a, b)
    safe = np.where((b == 0) | (b == np.array(-1).astype(b.dtype)) & (a.dtype.kind == "i"), 1, b).astype(a.dtype)
    return np.where(b == 0, a, np.fmod(a, safe))


def _shift(function: Callable[..., np.ndarray], kind: str, keeps_sign: bool = False) -> Callable[..., Any]:
    """A shift of `x` seen as integers of `kind` "u" or "i", by any amount: `bits` and more give zero, or the sign."""

    def shift(x: np.ndarray, amount: np.ndarray) -> np.ndarray:
        bits = x.dtype.itemsize * 8
        outside = (amount < 0) | (amount >= bits)
        view = x.view(f"{kind}{x.dtype.itemsize}")
        shifted = function(view, np.where(outside, 0, amount).astype(view.dtype))
        return np.where(outside, function(view, view.dtype.type(bits - 1)) if keeps_sign else 0, shifted).view(x.dtype)

    return shift


def _round(x: np.ndarray, *, mode: str) -> np.ndarray:
    return np.rint(x) if mode == "even" else np.copysign(np.floor(np.abs(x) + (np.abs(x) % 1 >= 0.5) * 0.5), x)


def _numeric(name: str, wide: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The function of `numerics.elementary` for f32, to the bit; `wide` for f64, to an ulp or so."""
    specified = getattr(elementary, name)
    return lambda *arrays: (wide if arrays[0].dtype == np.float64 else specified)(*arrays)


def _compare(types: Types, a: np.ndarray, b: np.ndarray, *, direction: str) -> Arrays:
    return (DIRECTIONS[direction](*(widen(x, t.dtype) for x, t in zip((a, b), types))),)


def _select(types: Types, pred: np.ndarray, on_true: np.ndarray, on_false: np.ndarray) -> Arrays:
    return (np.where(pred, on_true, on_false),)


def _convert(types: Types, x: np.ndarray, *, dtype: Any) -> Arrays:
    """Floats round to nearest even; float to integer truncates and saturates, NaN is 0; integers wrap."""
    x = widen(x, types[0].dtype)
    if dtype.is_float:
        return (narrow(x if x.dtype == np.float64 and dtype == f64 else _to_f32(x, dtype), dtype),)
    target = numpy_dtype(dtype)
    if x.dtype.kind != "f" or dtype == boolean:
        return (x.astype(target),)
    limits = np.iinfo(target)
    wide = np.trunc(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf))
    low, high = wide <= limits.min, wide >= float(limits.max)
    inside = np.where(low | high, 0, wide).astype(target)
    return (np.where(low, limits.min, np.where(high, limits.max, inside)).astype(target),)


def _to_f32(x: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(np.float64 if dtype == f64 else np.float32)


def _op(name: str, arity: int, kinds: str, function: Callable[..., np.ndarray], **rest: Any) -> Op:
    return Op(name, _infer(arity, *kinds.split()), in_f32(function), **rest)


NUMBER, FLOAT, INT, BITS = "float int", "float", "int", "int bool"

def _sign(x: np.ndarray) -> np.ndarray:
    return np.where(x == 0, x, np.sign(x))  # keeps -0.0


ELEMENTWISE = (
    _op("add", 2, NUMBER, np.add, commutative=True),
    _op("sub", 2, NUMBER, np.subtract),
    _op("mul", 2, NUMBER, np.multiply, commutative=True),
    _op("div", 2, NUMBER, _divide),
    _op("rem", 2, NUMBER, _remainder),
    _op("max", 2, "float int bool", maximum),
    _op("min", 2, "float int bool", minimum),
    _op("pow", 2, FLOAT, _numeric("pow", np.power)),
    _op("neg", 1, NUMBER, np.negative),
    _op("abs", 1, NUMBER, np.abs),
    _op("sign", 1, NUMBER, _sign),
    _op("floor", 1, FLOAT, np.floor),
    _op("ceil", 1, FLOAT, np.ceil),
    Op("round", _infer_round, in_f32(_round), attributes=(("mode", "even"),)),
    _op("sqrt", 1, FLOAT, np.sqrt),
    _op("rsqrt", 1, FLOAT, _numeric("rsqrt", lambda x: 1 / np.sqrt(x))),
    _op("exp", 1, FLOAT, _numeric("exp", np.exp)),
    _op("expm1", 1, FLOAT, _numeric("expm1", np.expm1)),
    _op("log", 1, FLOAT, _numeric("log", np.log)),
    _op("log1p", 1, FLOAT, _numeric("log1p", np.log1p)),
    _op("tanh", 1, FLOAT, _numeric("tanh", np.tanh)),
    _op("logistic", 1, FLOAT, _numeric("logistic", lambda x: 1 / (1 + np.exp(-x)))),
    _op("erf", 1, FLOAT, _numeric("erf", np.vectorize(math.erf, otypes=[np.float64]))),
    _op("sin", 1, FLOAT, _numeric("sin", np.sin)),
    _op("cos", 1, FLOAT, _numeric("cos", np.cos)),
    _op("not", 1, BITS, np.invert),
    _op("and", 2, BITS, np.bitwise_and, commutative=True),
    _op("or", 2, BITS, np.bitwise_or, commutative=True),
    _op("xor", 2, BITS, np.bitwise_xor, commutative=True),
    _op("shift_left", 2, INT, _shift(np.left_shift, "u")),
    _op("shift_right_logical", 2, INT, _shift(np.right_shift, "u")),
    _op("shift_right_arithmetic", 2, INT, _shift(np.right_shift, "i", keeps_sign=True)),
    _op("clamp", 3, NUMBER, lambda low, x, high: minimum(maximum(x, low), high)),
    Op("compare", _infer_compare, _compare, attributes=(("direction", REQUIRED),)),
    Op("select", _infer_select, _select),
    Op("is_finite", _infer_is_finite, lambda types, x: (np.isfinite(widen(x, types[0].dtype)),)),
    Op("convert", _infer_convert, _convert, attributes=(("dtype", REQUIRED),)),
    Op("bitcast", _infer_bitcast, moves(lambda x, dtype: x.view(numpy_dtype(dtype))),
       attributes=(("dtype", REQUIRED),)),
)  # fmt: skip
