"""ATen's special functions, as JAX says them, and operations that order, search and count."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special

from ...ir.types import i32, i64
from .arrays import Array, where
from .by_jax import computed
from .onnx_shapes import scattered
from .products import matmul
from .torch_elementwise import floating, norm_of, operand
from .torch_import import Call, Rule

_KINDS = {"prod": "multiply", "mean": "add", "amax": "max", "amin": "min"}


def by_jax(function: Callable[..., Any], *names: str) -> Rule:
    """A function of JAX of operands in the dtype of the result; all of its results."""

    def rule(c: Call) -> Any:
        found = computed(function, *(operand(c, n, c.dtype) for n in names))
        return found if len(c.results) > 1 else found[0]

    return rule


def _float(function: Callable[..., Any]) -> Rule:
    return lambda c: computed(function, floating(c, c.self))[0]


def erfcx(x: Any) -> Any:
    """e^(x²) erfc(x): as that below 2; above by erfc's continued fraction, of as many terms as f64 needs there."""
    near = jnp.exp(jnp.where(x < 2, x * x, 0)) * lax.erfc(jnp.minimum(x, 2))
    far = jnp.maximum(x, 2)
    tail = jnp.zeros_like(far)
    for k in range(60, 0, -1):
        tail = (k / 2) / (far + tail)
    return jnp.where(x < 2, near, 1 / (np.sqrt(np.pi) * (far + tail)))


def polygamma(c: Call) -> Array:
    n = float(c.n)
    return computed(lambda x: lax.polygamma(jnp.full_like(x, n), x), floating(c, c.self))[0]


def angle(c: Call) -> Array:
    x = floating(c, c.self)
    turned = where(x < 0, x.like(math.pi), x.like(0.0))
    return where(x.compare("ne", x), x, turned)


def signbit(c: Call) -> Array:
    return computed(jnp.signbit, c.self)[0] if c.self.dtype.is_float else c.self < 0


# ---- Order ----------------------------------------------------------------------------------------------------------


def running_extreme(descending: bool) -> Rule:
    """Values and where they stand; of equal ones the last."""

    def rule(c: Call) -> list[Array]:
        if not c.self.rank:
            return [c.self, c.body.constant(0, i64)]
        axis = c.dim % c.self.rank

        def found(x: Any) -> Any:
            values = (lax.cummin if descending else lax.cummax)(x, axis)
            own = (x == values) | (x != x)
            return values, lax.cummax(jnp.where(own, lax.broadcasted_iota(jnp.int64, x.shape, axis), 0), axis)

        return computed(found, c.self)

    return rule


def log_cum_sum_exp(c: Call) -> Array:
    return computed(lambda x: lax.cumlogsumexp(x, c.dim % x.ndim), c.self)[0] if c.self.rank else c.self


def _ranked(c: Call, x: Array, axis: int, rank: Callable[[Any], Any]) -> list[Array]:
    """The element of a rank among the ascending elements of an axis, and where it stands."""

    def found(x: Any) -> Any:
        order = jnp.argsort(x, axis)
        at = jnp.expand_dims(jnp.take_along_axis(order, jnp.expand_dims(rank(x), axis), axis).squeeze(axis), axis)
        values, places = jnp.take_along_axis(x, at, axis), at.astype(jnp.int64)
        return (values, places) if c.get("keepdim", False) else (values.squeeze(axis), places.squeeze(axis))

    return computed(found, x)


def median(ignores_nan: bool) -> Rule:
    """The lower of two in the middle; a NaN is it, unless NaNs do not count."""

    def rule(c: Call) -> Any:
        x = c.self
        if c.get("dim") is None or not x.rank:
            whole = x.reshape(-1)
            values, places = (a.reshape(()) for a in _ranked(c, whole, 0, middle(0)))
            return values if len(c.results) == 1 else [values, places]
        return _ranked(c, x, c.dim % x.rank, middle(c.dim % x.rank))

    def middle(axis: int) -> Callable[[Any], Any]:
        def rank(x: Any) -> Any:
            numbers = (x == x).sum(axis)
            half = jnp.maximum(numbers - 1, 0) // 2
            return half if ignores_nan else jnp.where(numbers < x.shape[axis], numbers, half)

        return rank

    return rule


def kth_value(c: Call) -> list[Array]:
    if not c.self.rank:
        return [c.self, c.body.constant(0, i64)]
    axis = c.get("dim", -1) % c.self.rank
    return _ranked(c, c.self, axis, lambda x: jnp.full((*x.shape[:axis], *x.shape[axis + 1 :]), c.k - 1))


