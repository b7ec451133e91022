"""What one kernel computes together: products of windows with weights in rows, and groups of ops as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from .. import quant
from ..graph import REQUIRED, Graph, Op, Value
from ..numerics import linear
from ..types import Dim, Type, f32
from . import decompose
from .common import Arrays, Types, expect
from .control import Run
from .window import WINDOW, positions

CONVOLUTION = next(op for op in WINDOW if op.name == "convolution")
Sizes = tuple[int, ...]


def _infer_patch_linear(x: Type, w: Type, *, window: Sizes, strides: Sizes, low: tuple[Dim, ...],
                        high: tuple[Dim, ...], dilation: Sizes) -> Types:  # fmt: skip
    expect(x.dtype == w.dtype == f32 and not x.layout and w.layout in ("", "panel16"), f"takes f32, not {x} and {w}")
    count = len(window)
    expect(w.rank == 2 and x.rank > count, f"{w} has no rows for windows of {x}")
    expect(len(strides) == len(low) == len(high) == len(dilation) == count, f"{count} axes need as many settings")
    expect(w.shape[1] == prod(window) * x.shape[-1], f"the rows of {w} are no windows {window} of {x}")
    lead = x.shape[: x.rank - 1 - count]
    axes = zip(x.shape[len(lead) : -1], window, strides, low, high, (1,) * count, dilation)
    return (Type((*lead, *(positions(*axis) for axis in axes), w.shape[0]), f32),)


def _patch_linear(types: Types, x: np.ndarray, w: np.ndarray, *, window: Sizes, **settings: Sizes) -> Arrays:
    rows = quant.unpack(types[1], w) if types[1].layout else w
    if not window:
        flat = linear.dense(x.reshape(-1, x.shape[-1]), rows)
        return (flat.reshape(*x.shape[:-1], len(rows)),)
    lead = x.shape[: x.ndim - 1 - len(window)]
    images = x.reshape(prod(lead), *x.shape[len(lead) :])
    filters = np.ascontiguousarray(rows.T).reshape(*window, x.shape[-1], len(rows))
    kinds = Type(images.shape, f32), Type(filters.shape, f32)
    (y,) = CONVOLUTION.reference(kinds, images, filters, groups=1, dtype=None, base_dilation=(1,) * len(window),
                                 **channels_last(len(window)), **settings)  # fmt: skip
    return (y.reshape(*lead, *y.shape[1:]),)


def channels_last(spatial: int) -> dict[str, Sizes]:
    """The attributes of a convolution of [batch, spatial..., channels] with filters [window..., inputs, outputs]."""
    last, places = spatial + 1, tuple(range(1, spatial + 1))
    return {"x_dims": (0, last, *places), "w_dims": (last, spatial, *range(spatial)), "out_dims": (0, last, *places)}


def _as_convolution(x: Value, w: Value, *, window: Sizes, **settings: Sequence[Dim]) -> tuple[Value, ...]:
    rows = decompose.emit("unpack", w) if w.type.layout else w
    count = len(window)
    if not window:
        rank = x.type.rank
        return (decompose.emit("dot_general", x, rows, contracting=((rank - 1,), (1,))),)
    lead = x.shape[: x.type.rank - 1 - count]
    images = decompose.emit("reshape", x, shape=(prod(lead, start=1), *x.shape[len(lead) :]))
    filters = decompose.emit("reshape", decompose.emit("transpose", rows, permutation=(1, 0)),
                             shape=(*window, x.shape[-1], rows.shape[0]))  # fmt: skip
    y = decompose.emit("convolution", images, filters, base_dilation=(1,) * count, **channels_last(count), **settings)
    return (decompose.emit("reshape", y, shape=(*lead, *y.shape[1:])),)


def _infer_fused(*types: Type, graph: Graph) -> Types:
    inputs = tuple(n.types[0] for n in graph.inputs)
    expect(inputs == types, f"{graph.name} takes {', '.join(map(str, inputs))}, not {', '.join(map(str, types))}")
    return graph.output_types


def _fused(types: Types, *arrays: np.ndarray, graph: Run) -> Arrays:
    return graph(*arrays)


# patch_linear(x[lead..., spatial..., C], w[N, window... * C]) -> f32[lead..., spatial'..., N]: every window of x, its
# positions row-major and at each its channels, times every row of w, as one chain of fused steps; without a window it
# is a linear of the last axis. Settings as in `convolution`. fused(operands...; graph) is what the graph computes.
FUSED = (
    Op("patch_linear", _infer_patch_linear, _patch_linear, _as_convolution,
       (("window", ()), ("strides", ()), ("low", ()), ("high", ()), ("dilation", ()))),
    Op("fused", _infer_fused, _fused, attributes=(("graph", REQUIRED),)),
)  # fmt: skip
