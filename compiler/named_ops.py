"""The ops that models are written in: each one JAX function that a trace keeps whole.

`named` wraps a plain `jax.numpy` function in `jax.lax.composite`, so that a jaxpr holds one equation "inferc.<name>"
with the attributes, and `compiler.tracing` reads it as the op `<name>` of `ir.ops`. The function below it is the op's
meaning in plain JAX: it is what runs when a model is run by JAX, and what tests compare the op's reference with.

Sizes in the docstrings: T tokens, R wanted rows, K inner, N rows of a weight, V vocabulary, H heads, D head dimension,
S cache slots, C cache rows. Every array is f32 unless said otherwise; ids, sequences, positions and rows are i32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

PREFIX = "inferc."
Array = jax.Array
_dot = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def named(body: Callable[..., Any]) -> Callable[..., Any]:
    """Makes an op of a function: positional arguments are arrays (None is left out), keywords are attributes.

    `jax.lax.composite` has no batching rule, so under `jax.vmap` the op becomes its body.
    """

    @wraps(body)
    def op(*operands: Array | None, **attrs: Any) -> Any:
        whole = custom_vmap(partial(jax.lax.composite(body, name=PREFIX + body.__name__), **attrs))

        @whole.def_vmap
        def batched(_size: int, in_batched: list[bool], *arrays: Array) -> tuple[Any, Any]:
            results = jax.vmap(partial(body, **attrs), in_axes=[0 if b else None for b in in_batched])(*arrays)
            return results, jax.tree.map(lambda _: True, results)

        return whole(*(x for x in operands if x is not None))

    return op


@named
def embedding(table: Array, ids: Array) -> Array:
    """Rows of `table` [V, K] by `ids` [T] -> [T, K]."""
    return jnp.take(table, ids, axis=0, mode="clip")


@named
def take_rows(x: Array, rows: Array) -> Array:
    """Rows of `x` [T, K] by `rows` [R] -> [R, K]."""
    return jnp.take(x, rows, axis=0, mode="clip")


@named
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """`x` [T, K] times the transpose of `weight` [N, K], plus `bias` [N] -> [T, N]."""
    y = _dot("tk,nk->tn", x, weight)
    return y if bias is None else y + bias


@named
def expert_linear(x: Array, weight: Array, ids: Array) -> Array:
    """Per token the linears of its experts: `x` [T, K], `weight` [E, N, K], `ids` [T, U] -> [T, U, N]."""
    return _dot("tk,tunk->tun", x, jnp.take(weight, ids, axis=0, mode="clip"))


@named
def rms_norm(x: Array, weight: Array, *, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps) * weight over the last axis: `x` [..., K], `weight` [K] -> [..., K]."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


@named
def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis: `x` [..., K] -> [..., K]."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps) * weight + bias


@named
def silu(x: Array) -> Array:
    """x / (1 + exp(-x))."""
    return x * jax.lax.logistic(x)


@named
def gelu_tanh(x: Array) -> Array:
    """GELU by the tanh approximation (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1.0 + jnp.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


@named
def gelu(x: Array) -> Array:
    """x times the normal distribution function of x."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.7071067811865476))


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh, "gelu": gelu}


@named
def gated(gate: Array, up: Array, *, activation: str) -> Array:
    """activation(gate) * up, `activation` one of ACTIVATIONS."""
    return ACTIVATIONS[activation](gate) * up


@named
def softcap(x: Array, *, cap: float) -> Array:
    """cap * tanh(x / cap)."""
    return cap * jnp.tanh(x / cap)


@named
def softmax(x: Array, *, axis: int) -> Array:
    """exp(x - max) / sum(exp(x - max)) over `axis`."""
    p = jnp.exp(x - jnp.max(x, axis=axis, keepdims=True))
    return p / jnp.sum(p, axis=axis, keepdims=True)


@named
def rope_angles(position: Array, inv_freq: Array, *, scale: float = 1.0) -> tuple[Array, Array]:
    """Cosines and sines of position * inv_freq, times `scale`: `position` [T], `inv_freq` [D/2] -> two of [T, D/2]."""
    angle = position.astype(jnp.float32)[:, None] * inv_freq[None, :]
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


@named
def rope(x: Array, cos: Array, sin: Array, *, style: str) -> Array:
    """Rotates pairs of the first 2 * cos.shape[1] values of each head of `x` [T, H, D]; the rest passes.

    Pairs are (i, i + half) in style "neox" and (2i, 2i + 1) in style "interleaved".
    """
    half = cos.shape[1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None, :], sin[:, None, :]
    if style == "neox":
        a, b = turned[..., :half], turned[..., half:]
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    return jnp.concatenate([turned, rest], axis=-1)


@named
def attention(
    q: Array, k: Array, v: Array, mask: Array | None = None, *, scale: float, causal: bool = False, softcap: float = 0.0
) -> Array:
    """Dense attention: `q` [B, Hq, Tq, D], `k` [B, Hkv, Tk, D], `v` [B, Hkv, Tk, Dv] -> [B, Hq, Tq, Dv].

    Query head h reads key head h // (Hq / Hkv). `mask` [B or 1, Hq or 1, Tq or 1, Tk or 1] is bool, true where a key is
    seen, or f32, added to the scaled and capped scores. `causal` hides key j from query i where j > i + Tk - Tq.
    """
    batch, heads, queries, depth = q.shape
    groups, keys = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, groups, heads // groups, queries, depth)
    scores = _dot("bgrqd,bgkd->bgrqk", grouped, k).reshape(batch, heads, queries, keys) * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == bool else scores + mask
    if causal:
        reach = jax.lax.broadcasted_iota(jnp.int32, (queries, 1), 0) + keys - queries
        scores = jnp.where(jax.lax.broadcasted_iota(jnp.int32, (1, keys), 1) <= reach, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).reshape(batch, groups, heads // groups, queries, keys)
    return _dot("bgrqk,bgkd->bgrqd", weights, v).reshape(batch, heads, queries, v.shape[-1])


@named
def cache_write(cache: Array, x: Array, sequence: Array, position: Array, *, window: int = 0) -> Array:
    """`cache` [S, H, C, D] with the heads `x` [T, H, D] of each token at its slot and position; returns the new cache.

    A token of slot S (padding) is dropped. With a window the rows are a ring: position p lies in row p mod C.
    """
    row = position % cache.shape[2] if window else position
    return cache.at[sequence, :, row].set(x, mode="drop")


@named
def cached_attention(
    q: Array, k_cache: Array, v_cache: Array, sequence: Array, position: Array, *,
    scale: float, softcap: float = 0.0, window: int = 0,
) -> Array:  # fmt: skip
    """Each token of `q` [T, Hq, D] attends to the cache of its own slot up to its own position -> [T, Hq, Dv].

    A token of slot S (padding) gives zeros.
    `k_cache` [S, Hkv, C, D], `v_cache` [S, Hkv, C, Dv]. With a window only positions > position - window are seen, and
    the caches are rings of C >= window + (tokens in one call) - 1 rows, or of as many rows as there are positions.
    """
    tokens, heads, depth = q.shape
    groups, rows = k_cache.shape[1], k_cache.shape[2]
    row = jnp.arange(rows, dtype=jnp.int32)[None, :]
    held = position[:, None] - (position[:, None] - row) % rows if window else row  # the position a row holds
    seen = (held >= 0) & (held <= position[:, None])
    if window:
        seen &= held > position[:, None] - window
    keys = jnp.take(k_cache, sequence, axis=0, mode="clip")
    values = jnp.take(v_cache, sequence, axis=0, mode="clip")
    scores = _dot("tgrd,tgcd->tgrc", q.reshape(tokens, groups, heads // groups, depth), keys) * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    weights = jax.nn.softmax(jnp.where(seen[:, None, None, :], scores, -jnp.inf), axis=-1)
    mixed = _dot("tgrc,tgcd->tgrd", weights, values).reshape(tokens, heads, values.shape[-1])
    return jnp.where(sequence[:, None, None] < k_cache.shape[0], mixed, 0.0)
