"""isa/elementary.h gives the bits of ir.numerics.elementary, as scalars and as vectors, on every target."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from inferc.ir.numerics import elementary

from .c_harness import build, every_target, same_bits

VECTOR = ("exp", "log", "tanh", "erf", "logistic", "silu", "gelu_tanh", "gelu")
SCALAR = (*VECTOR, "expm1", "log1p", "sin", "cos")
EDGES = np.array([
    0.0, 1e-45, 1e-40, 1.17549435e-38, 1e-30, 1e-8, 0.5, 0.625, 0.70710678, 0.70710683, 1.0, 1.5, 2.0, 3.5,
                  4.0, 5.0, 88.0, 88.72, 88.73, 88.8, 88.9, 103.0, 103.97, 103.98, 104.0, 105.0, 150.0, 67108860.0,
                  67108864.0, 67108872.0, 1e10, 3.4028235e38, np.inf, np.nan], np.float32)  # fmt: skip
SOURCE = "\n".join(
    [f"void s_{f}(const float *x, float *y, int n); void s_{f}(const float *x, float *y, int n) "
     f"{{ for (int i = 0; i < n; i++) y[i] = m_{f}(x[i]); }}" for f in SCALAR]
    + [f"void v_{f}(const float *x, float *y, int n); void v_{f}(const float *x, float *y, int n) "
       f"{{ for (int i = 0; i < n; i += 16) f32_store(y + i, f32_{f}(f32_load(x + i))); }}" for f in VECTOR]
    + ["void s_pow(const float *x, const float *e, float *y, int n);",
       "void s_pow(const float *x, const float *e, float *y, int n) {",
       "  for (int i = 0; i < n; i++) y[i] = m_pow(x[i], e[i]); }"]
)  # fmt: skip


def inputs() -> np.ndarray:
    """Edge values with neighbours, every exponent with both signs (NaNs and denormals too), and the usual range."""
    rng = np.random.default_rng(1)
    with np.errstate(over="ignore"):
        edges = np.concatenate([EDGES, np.nextafter(EDGES, np.float32(0)), np.nextafter(EDGES, np.float32("inf"))])
    any_bits = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32).view(np.float32)
    usual = np.concatenate([rng.normal(size=1 << 18), rng.uniform(-110, 95, 1 << 18)]).astype(np.float32)
    x = np.concatenate([edges, -edges, any_bits, usual])
    return np.concatenate([x, np.zeros(-len(x) % 16, np.float32)])


def call(function: object, *arrays: np.ndarray) -> np.ndarray:
    y = np.empty_like(arrays[0])
    function(*(ctypes.c_void_p(a.ctypes.data) for a in (*arrays, y)), ctypes.c_int(len(y)))
    return y


@every_target
@pytest.mark.parametrize("name", SCALAR)
def test_bits(name: str, target: str) -> None:
    x = inputs()
    want = getattr(elementary, name)(x)
    library = build(SOURCE, target)
    for form in ("s", "v") if name in VECTOR else ("s",):
        got = call(getattr(library, f"{form}_{name}"), x)
        wrong = ~((got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want)))
        assert not wrong.any(), list(zip(x[wrong][:5], got[wrong][:5], want[wrong][:5]))


@every_target
def test_pow(target: str) -> None:
    x = inputs()
    rng = np.random.default_rng(2)
    y = rng.permutation(x)
    y[::2] = rng.integers(-9, 9, len(y[::2])) / np.float32(2)
    edges = np.concatenate([EDGES, -EDGES, np.arange(-4, 4, dtype=np.float32)])
    bases, exponents = (a.ravel() for a in np.meshgrid(edges, edges))
    for base, exponent in ((x, y), (np.ascontiguousarray(bases), np.ascontiguousarray(exponents))):
        assert same_bits(call(build(SOURCE, target).s_pow, base, exponent), elementary.pow(base, exponent))
