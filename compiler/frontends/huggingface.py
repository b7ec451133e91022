"""Hugging Face folders: config.json, safetensors and tokenizer.json of the architectures that we have.

The configuration is read as GGUF metadata by a table, tensors take GGUF's names. Unlike in GGUF files the rows of q and
k lie as the checkpoint has them, so that rope turns halves ("neox") in every family.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ...errors import InfercError
from ...ir.graph import Weight
from ...ir.types import DTYPES, Type, f32
from ..models import ARCHITECTURES
from ..models.architecture import Config, rope_frequencies
from . import encoder, grouped_int, safetensors
from .huggingface_tokenizer import convert
from .language import Source, tensor_shapes
from .metadata import Metadata

DENSE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
ROPES = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True)
class Family:
    """What a `model_type` is here: our architecture, the activation it must have, what is added to norm weights."""

    architecture: str
    activation: str = "silu"
    norm_offset: int = 0


FAMILIES: dict[str, Family] = {
    "llama": Family("llama"),
    "mistral": Family("llama"),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", "gelu_pytorch_tanh", 1),
    "gemma3_text": Family("gemma3", "gelu_pytorch_tanh", 1),
}
KEYS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "sliding_window": "attention.sliding_window",
}


class _Configuration(Metadata):
    remedy = "see config.json"


def load(path: Path) -> Source | encoder.Source:
    """Opens and checks a checkpoint's folder. Nothing but headers is read.

    Raises InfercError for a folder without config.json, an unknown model type or option, and tensors that are missing,
    unknown, or contradict the configuration.
    """
    config = _json(path / "config.json")
    kind = config.get("model_type")
    if kind == encoder.NAME:
        keys = {f"{kind}.{key}": config[name] for name, key in encoder.KEYS.items() if name in config}
        pooling = path / "1_Pooling" / "config.json"
        metadata = _Configuration(path / "config.json", keys)
        return encoder.from_folder(path, config, metadata, _json(pooling) if pooling.exists() else {})
    if kind not in FAMILIES:
        known = ", ".join((*FAMILIES, encoder.NAME))
        raise InfercError(f"{path}: the model type {kind!r:.40} is not supported; these are: {known}")
    family = FAMILIES[kind]
    metadata = _Configuration(path / "config.json", dict(_metadata(path, config, family)))
    tensors = safetensors.read_folder(path)
    rows = next((t.shape[0] for n, t in tensors.items() if n.endswith("embed_tokens.weight")), 0)
    rope = _rope(path, config)
    if len({rope["rope_type"], *ROPES}) > len(ROPES):
        raise metadata.error(f"rope of type {rope['rope_type']!r:.30} is not supported; {', '.join(ROPES)} are")
    configured = ARCHITECTURES[family.architecture].configure(metadata, family.architecture, None, rows)
    configured = _rotating(configured, rope, metadata)
    if scale := config.get("query_pre_attn_scalar"):
        configured = replace(configured, attention_scale=float(scale) ** -0.5)
    found = _weights(path, config, family, configured, tensors)
    shapes = tensor_shapes(metadata, ARCHITECTURES[family.architecture], configured, found.keys())
    for name, shape in shapes.items():
        if found[name].type.shape != shape:
            stored = list(found[name].type.shape)
            raise metadata.error(f"the tensor {name} is {stored}, config.json makes it {list(shape)}")
    weights = {name: found[name] for name in shapes}
    tokenizer = partial(convert, path)
    return Source(path, path.resolve().name, family.architecture, configured, weights, metadata, lambda _: tokenizer())


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InfercError(f"{path}: cannot be opened ({error.strerror}); give the folder of a checkpoint") from error
    except (ValueError, RecursionError) as error:
        raise InfercError(f"{path}: is no JSON ({error}); download the model again") from error
    if not isinstance(value, dict):
        raise InfercError(f"{path}: is no JSON object; download the model again")
    return value


def _metadata(path: Path, config: Mapping[str, Any], family: Family) -> Mapping[str, Any]:
    """config.json by GGUF's keys. Raises InfercError for an activation that the family does not have here."""
    activation = config.get("hidden_activation") or config.get("hidden_act") or family.activation
    if activation != family.activation:
        raise InfercError(f"{path}: the activation {activation!r:.40} is not supported; {family.activation!r} is")
    values = {key: config[name] for name, key in KEYS.items() if config.get(name) is not None}
    if "head_dim" in config and config["head_dim"]:
        values["attention.value_length"] = config["head_dim"]
    kinds = config.get("layer_types")
    if kinds is None and config.get("use_sliding_window"):  # Qwen's, before layers had types
        first = config.get("max_window_layers", 0)
        kinds = ["sliding_attention" if i >= first else "" for i in range(config["num_hidden_layers"])]
    if config.get("use_sliding_window") is False or (kinds and "sliding_attention" not in kinds):
        values.pop("attention.sliding_window", None)
    elif kinds:
        values["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
    elif pattern := config.get("sliding_window_pattern"):
        values["attention.sliding_window_pattern"] = pattern
    rope = _rope(path, config)
    values["rope.freq_base"] = rope["rope_theta"]
    if local := rope.get("local"):
        values["rope.freq_base_swa"] = local["rope_theta"]
    if rope["rope_type"] in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    for name, key in (("original_max_position_embeddings", "original_context_length"), ("beta_fast", "yarn_beta_fast"),
                      ("beta_slow", "yarn_beta_slow")):  # fmt: skip
        if rope["rope_type"] == "yarn" and rope.get(name) is not None:
            values[f"rope.scaling.{key}"] = rope[name]
    return {f"{family.architecture}.{key}": value for key, value in values.items()}


def _rope(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of rope in global layers, "rope_type" and "rope_theta" always given; under "local" those of local
    layers, where they differ."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise InfercError(f"{path}: rope_parameters in config.json are no object; download the model again")
    base = config.get("rope_theta", 10000.0)
    local = config.get("rope_local_base_freq")
    if "full_attention" in given:
        local = given.get("sliding_attention", {}).get("rope_theta", local)
        given = given["full_attention"]
    rope = {"rope_theta": base, **given}
    rope["rope_type"] = given.get("rope_type", given.get("type", "default"))
    return rope | ({"local": {"rope_theta": local}} if local else {})


def _rotating(config: Config, rope: Mapping[str, Any], metadata: Metadata) -> Config:
    """Rope by halves, and Llama 3.1's frequencies: slow ones divided by the factor, fast ones kept, between them a
    blend by how often they turn within the original context (Llama 3.1's published code)."""
    turned = replace(config.rope, style="neox")
    if rope["rope_type"] == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        if any(not isinstance(rope.get(name), int | float) for name in names):
            raise metadata.error(f"rope of type llama3 needs the numbers {', '.join(names)}")
        factor, low, high, original = (float(rope[name]) for name in names)
        frequencies = rope_frequencies(config.key_length, float(rope["rope_theta"]))
        turns = original * frequencies / (2 * math.pi)
        blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = frequencies * ((1 - blend) / factor + blend)
        turned = replace(turned, inv_freq=tuple(frequencies.astype(np.float32).tolist()))
    return replace(config, rope=turned)


def _weights(path: Path, config: Mapping[str, Any], family: Family, sizes: Config,
             tensors: Mapping[str, safetensors.Tensor]) -> dict[str, Weight]:  # fmt: skip
    """The checkpoint's weights by GGUF's names. Raises InfercError for tensors or quantisations that are not known."""
    architecture = gguf.MODEL_ARCH[family.architecture.upper()]
    names = gguf.get_tensor_name_map(architecture, sizes.layers)
    scheme = grouped_int.scheme(path, config.get("quantization_config"))
    weights: dict[str, Weight] = {}
    tied = config.get("tie_word_embeddings", family.norm_offset == 1)
    if not tied and not any(name.startswith("lm_head.") for name in tensors):
        raise InfercError(f"{path}: the tensor lm_head.weight is missing; where the embedding is the head, config.json "
                          'has "tie_word_embeddings": true')  # fmt: skip
    for module, parts in _modules(tensors).items():
        if module == "lm_head" and tied:
            continue
        if parts.keys() == {"inv_freq"}:  # a constant that old checkpoints store
            continue
        ours = names.get_name(f"{module}.weight", (".weight", ".bias"))
        if ours is None:
            raise InfercError(f"{path}: the tensor {module} is no part of {family.architecture!r}; update inferc")
        base = ours.removesuffix(".weight")
        made: Mapping[str, Weight]
        if "qweight" in parts:
            made = grouped_int.weights(path, scheme, base, parts)
        else:
            offset = family.norm_offset if base.endswith("norm") else 0
            made = {f"{base}.{part}": _dense(path, f"{base}.{part}", t, offset) for part, t in parts.items()}
        weights |= made
    return weights


def _modules(tensors: Mapping[str, safetensors.Tensor]) -> dict[str, dict[str, safetensors.Tensor]]:
    """Tensors by their module, then by the name in it: "weight", "bias", "qweight", …"""
    modules: dict[str, dict[str, safetensors.Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    return modules


def _dense(path: Path, name: str, tensor: safetensors.Tensor, offset: int) -> Weight:
    """A float tensor as it is; vectors as f32, with `offset` added."""
    if tensor.kind not in DENSE:
        raise InfercError(f"{path}: the tensor {name} has the type {tensor.kind}, which no weight may have")
    if len(tensor.shape) == 1:
        return Weight(name, Type(tensor.shape, f32), lambda: safetensors.widened(tensor) + np.float32(offset))
    read: Callable[[], np.ndarray] = tensor.array
    return Weight(name, Type(tensor.shape, DTYPES[DENSE[tensor.kind]]), read)
