"""ATen operations on complex numbers: two arrays of real ones. Programs take and give them as pairs in a last axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import lax

from .arrays import Array, concatenate, stack
from .by_jax import computed
from .torch_elementwise import ELEMENTWISE, axes_of, norm_of
from .torch_import import Call, Complex, Rule
from .torch_nn import NN
from .torch_shapes import SHAPES

PLAIN: Mapping[str, Rule] = {**ELEMENTWISE, **SHAPES, **NN}
SPLIT = ("other", "value", "fill_value")  # numbers that have parts too, where they stand beside tensors


def _part(name: str, value: Any, part: str) -> Any:
    if isinstance(value, Complex):
        return getattr(value, part)
    if isinstance(value, list) and any(isinstance(v, Complex) for v in value):
        return [_part(name, v, part) for v in value]
    if isinstance(value, Array) and name not in ("index", "indices", "mask", "condition"):
        return value if part == "re" else value * 0
    if isinstance(value, complex) or (name in SPLIT and isinstance(value, (int, float))):
        return getattr(complex(value), {"re": "real", "im": "imag"}[part])
    return value


def by_parts(name: str) -> Rule:
    """What is done to real and imaginary parts alike, by the rule of real numbers."""

    def rule(c: Call) -> Any:
        halves = []
        for part in ("re", "im"):
            halves.append(PLAIN[name](replace(c, arguments={k: _part(k, v, part) for k, v in c.arguments.items()})))
        if isinstance(halves[0], (list, tuple)):
            return [Complex(a, b) for a, b in zip(*halves)]
        return Complex(*halves)

    return rule


def by_jax(function: Callable[..., Any], *names: str) -> Rule:
    """A function of JAX of operands that may each be complex, real or a number; their dtype is the result's."""

    def rule(c: Call) -> Any:
        dtype = c.dtype if c.results[0].is_complex() or c.dtype.is_float else _own(c, names).dtype
        parts: list[Array] = []
        for value in (getattr(c, n) for n in names):
            parts += _parts(c, value, dtype)

        def pairs(*given: Any) -> Any:
            result = function(*(lax.complex(re, im) for re, im in zip(given[::2], given[1::2])))
            return (lax.real(result), lax.imag(result)) if jnp.iscomplexobj(result) else result

        found = computed(pairs, *parts)
        return Complex(*found) if len(found) == 2 else found[0]

    return rule


def _own(c: Call, names: tuple[str, ...]) -> Array:
    return next(v.re for v in (getattr(c, n) for n in names) if isinstance(v, Complex))


def _parts(c: Call, value: Any, dtype: Any) -> list[Array]:
    if isinstance(value, Complex):
        return [value.re.astype(dtype), value.im.astype(dtype)]
    if isinstance(value, Array):
        return [value.astype(dtype), c.body.full(value.shape, 0, dtype)]
    return [c.body.constant(part, dtype) for part in (complex(value).real, complex(value).imag)]


def whole(c: Call, x: Array | Complex) -> Complex:
    """A real array as complex numbers."""
    return x if isinstance(x, Complex) else Complex(x, c.body.full(x.shape, 0, x.dtype))


# ---- Making and taking apart ----------------------------------------------------------------------------------------


def view_as_complex(c: Call) -> Complex:
    return Complex(c.self.at(-1, 0), c.self.at(-1, 1))


def view_as_real(c: Call) -> Array:
    return stack([c.self.re, c.self.im], -1)


def polar(c: Call) -> Complex:
    size, angle = c.abs, c.angle
    return Complex(size * angle.unary("cos"), size * angle.unary("sin"))


def conjugate(c: Call) -> Complex:
    return Complex(c.self.re, -c.self.im)


def to_copy(c: Call) -> Any:
    """To other complex numbers, or from real ones; torch drops the imaginary part where the result is real."""
    if c.results[0].is_complex():
        x = whole(c, c.self)
        return Complex(x.re.astype(c.dtype), x.im.astype(c.dtype))
    return c.self.re.astype(c.dtype)


