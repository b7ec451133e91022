"""Products with weights and what follows them: the interpreter's bits on every target and for any number of threads,
near JAX's results, and in as few kernels as said."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from inferc.backends.c import target
from inferc.compiler.pipeline import run_passes
from inferc.compiler.tracing import Input, trace
from inferc.ir.graph import Module, Weight
from inferc.ir.interpret import interpret
from inferc.ir.types import Type, f32, symbol

from .c_harness import same_bits
from .c_programs import OK, Library, compile_library, run_function

NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x: Any, w: Any, stride: int = 1, pad: int = 0, **options: Any) -> Any:
    return lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=NHWC, **options)


def normalised(x: Any, w: Any, mean: Any, scale: Any, bias: Any) -> Any:
    return jax.nn.relu((conv(x, w, 2, 1) - mean) * scale + bias)


def recurrent(x: Any, w: Any) -> Any:
    def step(h: Any, row: Any) -> Any:
        h = jnp.tanh(row + h @ w)
        return h, h

    return lax.scan(step, jnp.zeros((2, 24), jnp.float32), x)[1]


def attended(x: Any, heads: int) -> Any:
    """Self-attention of a sequence with itself, [batch, rows, heads * width]."""
    h = jnp.swapaxes(x.reshape(*x.shape[:2], heads, -1), 1, 2)
    p = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", h, h) * 0.3, axis=-1)
    return jnp.swapaxes(jnp.einsum("bhqk,bhkd->bhqd", p, h), 1, 2).reshape(x.shape)


def channels_first(x: Any, w: Any, scale: Any, u: Any, v: Any) -> Any:
    """Two convolutions, a norm, a residual branch, a squeeze and a pool, as torch has them."""
    def layer(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(x, w, (1, 1), [(1, 1)] * 2, dimension_numbers=("NCHW", "OIHW", "NCHW"))

    h = jax.nn.relu(layer(x, w) * scale[None, :, None, None])
    h = h + jax.nn.relu(layer(h, u))
    h = h * jax.nn.sigmoid(jnp.mean(h, (2, 3)) @ v)[:, :, None, None]
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return jnp.mean(h, (2, 3))


# A function, the shapes of its argument and weights, and the ops that are left of it.
CASES: dict[str, tuple[Any, tuple[Any, ...], tuple[tuple[int, ...], ...], dict[str, int]]] = {
    "dense": (lambda x, w, b: x + jax.nn.gelu(x @ w + b, approximate=False), (3, 7, 70), ((70, 70), (70,)),
              dict(fused=1)),
    "wide": (lambda x, w: x @ w.T, (9, 300), ((150, 300),), dict(patch_linear=1)),
    "tokens": (lambda x, w, b: jax.nn.silu(x @ w) * b, (symbol("T", 1, 40), 33), ((33, 20), (20,)), dict(fused=1)),
    "norm": (normalised, (2, 9, 8, 20), ((3, 3, 20, 36), (36,), (36,), (36,)), dict(fused=1)),
    "first": (lambda x, w: conv(x, w, 2, 3), (1, 19, 15, 3), ((7, 7, 3, 17),), dict(pad=1, patch_linear=1)),
    "patches": (lambda x, w: conv(x, w, 4), (2, 8, 12, 3), ((4, 4, 3, 16),), dict(patch_linear=1)),
    "dilated": (lambda x, w: conv(x, w, 1, 2, rhs_dilation=(2, 1)), (1, 8, 9, 130), ((3, 3, 130, 5),),
                dict(patch_linear=1)),
    "depthwise": (lambda x, w, b: jax.nn.hard_swish(conv(x, w, 1, 2, feature_group_count=84) + b), (2, 7, 9, 84),
                  ((5, 5, 1, 84), (84,)), dict(fused=1)),
    "strided": (lambda x, w: conv(x, w, 2, 1, feature_group_count=36), (1, 9, 9, 36), ((3, 3, 1, 36),),
                dict(convolution=1)),
    "thin": (lambda x, w: conv(x, w, 1, 1, feature_group_count=12), (1, 5, 19, 12), ((3, 3, 1, 12),),
             dict(convolution=1)),
    "uneven": (lambda x, w: jax.nn.relu(conv(x, w, 1, 1, feature_group_count=72)), (2, 4, 5, 72), ((3, 3, 1, 72),),
               dict(fused=1)),
    "few": (lambda x, w, b: x + jax.nn.sigmoid(x @ w + b), (13, 90), ((90, 90), (90,)), dict(fused=1)),
    "pool": (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1),
                                         ((0, 0), (1, 1), (1, 1), (0, 0))), (1, 8, 9, 40), (), dict(reduce_window=1)),
    "mean": (lambda x: jnp.mean(x, (1, 2)), (2, 5, 9, 40), (), dict(reduce=1, fused=1)),
    "relus": (lambda x, w, u: jax.nn.relu(jax.nn.relu(x @ w) @ u), (9, 30), ((30, 40), (40, 40)), dict(fused=2)),
    "squeeze": (lambda x, w: x * jax.nn.sigmoid(jnp.max(x, (1, 2)) @ w)[:, None, None], (2, 5, 3, 40), ((40, 40),),
                dict(reduce=1, fused=2)),
    "streamed": (lambda x, w: x @ w.T, (50, 520), ((300, 520),), dict(patch_linear=1)),
    "heads": (lambda x, w: attended(x @ w, 3), (2, 11, 24), ((24, 24),), dict(patch_linear=1, fused=1)),
    "channels_first": (channels_first, (2, 20, 8, 6), ((20, 20, 3, 3), (20,), (20, 20, 3, 3), (20, 20)), {}),
    "recurrent": (recurrent, (6, 2, 24), ((24, 24),), dict(scan=1, broadcast=1)),
}  # fmt: skip


def traced(name: str) -> tuple[Module, dict[str, np.ndarray]]:
    function, x, weights, _ = CASES[name]
    rng = np.random.default_rng(len(name))
    arrays = {f"{name}.w{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(weights)}
    inputs = [Input("x", "arg", Type(x, f32)), *(Input(n, "weight", Type(a.shape, f32)) for n, a in arrays.items())]
    graph, given = trace(lambda *a: [function(*a)], inputs, name=name)
    given |= {n: Weight(n, Type(a.shape, f32), lambda a=a: a) for n, a in arrays.items()}
    return Module({name: graph}, given), arrays


MODULES = {name: traced(name) for name in CASES}
WHOLE = Module({n: m.entries[n] for n, (m, _) in MODULES.items()},
               {k: w for m, _ in MODULES.values() for k, w in m.weights.items()})  # fmt: skip


def argument(name: str) -> np.ndarray:
    shape = [d if isinstance(d, int) else 13 for d in CASES[name][1]]
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", [t.name for t in target.supported()])
def test_bits(name: str) -> None:
    module = run_passes(WHOLE, target.get(name).ir)
    one = compile_library(module, name)
    two = Library(one.built, one.path, one.weights, 2)
    for case in CASES:
        x = argument(case)
        dims = {"T": 13} if case == "tokens" else {}
        (want,) = interpret(module, {"x": x}, dims, entry=case)
        for library in (one, two):
            got = np.full(want.shape, 0x5A, np.float32)
            assert run_function(library, case, dims, [x], [got]) == OK
            assert same_bits(got, want), case
    one.close()
    two.close()


@pytest.mark.parametrize("name", CASES)
def test_meaning_and_form(name: str) -> None:
    module, arrays = MODULES[name]
    after = run_passes(module, target.get("native").ir)
    x = argument(name)
    (got,) = interpret(after, {"x": x}, {"T": 13} if name == "tokens" else {}, entry=name)
    np.testing.assert_allclose(got, np.asarray(jax.jit(CASES[name][0])(x, *arrays.values())), 1e-4, 1e-4)
    ops = Counter(n.op.name for n in after.entries[name].nodes())
    left = {op: n for op, n in ops.items() if op not in ("input", "constant", "reshape")}
    if name == "channels_first":
        assert ops["transpose"] == 1 and ops["convolution"] == 0, ops
        return
    assert left == CASES[name][3], ops
