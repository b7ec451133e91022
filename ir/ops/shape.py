"""Ops that make, move, order and reduce elements, and contraction. Shapes are attributes, ints in references."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from ..graph import REQUIRED, Op
from ..numerics import linear, reductions
from ..numerics.elementary import maximum, minimum
from ..types import Dim, DType, Type, dim_max, floordiv, i32, numpy_dtype
from .common import (
    Arrays,
    Types,
    arity,
    distinct_axes,
    drop,
    expect,
    kind_of,
    moves,
    narrow,
    plain,
    positive_axis,
    put,
    widen,
)

CONSTANT_BYTES = 1024  # larger ones are weights

# --- Making elements ---


def _infer_constant(*, value: bytes, type: Type) -> Types:
    plain(type)
    expect(len(value) == type.bytes, f"{len(value)} bytes cannot be a {type}")
    expect(len(value) <= CONSTANT_BYTES, f"{type} has {type.bytes} bytes; above {CONSTANT_BYTES} it must be a weight")
    return (type,)


def _constant(types: Types, *, value: bytes, type: Type) -> Arrays:
    return (np.frombuffer(value, numpy_dtype(type.dtype)).reshape(type.sizes),)


def _infer_iota(*, type: Type, dim: int) -> Types:
    plain(type)
    positive_axis(dim, type.rank)
    expect(kind_of(type.dtype) != "bool", "bool cannot count")
    return (type,)


def _iota(types: Types, *, type: Type, dim: int) -> Arrays:
    count = np.arange(type.sizes[dim], dtype=np.int64).reshape([-1 if i == dim else 1 for i in range(type.rank)])
    dtype = np.float32 if type.dtype.is_float and type.dtype.name != "f64" else numpy_dtype(type.dtype)
    return (narrow(np.broadcast_to(count.astype(dtype), type.sizes), type.dtype),)


# --- Views ---


def _infer_broadcast(x: Type, *, shape: tuple[Dim, ...], dims: tuple[int, ...]) -> Types:
    plain(x)
    expect(len(dims) == x.rank, f"dims {dims} must name one result axis for each of {x.rank} operand axes")
    expect(list(dims) == sorted(set(dims)), f"dims {dims} must ascend")
    for size, axis in zip(x.shape, dims):
        positive_axis(axis, len(shape))
        expect(size in (1, shape[axis]), f"an axis of {size} cannot become {shape[axis]}")
    return (Type(shape, x.dtype),)


def _broadcast(x: np.ndarray, *, shape: tuple[int, ...], dims: tuple[int, ...]) -> np.ndarray:
    aligned = x.reshape([x.shape[dims.index(i)] if i in dims else 1 for i in range(len(shape))])
    return np.broadcast_to(aligned, shape)


def _infer_reshape(x: Type, *, shape: tuple[Dim, ...]) -> Types:
    plain(x)
    expect(prod(x.shape) == prod(shape), f"{x} has {x.elements} elements, the shape {shape} has {prod(shape)}")
    return (Type(shape, x.dtype),)


def _infer_transpose(x: Type, *, permutation: tuple[int, ...]) -> Types:
    plain(x)
    expect(sorted(permutation) == list(range(x.rank)), f"{permutation} is no permutation of {x.rank} axes")
    return (Type(tuple(x.shape[i] for i in permutation), x.dtype),)


def _infer_reverse(x: Type, *, axes: tuple[int, ...]) -> Types:
    plain(x)
    distinct_axes(axes, x.rank)
    return (x,)


def _infer_slice(x: Type, *, start: tuple[Dim, ...], limit: tuple[Dim, ...], stride: tuple[int, ...]) -> Types:
    plain(x)
    expect(len(start) == len(limit) == len(stride) == x.rank, f"start, limit and stride need {x.rank} entries each")
    for low, high, step, size in zip(start, limit, stride, x.shape):
        expect(step >= 1, f"stride {step} must be positive")
        if isinstance(low, int) and isinstance(high, int) and isinstance(size, int):
            expect(0 <= low <= high <= size, f"{low}:{high} lies outside an axis of {size}")
    return (Type(tuple(floordiv(h - l + (s - 1), s) for l, h, s in zip(start, limit, stride)), x.dtype),)


def _slice(x: np.ndarray, *, start: tuple[int, ...], limit: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    return x[tuple(slice(*s) for s in zip(start, limit, stride))]


def _infer_pad(x: Type, value: Type, *, low: tuple[Dim, ...], high: tuple[Dim, ...],
               interior: tuple[int, ...]) -> Types:  # fmt: skip
    plain(x)
    expect(value == Type((), x.dtype), f"the padding must be {Type((), x.dtype)}, not {value}")
    expect(len(low) == len(high) == len(interior) == x.rank, f"low, high and interior need {x.rank} entries each")
    expect(all(i >= 0 for i in interior), f"interior {interior} must not be negative")
    spread = (d + dim_max(d - 1, 0) * i for d, i in zip(x.shape, interior))
    shape = tuple(dim_max(l + d + h, 0) for l, d, h in zip(low, spread, high))
    return (Type(shape, x.dtype),)


def pad(x: np.ndarray, value: np.ndarray, *, low: tuple[int, ...], high: tuple[int, ...],
        interior: tuple[int, ...]) -> np.ndarray:  # fmt: skip
    spread = np.full([d + max(d - 1, 0) * i for d, i in zip(x.shape, interior)], value, x.dtype)
    spread[tuple(slice(None, None, i + 1) for i in interior)] = x
    edges = [(max(l, 0), max(h, 0)) for l, h in zip(low, high)]
    grown = np.pad(spread, edges, constant_values=value)
    return grown[tuple(slice(max(-l, 0), d - max(-h, 0)) for l, h, d in zip(low, high, grown.shape))]


def _infer_concatenate(*types: Type, axis: int) -> Types:
    arity(types, 1, 1 << 16)
    plain(*types)
    first = types[0]
    positive_axis(axis, first.rank)
    for t in types:
        expect(t.dtype == first.dtype and t.rank == first.rank and drop(t.shape, (axis,)) == drop(first.shape, (axis,)),
               f"{t} and {first} differ in more than axis {axis}")  # fmt: skip
    return (Type(put(first.shape, axis, sum((t.shape[axis] for t in types), 0)), first.dtype),)


# --- Reductions ---

# kind: (what it takes, how two values combine, the identity for a dtype)
KINDS: dict[str, tuple[str, Callable[..., np.ndarray], Callable[[np.dtype], float]]] = {
    "sum": ("float int", np.add, lambda dtype: 0),
    "prod": ("float int", np.multiply, lambda dtype: 1),
    "max": ("float int bool", maximum, lambda dtype: _limits(dtype)[0]),
    "min": ("float int bool", minimum, lambda dtype: _limits(dtype)[1]),
    "and": ("int bool", np.bitwise_and, lambda dtype: np.invert(dtype.type(0))),
    "or": ("int bool", np.bitwise_or, lambda dtype: 0),
    "xor": ("int bool", np.bitwise_xor, lambda dtype: 0),
}


def _limits(dtype: np.dtype) -> tuple[float, float]:
    """The values that no other is below, or above."""
    if dtype.kind == "f":
        return -np.inf, np.inf
    return (False, True) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)


def _infer_reduce(x: Type, *, kind: str, axes: tuple[int, ...]) -> Types:
    plain(x)
    expect(kind in KINDS, f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    expect(kind_of(x.dtype) in KINDS[kind][0].split(), f"{kind} does not take {x.dtype}")
    expect(list(axes) == sorted(axes), f"axes {axes} must ascend")
    distinct_axes(axes, x.rank)
    return (Type(drop(x.shape, axes), x.dtype),)


def _reduce(types: Types, x: np.ndarray, *, kind: str, axes: tuple[int, ...]) -> Arrays:
    """The reduced axes, in order, are one sequence that `numerics.reductions` folds in its 16-lane order."""
    dtype = types[0].dtype
    x = widen(x, dtype)
    _, combine, identity = KINDS[kind]
    return (narrow(reductions.reduce16(combine, identity(x.dtype), x, axes), dtype),)


def _infer_arg(x: Type, *, axis: int, dtype: DType) -> Types:
    plain(x)
    positive_axis(axis, x.rank)
    expect(dtype.is_integer, f"indices are integers, not {dtype}")
    return (Type(drop(x.shape, (axis,)), dtype),)


def _arg(function):
    """The first index of the extreme; a NaN counts as it."""
    return lambda types, x, axis, dtype: (function(widen(x, types[0].dtype), axis).astype(numpy_dtype(dtype)),)


def _infer_cumsum(x: Type, *, axis: int, reverse: bool) -> Types:
    plain(x)
    positive_axis(axis, x.rank)
    expect(kind_of(x.dtype) in ("float", "int"), f"takes float or int, not {x.dtype}")
    return (x,)


def _cumsum(types: Types, x: np.ndarray, *, axis: int, reverse: bool) -> Arrays:
    """One chain of additions along the axis, each rounded."""
    x = widen(x, types[0].dtype)
    x = np.flip(x, axis) if reverse else x
    total = np.add.accumulate(x, axis, x.dtype)
    return (narrow(np.flip(total, axis) if reverse else total, types[0].dtype),)


# --- Orders ---


def _infer_top_k(x: Type, *, k: int) -> Types:
    plain(x)
    expect(x.rank > 0, "takes at least one dimension")
    size = x.shape[-1]
    expect(not isinstance(size, int) or 0 <= k <= size, f"{k} values cannot be taken of {size}")
    shape = put(x.shape, x.rank - 1, k)
    return Type(shape, x.dtype), Type(shape, i32)


def _top_k(types: Types, x: np.ndarray, *, k: int) -> Arrays:
    """The k largest along the last axis, largest first; equal ones by ascending index; NaN counts as largest."""
    keys = _ascending(widen(x, types[0].dtype))
    order = (x.shape[-1] - 1 - np.argsort(keys[..., ::-1], axis=-1, kind="stable")[..., ::-1])[..., :k]
    return np.take_along_axis(x, order, -1), order.astype(np.int32)


def _ascending(x: np.ndarray) -> np.ndarray:
    """Ranks whose integer order is the order of `x`: -0 equals +0, and every NaN comes last."""
    return np.unique(x, return_inverse=True, equal_nan=True)[1].reshape(x.shape)


def _infer_sort(*types: Type, axis: int, keys: int) -> Types:
    arity(types, 1, 1 << 16)
    plain(*types)
    expect(len({t.shape for t in types}) == 1, "operands must have equal shapes")
    positive_axis(axis, types[0].rank)
    expect(1 <= keys <= len(types), f"{keys} keys cannot be taken of {len(types)} operands")
    return types


def _sort(types: Types, *arrays: np.ndarray, axis: int, keys: int) -> Arrays:
    """Stable and ascending by the first `keys` operands; NaN last."""
    ranks = [_ascending(widen(x, t.dtype)) for x, t in zip(arrays[:keys], types)]
    order = np.lexsort(ranks[::-1], axis=axis)
    return tuple(np.take_along_axis(x, order, axis) for x in arrays)


# --- Contraction ---

Axes = tuple[tuple[int, ...], tuple[int, ...]]


def _free_axes(a: int, b: int, contracting: Axes, batch: Axes) -> Axes:
    """The axes of operands of ranks `a` and `b` that are neither."""
    return (tuple(i for i in range(a) if i not in (*contracting[0], *batch[0])),
            tuple(i for i in range(b) if i not in (*contracting[1], *batch[1])))  # fmt: skip


def _infer_dot_general(a: Type, b: Type, *, contracting: Axes, batch: Axes, dtype: DType | None) -> Types:
    plain(a, b)
    expect(a.dtype == b.dtype and kind_of(a.dtype) != "bool", "operands must have one numeric dtype")
    for x, y, what in ((*contracting, "contracting"), (*batch, "batch")):
        expect(len(x) == len(y), f"{what} axes {x} and {y} do not pair")
        for i, j in zip(x, y):
            positive_axis(i, a.rank), positive_axis(j, b.rank)
            expect(a.shape[i] == b.shape[j], f"{what} axes of {a.shape[i]} and {b.shape[j]} do not pair")
    distinct_axes((*contracting[0], *batch[0]), a.rank)
    distinct_axes((*contracting[1], *batch[1]), b.rank)
    free = _free_axes(a.rank, b.rank, contracting, batch)
    shape = (*(a.shape[i] for i in batch[0]), *(a.shape[i] for i in free[0]), *(b.shape[i] for i in free[1]))
    return (Type(shape, dtype or a.dtype),)


def _dot_general(types: Types, a: np.ndarray, b: np.ndarray, *, contracting: Axes, batch: Axes,
                 dtype: DType | None) -> Arrays:  # fmt: skip
    """Per output one chain over the contracted axes in the order given; floats up to 32 bits as dense linear does."""
    free = _free_axes(a.ndim, b.ndim, contracting, batch)
    result = dtype or types[0].dtype
    lead = [a.shape[i] for i in batch[0]]
    inner = prod(a.shape[i] for i in contracting[0])
    shape = [*lead, *(a.shape[i] for i in free[0]), *(b.shape[i] for i in free[1])]
    left = widen(np.transpose(a, [*batch[0], *free[0], *contracting[0]]), types[0].dtype)
    right = widen(np.transpose(b, [*batch[1], *free[1], *contracting[1]]), types[0].dtype)
    left, right = (x.reshape(prod(lead), prod(x.shape[len(lead) : len(lead) + len(f)]), inner)
                   for x, f in zip((left, right), free))  # fmt: skip
    if left.dtype == np.float32:
        out = [linear.dense(x, w) for x, w in zip(left, right)]
    else:
        wide = left.astype(numpy_dtype(result)), right.astype(numpy_dtype(result))
        out = [x @ w.T for x, w in zip(*wide)]
    flat = np.stack(out) if out else np.zeros((0,), left.dtype)
    return (narrow(flat.reshape(shape), result),)


SHAPE = (
    Op("constant", _infer_constant, _constant, attributes=(("value", REQUIRED), ("type", REQUIRED))),
    Op("iota", _infer_iota, _iota, attributes=(("type", REQUIRED), ("dim", 0))),
    Op("broadcast", _infer_broadcast, moves(_broadcast), attributes=(("shape", REQUIRED), ("dims", ()))),
    Op("reshape", _infer_reshape, moves(lambda x, shape: x.reshape(shape)), attributes=(("shape", REQUIRED),)),
    Op("transpose", _infer_transpose, moves(lambda x, permutation: x.transpose(permutation)),
       attributes=(("permutation", REQUIRED),)),
    Op("reverse", _infer_reverse, moves(lambda x, axes: np.flip(x, axes)), attributes=(("axes", REQUIRED),)),
    Op("slice", _infer_slice, moves(_slice),
       attributes=(("start", REQUIRED), ("limit", REQUIRED), ("stride", REQUIRED))),
    Op("pad", _infer_pad, moves(pad), attributes=(("low", REQUIRED), ("high", REQUIRED), ("interior", REQUIRED))),
    Op("concatenate", _infer_concatenate, moves(lambda *xs, axis: np.concatenate(xs, axis)),
       attributes=(("axis", REQUIRED),)),
    Op("reduce", _infer_reduce, _reduce, attributes=(("kind", REQUIRED), ("axes", REQUIRED))),
    Op("argmax", _infer_arg, _arg(np.argmax), attributes=(("axis", REQUIRED), ("dtype", i32))),
    Op("argmin", _infer_arg, _arg(np.argmin), attributes=(("axis", REQUIRED), ("dtype", i32))),
    Op("cumsum", _infer_cumsum, _cumsum, attributes=(("axis", REQUIRED), ("reverse", False))),
    Op("top_k", _infer_top_k, _top_k, attributes=(("k", REQUIRED),)),
    Op("sort", _infer_sort, _sort, attributes=(("axis", REQUIRED), ("keys", 1))),
    Op("dot_general", _infer_dot_general, _dot_general,
       attributes=(("contracting", REQUIRED), ("batch", ((), ())), ("dtype", None))),
)  # fmt: skip
