"""ONNX operators on elements: a rule for each, as `onnx_import.Call` → array."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np

from ...ir.types import DType, boolean, f32, f64, i32
from .arrays import Array, together, where
from .onnx_import import Call, Rule, dtype_named, dtype_of_tensor

SAME = {
    "Abs": "abs", "Neg": "neg", "Sign": "sign", "Floor": "floor", "Ceil": "ceil", "Sqrt": "sqrt", "Exp": "exp",
    "Log": "log", "Tanh": "tanh", "Sigmoid": "logistic", "Erf": "erf", "Sin": "sin", "Cos": "cos", "Not": "not",
    "BitwiseNot": "not", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh",
    "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh",
}  # fmt: skip
PAIRS = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "And": "and", "Or": "or", "Xor": "xor", "BitwiseAnd": "and",
    "BitwiseOr": "or", "BitwiseXor": "xor", "Max": "max", "Min": "min", "Sum": "add",
}  # fmt: skip
COMPARISONS = {"Equal": "eq", "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge"}


def same(op: str) -> Rule:
    return lambda c: wide(c.x(), lambda x: x.unary(op))


def pairwise(op: str) -> Rule:
    """Operands broadcast; more than two are combined from the left."""
    return lambda c: reduce(lambda a, b: a._with(op, b), c.xs())


def compared(direction: str) -> Rule:
    return lambda c: c.x(0).compare(direction, c.x(1))


def wide(x: Array, function: Callable[[Array], Array]) -> Array:
    """Half floats in f32, rounded once at the end."""
    return function(x.astype(f32)).astype(x.dtype) if x.dtype.name in ("f16", "bf16") else function(x)


def elementwise(function: Callable[..., Array], **attributes: Any) -> Rule:
    """`function(x, attribute values…)`; the attributes' names with what they are where the schema has no default."""

    def rule(c: Call) -> Array:
        values = {name: c.attr(name, default) for name, default in attributes.items()}
        return wide(c.x(), lambda x: function(x, **values))

    return rule


def softplus(x: Array) -> Array:
    """log(1 + e^x), without overflow."""
    return x.maximum(0) + (-x.abs()).exp().unary("log1p")


def elu(x: Array, alpha: float) -> Array:
    return where(x < 0, alpha * x.unary("expm1"), x)


def selu(x: Array, alpha: float, gamma: float) -> Array:
    return gamma * where(x > 0, x, alpha * x.exp() - alpha)


def celu(x: Array, alpha: float) -> Array:
    return x.maximum(0) + (alpha * (x / alpha).unary("expm1")).minimum(0)


def gelu(c: Call) -> Array:
    op = "gelu_tanh" if c.attr("approximate") == "tanh" else "gelu"
    x = c.x()
    if x.dtype == f64:
        inner = (x * math.sqrt(0.5)).unary("erf")
        if op == "gelu_tanh":
            inner = (math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)).tanh()
        return 0.5 * x * (1 + inner)
    return wide(x, lambda x: x.unary(op))


def silu(x: Array, alpha: float = 1.0) -> Array:
    if x.dtype == f32 and alpha == 1.0:
        return x.unary("silu")
    return x * (alpha * x).logistic()


def hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    return (alpha * x + beta).maximum(0).minimum(1)


def shrink(c: Call) -> Array:
    x, bias, lambd = c.x(), c.attr("bias"), c.attr("lambd")
    integral = not x.dtype.is_float
    y = x.astype(f32) if integral else x
    zero = y.like(0.0)
    return where(y < -lambd, y + bias, where(y > lambd, y - bias, zero)).astype(x.dtype)


def clip(c: Call) -> Array:
    x = c.x()
    if c.version < 11:
        low, high = c.attr("min"), c.attr("max")
        bounded = x if low is None else x.maximum(low)
        return bounded if high is None else bounded.minimum(high)
    low, high = c.optional(1), c.optional(2)
    x = x if low is None else x.maximum(low)
    return x if high is None else x.minimum(high)


def leaky_relu(x: Array, alpha: float) -> Array:
    return where(x < 0, alpha * x, x)


def prelu(c: Call) -> Array:
    x, slope = c.x(0), c.x(1)
    if c.version < 7 and slope.rank == 1 and slope.shape != (1,):
        slope = slope.expand(x.shape, (1,))  # a number per channel
    slope = slope.broadcast_to(x.shape)
    return where(x < 0, slope * x, x)


def power(c: Call) -> Array:
    """The result has the base's type; integers by f64 where the exponent is not known."""
    x, y = c.x(0), c.x(1)
    known = c.maybe(1)
    if known is not None and known.size == 1 and float(known.reshape(-1)[0]) in (2.0, 3.0, 0.5, 1.0):
        exponent = float(known.reshape(-1)[0])
        if exponent == 1.0:
            return x
        if exponent == 0.5 and x.dtype.is_float:
            return x.sqrt()
        if exponent in (2.0, 3.0):
            return x * x if exponent == 2.0 else x * x * x
    if x.dtype.is_float and x.dtype != f64:
        return x.astype(f32)._with("pow", y.astype(f32)).astype(x.dtype)
    if x.dtype.is_integer and not y.dtype.is_float:
        return integer_power(x, y)
    result = x.astype(f32)._with("pow", y.astype(f32)) if x.dtype.is_integer else x._with("pow", y.astype(f64))
    return (result + 0.5).floor().astype(x.dtype) if x.dtype.is_integer else result