def mode(c: Call) -> list[Array]:
    """The least of the most frequent values, and where it stands last."""
    if not c.self.rank:
        return [c.self, c.body.constant(0, i64)]
    axis = c.get("dim", -1) % c.self.rank

    def found(x: Any) -> Any:
        rows = jnp.moveaxis(x, axis, -1)
        counts = (rows[..., :, None] == rows[..., None, :]).sum(-1)
        often = counts == counts.max(-1, keepdims=True)
        most = jnp.iinfo(x.dtype).max if jnp.issubdtype(x.dtype, jnp.integer) else jnp.inf
        value = jnp.where(often, rows, most).min(-1, keepdims=True)
        place = jnp.where(rows == value, jnp.arange(rows.shape[-1]), -1).max(-1)
        value = value[..., 0]
        if c.get("keepdim", False):
            value, place = (jnp.expand_dims(v, axis) for v in (value, place))
        return value, place.astype(jnp.int64)

    return computed(found, c.self)


def search(c: Call) -> Array:
    """`searchsorted(sorted_sequence, self)` and `bucketize(self, boundaries)`: how many stand before."""
    edges = c.get("sorted_sequence", c.get("boundaries"))
    if isinstance(sorter := c.get("sorter"), Array):
        edges = computed(lambda e, s: jnp.take_along_axis(e, s, -1), edges, sorter)[0]
    side = c.get("side") or ("right" if c.get("right", False) else "left")
    dtype = jnp.int32 if c.get("out_int32", False) else jnp.int64
    values = operand(c, "self", edges.dtype) if not isinstance(c.self, Array) else c.self

    def places(edges: Any, values: Any) -> Any:
        wide = jnp.promote_types(edges.dtype, values.dtype)
        function = lambda e, v: jnp.searchsorted(e, v, side=side)  # noqa: E731
        for _ in range(edges.ndim - 1):
            function = jax.vmap(function)
        return function(edges.astype(wide), values.astype(wide)).astype(dtype)

    return computed(places, edges, values)[0]


def histogram(c: Call) -> Array:
    """Of equal bins from `min` to `max`, or over all there is where both are equal; the last has its end too."""
    bins, low, high = c.get("bins", 100), float(c.get("min", 0)), float(c.get("max", 0))

    def counts(x: Any) -> Any:
        x = x.reshape(-1)
        least, most = (x.min(), x.max()) if low == high else (jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype))
        least, most = jnp.where(least == most, least - 1, least), jnp.where(least == most, most + 1, most)
        at = jnp.floor((x - least) / (most - least) * bins)
        at = jnp.where((x == most), bins - 1, at)
        return (at[:, None] == jnp.arange(bins)).sum(0).astype(x.dtype)

    return computed(counts, c.self)[0]


# ---- Places ---------------------------------------------------------------------------------------------------------


def masked_scatter(c: Call) -> Array:
    """Where the mask is true, the next element of the source."""
    shape = c.shape
    mask = c.mask.broadcast_to(shape)
    place = mask.reshape(-1).astype(i64).unary("cumsum", axis=0) - 1
    taken = c.source.reshape(-1).take(place.maximum(0)).reshape(*shape)
    return where(mask, taken, c.self.broadcast_to(shape))


def _strided_places(c: Call, sizes: Any, strides: Any, offset: Any) -> Array:
    given = c.meta("self")
    if not given.is_contiguous():
        raise c.error("as_strided of memory in another order is not supported; call contiguous() before")
    place = c.body.full(tuple(sizes), 0, i64) + c.body.dim(offset or 0)
    for axis, stride in enumerate(strides):
        place = place + c.body.iota(tuple(sizes), axis) * c.body.dim(stride)
    return place


def as_strided(c: Call) -> Array:
    return c.self.reshape(-1).take(_strided_places(c, c.size, c.stride, c.get("storage_offset")))


def as_strided_scatter(c: Call) -> Array:
    places = _strided_places(c, c.size, c.stride, c.get("storage_offset"))
    flat = scattered(c.self.reshape(-1), places.reshape(-1, 1), c.src.astype(c.dtype).reshape(-1), "set")
    return flat.reshape(*c.self.shape)


