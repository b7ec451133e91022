"""ONNX operators on values that are known while importing: what shapes are computed with, in NumPy.

Operands are arrays of numbers, or of Python objects where sizes may be expressions. A function gives None for what it
does not compute; then the operator is imported like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from ...ir.types import Expr, dim_max, dim_min, numpy_dtype
from .onnx_import import Call, dtype_named

Known = np.ndarray | None


def is_symbolic(x: np.ndarray) -> bool:
    return x.dtype == object and any(isinstance(d, Expr) for d in x.reshape(-1))


def settled(x: np.ndarray) -> np.ndarray:
    """Objects as int64 where all are numbers."""
    return x.astype(np.int64) if x.dtype == object and not is_symbolic(x) else x


def of_objects(function: Callable[[Any, Any], Any]) -> Callable[..., Known]:
    """A function of two dimensions, elementwise with broadcasting."""

    def fold(c: Call, *operands: np.ndarray) -> Known:
        if any(x.dtype.kind not in "iO" for x in operands):
            return None
        wide = [x.astype(object) for x in operands]
        return np.asarray(settled(np.asarray(reduce(np.frompyfunc(function, 2, 1), wide), dtype=object)))

    return fold


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else -1
    return a // b


def _cast(c: Call, x: np.ndarray) -> Known:
    dtype = dtype_named(c.attr("to"), c.where)
    if x.dtype == object:
        return x if dtype.name in ("i64", "i32") else None
    if x.dtype.kind in "iub" and dtype.numpy and dtype.is_integer and x.size <= 64:
        return x.astype(numpy_dtype(dtype))
    return None


def _ints(x: np.ndarray) -> list[int] | None:
    return None if is_symbolic(x) else [int(v) for v in x.reshape(-1)]


def _axes(c: Call, operands: tuple[Known, ...]) -> list[int] | None:
    if len(operands) > 1 and operands[1] is not None:
        return _ints(operands[1])
    return c.attr("axes")


def _squeeze(c: Call, x: np.ndarray, *rest: Known) -> Known:
    axes = _axes(c, (x, *rest))
    return np.squeeze(x) if axes is None else np.squeeze(x, tuple(axes))


def _unsqueeze(c: Call, x: np.ndarray, *rest: Known) -> Known:
    axes = _axes(c, (x, *rest))
    return None if axes is None else np.expand_dims(x, tuple(axes))


def _gather(c: Call, x: np.ndarray, indices: np.ndarray) -> Known:
    chosen = _ints(indices)
    if chosen is None or any(not -x.shape[c.attr("axis")] <= i < x.shape[c.attr("axis")] for i in chosen):
        return None
    return np.take(x, np.array(chosen, np.int64).reshape(indices.shape), axis=c.attr("axis"))


def _slice(c: Call, x: np.ndarray, *rest: Known) -> Known:
    if c.version < 10:
        starts, ends, axes, steps = c.attr("starts"), c.attr("ends"), c.attr("axes"), None
    else:
        starts, ends, axes, steps = ([*(None if r is None else _ints(r) for r in rest), None, None])[:4]
        if starts is None or ends is None or any(r is not None and is_symbolic(r) for r in rest):
            return None
    axes = axes or range(len(starts))
    index = [slice(None)] * x.ndim
    for axis, low, high, step in zip(axes, starts, ends, steps or [1] * len(starts)):
        lowest = -(1 << 62)
        index[axis] = slice(low, None if high <= lowest else high, step)
    return x[tuple(index)]


def _reshape(c: Call, x: np.ndarray, shape: np.ndarray) -> Known:
    sizes = _ints(shape)
    if sizes is None:
        return None
    if not c.attr("allowzero"):
        sizes = [x.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return x.reshape(sizes)


def _constant_of_shape(c: Call, shape: np.ndarray) -> Known:
    sizes = _ints(shape)
    value = c.attr("value")
    if sizes is None or value is not None and value.data_type != 7 or prod(sizes) > 64:
        return None
    number = 0 if value is None else int(np.frombuffer(value.raw_data, np.int64)[0] if value.raw_data
                                         else value.int64_data[0])  # fmt: skip
    return None if value is None else np.full(sizes, number, np.int64)


def _range(c: Call, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> Known:
    if any(x.dtype.kind not in "iO" or is_symbolic(x) for x in (start, limit, delta)):
        return None
    low, high, step = (int(x.reshape(-1)[0]) for x in (start, limit, delta))
    dtype = np.int64 if start.dtype == object else start.dtype
    return np.arange(low, high, step, dtype=dtype)


def _equal(c: Call, a: np.ndarray, b: np.ndarray) -> Known:
    if is_symbolic(a) or is_symbolic(b):  # a size is never negative, so it is not -1
        pairs = np.frompyfunc(lambda x, y: None if isinstance(x, Expr) and isinstance(y, Expr) and x != y
                              else x == y if type(x) is type(y) else False, 2, 1)(a.astype(object), b.astype(object))
        return None if any(p is None for p in np.asarray(pairs).reshape(-1)) else np.asarray(pairs).astype(bool)
    return np.asarray(np.equal(a, b))


def _where(c: Call, condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> Known:
    if any(x.dtype.kind not in "iO" for x in (a, b)):
        return None
    return settled(np.where(condition, a.astype(object), b.astype(object)))


def _expand(c: Call, x: np.ndarray, shape: np.ndarray) -> Known:
    sizes = _ints(shape)
    if sizes is None or prod(sizes) > 4096:
        return None
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(sizes)))


def _concat(c: Call, *parts: np.ndarray) -> Known:
    if any(p.dtype.kind not in "iO" for p in parts):
        return None
    if any(p.dtype == object for p in parts):
        return settled(np.concatenate([p.astype(object) for p in parts], c.attr("axis")))
    return np.concatenate(parts, c.attr("axis"))


def _reduce_prod(c: Call, x: np.ndarray, *rest: Known) -> Known:
    axes = _axes(c, (x, *rest))
    if x.dtype.kind not in "iO" or x.ndim != 1 or axes not in (None, [0], [-1], []):
        return None
    total = prod(x.astype(object).tolist())
    return settled(np.array([total] if c.attr("keepdims", 1) else total, dtype=object))


def _transpose(c: Call, x: np.ndarray) -> Known:
    return np.transpose(x, c.attr("perm"))


FOLDABLE: Mapping[str, Callable[..., Known]] = {
    "Add": of_objects(lambda a, b: a + b),
    "Sub": of_objects(lambda a, b: a - b),
    "Mul": of_objects(lambda a, b: a * b),
    "Div": of_objects(_divide),
    "Max": of_objects(dim_max),
    "Min": of_objects(dim_min),
    "Cast": _cast,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "Slice": _slice,
    "Reshape": _reshape,
    "Range": _range,
    "Equal": _equal,
    "Where": _where,
    "Expand": _expand,
    "Concat": _concat,
    "ReduceProd": _reduce_prod,
    "Transpose": _transpose,
    "ConstantOfShape": _constant_of_shape,
}

__all__ = ["FOLDABLE", "is_symbolic", "settled"]
