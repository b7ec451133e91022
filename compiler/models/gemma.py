"""The Gemma family: Gemma 2 (soft caps, alternating windows), Gemma 3 (norms on q and k, five local layers per global).

GGUF files hold every norm weight with Gemma's 1 added. A layer norms both what enters and what leaves attention and
feed-forward. The embedding is multiplied by sqrt(width). Local layers have their own rope base in Gemma 3.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from . import blocks
from .architecture import Architecture, Config, Metadata, Tensor, make_rope, read_config, rope_frequencies

# The two largest models scale queries by width / heads, all others by the head's length: layers -> which.
LARGEST = {"gemma2": 46, "gemma3": 62}
PERIOD = {"gemma2": 2, "gemma3": 6}  # every so many layers, the last is global
WINDOW = {"gemma2": 4096, "gemma3": 0}
CAPS = {"gemma2": (50.0, 30.0), "gemma3": (0.0, 0.0)}  # attention, final


def configure(metadata: Metadata, name: str, rope_factors: np.ndarray | None, vocabulary: int) -> Config:
    config = read_config(metadata, name, rope_factors, vocabulary, rope_style="neox", activation="gelu_tanh")
    period_key = f"{name}.attention.sliding_window_pattern"
    local = metadata.flags(period_key, config.layers)
    if local is None:
        period = metadata.integer(period_key, PERIOD[name])
        local = tuple(period == 0 or i % period < period - 1 for i in range(config.layers))
    attention_cap, final_cap = CAPS[name]
    if name == "gemma2":
        attention_cap = metadata.number(f"{name}.attn_logit_softcapping", attention_cap, 0.0)
        local_rope = None
    else:
        base = metadata.number(f"{name}.rope.freq_base_swa", 10000.0, 1.0)
        local_rope = make_rope(rope_frequencies(2 * len(config.rope.inv_freq), base), "neox")
    queries = config.width // config.heads if config.layers == LARGEST[name] else config.key_length
    window = metadata.integer(f"{name}.attention.sliding_window", WINDOW[name], 0, 1 << 31)
    return replace(
        config,
        attention_scale=1.0 / math.sqrt(queries),
        attention_cap=attention_cap,
        final_cap=metadata.number(f"{name}.final_logit_softcapping", final_cap, 0.0),
        embedding_scale=math.sqrt(config.width),
        window=window,
        local=local,
        local_rope=local_rope if window else None,
    )


@partial(jax.jit, static_argnames=("config", "window"))
def layer(config, window, weights, x, cos, sin, sequence, position, k, v):
    """One layer, normed before and after attention and feed-forward: x [T, width] and its caches in, the same out."""
    h, k, v = blocks.attention(config, window, weights, x, cos, sin, sequence, position, k, v)
    x = x + blocks.norm(config, weights, "post_attention_norm", h)
    h = blocks.feed_forward(config, weights, x)
    return x + blocks.norm(config, weights, "post_ffw_norm", h), k, v


step = partial(blocks.step, layer)

LAYER_TENSORS = {
    **blocks.LAYER_TENSORS,
    "post_attention_norm.weight": Tensor(("width",)),
    "post_ffw_norm.weight": Tensor(("width",)),
}

ARCHITECTURES = {
    "gemma2": Architecture(configure, blocks.TENSORS, LAYER_TENSORS, step),
    "gemma3": Architecture(configure, blocks.TENSORS, {**LAYER_TENSORS, **blocks.QK_NORMS}, step),
}
