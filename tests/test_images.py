"""The items of a batch one after another: the same bits, for the part of a network that is worth it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from inferc.backends.c import target
from inferc.compiler.passes import images
from inferc.compiler.pipeline import run_passes
from inferc.compiler.tracing import Input, trace
from inferc.ir.graph import Graph, Module, Weight
from inferc.ir.interpret import interpret
from inferc.ir.types import Type, f32

from .c_harness import same_bits
from .c_programs import OK, Library, compile_library, run_function


def conv(x: Any, w: Any, stride: int = 1, groups: int = 1) -> Any:
    return lax.conv_general_dilated(x, w, (stride, stride), [(1, 1)] * 2, feature_group_count=groups,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip


def convolutional(x: Any, w: Any, u: Any, b: Any, s: Any, head: Any) -> Any:
    """A residual block with a depthwise convolution, a squeeze and a pool, then what has no large arrays."""
    h = jax.nn.relu(conv(x, w) + b)
    h = h + jax.nn.hard_swish(conv(h, u, groups=32))
    h = h * jax.nn.sigmoid(jnp.mean(h, (1, 2), keepdims=True) @ s)
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.mean(h, (1, 2)) @ head


def attentive(x: Any, token: Any, w: Any, up: Any, down: Any) -> Any:
    """A token before the others, a norm, attention and a gelu."""
    x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[2])), x], 1)
    mean = jnp.mean(x, -1, keepdims=True)
    h = (x - mean) * lax.rsqrt(jnp.mean(jnp.square(x - mean), -1, keepdims=True) + 1e-5)
    q = jnp.swapaxes((h @ w).reshape(*h.shape[:2], 2, 16), 1, 2)
    p = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, q) * 0.25, axis=-1)
    x = x + jnp.swapaxes(jnp.einsum("bhqk,bhkd->bhqd", p, q), 1, 2).reshape(x.shape)
    return (x + jax.nn.gelu(x @ up, approximate=False) @ down)[:, 0]


CASES: dict[str, tuple[Any, tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "convolutional": (convolutional, (3, 8, 6, 20), ((3, 3, 20, 32), (3, 3, 1, 32), (32,), (32, 32), (32, 10))),
    "attentive": (attentive, (3, 12, 32), ((1, 1, 32), (32, 32), (32, 128), (128, 32))),
}  # fmt: skip


def traced(name: str) -> tuple[Module, list[np.ndarray], np.ndarray]:
    function, shape, weights = CASES[name]
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(s).astype(np.float32) * 0.3 for s in weights]
    inputs = [Input("x", "arg", Type(shape, f32)), *(Input(f"w{i}", "weight", Type(a.shape, f32))
                                                     for i, a in enumerate(arrays))]  # fmt: skip
    graph, given = trace(lambda *a: [function(*a)], inputs, name=name)
    given |= {f"w{i}": Weight(f"w{i}", Type(a.shape, f32), lambda a=a: a) for i, a in enumerate(arrays)}
    return Module({name: graph}, given), arrays, rng.standard_normal(shape).astype(np.float32)


def ops(graph: Graph) -> Counter[str]:
    return Counter(n.op.name for n in graph.nodes())


@pytest.mark.parametrize("name", CASES)
def test_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, arrays, x = traced(name)
    chosen = target.get("native")
    whole = run_passes(module, chosen.ir)
    monkeypatch.setattr(images, "LARGE", 1 << 10)
    monkeypatch.setattr(images, "OPENED", 0)
    items = run_passes(module, chosen.ir)
    assert ops(whole.entries[name])["scan"] == 0
    (scan,) = (n for n in items.entries[name].nodes() if n.op.name == "scan")
    assert scan.attr("length") == 3 and scan.attr("carry") == 0
    assert "weight" in {n.attr("role") for n in scan.attr("body").inputs}
    (want,) = interpret(whole, {"x": x}, {}, entry=name)
    (got,) = interpret(items, {"x": x}, {}, entry=name)
    assert same_bits(got, want)
    np.testing.assert_allclose(want, np.asarray(jax.jit(CASES[name][0])(x, *arrays)), 1e-4, 1e-4)
    one = compile_library(items, chosen.name)
    two = Library(one.built, one.path, one.weights, 2)
    for library in (one, two):
        out = np.full(want.shape, 0x5A, np.float32)
        assert run_function(library, name, {}, [x], [out]) == OK
        assert same_bits(out, want)
        library.close()


def test_the_part_that_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weights count more than activations nothing changes; the tail with small arrays stays whole."""
    module, _, _ = traced("convolutional")
    chosen = target.get("native")
    monkeypatch.setattr(images, "LARGE", 1 << 10)
    assert ops(run_passes(module, chosen.ir).entries["convolutional"])["scan"] == 0  # a call's cost outweighs all
    monkeypatch.setattr(images, "OPENED", 0)
    after = run_passes(module, chosen.ir).entries["convolutional"]
    assert ops(after)["scan"] == 1 and ops(after)["patch_linear"] == 1  # the head reads 3 x 32 values
