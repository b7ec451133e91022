"""Linear algebra of JAX by its other operations: each row is a function of arrays, as in `primitives_special`.

Householder's reflections have LAPACK's signs. Eigenvalues and singular values come of Jacobi's rotations of pairs, half
as many in a step as there are columns; the signs of their vectors are nobody's in particular.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..ir.graph import IRError

Array = Any
SWEEPS = 20  # of rotations at most, each over all pairs of columns


def lu_pivots_to_permutation(pivots: Array, *, permutation_size: int) -> Array:
    if pivots.ndim > 1:
        return jax.vmap(lambda p: lu_pivots_to_permutation(p, permutation_size=permutation_size))(pivots)

    def swap(k: Array, order: Array) -> Array:
        place, pivot = jnp.arange(permutation_size), pivots[k]
        return jnp.where(place == k, order[pivot], jnp.where(place == pivot, order[k], order))

    return lax.fori_loop(0, pivots.shape[0], swap, jnp.arange(permutation_size, dtype=pivots.dtype))


# --- Triangular matrices ---


def cholesky(x: Array, **_: Any) -> Array:
    """Column after column, of every matrix at once: L[j:, j] = (A - L L')[j:, j] / sqrt of its first."""
    n = x.shape[-1]
    if not n:
        return x
    row = jnp.arange(n)

    def column(j: Array, factor: Array) -> Array:
        own = lax.dynamic_index_in_dim(factor, j, -2, keepdims=False)
        known = jnp.einsum("...ik,...k->...i", factor, jnp.conj(own))
        rest = lax.dynamic_index_in_dim(x, j, -1, keepdims=False) - known
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
    a = jnp.conj(a) if conjugate_a else a
    if transpose_a:
        a, lower = jnp.swapaxes(a, -1, -2), not lower
    n = a.shape[-1]
    if 0 in b.shape:
        return b
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
    if not m or not n:
        return first
    return lax.fori_loop(0, min(m, n), step, first)


# --- Orthogonal matrices ---


def _reflection(x: Array, k: Array) -> tuple[Array, Array, Array]:
    """v, beta and tau of I - tau v v', which makes x[k:] beta and zeros; v[k] is 1, before it are zeros."""
    row = jnp.arange(x.shape[0])
    head = lax.dynamic_index_in_dim(x, k, keepdims=False)
    below = jnp.sum(jnp.where(row > k, x * x, 0))
    size = jnp.sqrt(head * head + below)
    still = below == 0  # nothing to reflect
    beta = jnp.where(still, head, jnp.where(head < 0, size, -size))
    tau = jnp.where(still, 0, (beta - head) / jnp.where(still, 1, beta))
    v = jnp.where(row > k, x / jnp.where(still, 1, head - beta), jnp.where(row == k, 1, 0))
    return v, beta, tau


def geqrf(x: Array) -> tuple[Array, Array]:
    """[..., m, n] → R above reflections whose first element is 1, and their factors [..., min(m, n)], as LAPACK's."""
    if x.ndim > 2:
        return jax.vmap(geqrf)(x)  # type: ignore[return-value]
    m, n = x.shape
    row, column = jnp.arange(m), jnp.arange(n)

    def step(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, taus = state
        here = lax.dynamic_index_in_dim(a, k, 1, keepdims=False)
        v, beta, tau = _reflection(here, k)
        turned = a - tau * v[:, None] * jnp.where(column > k, v @ a, 0)
        made = jnp.where(row < k, here, jnp.where(row == k, beta, v))
        a = jnp.where(column == k, made[:, None], turned)
        return a, jnp.where(jnp.arange(taus.shape[0]) == k, tau, taus)

    first = x, jnp.zeros(min(m, n), x.dtype)
    return lax.fori_loop(0, min(m, n), step, first) if m and n else first


def hessenberg(x: Array, **_: Any) -> tuple[Array, Array]:
    """[..., n, n] → H above reflections of both sides whose first element is 1, and their factors, as LAPACK's."""
    if x.ndim > 2:
        return jax.vmap(hessenberg)(x)  # type: ignore[return-value]
    n = x.shape[0]
    place = jnp.arange(n)

    def step(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, taus = state
        here = lax.dynamic_index_in_dim(a, k, 1, keepdims=False)
        v, beta, tau = _reflection(here, k + 1)
        made = jnp.where(place <= k, here, jnp.where(place == k + 1, beta, v))
        left = a - tau * v[:, None] * jnp.where(place > k, v @ a, 0)
        both = left - tau * (left @ v)[:, None] * v
        return jnp.where(place == k, made[:, None], both), jnp.where(jnp.arange(n - 1) == k, tau, taus)

    return lax.fori_loop(0, n - 1, step, (x, jnp.zeros(n - 1, x.dtype)))


def tridiagonal(x: Array, *, lower: bool) -> tuple[Array, ...]:
    """Of symmetric matrices, of which one triangle is read: `hessenberg` in it, diagonals, factors."""
    if x.ndim > 2:
        return jax.vmap(lambda a: tridiagonal(a, lower=lower))(x)  # type: ignore[return-value]
    if not lower:  # the lower triangle of what is turned half round
        a, d, e, taus = tridiagonal(x[::-1, ::-1], lower=True)
        return a[::-1, ::-1], d[::-1], e[::-1], taus[::-1]
    half = jnp.tril(x, -1)
    a, taus = hessenberg(half + half.T + jnp.diag(jnp.diagonal(x)))
    return jnp.tril(a) + jnp.triu(x, 1), jnp.diagonal(a), jnp.diagonal(a, -1), taus


def householder_product(a: Array, taus: Array, **_: Any) -> Array:
    """The first n columns of the product of the reflections in a [..., m, n]."""
    if a.ndim > 2:
        return jax.vmap(householder_product)(a, taus)
    m, n = a.shape
    row, count = jnp.arange(m), taus.shape[0]

    def step(i: Array, q: Array) -> Array:
        k = count - 1 - i
        v = lax.dynamic_index_in_dim(a, k, 1, keepdims=False)
        v = jnp.where(row > k, v, jnp.where(row == k, 1, 0))
        return q - lax.dynamic_index_in_dim(taus, k, keepdims=False) * v[:, None] * (v @ q)

    unit = jnp.eye(m, n, dtype=a.dtype)
    return lax.fori_loop(0, count, step, unit) if m and n and count else unit


def qr(x: Array, *, full_matrices: bool = False, pivoting: bool = False, **_: Any) -> tuple[Array, Array]:
    if pivoting:
        raise IRError("qr with pivoting is not supported: take it without, or a singular value decomposition")
    m, n = x.shape[-2:]
    packed, taus = geqrf(x)
    columns = m if full_matrices else min(m, n)
    square = jnp.zeros((*x.shape[:-1], columns), x.dtype).at[..., : min(m, n)].set(packed[..., : min(m, n)])
    return householder_product(square, taus), jnp.triu(packed[..., :columns, :])


# --- Jacobi's rotations ---
# With 2h columns in the order of a round robin, column i meets column i + h; `_next` moves all but the first by a seat.
# After 2h - 1 steps everyone has met everyone, and sits where it began.


def _next(h: int) -> np.ndarray:
    order = np.arange(2 * h)
    seats = np.concatenate([order[:h], order[h:][::-1]])  # once round the table
    moved = np.concatenate([seats[:1], seats[-1:], seats[1:-1]])
    result = np.empty(2 * h, np.int64)
    result[seats] = moved
    return result


def _angle(pp: Array, qq: Array, pq: Array) -> tuple[Array, Array]:
    """Cosine and sine of the rotation after which two columns, with these products, are orthogonal."""
    none = pq == 0
    tau = (qq - pp) / (2 * jnp.where(none, 1, pq))
    t = jnp.where(tau < 0, -1, 1) / (jnp.abs(tau) + jnp.sqrt(1 + tau * tau))
    c = 1 / jnp.sqrt(1 + t * t)
    return jnp.where(none, 1, c).astype(pp.dtype), jnp.where(none, 0, t * c).astype(pp.dtype)


def _turned(x: Array, c: Array, s: Array, order: np.ndarray) -> Array:
    """The columns of x rotated in pairs, each to its next seat."""
    p, q = jnp.split(x, 2, axis=1)
    return jnp.concatenate([c * p - s * q, s * p + c * q], axis=1)[:, order]


def _even(x: Array, axes: Sequence[int]) -> Array:
    """With a row or column of zeros more where there is an odd number of them."""
    return jnp.pad(x, [(0, x.shape[a] % 2 if a in axes else 0) for a in range(x.ndim)])


def _swept(off: Callable[[Any], Array], step: Callable[[Any], Any], steps: int, state: Any) -> Any:
    """Sweeps until `off`, what is left off the diagonal in parts of the whole, is rounding."""
    small = 2 * jnp.finfo(jax.tree.leaves(state)[0].dtype).eps

    def sweep(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        count, inner = carry
        return count + 1, lax.fori_loop(0, steps, lambda _, s: step(s), inner)

    found = lax.while_loop(lambda c: (c[0] < SWEEPS) & (off(c[1]) > small), sweep, (jnp.int32(0), state))
    return found[1]


def eigh(x: Array, *, lower: bool = True, subset_by_index: Any = None, **_: Any) -> tuple[Array, Array]:
    """Vectors and ascending values of a symmetric matrix, of which one triangle is read."""
    if x.ndim > 2:
        return jax.vmap(lambda a: eigh(a, lower=lower, subset_by_index=subset_by_index))(x)  # type: ignore[return-value]
    n = x.shape[-1]
    half = jnp.tril(x) if lower else jnp.triu(x).T
    a = _even(half + jnp.tril(half, -1).T, (0, 1))
    h = a.shape[0] // 2
    if not h:
        return x, x.reshape(-1)
    order, place = _next(h), jnp.arange(h)

    def off(state: tuple[Array, Array]) -> Array:
        square = state[0] * state[0]
        whole = jnp.sum(square)
        return jnp.sqrt(jnp.maximum(jnp.sum(jnp.where(jnp.eye(2 * h, dtype=bool), 0, square)), 0)
                        / jnp.where(whole > 0, whole, 1))  # fmt: skip

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, v = state
        c, s = _angle(a[place, place], a[place + h, place + h], a[place, place + h])
        a = _turned(_turned(a, c, s, order).T, c, s, order)
        return a, _turned(v, c, s, order)

    a, v = _swept(off, step, 2 * h - 1, (a, jnp.eye(2 * h, dtype=x.dtype)))
    values = jnp.diagonal(a)[:n]
    ascending = jnp.argsort(values)
    first, last = subset_by_index or (0, n)
    return v[:n, :n][:, ascending][:, first:last], values[ascending][first:last]


def svd(x: Array, *, full_matrices: bool = False, compute_uv: bool = True, subset_by_index: Any = None,
        **_: Any) -> tuple[Array, ...]:  # fmt: skip
    """Descending values, and with `compute_uv` the matrices on both sides: x = u · values · v."""
    if subset_by_index is not None:
        raise IRError("svd of a subset is not supported: take all of it, and slice")
    if x.ndim > 2:
        return jax.vmap(lambda a: svd(a, full_matrices=full_matrices, compute_uv=compute_uv))(x)  # type: ignore[return-value]
    m, n = x.shape
    if m < n:
        s, *uv = svd(x.T, full_matrices=full_matrices, compute_uv=compute_uv)
        return (s, uv[1].T, uv[0].T) if compute_uv else (s,)
    wide = _even(x, (1,))
    h = wide.shape[1] // 2
    if not h:
        return (jnp.zeros(0, x.dtype), jnp.eye(m, m if full_matrices else 0, dtype=x.dtype), jnp.zeros((0, 0), x.dtype))
    order = _next(h)

    def products(w: Array) -> tuple[Array, Array, Array]:
        p, q = jnp.split(w, 2, axis=1)
        return jnp.sum(p * p, 0), jnp.sum(q * q, 0), jnp.sum(p * q, 0)

    def off(state: tuple[Array, Array]) -> Array:
        gram = state[0].T @ state[0]
        size = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
        least = jnp.finfo(x.dtype).eps * jnp.max(size)
        cosine = gram / jnp.maximum(size[:, None] * size, jnp.maximum(least * least, jnp.finfo(x.dtype).tiny))
        return jnp.max(jnp.where(jnp.eye(2 * h, dtype=bool), 0, jnp.abs(cosine))) / 4

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        w, v = state
        c, s = _angle(*products(w))
        return _turned(w, c, s, order), _turned(v, c, s, order)

    w, v = _swept(off, step, 2 * h - 1, (wide, jnp.eye(2 * h, dtype=x.dtype)))
    w, v = w[:, :n], v[:n, :n]
    values = jnp.sqrt(jnp.sum(w * w, 0))
    descending = jnp.argsort(-values)
    values, w, v = values[descending], w[:, descending], v[:, descending]
    if not compute_uv:
        return (values,)
    # Columns of no size have no direction: what completes the others to an orthogonal matrix stands for them.
    kept = values > jnp.finfo(x.dtype).eps * n * values[:1]
    u, r = qr(jnp.where(kept, w / jnp.where(kept, values, 1), 0), full_matrices=full_matrices)
    signs = jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(x.dtype)
    return values, u.at[:, :n].multiply(signs), v.T


# --- Systems ---


def tridiagonal_solve(below: Array, diagonal: Array, above: Array, b: Array, **_: Any) -> Array:
    """By elimination downwards and substitution upwards (Thomas), without pivots."""
    if diagonal.ndim > 1:
        return jax.vmap(tridiagonal_solve)(below, diagonal, above, b)

    def down(carry: Any, row: Any) -> tuple[Any, Any]:
        c, d = carry
        lower, middle, upper, right = row
        size = middle - lower * c
        new = upper / size, (right - lower * d) / size
        return new, new

    def up(x: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        x = row[1] - row[0] * x
        return x, x

    zero: Any = jnp.zeros((), b.dtype), jnp.zeros(b.shape[1:], b.dtype)
    _, rows = lax.scan(down, zero, (below.at[0].set(0), diagonal, above, b))
    return lax.scan(up, zero[1], rows, reverse=True)[1]


def custom_linear_solve(*operands: Array, const_lengths: Any, jaxprs: Any) -> Any:
    """The solver that was given."""
    before = const_lengths.matvec + const_lengths.vecmat
    own = operands[before : before + const_lengths.solve]
    b = operands[before + const_lengths.solve + const_lengths.transpose_solve :]
    return jax.extend.core.jaxpr_as_fun(jaxprs.solve)(*own, *b)


LINALG: dict[str, Callable[..., Any]] = {
    "cholesky": cholesky, "triangular_solve": triangular_solve, "lu": lu, "qr": qr,
    "householder_product": householder_product, "eigh": eigh, "svd": svd, "tridiagonal_solve": tridiagonal_solve,
    "hessenberg": hessenberg, "tridiagonal": tridiagonal, "custom_linear_solve": custom_linear_solve,
    "lu_pivots_to_permutation": lu_pivots_to_permutation,
}  # fmt: skip