def full(c: Call) -> Complex:
    value = complex(c.get("fill_value", c.get("value", c.get("s", {"zeros": 0, "ones": 1}.get(_name(c), 0)))))
    return Complex(*(c.body.full(c.shape, part, c.dtype) for part in (value.real, value.imag)))


def _name(c: Call) -> str:
    return str(c.node.target).split(".")[-2].removesuffix("_like").removeprefix("new_")


def norm(c: Call) -> Array:
    x = c.self
    size = (x.re * x.re + x.im * x.im).sqrt()
    return norm_of(size, c.get("ord", 2), axes_of(c) if x.rank else [], bool(c.get("keepdim", False)))


def linear(c: Call) -> Any:
    bias = c.get("bias")
    y = by_jax(lambda x, w: x @ jnp.swapaxes(w, -1, -2), "input", "weight")(c)
    return y if bias is None else Complex(y.re + whole(c, bias).re, y.im + whole(c, bias).im)


def addmm(c: Call) -> Complex:
    def compute(x: Any, a: Any, b: Any) -> Any:
        return c.get("beta", 1) * x + c.get("alpha", 1) * (a @ b)

    return by_jax(compute, "self", "mat1", "mat2")(c)  # type: ignore[no-any-return]


# ---- Fourier transforms ---------------------------------------------------------------------------------------------


def _along(c: Call, x: Complex, axis: int, inverse: bool) -> Complex:
    parts = (p.moveaxis(axis, -1) for p in (x.re, x.im))
    return Complex(*(p.moveaxis(-1, axis) for p in x.re.body.apply_all("fft", *parts, inverse=inverse)))


def _scaled(c: Call, x: Any, counts: list[int], inverse: bool) -> Any:
    """By torch's `normalization`: 0 none, 1 one over the root of the number of points, 2 one over it, which inverse
    transforms of the op have already."""
    count = math.prod(counts)
    scale = {0: 1.0, 1: 1 / math.sqrt(count), 2: 1 / count}[c.normalization] * (count if inverse else 1)
    if scale == 1:
        return x
    return Complex(x.re * scale, x.im * scale) if isinstance(x, Complex) else x * scale


def _sizes(c: Call, shape: tuple[Any, ...], axes: list[int]) -> list[int]:
    sizes = [shape[a] for a in axes]
    if not all(isinstance(n, int) for n in sizes):
        raise c.error("an axis that is transformed must have a fixed size; export with a fixed one")
    return sizes


def complex_transform(c: Call) -> Complex:
    x = whole(c, c.self)
    axes = [a % x.rank for a in c.dim]
    for axis in axes:
        x = _along(c, x, axis, not c.forward)
    return _scaled(c, x, _sizes(c, x.shape, axes), not c.forward)  # type: ignore[no-any-return]


