"""Primitives that are made of other JAX operations: each row is a function of arrays, traced where it is used.

A row takes the primitive's operands, and its parameters by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..ir.graph import IRError, Value
from ..ir.types import Type
from .primitives_gamma import GAMMA, horner, wide
from .primitives_linalg import LINALG

if TYPE_CHECKING:
    from .primitives import Lowering
    from .tracing import Body

Array = Any


def by_jax(function: Callable[..., Any]) -> Lowering:
    """A primitive as the function of its operands that computes the same."""

    def lower(body: Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.inline(lambda *arrays: function(*arrays, **params), operands)

    return lower


# --- Special functions ---


def bessel_i0e(x: Array) -> Array:
    """e^-|x| I0(x): the polynomials of Abramowitz and Stegun, 9.8.1 and 9.8.2, within 2e-7."""
    a = jnp.abs(x)
    t = (a / 3.75) ** 2
    small = horner(t, 0.0045813, 0.0360768, 0.2659732, 1.2067492, 3.0899424, 3.5156229, 1.0) * jnp.exp(-a)
    s = 3.75 / jnp.maximum(a, 3.75)
    large = horner(s, 0.00392377, -0.01647633, 0.02635537, -0.02057706, 0.00916281, -0.00157565, 0.00225319,
                    0.01328592, 0.39894228) / jnp.sqrt(jnp.maximum(a, 3.75))  # fmt: skip
    return jnp.where(a < 3.75, small, large)


def bessel_i1e(x: Array) -> Array:
    """e^-|x| I1(x): Abramowitz and Stegun, 9.8.3 and 9.8.4."""
    a = jnp.abs(x)
    t = (a / 3.75) ** 2
    small = a * horner(t, 0.00032411, 0.00301532, 0.02658733, 0.15084934, 0.51498869, 0.87890594, 0.5) * jnp.exp(-a)
    s = 3.75 / jnp.maximum(a, 3.75)
    large = horner(s, -0.00420059, 0.01787654, -0.02895312, 0.02282967, -0.01031555, 0.00163801, -0.00362018,
                    -0.03988024, 0.39894228) / jnp.sqrt(jnp.maximum(a, 3.75))  # fmt: skip
    return jnp.sign(x) * jnp.where(a < 3.75, small, large)


# --- Bits ---


def _unsigned(dtype: Any) -> Any:
    return jnp.dtype(f"uint{jnp.dtype(dtype).itemsize * 8}")


def population_count(x: Array) -> Array:
    """Bits that are set: neighbours are summed in fields of 2, 4 and 8 bits, then bytes by a multiplication."""
    kind = _unsigned(x.dtype)
    bits = kind.itemsize * 8
    v = lax.bitcast_convert_type(x, kind)
    mask = [kind.type(int(m * 8, 16) & (2**bits - 1)) for m in ("55" * 1, "33", "0f", "01")]
    v = v - ((v >> kind.type(1)) & mask[0])
    v = (v & mask[1]) + ((v >> kind.type(2)) & mask[1])
    v = (v + (v >> kind.type(4))) & mask[2]
    v = v if bits == 8 else (v * mask[3]) >> kind.type(bits - 8)
    return v.astype(x.dtype)


def clz(x: Array) -> Array:
    """Zero bits before the first that is set: those of what is left when it is spread downwards."""
    kind = _unsigned(x.dtype)
    v = lax.bitcast_convert_type(x, kind)
    step = 1
    while step < kind.itemsize * 8:
        v = v | (v >> kind.type(step))
        step *= 2
    return population_count(~v).astype(x.dtype)


def nextafter(x: Array, y: Array) -> Array:
    """The float next to x towards y: its bits, as a count from zero, one up or down."""
    kind = jnp.dtype(f"int{x.dtype.itemsize * 8}")
    bits = lax.bitcast_convert_type(x, kind)
    least = lax.bitcast_convert_type(jnp.full(x.shape, 1, kind), x.dtype)
    away = (x < y) == (x > 0)
    moved = lax.bitcast_convert_type(jnp.where(away, bits + 1, bits - 1), x.dtype)
    moved = jnp.where(x == 0, jnp.where(y > 0, least, -least), moved)
    return jnp.where((x != x) | (y != y), x + y, jnp.where(x == y, y, moved))


def _ranked(x: Array) -> Array:
    """Integers in the total order of floats: -NaN below -inf, -0 below 0, NaN above inf."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    kind = jnp.dtype(f"int{x.dtype.itemsize * 8}")
    bits = lax.bitcast_convert_type(x, kind)
    return jnp.where(bits < 0, bits ^ np.iinfo(kind).max, bits)


