"""The C of cached attention gives the bits of ir.numerics, whatever the tiling, threads, window and sequences."""

from __future__ import annotations

import numpy as np
import pytest

from inferc.backends.c.attention import cached_attention
from inferc.ir.graph import make, make_input
from inferc.ir.numerics import attention
from inferc.ir.ops import OPS
from inferc.ir.types import DTYPES, Type, f32, i32, symbol

from .c_harness import Region, every_target, run_call, same_bits

T, S = symbol("T", 1, 512), symbol("S", 1, 8)


class Cache:
    """Random caches [S, Hkv, rows, D] and the same in session memory; what was never written is NaN in memory."""

    def __init__(self, sessions: int, heads: int, rows: int, d: int, dv: int, length: int, ring: bool) -> None:
        rng = np.random.default_rng(1)
        self.k = rng.normal(size=(sessions, heads, rows, d)).astype(np.float16)
        self.v = rng.normal(size=(sessions, heads, rows, dv)).astype(np.float16)
        pages, sizes = rows // 256, (heads * 256 * d * 2, heads * 256 * dv * 2)
        stride = sum(sizes)
        self.regions = [Region(64 + base, stride, pages if ring else 0) for base in (0, sizes[0])]
        self.memory = []
        for s in range(sessions):
            memory = np.full(64 + pages * stride, 0xFF, np.uint8)
            written = np.arange(rows) < length
            k, v = (np.where(written[:, None], c[s], np.float16("nan")) for c in (self.k, self.v))
            for p in range(pages):
                at, part = memory[64 + p * stride :], slice(256 * p, 256 * p + 256)
                panels = k[:, part].reshape(heads, 16, 16, d).transpose(0, 1, 3, 2)
                at[: sizes[0]] = np.ascontiguousarray(panels).view(np.uint8).ravel()
                at[sizes[0] : stride] = np.ascontiguousarray(v[:, part]).view(np.uint8).ravel()
            self.memory.append(memory)


def check(target: str, heads: int, kv: int, d: int, dv: int, sequence: list[int], position: list[int], threads: int = 1,
          rows: int = 1024, window: int = 0, softcap: float = 0.0, ring: bool = False, spike: float = 0.0,
          ) -> None:  # fmt: skip
    sessions = 2
    cache = Cache(sessions, kv, rows, d, dv, rows if ring else max(position) + 1, ring)
    tokens = len(position)
    q = np.random.default_rng(2).normal(size=(tokens, heads, d)).astype(np.float32)
    if spike:
        q[tokens // 2] *= np.float32(spike)
    at, where = np.array(sequence, np.int32), np.array(position, np.int32)
    types = Type((S, kv, rows, d), DTYPES["f16"]), Type((S, kv, rows, dv), DTYPES["f16"])
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
