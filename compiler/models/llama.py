"""The Llama family: Llama 1 to 3, SmolLM2, Mistral (with a sliding window).

GGUF files of this family hold the rows of q and k permuted, so that rope turns neighbouring values ("interleaved").
Llama 3's rope scaling is the tensor rope_freqs.weight, one divisor per frequency.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import numpy as np

from . import blocks
from .architecture import Architecture, Config, Metadata, Tensor, read_config


def configure(metadata: Metadata, name: str, rope_factors: np.ndarray | None, vocabulary: int,
              rope_style: str = "interleaved", everywhere: bool = True) -> Config:  # fmt: skip
    """`everywhere`: whether a window is that of all layers where the file does not say of which."""
    config = read_config(metadata, name, rope_factors, vocabulary, rope_style=rope_style)
    window = metadata.integer(f"{name}.attention.sliding_window", 0, 0, 1 << 31)
    local = metadata.flags(f"{name}.attention.sliding_window_pattern", config.layers) or (everywhere,) * config.layers
    return replace(config, window=window if any(local) else 0, local=local)


@partial(jax.jit, static_argnames=("config", "window"))
def layer(config, window, weights, x, cos, sin, sequence, position, k, v):
    """One pre-norm layer: x [T, width] and its caches in, the same out."""
    h, k, v = blocks.attention(config, window, weights, x, cos, sin, sequence, position, k, v)
    x = x + h
    return x + blocks.feed_forward(config, weights, x), k, v


step = partial(blocks.step, layer)

OPTIONAL_BIASES = {n: Tensor(t.shape, optional=True) for n, t in {**blocks.QKV_BIASES, **blocks.OUTPUT_BIASES}.items()}

ARCHITECTURES = {
    "llama": Architecture(configure, blocks.TENSORS, {**blocks.LAYER_TENSORS, **OPTIONAL_BIASES}, step),
}
