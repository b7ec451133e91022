"""ATen's linear algebra, as JAX says it: factors of matrices, systems, determinants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import expm

from .arrays import Array
from .by_jax import computed
from .torch_import import Call, Rule


def _info(factor: Any) -> Any:
    """0, or the number of the first column whose diagonal is no number, as LAPACK tells it."""
    wrong = jnp.isnan(jnp.diagonal(factor, axis1=-2, axis2=-1))
    if not wrong.shape[-1]:
        return jnp.zeros(wrong.shape[:-1], jnp.int32)
    return jnp.where(wrong.any(-1), jnp.argmax(wrong, -1) + 1, 0).astype(jnp.int32)


def _singular(packed: Any) -> Any:
    """0, or the number of the first column whose pivot is zero."""
    zero = jnp.diagonal(packed, axis1=-2, axis2=-1) == 0
    if not zero.shape[-1]:
        return jnp.zeros(zero.shape[:-1], jnp.int32)
    return jnp.where(zero.any(-1), jnp.argmax(zero, -1) + 1, 0).astype(jnp.int32)


def _turned(x: Any) -> Any:
    return jnp.swapaxes(x, -1, -2)


def _cholesky(x: Any, upper: bool) -> Any:
    factor = lax.linalg.cholesky(_turned(x) if upper else x, symmetrize_input=False)
    return _turned(factor) if upper else factor


def cholesky(c: Call) -> Any:
    upper = bool(c.get("upper", False))
    if "_ex" not in str(c.node.target):
        return computed(lambda x: _cholesky(x, upper), c.self)[0]

    def both(x: Any) -> Any:
        factor = _cholesky(x, upper)
        return factor, _info(factor)

    return computed(both, c.self)


def _triangular(a: Any, b: Any, lower: bool, left: bool = True, transposed: bool = False, unit: bool = False) -> Any:
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
    return lax.linalg.triangular_solve(a, b, left_side=left, lower=lower, transpose_a=transposed, unit_diagonal=unit)


def _by_cholesky(factor: Any, b: Any, upper: bool) -> Any:
    first = _triangular(factor, b, not upper, transposed=upper)
    return _triangular(factor, first, not upper, transposed=not upper)


def cholesky_solve(c: Call) -> Array:
    factor = c.get("input2", c.get("A"))
    return computed(lambda b, f: _by_cholesky(f, b, bool(c.get("upper", False))), c.self, factor)[0]


def cholesky_inverse(c: Call) -> Array:
    def inverse(factor: Any) -> Any:
        unit = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape)
        return _by_cholesky(factor, unit, bool(c.get("upper", False)))

    return computed(inverse, c.self)[0]


def _lu(x: Any) -> tuple[Any, Any, Any]:
    """Factors in one matrix, LAPACK's pivots from 1, and the order of rows."""
    packed, pivots, order = lax.linalg.lu(x)
    return packed, (pivots + 1).astype(jnp.int32), order


def _lu_solve(packed: Any, order: Any, b: Any, transposed: bool = False) -> Any:
    lead = jnp.broadcast_shapes(packed.shape[:-2], b.shape[:-2])
    packed, b = (jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (packed, b))
    if 0 in b.shape:
        return b
    order = jnp.broadcast_to(order, (*lead, order.shape[-1]))
    if transposed:
        y = _triangular(packed, b, False, transposed=True)
        y = _triangular(packed, y, True, transposed=True, unit=True)
        return jnp.take_along_axis(y, jnp.argsort(order, -1)[..., None], -2)
    y = _triangular(packed, jnp.take_along_axis(b, order[..., None], -2), True, unit=True)
    return _triangular(packed, y, False)


def _order(pivots: Any, rows: int) -> Any:
    return lax.linalg.lu_pivots_to_permutation(pivots - 1, rows)


def _sides(c: Call, a: Any, b: Any, solve: Callable[[Any, Any, bool], Any]) -> Any:
    """a x = b, or x a = b as a' x' = b'."""
    return solve(a, b, False) if c.get("left", True) else _turned(solve(a, _turned(b), True))


def solve(c: Call) -> Any:
    def all_of(a: Any, b: Any) -> Any:
        packed, pivots, order = _lu(a)
        vector = b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1])
        b = b[..., None] if vector else b
        x = _sides(c, a, b, lambda _, right, turned: _lu_solve(packed, order, right, turned))
        return x[..., 0] if vector else x, packed, pivots, _singular(packed)

    return computed(all_of, c.A, c.B)


