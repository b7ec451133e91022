"""Models built by `transformers`, written to GGUF as llama.cpp's converter does, give the same logits by our path.

Names come from gguf's tensor name map. What the converter changes besides names: it permutes the rows of q and k of the
Llama family, adds 1 to Gemma's norms, and writes Llama 3's rope scaling as a tensor of factors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf as gguf_py
import numpy as np
import pytest

from inferc.compiler.frontends import gguf, language
from inferc.ir.interpret import interpret

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
GLOBAL = {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}

# GGUF architecture, class prefix in transformers, configuration beside SIZES.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {}),
    "llama-tied": ("llama", "Llama", {"tie_word_embeddings": True}),
    "llama3": ("llama", "Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", "Llama", {"rope_parameters": {**LOCAL, "rope_type": "linear", "factor": 4.0}}),
    "llama-yarn": ("llama", "Llama", {"rope_parameters": YARN}),
    "llama-biases": ("llama", "Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("llama", "Mistral", {"sliding_window": 8}),
    "mistral-head-dim": ("llama", "Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("qwen2", "Qwen2", {}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 32}),
    "gemma2": ("gemma2", "Gemma2", {"sliding_window": 8, "head_dim": 32, "query_pre_attn_scalar": 32}),
    "gemma3": ("gemma3", "Gemma3", {"num_hidden_layers": 7, "sliding_window": 8, "head_dim": 32,
                                    "query_pre_attn_scalar": 32,
                                    "rope_parameters": {"sliding_attention": LOCAL, "full_attention": GLOBAL}}),
}  # fmt: skip
IDS = np.random.default_rng(3).integers(1, SIZES["vocab_size"], 100)


def build(prefix: str, own: dict[str, Any]) -> Any:
    """A model of transformers with random weights large enough that every part matters."""
    torch.manual_seed(0)
    kind = {"Gemma3": "Gemma3Text"}.get(prefix, prefix)
    config = getattr(transformers, f"{kind}Config")(**SIZES | own, attn_implementation="eager")
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval().to(torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                centre = 1.0 if name.endswith("norm.weight") and not prefix.startswith("Gemma") else 0.0
                p.normal_(centre, 0.2)
            else:
                p.normal_(0.0, 1.5 / math.sqrt(p.shape[1]))
    return model


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head reordered so that rope's pairs are neighbours, as the converter does for Llama."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(config: Any, length: int) -> np.ndarray:
    """The divisors of Llama 3.1's rope frequencies, as the converter writes them."""
    p = config.rope_parameters
    frequencies = p["rope_theta"] ** (-np.arange(0, length, 2) / length)
    waves = p["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # turns over the original context
    smooth = (waves - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"])
    between = 1 / ((1 - smooth) / p["factor"] + smooth)
    factors = np.where(waves < p["low_freq_factor"], p["factor"], np.where(waves > p["high_freq_factor"], 1.0, between))
    return factors.astype(np.float32)


def write(model: Any, architecture: str, path: Path) -> Path:
    config = model.config
    length = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf_py.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(length)
    writer.add_value_length(length)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf_py.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, length))
    if architecture != "qwen2" and architecture != "qwen3" and getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    names = gguf_py.get_tensor_name_map(getattr(gguf_py.MODEL_ARCH, architecture.upper()), config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.numpy()
        if architecture == "llama" and ".q_proj." in name:
            data = permute(data, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            data = permute(data, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            data = data + 1
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name, tmp_path):
    architecture, prefix, own = MODELS[name]
    model = build(prefix, own)
    with torch.no_grad():
        expected = model(torch.tensor(IDS[None]), use_cache=False).logits[0].numpy()
    source = gguf.load(write(model, architecture, tmp_path / "model.gguf"))
    count = len(IDS)
    module = language.build_module(source, 128, count)
    state = {
        n.attr("name"): np.zeros((1, *n.types[0].shape[1:]), np.float32)
        for n in module.entries["step"].inputs_of("state")
    }
    positions = np.arange(count, dtype=np.int32)
    inputs = {"tokens": IDS.astype(np.int32), "sequence": 0 * positions, "position": positions, "rows": positions}
    ours = interpret(module, {**inputs, **state})["logits"]
    assert np.abs(ours - expected).max() <= 1e-4 * expected.std()
    assert np.abs(language.reference_logits(source, IDS.tolist()) - expected).max() <= 1e-4 * expected.std()
