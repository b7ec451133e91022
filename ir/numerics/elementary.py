"""Elementary functions of f32, as bits: what every backend that promises equal bits computes.

Each f32 operation below is one IEEE operation, in the order written, rounded to nearest even, denormals kept, nothing
fused. Polynomials are Horner chains of separate multiply and add, highest power first. NaN in gives NaN out; which NaN
is not specified. Functions marked f64 convert the argument, compute in f64 by the same rules and round once to f32.

Coefficients: exp, tanh and log follow S. Moshier's Cephes (expf, tanhf, logf); erf is a least-squares fit on Chebyshev
nodes made for this project; the f64 series are Taylor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

LOG2E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
       2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
ERF_SMALL = (7.898201874922961e-05, -0.000802435155492276, 0.0051900530233979225, -0.026854807510972023,
             0.11283612251281738, -0.3761262893676758, 0.12837916612625122)  # fmt: skip
ERF_LARGE = (-0.00018655171152204275, 0.002948945853859186, -0.021841706708073616, 0.10311145335435867,
             0.638142466545105, 1.1270889043807983, 0.0003419623535592109)  # fmt: skip
SQRT_HALF = np.float32(0.70710678118654752)
SQRT_2_OVER_PI = np.float32(0.7978845608)

LOG_64 = tuple(1.0 / (2 * i + 1) for i in reversed(range(9)))  # artanh(s)/s in s*s
EXP_64 = tuple(1.0 / factorial(i) for i in reversed(range(1, 14)))  # (e**r - 1)/r
SIN_64 = tuple((-1.0) ** i / factorial(2 * i + 1) for i in reversed(range(8)))  # sin(r)/r in r*r
COS_64 = tuple((-1.0) ** i / factorial(2 * i) for i in reversed(range(9)))  # cos(r) in r*r
LN2_64, LOG2E_64 = 0.6931471805599453, 1.4426950408889634
# pi/2 in parts of 27, 27 and 53 bits, so that products with integers below 2**26 are exact in the first two.
HALF_PI = (float.fromhex("0x1.921fb5p+0"), float.fromhex("0x1.110b46p-26"), float.fromhex("0x1.1a62633145c07p-54"))
TWO_OVER_PI_64, HALF_PI_64 = 0.6366197723675814, 1.5707963267948966
# The binary fraction of 2/pi, 32 bits a word.
TWO_OVER_PI = np.array([0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB], np.uint64)

quiet = np.errstate(all="ignore")  # infinities and NaN are values here, not accidents


def maximum(a: ArrayLike, b: ArrayLike) -> NDArray:
    """a > b ? a : b. It gives b where either is NaN and where both are zeros."""
    a, b = np.asarray(a), np.asarray(b)
    return np.where(a > b, a, b)


def minimum(a: ArrayLike, b: ArrayLike) -> NDArray:
    """a < b ? a : b. It gives b where either is NaN and where both are zeros."""
    a, b = np.asarray(a), np.asarray(b)
    return np.where(a < b, a, b)


def horner(coefficients: Sequence[float], x: NDArray) -> NDArray:
    """((c0*x + c1)*x + c2)… in the precision of `x`, coefficients rounded to it."""
    one = x.dtype.type
    p = np.full_like(x, one(coefficients[0]))
    for c in coefficients[1:]:
        p = p * x + one(c)
    return p


def _f32(x: ArrayLike) -> F32:
    return np.asarray(x, np.float32)


def _scale2(x: F32, n: NDArray[np.int32]) -> F32:
    """x * 2**n, rounded once; 2**n must be a normal number."""
    return x * np.ldexp(np.float32(1), n)


def _with_sign_of(x: F32, magnitude: F32) -> F32:
    """`magnitude` with the sign bit of `x` or-ed in."""
    return ((x.view(np.uint32) & np.uint32(0x80000000)) | magnitude.view(np.uint32)).view(np.float32)


@quiet
def exp(x: ArrayLike) -> F32:
    """e**x of f32.

    t = min(88.8, max(-104, x)) with the constants first, so NaN stays; n = rint(max(t*log2e, -151)), NaN giving -151;
    r = (t - n*LN2_HIGH) - n*LN2_LOW; y = ((P(r)*(r*r)) + r) + 1; result (y * 2**(n >> 1)) * 2**(n - (n >> 1)), which
    overflows to inf above 88.72 and rounds to zero below -103.98 by itself. Within 1.5 ulp.
    """
    t = minimum(np.float32(88.8), maximum(np.float32(-104), _f32(x)))
    n = np.rint(maximum(t * LOG2E, np.float32(-151)))
    r = (t - n * LN2_HIGH) - n * LN2_LOW
    y = (horner(EXP, r) * (r * r) + r) + np.float32(1)
    i = n.astype(np.int32)
    return _scale2(_scale2(y, i >> 1), i - (i >> 1))


@quiet
def log(x: ArrayLike) -> F32:
    """Natural logarithm of f32: -inf of zeros, NaN of negative numbers.

    x below 2**-126 is first multiplied by 2**24, exactly. x = m * 2**e with m in [sqrt(1/2), sqrt(2)): e = (bits of x -
    bits of sqrt(1/2), 0x3f3504f3) >> 23, bits of m = bits of x - (e << 23). f = m - 1; z = f*f;
    y = (P(f)*f)*z; y = y + e*LN2_LOW; y = y - 0.5*z; result (f + y) + e*LN2_HIGH. Within 1.5 ulp.
    """
    x = _f32(x)
    tiny = np.float32(1.17549435e-38) > x
    bits = np.where(tiny, x * np.float32(16777216), x).view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> 23
    f = (bits - (exponent << 23)).view(np.float32) - np.float32(1)
    e = (exponent - np.where(tiny, 24, 0).astype(np.int32)).astype(np.float32)
    z = f * f
    y = ((horner(LOG, f) * f) * z + e * LN2_LOW) - np.float32(0.5) * z
    y = (f + y) + e * LN2_HIGH
    y = np.where(x > np.float32(3.4028235e38), x, y)
    return np.where(x > 0, y, np.where(x < 0, np.float32("nan"), x - np.float32("inf")))


@quiet
def tanh(x: ArrayLike) -> F32:
    """Hyperbolic tangent of f32, on a = |x|, the sign bit of x or-ed in at the end.

    a < 0.625: ((P(s)*s)*a) + a with s = a*a; else 1 - 2/(exp(a + a) + 1). Within 2 ulp.
    """
    x = _f32(x)
    a = np.abs(x)
    s = a * a
    small = (horner(TANH, s) * s) * a + a
    large = np.float32(1) - np.float32(2) / (exp(a + a) + np.float32(1))
    return _with_sign_of(x, np.where(np.float32(0.625) > a, small, large))


@quiet
def erf(x: ArrayLike) -> F32:
    """Error function of f32, on a = |x|, the sign bit of x or-ed in at the end.

    a < 1: ((P(s)*a) + a) with s = a*a; else 1 - exp(0 - Q(b)) with b = min(4, a), NaN staying. Within 2 ulp.
    """
    x = _f32(x)
    a = np.abs(x)
    small = horner(ERF_SMALL, a * a) * a + a
    large = np.float32(1) - exp(np.float32(0) - horner(ERF_LARGE, minimum(np.float32(4), a)))
    return _with_sign_of(x, np.where(np.float32(1) > a, small, large))


@quiet
def logistic(x: ArrayLike) -> F32:
    """1 / (1 + exp(0 - x))."""
    return np.float32(1) / (np.float32(1) + exp(np.float32(0) - _f32(x)))


@quiet
def silu(x: ArrayLike) -> F32:
    """x / (1 + exp(0 - x)); NaN of -inf."""
    x = _f32(x)
    return x / (np.float32(1) + exp(np.float32(0) - x))


@quiet
def gelu_tanh(x: ArrayLike) -> F32:
    """(0.5*x) * (1 + tanh(0.7978845608 * (x + 0.044715*((x*x)*x))))."""
    x = _f32(x)
    inner = SQRT_2_OVER_PI * (x + np.float32(0.044715) * ((x * x) * x))
    return (np.float32(0.5) * x) * (np.float32(1) + tanh(inner))


@quiet
def gelu(x: ArrayLike) -> F32:
    """(0.5*x) * (1 + erf(x*0.70710678))."""
    x = _f32(x)
    return (np.float32(0.5) * x) * (np.float32(1) + erf(x * SQRT_HALF))


@quiet
def softcap(x: ArrayLike, cap: float) -> F32:
    """cap * tanh(x / cap)."""
    return np.float32(cap) * tanh(_f32(x) / np.float32(cap))


@quiet
def rsqrt(x: ArrayLike) -> F32:
    """1 / sqrt(x)."""
    root: F32 = np.sqrt(_f32(x))
    return np.float32(1) / root


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh, "gelu": gelu}


def _exp_64(x: F64, offset: float) -> F64:
    """f64, e**x + offset of x clamped to [-110, 90], constants first: n = rint(x*log2e), NaN giving 0; r = x - n*ln2;
    q = P(r)*r; result 2**n*q + (2**n + offset)."""
    x = minimum(90.0, maximum(-110.0, x))
    n = np.rint(np.where(np.isnan(x), 0.0, x * LOG2E_64))
    r = x - n * LN2_64
    power = np.ldexp(1.0, n.astype(np.int32))
    return power * (horner(EXP_64, r) * r) + (power + offset)


def _log_64(s: F64, e: F64) -> F64:
    """f64: the logarithm of 2**e * (1 + s)/(1 - s), as e*ln2 + (s + s)*P(s*s)."""
    return e * LN2_64 + (s + s) * horner(LOG_64, s * s)


def _split_64(x: F64) -> tuple[F64, F64]:
    """m in [sqrt(1/2), sqrt(2)) and e with x = m * 2**e, for positive finite normal x."""
    m, e = np.frexp(x)
    low = m < 0.7071067811865476
    return np.where(low, m + m, m), np.where(low, e - 1, e).astype(np.float64)


@quiet
def expm1(x: ArrayLike) -> F32:
    """f64: `_exp_64` with offset -1; a zero gives itself."""
    x = _f32(x)
    return np.where(x == 0, x, _exp_64(x.astype(np.float64), -1.0).astype(np.float32))


@quiet
def log1p(x: ArrayLike) -> F32:
    """f64: `_log_64` of 1 + x = m * 2**e with s = x / (2 + x) where e = 0, for precision near 0, else (m-1)/(m+1)."""
    x = _f32(x)
    wide = x.astype(np.float64)
    inside = (wide > -1) & (wide < np.inf)
    m, e = _split_64(np.where(inside, 1.0 + wide, 1.0))
    s = np.where(e == 0, wide / (2.0 + wide), (m - 1.0) / (m + 1.0))
    y = _log_64(s, e).astype(np.float32)
    outside = np.where(x < -1, np.float32("nan"), np.where(x == -1, np.float32("-inf"), x))
    return np.where(inside & (x != 0), y, outside)


@quiet
def pow(x: ArrayLike, y: ArrayLike) -> F32:
    """f64: exp(y * log|x|), see `_log_64` and `_exp_64`; the sign and the special cases are those of C's powf."""
    x, y = np.broadcast_arrays(_f32(x), _f32(y))
    a = np.abs(x).astype(np.float64)
    normal = (a > 0) & (a < np.inf)
    m, e = _split_64(np.where(normal, a, 1.0))
    log_a = np.where(normal, _log_64((m - 1.0) / (m + 1.0), e), np.where(a == 0, -np.inf, a))
    z = _exp_64(y.astype(np.float64) * log_a, 0.0).astype(np.float32)
    z = np.where((a == 1) & ~np.isnan(y), np.float32(1), z)
    whole = np.rint(y) == y
    odd = whole & (np.abs(y) < np.float32(16777216)) & (np.rint(y * np.float32(0.5)) != y * np.float32(0.5))
    z = np.where(np.signbit(x) & odd, -z, z)
    z = np.where((x < 0) & (a < np.inf) & ~whole, np.float32("nan"), z)
    return np.where((y == 0) | (x == 1), np.float32(1), z)


