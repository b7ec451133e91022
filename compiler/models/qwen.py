"""The Qwen family: Qwen2 and 2.5 (biases on q, k, v), Qwen3 (norms on the heads of q and k); some have windows."""

from __future__ import annotations

from functools import partial

from . import blocks, llama
from .architecture import Architecture

configure = partial(llama.configure, rope_style="neox", everywhere=False)

ARCHITECTURES = {
    "qwen2": Architecture(configure, blocks.TENSORS, {**blocks.LAYER_TENSORS, **blocks.QKV_BIASES}, llama.step),
    "qwen3": Architecture(configure, blocks.TENSORS, {**blocks.LAYER_TENSORS, **blocks.QK_NORMS}, llama.step),
}
