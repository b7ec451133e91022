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

if TYPE_CHECKING:
    from .primitives import Lowering
    from .tracing import Body

Array = Any


def by_jax(function: Callable[..., Any]) -> Lowering:
    """A primitive as the function of its operands that computes the same."""

    def lower(body: Body, params: Mapping[str, Any], operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.inline(lambda *arrays: function(*arrays, **params), operands)

    return lower


def _wide(function: Callable[..., Array]) -> Callable[..., Array]:
    """In f32, rounded once."""

    def widened(x: Array, *rest: Array, **params: Any) -> Array:
        operands = (v.astype(jnp.float32) for v in (x, *rest))
        return function(*operands).astype(x.dtype)

    return widened


# --- Special functions ---


def erf_inv(x: Array) -> Array:
    """Giles, "Approximating the erfinv function", 2010: polynomials in w = -log(1 - x²)."""
    w = -jnp.log1p(-x * x)
    near, far = w - 2.5, jnp.sqrt(jnp.maximum(w, 0)) - 3.0
    p = _horner(near, 2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
                -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
    q = _horner(far, -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
                0.00943887047, 1.00167406, 2.83297682)  # fmt: skip
    inside = jnp.where(w < 5, p, q) * x
    return jnp.where(jnp.abs(x) == 1, x * np.float32(np.inf), inside)


def _horner(x: Array, *coefficients: float) -> Array:
    total = jnp.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total = total * x + np.float32(c)
    return total


# Lanczos' approximation with g = 7 and 9 terms (Godfrey's coefficients).
_LANCZOS = (676.520368121885098567009190444019, -1259.13921672240287047156078755283, 771.3234287776530788486528258894,
            -176.61502916214059906584551354, 12.507343278686904814458936853, -0.13857109526572011689554707,
            9.984369578019570859563e-6, 1.50563273514931155834e-7)  # fmt: skip


def lgamma(x: Array) -> Array:
    """log|Γ(x)|: Lanczos for x >= 1/2, by reflection below."""
    z = jnp.where(x < 0.5, -x, x - 1)
    total = jnp.full_like(z, 0.99999999999980993227684700473478)
    for i, c in enumerate(_LANCZOS):
        total = total + np.float32(c) / (z + (i + 1))
    t = z + 7.5
    log_t = np.float32(np.log(7.5)) + jnp.log1p(z / 7.5)
    value = (z + 0.5 - t / log_t) * log_t + np.float32(np.log(2 * np.pi) / 2) + jnp.log(total)
    whole = jnp.floor(x)
    fraction = jnp.abs(x) - jnp.floor(jnp.abs(x))
    fraction = jnp.where(fraction > 0.5, 1 - fraction, fraction)
    reflected = np.float32(np.log(np.pi)) - jnp.log(jnp.sin(np.float32(np.pi) * fraction)) - value
    result = jnp.where(x < 0.5, reflected, value)
    result = jnp.where((x <= 0) & (x == whole), np.float32(np.inf), result)
    return jnp.where(jnp.isinf(x), np.float32(np.inf), result)


def digamma(x: Array) -> Array:
    """Γ'/Γ: x is raised above 6 by ψ(x) = ψ(x + 1) - 1 / x, then the asymptotic series; by reflection below 1/2."""
    y = jnp.where(x < 0.5, 1 - x, x)
    shift = jnp.zeros_like(y)
    for _ in range(6):
        low = y < 6
        shift = shift + jnp.where(low, 1 / y, 0)
        y = jnp.where(low, y + 1, y)
    r = 1 / (y * y)
    series = _horner(r, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12, 0)
    value = jnp.log(y) - 0.5 / y + series - shift
    angle = np.float32(np.pi) * (x - jnp.round(x))
    reflected = value - np.float32(np.pi) * jnp.cos(angle) / jnp.sin(angle)
    result = jnp.where(x < 0.5, reflected, value)
    return jnp.where((x <= 0) & (x == jnp.floor(x)), np.float32(np.nan), result)


def bessel_i0e(x: Array) -> Array:
    """e^-|x| I0(x): the polynomials of Abramowitz and Stegun, 9.8.1 and 9.8.2."""
    a = jnp.abs(x)
    t = (a / 3.75) ** 2
    small = _horner(t, 0.0045813, 0.0360768, 0.2659732, 1.2067492, 3.0899424, 3.5156229, 1.0) * jnp.exp(-a)
    s = 3.75 / jnp.maximum(a, 3.75)
    large = _horner(s, 0.00392377, -0.01647633, 0.02635537, -0.02057706, 0.00916281, -0.00157565, 0.00225319,
                    0.01328592, 0.39894228) / jnp.sqrt(jnp.maximum(a, 3.75))  # fmt: skip
    return jnp.where(a < 3.75, small, large)


def bessel_i1e(x: Array) -> Array:
    """e^-|x| I1(x): Abramowitz and Stegun, 9.8.3 and 9.8.4."""
    a = jnp.abs(x)
    t = (a / 3.75) ** 2
    small = a * _horner(t, 0.00032411, 0.00301532, 0.02658733, 0.15084934, 0.51498869, 0.87890594, 0.5) * jnp.exp(-a)
    s = 3.75 / jnp.maximum(a, 3.75)
    large = _horner(s, -0.00420059, 0.01787654, -0.02895312, 0.02282967, -0.01031555, 0.00163801, -0.00362018,
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


def lu_pivots_to_permutation(pivots: Array, *, permutation_size: int) -> Array:
    if pivots.ndim > 1:
        return jax.vmap(lambda p: lu_pivots_to_permutation(p, permutation_size=permutation_size))(pivots)

    def swap(k: Array, order: Array) -> Array:
        place, pivot = jnp.arange(permutation_size), pivots[k]
        return jnp.where(place == k, order[pivot], jnp.where(place == pivot, order[k], order))

    return lax.fori_loop(0, pivots.shape[0], swap, jnp.arange(permutation_size, dtype=pivots.dtype))


def reduce_precision(x: Array, *, exponent_bits: int, mantissa_bits: int) -> Array:
    """f32 with fewer bits: nearest even; what is too large is infinite, what is too small zero."""
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


# --- Small linear algebra ---


def cholesky(x: Array, **_: Any) -> Array:
    """Column after column, of every matrix at once: L[j:, j] = (A - L L')[j:, j] / sqrt of its first."""
    n = x.shape[-1]
    row = jnp.arange(n)

    def column(j: Array, factor: Array) -> Array:
        own = lax.dynamic_index_in_dim(factor, j, -2, keepdims=False)
        rest = lax.dynamic_index_in_dim(x, j, -1, keepdims=False) - jnp.einsum("...ik,...k->...i", factor, own)
        head = jnp.sqrt(lax.dynamic_index_in_dim(rest, j, -1))
        made = jnp.where(row < j, 0, rest / head)
        return jnp.where(row == j, made[..., None], factor)

    return lax.fori_loop(0, n, column, jnp.zeros_like(x))


def triangular_solve(a: Array, b: Array, *, left_side: bool, lower: bool, transpose_a: bool, conjugate_a: bool,
                     unit_diagonal: bool) -> Array:  # fmt: skip
    """Row after row of x in a x = b."""
    if not left_side:  # x a = b as a' x' = b'
        turned = triangular_solve(a, jnp.swapaxes(b, -1, -2), left_side=True, lower=lower, conjugate_a=conjugate_a,
                                  transpose_a=not transpose_a, unit_diagonal=unit_diagonal)  # fmt: skip
        return jnp.swapaxes(turned, -1, -2)
    if transpose_a:
        a, lower = jnp.swapaxes(a, -1, -2), not lower
    n = a.shape[-1]
    row = jnp.arange(n)[:, None]

    def solved(i: Array, x: Array) -> Array:
        at = i if lower else n - 1 - i
        line = lax.dynamic_index_in_dim(a, at, -2, keepdims=False)
        known = jnp.einsum("...k,...kj->...j", jnp.where(row[:, 0] == at, 0, line), x)
        value = lax.dynamic_index_in_dim(b, at, -2, keepdims=False) - known
        if not unit_diagonal:
            value = value / lax.dynamic_index_in_dim(line, at, -1)
        return jnp.where(row == at, value[..., None, :], x)

    return lax.fori_loop(0, n, solved, jnp.zeros_like(b))


def lu(x: Array, **_: Any) -> tuple[Array, Array, Array]:
    """With row pivots: at step k the row with the largest element of column k comes to row k."""
    if x.ndim > 2:
        return jax.vmap(lu)(x)  # type: ignore[return-value]
    m, n = x.shape
    row, column = jnp.arange(m), jnp.arange(n)

    def step(k: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        a, pivots, order = state
        here = lax.dynamic_index_in_dim(a, k, 1, keepdims=False)
        pivot = jnp.argmax(jnp.where(row < k, -1, jnp.abs(here)))
        swap = jnp.where(row == k, pivot, jnp.where(row == pivot, k, row))
        a, order = a[swap], order[swap]
        head, line = a[k, k], a[k]
        below = jnp.where(row > k, lax.dynamic_index_in_dim(a, k, 1, keepdims=False) / head, 0)
        below = jnp.where(head == 0, 0, below)
        a = jnp.where((row[:, None] > k) & (column == k), below[:, None], a)
        a = a - below[:, None] * jnp.where(column > k, line, 0)
        return a, jnp.where(jnp.arange(pivots.shape[0]) == k, pivot.astype(pivots.dtype), pivots), order

    first = x, jnp.zeros(min(m, n), jnp.int32), row.astype(jnp.int32)
    return lax.fori_loop(0, min(m, n), step, first)


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
    "erf_inv": _wide(erf_inv), "lgamma": _wide(lgamma), "digamma": _wide(digamma),
    "bessel_i0e": _wide(bessel_i0e), "bessel_i1e": _wide(bessel_i1e),
    "population_count": population_count, "clz": clz, "nextafter": nextafter, "reduce_precision": reduce_precision,
    "approx_top_k": approx_top_k, "cumlogsumexp": cumlogsumexp, "reduce": reduce,
    "lt_to": _total_order(lax.lt), "le_to": _total_order(lax.le), "eq_to": _total_order(lax.eq),
    "lu_pivots_to_permutation": lu_pivots_to_permutation,
    "cholesky": cholesky, "triangular_solve": triangular_solve, "lu": lu, "ragged_dot_general": _ragged_dot,
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
