"""A function for each primitive of JAX, by the name of the primitive that it must use, and operands for it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i(*shape: int, high: int = 10) -> np.ndarray:
    return RNG.integers(0, high, shape).astype(np.int32)


def _of_parts(w: Any, v: Any) -> Any:
    """The symmetric matrix of these eigenvalues and vectors: the vectors' signs are nobody's in particular."""
    return (v * w) @ v.T


def _of_svd(x: Any) -> Any:
    u, s, v = jnp.linalg.svd(x, full_matrices=False)
    return (u * s) @ v


X, Y, SQUARE, MASK = f(4, 6), f(4, 6), f(6, 6), f(4, 6) > 0
SQUARES = f(2, 3, 3)
A, B = i(4, 6), i(4, 6) + 1
COMPLEX = (jnp.sqrt, lax.rsqrt, jnp.tanh, jnp.tan, jnp.sinh, jnp.cosh, jnp.sin, jnp.cos, jnp.expm1, jnp.log1p,
           jax.nn.sigmoid, jnp.sign, jnp.angle, lambda z: jnp.prod(z, 1), lambda z: jnp.exp2(z), jnp.isfinite)
UNARY = "neg abs sign floor ceil exp expm1 tanh logistic sin cos erf is_finite square".split()
POSITIVE = "log log1p sqrt rsqrt".split()
BINARY = "add sub mul div max min rem eq ne lt le gt ge".split()
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    **{name: (getattr(lax, name), X) for name in UNARY},
    **{name: (getattr(lax, name), abs(X) + 0.1) for name in POSITIVE},
    **{name: (getattr(lax, name), X, Y) for name in BINARY},
    **{f"{name} i32": (getattr(lax, name), A, B) for name in (*BINARY, "shift_left", "shift_right_logical",
                                                             "shift_right_arithmetic")},
    "and": (lambda a, b: (a & b, (a > 3) & (b > 3)), A, B),
    "or": (lambda a, b: (a | b, (a > 3) | (b > 3)), A, B),
    "xor": (lambda a, b: a ^ b, A, B),
    "not": (lambda a: (~a, ~(a > 3)), A),
    "pow": (lambda x: abs(x) ** 1.7, X),
    "integer_pow": (lambda x: (x**3, x**7, x**-2), abs(X) + 1),
    **{name: (getattr(lax, name), 2 * X) for name in "exp2 erfc tan sinh cosh atan asinh cbrt".split()},
    **{name: (getattr(lax, name), np.tanh(X)) for name in "asin acos atanh erf_inv".split()},
    "acosh": (lax.acosh, abs(X) + 1),
    "atan2": (lax.atan2, X, Y),
    "lgamma": (lax.lgamma, 3 * X),
    "digamma": (lax.digamma, 3 * X),
    "bessel_i0e": (lax.bessel_i0e, 3 * X),
    "bessel_i1e": (lax.bessel_i1e, 3 * X),
    "igamma": (lambda x, y: (lax.igamma(x, y), lax.igamma(x, x + 0.1)), abs(X) * 3, abs(Y) * 3),
    "igammac": (lax.igammac, abs(X) * 3, abs(Y) * 3),
    "regularized_incomplete_beta": (lax.betainc, abs(X) + 0.1, abs(Y) + 0.1, np.abs(np.tanh(X))),
    "zeta": (lambda x, y: lax.zeta(x, y), abs(X) + 1.5, abs(Y) + 0.5),
    "polygamma": (lambda x, y: lax.polygamma(x, y), np.floor(abs(X)), abs(Y) + 0.5),
    "nextafter": (lax.nextafter, X, Y),
    "population_count": (lambda a: (lax.population_count(a * 77777), lax.population_count(a.astype(jnp.uint8))), A),
    "clz": (lambda a: (lax.clz(a), lax.clz((a * 3).astype(jnp.int8))), A),
    "reduce_precision": (lambda x: (lax.reduce_precision(x, 8, 7), lax.reduce_precision(x * 3e4, 5, 10)), X),
    "round": (lambda x: (lax.round(x), jnp.round(x)), np.array([0.5, 1.5, -2.5, 2.4], np.float32)),
    "clamp": (lambda x: (lax.clamp(-0.5, x, 0.5), jnp.clip(x, -1, 1)), X),
    "select_n": (lambda x, y: jnp.where(x > y, x, y), X, Y),
    "select_n i32": (lambda w, x, y: lax.select_n(w, x, y, x * y), i(4, 6, high=3), X, Y),
    "convert_element_type": (lambda x: (x.astype(jnp.int32), x.astype(jnp.float16), x > 0), X),
    "bitcast_convert_type": (lambda x: lax.bitcast_convert_type(x, jnp.int32), X),
    "iota": (lambda x: x + jnp.arange(6.0), X),
    "broadcast_in_dim": (lambda x: x[:, None] * jnp.ones((1, 3, 1)), X),
    "reshape": (lambda x: x.reshape(3, 8), X),
    "squeeze": (lambda x: jnp.squeeze(x[:, 2:3], 1), X),
    "transpose": (lambda x: x.T, X),
    "rev": (lambda x: x[::-1, ::-1], X),
    "slice": (lambda x: lax.slice(x, (1, 0), (4, 5), (1, 2)), X),
    "split": (lambda x: jnp.split(x, [1, 4], axis=1), X),
    "pad": (lambda x: lax.pad(x, 1.0, ((1, 2, 0), (-1, 0, 1))), X),
    "stack": (lambda x, y: (jnp.stack([x, y], 1), jnp.stack([x, y, x], 2)), X, Y),
    "unstack": (lambda x: jnp.unstack(x, axis=1), X),
    "tile": (lambda x: jnp.tile(x, (2, 3)), X),
    "mulhi": (lambda a: (lax.mulhi(a * 99999999, a * 12345678), lax.mulhi(a.astype(jnp.uint16) * 7777,
                                                                         a.astype(jnp.uint16) * 9999)), A),
    "lu_pivots_to_permutation": (lambda n: lax.linalg.lu_pivots_to_permutation(n, 6), np.array([2, 5, 2, 3], np.int32)),
    "device_put": (lambda x: jax.device_put(x) + 1, X),
    "name": (lambda x: checkpoint_name(jnp.sin(x), "kept"), X),
    "concatenate": (lambda x, y: jnp.concatenate([x, y, x], 1), X, Y),
    "reduce_sum": (lambda x: (jnp.sum(x, (1, 0)), jnp.sum(x, 1)), X),
    "reduce_max": (lambda x: (jnp.max(x, (1, 0)), jnp.max(x, 1)), X),
    "reduce_min": (lambda x: (jnp.min(x, (1, 0)), jnp.min(x, 1)), X),
    "reduce_prod": (lambda x: (jnp.prod(x, (1, 0)), jnp.prod(x, 1)), X),
    "reduce_and": (lambda m: jnp.all(m, 0), MASK),
    "reduce_or": (lambda m: jnp.any(m, 0), MASK),
    "argmax": (lambda x: jnp.argmax(x, 1), X),
    "argmin": (lambda x: jnp.argmin(x, 0), X),
    "cumsum": (lambda x: (jnp.cumsum(x, 1), lax.cumsum(x, 0, reverse=True)), X),
    "cumprod": (lambda x: lax.cumprod(x, 1), X),
    "cummax": (lambda x: lax.cummax(x, 0, reverse=True), X),
    "cummin": (lambda a: lax.cummin(a, 1), A),
    "reduce_xor": (lambda a: lax.reduce_xor(a, (0,)), A),
    "conv_general_dilated": (lambda x, w: lax.conv_general_dilated(x, w, (1, 2), "SAME"), f(2, 3, 5, 6), f(4, 3, 3, 3)),
    "batch groups": (lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", batch_group_count=2, dimension_numbers=("HWCN", "HWIO", "NHWC")), f(5, 5, 3, 4),
        f(3, 3, 3, 6)),
    "reduce_window_sum": (lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 3), (2, 1), "SAME"), X),
    "reduce_window_max": (lambda x: lax.reduce_window(x, -np.inf, lax.max, (2, 3), (1, 2), "VALID"), X),
    "reduce_window_min": (lambda a: lax.reduce_window(a, 2**31 - 1, lax.min, (2, 2), (1, 1), "SAME"), A),
    "reduce_window": (lambda x: lax.reduce_window(x, 3.0, lax.mul, (2, 2), (1, 1), "SAME"), X),
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x, 1), X),
    "reduce": (lambda x: lax.reduce(x, np.float32(0), lambda a, b: a * b + a + b, (1,)), X / 9),
    "reduce pairs": (lambda x, a: lax.reduce((x, a), (np.float32(-9), np.int32(0)), lambda p, q: (
        jnp.maximum(p[0], q[0]), jnp.where(p[0] > q[0], p[1], q[1])), (0,)), X, A),
    "approx_top_k": (lambda x: (lax.approx_max_k(x, 2), lax.approx_min_k(x, 2)), X),
    "top_k axis": (lambda x: lax.top_k(x, 3, axis=0), X),
    "platform_index": (lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos), X),
    "bitcast_convert_type wide": (lambda a: lax.bitcast_convert_type(lax.bitcast_convert_type(a, jnp.uint8), jnp.int32),
                                  A),
    "cholesky": (lambda x: jnp.linalg.cholesky(x @ x.T + 6 * jnp.eye(4)), X),
    "triangular_solve": (lambda s, x: (lax.linalg.triangular_solve(s, x, left_side=False, lower=True),
                                       lax.linalg.triangular_solve(s, x.T, left_side=True, transpose_a=True)),
                         SQUARE / 9 + 2 * np.eye(6, dtype="f"), X),
    "lu": (lambda s: lax.linalg.lu(s), SQUARE),
    "qr": (lambda x: (jnp.linalg.qr(x), jnp.linalg.qr(x, "complete"), jnp.linalg.qr(x.T)[1]), X),
    "householder_product": (lambda x, y: lax.linalg.householder_product(x.T, y[0, :4]), X, Y / 9),
    "eigh": (lambda s: (jnp.linalg.eigvalsh(s), _of_parts(*jnp.linalg.eigh(s)), jnp.linalg.eigvalsh(s[:5, :5])),
             SQUARE + SQUARE.T),
    "svd": (lambda x: (jnp.linalg.svd(x, compute_uv=False), _of_svd(x), _of_svd(x.T), jnp.linalg.pinv(x)), X),
    "svd of deficient": (lambda x: (_of_svd(x), jnp.abs(jnp.linalg.svd(x, full_matrices=True)[0].T @ x)), np.stack([
        X[0], X[0] * 2, X[1] * 0, X[1]])),
    "hessenberg": (lambda s: lax.linalg.hessenberg(s), SQUARE),
    "tridiagonal": (lambda s: lax.linalg.tridiagonal(s, lower=False), SQUARE),
    "tridiagonal_solve": (lambda x: lax.linalg.tridiagonal_solve(x[0], x[1] + 4, x[2], x.T), abs(X)),
    "custom_linear_solve": (lambda s, x: (jnp.linalg.solve(s, x.T), jnp.linalg.inv(s), jnp.linalg.det(s),
                                          jnp.linalg.slogdet(s), jax.scipy.linalg.expm(s / 9)),
                            SQUARE + 3 * np.eye(6, dtype="f"), X),
    "ragged_dot_general": (lambda x, w: lax.ragged_dot(x, w, jnp.array([1, 0, 3])), X, f(3, 6, 5)),
    # Complex numbers and transforms.
    "fft": (lambda x: [g(y) for y in (jnp.fft.fft(x), jnp.fft.rfft(x, axis=0), jnp.fft.ifft2(x), jnp.fft.rfft2(x))
                       for g in (jnp.real, jnp.imag)], f(8, 12)),
    "fft inverse": (lambda x: (jnp.fft.irfft(jnp.fft.rfft(x)), jnp.fft.irfft(jnp.fft.rfft(x), 11),
                               jnp.fft.irfft2(jnp.fft.rfft2(x))), f(5, 12)),
    "complex": (lambda x, y: abs(lax.complex(x, y)), X, Y),
    "real": (lambda x, y: (lax.complex(x, y) * lax.complex(y, x) + 2j).real, X, Y),
    "imag": (lambda x, y: (jnp.exp(1j * x) / lax.complex(y, x)).imag, X, Y),
    "conj": (lambda x, y: (lax.conj(lax.complex(x, y)) ** 3).imag, X, Y),
    **{f"complex {f.__name__}": (lambda x, y, f=f: (jnp.real(f(lax.complex(x, y))), jnp.imag(f(lax.complex(x, y)))),
                               X, Y) for f in COMPLEX},
    "complex power": (lambda x, y: abs(lax.complex(x, y) ** lax.complex(y, x)), X, Y),
    "complex dot": (lambda x, y: jnp.real(lax.complex(x, y) @ lax.complex(y, x).T), X, Y),
    # Random bits: the same as JAX's.
    "random_seed": (lambda n: jax.random.key_data(jax.random.key(n[0])), i(1)),
    "random_bits": (lambda n: (jax.random.bits(jax.random.key(n[0]), (3, 5)),
                               jax.random.bits(jax.random.PRNGKey(3), (7,), jnp.uint8)), i(1)),
    "random_split": (lambda n: jax.random.key_data(jax.random.split(jax.random.key(n[0]), 3)), i(1)),
    "random_fold_in": (lambda n: jax.random.key_data(jax.random.fold_in(jax.random.key(1), n[0])), i(1)),
    "random_wrap": (lambda n: jax.random.uniform(jax.random.wrap_key_data(n.astype(jnp.uint32)), (4,)), i(2)),
    "random_unwrap": (lambda n: jax.vmap(lambda k: jax.random.normal(k, (2,)))(
        jax.random.split(jax.random.key(n[0]), 3)), i(1)),
    "random_gamma": (lambda x: (jax.random.gamma(jax.random.key(2), abs(x) * 3), jax.random.dirichlet(
        jax.random.key(3), abs(x) / 9)), X),
    "threefry2x32": (lambda n: jax.random.randint(jax.random.key(n[0]), (3, 4), 0, 9), i(1)),
    "random sampling": (lambda x: (jax.random.categorical(jax.random.key(3), x), jax.random.permutation(
        jax.random.key(1), x)), X),
    "sort": (lambda x: (jnp.sort(x, 1), jnp.argsort(x, 0)), X),
    "top_k": (lambda x: lax.top_k(x, 3), X),
    "dot_general": (lambda x, w: (x @ w, jnp.einsum("ab,ab->b", x, x), jnp.einsum("ab,cb->abc", x, w)), X, SQUARE),
    "gather": (lambda x, n: (x[n], jnp.take(x, n, 1, mode="clip"), jnp.take(x, n, 0, mode="fill")), X, i(5, high=4)),
    "scatter": (lambda x, n: jnp.asarray(x).at[n].set(1.0), X, np.array([2, 0], np.int32)),
    "scatter-add": (lambda x, n: (jnp.asarray(x).at[n, 1].add(2.0), jnp.asarray(x).at[:, n].add(1.0)), X, i(5, high=4)),
    "scatter-sub": (lambda x, n: jnp.asarray(x).at[n].subtract(2.0), X, i(5, high=4)),
    "scatter-mul": (lambda x, n: jnp.asarray(x).at[n].multiply(2.0), X, i(5, high=4)),
    "scatter-min": (lambda x, n: jnp.asarray(x).at[n].min(0.0), X, i(5, high=4)),
    "scatter-max": (lambda x, n: jnp.asarray(x).at[n].max(0.0), X, i(5, high=4)),
    "dynamic_slice": (lambda x, n: lax.dynamic_slice(x, (n[0], 1), (2, 3)), X, i(1, high=9)),
    "dynamic_update_slice": (lambda x, y, n: lax.dynamic_update_slice(x, y[:2, :2], (n[0], n[0])), X, Y, i(1)),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, lambda v: v * 2.0, x), X),
    "cond switch": (lambda x, n: lax.switch(n[0], [jnp.sin, jnp.cos, jnp.tanh], x), X, i(1, high=3)),
    "while": (lambda x: lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * 1.5 + x), (0, x)), X),
    "while under vmap": (lambda x: jax.vmap(lambda row: lax.while_loop(
        lambda s: s[1].sum() < 9, lambda s: (s[0] + 1, s[1] * 1.5), (0, abs(row))))(x), X),
    "eigh of several": (lambda x: jnp.linalg.eigvalsh(x), SQUARES + np.swapaxes(SQUARES, 1, 2)),
    "scan": (lambda x, w: lax.scan(lambda c, row: (jnp.tanh(c @ w + row), c.sum()), x[0], x), X, SQUARE),
    "scan reversed": (lambda x: lax.scan(lambda c, row: (c + row, c), x[0], x, reverse=True), X),
    "custom_jvp_call": (lambda x: (jax.nn.relu(x), jax.nn.silu(x), jax.nn.gelu(x), jax.nn.softplus(x)), X),
    "checkpoint": (jax.checkpoint(lambda x: jnp.sin(x) * 2), X),
    "optimization_barrier": (lambda x: lax.optimization_barrier(x) + 1, X),
    "logsumexp": (lambda x: (jax.nn.log_softmax(x), jax.nn.logsumexp(x)), X),
}  # fmt: skip
