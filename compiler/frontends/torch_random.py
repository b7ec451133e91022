"""ATen's random operations: numbers of torch's distributions, from a seed that the program takes as one more argument.

Each operation draws from a stream of its own, the bits of `jax.random` for that seed and the operation's place in the
program. So equal seeds give equal results; those that torch would give are others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...ir.graph import IRError
from ...ir.types import DType, boolean, f32, f64
from .arrays import Array
from .by_jax import computed
from .torch_elementwise import operand
from .torch_import import Call, Rule


def drawn(c: Call, draw: Callable[..., Any], shape: Sequence[Any], *arrays: Array) -> Array:
    """`draw(key, like, *arrays)` with the key of this operation; `like` is an array of the shape."""
    if any(str(node.target) != "cond" for node in c.importer.around):
        raise c.error("random numbers inside a loop would be the same in each turn; draw them before, and pass them in")
    n = c.importer.random
    c.importer.random += 1

    def all_of(seed: Any, like: Any, *given: Any) -> Any:
        return draw(jax.random.fold_in(jax.random.key(seed), n), like, *given)

    return computed(all_of, c.importer.seed, c.body.full(tuple(shape), 0, _inner(c.dtype)), *arrays)[0]


def _inner(dtype: DType) -> DType:
    """What numbers are drawn in: f64 or f32."""
    return f64 if dtype == f64 else f32


def of(distribution: Callable[..., Any], **settings: float) -> Rule:
    """`distribution(key, shape, dtype, *settings)` of the result's shape; settings are named with their defaults."""

    def rule(c: Call) -> Array:
        values = [float(c.get(name, default)) for name, default in settings.items()]
        return drawn(c, lambda key, like: distribution(key, like.shape, like.dtype, *values), c.shape)

    return rule


def _uniform(key: Any, shape: Any, dtype: Any, low: float = 0.0, high: float = 1.0) -> Any:
    return jax.random.uniform(key, shape, dtype) * (high - low) + low


def _normal(key: Any, shape: Any, dtype: Any, mean: float = 0.0, deviation: float = 1.0) -> Any:
    return jax.random.normal(key, shape, dtype) * deviation + mean


def _geometric(key: Any, shape: Any, dtype: Any, p: float) -> Any:
    """The number of the first trial that succeeds."""
    u = jax.random.uniform(key, shape, dtype)
    return jnp.maximum(jnp.ceil(jnp.log1p(-u) / math.log1p(-p)), 1) if p < 1 else jnp.ones(shape, dtype)


def normal(c: Call) -> Array:
    """Of means and standard deviations, each an array or a number."""
    mean, deviation = (operand(c, name, c.dtype).broadcast_to(c.shape) for name in ("mean", "std"))
    return drawn(c, lambda key, like: _normal(key, like.shape, like.dtype), c.shape) * deviation + mean


def integers(c: Call) -> Array:
    """From `low`, or 0, to below `high`."""
    low, high = int(c.get("low", 0)), int(c.high)

    def draw(key: Any, like: Any) -> Any:
        return jax.random.randint(key, like.shape, low, high, jnp.int64)

    return drawn(c, draw, c.shape).astype(c.dtype)


def permutation(c: Call) -> Array:
    if not isinstance(c.n, int):
        raise c.error("a permutation must be of a fixed number; export with a fixed one")
    return drawn(c, lambda key, like: jax.random.permutation(key, jnp.arange(like.shape[0])), (c.n,)).astype(c.dtype)


def bernoulli(c: Call) -> Array:
    """Ones with a probability, which each element has, or `p`."""
    modules = list((c.node.meta.get("nn_module_stack") or {"": ("", "")}).values())
    if "Dropout" in str(modules[-1][1]):
        raise c.error(TRAINING)
    p = operand(c, "self" if c.get("p") is None else "p", _inner(c.dtype)).broadcast_to(c.shape)
    return drawn(c, lambda key, like: _uniform(key, like.shape, like.dtype), c.shape).compare("lt", p).astype(c.dtype)


def multinomial(c: Call) -> Array:
    """Places by their weights; each once unless they are replaced: those of the largest log of weight + Gumbel's."""
    count, again = c.num_samples, bool(c.get("replacement", False))
    weights = c.self if c.self.dtype.is_float else c.self.astype(f32)

    def draw(key: Any, like: Any, weights: Any) -> Any:
        odds = jnp.log(weights.astype(like.dtype))
        if again:
            noise = jax.random.gumbel(key, (count, *odds.shape), like.dtype)
            return jnp.moveaxis(jnp.argmax(odds + noise, -1), 0, -1)
        return jax.lax.top_k(odds + jax.random.gumbel(key, odds.shape, like.dtype), count)[1]

    if not isinstance(count, int):
        raise IRError("the number of samples must be fixed; export with a fixed one")
    return drawn(c, draw, (), weights).astype(c.dtype)


def _of_each(distribution: Callable[..., Any]) -> Rule:
    """`distribution(key, x)` of the elements of the operand."""
    return lambda c: drawn(c, lambda key, like, x: distribution(key, x.astype(like.dtype)), (), c.self).astype(c.dtype)


def dropout(c: Call) -> Any:
    """The operand, and where it was kept: everywhere unless a model is in training mode, which is refused."""
    if c.get("train", False) and c.get("p", 0):
        raise c.error(TRAINING)
    x = c.arguments["input"]
    return (x, c.body.full(x.shape, True, boolean)) if len(c.results) > 1 else x


TRAINING = ("dropout in training mode is random; call model.eval() before exporting, or where it is wanted, multiply "
            "with torch.bernoulli(torch.full_like(x, 1 - p)) / (1 - p)")  # fmt: skip
_UNIFORM, _NORMAL = of(_uniform), of(_normal)
RANDOM: Mapping[str, Rule] = {
    "rand": _UNIFORM, "rand_like": _UNIFORM, "uniform": of(_uniform, **{"from": 0.0, "to": 1.0}),
    "randn": _NORMAL, "randn_like": _NORMAL, "normal_functional": of(_normal, mean=0.0, std=1.0), "normal": normal,
    "exponential": of(lambda key, shape, dtype, rate: jax.random.exponential(key, shape, dtype) / rate, lambd=1.0),
    "cauchy": of(lambda key, shape, dtype, mid, width: jax.random.cauchy(key, shape, dtype) * width + mid,
                 median=0.0, sigma=1.0),
    "log_normal": of(lambda *given: jnp.exp(_normal(*given)), mean=1.0, std=2.0),
    "geometric": of(_geometric, p=0.5),
    "randint": integers, "randint_like": integers, "randperm": permutation, "bernoulli": bernoulli,
    "multinomial": multinomial,
    "poisson": _of_each(lambda key, x: jax.random.poisson(key, x)),
    "_standard_gamma": _of_each(jax.random.gamma), "_sample_dirichlet": _of_each(jax.random.dirichlet),
    **{name: dropout for name in ("dropout", "native_dropout")},
}  # fmt: skip