def real_transform(c: Call) -> Complex:
    x = whole(c, c.self)
    axes = [a % x.rank for a in c.dim]
    sizes = _sizes(c, x.shape, axes)
    for axis in reversed(axes):
        x = _along(c, x, axis, False)
        if axis == axes[-1] and c.onesided:
            x = Complex(*(p.slice(axis, 0, sizes[-1] // 2 + 1) for p in (x.re, x.im)))
    return _scaled(c, x, sizes, False)  # type: ignore[no-any-return]


def to_real_transform(c: Call) -> Array:
    """Inverse transforms, the last of n points from its first n // 2 + 1: X[n - k] is the conjugate of X[k]."""
    x, n = c.self, c.last_dim_size
    axes = [a % x.rank for a in c.dim]
    sizes = [*_sizes(c, x.shape, axes[:-1]), n]
    for axis in axes[:-1]:
        x = _along(c, x, axis, True)
    last, half = axes[-1], n // 2 + 1
    re, im = (_fitted(p, last, half) for p in (x.re, x.im))
    keep = [0.0 if k == 0 or 2 * k == n else 1.0 for k in range(half)]  # what is real counts as such
    im = im * c.body.constant(keep, im.dtype).expand(im.shape, (last,))
    mirrored = [p.slice(last, 1, (n + 1) // 2).reverse(last) for p in (re, im)]
    spectrum = Complex(concatenate([re, mirrored[0]], last), concatenate([im, -mirrored[1]], last))
    return _scaled(c, _along(c, spectrum, last, True).re, sizes, True)  # type: ignore[no-any-return]


def _fitted(x: Array, axis: int, size: int) -> Array:
    high = [size - d if i == axis else 0 for i, d in enumerate(x.shape)]
    return x.pad([0] * x.rank, high, 0.0)


BY_PARTS = (
    "add sub neg sum mean cumsum view view_copy _unsafe_view unsqueeze squeeze reshape flatten unflatten clone alias "
    "detach contiguous lift_fresh_copy permute transpose t expand cat stack split split_with_sizes chunk unbind slice "
    "select narrow narrow_copy slice_scatter select_scatter index _unsafe_index index_put index_select gather scatter "
    "scatter_add flip roll repeat constant_pad_nd tril triu diagonal unfold where masked_fill embedding copy "
    "permute_copy unbind_copy resolve_conj resolve_neg as_strided as_strided_copy repeat_interleave.self_int".split()
)
FUNCTIONS: Mapping[str, tuple[Any, ...]] = {
    **{name.replace("arc", "a"): (getattr(jnp, name), "self") for name in (
        "arccos arcsin arctan arccosh arcsinh arctanh exp exp2 expm1 log log1p log2 log10 sqrt sin cos tan "
        "sinh cosh tanh square reciprocal abs sign").split()},
    "sgn": (jnp.sign, "self"), "angle": (jnp.angle, "self"), "rsqrt": (lambda z: 1 / jnp.sqrt(z), "self"),
    "sigmoid": (lambda z: 1 / (1 + jnp.exp(-z)), "self"), "silu": (lambda z: z / (1 + jnp.exp(-z)), "self"),
    "mul": (jnp.multiply, "self", "other"), "div": (jnp.divide, "self", "other"),
    "true_divide": (jnp.divide, "self", "other"), "eq": (jnp.equal, "self", "other"),
    "ne": (jnp.not_equal, "self", "other"), "mm": (jnp.matmul, "self", "mat2"), "bmm": (jnp.matmul, "self", "mat2"),
    "matmul": (jnp.matmul, "self", "other"), "mv": (jnp.matmul, "self", "vec"), "dot": (jnp.dot, "self", "tensor"),
    "vdot": (lambda a, b: jnp.dot(jnp.conj(a), b), "self", "other"),
    "pow": (lambda a, b: a**b, "self", "exponent"), "isfinite": (jnp.isfinite, "self"), "isnan": (jnp.isnan, "self"),
}  # fmt: skip
COMPLEX: Mapping[str, Rule] = {
    **{name: by_parts(name) for name in BY_PARTS if name in PLAIN},
    **{name: by_jax(*row) for name, row in FUNCTIONS.items()},
    "view_as_complex": view_as_complex, "view_as_real": view_as_real, "polar": polar,
    "complex": lambda c: Complex(c.real.broadcast_to(c.shape), c.imag.broadcast_to(c.shape)),
    "real": lambda c: c.self.re, "imag": lambda c: c.self.im,
    **{name: conjugate for name in ("_conj", "conj", "conj_physical", "_conj_physical")},
    **{name: lambda c: c.self for name in ("resolve_conj", "resolve_neg")},
    "_to_copy": to_copy, "linalg_vector_norm": norm, "linear": linear, "addmm": addmm,
    **{n: full for n in "full full_like zeros zeros_like ones ones_like new_full new_zeros new_ones fill scalar_tensor "
                        "empty empty_like".split()},
    "_fft_c2c": complex_transform, "_fft_r2c": real_transform, "_fft_c2r": to_real_transform,
}  # fmt: skip
