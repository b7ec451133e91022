"""isa/elementary.h gives the bits of ir.numerics.elementary, as scalars and as vectors, on every target."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from inferc.backends.c.kernels import Call, DimValue, Kernel, Operand, Result
from inferc.ir.numerics import elementary
from inferc.ir.types import symbol

from .c_harness import Calls, every_target, same_bits

VECTOR = ("exp", "log", "tanh", "erf", "logistic", "silu", "gelu_tanh", "gelu")
SCALAR = (*VECTOR, "expm1", "log1p", "sin", "cos")
EDGES = np.array([
    0.0, 1e-45, 1e-40, 1.17549435e-38, 1e-30, 1e-8, 0.5, 0.625, 0.70710678, 0.70710683, 1.0, 1.5, 2.0, 3.5,
                  4.0, 5.0, 88.0, 88.72, 88.73, 88.8, 88.9, 103.0, 103.97, 103.98, 104.0, 105.0, 150.0, 67108860.0,
                  67108864.0, 67108872.0, 1e10, 3.4028235e38, np.inf, np.nan], np.float32)  # fmt: skip
N = symbol("N", 1, 1 << 24)


def of_floats(form: str, name: str) -> Call:
    """y = NAME(x), of scalars (form s) or vectors (v)."""
    step, what = "i++", f"y[i] = m_{name}(x[i])"
    if form == "v":
        step, what = "i += 16", f"f32_store(y + i, f32_{name}(f32_load(x + i)))"
    source = f"""\
static void {form}_{name}(const float *x, float *y, int n) {{
  for (int i = 0; i < n; {step}) {what};
}}
"""
    return Call(Kernel(f"{form}_{name}", source), (Operand(0), Result(0), DimValue(N)))


POW = Call(Kernel("s_pow", """\
static void s_pow(const float *x, const float *e, float *y, int n) {
  for (int i = 0; i < n; i++) y[i] = m_pow(x[i], e[i]);
}
"""), (Operand(0), Operand(1), Result(0), DimValue(N)))  # fmt: skip
CALLS = [*(of_floats("s", f) for f in SCALAR), *(of_floats("v", f) for f in VECTOR), POW]


def inputs() -> np.ndarray:
    """Edge values with neighbours, every exponent with both signs (NaNs and denormals too), and the usual range."""
    rng = np.random.default_rng(1)
    with np.errstate(over="ignore"):
        edges = np.concatenate([EDGES, np.nextafter(EDGES, np.float32(0)), np.nextafter(EDGES, np.float32("inf"))])
    any_bits = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32).view(np.float32)
    usual = np.concatenate([rng.normal(size=1 << 18), rng.uniform(-110, 95, 1 << 18)]).astype(np.float32)
    x = np.concatenate([edges, -edges, any_bits, usual])
    return np.concatenate([x, np.zeros(-len(x) % 16, np.float32)])


@cache
def library(target: str) -> Calls:
    return Calls(CALLS, target)


def call(target: str, name: str, *arrays: np.ndarray) -> np.ndarray:
    y = np.empty_like(arrays[0])
    which = [c.kernel.symbol for c in CALLS].index(name)
    library(target).run(which, arrays, [y], {"N": len(y)})
    return y


@every_target
@pytest.mark.parametrize("name", SCALAR)
def test_bits(name: str, target: str) -> None:
    x = inputs()
    want = getattr(elementary, name)(x)
    for form in ("s", "v") if name in VECTOR else ("s",):
        got = call(target, f"{form}_{name}", x)
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
        assert same_bits(call(target, "s_pow", base, exponent), elementary.pow(base, exponent))
