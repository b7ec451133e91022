"""The C of norms, softmax, rotary embedding and cache writes gives the bits of ir.numerics."""

from __future__ import annotations

import numpy as np
import pytest

from inferc.backends.c import cache, norm, rope
from inferc.ir.graph import make, make_input
from inferc.ir.numerics import attention
from inferc.ir.ops import OPS
from inferc.ir.types import DTYPES, Type, f32, i32, symbol

from .c_harness import Region, every_target, run_call, same_bits

T, S = symbol("T", 1, 512), symbol("S", 1, 8)
HOST = None  # lowerings of these families do not ask the target


def op(name: str, *types: Type, **attrs: object):
    return make(OPS[name], *(make_input(f"x{i}", "arg", t)[0] for i, t in enumerate(types)), **attrs)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@every_target
@pytest.mark.parametrize("k", (1, 7, 16, 64, 577))
@pytest.mark.parametrize("threads", (1, 2))
def test_norms(k: int, threads: int, target: str) -> None:
    rows = 70
    x, w, b = random(rows, k), random(k, seed=1), random(k, seed=2)
    x[3] = 0
    x[4, 0] = np.inf
    y = np.empty_like(x)
    t, v = Type((T, k), f32), Type((k,), f32)
    run_call(norm.rms_norm(op("rms_norm", t, v, eps=1e-5), HOST), [x, w], [y], {"T": rows}, target, threads)
    assert same_bits(y, attention.rms_norm(x, w, 1e-5))
    run_call(norm.layer_norm(op("layer_norm", t, v, v, eps=1e-5), HOST), [x, w, b], [y], {"T": rows}, target, threads)
    assert same_bits(y, attention.layer_norm(x, w, b, 1e-5))
    run_call(norm.softmax(op("softmax", t, axis=1), HOST), [x], [y], {"T": rows}, target, threads)
    assert same_bits(y, attention.softmax(x))


@every_target
@pytest.mark.parametrize(("dtype", "k"), (("a8g32", 96), ("bf16", 100)))
def test_rms_norm_stores_activations(dtype: str, k: int, target: str) -> None:
    x, w = random(5, k), random(k, seed=1)
    x[1] = 0
    node = op("rms_norm", Type((T, k), f32), Type((k,), f32), eps=1e-6, dtype=DTYPES[dtype])
    (want,) = node.op.reference(node.types, x, w, **dict(node.attrs))
    got = np.empty_like(want)
    run_call(norm.rms_norm(node, HOST), [x, w], [got], {"T": 5}, target, 2)
    assert np.array_equal(got, want)


@every_target
def test_softmax_of_an_inner_axis(target: str) -> None:
    x = random(3, 37, 5)
    y = np.empty_like(x)
    run_call(norm.softmax(op("softmax", Type((3, 37, 5), f32), axis=1), HOST), [x], [y], {}, target, 2)
    assert same_bits(y, attention.softmax(x, 1))


@every_target
def test_in_place(target: str) -> None:
    x, w, b = random(9, 50), random(50, seed=1), random(50, seed=2)
    t, v = Type((T, 50), f32), Type((50,), f32)
    for call, others, want in (
        (norm.rms_norm(op("rms_norm", t, v, eps=1e-5), HOST), [w], attention.rms_norm(x, w, 1e-5)),
        (norm.layer_norm(op("layer_norm", t, v, v, eps=1e-5), HOST), [w, b], attention.layer_norm(x, w, b, 1e-5)),
        (norm.softmax(op("softmax", t, axis=1), HOST), [], attention.softmax(x)),
    ):
        assert call.in_place == ((0, 0),)
        y = x.copy()
        run_call(call, [y, *others], [y], {"T": 9}, target)
        assert same_bits(y, want)


