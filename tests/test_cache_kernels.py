"""Writes to the cache: C changes the bytes of its positions, to what the interpreter has there, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from inferc.backends.c.cache import LOWERINGS
from inferc.ir.graph import make, make_input
from inferc.ir.numerics import attention
from inferc.ir.ops import OPS
from inferc.ir.quant import dequantize
from inferc.ir.types import DTYPES, Type, array_dtype, array_shape, f32, i32, symbol

from .c_harness import Region, every_target, run_call
from .cache_pages import PAGE, page_bytes

T, S = symbol("T", 1, 512), symbol("S", 1, 8)
HEADS, ROWS, SESSIONS = 3, 512, 2
SEQUENCE, POSITION = [0, 0, 1, 1, 2, -1, 1], [254, 257, 0, 511, 3, 3, 15]


def inputs(size: int) -> np.ndarray:
    """f32[T, HEADS, size]: normal values, and groups of zeros, tiny, huge, infinite and NaN ones."""
    x = np.random.default_rng(5).normal(size=(len(POSITION), HEADS, size)).astype(np.float32)
    x[0, 0] = 0
    x[1, 1, ::2] *= np.float32(1e-33)
    x[1, 2] *= np.float32(1e-6)
    x[2, 0] *= np.float32(3e4)
    x[3, 1, 3], x[3, 2, 5] = np.inf, np.nan
    return x


@every_target
@pytest.mark.parametrize("window", (0, 100))
@pytest.mark.parametrize("kind", ("k", "v"))
@pytest.mark.parametrize("dtype", ("f16", "q8_0"))
def test_write(dtype: str, kind: str, window: int, target: str) -> None:
    size = 64
    t = Type((SESSIONS, HEADS, ROWS, size), DTYPES[dtype])
    cache = make_input(f"l.{kind}", "state", Type((S, *t.shape[1:]), t.dtype))[0]
    x, sequence, position = (make_input(n, "arg", Type((T, *shape), of))[0] for n, shape, of in (
        ("x", (HEADS, size), f32), ("sequence", (), i32), ("position", (), i32)))  # fmt: skip
    node = make(OPS["cache_write"], cache, x, sequence, position, window=window)
    before = np.full(array_shape(t), 0xFF, np.uint8) if t.dtype.is_block else np.full(array_shape(t), -1, np.int16)
    before = before.view(array_dtype(t))
    arrays = inputs(size), np.array(SEQUENCE, np.int32), np.array(POSITION, np.int32) + (ROWS if window else 0)
    (want,) = node.op.reference((t, x.type, sequence.type, position.type), before, *arrays, window=window)
    starts = range(0, ROWS, PAGE)
    pages = [[page_bytes(kind, t.dtype, want[s, :, p : p + PAGE]) for p in starts] for s in range(SESSIONS)]
    memory = [np.full(64 + sum(page.nbytes for page in part), 0xFF, np.uint8) for part in pages]
    region = Region(64, pages[0][0].nbytes, len(pages[0]) if window else 0)
    run_call(LOWERINGS["cache_write"](node, None), [region, *arrays], [], {"T": len(POSITION), "S": SESSIONS}, target,
             2, memory)  # fmt: skip
    for got, part in zip(memory, pages):
        half = np.uint16 if dtype == "f16" else np.uint8
        assert_same_halves(got[64:].view(half), np.concatenate(part).view(half), dtype)


def assert_same_halves(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    """Equal bits; NaNs of f16 are alike."""
    alike = got == want
    if dtype == "f16":
        alike |= np.isnan(got.view(np.float16)) & np.isnan(want.view(np.float16))
    assert alike.all()


def test_quantised_cache_is_q8_0() -> None:
    """The values of ggml's q8_0, but for ties and the rounding of 1 / d; a value moves by half a step at most."""
    x = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    raw = attention.quantize_cache(x)
    values = dequantize(DTYPES["q8_0"], raw, x.shape)
    step = np.abs(x.reshape(-1, 2, 32)).max(-1, keepdims=True) / 127
    assert (np.abs(values - x).reshape(-1, 2, 32) <= 0.5 * step + np.abs(x).reshape(-1, 2, 32) * 2**-11).all()
    assert (raw != quants.quantize(x, GGMLQuantizationType.Q8_0)).mean() < 1e-3