def lu_factor(c: Call) -> Any:
    if not c.get("pivot", True):
        raise c.error("factors without pivots are not supported; leave pivot as it is")

    def factors(x: Any) -> Any:
        packed, pivots, _ = _lu(x)
        return packed, pivots, _singular(packed)

    return computed(factors, c.A)[: len(c.results)]


def lu_solve(c: Call) -> Array:
    packed, pivots, adjoint = c.LU, c.pivots, bool(c.get("adjoint", False))

    def solved(packed: Any, pivots: Any, b: Any) -> Any:
        order = _order(pivots, packed.shape[-1])
        return _sides(c, packed, b, lambda p, right, turned: _lu_solve(p, order, right, turned != adjoint))

    return computed(solved, packed, pivots, c.B)[0]


def _unpacked(packed: Any, order: Any) -> tuple[Any, Any, Any]:
    m, n = packed.shape[-2:]
    k = min(m, n)
    lower = jnp.tril(packed[..., :, :k], -1) + jnp.eye(m, k, dtype=packed.dtype)
    turn = (order[..., None, :] == jnp.arange(m)[:, None]).astype(packed.dtype)  # row i of L U is row order[i] of A
    return turn, lower, jnp.triu(packed[..., :k, :])


def lu(c: Call) -> Any:
    def factors(x: Any) -> Any:
        packed, _, order = _lu(x)
        return _unpacked(packed, order)

    return computed(factors, c.A)


def lu_unpack(c: Call) -> Any:
    def factors(packed: Any, pivots: Any) -> Any:
        return _unpacked(packed, _order(pivots, packed.shape[-2]))

    return computed(factors, c.LU_data, c.LU_pivots)


def inverse(c: Call) -> Any:
    def both(a: Any) -> Any:
        packed, _, order = _lu(a)
        unit = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
        return _lu_solve(packed, order, unit), _singular(packed)

    return computed(both, c.get("A", c.get("self")))[: len(c.results)]


def _determinant(x: Any) -> Any:
    packed, pivots, _ = _lu(x)
    diagonal = jnp.diagonal(packed, axis1=-2, axis2=-1)
    swaps = (pivots != jnp.arange(1, pivots.shape[-1] + 1)).sum(-1)
    return packed, pivots, diagonal, jnp.where(swaps % 2 == 0, 1, -1).astype(x.dtype)


def determinant(c: Call) -> Any:
    def all_of(x: Any) -> Any:
        packed, pivots, diagonal, sign = _determinant(x)
        return sign * jnp.prod(diagonal, -1), packed, pivots

    return computed(all_of, c.A)


def sign_and_log(c: Call) -> Any:
    def all_of(x: Any) -> Any:
        packed, pivots, diagonal, sign = _determinant(x)
        return sign * jnp.prod(jnp.sign(diagonal), -1), jnp.log(jnp.abs(diagonal)).sum(-1), packed, pivots

    return computed(all_of, c.A)


def qr(c: Call) -> Any:
    mode = c.get("mode", "reduced")

    def factors(x: Any) -> Any:
        q, r = jnp.linalg.qr(x, "reduced" if mode == "r" else mode)
        return (jnp.zeros(0, x.dtype) if mode == "r" else q), r

    return computed(factors, c.get("A", c.get("self")))


def eigh(c: Call) -> Any:
    lower, vectors = c.get("UPLO", "L") in "Ll", bool(c.get("compute_v", True))

    def parts(x: Any) -> Any:
        v, w = lax.linalg.eigh(x, lower=lower, symmetrize_input=False)
        return w, v if vectors else jnp.zeros(0, x.dtype)

    return computed(parts, c.A)


def svd(c: Call) -> Any:
    full, vectors = bool(c.get("full_matrices", False)), bool(c.get("compute_uv", True))

    def parts(x: Any) -> Any:
        if vectors:
            return jnp.linalg.svd(x, full_matrices=full)
        none = jnp.zeros(0, x.dtype)
        return none, jnp.linalg.svd(x, compute_uv=False), none

    return computed(parts, c.A)


