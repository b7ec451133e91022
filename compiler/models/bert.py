"""BERT: an encoder, whose tokens see the whole text; its output is one vector of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ..named_ops import attention, gelu, layer_norm
from .architecture import Metadata, Tensor

Array = jax.Array

POOLINGS = ("mean", "cls")  # the mean of all tokens' states, or that of the first token

TENSORS = {
    "token_embd.weight": Tensor(("vocabulary", "width")),
    "position_embd.weight": Tensor(("context", "width")),
    "token_types.weight": Tensor(("token_types", "width")),
    "token_embd_norm.weight": Tensor(("width",)),
    "token_embd_norm.bias": Tensor(("width",)),
}
_LINEARS = {
    "attn_q": ("width", "width"), "attn_k": ("width", "width"), "attn_v": ("width", "width"),
    "attn_output": ("width", "width"), "ffn_up": ("feed_forward", "width"), "ffn_down": ("width", "feed_forward"),
}  # fmt: skip
LAYER_TENSORS = {
    **{f"{name}.weight": Tensor(shape) for name, shape in _LINEARS.items()},
    **{f"{name}.bias": Tensor(shape[:1]) for name, shape in _LINEARS.items()},
    **{f"{name}.{part}": Tensor(("width",)) for name in ("attn_output_norm", "layer_output_norm")
       for part in ("weight", "bias")},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The numbers of one model; `pooling` is one of `POOLINGS`."""

    layers: int
    context: int
    width: int
    feed_forward: int
    heads: int
    vocabulary: int
    token_types: int
    eps: float
    pooling: str
    architecture: str = "bert"


def configure(metadata: Metadata, vocabulary: int, token_types: int, pooling: str) -> Config:
    """Reads a Config. Raises InfercError for what is missing, and for heads that do not divide the width."""
    config = Config(
        layers=metadata.integer("bert.block_count", low=1, high=4096),
        context=metadata.integer("bert.context_length", low=1),
        width=metadata.integer("bert.embedding_length", low=1),
        feed_forward=metadata.integer("bert.feed_forward_length", low=1),
        heads=metadata.integer("bert.attention.head_count", low=1),
        vocabulary=vocabulary,
        token_types=token_types,
        eps=metadata.number("bert.attention.layer_norm_epsilon", low=0.0),
        pooling=pooling,
    )
    if config.width % config.heads:
        raise metadata.error(f"{config.heads} heads do not divide a width of {config.width}")
    return config


def embed(config: Config, weights: Mapping[str, Array], ids: Array) -> Array:
    """The embedding f32 [width] of one text, ids i32 [length] with those of its beginning and end; not normalised."""

    def norm(name: str, x: Array) -> Array:
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=config.eps)

    def project(name: str, x: Array) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def heads(x: Array) -> Array:
        return x.reshape(1, -1, config.heads, config.width // config.heads).transpose(0, 2, 1, 3)

    length = ids.shape[0]
    x = weights["token_embd.weight"].at[ids].get(mode="clip") + weights["position_embd.weight"][:length]
    x = norm("token_embd_norm", x + weights["token_types.weight"][0])
    for i in range(config.layers):
        layer = f"blk.{i}."
        with jax.named_scope(f"layers.{i}"):
            q, k, v = (heads(project(f"{layer}attn_{which}", x)) for which in "qkv")
            mixed = attention(q, k, v, scale=(config.width // config.heads) ** -0.5)
            mixed = mixed.transpose(0, 2, 1, 3).reshape(length, config.width)
            x = norm(f"{layer}attn_output_norm", x + project(f"{layer}attn_output", mixed))
            inner = gelu(project(f"{layer}ffn_up", x))
            x = norm(f"{layer}layer_output_norm", x + project(f"{layer}ffn_down", inner))
    return x[0] if config.pooling == "cls" else jnp.mean(x, axis=0)
