"""ATen operations on elements and reductions: rules by name, `torch_import.Call` → array."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from math import prod
from typing import Any

import torch

from ...ir.types import DType, Expr, boolean, f32, f64, i32, i64
from .arrays import Array, where
from .onnx_elementwise import celu, elu, hard_sigmoid, integer_power, leaky_relu, softplus, wide
from .onnx_reduce import log_softmax
from .torch_import import OF_TORCH, TO_TORCH, Call, Rule


def operand(c: Call, name: str, dtype: DType) -> Array:
    """A tensor or number as an array of this dtype."""
    value = getattr(c, name)
    if isinstance(value, Array):
        return value.astype(dtype)
    return c.body.dim(value).astype(dtype) if isinstance(value, Expr) else c.body.constant(value, dtype)


def common(c: Call, *names: str) -> DType:
    """The dtype that torch computes these operands in."""
    dtype = reduce(_result_type, [c.meta(n) for n in names])
    return OF_TORCH[dtype if isinstance(dtype, torch.dtype) else torch.result_type(dtype, dtype)]


def _result_type(a: Any, b: Any) -> Any:
    plain = [torch.empty((), dtype=x) if isinstance(x, torch.dtype) else x for x in (a, b)]
    a, b = (1 if isinstance(x, torch.SymInt) else 1.0 if isinstance(x, torch.SymFloat) else x for x in plain)
    return torch.result_type(a, b)


def floating(c: Call, x: Array) -> Array:
    """Integers in the float dtype of the result."""
    return x if x.dtype.is_float else x.astype(c.dtype)


def op_of(name: str) -> Callable[[Array], Array]:
    return lambda x: x.unary(name)


def unary(op: str) -> Rule:
    return lambda c: wide(c.self, op_of(op))


def float_unary(function: Callable[[Array], Array]) -> Rule:
    return lambda c: wide(floating(c, c.self), function)


OF_TRUTH = {"mul": "and", "add": "or", "max": "or", "min": "and"}  # what operations on numbers are on truth values


def binary(op: str) -> Rule:
    """Both operands in the dtype of the result."""

    def rule(c: Call) -> Array:
        dtype = c.dtype
        if dtype == boolean and op in OF_TRUTH:
            return operand(c, "self", dtype)._with(OF_TRUTH[op], operand(c, "other", dtype))
        other = operand(c, "other", dtype)
        if (alpha := c.get("alpha", 1)) != 1:
            other = other * alpha
        return operand(c, "self", dtype)._with(op, other)

    return rule


def compare(direction: str) -> Rule:
    def rule(c: Call) -> Array:
        dtype = common(c, "self", "other")
        return operand(c, "self", dtype).compare(direction, operand(c, "other", dtype))

    return rule


def logical(op: str) -> Rule:
    return lambda c: _truth(c.self)._with(op, _truth(c.other))


def _truth(x: Array) -> Array:
    return x if x.dtype == boolean else x.compare("ne", 0)


def rsub(c: Call) -> Array:
    x = operand(c, "self", c.dtype)
    x = x * c.alpha if c.get("alpha", 1) != 1 else x
    return operand(c, "other", c.dtype) - x


def divide(c: Call) -> Array:
    mode = c.get("rounding_mode")
    a, b = operand(c, "self", c.dtype), operand(c, "other", c.dtype)
    if mode is None:
        return a / b
    if not c.dtype.is_float:
        return a / b if mode == "trunc" else a.floordiv(b)
    return wide(a, lambda a: truncated(a / b.astype(a.dtype)) if mode == "trunc" else _floor_divide(a, b))


def _floor_divide(a: Array, b: Array) -> Array:
    """As Python: (a - a mod b) / b, rounded."""
    b = b.astype(a.dtype)
    rest = _modulo(a, b)
    return ((a - rest) / b).unary("round", mode="even")


def truncated(x: Array) -> Array:
    return where(x < 0, x.ceil(), x.floor())


def _modulo(a: Array, b: Array) -> Array:
    rest = a.rem(b)
    zero = rest.compare("eq", 0)
    wrong = ~zero & (rest < 0).compare("ne", b.broadcast_to(rest.shape) < 0)
    return where(wrong, rest + b, rest)


def remainder(c: Call) -> Array:
    a, b = operand(c, "self", c.dtype), operand(c, "other", c.dtype)
    return _modulo(a, b)


def power(c: Call) -> Array:
    exponent = c.exponent
    if isinstance(exponent, (int, float)) and isinstance(c.self, Array):
        x = c.self if c.self.dtype == c.dtype else c.self.astype(c.dtype)
        small: dict[float, Callable[[Array], Array]] = {
            0: lambda x: x * 0 + 1, 1: lambda x: x, 2: lambda x: x * x, 3: lambda x: x * x * x, 0.5: Array.sqrt,
            -0.5: lambda x: x.unary("rsqrt"), -1: lambda x: 1 / x, -2: lambda x: 1 / (x * x),
        }  # fmt: skip
        if exponent in small and (x.dtype.is_float or exponent in (1, 2, 3)):
            return wide(x, small[exponent])
        if not x.dtype.is_float:
            return integer_power(x, c.body.constant(exponent, x.dtype))
    a, b = operand(c, "self", c.dtype), operand(c, "exponent", c.dtype)
    if not c.dtype.is_float:
        return integer_power(a, b)
    return wide(a, lambda a: a._with("pow", b.astype(a.dtype)))


def clamp(c: Call) -> Array:
    x = operand(c, "self", c.dtype)
    x = x if c.get("min") is None else x.maximum(operand(c, "min", c.dtype))
    return x if c.get("max") is None else x.minimum(operand(c, "max", c.dtype))


def hardtanh(c: Call) -> Array:
    return c.self.maximum(c.min_val).minimum(c.max_val)


def where_(c: Call) -> Array:
    return where(_truth(c.condition), operand(c, "self", c.dtype), operand(c, "other", c.dtype))


def masked_fill(c: Call) -> Array:
    return where(c.mask, operand(c, "value", c.dtype).reshape(()), c.self)


def elu_(c: Call) -> Array:
    scale, inner, alpha = (c.get(n, 1) for n in ("scale", "input_scale", "alpha"))
    return wide(c.self, lambda x: where(x > 0, x * scale, (x * inner).unary("expm1") * (alpha * scale)))


def gelu(c: Call) -> Array:
    name = "gelu_tanh" if c.get("approximate") == "tanh" else "gelu"
    if c.self.dtype == f64:
        x = c.self
        inner = (x * math.sqrt(0.5)).unary("erf")
        if name == "gelu_tanh":
            inner = (math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)).tanh()
        return 0.5 * x * (1 + inner)
    return wide(c.self, lambda x: x.unary(name))


def silu(c: Call) -> Array:
    return wide(c.self, lambda x: x * x.logistic() if x.dtype == f64 else x.unary("silu"))


def softplus_(c: Call) -> Array:
    beta, threshold = c.get("beta", 1), c.get("threshold", 20)
    return wide(c.self, lambda x: where(x * beta > threshold, x, softplus(x * beta) / beta))


def to_copy(c: Call) -> Array:
    return c.self.astype(c.dtype)


def copy(c: Call) -> Array:
    return c.src.astype(c.dtype).broadcast_to(c.shape)


def sign(c: Call) -> Array:
    x = c.self
    if x.dtype == boolean:
        return x
    return (x > 0).astype(x.dtype) if x.dtype.name[0] == "u" else x.unary("sign")


def absolute(c: Call) -> Array:
    return c.self if c.self.dtype.name[0] in "ub" and c.self.dtype.name != "bf16" else c.self.abs()


def round_(c: Call) -> Array:
    if not c.self.dtype.is_float:
        return c.self
    decimals = c.get("decimals", 0)
    scale = 10.0**decimals
    if decimals == 0:
        return wide(c.self, lambda x: x.unary("round", mode="even"))
    return wide(c.self, lambda x: (x * scale).unary("round", mode="even") / scale)


def whole(function: Callable[[Array], Array]) -> Rule:
    """A rounding, which leaves integers as they are."""
    return lambda c: wide(c.self, function) if c.self.dtype.is_float else c.self


# --- Reductions ---


def axes_of(c: Call, name: str = "dim") -> list[int]:
    """The axes that are reduced: all where none are named."""
    given = c.get(name)
    given = [given] if isinstance(given, int) else given
    return [a % max(c.self.rank, 1) for a in given] if given else list(range(c.self.rank))


def reduction(kind: str) -> Rule:
    def rule(c: Call) -> Array:
        x = c.self.astype(c.dtype)
        axes = axes_of(c) if c.self.rank else []
        return wide(x, lambda x: x.reduce(kind, axes, bool(c.get("keepdim", False))))

    return rule


def _count(x: Array, axes: list[int], correction: float = 0) -> Array:
    count = x.body.dim(prod(x.shape[a] for a in axes), x.dtype)
    return (count - correction).maximum(0) if correction else count


def mean(c: Call) -> Array:
    axes = axes_of(c) if c.self.rank else []
    x = c.self.astype(c.dtype)
    return wide(x, lambda x: x.reduce("sum", axes, bool(c.get("keepdim", False))) / _count(x, axes))


def variance(c: Call) -> Array:
    axes = axes_of(c) if c.self.rank else []
    correction = c.get("correction", 1 if c.get("unbiased", True) else 0)

    def compute(x: Array) -> Array:
        centred = x - x.reduce("sum", axes, True) / _count(x, axes)
        total = (centred * centred).reduce("sum", axes, bool(c.get("keepdim", False)))
        return total / _count(x, axes, correction)

    return wide(c.self, compute)


def variance_and_mean(c: Call) -> tuple[Array, Array]:
    return variance(c), mean(c)


def any_(c: Call) -> Array:
    return _truth(c.self).reduce("or", axes_of(c) if c.self.rank else [], bool(c.get("keepdim", False)))


def all_(c: Call) -> Array:
    return _truth(c.self).reduce("and", axes_of(c) if c.self.rank else [], bool(c.get("keepdim", False)))


def arg(op: str) -> Rule:
    def rule(c: Call) -> Array:
        x = c.self
        if c.get("dim") is None:
            found = x.reshape(-1).unary(op, axis=0, dtype=i64)
            return found.reshape([1] * x.rank) if c.get("keepdim", False) else found
        if not x.rank:
            return c.body.constant(0, i64)
        axis = c.dim % x.rank
        found = x.unary(op, axis=axis, dtype=i64)
        return found.unsqueeze(axis) if c.get("keepdim", False) else found

    return rule


def extreme(kind: str) -> Rule:
    """Values and indices along an axis."""

    def rule(c: Call) -> tuple[Array, Array]:
        x, keep = c.self, c.get("keepdim", False)
        if not x.rank:
            return x, c.body.constant(0, i64)
        axis = c.dim % x.rank
        found = x.unary(f"arg{kind}", axis=axis, dtype=i64)
        return x.reduce(kind, [axis], keep), found.unsqueeze(axis) if keep else found

    return rule


def running(op: str) -> Rule:
    return lambda c: c.self.astype(c.dtype).unary(op, axis=c.dim % c.self.rank) if c.self.rank else c.self


def top_k(c: Call) -> tuple[Array, Array]:
    x = c.self
    axis = c.get("dim", -1) % x.rank
    moved = x.moveaxis(axis, -1)
    if c.get("largest", True):
        values, indices = c.body.apply_all("top_k", moved, k=c.k)
    else:
        values, indices = (a.slice(-1, 0, c.k) for a in _sorted(moved, False))
    return values.moveaxis(-1, axis), indices.astype(i64).moveaxis(-1, axis)


def _sorted(x: Array, descending: bool) -> tuple[Array, Array]:
    """A stable order of the last axis."""
    axis = x.rank - 1
    x = x.reverse(axis) if descending else x
    values, order = x.body.apply_all("sort", x, x.body.iota(x.shape, axis, i32), axis=axis, keys=1)
    if descending:  # the last of equals first, turned round once more
        values, order = values.reverse(axis), x.body.dim(x.shape[axis], i32) - 1 - order.reverse(axis)
    return values, order


def sort(c: Call) -> tuple[Array, Array]:
    if not c.self.rank:
        return c.self, c.body.constant(0, i64)
    axis = c.get("dim", -1) % c.self.rank
    values, order = _sorted(c.self.moveaxis(axis, -1), bool(c.get("descending", False)))
    return values.moveaxis(-1, axis), order.astype(i64).moveaxis(-1, axis)


def softmax(c: Call) -> Array:
    x = c.self.astype(c.dtype)
    return x.softmax(c.dim % x.rank) if x.rank else x * 0 + 1


def log_softmax_(c: Call) -> Array:
    x = c.self.astype(c.dtype)
    return log_softmax(x, c.dim % x.rank) if x.rank else x * 0


def log_sum_exp(c: Call) -> Array:
    axes = axes_of(c)

    def compute(x: Array) -> Array:
        highest = x.reduce("max", axes, True)
        shift = where(highest.unary("is_finite"), highest, highest.like(0.0))
        total = (x - shift).exp().reduce("sum", axes, True).log() + shift
        return total if c.get("keepdim", False) else total.squeeze(*axes)

    return wide(floating(c, c.self), compute)


def norm(c: Call) -> Array:
    axes, keep = axes_of(c) if c.self.rank else [], bool(c.get("keepdim", False))
    return wide(c.self.astype(c.dtype), lambda x: norm_of(x, c.get("ord", c.get("p", 2)), axes, keep))


def norm_of(x: Array, order: float, axes: list[int], keep: bool) -> Array:
    """‖x‖ of an order over axes."""
    if order == 2:
        return (x * x).reduce("sum", axes, keep).sqrt()
    if order == 1:
        return x.abs().reduce("sum", axes, keep)
    if order == 0:
        return x.compare("ne", 0).astype(x.dtype).reduce("sum", axes, keep)
    if math.isinf(order):
        return x.abs().reduce("max" if order > 0 else "min", axes, keep)
    return x.abs()._with("pow", float(order)).reduce("sum", axes, keep)._with("pow", 1 / order)


def ignoring_nan(op: str) -> Rule:
    """The other operand where one is NaN."""

    def rule(c: Call) -> Array:
        a, b = operand(c, "self", c.dtype), operand(c, "other", c.dtype)
        best = a._with(op, b)
        return where(a.compare("ne", a), b, where(b.compare("ne", b), a, best))

    return rule


def copysign(c: Call) -> Array:
    x, y = operand(c, "self", c.dtype).abs(), operand(c, "other", c.dtype)
    negative = (y < 0) | (1 / y).compare("eq", -math.inf)  # -0 has a sign too
    return where(negative, -x, x)


def hypot(c: Call) -> Array:
    a, b = operand(c, "self", c.dtype).abs(), operand(c, "other", c.dtype).abs()
    most, least = a.maximum(b), a.minimum(b)
    ratio = where(most.compare("eq", 0), most, least / most)
    return most * (1 + ratio * ratio).sqrt()


FLOATING = (
    "exp exp2 expm1 log log1p tanh erf erfc sin cos tan asin acos atan sinh cosh asinh acosh atanh sqrt rsqrt"
).split()
ELEMENTWISE: Mapping[str, Rule] = {
    **{n: float_unary(op_of(n)) for n in FLOATING},
    **{n: whole(op_of(n)) for n in ("floor", "ceil")},
    **{n: compare(n) for n in "eq ne lt le gt ge".split()},
    **{f"logical_{n}": logical(n) for n in ("and", "or", "xor")},
    **{f"bitwise_{n}": binary(n) for n in ("and", "or", "xor")},
    "trunc": whole(truncated), "fix": whole(truncated), "frac": whole(lambda x: x - truncated(x)),
    "sigmoid": float_unary(Array.logistic), "neg": unary("neg"), "bitwise_not": unary("not"),
    "log2": float_unary(lambda x: x.log() * (1 / math.log(2))),
    "log10": float_unary(lambda x: x.log() * (1 / math.log(10))),
    "reciprocal": float_unary(lambda x: 1 / x), "square": lambda c: c.self * c.self,
    "sign": sign, "abs": absolute, "round": round_, "relu": lambda c: c.self.maximum(0), "logical_not":
    lambda c: ~_truth(c.self), "isnan": lambda c: c.self.compare("ne", c.self),
    "isinf": lambda c: c.self.abs().compare("eq", math.inf) if c.self.dtype.is_float else c.self.compare("ne", c.self),
    "isfinite": lambda c: c.self.unary("is_finite") if c.self.dtype.is_float else c.self.compare("eq", c.self),
    "add": binary("add"), "sub": binary("sub"), "mul": binary("mul"), "maximum": binary("max"),
    "minimum": binary("min"), "fmod": binary("rem"), "rsub": rsub, "div": divide, "true_divide": divide,
    "floor_divide": lambda c: c.self.floordiv(operand(c, "other", c.dtype)), "remainder": remainder, "pow": power,
    "bitwise_left_shift": binary("shift_left"), "bitwise_right_shift": binary("shift_right_arithmetic"),
    "__lshift__": binary("shift_left"), "__rshift__": binary("shift_right_arithmetic"),
    "atan2": binary("atan2"),
    "fmax": ignoring_nan("max"), "fmin": ignoring_nan("min"), "copysign": copysign, "hypot": hypot,
    "ldexp": lambda c: operand(c, "self", c.dtype) * operand(c, "other", c.dtype).unary("exp2"),
    "clamp": clamp, "clamp_min": clamp, "clamp_max": clamp, "hardtanh": hardtanh, "where": where_,
    "masked_fill": masked_fill, "elu": elu_, "gelu": gelu, "silu": silu, "softplus": softplus_,
    "relu6": lambda c: c.self.maximum(0).minimum(6),
    "leaky_relu": lambda c: wide(c.self, lambda x: leaky_relu(x, c.get("negative_slope", 0.01))),
    "celu": lambda c: wide(c.self, lambda x: celu(x, c.get("alpha", 1.0))),
    "selu": lambda c: wide(c.self, lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772)),
    "hardsigmoid": lambda c: wide(c.self, lambda x: hard_sigmoid(x, 1 / 6, 0.5)),
    "hardswish": lambda c: wide(c.self, lambda x: x * hard_sigmoid(x, 1 / 6, 0.5)),
    "mish": lambda c: wide(c.self, lambda x: x * softplus(x).tanh()),
    "log_sigmoid_forward": lambda c: (wide(c.self, lambda x: -softplus(-x)), c.self),
    "_to_copy": to_copy, "copy": copy,
    "sum": reduction("sum"), "prod": reduction("prod"), "amax": reduction("max"), "amin": reduction("min"),
    "mean": mean, "var": variance,
    "var_mean": variance_and_mean, "any": any_, "all": all_, "argmax": arg("argmax"), "argmin": arg("argmin"),
    "max.dim": extreme("max"), "min.dim": extreme("min"), "max": reduction("max"), "min": reduction("min"),
    "cumsum": running("cumsum"), "cumprod": running("cumprod"), "topk": top_k, "sort": sort,
    "_softmax": softmax, "softmax": softmax, "_log_softmax": log_softmax_, "log_softmax": log_softmax_,
    "logsumexp": log_sum_exp, "linalg_vector_norm": norm,
}  # fmt: skip

__all__ = ["ELEMENTWISE", "TO_TORCH", "f32"]
