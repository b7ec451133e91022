"""Products with weights, as bits: quantised activations, integer dot products with scales, dense chains of fused steps.

Everything here that is one f32 operation in a kernel is one rounded f32 operation in the order stated. Integer sums are
exact, so their order is free; they are computed in floating matrices wide enough to hold them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .. import quant
from ..quant import Activation
from ..types import DType, Type, bf16
from .elementary import LOG2E, maximum, minimum, quiet
from .reductions import max16

F32 = NDArray[np.float32]
Operand = NDArray | np.float32
SMALLEST = np.float32(1e-30)  # a group whose greatest magnitude is no greater quantises to zeros
PIECE = 1 << 22  # weights expanded at a time
LN2 = np.float32(0.6931471805599453)
LN2_LESS = np.float32(0.6931471805599453 - float(LN2))
ROUNDING = np.float32(12582912)  # to which a number below 2**22 is added to be rounded
EXP_FUSED = (0.0013814539415761828, 0.00836874544620514, 0.04166838899254799, 0.1666652113199234, 0.4999999403953552,
             1.0, 1.0)  # fmt: skip


@quiet
def quantize(x: F32, dtype: DType) -> NDArray:
    """f32 [..., K] → bf16 bits (uint16, nearest even) or rows of a8g32 (uint8, see `ir.quant.activations`).

    Per block: amax = max16(|x|); d = amax / 127 and inv = 127 / amax, both 0 unless amax > 1e-30;
    q = nearest even of min(max(x * inv, -127), 127); a sum of q for every 16 values.
    """
    x = np.ascontiguousarray(x, np.float32)
    if dtype == bf16:
        return to_bf16(x)
    blocks = x.reshape(*x.shape[:-1], -1, dtype.block)
    amax = max16(np.abs(blocks), -1)
    used = amax > SMALLEST
    d = np.where(used, amax / np.float32(127), np.float32(0))
    inverse = np.where(used, np.float32(127) / amax, np.float32(0))
    scaled = minimum(maximum(blocks * inverse[..., None], np.float32(-127)), np.float32(127))
    q = np.rint(scaled).astype(np.int8).reshape(x.shape)
    sums = q.reshape(*x.shape[:-1], -1, quant.SUM_GROUP).sum(axis=-1, dtype=np.int32)
    return quant.encode_activation(Activation(q, d, sums))


def to_bf16(x: F32) -> NDArray[np.uint16]:
    """Bits of the nearest bf16, ties to even; denormals are kept, a NaN becomes quiet."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> F32:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def linear(x: NDArray, x_dtype: DType, w: NDArray, w_type: Type) -> F32:
    """x [T, K] times the rows of w [N, K] → f32 [T, N], without bias.

    x is f32, bf16 bits with a bf16 weight, or rows of a8g32 with a weight in blocks. w is
    row-major or in panels, as its type says. With x f32 the weight is widened to f32 and the product is `dense`.
    """
    if w_type.layout:
        w = quant.unpack(w_type, w)
    n, k = quant.known_shape(w_type)
    raw = w.reshape(n, -1)
    dtype = w_type.dtype
    if not dtype.is_block and raw.dtype == np.uint8:
        raw = raw.view({"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[dtype.name])
    out = np.empty((x.shape[0], n), np.float32)
    activation = quant.decode_activation(x_dtype, x) if x_dtype.is_block else None
    for rows in _pieces(n, k):
        if activation is not None:
            out[:, rows] = quantized(activation, dtype, raw[rows])
        elif x_dtype == bf16:
            out[:, rows] = dense_bf16(x, raw[rows])
        else:
            out[:, rows] = dense(x, quant.dequantize(dtype, raw[rows], (raw[rows].shape[0], k)))
    return out


def _pieces(n: int, k: int) -> Iterator[slice]:
    step = max(1, PIECE // k)
    for first in range(0, n, step):
        yield slice(first, min(first + step, n))


@quiet
def quantized(x: Activation, dtype: DType, raw: NDArray[np.uint8]) -> F32:
    """Integer product of activations [T, K] with a block weight's raw rows [N, row bytes] → f32 [T, N].

    From y = +0, the weight's groups of 16 or 32 ascending: y += (scale_w * d_x) * float(i), i = sum of (q - zero) * x,
    exact; with an offset then y += offset_w * (d_x * float(sum of x)). d_x is that of the 32 values the group lies in.
    """
    computed = quant.computed(dtype)
    w = quant.fields(computed, quant.recode(dtype, raw))
    tokens, rows, group = x.q.shape[0], raw.shape[0], quant.FORMATS[computed.name].group
    groups_x = x.q.reshape(tokens, -1, group).transpose(1, 0, 2).astype(np.float32)  # 32 * 128 * 127 < 2**24
    products = groups_x @ w.q.astype(np.float32).reshape(rows, -1, group).transpose(1, 2, 0)  # [groups, T, N], integers
    sums = x.sums.reshape(tokens, -1, group // quant.SUM_GROUP).sum(-1).astype(np.float32)
    y = np.zeros((tokens, rows), np.float32)
    for g in range(products.shape[0]):
        d_x = x.d[:, g * group // 32, None]
        y += (w.scale[None, :, g] * d_x) * products[g]
        if w.offset is not None:
            y += w.offset[None, :, g] * (d_x * sums[:, g, None])
    return y


def _fma_to_odd(a: NDArray, b: Operand, c: Operand) -> NDArray[np.float64]:
    """a * b + c of f32 values in f64, rounded to odd: where the sum is inexact (two-sum says by how much) and its last
    bit is even, it moves one step towards the exact value. Rounding that to f32 then is right, denormals included
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008). The product is exact."""
    p, wide = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    s: NDArray = p + wide
    from_c = s - p
    error = (p - (s - from_c)) + (wide - from_c)
    bits = s.view(np.int64)
    even = (bits & 1) == 0
    step = np.where((error > 0) == (s > 0), 1, -1)
    return (bits + step * (even & ((error > 0) | (error < 0)))).view(np.float64)


@quiet
def fma(a: NDArray, b: Operand, c: Operand) -> F32:
    """a * b + c of f32 arrays with one rounding."""
    return _fma_to_odd(a, b, c).astype(np.float32)


@quiet
def exp_fused(x: NDArray) -> F32:
    """e**x of f32 at most 88, of fused steps: what attention over arrays takes of its scores less their maximum.

    t = max(-104, x), the constant first, so NaN stays; z = fma(t, log2e, 1.5 * 2**23); n = z - 1.5 * 2**23;
    r = fma(n, -ln2 rounded, t); r = fma(n, -what that lacks of ln2, r); y = P(r), a chain of fma; result y * 2**n,
    rounded once. Within 1 ulp. The coefficients are a minimax fit made for this project, but the last two.
    """
    t = maximum(np.float32(-104), x)
    z = fma(t, LOG2E, ROUNDING)
    n = z - ROUNDING
    r = fma(n, -LN2_LESS, fma(n, -LN2, t))
    y = np.full_like(r, EXP_FUSED[0])
    for c in EXP_FUSED[1:]:
        y = fma(y, r, np.float32(c))
    return np.ldexp(y, np.where(np.isnan(n), 0, n).astype(np.int32))


@quiet
def fma_flushed(a: NDArray, b: NDArray, c: NDArray) -> F32:
    """fma whose result becomes zero, of its sign, where rounding to 24 bits leaves it below 2**-126: what x86 does when
    it flushes to zero. (Below 2**-126 - 2**-151: what lies between rounds up to 2**-126.)"""
    s = _fma_to_odd(a, b, c)
    r = s.astype(np.float32)
    return np.where(np.abs(s) < 2.0**-126 - 2.0**-151, np.copysign(np.float32(0), r), r)


def dense(x: F32, w: F32) -> F32:
    """x [T, K], w [N, K] → [T, N]: one chain of fma per output, k ascending from +0."""
    acc = np.zeros((x.shape[0], w.shape[0]), np.float32)
    columns = np.ascontiguousarray(w.T)
    for k in range(x.shape[1]):
        acc = fma(x[:, k, None], columns[None, k], acc)
    return acc


def flush(x: F32) -> F32:
    """Denormals become zero of the same sign."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def dense_bf16(x: NDArray[np.uint16], w: NDArray[np.uint16]) -> F32:
    """bf16 bits x [T, K], w [N, K] → f32 [T, N]: per pair acc = fma(x1, w1, acc), then acc = fma(x0, w0, acc), from +0,
    operands and results flushed; an odd K ends in a pair with zeros. This is what vdpbf16ps does."""
    pad = ((0, 0), (0, x.shape[1] % 2))
    a, b = (flush(from_bf16(np.pad(v, pad))) for v in (x, w))
    acc = np.zeros((x.shape[0], w.shape[0]), np.float32)
    columns = np.ascontiguousarray(b.T)
    for k in range(0, a.shape[1], 2):
        for i in (k + 1, k):
            acc = fma_flushed(a[:, i, None], columns[None, i], acc)
    return acc


