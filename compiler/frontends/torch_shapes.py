"""ATen operations that make, move and select elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...ir.types import Dim, boolean, dim_max, i64
from .arrays import Array, clamp_dim, common_shape, concatenate, stack, where
from .onnx_shapes import repeated, scattered, taken_along
from .onnx_shapes import sliced as python_slice
from .torch_elementwise import operand
from .torch_import import Call, Rule


def view_as_result(c: Call) -> Array:
    """Views whose result torch knows."""
    return c.self.reshape(c.shape)


def identity(c: Call) -> Array:
    return c.self


def permute(c: Call) -> Array:
    return c.self.transpose(*c.dims) if c.self.rank else c.self


def transpose(c: Call) -> Array:
    return c.self.swapaxes(c.dim0, c.dim1) if c.self.rank else c.self


def matrix_transpose(c: Call) -> Array:
    return c.self.transpose() if c.self.rank == 2 else c.self


def expand(c: Call) -> Array:
    return c.self.broadcast_to(c.shape)


def cat(c: Call) -> Array:
    parts = [t for t in c.tensors if t.shape != (0,) or len(c.tensors) == 1]  # torch lets empty vectors stand anywhere
    return concatenate([t.astype(c.dtype) for t in parts], c.get("dim", 0))


def stack_(c: Call) -> Array:
    return stack([t.astype(c.dtype) for t in c.tensors], c.get("dim", 0))


def split(c: Call) -> list[Array]:
    axis = c.get("dim", 0)
    sizes = c.get("split_sizes", c.get("split_size"))
    if not isinstance(sizes, list):
        whole, each = c.self.shape[axis], sizes
        sizes = [t.shape[axis] for t in c.results] if isinstance(whole, int) else [each] * len(c.results)
    return c.self.split(axis, sizes)


def unbind(c: Call) -> list[Array]:
    axis = c.get("dim", 0)
    return [c.self.at(axis, i) for i in range(int(c.self.shape[axis]))]


def slice_(c: Call) -> Array:
    axis, step = c.get("dim", 0), c.get("step", 1)
    whole = c.self.shape[axis]
    return python_slice(c.self, axis, c.get("start", 0), c.get("end", whole), step)


def _place(c: Call, index: Dim, axis: int) -> Dim:
    return index + c.self.shape[axis] if isinstance(index, int) and index < 0 else index


def select(c: Call) -> Array:
    if isinstance(c.index, Array):  # a number that depends on the data
        place = c.index + c.body.dim(c.self.shape[c.dim], c.index.dtype) * (c.index < 0).astype(c.index.dtype)
        return c.self.take(place, c.dim)
    return c.self.at(c.dim, _place(c, c.index, c.dim))


def narrow(c: Call) -> Array:
    start = _place(c, c.start, c.dim)
    return c.self.slice(c.dim, start, start + c.length)


def _put(x: Array, part: Array, axis: int, start: Dim, stop: Dim, step: int = 1) -> Array:
    """x with a slice of an axis replaced, as pieces joined."""
    axis %= x.rank
    if step == 1:
        whole = x.shape[axis]
        pieces = [x.slice(axis, 0, start)] if start != 0 else []
        pieces.append(part)
        return concatenate([*pieces, *([x.slice(axis, stop)] if stop != whole else [])], axis)
    count = part.shape[axis]
    positions = x.body.arange(count) * step + x.body.dim(start)
    moved = part.moveaxis(axis, 0)
    return scattered(x.moveaxis(axis, 0), positions.unsqueeze(-1), moved, "set").moveaxis(0, axis)


def slice_scatter(c: Call) -> Array:
    axis, step = c.get("dim", 0), c.get("step", 1)
    whole = c.self.shape[axis]
    low, high = c.get("start", 0), c.get("end", whole)
    low, high = (v + whole if isinstance(v, int) and v < 0 else v for v in (low, high))
    start = clamp_dim(low, 0, whole)
    return _put(c.self, c.src.astype(c.dtype), axis, start, dim_max(clamp_dim(high, 0, whole), start), step)


def select_scatter(c: Call) -> Array:
    at = _place(c, c.index, c.dim)
    return _put(c.self, c.src.astype(c.dtype).unsqueeze(c.dim), c.dim, at, at + 1)


def index(c: Call) -> Array:
    """x[i, j, …] with arrays of integers, some axes left out. Masks make shapes that depend on data."""
    x, given = c.self, list(c.indices)
    if any(i is not None and i.dtype == boolean for i in given):
        raise c.error("indexing by a mask makes a shape that depends on the data; use torch.where")
    axes = [a for a, i in enumerate(given) if i is not None]
    arrays = [given[a].astype(i64) for a in axes]
    if len(axes) == 1:
        return x.take(arrays[0], axes[0])
    shape = common_shape(*(a.shape for a in arrays))
    together = axes == list(range(axes[0], axes[-1] + 1))
    address = _address(x, arrays, axes, shape)
    rest = [d for a, d in enumerate(x.shape) if a not in axes]
    lead = axes[0] if together else 0
    offsets = [i if i < lead else i + len(shape) for i in range(len(rest))]
    sizes = tuple(1 if a in axes else d for a, d in enumerate(x.shape))
    return x.body.apply("gather", x, address, offset_dims=tuple(offsets), collapsed_slice_dims=tuple(axes),
                        start_index_map=tuple(axes), slice_sizes=sizes, mode="fill")  # fmt: skip


def _address(x: Array, arrays: Sequence[Array], axes: Sequence[int], shape: Sequence[Dim]) -> Array:
    """Indices of several axes, from the front, side by side in a last axis."""
    positive = [where(i < 0, i + x.body.dim(x.shape[a]), i) for i, a in zip(arrays, axes)]
    return concatenate([i.broadcast_to(shape).unsqueeze(-1) for i in positive], -1)


def _put_by_mask(x: Array, mask: Array, values: Array, added: bool) -> Array:
    """One value for all places, or the next row of values for each."""
    rest = x.shape[mask.rank :]
    if values.rank == len(rest) + 1 and values.shape[0] != 1:
        place = mask.reshape(-1).astype(i64).unary("cumsum", axis=0) - 1
        values = values.broadcast_to((values.shape[0], *rest)).take(place.maximum(0)).reshape(*x.shape)
    elif values.rank == len(rest) + 1:
        values = values.reshape(*values.shape[1:])
    full = mask.reshape(*mask.shape, *[1] * len(rest)).broadcast_to(x.shape)
    return where(full, x + values if added else values.broadcast_to(x.shape), x)


def index_put(c: Call) -> Array:
    x, given, values = c.self, list(c.indices), c.values
    if any(i is not None and i.dtype == boolean for i in given):
        if len(given) == 1:
            return _put_by_mask(x, given[0], values.astype(x.dtype), bool(c.get("accumulate", False)))
        raise c.error("writing by a mask makes a shape that depends on the data; use torch.where")
    axes = [a for a, i in enumerate(given) if i is not None]
    arrays = [given[a].astype(i64) for a in axes]
    shape = common_shape(*(a.shape for a in arrays))
    order = [*axes, *(a for a in range(x.rank) if a not in axes)]
    moved = x.transpose(*order)
    address = _address(moved, arrays, range(len(axes)), shape)
    rest = moved.shape[len(axes) :]
    if axes[0] == 0 or axes != list(range(axes[0], axes[-1] + 1)):
        spread = values.astype(x.dtype).broadcast_to((*shape, *rest))
    else:  # the indices' axes stand where theirs did
        lead = axes[0]
        whole = values.astype(x.dtype).broadcast_to((*rest[:lead], *shape, *rest[lead:]))
        n = len(shape)
        spread = whole.transpose(*range(lead, lead + n), *range(lead), *range(lead + n, whole.rank))
    put = scattered(moved, address, spread, "add" if c.get("accumulate", False) else "set")
    return put.transpose(*(order.index(a) for a in range(x.rank)))


def index_select(c: Call) -> Array:
    if not c.self.rank:
        return c.self
    return c.self.take(c.index.reshape(-1), c.dim)


def gather(c: Call) -> Array:
    if not c.self.rank:
        return c.self.broadcast_to(c.shape)
    return taken_along(c.self, c.index.astype(i64), c.dim)


KINDS = {"sum": "add", "add": "add", "mean": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min",
         None: "set"}  # fmt: skip


def scatter(c: Call) -> Array:
    x, kind = c.self, c.get("reduce")
    if not x.rank:
        return operand(c, "src" if "src" in c.arguments else "value", x.dtype).reshape(())
    places = c.index.astype(i64)
    if "src" in c.arguments:
        source = c.src.astype(x.dtype)
        for axis, size in enumerate(places.shape):
            source = source.slice(axis, 0, size)
    else:
        source = operand(c, "value", x.dtype).broadcast_to(places.shape)
    axis = c.dim % x.rank
    parts = [places if i == axis else c.body.iota(places.shape, i) for i in range(x.rank)]
    address = concatenate([p.unsqueeze(-1) for p in parts], -1)
    name = "add" if "scatter_add" in str(c.node.target) else KINDS[kind]
    own = c.get("include_self", True)
    if own and kind != "mean":
        return scattered(x, address, source, name)
    counts = scattered(c.body.full(x.shape, 0, i64), address, c.body.full(places.shape, 1, i64), "add")
    if not own:
        x = where(counts > 0, x.like(_identity(name, x)), x)
    y = scattered(x, address, source, name)
    if kind != "mean":
        return y
    counts = (counts + 1 if own else counts.maximum(1)).astype(x.dtype)
    return y / counts if x.dtype.is_float else y.floordiv(counts)


def _identity(kind: str, x: Array) -> float | int:
    """What a reduction begins with."""
    if kind in ("add", "mul"):
        return int(kind == "mul")
    sign = -1 if kind == "max" else 1
    if x.dtype.is_float:
        return sign * math.inf
    limits = np.iinfo(x.dtype.numpy)
    return int(limits.min if sign < 0 else limits.max)


def flip(c: Call) -> Array:
    return c.self.reverse(*c.dims) if c.dims and c.self.rank else c.self


def roll(c: Call) -> Array:
    x = c.self
    axes, shifts = list(c.get("dims", [])), list(c.shifts)
    if not axes:
        return _rolled(x.reshape(-1), 0, shifts[0]).reshape(*x.shape)
    for axis, shift in zip(axes, shifts):
        x = _rolled(x, axis, shift)
    return x


def _rolled(x: Array, axis: int, shift: int) -> Array:
    size = x.shape[axis % x.rank]
    first: Dim = -shift if shift < 0 else size - shift
    if isinstance(size, int):
        first = -shift % size if size else 0
    return concatenate([x.slice(axis, first), x.slice(axis, 0, first)], axis) if first != 0 else x


def repeat(c: Call) -> Array:
    x = c.self.reshape(*[1] * (len(c.repeats) - c.self.rank), *c.self.shape)
    for axis, count in enumerate(c.repeats):
        x = repeated(x, axis, count) if count != 1 else x
    return x


def pad(c: Call) -> Array:
    x, given = c.self, c.pad
    low, high = [0] * x.rank, [0] * x.rank
    for i in range(len(given) // 2):
        low[x.rank - 1 - i], high[x.rank - 1 - i] = given[2 * i], given[2 * i + 1]
    value = c.get("value", 0)
    return x.pad(low, high, value if x.dtype.is_float else int(value))


def full(c: Call) -> Array:
    name = str(c.node.target).split(".")[-2].removesuffix("_like").removeprefix("new_")
    value = {"zeros": 0, "ones": 1, "empty": 0, "empty_strided": 0, "empty_permuted": 0}.get(name)
    value = c.get("fill_value", c.get("value")) if value is None else value
    if isinstance(value, Array):
        return value.astype(c.dtype).broadcast_to(c.shape)
    return c.body.full(c.shape, value, c.dtype)


def arange(c: Call) -> Array:
    start, step = c.get("start", 0), c.get("step", 1)
    count = c.shape[0]
    if isinstance(start, int) and isinstance(step, int) and isinstance(count, int):
        return c.body.constant(np.arange(count) * step + start, c.dtype)
    x = c.body.arange(count, c.dtype)
    if step != 1:
        x = x * step
    if isinstance(start, (int, float)):
        return x + start if start else x
    return x + c.body.dim(start, c.dtype)


def linspace(c: Call) -> Array:
    return c.body.constant(np.linspace(c.start, c.end, c.steps), c.dtype)


def eye(c: Call) -> Array:
    return c.body.iota(c.shape, 0).compare("eq", c.body.iota(c.shape, 1)).astype(c.dtype)


def triangle(direction: str) -> Rule:
    def rule(c: Call) -> Array:
        x = c.self
        row, column = (c.body.iota(x.shape, x.rank - 2 + i) for i in range(2))
        keep = column.compare(direction, row + c.get("diagonal", 0))
        return where(keep, x, False if x.dtype == boolean else 0)

    return rule


def diagonal(c: Call) -> Array:
    x, offset = c.self, c.get("offset", 0)
    a, b = c.get("dim1", 0) % x.rank, c.get("dim2", 1) % x.rank
    order = [i for i in range(x.rank) if i not in (a, b)]
    moved = x.transpose(*order, a, b)
    places = c.body.arange(c.shape[-1])
    rows, columns = (places - offset, places) if offset < 0 else (places, places + offset)
    sizes = (*moved.shape[:-2], 1, 1)
    lead = moved.rank - 2
    return c.body.apply("gather", moved, stack([rows, columns], 1), offset_dims=tuple(range(lead)),
                        collapsed_slice_dims=(lead, lead + 1), start_index_map=(lead, lead + 1), slice_sizes=sizes,
                        mode="fill")  # fmt: skip


def embedding(c: Call) -> Array:
    return c.weight.take(c.indices)


def scalar(c: Call) -> Array:
    return operand(c, "s", c.dtype)


def pixel_shuffle(c: Call) -> Array:
    r = c.upscale_factor
    *lead, channels, height, width = c.self.shape
    n = len(lead)
    parts = c.self.reshape(*lead, channels // (r * r), r, r, height, width)
    moved = parts.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return moved.reshape(*lead, channels // (r * r), height * r, width * r)


def unfold(c: Call) -> Array:
    """Windows of an axis, in a new last axis."""
    if not c.self.rank:
        return c.self.broadcast_to(c.shape)
    x, axis = c.self, c.dimension % c.self.rank
    count = c.shape[axis]
    places = c.body.arange(count).unsqueeze(1) * c.step + c.body.arange(c.size).unsqueeze(0)
    return x.take(places, axis).moveaxis(axis + 1, -1)


def repeat_interleave(c: Call) -> Array:
    axis = c.get("dim")
    x = c.self.reshape(-1) if axis is None else c.self
    axis = (axis or 0) % x.rank
    shape = (*x.shape[: axis + 1], c.repeats, *x.shape[axis + 1 :])
    wide = x.expand(shape, [i for i in range(x.rank + 1) if i != axis + 1])
    return wide.reshape(*x.shape[:axis], x.shape[axis] * c.repeats, *x.shape[axis + 1 :])


def indices_of(function: Callable[..., Any]) -> Rule:
    return lambda c: c.body.constant(np.stack(function(c.row, c.get("offset", 0), c.col)), c.dtype)


def nothing(c: Call) -> Any:
    return None


SHAPES: Mapping[str, Rule] = {
    **{n: identity for n in "clone alias detach contiguous lift_fresh_copy lift_fresh dropout_ native_copy".split()},
    **{n: view_as_result for n in "view view_copy _unsafe_view unsqueeze squeeze reshape flatten unflatten".split()},
    **{n: nothing for n in "_assert_scalar sym_constrain_range_for_size _assert_tensor_metadata "
                           "_assert_async sym_constrain_range".split()},
    **{n: full for n in "full full_like zeros zeros_like ones ones_like empty empty_like new_full new_zeros new_ones "
                        "new_empty fill empty_strided new_empty_strided empty_permuted".split()},
    "permute": permute, "transpose": transpose, "t": matrix_transpose, "expand": expand, "cat": cat,
    "stack": stack_, "split": split, "split_with_sizes": split, "chunk": split, "unbind": unbind, "slice": slice_,
    "select": select, "narrow": narrow, "narrow_copy": narrow, "slice_scatter": slice_scatter,
    "select_scatter": select_scatter, "index": index, "_unsafe_index": index, "index_put": index_put,
    "_unsafe_index_put": index_put, "index_select": index_select, "gather": gather, "scatter": scatter,
    "scatter_add": scatter, "permute_copy": permute, "unbind_copy": unbind, "tril_indices": indices_of(np.tril_indices),
    "triu_indices": indices_of(np.triu_indices),
    "scatter_reduce": scatter, "flip": flip, "roll": roll, "repeat": repeat, "constant_pad_nd": pad, "arange": arange,
    "linspace": linspace, "eye": eye, "tril": triangle("le"), "triu": triangle("ge"), "diagonal": diagonal,
    "embedding": embedding, "scalar_tensor": scalar, "pixel_shuffle": pixel_shuffle, "unfold": unfold,
    "repeat_interleave.self_int": repeat_interleave,
}  # fmt: skip

