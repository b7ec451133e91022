"""Norms, softmax, activations, attention: found in each library's own form; what only looks like them is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from inferc.backends.c import target
from inferc.compiler.frontends.jax_function import function
from inferc.compiler.passes import canonical, fold, recognise
from inferc.ir.interpret import interpret
from inferc.ir.types import Type, evaluate
from inferc.ir.verify import verify

from .ir_build import sample

C = target.get("native").ir
TARGET = replace(C, ops=C.ops | {"attention"})
DIMS = {"n": 3, "b": 2}
KEY = jax.random.key(0)


def ops_of(fn: Callable[..., Any], *examples: str, weights: Any = None) -> dict[str, int]:
    """How often each op is in the function after recognition, which kept its results within rounding."""
    module = function(fn, *examples, weights=weights).build(0, 0)
    found = recognise.run(fold.run(canonical.run(module, TARGET), TARGET), TARGET)
    verify(found)
    rng = np.random.default_rng(0)
    inputs = {
        n.attr("name"): sample(Type(tuple(evaluate(d, DIMS) for d in n.types[0].shape), n.types[0].dtype), rng)
        for n in module.entries["run"].inputs_of("arg")
    }
    before, after = (interpret(m, inputs, DIMS, entry="run") for m in (module, found))
    for name, x in before.items():
        np.testing.assert_allclose(after[name], x, 2e-5, 2e-6)
    names = [n.op.name for n in found.entries["run"].nodes()]
    return {name: names.count(name) for name in names if name not in ("input", "constant")}


def nnx_form(module: Any) -> tuple[Callable[..., Any], Any]:
    graph, state = nnx.split(module)
    return (lambda state, *x: nnx.merge(graph, state)(*x)), jax.tree.map(lambda w: w + 0.5, state)


def plain(fn: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
    return fn, None


def of_equinox(module: Any) -> tuple[Callable[..., Any], Any]:
    return (lambda m, x: jax.vmap(m)(x)), module


# ---- norms ----------------------------------------------------------------------------------------------------------


def by_hand(x: Any, w: Any, b: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5) * w + b


def as_onnx(x: Any, w: Any, b: Any) -> Any:
    """ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add: what exporters before LayerNormalization wrote."""
    d = x - jnp.mean(x, -1, keepdims=True)
    return d / jnp.sqrt(jnp.mean(d * d, -1, keepdims=True) + 1e-12) * w + b


def as_torch(x: Any, w: Any) -> Any:
    """LlamaRMSNorm: w * (x * rsqrt(mean(x²) + eps))."""
    return w * (x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6))


def inverse_count(x: Any, w: Any) -> Any:
    return x * jnp.power((x * x).sum(-1, keepdims=True) * (1 / 8) + 1e-6, -0.5) * w


def turned(x: Any, w: Any, b: Any) -> Any:
    """Of channels that were first, as in a ViT after its patches."""
    y = jnp.swapaxes(x, 0, 1)
    return by_hand(y, w, b)


LINEN = linen.LayerNorm()
NORMS: dict[str, tuple[tuple[Callable[..., Any], Any], tuple[str, ...], str]] = {
    "nnx": (nnx_form(nnx.LayerNorm(8, rngs=nnx.Rngs(0))), ("f32[n, 3, 8]",), "layer_norm"),
    "nnx, slow variance": (nnx_form(nnx.LayerNorm(8, use_fast_variance=False, rngs=nnx.Rngs(0))), ("f32[n, 8]",),
                           "layer_norm"),
    "nnx, no bias": (nnx_form(nnx.LayerNorm(8, use_bias=False, rngs=nnx.Rngs(0))), ("f32[8]",), "layer_norm"),
    "nnx rms": (nnx_form(nnx.RMSNorm(8, rngs=nnx.Rngs(0))), ("f32[n, 3, 8]",), "rms_norm"),
    "linen": ((LINEN.apply, LINEN.init(KEY, jnp.ones((1, 8)))), ("f32[n, 8]",), "layer_norm"),
    "equinox": (of_equinox(eqx.nn.LayerNorm(8)), ("f32[n, 8]",), "layer_norm"),
    "equinox, no weight": (of_equinox(eqx.nn.LayerNorm(8, use_weight=False, use_bias=False)), ("f32[n, 8]",),
                           "layer_norm"),
    "equinox rms": (of_equinox(eqx.nn.RMSNorm(8, use_bias=False)), ("f32[n, 8]",), "rms_norm"),
    "by hand": (plain(by_hand), ("f32[n, 8]", "f32[8]", "f32[8]"), "layer_norm"),
    "transposed": (plain(turned), ("f32[8, n]", "f32[8]", "f32[8]"), "layer_norm"),
    "onnx": (plain(as_onnx), ("f32[n, 3, 8]", "f32[8]", "f32[8]"), "layer_norm"),
    "torch rms": (plain(as_torch), ("f32[n, 8]", "f32[8]"), "rms_norm"),
    "inverse count": (plain(inverse_count), ("f32[n, 8]", "f32[8]"), "rms_norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    (fn, weights), examples, op = NORMS[name]
    found = ops_of(fn, *examples, weights=weights)
    assert found.pop(op) == 1 and set(found) <= {"broadcast", "transpose"}


# ---- activations and softmax ----------------------------------------------------------------------------------------

ROOT = np.float32(np.sqrt(2))
ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "jax gelu": (jax.nn.gelu, "gelu_tanh"),
    "jax gelu exact": (lambda x: jax.nn.gelu(x, approximate=False), "gelu"),
    "torch gelu": (lambda x: x * 0.5 * (1 + lax.erf(x / ROOT)), "gelu"),
    "onnx gelu": (lambda x: (x * (1 + lax.erf(x / ROOT))) * 0.5, "gelu"),
    "gelu by erfc": (lambda x: 0.5 * x * lax.erfc(-x / ROOT), "gelu"),
    "new gelu": (lambda x: 0.5 * x * (1 + jnp.tanh(np.float32((2 / np.pi) ** 0.5) * (x + 0.044715 * x**3))),
                 "gelu_tanh"),
    "gelu by logistic": (lambda x: x * jax.nn.sigmoid(2 * 0.7978845608 * (x + 0.044715 * x * x * x)), "gelu_tanh"),
    "silu": (jax.nn.silu, "silu"),
    "swish": (lambda x: x / (1 + jnp.exp(-x)), "silu"),
    "silu of a sum": (lambda x: jax.nn.silu(x + x[0]), "silu"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    fn, op = ACTIVATIONS[name]
    found = ops_of(fn, "f32[n, 40]")
    assert found.pop(op) == 1 and not set(found) & {"tanh", "erf", "exp", "logistic", "erfc"}


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("form", [
    jax.nn.softmax,
    lambda x, axis: jnp.exp(x - x.max(axis, keepdims=True)) / jnp.exp(x - x.max(axis, keepdims=True)).sum(
        axis, keepdims=True),
    lambda x, axis: jnp.moveaxis(jax.vmap(jax.nn.softmax, 1)(jnp.moveaxis(x, axis, -1)), 0, 1),
])  # fmt: skip
def test_softmax(form: Any, axis: int) -> None:
    found = ops_of(lambda x: form(x, axis=axis), "f32[n, 1, 7]" if axis in (0, 2) else "f32[n, 5, 7]")
    assert found.pop("softmax", 0) == 1 or axis == 1 and "exp" not in found
    assert set(found) <= {"transpose", "reshape"}


# ---- attention ------------------------------------------------------------------------------------------------------


def bert(x: Any, mask: Any) -> Any:
    """As exported from torch: heads by reshape and transpose, the mask added."""
    b, t, _ = x.shape
    q, k, v = (jnp.transpose((x * s).reshape(b, t, 2, 4), (0, 2, 1, 3)) for s in (1, 2, 3))
    scores = q @ jnp.swapaxes(k, -1, -2) / 2.0 + (1 - mask)[:, None, None, :] * -1e30
    return jnp.transpose(jax.nn.softmax(scores) @ v, (0, 2, 1, 3)).reshape(b, t, 8)


def capped(q: Any, k: Any, v: Any) -> Any:
    scores = 30.0 * jnp.tanh(jnp.einsum("bthd,bshd->bhts", q, k) * 0.5 / 30.0)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)


QKV = ("f32[b, 5, 2, 4]", "f32[b, 7, 2, 4]", "f32[b, 7, 2, 6]")
SAME = ("f32[b, 5, 2, 4]", "f32[b, 7, 2, 4]", "f32[b, 7, 2, 4]")
attend = jax.nn.dot_product_attention
ATTENTION: dict[str, tuple[tuple[Callable[..., Any], Any], tuple[str, ...]]] = {
    "jax": (plain(attend), SAME),
    "jax, mask": (plain(lambda q, k, v, m: attend(q, k, v, mask=m)), (*SAME, "bool[b, 1, 5, 7]")),
    "jax, bias": (plain(lambda q, k, v, m: attend(q, k, v, bias=m)), (*SAME, "f32[1, 2, 5, 7]")),
    "jax, both": (plain(lambda q, k, v, a, m: attend(q, k, v, a, m)), (*SAME, "f32[b, 2, 5, 7]", "bool[b, 1, 1, 7]")),
    "jax, groups": (plain(attend), ("f32[b, 5, 6, 4]", "f32[b, 7, 2, 4]", "f32[b, 7, 2, 4]")),
    "jax, groups and causal": (plain(lambda q, k, v: attend(q, k, v, is_causal=True)),
                               ("f32[b, 5, 6, 4]", "f32[b, 5, 2, 4]", "f32[b, 5, 2, 4]")),
    "nnx": (nnx_form(nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=nnx.Rngs(0))), ("f32[n, 5, 8]",)),
    "linen": (plain(lambda q, k, v: linen.dot_product_attention(q, k, v)), SAME),
    "linen, mask": (plain(lambda q, k, v, m: linen.dot_product_attention(q, k, v, mask=m)),
                    (*SAME, "bool[b, 2, 5, 7]")),
    "equinox": ((lambda m, x, k: m(x, x, x, mask=k), eqx.nn.MultiheadAttention(2, 8, key=KEY)),
                ("f32[5, 8]", "bool[5, 5]")),
    "equinox, batch": ((lambda m, x: jax.vmap(m)(x, x, x), eqx.nn.MultiheadAttention(2, 8, key=KEY)),
                       ("f32[n, 5, 8]",)),
    "torch": (plain(bert), ("f32[b, 5, 8]", "f32[b, 5]")),
    "one head": (plain(lambda q, k, v: jax.nn.softmax(q @ k.T / 2.0) @ v), ("f32[n, 4]", "f32[7, 4]", "f32[7, 6]")),
    "other order": (plain(lambda q, k, v: jnp.einsum("bshd,bhst->bdht", v, jax.nn.softmax(
        jnp.einsum("bshd,bthd->bhst", k, q), 2))), QKV),
    "softcap": (plain(capped), QKV),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    (fn, weights), examples = ATTENTION[name]
    found = ops_of(fn, *examples, weights=weights)
    assert found.pop("attention") == 1 and not set(found) & {"softmax", "exp", "tanh"}


# ---- what only looks like them --------------------------------------------------------------------------------------

NOT: dict[str, Callable[..., Any]] = {
    "another factor": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "clipped": lambda x: jnp.minimum(0.5 * x * (1 + lax.erf(x / ROOT)), 10),
    "centred by another": lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5),
    "not centred": lambda x: x * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5),
    "a wrong count": lambda x: x * lax.rsqrt((x * x).sum(-1, keepdims=True) / 7 + 1e-5),
    "another axis": lambda x: x * lax.rsqrt((x * x).mean(0, keepdims=True) + 1e-5),
    "another row": lambda x: x * lax.rsqrt((x[::-1] * x[::-1]).mean(-1, keepdims=True) + 1e-5),
    "without eps": lambda x: x * lax.rsqrt((x * x).mean(-1, keepdims=True)),
    "summed elsewhere": lambda x: jnp.exp(x - x.max(1, keepdims=True)) / jnp.exp(x - x.max(1, keepdims=True)).sum(
        0, keepdims=True),
    "another maximum": lambda x: jnp.exp(x - x.max(1, keepdims=True)) / jnp.exp(x - x.min(1, keepdims=True)).sum(
        1, keepdims=True),
    "used twice": lambda x: (jax.nn.softmax(x) + 1) @ x.T,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT)
def test_what_only_looks_like_it_stays(name: str) -> None:
    found = ops_of(NOT[name], "f32[6, 8]")
    named = {"softmax", "attention", "layer_norm", "rms_norm", "gelu", "gelu_tanh", "silu"} & set(found)
    assert named == ({"softmax"} if name == "used twice" else {"gelu"} if name == "clipped" else set())
