"""GGUF models by plain JAX in f32, with some ops replaced by rules and the results of layers brought out.

It is the yardstick of every backend: nothing is rounded but the cache, to f16 as artifacts keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..frontends import language
from ..named_ops import PREFIX, attention
from ..tracing import INLINED

Array = jax.Array
Operation = Callable[[Sequence[Array]], list[Array]]
Rule = Callable[..., list[Array]]  # (the op itself, *operands, **attributes) -> results
JITTED = ("jit", "pjit")


def cache_write_of_f16(cache_write: Operation, cache: Array, x: Array, *rest: Array, window: int) -> list[Array]:
    """A cache that keeps f16."""
    return cache_write([cache, x.astype(jnp.float16).astype(jnp.float32), *rest])


def attention_at_once(
    _: Operation, q: Array, k: Array, v: Array, sequence: Array, position: Array, *,
    scale: float, softcap: float = 0.0, window: int = 0,
) -> list[Array]:  # fmt: skip
    """Cached attention where one sequence begins and row p of its cache holds position p. The op's own meaning copies
    the cache for every token."""
    distance = position[:, None] - position[None, :]
    seen = (distance >= 0) & (distance < (window or len(position)))
    mixed = attention(q.transpose(1, 0, 2)[None], k, v, seen[None, None], scale=scale, softcap=softcap)
    return [mixed[0].transpose(1, 0, 2)]


EXACT: Mapping[str, Rule] = {"cache_write": cache_write_of_f16, "cached_attention": attention_at_once}


def evaluate(jaxpr: Any, rules: Mapping[str, Rule], operands: Sequence[Array],
             layers: list[Array] | None = None) -> list[Array]:  # fmt: skip
    """Applies a jaxpr to arrays, and in place of each named op its rule, where it has one.

    `layers` gets the first result of every jitted function that gives several: of the models' layers, whose first
    result is the stream and the others caches.
    """
    jaxpr, constants = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
    known = dict(zip((*jaxpr.invars, *jaxpr.constvars), (*operands, *constants), strict=True))
    read = lambda atom: atom.val if hasattr(atom, "val") else known[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        primitive, params, values = eqn.primitive, eqn.params, [read(v) for v in eqn.invars]
        if primitive.name in INLINED:
            inner = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call") if key in params)
            whole = partial(evaluate, inner, rules)
            name = params["name"].removeprefix(PREFIX) if primitive.name == "composite" else ""
            if rule := rules.get(name):
                attributes = {key: tree.unflatten(leaves) for key, leaves, tree in params["attributes"]}
                results: Sequence[Array] = rule(whole, *values, **attributes)
            else:
                results = whole(values)
                if layers is not None and primitive.name in JITTED and len(results) > 1:
                    layers.append(results[0])
        else:
            result = primitive.bind(*values, **params)
            results = result if primitive.multiple_results else [result]
        known |= zip(eqn.outvars, results, strict=True)
    return [read(v) for v in jaxpr.outvars]


def with_rules(function: Callable[..., Array], rules: Mapping[str, Rule]) -> Callable[..., Array]:
    """The jitted `function` of arrays and dicts of arrays, with `rules` in place of its named ops."""

    @jax.jit
    def changed(*arguments: Any) -> Array:
        return evaluate(jax.make_jaxpr(function)(*arguments), rules, jax.tree.leaves(arguments))[0]

    return changed


def run(source: language.Source, ids: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The logits f32[len(ids), vocabulary] after each id of a text, and the result [len(ids), width] of each layer."""
    function, weights = language.reference(source, len(ids))

    @jax.jit
    def whole(*arguments: Any) -> tuple[Array, list[Array]]:
        layers: list[Array] = []
        jaxpr = jax.make_jaxpr(function)(*arguments)
        return evaluate(jaxpr, EXACT, jax.tree.leaves(arguments), layers)[0], layers

    count = np.arange(len(ids), dtype=np.int32)
    logits, layers = whole(jax.device_put(weights), np.array(ids, np.int32), count)
    return np.asarray(logits), [np.asarray(layer) for layer in layers]