def _total_order(compare: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    return lambda x, y, **_: compare(_ranked(x), _ranked(y))


def reduce_precision(x: Array, *, exponent_bits: int, mantissa_bits: int) -> Array:
    """f32 with fewer bits: nearest even; what is too large is infinite, what is too small zero."""
    if x.dtype == jnp.float64:
        raise IRError("reduce_precision of f64 is not supported: convert to f32 first")
    if x.dtype != jnp.float32:
        wide = reduce_precision(x.astype(jnp.float32), exponent_bits=exponent_bits, mantissa_bits=mantissa_bits)
        return wide.astype(x.dtype)
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    drop = 23 - mantissa_bits
    if drop > 0:
        last = (bits >> np.uint32(drop)) & np.uint32(1)
        rounded = bits + np.uint32((1 << (drop - 1)) - 1) + last
        bits = rounded & np.uint32(0xFFFFFFFF ^ ((1 << drop) - 1))
    y = lax.bitcast_convert_type(bits, jnp.float32)
    if exponent_bits < 8:
        most = 2 ** (exponent_bits - 1) - 1
        y = jnp.where(jnp.abs(y) >= np.float32(2.0) ** (most + 1), jnp.sign(x) * np.float32(np.inf), y)
        y = jnp.where(jnp.abs(y) < np.float32(2.0) ** (1 - most), x * 0, y)
    return jnp.where(jnp.isfinite(x), y, x)


# --- Orders and running reductions ---


def top_k(x: Array, *, k: int, axis: int = -1) -> tuple[Array, Array]:
    """Along another axis than the last."""
    values, indices = lax.top_k(jnp.moveaxis(x, axis, -1), k)
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(indices, -1, axis)


def approx_top_k(x: Array, *, k: int, reduction_dimension: int, is_max_k: bool, **_: Any) -> tuple[Array, Array]:
    """Exactly."""
    if is_max_k:
        return top_k(x, k=k, axis=reduction_dimension)
    values, indices = top_k(-x, k=k, axis=reduction_dimension)
    return -values, indices


def cumlogsumexp(x: Array, *, axis: int, reverse: bool) -> Array:
    return lax.associative_scan(jnp.logaddexp, x, reverse=reverse, axis=axis)


def reduce(*operands: Array, jaxpr: Any, dimensions: Sequence[int], consts: Sequence[Any] = (), **_: Any) -> Any:
    """A reduction by a function of the user's: halves of the sequence are combined until one element is left."""
    count = len(operands) // 2
    arrays, starts = operands[:count], operands[count:]
    closed = jaxpr if hasattr(jaxpr, "jaxpr") else jax.extend.core.ClosedJaxpr(jaxpr, consts)
    combine = jax.extend.core.jaxpr_as_fun(closed)
    kept = [d for d in range(arrays[0].ndim) if d not in dimensions]
    shape = tuple(arrays[0].shape[d] for d in kept)
    lines = [a.transpose([*dimensions, *kept]).reshape(-1, *shape) for a in arrays]
    for _axis in range(arrays[0].ndim - len(dimensions) + 1):
        combine = jax.vmap(combine)
    while lines[0].shape[0] > 1:
        if lines[0].shape[0] % 2:
            lines = [jnp.concatenate([a, jnp.broadcast_to(s, (1, *shape))]) for a, s in zip(lines, starts)]
        half = lines[0].shape[0] // 2
        lines = combine(*(a[:half] for a in lines), *(a[half:] for a in lines))
    first = [jnp.broadcast_to(s, (1, *shape)) for s in starts]
    return [r[0] for r in (combine(*first, *lines) if lines[0].shape[0] else first)]


def _ragged_dot(x: Array, w: Array, sizes: Array, *, ragged_dot_dimension_numbers: Any, **_: Any) -> Array:
    """Rows of x by groups, each with a matrix of its own: [m, k], [g, k, n], [g] → [m, n]."""
    numbers = ragged_dot_dimension_numbers
    dims = numbers.dot_dimension_numbers
    if (dims, tuple(numbers.lhs_ragged_dimensions), tuple(numbers.rhs_group_dimensions)) != (
        (((1,), (1,)), ((), ())), (0,), (0,)
    ):  # fmt: skip
        raise IRError("ragged_dot_general takes rows [m, k] in groups and matrices [g, k, n] only")
    ends = jnp.cumsum(sizes)
    row = jnp.arange(x.shape[0])
    of = (row[None] >= (ends - sizes)[:, None]) & (row[None] < ends[:, None])  # [g, m]
    each = jnp.einsum("mk,gkn->gmn", x, w)
    return jnp.sum(jnp.where(of[:, :, None], each, 0), 0).astype(x.dtype)


BY_JAX: dict[str, Callable[..., Any]] = {
    "bessel_i0e": wide(bessel_i0e), "bessel_i1e": wide(bessel_i1e),
    "population_count": population_count, "clz": clz, "nextafter": nextafter, "reduce_precision": reduce_precision,
    "approx_top_k": approx_top_k, "cumlogsumexp": cumlogsumexp, "reduce": reduce,
    "lt_to": _total_order(lax.lt), "le_to": _total_order(lax.le), "eq_to": _total_order(lax.eq),
    "ragged_dot_general": _ragged_dot, **GAMMA, **LINALG,
}  # fmt: skip


def _top_k(body: Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    last = operands[0].type.rank - 1
    if params.get("axis", last) in (last, -1):
        return body.make("top_k", operands[0], k=params["k"])
    return by_jax(top_k)(body, params, operands, types)


def _platform_index(body: Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """The branch for CPUs, else the default: one artifact computes the same on every platform."""
    rows = params["platforms"]
    found = next((i for i, names in enumerate(rows) if names and "cpu" in names), len(rows) - 1)
    return [body.constant(np.array(found, np.int32))]


SPECIAL_PRIMITIVES: dict[str, Lowering] = {
    **{name: by_jax(function) for name, function in BY_JAX.items()},
    "top_k": _top_k,
    "platform_index": _platform_index,
}
