"""ONNX operators that make, move and select elements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import numpy_helper

from ...ir.types import Dim, Expr, boolean, bounds, dim_max, f32, i64
from .arrays import Array, clamp_dim, common_shape, concatenate, dtype_of, infer_size, numpy_of, stack, where
from .onnx_fold import settled
from .onnx_import import Call, Rule, Tensor, dtype_named, dtype_of_tensor, shape_of


def operand_shape(c: Call, index: int = 0) -> tuple[Dim, ...]:
    operand = c.operands[index]
    assert operand is not None
    return shape_of(operand)


def known_dims(dims: Sequence[Dim]) -> Tensor:
    """Dimensions as a tensor that is known."""
    return Tensor(known=settled(np.array(dims, dtype=object)))


def constant(c: Call) -> Tensor:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if (value := c.attr(name)) is not None:
            if name == "value":
                return c.importer.tensor(value)
            return Tensor(known=np.array(value, np.float32 if "float" in name else np.int64))
    raise c.error("only dense numeric constants are supported; write the tensor out")


def identity(c: Call) -> Tensor:
    operand = c.operands[0]
    assert operand is not None
    return operand


def shape(c: Call) -> Tensor:
    dims = operand_shape(c)
    start, end = c.attr("start", 0), c.attr("end")
    return known_dims(dims[start:end])


def size(c: Call) -> Tensor:
    return Tensor(known=settled(np.array(prod(operand_shape(c)), dtype=object)))


def reshape(c: Call) -> Array:
    x, wanted = c.x(0), c.dims(1) if c.version >= 5 else c.attr("shape")
    if not c.attr("allowzero"):
        wanted = [x.shape[i] if isinstance(d, int) and d == 0 else d for i, d in enumerate(wanted)]
    return x.reshape(infer_size(x.shape, wanted) if -1 in wanted else tuple(wanted))


def transpose(c: Call) -> Array:
    return c.x().transpose(*c.attr("perm", []))


def axes_of(c: Call, index: int = 1) -> list[int] | None:
    """Axes by operand (since opset 13) or by attribute."""
    if c.has(index):
        return [int(a) for a in c.numbers(index).reshape(-1)]
    return c.attr("axes")


def squeeze(c: Call) -> Array:
    x, axes = c.x(), axes_of(c)
    return x.squeeze(*([i for i, d in enumerate(x.shape) if d == 1] if axes is None else axes))


def unsqueeze(c: Call) -> Array:
    return c.x().unsqueeze(*(axes_of(c) or ()))


def flatten(c: Call) -> Array:
    x = c.x()
    axis = c.attr("axis") % (x.rank + 1) if c.attr("axis") < 0 else c.attr("axis")
    axis = axis if c.attr("axis") >= 0 else c.attr("axis") + x.rank
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def concat(c: Call) -> Array:
    return concatenate(c.xs(), c.attr("axis"))


def split(c: Call) -> list[Array]:
    x, axis = c.x(), c.attr("axis")
    whole = x.shape[axis % x.rank]
    sizes = c.dims(1) if c.has(1) else c.attr("split")
    if not sizes:
        count = c.attr("num_outputs") or c.outputs
        if not isinstance(whole, int):
            each = whole // count
            return x.split(axis, [each] * count)
        each = -(-whole // count)
        sizes = [min(each, whole - start) for start in range(0, whole, each)]
    return x.split(axis, sizes)


def slice_(c: Call) -> Array:
    x = c.x()
    if c.version < 10:
        starts, ends, axes, steps = c.attr("starts"), c.attr("ends"), c.attr("axes"), None
    else:
        starts, ends = c.dims(1), c.dims(2)
        axes = [int(a) for a in c.numbers(3).reshape(-1)] if c.has(3) else None
        steps = [int(a) for a in c.numbers(4).reshape(-1)] if c.has(4) else None
    for axis, low, high, step in zip(axes or range(len(starts)), starts, ends, steps or [1] * len(starts)):
        x = sliced(x, axis, low, high, step)
    return x


def sliced(x: Array, axis: int, low: Dim, high: Dim, step: int) -> Array:
    """Python's slicing of one axis: negative positions count from the end, those outside are moved inside."""
    whole = x.shape[axis % x.rank]
    low, high = (v + whole if bounds(v)[1] < 0 else v for v in (low, high))
    if step > 0:
        start = clamp_dim(low, 0, whole)
        return x.slice(axis, start, dim_max(clamp_dim(high, 0, whole), start), step)
    first, last = clamp_dim(low, -1, whole - 1), clamp_dim(high, -1, whole - 1)
    return x.slice(axis, last + 1, dim_max(first, last) + 1).reverse(axis).slice(axis, 0, None, -step)


