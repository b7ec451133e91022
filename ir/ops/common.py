"""What the op tables share: checks of operand types, shape arithmetic, and widening of half floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..graph import IRError
from ..types import ACTIVATION_SIZES, Dim, DType, Type, bf16, f16, i32, numpy_dtype

Types = tuple[Type, ...]
Arrays = tuple[np.ndarray, ...]


def expect(condition: bool, message: str) -> None:
    """Raises IRError with `message` unless the condition holds; `make` adds the op and its origin."""
    if not condition:
        raise IRError(message)


def kind_of(dtype: DType) -> str:
    """"float", "int", "bool", "block" or "activation": what ops ask about a dtype."""
    if dtype.name in ACTIVATION_SIZES:
        return "activation"
    return "block" if dtype.is_block else "float" if dtype.is_float else "int" if dtype.is_integer else "bool"


def plain(*types: Type) -> None:
    """Row-major elements: neither blocks nor a packed layout."""
    for t in types:
        expect(not t.dtype.is_block and not t.layout, f"{t} must be dequantised, and row-major, first")


def same(*types: Type) -> None:
    """Equal types; broadcasting is an op of its own."""
    plain(*types)
    expect(len(set(types)) == 1, "operands must have equal types")


def is_rank(t: Type, rank: int, what: str) -> None:
    expect(t.rank == rank, f"{what} must have {rank} dimensions, not {t}")


def vector(t: Type, size: Dim, what: str, dtype: DType = i32) -> None:
    """A one-dimensional operand of the given size."""
    expect(t == Type((size,), dtype), f"{what} must be {Type((size,), dtype)}, not {t}")


def arity(types: Sequence[Type], low: int, high: int) -> None:
    expect(low <= len(types) <= high, f"takes {low}{f' to {high}' if high > low else ''} operands, not {len(types)}")


def positive_axis(axis: int, rank: int) -> int:
    """`axis` as 0 <= axis < rank; negative ones are refused, so that equal ops have equal attributes."""
    expect(isinstance(axis, int) and 0 <= axis < rank, f"axis {axis} is outside 0..{rank - 1}")
    return axis


def distinct_axes(axes: Sequence[int], rank: int) -> None:
    for axis in axes:
        positive_axis(axis, rank)
    expect(len(set(axes)) == len(axes), f"axes {tuple(axes)} repeat")


def drop(items: Sequence[Any], axes: Sequence[int]) -> tuple[Any, ...]:
    """The items at positions that are not in `axes`."""
    return tuple(item for i, item in enumerate(items) if i not in axes)


def put(items: Sequence[Any], axis: int, item: Any) -> tuple[Any, ...]:
    """`items` with the one at `axis` replaced."""
    return (*items[:axis], item, *items[axis + 1 :])


def widen(x: np.ndarray, dtype: DType) -> np.ndarray:
    """f16, and bf16 held as bits, as f32; every other array unchanged."""
    if dtype == bf16:
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x.astype(np.float32) if dtype == f16 else x


def narrow(x: np.ndarray, dtype: DType) -> np.ndarray:
    """f32 rounded to nearest even in f16 or bf16 (as bits, a NaN stays one); otherwise a cast that loses nothing."""
    x = np.asarray(x)
    if dtype != bf16:
        with np.errstate(over="ignore", under="ignore"):
            return x.astype(numpy_dtype(dtype), copy=False)
    bits = np.ascontiguousarray(x, np.float32).reshape(x.shape).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def in_f32(function: Callable[..., np.ndarray]) -> Callable[..., Arrays]:
    """The reference of an op with one result of its first operand's dtype; half floats compute in f32, rounded once."""

    def reference(types: Types, *arrays: np.ndarray, **attrs: Any) -> Arrays:
        with np.errstate(all="ignore"):
            result = function(*(widen(a, t.dtype) for a, t in zip(arrays, types)), **attrs)
        return (narrow(result, types[0].dtype),)

    return reference


def moves(function: Callable[..., np.ndarray]) -> Callable[..., Arrays]:
    """The reference of an op that only moves elements, whatever they are."""
    return lambda types, *arrays, **attrs: (np.asarray(function(*arrays, **attrs)),)
