"""Functions of JAX become graphs that compute the same: primitives, control flow, symbols, shared functions."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import pytest
from jax import lax

from inferc.compiler.named_ops import linear, rms_norm
from inferc.compiler.tracing import CONSTANT_BYTES, Input, trace
from inferc.errors import InfercError
from inferc.ir.graph import Graph, Module
from inferc.ir.interpret import interpret
from inferc.ir.types import DTYPES, Type, symbol
from inferc.ir.verify import verify

from .primitive_cases import SQUARE, X, f

BY_NUMPY = {d.numpy: d for d in DTYPES.values() if d.numpy} | {"bfloat16": DTYPES["bf16"]}


def traced(function, *operands: Any) -> Module:
    inputs = [Input(f"x{n}", "arg", Type(x.shape, BY_NUMPY[str(x.dtype)])) for n, x in enumerate(operands)]
    graph, constants = trace(lambda *xs: jax.tree.leaves(function(*xs)), inputs, name="function")
    return Module({"step": graph}, constants)


def check(function, *operands: Any) -> Graph:
    """The graph of the function computes what the function does."""
    module = traced(function, *operands)
    verify(module)
    expected = jax.tree.leaves(function(*operands))
    actual = interpret(module, {f"x{n}": x for n, x in enumerate(operands)})
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
    return module.entries["step"]


def test_an_unknown_primitive_names_itself_and_the_line():
    def decompose(x):
        return jax.scipy.linalg.schur(x)  # the line

    with pytest.raises(InfercError, match=r"'schur' is not supported \(used at .*test_tracing\.py:\d+\); compute the"):
        traced(decompose, SQUARE)


# --- Symbols, constants, weights ---


def test_symbolic_dimensions():
    t = symbol("T", 1, 64)

    def function(x):
        pairs = jnp.concatenate([x, x[:1]], 0).reshape(-1)
        return [pairs, x.reshape(-1, 2), jnp.arange(x.shape[0]) * 2, x[:, None] * jnp.ones((1, 5, 1)),
                x / x.shape[0], x[-1]]  # fmt: skip

    graph, _ = trace(function, [Input("x", "arg", Type((t, 6), BY_NUMPY["float32"]))], name="f")
    assert [o.shape for o in graph.outputs] == [(6 * t + 6,), (3 * t, 2), (t,), (t, 5, 6), (t, 6), (6,)]
    for rows in (1, 7):
        x = f(rows, 6)
        for a, e in zip(interpret(graph, {"x": x}), function(x), strict=True):
            np.testing.assert_allclose(a, e, 1e-6)


def test_the_same_function_is_traced_for_other_bounds():
    """JAX refuses to mix dimensions of two scopes, its caches included."""

    @jax.jit
    def layer(x):
        return x * 2

    for high in (64, 128, 64):
        t = symbol("T", 1, high)
        graph, _ = trace(lambda x: [layer(x)], [Input("x", "arg", Type((t,), BY_NUMPY["float32"]))], name="f")
        assert graph.outputs[0].shape == (t,)


def test_large_constants_are_weights_small_ones_are_not():
    small, large = f(CONSTANT_BYTES // 4), f(CONSTANT_BYTES // 4 + 1)

    @jax.jit
    def inner(x):
        return x + large.sum() + (x[0] * large)[: x.shape[0]]

    def function(x):
        return inner(x) + lax.cond(x[0] > 0, lambda v: v + large[0], lambda v: v * small[0] + large[:4], x) + small[:4]

    graph = check(function, f(4))
    (weight,) = graph.inputs_of("weight")
    assert weight.types[0].shape == large.shape and weight.attr("name").startswith("constants.")
    check(lambda x: lax.while_loop(lambda s: s.sum() < large.max() + 9, lambda s: s + abs(large[:4]), x), abs(f(4)))
    check(lambda x: lax.scan(lambda c, row: (c + large[:4], row * large[1]), x, jnp.ones((3, 4))), f(4))


def test_weights_keep_their_types():
    """Traced as f32; a linear takes the blocks, other operations take them dequantised, once."""
    types = {"w": DTYPES["q8_0"], "scale": DTYPES["f16"], "other": DTYPES["bf16"]}
    shapes = {"w": (8, 32), "scale": (32,), "other": (8, 32)}
    inputs = [
        Input("x", "arg", Type((3, 32), BY_NUMPY["float32"])),
        *(Input(n, "weight", Type(shapes[n], t)) for n, t in types.items()),
    ]

    def function(x, w, scale, other):
        x = rms_norm(x, scale, eps=1e-5) * scale
        return [linear(x, w) + linear(x, other) + x[:, :8] @ other[:, :8], w]

    graph, _ = trace(function, inputs, name="f")
    ops = [n for n in graph.nodes() if n.op.name != "input"]
    assert [n.inputs[1].dtype.name for n in ops if n.op.name == "linear"] == ["q8_0", "bf16"]
    assert sorted(n.inputs[0].node.attr("name") for n in ops if n.op.name == "dequantize") == ["other", "scale", "w"]
    assert [o.dtype.name for o in graph.outputs] == ["f32", "f32"]


# --- Functions ---


@jax.jit
def block(weights, x):
    with jax.named_scope("attention"), jax.named_scope("q"):
        x = rms_norm(x, weights["norm.weight"], eps=1e-5)
    return jnp.where(x > 0, linear(x, weights["w"]), 1.0)


def stack(types) -> Graph:
    inputs = [Input("x", "arg", Type((symbol("T", 1, 8), 32), BY_NUMPY["float32"]))]
    for n, t in enumerate(types):
        inputs += [
            Input(f"{n}.w", "weight", Type((32, 32), DTYPES[t])),
            Input(f"{n}.norm", "weight", Type((32,), BY_NUMPY["float32"])),
        ]

    def function(x, *weights):
        for n in range(len(types)):
            with jax.named_scope(f"layers.{n}"):
                x = block({"w": weights[2 * n], "norm.weight": weights[2 * n + 1]}, x)
        return [x]

    return trace(function, inputs, name="f")[0]


def test_users_jitted_functions_are_shared_calls_and_jaxs_are_inlined():
    calls = [n for n in stack(["q8_0", "q8_0", "q4_0", "q8_0"]).nodes() if n.op.name == "call"]
    graphs = [n.attr("graph") for n in calls]
    assert [n.origin.path for n in calls] == [f"layers.{n}" for n in range(4)]
    assert graphs[0] is graphs[1] is graphs[3] and graphs[2] is not graphs[0]
    assert [graphs[0].name, graphs[2].name] == ["block", "block_2"]
    assert [(n.attr("name"), n.attr("role")) for n in graphs[0].inputs] == [
        ("norm.weight", "weight"), ("w", "weight"), ("x", "arg"),
    ]  # fmt: skip
    assert "call" not in {n.op.name for n in graphs[0].nodes()}


def test_origins_are_call_paths_and_lines():
    graph = next(n.attr("graph") for n in stack(["q8_0"]).nodes() if n.op.name == "call")
    by_op = {n.op.name: n.origin for n in graph.nodes()}
    assert by_op["rms_norm"].path == "attention.q"
    assert all(re.fullmatch(r"test_tracing\.py:\d+", s) for s in by_op["linear"].sources) and by_op["linear"].sources


def test_a_function_is_traced_again_when_it_changed():
    scale = 1.0

    def function(x):
        return x * scale

    first = check(function, X)
    scale = 3.0
    assert [n.attrs for n in first.nodes()] != [n.attrs for n in check(function, X).nodes()]


def test_vmap_of_named_ops_is_inlined():
    graph = check(lambda x, w: jax.vmap(lambda row: rms_norm(row, w, eps=1e-5))(x), X, f(6))
    assert "rms_norm" not in {n.op.name for n in graph.nodes()}
