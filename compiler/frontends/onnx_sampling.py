"""ONNX operators that resample images: Resize and Upsample, GridSample, RoiAlign and DeformConv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import prod

import numpy as np

from ...ir.types import Dim, f32, floordiv, i64
from .arrays import Array, concatenate, where
from .onnx_import import Call, Rule
from .products import dot
from .resampled import at_places, cubic_weight, onnx_origin

# --- Resize: separable, so one axis after the other; each output is a weighted sum of a few neighbours ---


def _origin(mode: str, x: np.ndarray, scale: float, size: int, out: float, count: int, roi: tuple[float, float]):
    """Where output positions lie in the input. `out` is the exact output size, `count` the whole one."""
    if mode == "align_corners":
        return x * (size - 1) / (out - 1) if out != 1 else x * 0.0
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_crop_and_resize":
        low, high = roi
        inside = x * (high - low) * (size - 1) / (out - 1) if out != 1 else x * 0 + (high - low) * (size - 1) / 2
        return inside + low * (size - 1)
    if mode == "pytorch_half_pixel" and out == 1:
        return x * 0 - 0.5
    if mode == "half_pixel_symmetric":
        centre = size / 2
        return centre * (1 - count / out) + (x + 0.5) / scale - 0.5
    return (x + 0.5) / scale - 0.5


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel at distance t."""
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _nearest(ratio: np.ndarray, mode: str) -> np.ndarray:
    """0 for the neighbour below, 1 for the one above; a whole position is at ratio 1."""
    whole = ratio == 1
    up = {"floor": whole, "ceil": np.ones_like(whole), "round_prefer_ceil": ratio >= 0.5,
          "round_prefer_floor": ratio > 0.5}[mode]  # fmt: skip
    return np.where(whole, True, up)


