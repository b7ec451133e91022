"""ATen's operations on runs and on series: segments, repeats, histograms with edges, orthogonal polynomials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ...ir.types import f64, i64
from .arrays import Array, where
from .by_jax import computed
from .torch_elementwise import operand
from .torch_import import Call, Rule

# ---- Runs -----------------------------------------------------------------------------------------------------------


def repeat_interleave(c: Call) -> Array:
    """The place that each row of the result comes from: as often as `repeats` says."""
    count = c.shape[0]
    ends = c.repeats.astype(i64).unary("cumsum", axis=0)
    return (ends.unsqueeze(0) <= c.body.arange(count).unsqueeze(1)).astype(i64).sum(1).astype(c.dtype)


# Of each reduction: over an axis, of two, and of nothing.
RUNS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any], float]] = {
    "sum": (jnp.sum, jnp.add, 0.0), "mean": (jnp.sum, jnp.add, 0.0), "prod": (jnp.prod, jnp.multiply, 1.0),
    "max": (jnp.max, jnp.maximum, -np.inf), "min": (jnp.min, jnp.minimum, np.inf),
}  # fmt: skip


def segment_reduce(c: Call) -> Array:
    """Over runs of an axis, of lengths that an array says, or that end where the next begins."""
    kind, axis = c.reduce, c.get("axis", 0) % c.data.rank
    lengths, offsets, start = c.get("lengths"), c.get("offsets"), c.get("initial")
    over, join, neutral = RUNS[kind]

    def reduced(x: Any, runs: Any) -> Any:
        ends = jnp.cumsum(runs, axis) if offsets is None else jnp.take(runs, jnp.arange(1, runs.shape[axis]), axis)
        begins = ends - runs if offsets is None else jnp.take(runs, jnp.arange(runs.shape[axis] - 1), axis)
        place = jnp.arange(x.shape[axis])
        inside = (begins[..., None] <= place) & (place < ends[..., None])  # [..., runs, rows]
        rest = x.ndim - axis - 1
        mask = inside.reshape(*inside.shape, *[1] * rest)
        each = jnp.where(mask, jnp.expand_dims(x, axis), neutral)
        count = inside.sum(-1).reshape(*begins.shape, *[1] * rest)
        total = over(each, axis + 1)
        total = total if start is None else join(total, float(start))
        if kind == "mean":
            total = jnp.where((count == 0) & (start is not None), total, total / count)
        return total.astype(x.dtype)

    return computed(reduced, c.data, lengths if offsets is None else offsets)[0]


def take(c: Call) -> Array:
    flat = c.self.reshape(-1)
    return flat.take(where(c.index < 0, c.index + c.body.dim(flat.shape[0]), c.index))


def resize(c: Call) -> Array:
    """The first elements in memory order."""
    flat, count = c.self.reshape(-1), int(np.prod([d for d in c.shape if isinstance(d, int)], dtype=np.int64))
    if not all(isinstance(d, int) for d in (*c.shape, *flat.shape)) or count > flat.shape[0]:
        raise c.error("it gives memory that nothing was written to; use torch.nn.functional.pad")
    return flat.slice(0, 0, count).reshape(*c.shape)


def histogram(c: Call) -> list[Array]:
    """Counts, or sums of weights, between edges that are given, or of equal bins; and the edges."""
    bins, span, density = c.get("bins", 100), c.get("range"), bool(c.get("density", False))
    weight = c.get("weight")

    def counts(x: Any, *rest: Any) -> Any:
        x, weights = x.reshape(-1), rest[-1].reshape(-1) if weight is not None else jnp.ones(x.size, x.dtype)
        if isinstance(bins, Array):
            edges = rest[0]
        else:
            low, high = (x.min(), x.max()) if span is None else (jnp.asarray(s, x.dtype) for s in span)
            low, high = jnp.where(low == high, low - 0.5, low), jnp.where(low == high, high + 0.5, high)
            edges = low + (high - low) * jnp.arange(bins + 1, dtype=x.dtype) / bins
        upper = (x[:, None] < edges[1:]) | ((x[:, None] == edges[-1]) & (jnp.arange(edges.size - 1) == edges.size - 2))
        total = jnp.where((x[:, None] >= edges[:-1]) & upper, weights[:, None], 0).sum(0)
        return (total / total.sum() / (edges[1:] - edges[:-1]) if density else total), edges

    return computed(counts, c.self, *(a for a in (bins, weight) if isinstance(a, Array)))


# ---- Orthogonal polynomials -----------------------------------------------------------------------------------------
# Each from its first two: (k, x, P[k], P[k - 1]) → P[k + 1].


def _chebyshev(k: Any, x: Any, p: Any, before: Any) -> Any:
    return 2 * x * p - before


Row = tuple[Callable[[Any], Any], Callable[[Any, Any, Any, Any], Any]]
POLYNOMIALS: Mapping[str, Row] = {
    "chebyshev_polynomial_t": (lambda x: x, _chebyshev), "chebyshev_polynomial_u": (lambda x: 2 * x, _chebyshev),
    "chebyshev_polynomial_v": (lambda x: 2 * x - 1, _chebyshev),
    "chebyshev_polynomial_w": (lambda x: 2 * x + 1, _chebyshev),
    "hermite_polynomial_h": (lambda x: 2 * x, lambda k, x, p, before: 2 * (x * p - k * before)),
    "hermite_polynomial_he": (lambda x: x, lambda k, x, p, before: x * p - k * before),
    "laguerre_polynomial_l": (lambda x: 1 - x, lambda k, x, p, before: ((2 * k + 1 - x) * p - k * before) / (k + 1)),
    "legendre_polynomial_p": (lambda x: x, lambda k, x, p, before: ((2 * k + 1) * x * p - k * before) / (k + 1)),
}  # fmt: skip


def polynomial(name: str) -> Rule:
    """Of the degrees `n`, by the recurrence up to the largest; of negative degrees 0."""
    first, following = POLYNOMIALS[name.removeprefix("shifted_")]

    def values(x: Any, n: Any) -> Any:
        x, n = jnp.broadcast_arrays(2 * x - 1 if name.startswith("shifted_") else x, jnp.trunc(n))

        def step(state: Any) -> Any:
            k, p, before, found = state
            new = following(k, x, p, before)
            return k + 1, new, p, jnp.where(n == k + 1, new, found)

        one = jnp.ones_like(x)
        start = jnp.where(n < 0, 0, jnp.where(n == 0, one, first(x)))
        return lax.while_loop(lambda s: s[0] < jnp.max(n), step, (jnp.ones((), x.dtype), first(x), one, start))[3]

    def rule(c: Call) -> Array:
        x, n = (operand(c, part, f64) for part in ("x", "n"))
        return computed(values, x, n)[0].astype(c.dtype)

    return rule


def spherical_bessel(c: Call) -> Array:
    return computed(lambda x: jnp.sinc(x / np.pi), operand(c, "x", c.dtype))[0]


SERIES: Mapping[str, Rule] = {
    "repeat_interleave.Tensor": repeat_interleave, "segment_reduce": segment_reduce, "resize": resize,
    "histogram": histogram, "take": take, "special_spherical_bessel_j0": spherical_bessel,
    **{f"special_{name}": polynomial(name) for name in POLYNOMIALS},
    **{f"special_shifted_{name}": polynomial(f"shifted_{name}") for name in POLYNOMIALS if name[:2] == "ch"},
}  # fmt: skip
