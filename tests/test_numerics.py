"""The bit specification is also accurate: elementary functions in ulp, the others against f64, and their edge cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from inferc.ir.numerics import attention, elementary, linear
from inferc.ir.numerics.reductions import max16, min16, prod16, sum16

INF, NAN = np.float32("inf"), np.float32("nan")
RNG = np.random.default_rng(7)
USUAL = np.concatenate([RNG.normal(size=100_000), RNG.uniform(-103, 88.7, 100_000), RNG.normal(size=20_000) * 1e-6])
USUAL = USUAL.astype(np.float32)
POSITIVE = np.exp(RNG.uniform(-103, 88, 100_000)).astype(np.float32)
ANGLES = np.concatenate([RNG.normal(size=20_000) * s for s in (1, 1e3, 1e6, 1e8, 1e20, 3e37)]).astype(np.float32)
ERF = np.vectorize(math.erf)


def ulp(got: np.ndarray, want: np.ndarray) -> float:
    """The largest error in units of the last place of the f32 nearest to `want` (f64); infinities must agree."""
    with np.errstate(over="ignore"):
        nearest = want.astype(np.float32)
    assert np.array_equal(np.isfinite(got), np.isfinite(nearest))
    finite = np.isfinite(nearest)
    return float(np.max(np.abs(got[finite] - want[finite]) / np.spacing(np.abs(nearest[finite])).astype(np.float64)))


@pytest.mark.parametrize(
    ("name", "reference", "x", "bound"),
    (
        ("exp", np.exp, USUAL, 1.0), ("tanh", np.tanh, USUAL, 1.5), ("erf", ERF, USUAL, 1.5),
        ("log", np.log, POSITIVE, 1.0), ("expm1", np.expm1, USUAL, 0.51), ("log1p", np.log1p, POSITIVE, 0.51),
        ("log1p", np.log1p, -POSITIVE[POSITIVE < 1], 0.51),
        ("sin", np.sin, ANGLES, 0.51), ("cos", np.cos, ANGLES, 0.51), ("rsqrt", lambda x: x**-0.5, POSITIVE, 1.5),
    ),
)  # fmt: skip
def test_ulp(name: str, reference: Callable[[np.ndarray], np.ndarray], x: np.ndarray, bound: float) -> None:
    assert ulp(getattr(elementary, name)(x), reference(x.astype(np.float64))) <= bound


def test_pow_ulp() -> None:
    y = RNG.normal(size=POSITIVE.size).astype(np.float32) * 8
    with np.errstate(over="ignore"):
        assert ulp(elementary.pow(POSITIVE, y), POSITIVE.astype(np.float64) ** y.astype(np.float64)) <= 0.51


@pytest.mark.parametrize(
    ("name", "reference"),
    (
        ("logistic", lambda x: 1 / (1 + np.exp(-x))), ("silu", lambda x: x / (1 + np.exp(-x))),
        ("gelu", lambda x: 0.5 * x * (1 + ERF(x / 2**0.5))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))),
        ("softcap", lambda x: 30 * np.tanh(x / 30)),
    ),
)  # fmt: skip
def test_activations(name: str, reference: Callable[[np.ndarray], np.ndarray]) -> None:
    function = getattr(elementary, name)
    got = function(USUAL, 30.0) if name == "softcap" else function(USUAL)
    assert np.allclose(got, reference(USUAL.astype(np.float64)), rtol=5e-7, atol=3e-7)


@pytest.mark.parametrize(
    ("name", "cases"),
    (
        ("exp", ((0.0, 1), (-0.0, 1), (INF, INF), (-INF, 0), (88.73, INF), (-104.0, 0), (-103.9, 1e-45))),
        ("log", ((1.0, 0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (INF, INF), (-INF, NAN), (1e-45, -103.27893))),
        ("tanh", ((0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (1e-45, 1e-45), (-1e-45, -1e-45), (20.0, 1))),
        ("erf", ((0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (1e-45, 1e-45), (5.0, 1))),
        ("logistic", ((0.0, 0.5), (INF, 1), (-INF, 0))), ("silu", ((0.0, 0.0), (-0.0, -0.0), (INF, INF))),
        ("expm1", ((0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1), (1e-45, 1e-45))),
        ("log1p", ((0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN), (INF, INF), (1e-45, 1e-45))),
        ("sin", ((0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN))), ("cos", ((0.0, 1), (INF, NAN))),
        ("rsqrt", ((0.0, INF), (INF, 0), (-1.0, NAN))),
    ),
)  # fmt: skip
def test_edges(name: str, cases: tuple[tuple[float, float], ...]) -> None:
    function = getattr(elementary, name)
    for x, want in cases:
        got = function(np.float32(x))
        assert np.array_equal(got, np.float32(want), equal_nan=True), (x, got)
        assert np.isnan(want) or np.signbit(got) == np.signbit(np.float32(want)), x
    assert np.isnan(function(NAN))


def test_pow_edges_are_those_of_powf() -> None:
    edges = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 16777215.0, 16777216.0, 1e10, 1e-45, INF, NAN], np.float32)
    x, y = np.meshgrid(np.concatenate([edges, -edges]), np.concatenate([edges, -edges]))
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    got = elementary.pow(x, y)
    special = ~np.isfinite(want) | (want == 0) | (np.abs(want) == 1)
    assert np.array_equal(got[special], want[special], equal_nan=True)
    number = ~np.isnan(want)
    assert np.array_equal(np.signbit(got[number]), np.signbit(want[number]))
    assert np.allclose(got[~special], want[~special], rtol=1e-6)


def test_maximum_and_minimum_give_the_second_where_nothing_compares() -> None:
    assert np.signbit(elementary.maximum(np.float32(0), np.float32(-0.0)))
    assert elementary.maximum(NAN, np.float32(1)) == 1 and np.isnan(elementary.maximum(np.float32(1), NAN))
    assert elementary.minimum(NAN, np.float32(1)) == 1 and np.isnan(elementary.minimum(np.float32(1), NAN))


@pytest.mark.parametrize("n", (1, 15, 16, 17, 100))
def test_sum16_order(n: int) -> None:
    x = (RNG.normal(size=n) * 10.0 ** RNG.integers(-6, 6, n)).astype(np.float32)
    lanes = [np.float32(0)] * 16
    for i, value in enumerate(x):
        lanes[i % 16] = lanes[i % 16] + value
    for half in (8, 4, 2, 1):
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    assert sum16(x) == lanes[0]


def test_reductions_over_axes() -> None:
    x = RNG.normal(size=(3, 5, 7, 2)).astype(np.float32)
    for axes in (0, -1, (1, 2), (0, 1, 2, 3)):
        assert np.allclose(sum16(x, axes), x.astype(np.float64).sum(axes), atol=1e-5)
        assert np.allclose(prod16(x, axes), x.astype(np.float64).prod(axes), rtol=1e-5)
        assert np.array_equal(max16(x, axes), x.max(axes)) and np.array_equal(min16(x, axes), x.min(axes))
    assert sum16(np.zeros((2, 0), np.float32)).tolist() == [0, 0] and max16(np.zeros(0, np.float32)) == -INF


def test_norms_and_softmax_against_f64() -> None:
    x, w, b = (RNG.normal(size=s).astype(np.float32) for s in ((6, 37), 37, 37))
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * w
    assert np.allclose(attention.rms_norm(x, w, 1e-5), want, atol=1e-6)
    centred = wide - wide.mean(-1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w + b
    assert np.allclose(attention.layer_norm(x, w, b, 1e-5), want, atol=2e-6)
    for axis in (0, 1):
        e = np.exp(wide - wide.max(axis, keepdims=True))
        assert np.allclose(attention.softmax(x, axis), e / e.sum(axis, keepdims=True), atol=1e-7)


def exact_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray, scale: float,
                    cap: float) -> np.ndarray:  # fmt: skip
    """q[T, H, D], k[H, P, D], v[H, P, Dv], visible[T, P], in f64."""
    s = np.einsum("thd,hpd->thp", q.astype(np.float64), k.astype(np.float64)) * scale
    s = cap * np.tanh(s / cap) if cap else s
    s = np.where(visible[:, None], s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("thp,hpd->thd", p / p.sum(-1, keepdims=True), v.astype(np.float64))


@pytest.mark.parametrize("window", (0, 70, 300))
@pytest.mark.parametrize("cap", (0.0, 20.0))
def test_attention_against_f64(window: int, cap: float) -> None:
    q = RNG.normal(size=(40, 6, 16)).astype(np.float32)
    k, v = RNG.normal(size=(2, 2, 600, 16)).astype(np.float16), RNG.normal(size=(2, 2, 600, 24)).astype(np.float16)
    position, keys = np.arange(490, 530), np.arange(600)
    visible = (keys <= position[:, None]) & (keys > position[:, None] - (window or 600))
    want = exact_attention(q, np.repeat(k[1], 3, 0), np.repeat(v[1], 3, 0), visible, 0.25, cap)
    got = attention.cached_attention(q, k, v, np.ones(40, np.int32), position, 0.25, cap, window)
    assert np.allclose(got, want, atol=2e-6)
    dense = attention.attention(q.transpose(1, 0, 2)[None], k[1:], v[1:], visible[None, None], 0.25, softcap=cap)
    assert np.allclose(dense[0].transpose(1, 0, 2), want, atol=2e-6)


def test_attention_fuses_its_steps_where_it_says_so() -> None:
    """A block of one key: a score is a chain over the head's size, of fused steps or of separate ones, and no more."""
    q, k = (RNG.normal(size=(50, 3, n, 16)).astype(np.float32) for n in (16, 1))
    q, k = q[..., 0, :], np.ascontiguousarray(k)
    visible = np.ones((50, 3, 1), np.bool_)
    for fused in (False, True):
        chain = np.zeros((50, 3), np.float32)
        for d in range(16):
            exact = q[..., d].astype(np.float64) * k[..., 0, d].astype(np.float64)
            step = exact if fused else exact.astype(np.float32).astype(np.float64)
            chain = (step + chain).astype(np.float32)
        got, _, _ = attention.attend_block(q, k, np.zeros((50, 3, 1, 4), np.float32), visible, 0.5, fused=fused)
        assert (got == chain * np.float32(0.5)).mean() > 0.999  # a fused step summed in f64 may round twice