def taps(origin: np.ndarray, scale: float, size: int, kind: str, nearest: str = "floor", antialias: bool = False,
         cubic: float = -0.75, exclude: bool = False) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Neighbours of each output [out, taps], moved inside, and their weights.

    `origin` is where outputs lie in an axis of `size`. `kind` is "nearest", "linear" or "cubic", `antialias` widens the
    last two where the axis shrinks, and with `exclude` neighbours outside have no weight.
    """
    below = np.ceil(origin).astype(np.int64) - 1
    ratio = origin - below
    if kind == "nearest":
        chosen = below + _nearest(ratio, nearest)
        return np.clip(chosen, 0, size - 1)[:, None], np.ones((len(origin), 1))
    shrink = min(scale, 1.0) if antialias else 1.0
    radius = 1 if kind == "linear" else 2
    start = math.floor(-radius / shrink) + 1
    offsets = np.arange(start, 2 - start)
    distance = (offsets[None] - ratio[:, None]) * shrink
    weights = np.clip(1 - np.abs(distance), 0, 1) if kind == "linear" else _cubic(distance, cubic)
    places = below[:, None] + offsets[None]
    if exclude:
        weights = weights * ((places >= 0) & (places < size))
    if exclude or shrink != 1.0:
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(places, 0, size - 1), weights


def resize(c: Call) -> Array:
    x = c.x(0)
    scales = c.numbers(2).reshape(-1) if c.has(2) else np.zeros(0)
    sizes: Sequence[Dim] = c.dims(3) if c.has(3) else []
    if c.version < 11:
        scales = c.numbers(1).reshape(-1)
    axes = [a % x.rank for a in c.attr("axes", range(x.rank))]
    roi = c.numbers(1).reshape(-1) if c.has(1) and c.version >= 11 else np.zeros(0)
    if not all(isinstance(d, int) for d in (*(x.shape[a] for a in axes), *sizes)):
        return _resize_varying(c, x, axes, scales, sizes)
    whole: list[int] = [x.shape[a] for a in axes]  # type: ignore[misc]
    if len(sizes):
        exact = [s / w for s, w in zip(sizes, whole)]  # type: ignore[operator]
        policy = c.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = min(exact) if policy == "not_larger" else max(exact)
            exact, sizes = [one] * len(axes), [math.floor(one * w + 0.5) for w in whole]
        outs, counts = [float(s) for s in sizes], [int(s) for s in sizes]  # type: ignore[arg-type]
    else:
        exact = [float(s) for s in scales]
        outs = [s * w for s, w in zip(exact, whole)]
        counts = [math.floor(o + 1e-6) for o in outs]
    mode, kind = c.attr("coordinate_transformation_mode", "asymmetric"), c.attr("mode")
    outside: Array | None = None
    narrow = x.dtype
    y = x if kind == "nearest" else x.astype(f32)
    for n, (axis, size, scale, out, count) in enumerate(zip(axes, whole, exact, outs, counts)):
        if scale == 1 and size == count and mode != "tf_crop_and_resize":
            continue
        region = (float(roi[n]), float(roi[n + len(axes)])) if len(roi) else (0.0, 1.0)
        origin = _origin(mode, np.arange(count, dtype=np.float64), scale, size, out, count, region)
        y = combined(y, axis, *taps(
            origin, scale, size, kind, c.attr("nearest_mode", "floor"), bool(c.attr("antialias", 0)),
            c.attr("cubic_coeff_a", -0.75), bool(c.attr("exclude_outside", 0))))  # fmt: skip
        if mode == "tf_crop_and_resize":
            beyond = c.body.constant((origin < 0) | (origin > size - 1))
            beyond = beyond.reshape(*(1 if i != axis else count for i in range(x.rank)))
            outside = beyond if outside is None else outside | beyond
    if outside is not None:
        y = where(outside, y.like(c.attr("extrapolation_value")), y)
    return y.astype(narrow)


def _resize_varying(c: Call, x: Array, axes: Sequence[int], scales: np.ndarray, sizes: Sequence[Dim]) -> Array:
    """Resize where the size of an axis, or of its result, is known at run time only."""
    mode, kind = c.attr("coordinate_transformation_mode", "asymmetric"), c.attr("mode")
    widened = c.attr("antialias", 0) or c.attr("exclude_outside", 0) or mode == "tf_crop_and_resize"
    if widened or c.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise c.error(f"the sizes {[x.shape[a] for a in axes]} of axes that are resized so must be fixed; give them "
                      "when exporting")  # fmt: skip
    y = x if kind == "nearest" else x.astype(f32)
    for n, axis in enumerate(axes):
        size, scale = x.shape[axis], float(scales[n]) if not sizes else None
        if scale is None:
            out = sizes[n]
        else:
            ratio = Fraction(scale).limit_denominator(1 << 10)
            out = floordiv(size * ratio.numerator, ratio.denominator)
        if out != size:
            origin = onnx_origin(y, axis, out, scale, mode)
            y = at_places(y, axis, origin, kind, c.attr("nearest_mode", "floor"), c.attr("cubic_coeff_a", -0.75))
    return y.astype(x.dtype)


def combined(x: Array, axis: int, places: np.ndarray, weights: np.ndarray) -> Array:
    """Σ over taps of weight times the neighbours along an axis."""
    if places.shape[1] == 1 and (weights == 1).all():
        return x.take(x.body.constant(places[:, 0]), axis)
    if places.shape[1] > 8:  # many taps: as a product with a matrix
        matrix = np.zeros((len(places), int(x.shape[axis])), np.float32)  # type: ignore[arg-type]
        np.add.at(matrix, (np.arange(len(places))[:, None], places), weights)
        return dot(x, x.body.constant(matrix), ((axis,), (1,))).moveaxis(-1, axis)
    shape = [len(places) if i == axis else 1 for i in range(x.rank)]
    total: Array | None = None
    for t in range(places.shape[1]):
        part = x.take(x.body.constant(places[:, t]), axis) * x.body.constant(
            weights[:, t].astype(np.float32)
        ).reshape(*shape)
        total = part if total is None else total + part
    assert total is not None
    return total


# --- Sampling at computed places ---


def sampled(x: Array, places: Sequence[Array], padding: str, align: bool) -> Array:
    """x[N, C, …] at whole positions, one array [N, …out] for each spatial axis -> [N, C, …out]."""
    valid: Array | None = None
    index: Array | None = None
    for place, size in zip(places, x.shape[2:]):
        last = x.body.dim(size - 1, place.dtype)
        if padding == "zeros":
            inside = (place >= 0) & (place <= last)
            valid = inside if valid is None else valid & inside
        elif padding == "reflection":
            place = reflected(place, size, align)
        place = place.maximum(0).minimum(last).astype(i64)
        index = place if index is None else index * x.body.dim(size) + place
    assert index is not None
    batch, channels = x.shape[:2]
    out = index.shape[1:]
    flat = x.reshape(batch, channels, prod(x.shape[2:]))
    taken = x.body.apply(
        "gather", flat, index.reshape(batch, -1, 1), offset_dims=(2,), collapsed_slice_dims=(2,), start_index_map=(2,),
        operand_batching_dims=(0,), start_indices_batching_dims=(0,), slice_sizes=(1, channels, 1),
        mode="clip")  # fmt: skip
    y = taken.transpose(0, 2, 1).reshape(batch, channels, *out)
    return y if valid is None else where(valid.unsqueeze(1), y, y.like(0.0))


def reflected(x: Array, size: Dim, align: bool) -> Array:
    """Positions turned back at the borders as often as it takes; whole ones stay whole."""
    if align and size == 1:
        return x * 0.0
    low, span = (0.0, x.body.dim(size - 1, x.dtype)) if align else (-0.5, x.body.dim(size, x.dtype))
    t = (x - low).abs()
    turns = (t / span).floor()
    rest = t - turns * span
    odd = (turns - 2 * (turns / 2.0).floor()) > 0.5
    return where(odd, span - rest, rest) + low


def grid_sample(c: Call) -> Array:
    x, grid = c.x(0).astype(f32), c.x(1).astype(f32)
    mode, padding, align = c.attr("mode"), c.attr("padding_mode"), bool(c.attr("align_corners"))
    return sample_grid(x, grid, mode, padding, align).astype(c.x(0).dtype)


def sample_grid(x: Array, grid: Array, mode: str, padding: str, align: bool, each: bool = False) -> Array:
    """x[N, C, …in] at grid[N, …out, n] in [-1, 1], whose last axis counts from the innermost axis of x. Places outside
    are moved, or with `each` their neighbours only."""
    n = x.rank - 2
    places = []
    for axis, size in enumerate(x.shape[2:]):
        g = grid.at(-1, n - 1 - axis)
        whole, last = x.body.dim(size, g.dtype), x.body.dim(size - 1, g.dtype)
        p = (g + 1) / 2 * last if align else ((g + 1) * whole - 1) / 2
        if padding == "border" and not each:
            p = p.maximum(0.0).minimum(last)
        elif padding == "reflection" and not each:
            p = reflected(p, size, align)
        places.append(p)
    if mode == "nearest":
        return sampled(x, [p.unary("round", mode="even") for p in places], padding, align)
    reach = (0, 1) if mode in ("linear", "bilinear") else (-1, 0, 1, 2)
    floors = [p.floor() for p in places]
    total: Array | None = None
    for offsets in product(reach, repeat=n):
        weight: Array | None = None
        for p, f, o in zip(places, floors, offsets):
            w = _linear_weight(p - f, o) if len(reach) == 2 else cubic_weight(p - f - float(o))
            weight = w if weight is None else weight * w
        assert weight is not None
        part = sampled(x, [f + float(o) for f, o in zip(floors, offsets)], padding, align) * weight.unsqueeze(1)
        total = part if total is None else total + part
    assert total is not None
    return total


def _linear_weight(ratio: Array, offset: int) -> Array:
    return ratio if offset else 1 - ratio


def deform_conv(c: Call) -> Array:
    """A convolution whose taps are moved by offsets [N, groups · taps · 2, …out], and weighed by a mask."""
    x, w, offset, bias, mask = c.x(0), c.x(1), c.x(2), c.optional(3), c.optional(4)
    groups, moved = c.attr("group"), c.attr("offset_group")
    kernel: list[int] = list(w.shape[2:])  # type: ignore[arg-type]
    n, taps = len(kernel), prod(kernel)
    strides, dilation = c.attr("strides") or [1] * n, c.attr("dilations") or [1] * n
    pads = c.attr("pads") or [0] * (2 * n)
    batch, channels = x.shape[:2]
    out = offset.shape[2:]
    offset = offset.reshape(batch, moved, taps, n, *out)
    each = channels // moved
    columns = []
    for tap, position in enumerate(product(*(range(k) for k in kernel))):
        parts = []
        for g in range(moved):
            places = []
            for axis in range(n):
                base = c.body.iota(out, axis, f32) * float(strides[axis])
                start = float(position[axis] * dilation[axis] - pads[axis])
                places.append(base + start + offset.at(1, g).at(1, tap).at(1, axis))
            part = _interpolated(x.slice(1, g * each, (g + 1) * each), places)
            if mask is not None:
                part = part * mask.reshape(batch, moved, taps, *out).at(1, g).at(1, tap).unsqueeze(1)
            parts.append(part)
        columns.append(concatenate(parts, 1).unsqueeze(2))
    patches = concatenate(columns, 2).reshape(batch, groups, channels // groups * taps, prod(out))
    weights = w.reshape(groups, w.shape[0] // groups, -1)
    y = dot(patches, weights, ((2,), (2,)), ((1,), (0,)))  # [groups, batch, out, outputs of a group]
    y = y.transpose(1, 0, 3, 2).reshape(batch, w.shape[0], *out)
    return y if bias is None else y + bias.expand(y.shape, (1,))


def _interpolated(x: Array, places: Sequence[Array]) -> Array:
    """Linear between neighbours; zeros outside."""
    floors = [p.floor() for p in places]
    total: Array | None = None
    for offsets in product((0, 1), repeat=len(places)):
        weight: Array | None = None
        for p, f, o in zip(places, floors, offsets):
            w = _linear_weight(p - f, o)
            weight = w if weight is None else weight * w
        assert weight is not None
        part = sampled(x, [f + float(o) for f, o in zip(floors, offsets)], "zeros", True) * weight.unsqueeze(1)
        total = part if total is None else total + part
    assert total is not None
    return total


def roi_align(c: Call) -> Array:
    """Each region's bins, the mean or maximum of samples in them; a fixed number of samples a bin is needed."""
    x, rois, batch = c.x(0), c.x(1), c.x(2)
    height, width = c.attr("output_height"), c.attr("output_width")
    ratio, scale = c.attr("sampling_ratio"), c.attr("spatial_scale")
    if ratio <= 0:
        raise c.error("sampling_ratio 0 makes the number of samples depend on the data; export with a fixed one")
    half = 0.5 if c.attr("coordinate_transformation_mode", "output_half_pixel") == "half_pixel" else 0.0
    x1, y1, x2, y2 = (rois.at(1, i) * scale - half for i in range(4))
    w, h = x2 - x1, y2 - y1
    if not half:
        w, h = w.maximum(1.0), h.maximum(1.0)
    count = rois.shape[0]
    per_roi = x.take(batch)  # [count, C, H, W]
    shape: tuple[Dim, ...] = (count, height, width, ratio, ratio)

    def places(start: Array, extent: Array, bins: int, bin_axis: int, sample_axis: int, size: Dim) -> Array:
        bin_size = extent / float(bins)
        at_bin = c.body.iota(shape, bin_axis, f32) * bin_size.expand(shape, (0,))
        inside = (c.body.iota(shape, sample_axis, f32) + 0.5) * (bin_size / float(ratio)).expand(shape, (0,))
        return start.expand(shape, (0,)) + at_bin + inside

    py = places(y1, h, height, 1, 3, x.shape[2])
    px = places(x1, w, width, 2, 4, x.shape[3])
    inside = None
    fixed = []
    for p, size in ((py, x.shape[2]), (px, x.shape[3])):
        seen = (p >= -1.0) & (p <= x.body.dim(size, p.dtype))
        inside = seen if inside is None else inside & seen
        fixed.append(p.maximum(0.0).minimum(x.body.dim(size - 1, p.dtype)))
    assert inside is not None
    floors = [p.floor() for p in fixed]
    corners = []
    for offsets in product((0, 1), repeat=2):
        weight = _linear_weight(fixed[0] - floors[0], offsets[0]) * _linear_weight(fixed[1] - floors[1], offsets[1])
        part = sampled(per_roi, [f + float(o) for f, o in zip(floors, offsets)], "border", True)
        corners.append(where(inside.unsqueeze(1), part * weight.unsqueeze(1), part.like(0.0)))
    if c.attr("mode") == "max":
        best = corners[0]
        for corner in corners[1:]:
            best = best.maximum(corner)
        return best.max(4, 5)
    return (corners[0] + corners[1] + corners[2] + corners[3]).mean(4, 5)


SAMPLING: Mapping[str, Rule] = {
    "Resize": resize, "Upsample": resize, "GridSample": grid_sample, "RoiAlign": roi_align, "DeformConv": deform_conv,
}  # fmt: skip