def integer_power(x: Array, y: Array) -> Array:
    """x^y in integers by squaring: a factor for each bit of the exponent, which is below 64."""
    x, y = together(x, y.astype(x.dtype))
    result, factor = x.like(1).broadcast_to(x.shape), x
    for bit in range(6):
        set_ = (y.astype(i32).unary("abs") & y.body.constant(1 << bit, i32).broadcast_to(y.shape)) > 0
        result = where(set_, result * factor, result)
        factor = factor * factor
    return result


def modulo(c: Call) -> Array:
    """With fmod the sign of the dividend, else that of the divisor."""
    a, b = together(c.x(0), c.x(1))
    rest = a.rem(b)
    if c.attr("fmod"):
        return rest
    wrong = rest.compare("ne", 0) & (rest < 0).compare("ne", b < 0)
    return where(wrong, rest + b, rest)




def mean(c: Call) -> Array:
    return reduce(lambda a, b: a + b, c.xs()) / float(len(c.operands))


def bit_shift(c: Call) -> Array:
    """To the right, signed numbers keep their sign."""
    signed = c.x(0).dtype.name[0] == "i"
    right = "shift_right_arithmetic" if signed else "shift_right_logical"
    op = "shift_left" if c.attr("direction") == "LEFT" else right
    return c.x(0)._with(op, c.x(1))


def is_nan(c: Call) -> Array:
    return c.x().compare("ne", c.x())


def is_inf(c: Call) -> Array:
    x = c.x()
    wanted = [(x.compare("eq", v)) for v, name in ((math.inf, "detect_positive"), (-math.inf, "detect_negative"))
              if c.attr(name)]  # fmt: skip
    if not wanted:
        return c.body.full(x.shape, False, boolean)
    return reduce(lambda a, b: a | b, wanted)


def cast(c: Call) -> Array:
    return converted(c.x(), dtype_named(c.attr("to"), c.where))


def cast_like(c: Call) -> Array:
    operand = c.operands[1]
    assert operand is not None
    return converted(c.x(), dtype_of_tensor(operand))


def converted(x: Array, dtype: DType) -> Array:
    """Floats become integers by truncation; f64 becomes a half float by f32."""
    return x.astype(dtype)


def bit_cast(c: Call) -> Array:
    return c.x().unary("bitcast", dtype=dtype_named(c.attr("to"), c.where))


def where_(c: Call) -> Array:
    return where(c.x(0), c.x(1), c.x(2))


def dropout(c: Call) -> tuple[Array, Array]:
    """At inference the identity. Raises InfercError for training."""
    x = c.x()
    if c.has(2):
        training = c.numbers(2)
        ratio = c.numbers(1) if c.has(1) else np.float32(0.5)
        if bool(training.reshape(-1)[0]) and float(np.asarray(ratio).reshape(-1)[0]) != 0:
            raise c.error("dropout in training mode is random; export the model for inference")
    return x, c.body.full(x.shape, True, boolean)


def round_(c: Call) -> Array:
    return c.x().unary("round", mode="even")




def softsign(x: Array) -> Array:
    return x / (1 + x.abs())


def absolute(c: Call) -> Array:
    x = c.x()
    return x if x.dtype.name[0] == "u" else x.abs()


def sign(c: Call) -> Array:
    x = c.x()
    if x.dtype.name[0] == "u":
        return (x > 0).astype(x.dtype)
    return x.unary("sign")






ELEMENTWISE: Mapping[str, Rule] = {
    **{name: same(op) for name, op in SAME.items()},
    **{name: pairwise(op) for name, op in PAIRS.items()},
    **{name: compared(direction) for name, direction in COMPARISONS.items()},
    "Abs": absolute, "Sign": sign,
    "Reciprocal": elementwise(lambda x: 1 / x),
    "Relu": elementwise(lambda x: x.maximum(0)),
    "Softplus": elementwise(softplus),
    "Softsign": elementwise(softsign),
    "LeakyRelu": elementwise(leaky_relu, alpha=None),
    "Elu": elementwise(elu, alpha=None),
    "Selu": elementwise(selu, alpha=None, gamma=None),
    "Celu": elementwise(celu, alpha=None),
    "ThresholdedRelu": elementwise(lambda x, alpha: where(x > alpha, x, x.like(0)), alpha=None),
    "HardSigmoid": elementwise(hard_sigmoid, alpha=None, beta=None),
    "HardSwish": elementwise(lambda x: x * hard_sigmoid(x, 1 / 6, 0.5)),
    "Mish": elementwise(lambda x: x * softplus(x).tanh()),
    "Swish": elementwise(silu, alpha=None),
    "Gelu": gelu, "Shrink": shrink, "Clip": clip, "PRelu": prelu, "Pow": power, "Mod": modulo, "Mean": mean,
    "BitShift": bit_shift, "IsNaN": is_nan, "IsInf": is_inf, "Cast": cast, "CastLike": cast_like, "BitCast": bit_cast,
    "Where": where_, "Dropout": dropout, "Round": round_,
}  # fmt: skip
