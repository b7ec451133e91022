"""The C of cached attention gives the bits of ir.numerics, whatever the tiling, threads, window and sequences."""

from __future__ import annotations

import numpy as np
import pytest

from inferc.backends.c.attention import cached_attention
from inferc.ir.graph import make, make_input
from inferc.ir.numerics import attention
from inferc.ir.ops import OPS
from inferc.ir.quant import dequantize
from inferc.ir.types import DTYPES, DType, Type, f32, i32, symbol

from .c_harness import Region, every_target, run_call, same_bits
from .cache_pages import PAGE, page_bytes

T, S = symbol("T", 1, 512), symbol("S", 1, 8)


class Cache:
    """Random caches [S, Hkv, rows, D] and the same in session memory; what was never written is NaN in memory."""

    def __init__(self, sessions: int, heads: int, rows: int, sizes: tuple[int, int], length: int, ring: bool,
                 dtype: DType) -> None:  # fmt: skip
        rng = np.random.default_rng(1)
        values = [rng.normal(size=(sessions, heads, rows, size)).astype(np.float32) for size in sizes]
        stored = [attention.quantize_cache(x) if dtype.is_block else x.astype(np.float16) for x in values]
        self.k, self.v = (dequantize(dtype, x, (*x.shape[:3], size)) for x, size in zip(stored, sizes))
        for x in stored:
            x.view(np.uint8)[:, :, length:] = 0xFF
        pages = rows // PAGE
        bytes_of = [heads * PAGE * size // dtype.block * dtype.block_bytes for size in sizes]
        stride = sum(bytes_of)
        self.regions = [Region(64 + base, stride, pages if ring else 0) for base in (0, bytes_of[0])]
        self.memory = []
        for s in range(sessions):
            parts = [page_bytes(kind, dtype, x[s, :, PAGE * p : PAGE * p + PAGE])
                     for p in range(pages) for kind, x in zip("kv", stored)]  # fmt: skip
            self.memory.append(np.concatenate([np.full(64, 0xFF, np.uint8), *parts]))


def check(target: str, heads: int, kv: int, d: int, dv: int, sequence: list[int], position: list[int], threads: int = 1,
          rows: int = 1024, window: int = 0, softcap: float = 0.0, ring: bool = False, spike: float = 0.0,
          dtype: str = "f16") -> None:  # fmt: skip
    sessions, stored = 2, DTYPES[dtype]
    cache = Cache(sessions, kv, rows, (d, dv), rows if ring else max(position) + 1, ring, stored)
    tokens = len(position)
    q = np.random.default_rng(2).normal(size=(tokens, heads, d)).astype(np.float32)
    if spike:
        q[tokens // 2] *= np.float32(spike)
    at, where = np.array(sequence, np.int32), np.array(position, np.int32)
    types = Type((S, kv, rows, d), stored), Type((S, kv, rows, dv), stored)
    states = [make_input(n, "state", t)[0] for n, t in zip(("l.k", "l.v"), types)]
    args = [make_input(n, "arg", t)[0] for n, t in (
        ("q", Type((T, heads, d), f32)), ("sequence", Type((T,), i32)), ("position", Type((T,), i32)))]  # fmt: skip
    scale = d**-0.5
    node = make(OPS["cached_attention"], args[0], *states, *args[1:], scale=scale, softcap=softcap, window=window)
    got = np.full((tokens, heads, dv), np.nan, np.float32)
    run_call(cached_attention(node, None), [q, *cache.regions, at, where], [got], {"T": tokens, "S": sessions}, target,
             threads, cache.memory)  # fmt: skip
    want = attention.cached_attention(q, cache.k, cache.v, at, where, scale, softcap, window)
    assert same_bits(got, want), np.argwhere((got != want).any(-1))[:5]


@every_target
@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("sizes", ((9, 3, 64, 64), (4, 1, 32, 32), (2, 2, 16, 16), (8, 1, 24, 40), (9, 1, 8, 256)))
def test_prefill(sizes: tuple[int, int, int, int], threads: int, target: str) -> None:
    check(target, *sizes, [0] * 37, list(range(240, 277)), threads)


@every_target
@pytest.mark.parametrize("threads", (1, 2, 5))
@pytest.mark.parametrize("position", (0, 15, 255, 256, 900))
def test_decode(position: int, threads: int, target: str) -> None:
    check(target, 6, 2, 32, 32, [1], [position], threads)


@every_target
@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("window", (1, 100, 300))
def test_window(window: int, threads: int, target: str) -> None:
    check(target, 4, 2, 16, 16, [0] * 40, list(range(490, 530)), threads, window=window)
    check(target, 4, 2, 16, 16, [0], [700], threads, window=window)


@every_target
@pytest.mark.parametrize("threads", (1, 2))
def test_ring(threads: int, target: str) -> None:
    check(target, 4, 2, 16, 16, [0] * 20, list(range(1500, 1520)), threads, rows=512, window=300, ring=True)
    check(target, 4, 2, 16, 16, [1], [5000], threads, rows=512, window=300, ring=True)


@every_target
@pytest.mark.parametrize("threads", (1, 2))
def test_sequences_mix_and_padding_is_zero(threads: int, target: str) -> None:
    check(target, 6, 2, 32, 32, [0, 0, 1, 1, 1, 2, 0, 1, -1], [300, 301, 5, 6, 7, 0, 700, 255, 3], threads)
    check(target, 2, 1, 32, 32, [1, 2, 0], [600, 0, 10], threads)


@every_target
@pytest.mark.parametrize("threads", (1, 2))
def test_softcap_and_extreme_scores(threads: int, target: str) -> None:
    check(target, 4, 2, 32, 32, [0] * 20, list(range(250, 270)), threads, softcap=30.0)
    check(target, 4, 2, 32, 32, [0] * 20, list(range(250, 270)), threads, spike=1e4)
    check(target, 4, 2, 32, 32, [0] * 20, list(range(250, 270)), threads, spike=float("inf"))


@every_target
@pytest.mark.parametrize("threads", (1, 2))
def test_many_rows(threads: int, target: str) -> None:
    """Jobs of several tiles, over blocks that not all of their rows see."""
    check(target, 3, 1, 16, 16, [0] * 100 + [1] * 30, [*range(200, 300), *range(500, 530)], threads)
    check(target, 3, 1, 16, 16, [0] * 100, list(range(450, 550)), threads, window=40)
    check(target, 40, 1, 16, 16, [0] * 5, list(range(254, 259)), threads)


@every_target
@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("sizes", ((9, 3, 64, 64), (4, 2, 32, 96), (4, 1, 256, 256)))
def test_quantised_cache(sizes: tuple[int, int, int, int], threads: int, target: str) -> None:
    check(target, *sizes, [0] * 37, list(range(240, 277)), threads, dtype="q8_0")
    check(target, *sizes, [1], [700], threads, dtype="q8_0")
    check(target, *sizes, [0] * 20, list(range(1500, 1520)), threads, 512, window=300, ring=True, dtype="q8_0")
