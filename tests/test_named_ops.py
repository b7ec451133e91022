"""The ops that models are written in: the body in plain JAX is the op of the IR, and vmap goes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inferc.compiler import named_ops
from inferc.compiler.named_ops import PREFIX
from inferc.compiler.tracing import Input, trace
from inferc.ir.interpret import interpret
from inferc.ir.ops import OPS
from inferc.ir.types import DTYPES, Type

T, K, N, H, G, D, S, C = 5, 32, 7, 4, 2, 8, 3, 12


def f(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


ANGLES = named_ops.rope_angles(i(0, 1, 2, 50, 1000), f(D // 2) ** 2)
SEQUENCE, POSITION = i(0, 2, 3, 0, 2), i(4, 7, 0, 5, 2)  # the third token is padding

# Name, operands, attributes.
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("embedding", (f(N, K), i(0, 6, 3, 3, 1)), {}),
    ("take_rows", (f(T, K), i(4, 0)), {}),
    ("linear", (f(T, K), f(N, K, seed=1)), {}),
    ("linear", (f(T, K), f(N, K, seed=1), f(N)), {}),
    ("expert_linear", (f(T, K), f(3, N, K, seed=1), np.arange(2 * T, dtype=np.int32).reshape(T, 2) % 3), {}),
    ("rms_norm", (f(T, K), f(K, seed=1)), {"eps": 1e-5}),
    ("rms_norm", (f(T, H, D), f(D, seed=1)), {"eps": 1e-6}),
    ("layer_norm", (f(T, K), f(K, seed=1), f(K, seed=2)), {"eps": 1e-5}),
    ("silu", (f(T, K) * 5,), {}),
    ("gelu_tanh", (f(T, K) * 3,), {}),
    ("gelu", (f(T, K) * 3,), {}),
    *(("gated", (f(T, K), f(T, K, seed=1)), {"activation": name}) for name in named_ops.ACTIVATIONS),
    ("softcap", (f(T, K) * 40,), {"cap": 30.0}),
    ("softmax", (f(T, K) * 4,), {"axis": 1}),
    ("softmax", (f(T, K) * 4,), {"axis": 0}),
    ("rope_angles", (i(0, 1, 2, 50, 1000), f(D // 2) ** 2), {}),
    ("rope_angles", (i(0, 1, 2, 50, 1000), f(D // 2) ** 2), {"scale": 1.25}),
    ("rope", (f(T, H, D), *ANGLES), {"style": "neox"}),
    ("rope", (f(T, H, D), *ANGLES), {"style": "interleaved"}),
    ("rope", (f(T, H, D + 4), *ANGLES), {"style": "neox"}),
    ("rope", (f(T, H, D + 4), *ANGLES), {"style": "interleaved"}),
    ("attention", (f(2, H, T, D), f(2, G, 9, D), f(2, G, 9, 6)), {"scale": 0.3}),
    ("attention", (f(2, H, T, D), f(2, G, 9, D), f(2, G, 9, 6)), {"scale": 0.3, "causal": True, "softcap": 2.0}),
    ("attention", (f(2, H, T, D), f(2, G, 9, D), f(2, G, 9, 6), f(1, 1, T, 9)), {"scale": 0.3}),
    ("attention", (f(2, H, T, D), f(2, G, 9, D), f(2, G, 9, 6), f(2, 1, 1, 9) > -1), {"scale": 0.3}),
    ("cache_write", (f(S, G, C, D), f(T, G, D), SEQUENCE, POSITION), {}),
    ("cache_write", (f(S, G, C, D), f(T, G, D), SEQUENCE, POSITION + 9), {"window": 4}),
    ("cached_attention", (f(T, H, D), f(S, G, C, D), f(S, G, C, 6), SEQUENCE, POSITION), {"scale": 0.3}),
    ("cached_attention", (f(T, H, D), f(S, G, C, D), f(S, G, C, 6), SEQUENCE, POSITION),
     {"scale": 0.3, "softcap": 2.0, "window": 4}),
    ("cached_attention", (f(T, H, D), f(S, G, C, D), f(S, G, C, 6), SEQUENCE, POSITION + 20),
     {"scale": 0.3, "window": 4}),
]  # fmt: skip
IDS = [f"{name}-{n}" for n, (name, _, _) in enumerate(CASES)]


def outputs(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def graph_of(function: Callable[..., Any], operands: tuple[Any, ...]):
    inputs = [
        Input(f"x{n}", "arg", Type(x.shape, next(d for d in DTYPES.values() if d.numpy == str(x.dtype))))
        for n, x in enumerate(map(np.asarray, operands))
    ]
    return trace(lambda *xs: outputs(function(*xs)), inputs, name="op")[0]


@pytest.mark.parametrize(("name", "operands", "attrs"), CASES, ids=IDS)
def test_the_body_is_the_ops_reference(name, operands, attrs):
    """Traced, it is the one op, and what that computes is what JAX computes, within f32 rounding."""
    op = getattr(named_ops, name)
    graph = graph_of(lambda *xs: op(*xs, **attrs), operands)
    (node,) = (n for n in graph.nodes() if n.op.name != "input")
    assert node.op is OPS[name]
    expected = outputs(op(*operands, **attrs))
    actual = interpret(graph, {f"x{n}": np.asarray(x) for n, x in enumerate(operands)})
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "operands", "attrs"), CASES, ids=IDS)
def test_vmap_is_the_body(name, operands, attrs):
    """Mapped over the first operand, an op is the same as called on each."""
    op = getattr(named_ops, name)
    first = np.stack([np.asarray(operands[0]), np.asarray(operands[0])[::-1]])
    mapped = jax.vmap(lambda x: op(x, *operands[1:], **attrs))(first)
    each = [outputs(op(x, *operands[1:], **attrs)) for x in first]
    for a, e in zip(outputs(mapped), zip(*each), strict=True):
        np.testing.assert_allclose(a, np.stack(e), rtol=2e-5, atol=2e-5)


def test_every_named_op_has_a_case():
    assert {name for name, _, _ in CASES} == {
        name for name, value in vars(named_ops).items() if getattr(value, "__wrapped__", None) and name != "named"
    }


def test_a_jaxpr_holds_the_op_whole_with_its_attributes():
    jaxpr = jax.make_jaxpr(lambda x, w: named_ops.rms_norm(x, w, eps=1e-5))(f(T, K), f(K))
    assert f"name={PREFIX}rms_norm" in str(jaxpr) and "1e-05" in str(jaxpr)


def test_missing_operands_are_left_out():
    without = named_ops.linear(f(T, K), f(N, K), None)
    assert jnp.array_equal(without, named_ops.linear(f(T, K), f(N, K)))