def expand(c: Call) -> Array:
    x = c.x()
    return x.broadcast_to(common_shape(x.shape, c.dims(1)))


def tile(c: Call) -> Array:
    x = c.x()
    for axis, count in enumerate(c.dims(1)):
        if count != 1:
            x = repeated(x, axis, count)
    return x


def repeated(x: Array, axis: int, count: Dim) -> Array:
    shape = (*x.shape[:axis], count, *x.shape[axis:])
    wide = x.expand(shape, [i for i in range(x.rank + 1) if i != axis])
    return wide.reshape(*x.shape[:axis], count * x.shape[axis], *x.shape[axis + 1 :])


def pad(c: Call) -> Array:
    x = c.x()
    if c.version < 11:
        pads, axes, value = c.attr("pads"), None, c.attr("value")
    else:
        pads, value = c.dims(1), c.optional(2)
        axes = [int(a) % x.rank for a in c.numbers(3).reshape(-1)] if c.has(3) else None
    axes = axes or list(range(x.rank))
    low, high = [0] * x.rank, [0] * x.rank
    for i, axis in enumerate(axes):
        low[axis], high[axis] = pads[i], pads[i + len(axes)]
    mode = c.attr("mode")
    if mode == "constant":
        fill = value.reshape(()).astype(x.dtype) if isinstance(value, Array) else value or 0
        return x.pad(low, high, fill if isinstance(fill, Array) or x.dtype.is_float else int(fill))
    for axis in range(x.rank):
        whole, before, after = x.shape[axis], low[axis], high[axis]
        if before == after == 0:
            continue
        if not (isinstance(whole, int) and isinstance(before, int) and isinstance(after, int)):
            raise c.error(f"padding by {mode} needs a fixed size, not {whole}; export the model with fixed sizes")
        x = mirrored(x, axis, whole, before, after, mode)
    return x


def mirrored(x: Array, axis: int, whole: int, low: int, high: int, mode: str) -> Array:
    """An axis continued by its "edge", by its reflection ("reflect"), or by itself ("wrap"); negative amounts cut."""
    line = np.pad(np.arange(whole), (max(low, 0), max(high, 0)), mode)  # type: ignore[call-overload]
    line = line[max(-low, 0) : len(line) - max(-high, 0)]
    return x.take(x.body.constant(line.astype(np.int64)), axis)


def gather(c: Call) -> Array:
    x, axis = c.x(0), c.attr("axis")
    known = c.maybe(1)
    whole = x.shape[axis % x.rank]
    if known is not None and known.ndim == 0:
        index = int(known)
        return x.at(axis, index + whole if index < 0 else index)
    return x.take(c.x(1), axis)


def along(x: Array, indices: Array, axis: int) -> tuple[Array, dict[str, Any]]:
    """Full addresses of the elements that `indices` names along an axis: [*indices.shape, rank]."""
    axis %= x.rank
    size = x.body.dim(x.shape[axis], indices.dtype)
    indices = where(indices < 0, indices + size, indices)
    parts = [indices if i == axis else x.body.iota(indices.shape, i, indices.dtype) for i in range(x.rank)]
    return concatenate([p.unsqueeze(-1) for p in parts], -1), {}


def gather_elements(c: Call) -> Array:
    x = c.x(0)
    return taken_along(x, c.x(1), c.attr("axis"))


def taken_along(x: Array, indices: Array, axis: int) -> Array:
    """x at `indices` along an axis, as NumPy's take_along_axis; other axes of `indices` may be shorter."""
    address, _ = along(x, indices, axis)
    every = tuple(range(x.rank))
    return x.body.apply("gather", x, address, offset_dims=(), collapsed_slice_dims=every, start_index_map=every,
                        slice_sizes=(1,) * x.rank, mode="fill")  # fmt: skip


