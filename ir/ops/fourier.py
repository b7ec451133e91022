"""The discrete Fourier transform: real and imaginary parts are two arrays."""

from __future__ import annotations

import math

import numpy as np

from ..graph import Op, Value
from ..types import DType, Type, f32, f64, i32, numpy_dtype
from .common import Arrays, Types, expect
from .decompose import add, constant, emit, mul, sub

DIRECT = 32  # a transform of at most this many points is one product with a matrix
Parts = tuple[Value, Value]


def _infer(re: Type, im: Type, *, inverse: bool) -> Types:
    fits = re == im and re.dtype in (f32, f64) and re.rank > 0 and not re.layout
    expect(fits, f"takes two arrays of f32 or f64, not {re} and {im}")
    expect(isinstance(re.shape[-1], int) and re.shape[-1] > 0, f"the last axis of {re} must have a fixed size")
    return (re, im)


def _reference(types: Types, re: np.ndarray, im: np.ndarray, *, inverse: bool) -> Arrays:
    """X[k] = sum over j of x[j] e^(-2πi jk / n) along the last axis; the inverse with the other sign, over n."""
    z = re.astype(np.float64) + 1j * im.astype(np.float64)
    result = np.fft.ifft(z, axis=-1) if inverse else np.fft.fft(z, axis=-1)
    dtype = numpy_dtype(types[0].dtype)
    return result.real.astype(dtype), result.imag.astype(dtype)


def fft(re: Value, im: Value, *, inverse: bool) -> Parts:
    """By Cooley and Tukey, in factors of at most `DIRECT` where there are some, each a product with a small matrix."""
    n = re.shape[-1]
    assert isinstance(n, int)
    if inverse:  # conj(fft(conj(x))) / n
        re, im = _transform(re, emit("neg", im), n)
        scale = constant(1 / n, re.shape, re.dtype)
        return mul(re, scale), mul(emit("neg", im), scale)
    return _transform(re, im, n)


def _transform(re: Value, im: Value, n: int) -> Parts:
    first = next((a for a in range(min(DIRECT, n - 1), 1, -1) if n % a == 0), n)
    if n <= DIRECT or first == n:
        return _times_matrix(re, im, n)
    return _split(re, im, first, n // first)


def _split(re: Value, im: Value, a: int, b: int) -> Parts:
    """With j = j1 b + j2 and k = k1 + a k2: over j1 with a points, turned by e^(-2πi j2 k1 / n), over j2 with b."""
    lead = re.shape[:-1]
    rank = len(lead)
    grid = (*lead, a, b)
    swap = (*range(rank), rank + 1, rank)

    def swapped(x: Value) -> Value:
        return emit("transpose", x, permutation=swap)

    x_re, x_im = (swapped(emit("reshape", x, shape=grid)) for x in (re, im))  # [j2, j1]
    y_re, y_im = _times_matrix(x_re, x_im, a)  # [j2, k1]
    turns = _turns(b, a, a * b, re.dtype)
    cos, sin = (emit("broadcast", t, shape=(*lead, b, a), dims=(rank, rank + 1)) for t in turns)
    turned_re, turned_im = add(mul(y_re, cos), mul(y_im, sin)), sub(mul(y_im, cos), mul(y_re, sin))
    z_re, z_im = _transform(swapped(turned_re), swapped(turned_im), b)  # [k1, k2]
    return tuple(emit("reshape", swapped(z), shape=(*lead, a * b)) for z in (z_re, z_im))  # type: ignore[return-value]


def _times_matrix(re: Value, im: Value, n: int) -> Parts:
    """The transform of n points as a product: (re + i im) (cos - i sin)."""
    cos, sin = _turns(n, n, n, re.dtype)

    def times(x: Value, m: Value) -> Value:
        return emit("dot_general", x, m, contracting=((x.type.rank - 1,), (0,)), dtype=x.dtype)

    return add(times(re, cos), times(im, sin)), sub(times(im, cos), times(re, sin))


def _turns(rows: int, columns: int, n: int, dtype: DType) -> Parts:
    """cos and sin of 2π jk / n for j in rows and k in columns, from jk mod n brought to -n/2 … n/2."""
    t = Type((rows, columns), i32)
    product = emit("mul", emit("iota", type=t, dim=0), emit("iota", type=t, dim=1))
    turn = emit("rem", product, constant(n, t.shape, i32))
    past = emit("compare", turn, constant(n // 2, t.shape, i32), direction="gt")
    centred = emit("select", past, emit("sub", turn, constant(n, t.shape, i32)), turn)
    angle = mul(emit("convert", centred, dtype=dtype), constant(2 * math.pi / n, t.shape, dtype))
    return emit("cos", angle), emit("sin", angle)


FOURIER = (Op("fft", _infer, _reference, fft, (("inverse", False),)),)