def diagonal_scatter(c: Call) -> Array:
    a, b = c.get("dim1", 0) % c.self.rank, c.get("dim2", 1) % c.self.rank
    offset = c.get("offset", 0)

    def put(x: Any, source: Any) -> Any:
        moved = jnp.moveaxis(x, (a, b), (-2, -1))
        place = jnp.arange(source.shape[-1])
        moved = moved.at[..., place - min(offset, 0), place + max(offset, 0)].set(source)
        return jnp.moveaxis(moved, (-2, -1), (a, b))

    return computed(put, c.self, c.src.astype(c.dtype))[0]


def put(c: Call) -> Array:
    flat = c.self.reshape(-1)
    places = c.index.reshape(-1)
    places = where(places < 0, places + c.body.dim(flat.shape[0]), places)
    kind = "add" if c.get("accumulate", False) else "set"
    return scattered(flat, places.unsqueeze(-1), c.source.reshape(-1), kind).reshape(*c.self.shape)


def index_reduce(c: Call) -> Array:
    kind, axis, own = c.reduce, c.dim, bool(c.get("include_self", True))

    def reduced(x: Any, index: Any, source: Any) -> Any:
        x, source = (jnp.moveaxis(jnp.atleast_1d(v), axis, 0) for v in (x, source))
        count = jnp.zeros(x.shape[0], x.dtype).at[index].add(1).reshape(-1, *[1] * (x.ndim - 1))
        y = x
        if not own:
            start = {"prod": 1, "mean": 0, "amax": -jnp.inf, "amin": jnp.inf}[kind]
            if jnp.issubdtype(x.dtype, jnp.integer) and kind in ("amax", "amin"):
                start = jnp.iinfo(x.dtype).min if kind == "amax" else jnp.iinfo(x.dtype).max
            y = jnp.where(count > 0, jnp.asarray(start, x.dtype), x)
        y = getattr(y.at[index], _KINDS[kind])(source)
        if kind == "mean":
            count = jnp.maximum(count + own, 1)
            y = y / count if jnp.issubdtype(x.dtype, jnp.floating) else y // count
        return jnp.moveaxis(y, 0, axis)

    result = computed(reduced, c.self, c.index.reshape(-1), c.source)[0]
    return result.reshape(*c.shape)


def nonzero_static(c: Call) -> Array:
    size, fill = c.size, c.get("fill_value", -1)

    def places(x: Any) -> Any:
        found = jnp.nonzero(jnp.atleast_1d(x), size=size, fill_value=fill)
        return jnp.stack(found[: x.ndim], 1).astype(jnp.int64) if x.ndim else jnp.zeros((size, 0), jnp.int64)

    return computed(places, c.self)[0]


def embedding_bag(c: Call) -> list[Array]:
    """Sums (0), means (1) or maxima (2) of bags of rows of a table; a bag begins at each offset."""
    if any(user.args[1] != 0 and user.users for user in c.node.users):
        raise c.error("only the bags themselves are supported; leave out its other results")
    table, indices, offsets, mode = c.weight, c.indices.reshape(-1), c.offsets, c.get("mode", 0)
    bags = c.shape[0]
    begins = offsets.slice(0, 0, bags)
    bag = begins.unsqueeze(0) <= c.body.arange(indices.shape[0], begins.dtype).unsqueeze(1)
    of = bag.astype(i64).sum(1) - 1
    rows = table.take(indices)
    weights = c.get("per_sample_weights")
    rows = rows if weights is None else rows * weights.astype(rows.dtype).unsqueeze(-1)
    padding = c.get("padding_idx", -1)
    kept = indices.compare("ne", padding if padding >= 0 else table.shape[0])
    neutral = -math.inf if mode == 2 else 0.0
    rows = where(kept.unsqueeze(-1), rows, neutral)
    start = c.body.full((bags, table.shape[1]), neutral, rows.dtype)
    total = scattered(start, of.unsqueeze(-1), rows, "max" if mode == 2 else "add")
    if mode:
        count = scattered(c.body.full((bags,), 0, i64), of.unsqueeze(-1), kept.astype(i64), "add").unsqueeze(-1)
        total = where(count > 0, total, 0.0) if mode == 2 else total / count.maximum(1).astype(total.dtype)
    others = (c.body.full(tuple(map(c.importer.dim, r.shape)), 0, i64) for r in c.results[1:])
    return [total.astype(c.dtype), *others]


def pairwise_distances(c: Call) -> Array:
    n = c.self.shape[0]
    if not isinstance(n, int):
        raise c.error("the number of rows must be fixed; export with a fixed one")
    first, second = (c.body.constant(i.astype(np.int64)) for i in np.triu_indices(n, 1))
    return norm_of(c.self.take(first) - c.self.take(second), c.get("p", 2.0), [-1], False)


