"""Ops that slide a window over an array: convolution in every layout, and reductions of windows (pooling)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ..graph import REQUIRED, Op
from ..numerics import linear, reductions
from ..types import Dim, DType, Type, dim_max, floordiv, numpy_dtype
from .common import Arrays, Types, expect, is_rank, kind_of, narrow, plain, positive_axis, widen
from .shape import KINDS, pad

Sizes = tuple[int, ...]
Dims = tuple[Dim, ...]


def spread(size: Dim, dilation: int) -> Dim:
    """The size of an axis with dilation - 1 holes between neighbours."""
    return size if dilation == 1 else size + dim_max(size - 1, 0) * (dilation - 1)


def positions(size: Dim, window: int, stride: int, low: Dim, high: Dim, base_dilation: int, dilation: int) -> Dim:
    """How many windows fit an axis that is dilated, then padded."""
    return dim_max(floordiv(low + spread(size, base_dilation) + high - spread(window, dilation), stride) + 1, 0)


def _settings(count: int, what: str, **settings: Sequence[Dim]) -> None:
    for name, values in settings.items():
        expect(len(values) == count, f"{name} {tuple(values)} needs {count} entries, one for each {what}")
        if name not in ("low", "high"):
            expect(all(isinstance(v, int) and v >= 1 for v in values), f"{name} {tuple(values)} must be positive")


def _windows(x: np.ndarray, window: Sizes, strides: Sizes, low: Sizes, high: Sizes, base_dilation: Sizes,
             dilation: Sizes, fill: np.ndarray) -> np.ndarray:  # fmt: skip
    """[*positions, *window] over all axes of x; what lies outside, or in a hole, is `fill`."""
    full = pad(x, fill, low=low, high=high, interior=tuple(d - 1 for d in base_dilation))
    index = [np.arange(max((n - (w - 1) * d - 1) // s + 1, 0))[:, None] * s + np.arange(w)[None] * d
             for n, w, s, d in zip(full.shape, window, strides, dilation)]  # fmt: skip
    rank = x.ndim
    grids = [i.reshape([i.shape[0] if a == n else i.shape[1] if a == n + rank else 1 for a in range(2 * rank)])
             for n, i in enumerate(index)]  # fmt: skip
    return full[tuple(np.broadcast_arrays(*grids))] if rank else full


# --- Convolution ---
# `x_dims` are the axes of x that are (batch, channels, *spatial), `w_dims` those of w that are (outputs, inputs of a
# group, *spatial), `out_dims` those of the result that are (batch, outputs, *spatial): JAX's ConvDimensionNumbers.


def _infer_convolution(x: Type, w: Type, *, strides: Sizes, low: Dims, high: Dims, base_dilation: Sizes,
                       dilation: Sizes, groups: int, x_dims: Sizes, w_dims: Sizes, out_dims: Sizes,
                       dtype: DType | None) -> Types:  # fmt: skip
    plain(x, w)
    expect(x.dtype == w.dtype and kind_of(x.dtype) in ("float", "int"), "operands must have one numeric dtype")
    is_rank(w, x.rank, "the kernel")
    expect(x.rank >= 2, f"takes a batch and channels, not {x}")
    for name, axes in (("x_dims", x_dims), ("w_dims", w_dims), ("out_dims", out_dims)):
        expect(sorted(axes) == list(range(x.rank)), f"{name} {axes} must name each of {x.rank} axes once")
    _settings(x.rank - 2, "spatial axis", strides=strides, low=low, high=high, base_dilation=base_dilation,
              dilation=dilation)  # fmt: skip
    batch, channels, *sizes = (x.shape[i] for i in x_dims)
    outputs, inputs, *window = (w.shape[i] for i in w_dims)
    for size in (outputs, inputs, *window):
        expect(isinstance(size, int), f"the kernel {w} must have a fixed size")
    expect(groups >= 1 and outputs % groups == 0 and channels == inputs * groups,
           f"{channels} channels in {groups} groups do not fit {inputs} inputs and {outputs} outputs")  # fmt: skip
    result: list[Dim] = [0] * x.rank
    spatial = map(positions, sizes, window, strides, low, high, base_dilation, dilation)
    for axis, size in zip(out_dims, (batch, outputs, *spatial)):
        result[axis] = size
    return (Type(tuple(result), dtype or x.dtype),)


def _convolution(types: Types, x: np.ndarray, w: np.ndarray, *, strides: Sizes, low: Sizes, high: Sizes,
                 base_dilation: Sizes, dilation: Sizes, groups: int, x_dims: Sizes, w_dims: Sizes, out_dims: Sizes,
                 dtype: DType | None) -> Arrays:  # fmt: skip
    """Per output one chain over the window's positions in row-major order, at each over the group's input channels.

    What lies outside counts as zeros. Floats up to 32 bits are multiplied and added as dense linear does.
    """
    result = dtype or types[0].dtype
    x = widen(x, types[0].dtype).transpose(x_dims)  # [batch, channels, *spatial]
    w = widen(w, types[0].dtype).transpose(w_dims)  # [outputs, inputs, *spatial]
    batch, channels, window = x.shape[0], x.shape[1], w.shape[2:]
    ones, none = (1, 1), (0, 0)
    patches = _windows(x, (*ones, *window), (*ones, *strides), (*none, *low), (*none, *high), (*ones, *base_dilation),
                       (*ones, *dilation), np.zeros((), x.dtype))  # fmt: skip
    spatial = patches.shape[2 : x.ndim]
    patches = patches.reshape(batch, groups, channels // groups, prod(spatial), prod(window))
    kernels = w.reshape(groups, w.shape[0] // groups, w.shape[1], prod(window))
    width = channels // groups * prod(window)  # of a row; there may be no rows to tell it
    out = []
    for g in range(groups):
        rows = patches[:, g].transpose(0, 2, 3, 1).reshape(batch * prod(spatial), width)
        columns = kernels[g].transpose(0, 2, 1).reshape(kernels.shape[1], width)
        if rows.dtype == np.float32:
            out.append(linear.dense(rows, columns))
        else:
            wide = numpy_dtype(result)
            out.append(rows.astype(wide) @ columns.astype(wide).T)
    flat = np.concatenate(out, axis=1).reshape(batch, *spatial, w.shape[0])
    return (narrow(np.moveaxis(flat, range(flat.ndim), [out_dims[0], *out_dims[2:], out_dims[1]]), result),)


# --- Reductions of windows ---


def _infer_reduce_window(x: Type, *, kind: str, window: Sizes, strides: Sizes, low: Dims, high: Dims,
                         base_dilation: Sizes, dilation: Sizes) -> Types:  # fmt: skip
    plain(x)
    expect(kind in KINDS, f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    expect(kind_of(x.dtype) in KINDS[kind][0].split(), f"{kind} does not take {x.dtype}")
    _settings(x.rank, "axis", window=window, strides=strides, low=low, high=high, base_dilation=base_dilation,
              dilation=dilation)  # fmt: skip
    shape = map(positions, x.shape, window, strides, low, high, base_dilation, dilation)
    return (Type(tuple(shape), x.dtype),)


def _reduce_window(types: Types, x: np.ndarray, *, kind: str, **settings: Sizes) -> Arrays:
    """Each window, row-major, folds in the 16-lane order of `numerics.reductions`; outside is the identity."""
    dtype = types[0].dtype
    x = widen(x, dtype)
    _, combine, identity = KINDS[kind]
    start = identity(x.dtype)
    windows = _windows(x, settings["window"], settings["strides"], settings["low"], settings["high"],
                       settings["base_dilation"], settings["dilation"], np.array(start).astype(x.dtype))  # fmt: skip
    axes = tuple(range(x.ndim, 2 * x.ndim))
    return (narrow(reductions.reduce16(combine, start, windows, axes), dtype),)


# --- Running products and extremes ---


def _infer_running(x: Type, *, axis: int, reverse: bool) -> Types:
    plain(x)
    positive_axis(axis, x.rank)
    expect(kind_of(x.dtype) in ("float", "int"), f"takes float or int, not {x.dtype}")
    return (x,)


def _running(kind: str):
    """One chain along the axis, each step rounded; half floats keep f32 until the end."""
    combine = KINDS[kind][1]

    def reference(types: Types, x: np.ndarray, *, axis: int, reverse: bool) -> Arrays:
        wide = np.moveaxis(widen(x, types[0].dtype), axis, 0)
        wide = wide[::-1] if reverse else wide
        total = wide.copy()
        with np.errstate(all="ignore"):
            for i in range(1, len(total)):
                total[i] = combine(total[i - 1], total[i])
        total = total[::-1] if reverse else total
        return (narrow(np.moveaxis(total, 0, axis), types[0].dtype),)

    return reference


_WINDOW = (("strides", REQUIRED), ("low", REQUIRED), ("high", REQUIRED), ("base_dilation", REQUIRED),
           ("dilation", REQUIRED))  # fmt: skip
WINDOW = (
    Op("convolution", _infer_convolution, _convolution, attributes=(
        *_WINDOW, ("groups", 1), ("x_dims", REQUIRED), ("w_dims", REQUIRED), ("out_dims", REQUIRED), ("dtype", None))),
    Op("reduce_window", _infer_reduce_window, _reduce_window,
       attributes=(("kind", REQUIRED), ("window", REQUIRED), *_WINDOW)),
    *(Op(name, _infer_running, _running(kind), attributes=(("axis", REQUIRED), ("reverse", False)))
      for name, kind in (("cumprod", "prod"), ("cummax", "max"), ("cummin", "min"))),
)  # fmt: skip
