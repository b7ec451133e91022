"""The Qwen family: Qwen2 and 2.5 (biases on q, k, v), Qwen3 (norms on the heads of q and k)."""

from __future__ import annotations

from functools import partial

from . import blocks, llama
from .architecture import Architecture, read_config

configure = partial(read_config, rope_style="neox")

ARCHITECTURES = {
    "qwen2": Architecture(configure, blocks.TENSORS, {**blocks.LAYER_TENSORS, **blocks.QKV_BIASES}, llama.step),
    "qwen3": Architecture(configure, blocks.TENSORS, {**blocks.LAYER_TENSORS, **blocks.QK_NORMS}, llama.step),
}
