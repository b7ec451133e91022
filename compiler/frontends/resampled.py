"""Resampling along axes whose sizes are known at run time only: places and weights are computed as the program runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...ir.types import Dim, f32, i64
from .arrays import Array, where
from .products import dot

# The whole position that a place between two belongs to.
NEAREST: Mapping[str, Callable[[Array], Array]] = {
    "floor": lambda x: x.floor(), "ceil": lambda x: x.ceil(),
    "round_prefer_floor": lambda x: (x - 0.5).ceil(), "round_prefer_ceil": lambda x: (x + 0.5).floor(),
}  # fmt: skip


def at_places(x: Array, axis: int, origin: Array, kind: str, nearest: str = "floor", cubic: float = -0.75) -> Array:
    """x at the places `origin` (f32 [out]) of an axis, those outside moved inside; "nearest", "linear" or "cubic"."""
    last = x.body.dim(x.shape[axis] - 1)

    def neighbours(place: Array) -> Array:
        return x.take(place.astype(i64).maximum(0).minimum(last), axis)

    if kind == "nearest":
        return neighbours(NEAREST[nearest](origin))
    below = origin.floor()
    ratio = (origin - below).reshape([origin.shape[0] if i == axis else 1 for i in range(x.rank)])
    if kind == "linear":
        return neighbours(below) * (1 - ratio) + neighbours(below + 1) * ratio
    total = neighbours(below - 1) * cubic_weight(ratio + 1, cubic)
    for step in (0, 1, 2):
        total = total + neighbours(below + step) * cubic_weight(ratio - step, cubic)
    return total


def cubic_weight(distance: Array, a: float = -0.75) -> Array:
    """Keys' kernel."""
    t = distance.abs()
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return where(t <= 1, near, far)


def torch_origin(x: Array, axis: int, out: Dim, factor: float | Array | None, kind: str, align: bool,
                 exact: bool) -> Array:  # fmt: skip
    """Where torch finds output positions in an axis, computed in f32 as there; `exact` is of nearest-exact."""
    body, at = x.body, x.body.arange(out, f32)
    size = body.dim(x.shape[axis], f32)
    if align:
        return at * ((size - 1) / (body.dim(out, f32) - 1).maximum(1.0))
    if isinstance(factor, Array):
        step = (1 / factor).astype(f32)
    else:
        step = body.constant(1 / factor, f32) if factor else size / body.dim(out, f32)
    if kind == "nearest":
        return (at + 0.5 if exact else at) * step
    origin = (at + 0.5) * step - 0.5
    return origin.maximum(0.0) if kind == "linear" else origin


def onnx_origin(x: Array, axis: int, out: Dim, scale: float | None, mode: str) -> Array:
    """Where ONNX's Resize finds output positions in an axis; `scale` is None where sizes were given."""
    body, at = x.body, x.body.arange(out, f32)
    size, count = body.dim(x.shape[axis], f32), body.dim(out, f32)
    ratio = body.constant(scale, f32) if scale else count / size
    if mode == "align_corners":
        return at * ((size - 1) / (count - 1).maximum(1.0))
    if mode == "asymmetric":
        return at / ratio
    half = (at + 0.5) / ratio - 0.5
    if mode == "pytorch_half_pixel":
        return where(count > 1, half, -0.5)
    if mode == "half_pixel_symmetric":
        return half + size / 2 * (1 - count / (ratio * size))
    return half


def adaptive_mean(x: Array, axis: int, out: int) -> Array:
    """Means of `out` windows from floor(i · size / out) to ceil((i + 1) · size / out): a product with their matrix."""
    size, body = x.shape[axis], x.body
    whole, windows, at = body.dim(size), body.arange(out).unsqueeze(1), body.arange(size).unsqueeze(0)
    low, high = (windows * whole).floordiv(out), ((windows + 1) * whole + (out - 1)).floordiv(out)
    inside = ((at >= low) & (at < high)).astype(x.dtype)
    return dot(x, inside / (high - low).astype(x.dtype), ((axis,), (1,))).moveaxis(-1, axis)
