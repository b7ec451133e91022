"""Complex numbers inside of functions: two arrays of real numbers. Functions take and give pairs in a last axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import jaxpr_as_fun

from ..ir.graph import IRError, Value
from ..ir.types import Type, boolean
from .primitives_linalg import LINALG

if TYPE_CHECKING:
    from .tracing import Body

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Complex:
    """Real and imaginary parts, of one type."""

    re: Value
    im: Value


Any_ = Value | Complex


def is_complex(dtype: Any) -> bool:
    return np.dtype(dtype).kind == "c" if not hasattr(dtype, "_impl") else False


def _parts(x: Any_) -> tuple[Value, Value]:
    assert isinstance(x, Complex)
    return x.re, x.im


class _Algebra:
    """Arithmetic of values in a body, for the formulas below; scalars are spread."""

    def __init__(self, body: Body, shape: tuple[Any, ...]) -> None:
        self.body, self.shape = body, shape

    def __call__(self, op: str, *operands: Value, **attrs: Any) -> Value:
        return self.body.make(op, *(self.spread(v) for v in operands), **attrs)[0]

    def spread(self, v: Value) -> Value:
        if v.shape == self.shape:
            return v
        return self.body.make("broadcast", v, shape=self.shape, dims=tuple(range(v.type.rank)))[0]


def _product(do: _Algebra, a: Complex, b: Complex) -> Complex:
    re = do("sub", do("mul", a.re, b.re), do("mul", a.im, b.im))
    return Complex(re, do("add", do("mul", a.re, b.im), do("mul", a.im, b.re)))


def _quotient(do: _Algebra, a: Complex, b: Complex) -> Complex:
    size = do("add", do("mul", b.re, b.re), do("mul", b.im, b.im))
    over = _product(do, a, Complex(b.re, do("neg", b.im)))
    return Complex(do("div", over.re, size), do("div", over.im, size))


def _exponential(do: _Algebra, x: Complex) -> Complex:
    size = do("exp", x.re)
    return Complex(do("mul", size, do("cos", x.im)), do("mul", size, do("sin", x.im)))


def _size(do: _Algebra, x: Complex) -> Value:
    """Without squares, which would overflow: m sqrt(1 + (n / m)²) of the larger m and the smaller n."""
    a, b = do("abs", x.re), do("abs", x.im)
    most, least = do("max", a, b), do("min", a, b)
    zero = do.body.make("constant", value=bytes(most.dtype.block_bytes), type=Type((), most.dtype))[0]
    whole = do("is_finite", most)
    ratio = do("select", do("and", whole, do("compare", most, zero, direction="gt")), do("div", least, most), zero)
    one = do("exp", zero)
    return do("mul", most, do("sqrt", do("add", one, do("mul", ratio, ratio))))


def _logarithm(do: _Algebra, x: Complex) -> Complex:
    return Complex(do("log", _size(do, x)), do("atan2", x.im, x.re))


def _power(do: _Algebra, x: Complex, params: Params) -> Complex:
    count = params["y"]
    result = x
    for _ in range(abs(count) - 1):
        result = _product(do, result, x)
    if count > 0:
        return result
    one, zero = (do.spread(do.body.constant(np.array(n, x.re.dtype.numpy))) for n in (1, 0))
    return _quotient(do, Complex(one, zero), result)


def _equal(do: _Algebra, a: Complex, b: Complex, direction: str) -> Value:
    parts = (do("compare", p, q, direction=direction) for p, q in zip(_parts(a), _parts(b)))
    return do("and" if direction == "eq" else "or", *parts)


# primitive: (algebra, operands, params) → result
FORMULAS: Mapping[str, Callable[[_Algebra, list[Any], Params], Any_]] = {
    "complex": lambda do, x, p: Complex(do.spread(x[0]), do.spread(x[1])),
    "real": lambda do, x, p: x[0].re,
    "imag": lambda do, x, p: x[0].im,
    "conj": lambda do, x, p: Complex(x[0].re, do("neg", x[0].im)),
    "mul": lambda do, x, p: _product(do, *x),
    "square": lambda do, x, p: _product(do, x[0], x[0]),
    "integer_pow": lambda do, x, p: _power(do, x[0], p),
    "div": lambda do, x, p: _quotient(do, *x),
    "exp": lambda do, x, p: _exponential(do, *x),
    "log": lambda do, x, p: _logarithm(do, *x),
    "abs": lambda do, x, p: _size(do, *x),
    "eq": lambda do, x, p: _equal(do, x[0], x[1], "eq"),
    "ne": lambda do, x, p: _equal(do, x[0], x[1], "ne"),
}
# What is done to real and imaginary parts alike.
BY_PARTS = frozenset(
    "add add_any sub neg broadcast_in_dim reshape squeeze transpose rev slice split pad concatenate dynamic_slice "
    "dynamic_update_slice gather scatter scatter-add scatter_add select_n reduce_sum cumsum copy copy_p "
    "optimization_barrier stop_gradient reduce_window_sum tile stack unstack device_put name scatter-sub "
    "scatter_sub".split()
)
OTHERS = frozenset({"convert_element_type", "dot_general", "conv_general_dilated", "fft"})


# ---- Functions of complex numbers by JAX's operations on their parts ------------------------------------------------


def _root(z: Any) -> Any:
    x, y, size = lax.real(z), lax.imag(z), jnp.abs(z)
    t = jnp.sqrt((jnp.abs(x) + size) / 2)
    other = y / jnp.where(t == 0, 1, 2 * t)
    return jnp.where(x >= 0, lax.complex(t, other), lax.complex(jnp.abs(other), jnp.where(y < 0, -t, t)))


def _tanh(z: Any) -> Any:
    a, b, c = jnp.tanh(lax.real(z)), jnp.tan(lax.imag(z)), 1 / jnp.cosh(lax.real(z))
    size = 1 + a * a * b * b
    return lax.complex(a * (1 + b * b) / size, b * c * c / size)


def _turned(z: Any) -> Any:
    """z times i."""
    return lax.complex(-lax.imag(z), lax.real(z))


def _sinh(z: Any) -> Any:
    x, y = lax.real(z), lax.imag(z)
    return lax.complex(jnp.sinh(x) * jnp.cos(y), jnp.cosh(x) * jnp.sin(y))


def _cosh(z: Any) -> Any:
    x, y = lax.real(z), lax.imag(z)
    return lax.complex(jnp.cosh(x) * jnp.cos(y), jnp.sinh(x) * jnp.sin(y))


def _expm1(z: Any) -> Any:
    x, y = lax.real(z), lax.imag(z)
    half = jnp.sin(y / 2)
    return lax.complex(jnp.expm1(x) * jnp.cos(y) - 2 * half * half, jnp.exp(x) * jnp.sin(y))


def _log1p(z: Any) -> Any:
    x, y = lax.real(z), lax.imag(z)
    return lax.complex(jnp.log1p(x * (2 + x) + y * y) / 2, jnp.arctan2(y, 1 + x))


def _pow(a: Any, b: Any) -> Any:
    zero, b = a == 0, lax.convert_element_type(b, a.dtype)
    value = jnp.exp(b * jnp.log(jnp.where(zero, jnp.ones_like(a), a)))
    return jnp.where(zero, (b == 0).astype(a.dtype), value)


def _product_of(z: Any, axes: tuple[int, ...], **_: Any) -> Any:
    """Halves of the axes are multiplied until one number is left."""
    kept = [d for d in range(z.ndim) if d not in axes]
    line = z.transpose([*axes, *kept]).reshape(-1, *(z.shape[d] for d in kept))
    while line.shape[0] > 1:
        odd, half = line[2 * (line.shape[0] // 2) :], line.shape[0] // 2
        line = jnp.concatenate([line[:half] * line[half : 2 * half], odd])
    return line[0] if line.shape[0] else jnp.ones(line.shape[1:], z.dtype)


def _asinh(z: Any) -> Any:
    """Of the half plane where nothing cancels: asinh is odd."""
    sign = jnp.where(lax.real(z) < 0, -1, 1)
    z = z * sign
    return sign * jnp.log(z + _root(z * z + 1))


def _atanh(z: Any) -> Any:
    return (_log1p(z) - _log1p(-z)) / 2


def _asin(z: Any) -> Any:
    return -_turned(_asinh(_turned(z)))


def _ordered(*operands: Any, dimension: int, num_keys: int, **_: Any) -> Any:
    """Complex keys by their real parts, then by their imaginary ones."""
    keys = sum(1 + jnp.iscomplexobj(x) for x in operands[:num_keys])
    return _joined(operands, lax.sort(_split(operands), dimension=dimension, num_keys=keys))


BY_JAX: Mapping[str, Callable[..., Any]] = {
    **{name: LINALG[name] for name in ("lu", "triangular_solve", "cholesky", "custom_linear_solve")},
    "asinh": lambda z, **_: _asinh(z), "atanh": lambda z, **_: _atanh(z), "asin": lambda z, **_: _asin(z),
    "acos": lambda z, **_: np.pi / 2 - _asin(z), "atan": lambda z, **_: -_turned(_atanh(_turned(z))),
    "acosh": lambda z, **_: jnp.log(z + _root(z + 1) * _root(z - 1)), "sort": _ordered,
    "cumprod": lambda z, axis, reverse: lax.associative_scan(jnp.multiply, z, reverse=reverse, axis=axis),
    "sqrt": lambda z, **_: _root(z), "rsqrt": lambda z, **_: 1 / _root(z), "pow": lambda a, b, **_: _pow(a, b),
    "tanh": lambda z, **_: _tanh(z),
    "tan": lambda z, **_: -_turned(_tanh(_turned(z))), "sinh": lambda z, **_: _sinh(z),
    "cosh": lambda z, **_: _cosh(z), "sin": lambda z, **_: -_turned(_sinh(_turned(z))),
    "cos": lambda z, **_: _cosh(_turned(z)), "expm1": lambda z, **_: _expm1(z), "log1p": lambda z, **_: _log1p(z),
    "exp2": lambda z, **_: jnp.exp(z * float(np.log(2))), "logistic": lambda z, **_: 1 / (1 + jnp.exp(-z)),
    "sign": lambda z, **_: jnp.where(z == 0, z, z / jnp.where(z == 0, 1, jnp.abs(z))), "reduce_prod": _product_of,
    "is_finite": lambda z, **_: lax.is_finite(lax.real(z)) & lax.is_finite(lax.imag(z)),
}  # fmt: skip


def apply(body: Body, name: str, params: Params, operands: Sequence[Any_], types: list[Type]) -> list[Any_]:
    """The results of a primitive that takes or gives complex numbers; `types` are those of the parts.

    Raises IRError for one that has no formula here.
    """
    if name in BY_PARTS:
        halves = [[getattr(x, part) if isinstance(x, Complex) else x for x in operands] for part in ("re", "im")]
        results = (body.primitive(name, params, half, types) for half in halves)
        return [Complex(re, im) for re, im in zip(*results)]
    if name == "convert_element_type":
        return [_converted(body, operands[0], types[0])]
    if name in ("dot_general", "conv_general_dilated"):
        return [_bilinear(body, name, params, operands, types)]
    if name == "fft":
        return [_transform(body, params, operands[0])]
    if name in CONTROL:
        return _control(body, name, params, list(operands))
    if name in BY_JAX:
        return list(body.inline(lambda *z: BY_JAX[name](*z, **params), list(operands)))  # type: ignore[arg-type]
    if name not in FORMULAS:
        raise IRError(f"{name} of complex numbers is not supported: write it with real and imaginary parts")
    made = FORMULAS[name](_Algebra(body, types[0].shape), list(operands), params)
    return [made]


def _converted(body: Body, x: Any_, type: Type) -> Any_:
    if not isinstance(x, Complex):
        x = _real(body, x)
    if type.dtype == boolean:  # whether it is not 0
        zero = _real(body, x.re).im
        return body.make("or", *(body.make("compare", p, zero, direction="ne")[0] for p in _parts(x)))[0]
    re, im = (p if p.dtype == type.dtype else body.make("convert", p, dtype=type.dtype)[0] for p in _parts(x))
    return Complex(re, im)


# ---- Control flow ---------------------------------------------------------------------------------------------------


def _split(values: Sequence[Any]) -> list[Any]:
    """Arrays of JAX with the parts of complex ones in their place."""
    return [p for x in values for p in ((lax.real(x), lax.imag(x)) if jnp.iscomplexobj(x) else (x,))]


def _joined(avals: Sequence[Any], parts: Iterable[Any]) -> list[Any]:
    """What `_split` was given, of these types."""
    given = iter(parts)
    return [lax.complex(next(given), next(given)) if is_complex(a.dtype) else next(given) for a in avals]


def _scan(params: Params, avals: Sequence[Any], parts: Sequence[Sequence[Any]]) -> list[Any]:
    run, consts, carry = jaxpr_as_fun(params["jaxpr"]), params["num_consts"], params["num_carry"]
    ends = consts + carry
    row_avals = params["jaxpr"].in_avals[ends:]

    def step(state: Any, row: Any) -> Any:
        made = run(*_joined(avals[:consts], chain(*parts[:consts])), *_joined(avals[consts:ends], state),
                   *_joined(row_avals, row))  # fmt: skip
        return _split(made[:carry]), _split(made[carry:])

    first, rows = list(chain(*parts[consts:ends])), list(chain(*parts[ends:]))
    length = None if rows else params["length"]
    last, stacked = lax.scan(step, first, rows, length=length, reverse=params["reverse"])
    return [*last, *stacked]


def _while(params: Params, avals: Sequence[Any], parts: Sequence[Sequence[Any]]) -> list[Any]:
    test, turn = (jaxpr_as_fun(params[key]) for key in ("cond_jaxpr", "body_jaxpr"))
    a, b = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    def going(state: Any) -> Any:
        return test(*_joined(avals[:a], chain(*parts[:a])), *_joined(avals[b:], state))[0]

    def body(state: Any) -> Any:
        on, made = going(state), _split(turn(*_joined(avals[a:b], chain(*parts[a:b])), *_joined(avals[b:], state)))
        # Under vmap each element of the batch goes on by itself.
        return [jnp.where(on.reshape(*on.shape, *[1] * (n.ndim - on.ndim)), n, o) if on.ndim else n
                for n, o in zip(made, state)]  # fmt: skip

    return list(lax.while_loop(lambda state: jnp.any(going(state)), body, list(chain(*parts[b:]))))


def _cond(params: Params, avals: Sequence[Any], parts: Sequence[Sequence[Any]]) -> list[Any]:
    branches = [lambda *given, run=jaxpr_as_fun(b): _split(run(*_joined(avals[1:], given))) for b in params["branches"]]
    return list(lax.switch(parts[0][0], branches, *chain(*parts[1:])))


CONTROL: Mapping[str, Callable[..., list[Any]]] = {"scan": _scan, "while": _while, "cond": _cond}


def _control(body: Body, name: str, params: Params, operands: list[Any_]) -> list[Any_]:
    """Control flow that carries complex numbers, as one that carries their parts."""
    avals = list(body.avals)
    closed = params["branches"][0] if name == "cond" else params["body_jaxpr" if name == "while" else "jaxpr"]
    shaped = [[a] if not is_complex(a.dtype) else [jax.ShapeDtypeStruct(a.shape, np.empty(0, a.dtype).real.dtype)] * 2
              for a in avals]  # fmt: skip

    def run(*flat: Any) -> list[Any]:
        given = iter(flat)
        return CONTROL[name](params, avals, [[next(given) for _ in s] for s in shaped])

    traced = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for s in shaped for a in s))
    values = [p for x in operands for p in (_parts(x) if isinstance(x, Complex) else (x,))]
    made = iter(body.evaluate(traced, values, body.origin))
    return [Complex(next(made), next(made)) if is_complex(a.dtype) else next(made) for a in closed.out_avals]


def _real(body: Body, x: Value) -> Complex:
    """A real array as complex numbers."""
    zero = body.constant(np.zeros((), x.dtype.numpy or "bfloat16"))
    return Complex(x, body.make("broadcast", zero, shape=x.shape, dims=())[0])


def _bilinear(body: Body, name: str, params: Params, operands: Sequence[Any_], types: list[Type]) -> Complex:
    (a, b), (c, d) = map(_parts, operands)

    def times(x: Value, y: Value) -> Value:
        return body.primitive(name, params, [x, y], types)[0]

    return Complex(body.make("sub", times(a, c), times(b, d))[0], body.make("add", times(a, d), times(b, c))[0])


# ---- Fourier transforms ---------------------------------------------------------------------------------------------


def _transform(body: Body, params: Params, x: Any_) -> Any_:
    """`fft` over the last axes: FFT, IFFT, RFFT (half of the last axis is kept), IRFFT (it is made whole first)."""
    kind = str(getattr(params["fft_type"], "name", params["fft_type"]))
    lengths = params["fft_lengths"]
    if not all(isinstance(n, int) and n > 0 for n in lengths):
        raise IRError(f"fft over axes of {lengths}: give them fixed sizes")
    if not isinstance(x, Complex):
        x = _real(body, x)
    rank = x.re.type.rank
    real_in, real_out = kind in ("RFFT", "2"), kind in ("IRFFT", "3")
    inverse = real_out or kind in ("IFFT", "1")
    last = range(rank - len(lengths), rank)
    order = list(last) if real_out else list(reversed(last))  # the halved axis first, or last
    for axis in order:
        if real_out and axis == rank - 1:
            x = _whole(body, x, lengths[-1])
        x = _along(body, x, axis, inverse)
        if real_in and axis == rank - 1:
            x = _columns(body, x, 0, lengths[-1] // 2 + 1)
    return x.re if real_out else x


def _along(body: Body, x: Complex, axis: int, inverse: bool) -> Complex:
    rank = x.re.type.rank
    order = [d for d in range(rank) if d != axis] + [axis]
    back = [order.index(d) for d in range(rank)]

    def moved(v: Value, permutation: list[int]) -> Value:
        return v if axis == rank - 1 else body.make("transpose", v, permutation=tuple(permutation))[0]

    re, im = body.make("fft", *(moved(p, order) for p in _parts(x)), inverse=inverse)
    return Complex(moved(re, back), moved(im, back))


def _columns(body: Body, x: Complex, start: int, limit: int) -> Complex:
    shape = x.re.shape
    none, ones = (0,) * (len(shape) - 1), (1,) * len(shape)
    return Complex(*(body.make("slice", p, start=(*none, start), limit=(*shape[:-1], limit), stride=ones)[0]
                     for p in _parts(x)))  # fmt: skip


def _whole(body: Body, x: Complex, n: int) -> Complex:
    """The spectrum of n real numbers from its first half: X[n - k] is conj X[k]."""
    half = x.re.shape[-1]
    assert isinstance(half, int) and half >= n // 2 + 1, prod((half, n))
    first = _columns(body, x, 0, n // 2 + 1)
    rest = _columns(body, x, 1, (n + 1) // 2)
    axis = x.re.type.rank - 1
    mirrored = [body.make("reverse", p, axes=(axis,))[0] for p in _parts(rest)]
    mirrored[1] = body.make("neg", mirrored[1])[0]
    # The imaginary parts of X[0] and, for even n, of X[n / 2] count as zero.
    real = Complex(first.re, _without_ends(body, first.im, n))
    return Complex(*(body.make("concatenate", p, m, axis=axis)[0] for p, m in zip(_parts(real), mirrored)))


def _without_ends(body: Body, im: Value, n: int) -> Value:
    shape = im.shape
    count = shape[-1]
    assert isinstance(count, int)
    keep = np.ones(count, im.dtype.numpy)
    keep[0] = 0
    if n % 2 == 0:
        keep[-1] = 0
    factor = body.make("broadcast", body.constant(keep), shape=shape, dims=(len(shape) - 1,))[0]
    return body.make("mul", im, factor)[0]