def _quarter_turns(a: F32) -> tuple[NDArray[np.int64], F64]:
    """k and r with |x| = k*(pi/2) + r modulo a turn, |r| <= pi/4 (a little more by rounding).

    Below 2**26: k = rint(x * 2/pi), r = ((x - k*P1) - k*P2) - k*P3 in f64. From there (Payne and Hanek): the 24-bit
    significand times the 96 bits of 2/pi that matter modulo 4, in units of 2**-62 quarter turns.
    """
    wide = a.astype(np.float64)
    near = wide < 67108864.0
    k = np.rint(np.where(near, wide, 0.0) * TWO_OVER_PI_64)
    r = ((wide - k * HALF_PI[0]) - k * HALF_PI[1]) - k * HALF_PI[2]

    bits = a.view(np.uint32).astype(np.uint64)
    first = np.where(near, 0, (bits >> np.uint64(23)).astype(np.int64) - 152)  # of the 96 bits
    word, shift = first >> 5, (first & 31).astype(np.uint64)
    w = [TWO_OVER_PI[word + i] for i in range(4)]
    part = [((w[i] << np.uint64(32) | w[i + 1]) << shift >> np.uint64(32)) & np.uint64(0xFFFFFFFF) for i in range(3)]
    significand = bits & np.uint64(0x7FFFFF) | np.uint64(0x800000)
    turns = significand * (part[0] << np.uint64(32) | part[1]) + (significand * part[2] >> np.uint64(32))
    quadrant = (turns + np.uint64(1 << 61)) >> np.uint64(62)
    rest = (turns - (quadrant << np.uint64(62))).view(np.int64).astype(np.float64) * 2.0**-62 * HALF_PI_64
    return np.where(near, k.astype(np.int64), quadrant.astype(np.int64)), np.where(near, r, rest)


def _circular(x: ArrayLike, shift: int) -> F32:
    x = _f32(x)
    a = np.abs(np.where(np.isfinite(x), x, np.float32(0)))
    k, r = _quarter_turns(a)
    k, z = k + shift, r * r
    y = np.where(k & 1, horner(COS_64, z), horner(SIN_64, z) * r)
    y = np.where(k & 2, -y, y).astype(np.float32)
    return np.where(np.isfinite(x), y, np.float32("nan"))


@quiet
def sin(x: ArrayLike) -> F32:
    """f64, of |x| with the sign of x: Taylor series in the rest of `_quarter_turns`, by quadrant; NaN of infinities.

    Correctly rounded but for a few arguments in a million.
    """
    x = _f32(x)
    y = _circular(x, 0)
    return np.where(np.signbit(x), -y, y)


@quiet
def cos(x: ArrayLike) -> F32:
    """f64: as `sin`, one quadrant further."""
    return _circular(x, 1)
