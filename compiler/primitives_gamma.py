"""The gamma function's family and the inverse of erf by JAX's other operations, in f32, or in f64 for f64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

Array = Any
MOST = 2000  # terms of a series that does not end before


def wide(function: Callable[..., Array]) -> Callable[..., Array]:
    """In f32 at least, rounded once."""

    def widened(x: Array, *rest: Array, **params: Any) -> Array:
        inner = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        return function(*(v.astype(inner) for v in (x, *rest))).astype(x.dtype)

    return widened


def horner(x: Array, *coefficients: float) -> Array:
    """The polynomial with these coefficients, the highest power's first."""
    total = jnp.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total = total * x + c
    return total


def erf_inv(x: Array) -> Array:
    """Giles, "Approximating the erfinv function", 2010: polynomials in w = -log(1 - x²); in f64 Newton's steps too."""
    w = -jnp.log1p(-x * x)
    near, far = w - 2.5, jnp.sqrt(jnp.maximum(w, 0)) - 3.0
    p = horner(near, 2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
               -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
    q = horner(far, -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
               0.00943887047, 1.00167406, 2.83297682)  # fmt: skip
    y = jnp.where(w < 5, p, q) * x
    if x.dtype == jnp.float64:
        for _ in range(2):
            y = y - (lax.erf(y) - x) * (np.sqrt(np.pi) / 2) * jnp.exp(y * y)
    return jnp.where(jnp.abs(x) == 1, x * np.inf, y)


# Lanczos' approximation with g = 7 and 9 terms (Godfrey's coefficients).
_LANCZOS = (676.520368121885098567009190444019, -1259.13921672240287047156078755283, 771.3234287776530788486528258894,
            -176.61502916214059906584551354, 12.507343278686904814458936853, -0.13857109526572011689554707,
            9.984369578019570859563e-6, 1.50563273514931155834e-7)  # fmt: skip


def lgamma(x: Array) -> Array:
    """log|Γ(x)|: Lanczos for x >= 1/2, by reflection below."""
    z = jnp.where(x < 0.5, -x, x - 1)
    total = jnp.full_like(z, 0.99999999999980993227684700473478)
    for i, c in enumerate(_LANCZOS):
        total = total + c / (z + (i + 1))
    t = z + 7.5
    log_t = np.log(7.5) + jnp.log1p(z / 7.5)
    value = (z + 0.5 - t / log_t) * log_t + np.log(2 * np.pi) / 2 + jnp.log(total)
    whole = jnp.floor(x)
    fraction = jnp.abs(x) - jnp.floor(jnp.abs(x))
    fraction = jnp.where(fraction > 0.5, 1 - fraction, fraction)
    reflected = np.log(np.pi) - jnp.log(jnp.sin(np.pi * fraction)) - value
    result = jnp.where(x < 0.5, reflected, value)
    result = jnp.where((x <= 0) & (x == whole), np.inf, result)
    return jnp.where(jnp.isinf(x), np.inf, result)


def digamma(x: Array) -> Array:
    """Γ'/Γ: x is raised above 10 by ψ(x) = ψ(x + 1) - 1 / x, then the asymptotic series; by reflection below 1/2."""
    y = jnp.where(x < 0.5, 1 - x, x)
    shift = jnp.zeros_like(y)
    for _ in range(10):
        low = y < 10
        shift = shift + jnp.where(low, 1 / y, 0)
        y = jnp.where(low, y + 1, y)
    r = 1 / (y * y)
    series = horner(r, -1 / 12, 691 / 32760, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12, 0)
    value = jnp.log(y) - 0.5 / y + series - shift
    angle = np.pi * (x - jnp.round(x))
    reflected = value - np.pi * jnp.cos(angle) / jnp.sin(angle)
    result = jnp.where(x < 0.5, reflected, value)
    return jnp.where((x <= 0) & (x == jnp.floor(x)), np.nan, result)


# --- Incomplete integrals ---


def _power_and_decay(a: Array, x: Array) -> Array:
    """x^a e^-x / Γ(a)"""
    return jnp.exp(a * jnp.log(x) - x - lgamma(a))


def _lower_series(a: Array, x: Array) -> Array:
    """Γ's lower part over Γ(a), as a power series: for x up to a + 1."""
    eps = jnp.finfo(x.dtype).eps

    def more(state: tuple[Array, ...]) -> Array:
        n, term, total = state
        return (n < MOST) & jnp.any(term > eps * total)

    def add(state: tuple[Array, ...]) -> tuple[Array, ...]:
        n, term, total = state
        term = term * x / (a + n)
        return n + 1, term, total + term

    one = jnp.ones_like(x)
    _, _, total = lax.while_loop(more, add, (jnp.ones((), x.dtype), one, one))
    return total * _power_and_decay(a, x) / a


def _fraction(first: Array, term: Callable[[Array], tuple[Array, Array]]) -> Array:
    """first + a1 / (b1 + a2 / (b2 + …)) with (a, b) = term(n), by Lentz' method."""
    eps, tiny = jnp.finfo(first.dtype).eps, float(jnp.finfo(first.dtype).tiny) * 1e6

    def apart(v: Array) -> Array:
        return jnp.where(jnp.abs(v) < tiny, tiny, v)

    def more(state: tuple[Array, ...]) -> Array:
        n, *_, change = state
        return (n < MOST) & jnp.any(jnp.abs(change - 1) > eps)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        n, value, c, d, _ = state
        a, b = term(n)
        d = 1 / apart(b + a * d)
        c = apart(b + a / c)
        return n + 1, value * c * d, c, d, c * d

    start = apart(first)
    state = (jnp.ones((), first.dtype), start, start, jnp.zeros_like(first), jnp.zeros_like(first))
    return lax.while_loop(more, step, state)[1]


def _upper_fraction(a: Array, x: Array) -> Array:
    """Γ's upper part over Γ(a), as a continued fraction: for x above a + 1."""
    return _power_and_decay(a, x) / _fraction(x + 1 - a, lambda n: (-n * (n - a), x + 2 * n + 1 - a))


def _incomplete(upper: bool) -> Callable[..., Array]:
    def gamma(a: Array, x: Array, **_: Any) -> Array:
        inside = (x > 0) & (a > 0) & jnp.isfinite(x) & jnp.isfinite(a)
        by_series = x < a + 1
        low = inside & by_series
        high = inside & ~by_series
        one = jnp.ones_like(x)
        series = _lower_series(jnp.where(low, a, one), jnp.where(low, x, one))
        fraction = _upper_fraction(jnp.where(high, a, one), jnp.where(high, x, 3 * one))
        value = jnp.where(by_series, 1 - series if upper else series, fraction if upper else 1 - fraction)
        ends = jnp.where((x == np.inf) | (a == 0), 1.0, 0.0).astype(x.dtype)  # of the lower part
        value = jnp.where(inside, value, 1 - ends if upper else ends)
        wrong = (x < 0) | (a < 0) | (x != x) | (a != a) | ((x == 0) & (a == 0)) | ((x == np.inf) & (a == np.inf))
        return jnp.where(wrong, np.nan, value)

    return gamma


def regularized_incomplete_beta(a: Array, b: Array, x: Array) -> Array:
    """I_x(a, b) by its continued fraction, from the side where that is short."""
    turned = x > (a + 1) / (a + b + 2)
    p, q, y = jnp.where(turned, b, a), jnp.where(turned, a, b), jnp.where(turned, 1 - x, x)
    inside = (y > 0) & (y < 1) & (a > 0) & (b > 0)
    p, q, y = (jnp.where(inside, v, 0.5) for v in (p, q, y))

    def term(n: Array) -> tuple[Array, Array]:
        m = jnp.floor(n / 2)
        even = m * (q - m) * y / ((p + 2 * m - 1) * (p + 2 * m))
        odd = -(p + m) * (p + q + m) * y / ((p + 2 * m) * (p + 2 * m + 1))
        return jnp.where(n == 2 * m, even, odd), jnp.ones_like(y)

    size = jnp.exp(p * jnp.log(y) + q * jnp.log1p(-y) + lgamma(p + q) - lgamma(p) - lgamma(q))
    value = size / (p * _fraction(jnp.ones_like(y), term))
    value = jnp.where(turned, 1 - value, value)
    value = jnp.where(inside, value, jnp.where(x <= 0, 0.0, 1.0))
    return jnp.where((a <= 0) | (b <= 0) | (x < 0) | (x > 1) | (x != x), np.nan, value)


# --- Zeta ---

_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)


