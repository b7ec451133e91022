"""Functions of JAX become graphs that compute the same: primitives, control flow, symbols, shared functions."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from inferc.compiler.named_ops import linear, rms_norm
from inferc.compiler.tracing import CONSTANT_BYTES, INLINED, PRIMITIVES, Input, trace
from inferc.errors import InfercError
from inferc.ir.graph import Graph, Module
from inferc.ir.interpret import interpret
from inferc.ir.types import DTYPES, Type, symbol
from inferc.ir.verify import verify

BY_NUMPY = {d.numpy: d for d in DTYPES.values() if d.numpy}
RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i(*shape: int, high: int = 10) -> np.ndarray:
    return RNG.integers(0, high, shape).astype(np.int32)


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


# --- Primitives: a function for each, by the name of the primitive that it must use ---

X, Y, SQUARE, MASK = f(4, 6), f(4, 6), f(6, 6), f(4, 6) > 0
A, B = i(4, 6), i(4, 6) + 1
UNARY = "neg abs sign floor ceil exp expm1 tanh logistic sin cos erf is_finite square".split()
POSITIVE = "log log1p sqrt rsqrt".split()
BINARY = "add sub mul div max min rem eq ne lt le gt ge".split()
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    **{name: (getattr(lax, name), X) for name in UNARY},
    **{name: (getattr(lax, name), abs(X) + 0.1) for name in POSITIVE},
    **{name: (getattr(lax, name), X, Y) for name in BINARY},
    **{f"{name} i32": (getattr(lax, name), A, B) for name in (*BINARY, "shift_left", "shift_right_logical",
                                                             "shift_right_arithmetic")},
    "and": (lambda a, b: (a & b, (a > 3) & (b > 3)), A, B),
    "or": (lambda a, b: (a | b, (a > 3) | (b > 3)), A, B),
    "xor": (lambda a, b: a ^ b, A, B),
    "not": (lambda a: (~a, ~(a > 3)), A),
    "pow": (lambda x: abs(x) ** 1.7, X),
    "integer_pow": (lambda x: (x**3, x**7, x**-2), abs(X) + 1),
    "exp2": (jnp.exp2, X),
    "erfc": (jax.scipy.special.erfc, X),
    "tan": (jnp.tan, X),
    "round": (lambda x: (lax.round(x), jnp.round(x)), np.array([0.5, 1.5, -2.5, 2.4], np.float32)),
    "clamp": (lambda x: (lax.clamp(-0.5, x, 0.5), jnp.clip(x, -1, 1)), X),
    "select_n": (lambda x, y: jnp.where(x > y, x, y), X, Y),
    "select_n i32": (lambda w, x, y: lax.select_n(w, x, y, x * y), i(4, 6, high=3), X, Y),
    "convert_element_type": (lambda x: (x.astype(jnp.int32), x.astype(jnp.float16), x > 0), X),
    "bitcast_convert_type": (lambda x: lax.bitcast_convert_type(x, jnp.int32), X),
    "iota": (lambda x: x + jnp.arange(6.0), X),
    "broadcast_in_dim": (lambda x: x[:, None] * jnp.ones((1, 3, 1)), X),
    "reshape": (lambda x: x.reshape(3, 8), X),
    "squeeze": (lambda x: jnp.squeeze(x[:, 2:3], 1), X),
    "transpose": (lambda x: x.T, X),
    "rev": (lambda x: x[::-1, ::-1], X),
    "slice": (lambda x: lax.slice(x, (1, 0), (4, 5), (1, 2)), X),
    "split": (lambda x: jnp.split(x, [1, 4], axis=1), X),
    "pad": (lambda x: lax.pad(x, 1.0, ((1, 2, 0), (-1, 0, 1))), X),
    "concatenate": (lambda x, y: jnp.concatenate([x, y, x], 1), X, Y),
    "reduce_sum": (lambda x: (jnp.sum(x, (1, 0)), jnp.sum(x, 1)), X),
    "reduce_max": (lambda x: (jnp.max(x, (1, 0)), jnp.max(x, 1)), X),
    "reduce_min": (lambda x: (jnp.min(x, (1, 0)), jnp.min(x, 1)), X),
    "reduce_prod": (lambda x: (jnp.prod(x, (1, 0)), jnp.prod(x, 1)), X),
    "reduce_and": (lambda m: jnp.all(m, 0), MASK),
    "reduce_or": (lambda m: jnp.any(m, 0), MASK),
    "argmax": (lambda x: jnp.argmax(x, 1), X),
    "argmin": (lambda x: jnp.argmin(x, 0), X),
    "cumsum": (lambda x: (jnp.cumsum(x, 1), lax.cumsum(x, 0, reverse=True)), X),
    "cumprod": (lambda x: lax.cumprod(x, 1), X),
    "cummax": (lambda x: lax.cummax(x, 0, reverse=True), X),
    "cummin": (lambda a: lax.cummin(a, 1), A),
    "reduce_xor": (lambda a: lax.reduce_xor(a, (0,)), A),
    "conv_general_dilated": (lambda x, w: lax.conv_general_dilated(x, w, (1, 2), "SAME"), f(2, 3, 5, 6), f(4, 3, 3, 3)),
    "batch groups": (lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", batch_group_count=2, dimension_numbers=("HWCN", "HWIO", "NHWC")), f(5, 5, 3, 4),
        f(3, 3, 3, 6)),
    "reduce_window_sum": (lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 3), (2, 1), "SAME"), X),
    "reduce_window_max": (lambda x: lax.reduce_window(x, -np.inf, lax.max, (2, 3), (1, 2), "VALID"), X),
    "reduce_window_min": (lambda a: lax.reduce_window(a, 2**31 - 1, lax.min, (2, 2), (1, 1), "SAME"), A),
    "reduce_window": (lambda x: lax.reduce_window(x, 3.0, lax.mul, (2, 2), (1, 1), "SAME"), X),
    "sort": (lambda x: (jnp.sort(x, 1), jnp.argsort(x, 0)), X),
    "top_k": (lambda x: lax.top_k(x, 3), X),
    "dot_general": (lambda x, w: (x @ w, jnp.einsum("ab,ab->b", x, x), jnp.einsum("ab,cb->abc", x, w)), X, SQUARE),
    "gather": (lambda x, n: (x[n], jnp.take(x, n, 1, mode="clip"), jnp.take(x, n, 0, mode="fill")), X, i(5, high=4)),
    "scatter": (lambda x, n: jnp.asarray(x).at[n].set(1.0), X, np.array([2, 0], np.int32)),
    "scatter-add": (lambda x, n: (jnp.asarray(x).at[n, 1].add(2.0), jnp.asarray(x).at[:, n].add(1.0)), X, i(5, high=4)),
    "scatter-sub": (lambda x, n: jnp.asarray(x).at[n].subtract(2.0), X, i(5, high=4)),
    "scatter-mul": (lambda x, n: jnp.asarray(x).at[n].multiply(2.0), X, i(5, high=4)),
    "scatter-min": (lambda x, n: jnp.asarray(x).at[n].min(0.0), X, i(5, high=4)),
    "scatter-max": (lambda x, n: jnp.asarray(x).at[n].max(0.0), X, i(5, high=4)),
    "dynamic_slice": (lambda x, n: lax.dynamic_slice(x, (n[0], 1), (2, 3)), X, i(1, high=9)),
    "dynamic_update_slice": (lambda x, y, n: lax.dynamic_update_slice(x, y[:2, :2], (n[0], n[0])), X, Y, i(1)),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, lambda v: v * 2.0, x), X),
    "cond switch": (lambda x, n: lax.switch(n[0], [jnp.sin, jnp.cos, jnp.tanh], x), X, i(1, high=3)),
    "while": (lambda x: lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * 1.5 + x), (0, x)), X),
    "scan": (lambda x, w: lax.scan(lambda c, row: (jnp.tanh(c @ w + row), c.sum()), x[0], x), X, SQUARE),
    "scan reversed": (lambda x: lax.scan(lambda c, row: (c + row, c), x[0], x, reverse=True), X),
    "custom_jvp_call": (lambda x: (jax.nn.relu(x), jax.nn.silu(x), jax.nn.gelu(x), jax.nn.softplus(x)), X),
    "checkpoint": (jax.checkpoint(lambda x: jnp.sin(x) * 2), X),
    "optimization_barrier": (lambda x: lax.optimization_barrier(x) + 1, X),
    "logsumexp": (lambda x: (jax.nn.log_softmax(x), jax.nn.logsumexp(x)), X),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_primitive(name):
    function, *operands = FUNCTIONS[name]
    check(function, *operands)


def test_every_primitive_has_a_test():
    """But for those that stand for others: another spelling by version, or made only by gradients, partitioning and
    symbolic dimensions."""
    used: set[str] = set()
    for function, *operands in FUNCTIONS.values():
        used |= set(re.findall(r"\b[a-z_0-9]+(?:-[a-z]+)?\b", str(jax.make_jaxpr(function)(*operands))))
    spellings = {"scatter_add", "scatter_sub", "scatter_mul", "scatter_min", "scatter_max", "copy", "copy_p"}
    assert set(PRIMITIVES) - used - spellings - {"add_any", "sharding_constraint", "dim_as_value"} == set()
    assert not INLINED & set(PRIMITIVES)


def test_an_unknown_primitive_names_itself_and_the_line():
    def decompose(x):
        return jnp.linalg.cholesky(x)  # the line

    with pytest.raises(InfercError, match=r"'cholesky' is not supported \(used at .*test_tracing\.py:\d+\)"):
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