def test_fused_exp_is_within_an_ulp() -> None:
    x = np.concatenate([-np.logspace(-9, np.log10(87), 20000), np.linspace(-87, 88, 20000)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(linear.exp_fused(x) - exact) < np.spacing(exact.astype(np.float32))).all()
    ends = np.array([-INF, -104, -103.9, 0, -0.0, np.nan], np.float32)
    assert np.array_equal(linear.exp_fused(ends), np.array([0, 0, 1e-45, 1, 1, np.nan], np.float32), equal_nan=True)


def test_dense_attention_masks_alike() -> None:
    q, k, v = (RNG.normal(size=(2, 4, n, 8)).astype(np.float32) for n in (5, 9, 9))
    visible = np.arange(9) <= np.arange(5)[:, None] + 4
    causal = attention.attention(q, k, v, scale=0.3, causal=True)
    assert np.array_equal(causal, attention.attention(q, k, v, visible[None, None], 0.3))
    bias = np.where(visible, 0, -INF).astype(np.float32)[None, None]
    assert np.array_equal(causal, attention.attention(q, k, v, bias, 0.3))
    assert not attention.attention(q, k, v, np.zeros((1, 1, 5, 9), np.bool_), 0.3).any()


def test_attention_bits_do_not_depend_on_the_company() -> None:
    """A token alone, in a chunk, among other sequences, and in a ring gives the same bits."""
    q = RNG.normal(size=(12, 4, 16)).astype(np.float32)
    k, v = (RNG.normal(size=(3, 2, 768, 16)).astype(np.float16) for _ in range(2))
    sequence, position = np.array([0] * 6 + [2] * 5 + [3], np.int32), np.array([*range(300, 306), *range(250, 255), 0])
    together = attention.cached_attention(q, k, v, sequence, position, 0.2, window=200)
    for t in range(12):
        one = slice(t, t + 1)
        alone = attention.cached_attention(q[one], k, v, sequence[one], position[one], 0.2, window=200)
        assert np.array_equal(alone, together[one])
    assert not together[11].any()
    ring = np.zeros((3, 2, 256, 16), np.float16), np.zeros((3, 2, 256, 16), np.float16)
    for cache, full in zip(ring, (k, v)):
        for p in range(60, 306):
            cache[:, :, p % 256] = full[:, :, p]
    wrapped = attention.cached_attention(q[:6], *ring, sequence[:6], position[:6], 0.2, window=200)
    assert np.array_equal(wrapped, together[:6])


def test_rope_styles_rotate_the_same_pairs() -> None:
    x = RNG.normal(size=(5, 2, 12)).astype(np.float32)
    cos, sin = attention.rope_angles(np.arange(5), np.array([1, 0.1, 0.01, 0.001], np.float32))
    neox = attention.rope(x, cos, sin, "neox")
    shuffled = x[..., [0, 4, 1, 5, 2, 6, 3, 7, 8, 9, 10, 11]]
    turned = attention.rope(shuffled, cos, sin, "interleaved")
    assert np.array_equal(turned[..., [0, 2, 4, 6, 1, 3, 5, 7, 8, 9, 10, 11]], neox)
    assert np.array_equal(neox[..., 8:], x[..., 8:]) and np.array_equal(neox[0], x[0])
    assert np.allclose(np.linalg.norm(neox, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