def angles(tokens: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    position = (np.arange(tokens) * 37 + 1000).astype(np.int32)
    inv_freq = (10000.0 ** -(np.arange(n) / n)).astype(np.float32)
    return position, inv_freq, *attention.rope_angles(position, inv_freq, 1.25)


@every_target
@pytest.mark.parametrize("style", ("neox", "interleaved"))
@pytest.mark.parametrize(("size", "n"), ((64, 32), (80, 20), (16, 8), (24, 3)))
def test_rope(size: int, n: int, style: str, target: str) -> None:
    tokens, heads = 20, 3
    position, inv_freq, cos, sin = angles(tokens, n)
    node = op("rope_angles", Type((T,), i32), Type((n,), f32), scale=1.25)
    got = np.empty_like(cos), np.empty_like(sin)
    run_call(rope.rope_angles(node, HOST), [position, inv_freq], got, {"T": tokens}, target, 2)
    assert same_bits(got[0], cos) and same_bits(got[1], sin)
    x = random(tokens, heads, size)
    y = np.empty_like(x)
    node = op("rope", Type((T, heads, size), f32), Type((T, n), f32), Type((T, n), f32), style=style)
    run_call(rope.rope(node, HOST), [x, cos, sin], [y], {"T": tokens}, target, 2)
    assert same_bits(y, attention.rope(x, cos, sin, style))
    run_call(rope.rope(node, HOST), [x, cos, sin], [x], {"T": tokens}, target)
    assert same_bits(x, y)


def read_back(kind: str, page: np.ndarray, heads: int, size: int) -> np.ndarray:
    """One page's f16 as [heads, 256, size]."""
    if kind == "v":
        return page.reshape(heads, 256, size)
    return page.reshape(heads, 16, size, 16).transpose(0, 1, 3, 2).reshape(heads, 256, size)


@every_target
@pytest.mark.parametrize("kind", ("k", "v"))
@pytest.mark.parametrize("style", ("", "neox", "interleaved"))
@pytest.mark.parametrize("window", (0, 300))
def test_cache_write(kind: str, style: str, window: int, target: str) -> None:
    heads, size, n, pages, rows = 2, 24, 12, 3, 768
    sequence = np.array([0, 1, 1, 2, -1, 0], np.int32)  # 2 and -1 are padding
    position = np.array([0, 255, 256, 9, 9, 700], np.int32) + (768 if window else 0)
    x = random(6, heads, size) * 1e4
    x[0, 0, 0] = 1e30
    _, _, cos, sin = angles(6, n)
    page_bytes = heads * 256 * size * 2
    region = Region(64, page_bytes, pages if window else 0)
    sessions = [np.zeros(64 + pages * page_bytes, np.uint8) for _ in range(2)]
    state = make_input(f"layers.0.{kind}", "state", Type((S, heads, rows, size), DTYPES["f16"]))
    types = [Type((T, heads, size), f32)] + [Type((T, n), f32)] * (2 if style else 0) + [Type((T,), i32)] * 2
    inputs = [make_input(f"x{i}", "arg", t)[0] for i, t in enumerate(types)]
    name = "rope_cache_write" if style else "cache_write"
    node = make(OPS[name], state[0], *inputs, window=window, **({"style": style} if style else {}))
    operands = [region, x, *((cos, sin) if style else ()), sequence, position]
    run_call(cache.LOWERINGS[name](node, HOST), operands, [None], {"T": 6, "S": 2}, target, 2, sessions)
    empty = np.zeros((2, heads, rows, size), np.float16)
    step = {"state": empty, "x": x, "cos": cos, "sin": sin, "sequence": sequence, "position": position}
    arrays = [step[part] for part in ("state", "x", *(("cos", "sin") if style else ()), "sequence", "position")]
    (want,) = node.op.reference([v.type for v in node.inputs], *arrays, **dict(node.attrs))
    for s, memory in enumerate(sessions):
        parts = [memory[64 + p * page_bytes :][:page_bytes].view(np.float16) for p in range(pages)]
        got = [read_back(kind, part, heads, size) for part in parts]
        assert same_bits(np.concatenate(got, axis=1), want[s])
