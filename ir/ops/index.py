"""Ops that compute an address: gather, scatter and dynamic slices, with the meaning XLA gives them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import REQUIRED, Op
from ..types import Dim, Type, i32, numpy_dtype
from .common import Arrays, Types, distinct_axes, drop, expect, kind_of, moves, narrow, plain, widen

# --- Dynamic slices: starts are i32 scalars, moved inside so that the slice fits ---


def _starts(x: Type, starts: Types) -> None:
    plain(x)
    expect(len(starts) == x.rank, f"needs {x.rank} starts, not {len(starts)}")
    for s in starts:
        expect(s == Type((), i32), f"a start must be {Type((), i32)}, not {s}")


def _fits(sizes: tuple[Dim, ...], shape: tuple[Dim, ...]) -> None:
    for size, whole in zip(sizes, shape):
        if isinstance(size, int) and isinstance(whole, int):
            expect(0 <= size <= whole, f"a slice of {size} does not fit an axis of {whole}")


def _infer_dynamic_slice(x: Type, *starts: Type, sizes: tuple[Dim, ...]) -> Types:
    _starts(x, starts)
    expect(len(sizes) == x.rank, f"sizes {sizes} needs {x.rank} entries")
    _fits(sizes, x.shape)
    return (Type(sizes, x.dtype),)


def _window(shape: tuple[int, ...], starts: Arrays, sizes: tuple[int, ...]) -> tuple[slice, ...]:
    first = [min(max(int(s), 0), whole - size) for s, whole, size in zip(starts, shape, sizes)]
    return tuple(slice(f, f + size) for f, size in zip(first, sizes))


def _dynamic_slice(x: np.ndarray, *starts: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    return x[_window(x.shape, starts, sizes)]


def _infer_dynamic_update_slice(x: Type, update: Type, *starts: Type) -> Types:
    _starts(x, starts)
    expect(update.rank == x.rank and update.dtype == x.dtype and not update.layout, f"{update} is no slice of {x}")
    _fits(update.shape, x.shape)
    return (x,)


def _dynamic_update_slice(x: np.ndarray, update: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    result = x.copy()
    result[_window(x.shape, starts, update.shape)] = update
    return result


# --- Gather and scatter: attributes are the fields of JAX's GatherDimensionNumbers and ScatterDimensionNumbers ---

MODES = ("clip", "fill", "promise")  # out of bounds: moved inside; filled or dropped; does not happen (treated as fill)


def _infer_gather(x: Type, indices: Type, *, offset_dims: tuple[int, ...], collapsed_slice_dims: tuple[int, ...],
                  start_index_map: tuple[int, ...], operand_batching_dims: tuple[int, ...],
                  start_indices_batching_dims: tuple[int, ...], slice_sizes: tuple[Dim, ...], mode: str,
                  fill_value: Any) -> Types:  # fmt: skip
    plain(x, indices)
    _check_indices(x, indices, start_index_map, operand_batching_dims, start_indices_batching_dims, mode)
    expect(len(slice_sizes) == x.rank, f"slice_sizes {slice_sizes} needs {x.rank} entries")
    _fits(slice_sizes, x.shape)
    dropped = (*collapsed_slice_dims, *operand_batching_dims)
    distinct_axes(dropped, x.rank)
    expect(all(slice_sizes[i] == 1 for i in dropped), f"slice_sizes {slice_sizes} must be 1 on the axes {dropped}")
    window, batch = drop(slice_sizes, dropped), indices.shape[:-1]
    expect(len(offset_dims) == len(window), f"offset_dims {offset_dims} needs {len(window)} entries")
    distinct_axes(offset_dims, len(window) + len(batch))
    sizes = {**dict(zip(offset_dims, window))}
    sizes |= zip((i for i in range(len(window) + len(batch)) if i not in offset_dims), batch)
    return (Type(tuple(sizes[i] for i in range(len(sizes))), x.dtype),)


def _check_indices(x: Type, indices: Type, index_map: tuple[int, ...], operand_batching: tuple[int, ...],
                   indices_batching: tuple[int, ...], mode: str) -> None:  # fmt: skip
    expect(kind_of(indices.dtype) == "int" and indices.rank > 0, f"indices must be integers [..., n], not {indices}")
    expect(indices.shape[-1] == len(index_map), f"indices {indices} need a last axis of {len(index_map)}")
    distinct_axes((*index_map, *operand_batching), x.rank)
    distinct_axes(indices_batching, indices.rank - 1)
    expect(len(operand_batching) == len(indices_batching), f"{operand_batching} and {indices_batching} do not pair")
    for i, j in zip(operand_batching, indices_batching):
        expect(x.shape[i] == indices.shape[j], f"batching axes of {x.shape[i]} and {indices.shape[j]} do not pair")
    expect(mode in MODES, f"mode must be one of {', '.join(MODES)}, not {mode!r}")


def _addresses(shape: tuple[int, ...], indices: np.ndarray, sizes: tuple[int, ...], index_map: tuple[int, ...],
               operand_batching: tuple[int, ...], indices_batching: tuple[int, ...], mode: str):  # fmt: skip
    """For each operand axis an index array [*batch, *sizes], and a mask [*batch] of the windows that fit."""
    batch = indices.shape[:-1]
    starts = [np.zeros(batch, np.int64) for _ in shape]
    for k, axis in enumerate(index_map):
        starts[axis] = indices[..., k].astype(np.int64)
    for axis, b in zip(operand_batching, indices_batching):
        count = np.arange(batch[b]).reshape([-1 if i == b else 1 for i in range(len(batch))])
        starts[axis] = np.broadcast_to(count, batch)
    limits = [whole - size for whole, size in zip(shape, sizes)]
    inside = np.ones(batch, bool)
    for axis in index_map:
        inside &= (starts[axis] >= 0) & (starts[axis] <= limits[axis]) | (mode == "clip")
    rank = len(shape)
    addresses = []
    for axis, (start, limit, size) in enumerate(zip(starts, limits, sizes)):
        step = np.arange(size).reshape([-1 if i == axis else 1 for i in range(rank)])
        addresses.append(np.clip(start, 0, limit).reshape(*batch, *[1] * rank) + step)
    return addresses, inside


def _gather(types: Types, x: np.ndarray, indices: np.ndarray, *, offset_dims: tuple[int, ...],
            collapsed_slice_dims: tuple[int, ...], start_index_map: tuple[int, ...],
            operand_batching_dims: tuple[int, ...], start_indices_batching_dims: tuple[int, ...],
            slice_sizes: tuple[int, ...], mode: str, fill_value: Any) -> Arrays:  # fmt: skip
    addresses, inside = _addresses(x.shape, indices, slice_sizes, start_index_map, operand_batching_dims,
                                   start_indices_batching_dims, mode)  # fmt: skip
    batch = inside.ndim
    if 0 in x.shape:
        taken = np.zeros((*inside.shape, *slice_sizes), x.dtype)
    else:
        taken = x[tuple(addresses)]
    fill = _fill(types[0], fill_value)
    taken = np.where(inside.reshape(*inside.shape, *[1] * x.ndim), taken, fill)
    taken = taken.squeeze(tuple(batch + i for i in (*collapsed_slice_dims, *operand_batching_dims)))
    others = [i for i in range(taken.ndim) if i not in offset_dims]
    return (np.moveaxis(taken, range(taken.ndim), [*others, *offset_dims]),)


def _fill(t: Type, value: Any) -> np.ndarray:
    """What an address outside reads: `value`, else NaN, the lowest signed or the highest unsigned integer, or true."""
    if kind_of(t.dtype) == "float":
        return narrow(np.array(np.nan if value is None else value), t.dtype)
    dtype = numpy_dtype(t.dtype)
    default = True if dtype.kind == "b" else np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max
    return np.array(default if value is None else value, dtype)


def _infer_scatter(x: Type, indices: Type, updates: Type, *, kind: str, update_window_dims: tuple[int, ...],
                   inserted_window_dims: tuple[int, ...], scatter_dims_to_operand_dims: tuple[int, ...],
                   operand_batching_dims: tuple[int, ...], scatter_indices_batching_dims: tuple[int, ...],
                   mode: str) -> Types:  # fmt: skip
    plain(x, indices, updates)
    expect(kind in SCATTERS, f"kind must be one of {', '.join(SCATTERS)}, not {kind!r}")
    _check_indices(x, indices, scatter_dims_to_operand_dims, operand_batching_dims, scatter_indices_batching_dims, mode)
    dropped = (*inserted_window_dims, *operand_batching_dims)
    distinct_axes(dropped, x.rank)
    distinct_axes(update_window_dims, updates.rank)
    windows = x.rank - len(dropped)
    expect(len(update_window_dims) == windows, f"update_window_dims {update_window_dims} needs {windows} entries")
    expect(updates.dtype == x.dtype, f"updates {updates} must be {x.dtype}")
    expect(drop(updates.shape, update_window_dims) == indices.shape[:-1], f"updates {updates} do not fit {indices}")
    _fits(tuple(updates.shape[i] for i in update_window_dims), drop(x.shape, dropped))
    return (x,)


def _set(x: np.ndarray, address: tuple[np.ndarray, ...], updates: np.ndarray) -> None:
    x[address] = updates


def _select_at(better: Any) -> Any:
    def at(x: np.ndarray, address: tuple[np.ndarray, ...], updates: np.ndarray) -> None:
        for position in zip(*(a.ravel() for a in address), range(updates.size)):
            old, new = x[position[:-1]], updates.flat[position[-1]]
            x[position[:-1]] = old if better(old, new) else new

    return at


# Updates apply in row-major order of the update windows' batch, then of the window.
SCATTERS = {"set": _set, "add": np.add.at, "mul": np.multiply.at,
            "max": _select_at(np.greater), "min": _select_at(np.less)}  # fmt: skip


def _scatter(types: Types, x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, kind: str,
             update_window_dims: tuple[int, ...], inserted_window_dims: tuple[int, ...],
             scatter_dims_to_operand_dims: tuple[int, ...], operand_batching_dims: tuple[int, ...],
             scatter_indices_batching_dims: tuple[int, ...], mode: str) -> Arrays:  # fmt: skip
    dtype = types[0].dtype
    dropped = (*inserted_window_dims, *operand_batching_dims)
    kept = [i for i in range(x.ndim) if i not in dropped]
    sizes = [1] * x.ndim
    for axis, d in zip(kept, update_window_dims):
        sizes[axis] = updates.shape[d]
    addresses, inside = _addresses(x.shape, indices, tuple(sizes), scatter_dims_to_operand_dims, operand_batching_dims,
                                   scatter_indices_batching_dims, mode)  # fmt: skip
    batch = [i for i in range(updates.ndim) if i not in update_window_dims]
    flat = np.transpose(updates, [*batch, *update_window_dims]).reshape(*inside.shape, *sizes)
    full = [np.broadcast_to(a, flat.shape)[inside] for a in addresses]
    result = widen(x, dtype).copy()
    SCATTERS[kind](result, tuple(full), widen(flat[inside], dtype))
    return (narrow(result, dtype),)


INDEX = (
    Op("dynamic_slice", _infer_dynamic_slice, moves(_dynamic_slice), attributes=(("sizes", REQUIRED),)),
    Op("dynamic_update_slice", _infer_dynamic_update_slice, moves(_dynamic_update_slice)),
    Op("gather", _infer_gather, _gather, attributes=(
        ("offset_dims", REQUIRED), ("collapsed_slice_dims", ()), ("start_index_map", REQUIRED),
        ("operand_batching_dims", ()), ("start_indices_batching_dims", ()), ("slice_sizes", REQUIRED),
        ("mode", "fill"), ("fill_value", None))),
    Op("scatter", _infer_scatter, _scatter, attributes=(
        ("kind", REQUIRED), ("update_window_dims", REQUIRED), ("inserted_window_dims", ()),
        ("scatter_dims_to_operand_dims", REQUIRED), ("operand_batching_dims", ()),
        ("scatter_indices_batching_dims", ()), ("mode", "fill"))),
)  # fmt: skip