# ---- Products -------------------------------------------------------------------------------------------------------


def addbmm(c: Call) -> Array:
    y = matmul(c.batch1, c.batch2).sum(0)
    return c.self * c.get("beta", 1) + y * c.get("alpha", 1)


def trilinear(c: Call) -> Array:
    x, y, z = (v.unsqueeze(*e) if e else v for v, e in ((c.i1, c.expand1), (c.i2, c.expand2), (c.i3, c.expand3)))
    return (x * y * z).reduce("sum", c.sumdim)


def int_mm(c: Call) -> Array:
    numbers = {"contracting": ((1,), (0,)), "batch": ((), ())}
    return c.body.apply("dot_general", c.self.astype(i32), c.mat2.astype(i32), dtype=i32, **numbers)


def quantize(c: Call) -> Array:
    """round(x / scale) + zero point, within bounds; for each channel of an axis, or for all."""
    scale, zero = (_per_channel(c, n) for n in (("scales", "scale"), ("zero_points", "zero_point")))
    rounded = (c.input * (1 / scale.astype(c.input.dtype))).unary("round", mode="even")
    return (rounded + zero.astype(rounded.dtype)).maximum(c.quant_min).minimum(c.quant_max).astype(c.dtype)


def dequantize(c: Call) -> Array:
    scale, zero = (_per_channel(c, n) for n in (("scales", "scale"), ("zero_points", "zero_point")))
    return (c.input.astype(c.dtype) - zero.astype(c.dtype)) * scale.astype(c.dtype)


def _per_channel(c: Call, names: tuple[str, str]) -> Array:
    """A setting as an array that stands beside the input."""
    value = c.get(names[0], c.get(names[1], 0))
    if not isinstance(value, Array):
        return c.body.constant(value)
    if "axis" not in c.arguments or not value.rank:
        return value.reshape(())
    return value.reshape([value.shape[0] if i == c.axis % c.input.rank else 1 for i in range(c.input.rank)])


UNARY: Mapping[str, Any] = {
    "lgamma": lax.lgamma, "digamma": lax.digamma, "erfinv": lax.erf_inv, "i0": special.i0,
    "special_modified_bessel_i0": special.i0, "special_modified_bessel_i1": special.i1, "special_i0e": special.i0e,
    "special_i1": special.i1, "special_i1e": special.i1e, "special_ndtri": special.ndtri, "special_erfcx": erfcx,
}  # fmt: skip
BINARY: Mapping[str, Any] = {
    "nextafter": lax.nextafter, "igamma": lax.igamma, "igammac": lax.igammac, "gcd": jnp.gcd, "lcm": jnp.lcm,
    "special_zeta": lax.zeta,
}  # fmt: skip
SPECIAL: Mapping[str, Rule] = {
    **{name: _float(function) for name, function in UNARY.items()},
    **{name: by_jax(lambda a, b, f=f: f(*jnp.broadcast_arrays(a, b)), "self", "other") for name, f in BINARY.items()},
    "polygamma": polygamma, "angle": angle, "signbit": signbit,
    "frexp": lambda c: computed(jnp.frexp, c.self), "dist": lambda c: norm_of(c.self - c.other, c.get("p", 2), list(
        range(max(c.self.rank, c.other.rank))), False),
    "cummax": running_extreme(False), "cummin": running_extreme(True), "logcumsumexp": log_cum_sum_exp,
    "median": median(False), "nanmedian": median(True), "kthvalue": kth_value, "mode": mode, "searchsorted": search,
    "bucketize": search, "histc": histogram, "masked_scatter": masked_scatter, "as_strided": as_strided,
    "as_strided_copy": as_strided, "as_strided_scatter": as_strided_scatter, "diagonal_scatter": diagonal_scatter,
    "put": put, "index_reduce": index_reduce, "nonzero_static": nonzero_static, "_embedding_bag": embedding_bag,
    "_embedding_bag_forward_only": embedding_bag, "_pdist_forward": pairwise_distances, "addbmm": addbmm,
    "_trilinear": trilinear, "_int_mm": int_mm,
    "_weight_int8pack_mm": lambda c: matmul(c.self, c.mat2.astype(c.self.dtype).transpose()) * c.scales,
    **{f"quantized_decomposed::{n}": quantize for n in (
        "quantize_per_tensor", "quantize_per_channel")},
    **{f"quantized_decomposed::{n}": dequantize for n in (
        "dequantize_per_tensor", "dequantize_per_channel")},
}  # fmt: skip

