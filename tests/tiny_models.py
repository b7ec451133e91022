"""Tiny random GGUF models of every architecture and weight format, for tests: two layers, about 320 tokens.

`write_model(path, "gemma3", "q4_k")` writes one. Weights are seeded, so that equal arguments give equal files.
K-quants and other formats with blocks of 256 make the model 256 wide, all others 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

VOCABULARY = 320
CONTEXT = 128
WINDOW = 8
LAYERS = 2

# What a model is beyond its architecture: its GGUF architecture, and metadata after "<architecture>.".
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3": ("llama", {"rope.freq_base": 500000.0}),  # with rope_freqs.weight
    "llama-linear": ("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "llama-yarn": ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                             "rope.scaling.original_context_length": 32}),
    "mistral": ("llama", {"attention.sliding_window": WINDOW}),
    "qwen2": ("qwen2", {"rope.freq_base": 1000000.0}),
    "qwen3": ("qwen3", {"rope.freq_base": 1000000.0, "attention.key_length": 2, "attention.value_length": 2}),
    "gemma2": ("gemma2", {"attention.sliding_window": WINDOW, "attn_logit_softcapping": 50.0,
                          "final_logit_softcapping": 30.0}),
    "gemma3": ("gemma3", {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2,
                          "rope.freq_base": 1000000.0, "attention.key_length": 2, "attention.value_length": 2}),
}  # fmt: skip

# Byte offsets of each block's f16 scale, and of its f16 minimum with the minimum's ratio to the scale.
SCALES: dict[str, tuple[int, tuple[int, float] | None]] = {
    "q2_k": (80, (82, 1.5)), "q3_k": (108, None), "q4_k": (0, (2, 7.5)), "q5_k": (0, (2, 15.5)), "q6_k": (208, None),
    "iq2_xxs": (0, None), "iq2_xs": (0, None), "iq2_s": (0, None), "iq3_xxs": (0, None),
    "iq3_s": (0, None), "iq1_s": (0, None), "iq4_nl": (0, None), "iq4_xs": (0, None),
}  # fmt: skip
WEIGHT_TYPES = (
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
    "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq1_s", "iq1_m", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0", "mxfp4",
    "nvfp4",
)  # fmt: skip


def random_weight(rng: np.random.Generator, shape: tuple[int, int], type: str, deviation: float) -> np.ndarray:
    """A matrix of about this standard deviation in a GGUF type: floats, or raw bytes uint8 [rows, row bytes].

    What gguf can quantise is quantised from normal values; any other block is random in every bit but its scales.
    """
    kind = GGMLQuantizationType[type.upper()]
    values = (rng.standard_normal(shape) * deviation).astype(np.float32)
    try:
        return quantize(values, kind)
    except NotImplementedError:
        pass
    block, size = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (shape[0], shape[1] // block, size), np.uint8)
    if type == "nvfp4":
        raw[..., :4] = rng.integers(0x0C, 0x1C, raw[..., :4].shape, np.uint8)  # four scales of 8 bits
    elif type == "iq1_m":
        raw[..., 49::2] = raw[..., 49::2] & 0x0F | np.array([0x00, 0x80, 0xB0, 0x10], np.uint8)  # nibbles of one f16
    else:
        scale, minimum = SCALES[type]
        _put(raw, scale, np.ones(raw.shape[:2]))
        if minimum:
            _put(raw, minimum[0], np.full(raw.shape[:2], minimum[1]))
        unit = deviation / dequantize(raw.reshape(shape[0], -1), kind).std()
        spread = unit * rng.uniform(0.5, 1.5, raw.shape[:2])
        _put(raw, scale, spread)
        if minimum:
            _put(raw, minimum[0], spread * minimum[1])
    return raw.reshape(shape[0], -1)


def _put(raw: np.ndarray, offset: int, values: np.ndarray) -> None:
    raw[..., offset : offset + 2] = values.astype(np.float16)[..., None].view(np.uint8)


def write_model(path: Path, model: str = "llama", types: str | Mapping[str, str] = "f32", *, seed: int = 0,
                tied: bool | None = None, tokenizer: str | None = None, layers: int = LAYERS, width: int | None = None,
                metadata: Mapping[str, Any] | None = None, drop: tuple[str, ...] = ()) -> Path:  # fmt: skip
    """Writes a random model of MODELS and returns its path.

    `types` is the type of every matrix, or a type by the first part of a name that fits, "" for all others, as in
    {"attn_v": "q6_k", "": "q4_k"}. `tied` leaves output.weight out (the Gemmas' default). `tokenizer` is "bpe" or "spm"
    (the Llamas' and Gemmas' default) or "none". `metadata` replaces keys, those of the architecture without its name;
    None removes one. `drop` names tensors to leave out.
    """
    architecture, own = MODELS[model]
    by_part = {"": types} if isinstance(types, str) else types
    wide = any(GGML_QUANT_SIZES[GGMLQuantizationType[t.upper()]][0] > 64 for t in by_part.values())
    width = width or (256 if wide else 64)
    heads, kv_heads, feed_forward = 4, 2, 2 * width
    length = width // heads * own.get("attention.key_length", 1)
    keys: dict[str, Any] = {
        "block_count": layers, "context_length": CONTEXT, "embedding_length": width,
        "feed_forward_length": feed_forward, "attention.head_count": heads, "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0,
        **own,
    }  # fmt: skip
    if length != width // heads:
        keys |= {"attention.key_length": length, "attention.value_length": length}
    general = {k: v for k, v in (metadata or {}).items() if k.startswith(("general.", "tokenizer.", "split."))}
    keys |= {k: v for k, v in (metadata or {}).items() if k not in general}

    writer = GGUFWriter(path, general.pop("general.architecture", architecture))
    writer.add_name(f"tiny {model}")
    for key, value in keys.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    gemma = architecture.startswith("gemma")
    for key, value in {**tokenizer_metadata(tokenizer or ("spm" if gemma else "bpe")), **general}.items():
        if value is not None:
            _add(writer, key, value)

    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, width), "output_norm.weight": (width,)}
    tied_head = gemma if tied is None else tied
    if not tied_head:
        shapes["output.weight"] = (VOCABULARY, width)
    for i in range(layers):
        layer = _layer(architecture, width, feed_forward, length)
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    if model == "llama3":
        writer.add_tensor("rope_freqs.weight", np.geomspace(1.0, 8.0, length // 2).astype(np.float32))
    for name, shape in shapes.items():
        if name in drop:
            continue
        if len(shape) == 1:
            centre, deviation = (0.0, 0.2) if name.endswith(".bias") else (1.0, 0.1)
            writer.add_tensor(name, (centre + rng.standard_normal(shape) * deviation).astype(np.float32))
            continue
        type = next((t for part, t in by_part.items() if part and part in name), by_part.get("", "f32"))
        deviation = 1.5 / np.sqrt(shape[1]) if tied_head or name != "token_embd.weight" else 1.0
        weight = random_weight(rng, shape, type, deviation)
        writer.add_tensor(name, weight, raw_dtype=GGMLQuantizationType[type.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _layer(architecture: str, width: int, feed_forward: int, length: int) -> dict[str, tuple[int, ...]]:
    q, kv = 4 * length, 2 * length
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (width,), "attn_q.weight": (q, width), "attn_k.weight": (kv, width),
        "attn_v.weight": (kv, width), "attn_output.weight": (width, q), "ffn_norm.weight": (width,),
        "ffn_gate.weight": (feed_forward, width), "ffn_up.weight": (feed_forward, width),
        "ffn_down.weight": (width, feed_forward),
    }  # fmt: skip
    if architecture == "qwen2":
        shapes |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    if architecture in ("qwen3", "gemma3"):
        shapes |= {"attn_q_norm.weight": (length,), "attn_k_norm.weight": (length,)}
    if architecture.startswith("gemma"):
        shapes |= {"post_attention_norm.weight": (width,), "post_ffw_norm.weight": (width,)}
    return shapes


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def tokenizer_metadata(kind: str) -> dict[str, Any]:
    """The metadata of a tokenizer with VOCABULARY tokens: "bpe" (byte-level), "spm" (SentencePiece), "none"."""
    if kind == "none":
        return {"tokenizer.ggml.model": "none"}
    tokens, types, scores, merges = _bpe() if kind == "bpe" else _spm()
    spare = VOCABULARY - len(tokens)
    tokens += [f"<unused{i}>" for i in range(spare)]
    types += [TokenType.UNUSED] * spare
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2" if kind == "bpe" else "llama",
        "tokenizer.ggml.pre": "smollm" if kind == "bpe" else "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(t) for t in types],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": kind == "spm",
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
    }
    if kind == "bpe":
        return keys | {"tokenizer.ggml.merges": merges}
    return keys | {"tokenizer.ggml.scores": scores + [-1e3] * spare}


WORDS = ("the", "he", "and", "ing", "in", "on", "er", "an", "tion", "is")


def _bpe() -> tuple[list[str], list[int], list[float], list[str]]:
    """Every byte as GPT-2 writes it, and a few merges that build the words of WORDS."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    byte = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    tokens = ["<unk>", "<s>", "</s>", *(byte[b] for b in range(256))]
    merges = []
    for word in [*WORDS, *(byte[32] + word for word in WORDS)]:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    return tokens, [TokenType.UNKNOWN] + [TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(tokens) - 3), [], merges


def _spm() -> tuple[list[str], list[int], list[float], list[str]]:
    """Byte-fallback tokens, letters, and the words of WORDS, longer ones with higher scores."""
    control = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    pieces = ["▁", *"abcdefghinorst", *dict.fromkeys(w[:end] for w in WORDS for end in range(2, len(w) + 1)),
              *(f"▁{w}" for w in ("the", "an", "is", "on"))]  # fmt: skip
    scores = [0.0] * 259 + [-20.0 + 2 * len(piece) - 0.01 * i for i, piece in enumerate(pieces)]
    types = [TokenType.UNKNOWN] + [TokenType.CONTROL] * 2 + [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(pieces)
    return control + fallback + pieces, types, scores, []