def gather_nd(c: Call) -> Array:
    x, indices, batch = c.x(0), c.x(1), c.attr("batch_dims")
    depth = indices.shape[-1]
    assert isinstance(depth, int)
    sizes = stack([c.body.dim(d, indices.dtype) for d in x.shape[batch : batch + depth]], 0)
    indices = where(indices < 0, indices + sizes, indices)
    rest = x.shape[batch + depth :]
    lead = indices.rank - 1
    return c.body.apply(
        "gather", x, indices, offset_dims=tuple(range(lead, lead + len(rest))),
        collapsed_slice_dims=tuple(range(batch, batch + depth)), start_index_map=tuple(range(batch, batch + depth)),
        operand_batching_dims=tuple(range(batch)), start_indices_batching_dims=tuple(range(batch)),
        slice_sizes=(*(1,) * (batch + depth), *rest), mode="fill")  # fmt: skip


KINDS = {"none": "set", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def scattered(x: Array, address: Array, updates: Array, kind: str) -> Array:
    """`updates` at full or leading addresses [..., depth]; half floats sum in f32."""
    depth = address.shape[-1]
    assert isinstance(depth, int)
    narrow = x.dtype
    if narrow.name in ("f16", "bf16") and kind != "set":
        x, updates = x.astype(f32), updates.astype(f32)
    lead = address.rank - 1
    result = x.body.apply(
        "scatter", x, address, updates, kind=kind, update_window_dims=tuple(range(lead, updates.rank)),
        inserted_window_dims=tuple(range(depth)), scatter_dims_to_operand_dims=tuple(range(depth)),
        mode="fill")  # fmt: skip
    return result.astype(narrow)


def scatter_elements(c: Call) -> Array:
    x, indices, updates = c.x(0), c.x(1), c.x(2)
    address, _ = along(x, indices, c.attr("axis"))
    return scattered(x, address, updates, KINDS[c.attr("reduction", "none")])


def scatter_nd(c: Call) -> Array:
    x, indices, updates = c.x(0), c.x(1), c.x(2)
    depth = indices.shape[-1]
    assert isinstance(depth, int)
    sizes = stack([c.body.dim(d, indices.dtype) for d in x.shape[:depth]], 0)
    return scattered(x, where(indices < 0, indices + sizes, indices), updates, KINDS[c.attr("reduction", "none")])


def depth_to_space(c: Call) -> Array:
    x, block = c.x(), c.attr("blocksize")
    n, channels, h, w = x.shape
    if c.attr("mode") == "DCR":
        parts = x.reshape(n, block, block, channels // (block * block), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, channels // (block * block), block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, channels // (block * block), h * block, w * block)


def space_to_depth(c: Call) -> Array:
    x, block = c.x(), c.attr("blocksize")
    n, channels, h, w = x.shape
    parts = x.reshape(n, channels, h // block, block, w // block, block)
    order = (0, 3, 5, 1, 2, 4) if c.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.transpose(*order).reshape(n, channels * block * block, h // block, w // block)


def range_(c: Call) -> Array:
    """The count must be known; where only dimensions decide it, it may be symbolic."""
    operand = c.operands[0]
    assert operand is not None
    dtype = dtype_of_tensor(operand)
    if all(o is not None and o.known is not None and o.known.dtype in (object, np.int64) for o in c.operands):
        start, limit, delta = (c.dims(i)[0] for i in range(3))
        if isinstance(delta, int) and any(isinstance(d, Expr) for d in (start, limit)):
            count = dim_max((limit - start + (delta - 1 if delta > 0 else delta + 1)) // delta, 0)
            return c.body.arange(count, dtype) * delta + c.body.dim(start, dtype)
    start, limit, delta = (c.numbers(i).reshape(-1)[0] for i in range(3))
    count = max(math.ceil((float(limit) - float(start)) / float(delta)), 0)
    numbers = start + np.arange(count).astype(numpy_of(dtype)) * delta
    return c.body.constant(numbers.astype(numpy_of(dtype)), dtype)


def constant_of_shape(c: Call) -> Array:
    value = c.attr("value")
    number = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return c.body.constant(number.reshape(-1)[0], dtype_of(number)).broadcast_to(c.dims(0))


def reverse_sequence(c: Call) -> Array:
    """The first `sequence_lens` elements of the time axis reversed, the rest in their place."""
    x, lengths, time, batch = c.x(0), c.x(1), c.attr("time_axis"), c.attr("batch_axis")
    position = c.body.iota(x.shape, time)
    length = lengths.astype(i64).expand(x.shape, (batch,))
    return taken_along(x, where(position < length, length - 1 - position, position), time)


def trilu(c: Call) -> Array:
    x = c.x()
    row, column = (c.body.iota(x.shape, x.rank - 2 + i) for i in range(2))
    k = c.x(1).reshape(()) if c.has(1) else c.body.constant(0, i64)
    keep = (column >= row + k) if c.attr("upper") else (column <= row + k)
    return where(keep, x, False if x.dtype == boolean else 0)


def eye_like(c: Call) -> Array:
    dims, operand = operand_shape(c), c.operands[0]
    assert operand is not None
    dtype = dtype_named(c.attr("dtype"), c.where) if c.attr("dtype") else dtype_of_tensor(operand)
    row, column = (c.body.iota(dims, i) for i in range(2))
    return (column - row).compare("eq", c.attr("k")).astype(dtype)


def one_hot(c: Call) -> Array:
    indices, values = c.x(0), c.x(2)
    depth = int(c.numbers(1).reshape(-1)[0])
    axis = c.attr("axis") % (indices.rank + 1)
    wide = indices.astype(i64)
    wide = where(wide < 0, wide + depth, wide).unsqueeze(axis)
    target = (*indices.shape[:axis], depth, *indices.shape[axis:])
    hit = wide.broadcast_to(target).compare("eq", c.body.iota(target, axis))
    return where(hit, values.at(0, 1), values.at(0, 0))


def center_crop_pad(c: Call) -> Array:
    x, wanted = c.x(), [int(v) for v in c.numbers(1).reshape(-1)]
    axes = [a % x.rank for a in c.attr("axes", range(x.rank))]
    low, high = [0] * x.rank, [0] * x.rank
    for axis, target in zip(axes, wanted):
        whole = x.shape[axis]
        assert isinstance(whole, int)
        extra = target - whole
        low[axis] = extra // 2 if extra > 0 else -(-extra // 2)
        high[axis] = extra - low[axis]
    return x.pad(low, high)


def compress(c: Call) -> Array:
    """The condition decides how many elements there are, so it must be known."""
    x, condition = c.x(), c.numbers(1).reshape(-1).astype(bool)
    axis = c.attr("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.take(c.body.constant(np.flatnonzero(condition)), axis)


def tensor_scatter(c: Call) -> Array:
    """A cache with an update written at a position of each batch; "circular" wraps around."""
    cache, update = c.x(0), c.x(1)
    axis, mode = c.attr("axis") % cache.rank, c.attr("mode")
    batch = cache.shape[0]
    start = c.x(2).astype(i64) if c.has(2) else c.body.full((batch,), 0, i64)
    position = start.expand(update.shape, (0,)) + c.body.iota(update.shape, axis)
    if mode == "circular":
        position = position.rem(c.body.dim(cache.shape[axis]))
    address, _ = along(cache, position, axis)
    return scattered(cache, address, update, "set")


SHAPES: Mapping[str, Rule] = {
    "Constant": constant, "Identity": identity, "Shape": shape, "Size": size, "Reshape": reshape,
    "Transpose": transpose, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Flatten": flatten, "Concat": concat,
    "Split": split, "Slice": slice_, "Expand": expand, "Tile": tile, "Pad": pad, "Gather": gather,
    "GatherElements": gather_elements, "GatherND": gather_nd, "ScatterElements": scatter_elements,
    "Scatter": scatter_elements, "ScatterND": scatter_nd, "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth, "Range": range_, "ConstantOfShape": constant_of_shape,
    "ReverseSequence": reverse_sequence, "Trilu": trilu, "EyeLike": eye_like, "OneHot": one_hot,
    "CenterCropPad": center_crop_pad, "TensorScatter": tensor_scatter, "Compress": compress,
}  # fmt: skip