def pseudo_inverse(c: Call) -> Array:
    given = [c.get("atol"), c.get("rtol")]
    hermitian = bool(c.get("hermitian", False))
    arrays = [c.self, *(t for t in given if isinstance(t, Array))]

    def inverse_of(x: Any, *tolerances: Any) -> Any:
        rest = iter(tolerances)
        atol, rtol = (next(rest) if isinstance(t, Array) else t for t in given)
        if hermitian:
            vectors, values = lax.linalg.eigh(x, symmetrize_input=False)
            order = jnp.argsort(-jnp.abs(values), -1)
            values = jnp.take_along_axis(values, order, -1)
            u = jnp.take_along_axis(vectors, order[..., None, :], -1)
            s, vt = jnp.abs(values), _turned(u) * jnp.sign(values)[..., None]
        else:
            u, s, vt = jnp.linalg.svd(x, full_matrices=False)
        if rtol is None:
            default = jnp.finfo(x.dtype).eps * max(x.shape[-2:])
            rtol = default if atol is None else jnp.where(jnp.asarray(atol) > 0, 0.0, default)
        least = jnp.maximum(jnp.asarray(0.0 if atol is None else atol, x.dtype)[..., None],
                            jnp.asarray(rtol, x.dtype)[..., None] * s[..., :1])  # fmt: skip
        inverse = jnp.where(s > least, 1 / jnp.where(s > least, s, 1), 0)
        return _turned(vt) @ (inverse[..., None] * _turned(u))

    return computed(inverse_of, *arrays)[0]


def solve_triangular(c: Call) -> Array:
    left = bool(c.get("left", True))
    unit = bool(c.get("unitriangular", False))
    return computed(lambda a, b: _triangular(a, b, not c.upper, left, unit=unit), c.self, c.B)[0]


def triangular_solve(c: Call) -> list[Array]:
    upper, transposed = bool(c.get("upper", True)), bool(c.get("transpose", False))
    unit = bool(c.get("unitriangular", False))
    solution = computed(lambda b, a: _triangular(a, b, not upper, True, transposed, unit), c.self, c.A)[0]
    return [solution, c.A.broadcast_to(tuple(c.importer.dim(d) for d in c.results[1].shape))]


def householder_product(c: Call) -> Array:
    return computed(lambda a, t: lax.linalg.householder_product(a, t), c.input, c.tau)[0]


def geqrf(c: Call) -> list[Array]:
    from ..primitives_linalg import geqrf as packed

    return computed(packed, c.self)


def ormqr(c: Call) -> Array:
    left, transposed = bool(c.get("left", True)), bool(c.get("transpose", False))

    def product(a: Any, tau: Any, other: Any) -> Any:
        m = a.shape[-2]
        square = jnp.zeros((*a.shape[:-1], m), a.dtype).at[..., : a.shape[-1]].set(a)
        q = lax.linalg.householder_product(square, tau)
        q = _turned(q) if transposed else q
        return q @ other if left else other @ q

    return computed(product, c.self, c.input2, c.input3)[0]


def exponential(c: Call) -> Array:
    """In f64: powers of large matrices cancel."""

    def of(x: Any) -> Any:
        function = expm
        for _ in range(x.ndim - 2):
            function = jax.vmap(function)
        return function(x.astype(jnp.float64)).astype(x.dtype) if x.size else x

    return computed(of, c.self)[0]


LINALG: Mapping[str, Rule] = {
    "linalg_cholesky_ex": cholesky, "cholesky": cholesky, "cholesky_solve": cholesky_solve,
    "_cholesky_solve_helper": cholesky_solve, "cholesky_inverse": cholesky_inverse, "_linalg_solve_ex": solve,
    "linalg_lu_factor_ex": lu_factor, "linalg_lu_factor": lu_factor, "linalg_lu_solve": lu_solve, "linalg_lu": lu,
    "lu_unpack": lu_unpack, "linalg_inv_ex": inverse, "linalg_inv": inverse, "inverse": inverse,
    "_linalg_det": determinant, "_linalg_slogdet": sign_and_log, "linalg_qr": qr, "_linalg_eigh": eigh,
    "_linalg_svd": svd, "linalg_pinv": pseudo_inverse, "linalg_solve_triangular": solve_triangular,
    "triangular_solve": triangular_solve, "linalg_householder_product": householder_product, "geqrf": geqrf,
    "ormqr": ormqr, "linalg_matrix_exp": exponential,
}  # fmt: skip
