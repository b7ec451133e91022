"""Blocks that the architectures share, in plain JAX over named ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..named_ops import cache_write, cached_attention, embedding, gated, linear, rms_norm, rope, rope_angles, take_rows
from ..named_ops import softcap as softcap_op
from .architecture import Config, Tensor

Array = jax.Array
Weights = Mapping[str, Array]

# Names as in GGUF, shapes as names of Config's numbers.
TENSORS = {
    "token_embd.weight": Tensor(("vocabulary", "width")),
    "output_norm.weight": Tensor(("width",)),
    "output.weight": Tensor(("vocabulary", "width"), optional=True),  # missing: the embedding is the head too
}
LAYER_TENSORS = {
    "attn_norm.weight": Tensor(("width",)),
    "attn_q.weight": Tensor(("query_width", "width")),
    "attn_k.weight": Tensor(("key_width", "width")),
    "attn_v.weight": Tensor(("value_width", "width")),
    "attn_output.weight": Tensor(("width", "attended_width")),
    "ffn_norm.weight": Tensor(("width",)),
    "ffn_gate.weight": Tensor(("feed_forward", "width")),
    "ffn_up.weight": Tensor(("feed_forward", "width")),
    "ffn_down.weight": Tensor(("width", "feed_forward")),
}
QKV_BIASES = {
    "attn_q.bias": Tensor(("query_width",)),
    "attn_k.bias": Tensor(("key_width",)),
    "attn_v.bias": Tensor(("value_width",)),
}
QK_NORMS = {
    "attn_q_norm.weight": Tensor(("key_length",)),
    "attn_k_norm.weight": Tensor(("key_length",)),
}
OUTPUT_BIASES = {
    "attn_output.bias": Tensor(("width",)),
    "ffn_gate.bias": Tensor(("feed_forward",)),
    "ffn_up.bias": Tensor(("feed_forward",)),
    "ffn_down.bias": Tensor(("width",)),
}
# The order in which a linear's weights hold its inputs, where that is not the model's own.
ORDERS = {
    name.replace(".weight", ".order"): Tensor((tensor.shape[1],), optional=True)
    for name, tensor in LAYER_TENSORS.items()
    if len(tensor.shape) == 2
}


def _short(name: str) -> str:
    """A tensor's name inside the scope "attention" or "feed_forward"."""
    return name.removeprefix("attn_").removeprefix("ffn_")


def norm(config: Config, weights: Weights, name: str, x: Array) -> Array:
    """RMS norm by the weight `name`, over the last axis."""
    with jax.named_scope(_short(name)):
        return rms_norm(x, weights[f"{name}.weight"], eps=config.eps)


def project(weights: Weights, name: str, x: Array) -> Array:
    """The linear `name` with its bias if it has one: [T, K] -> [T, N]. Its input is gathered by its order, if any."""
    with jax.named_scope(_short(name)):
        if f"{name}.order" in weights:
            x = x.at[:, weights[f"{name}.order"]].get(mode="clip")
        return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def attention(
    config: Config, window: int, weights: Weights, x: Array, cos: Array, sin: Array, sequence: Array, position: Array,
    k_cache: Array, v_cache: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Norm and grouped-query attention of tokens `x` [T, width] over their caches: the output and the new caches.

    With norm weights for q and k, each head is normalised before it is rotated.
    """
    with jax.named_scope("attention"):
        x = norm(config, weights, "attn_norm", x)
        q = project(weights, "attn_q", x).reshape(-1, config.heads, config.key_length)
        k = project(weights, "attn_k", x).reshape(-1, config.kv_heads, config.key_length)
        v = project(weights, "attn_v", x).reshape(-1, config.kv_heads, config.value_length)
        if "attn_q_norm.weight" in weights:
            q, k = norm(config, weights, "attn_q_norm", q), norm(config, weights, "attn_k_norm", k)
        q = rope(q, cos, sin, style=config.rope.style)
        k_cache = cache_write(k_cache, rope(k, cos, sin, style=config.rope.style), sequence, position, window=window)
        v_cache = cache_write(v_cache, v, sequence, position, window=window)
        mixed = cached_attention(
            q, k_cache, v_cache, sequence, position,
            scale=config.attention_scale, softcap=config.attention_cap, window=window,
        )  # fmt: skip
        return project(weights, "attn_output", mixed.reshape(-1, config.attended_width)), k_cache, v_cache


def feed_forward(config: Config, weights: Weights, x: Array) -> Array:
    """Norm, then down(activation(gate(x)) * up(x)): [T, width] -> [T, width]."""
    with jax.named_scope("feed_forward"):
        x = norm(config, weights, "ffn_norm", x)
        gate, up = project(weights, "ffn_gate", x), project(weights, "ffn_up", x)
        return project(weights, "ffn_down", gated(gate, up, activation=config.activation))


def layer_weights(weights: Weights, layer: int) -> dict[str, Array]:
    """The weights of one layer, by their names after "blk.<layer>."."""
    prefix = f"blk.{layer}."
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def step(
    layer: Callable[..., tuple[Array, Array, Array]], config: Config, weights: Weights, tokens: Array, sequence: Array,
    position: Array, rows: Array, state: Mapping[str, Array], output: str = "logits",
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """One step of a decoder: T tokens, each at a position of a sequence (a cache slot), the output for R of them.

    tokens, sequence, position i32 [T], rows i32 [R] (indices into the tokens), state f32 caches [S, heads, C, length]
    named "layers.<i>.k" and "layers.<i>.v"; returns logits f32 [R, vocabulary] and the new state, or if `output` is
    "embeddings" what the head would read, f32 [R, width].
    `layer(config, window, weights, x, cos, sin, sequence, position, k, v)` is a jitted function, so that equal layers
    are traced once.
    """
    x = embedding(weights["token_embd.weight"], tokens)
    if config.embedding_scale != 1.0:
        x = x * np.float32(config.embedding_scale)
    ropes = dict.fromkeys(config.layer_rope(i) for i in range(config.layers))
    angles = {r: rope_angles(position, jnp.array(r.inv_freq, jnp.float32), scale=r.scale) for r in ropes}
    new_state: dict[str, Any] = {}
    for i in range(config.layers):
        k, v = f"layers.{i}.k", f"layers.{i}.v"
        with jax.named_scope(f"layers.{i}"):
            x, new_state[k], new_state[v] = layer(
                config, config.layer_window(i), layer_weights(weights, i), x, *angles[config.layer_rope(i)],
                sequence, position, state[k], state[v],
            )  # fmt: skip
    x = norm(config, weights, "output_norm", take_rows(x, rows))
    if output == "embeddings":
        return x, new_state
    head = "output" if "output.weight" in weights else "token_embd"
    with jax.named_scope("output"):
        logits = linear(x, weights[f"{head}.weight"])
        return softcap_op(logits, cap=config.final_cap) if config.final_cap else logits, new_state


def state_rows(config: Config, layer: int, context: int, chunk: int) -> int:
    """Cache rows of a layer: `context`, or for a window a ring in which a chunk overwrites no key it still needs."""
    window = config.layer_window(layer)
    return min(context, window + chunk - 1) if window else context