def zeta(s: Array, q: Array) -> Array:
    """Hurwitz' ζ(s, q), the sum of (q + k)^-s: twelve terms, and the rest by Euler and Maclaurin."""
    total = jnp.zeros_like(q + s)
    count = 12
    for k in range(count):
        total = total + (q + k) ** -s
    end = q + count
    last = end**-s
    total = total + end * last / (s - 1) + last / 2
    factor = s * last / end
    for i, b in enumerate(_BERNOULLI):
        total = total + b * factor
        factor = factor * (s + 2 * i + 1) * (s + 2 * i + 2) / (end * end)
    pole = (q <= 0) & (q == jnp.floor(q))
    total = jnp.where((q <= 0) & (s != jnp.floor(s)), np.nan, total)
    total = jnp.where((s == 1) | (pole & (s > 1)), np.inf, total)
    return jnp.where(s < 1, np.nan, total)


def polygamma(n: Array, x: Array) -> Array:
    """The n-th derivative of digamma: (-1)^(n + 1) n! ζ(n + 1, x)."""
    sign = jnp.where(n % 2 == 0, -1, 1)
    value = sign * jnp.exp(lgamma(n + 1)) * zeta(jnp.maximum(n, 1) + 1, x)
    value = jnp.where(n == 0, digamma(x), value)
    return jnp.where((n < 0) | (n != jnp.floor(n)), np.nan, value)


GAMMA: dict[str, Callable[..., Any]] = {
    "erf_inv": wide(erf_inv), "lgamma": wide(lgamma), "digamma": wide(digamma),
    "igamma": wide(_incomplete(False)), "igammac": wide(_incomplete(True)), "zeta": wide(zeta),
    "polygamma": wide(polygamma), "regularized_incomplete_beta": wide(regularized_incomplete_beta),
}  # fmt: skip
