"""What an architecture is made of: its configuration, its metadata keys and tensors as data, its step as a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ...errors import InfercError

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24  # of one dimension: a bound that keeps a lying file from asking for absurd work


class Metadata(Protocol):
    """How a front end gives metadata. Each raises InfercError, with file and key, for what is missing or wrong."""

    def integer(self, key: str, default: int | None = None, low: int = 0, high: int = MAX_SIZE) -> int: ...
    def number(self, key: str, default: float | None = None, low: float = -math.inf) -> float: ...
    def text(self, key: str, default: str | None = None) -> str: ...
    def flags(self, key: str, count: int) -> tuple[bool, ...] | None: ...
    def error(self, problem: str) -> InfercError: ...


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: `inv_freq` (radians per position) for each pair, the pairing style, a factor on cos and sin."""

    inv_freq: tuple[float, ...]
    style: str
    scale: float = 1.0


@dataclass(frozen=True)
class Config:
    """The numbers of one model. Hashable: it is a static argument of the traced layers."""

    architecture: str
    layers: int
    context: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    vocabulary: int
    eps: float
    activation: str
    rope: Rope
    attention_scale: float
    attention_cap: float = 0.0
    final_cap: float = 0.0
    embedding_scale: float = 1.0
    window: int = 0  # positions that a local layer sees, its own included; 0: all layers are global
    local: tuple[bool, ...] = ()  # per layer
    local_rope: Rope | None = None  # where it differs from `rope`

    @property
    def query_width(self) -> int:
        return self.heads * self.key_length

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.key_length

    @property
    def value_width(self) -> int:
        return self.kv_heads * self.value_length

    @property
    def attended_width(self) -> int:
        return self.heads * self.value_length

    def layer_window(self, layer: int) -> int:
        """The window of a layer in positions, 0 where it sees everything."""
        return self.window if self.window and self.local[layer] else 0

    def layer_rope(self, layer: int) -> Rope:
        return self.local_rope if self.local_rope and self.local[layer] else self.rope

    def within(self, context: int) -> Config:
        """The same model for at most `context` positions: a window as wide as that hides nothing and is dropped."""
        return self if self.window < context else replace(self, window=0)


@dataclass(frozen=True)
class Tensor:
    """The shape of a tensor, as names of Config's numbers."""

    shape: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Architecture:
    """A model architecture, named in `general.architecture`.

    `configure(metadata, name, rope_factors, vocabulary)` reads a Config, `tensors` are the model's, `layer_tensors`
    each layer's after "blk.<i>.", `step` is the model as a JAX function (`blocks.step`).
    """

    configure: Callable[..., Config]
    tensors: Mapping[str, Tensor]
    layer_tensors: Mapping[str, Tensor]
    step: Callable[..., Any]


def read_config(
    metadata: Metadata, name: str, rope_factors: np.ndarray | None, vocabulary: int, *, rope_style: str,
    activation: str = "silu",
) -> Config:  # fmt: skip
    """The part of a Config that every architecture reads in the same way: sizes, eps, rope and its scaling."""
    size = lambda key, default=None: metadata.integer(f"{name}.{key}", default, 1)  # noqa: E731
    width, heads = size("embedding_length"), size("attention.head_count")
    key_length = size("attention.key_length", width // heads or None)
    kv_heads = size("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise metadata.error(f"{name}.attention.head_count is {heads}, no multiple of its {kv_heads} key-value heads")
    if metadata.integer(f"{name}.expert_count", 0):
        raise metadata.error("mixture-of-experts models are not supported; choose a dense model")
    config = Config(
        architecture=name,
        layers=metadata.integer(f"{name}.block_count", None, 1, MAX_LAYERS),
        context=metadata.integer(f"{name}.context_length", None, 1, 1 << 31),
        width=width,
        feed_forward=size("feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        key_length=key_length,
        value_length=size("attention.value_length", width // heads or None),
        vocabulary=vocabulary,
        eps=metadata.number(f"{name}.attention.layer_norm_rms_epsilon", None, 0.0),
        activation=activation,
        rope=Rope((), rope_style),
        attention_scale=1.0 / math.sqrt(key_length),
    )
    return replace(config, rope=_read_rope(metadata, config, rope_factors))


def _read_rope(metadata: Metadata, config: Config, rope_factors: np.ndarray | None) -> Rope:
    name = config.architecture
    count = metadata.integer(f"{name}.rope.dimension_count", config.key_length, 2, config.key_length)
    if count % 2:
        raise metadata.error(f"{name}.rope.dimension_count is {count}, it must be even")
    base = metadata.number(f"{name}.rope.freq_base", 10000.0, 1.0)
    kind = metadata.text(f"{name}.rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise metadata.error(f"{name}.rope.scaling.type {kind!r:.40} is not supported; none, linear and yarn are")
    factor = metadata.number(f"{name}.rope.scaling.factor", metadata.number(f"{name}.rope.scale_linear", 1.0, 0.0), 0.0)
    factor = 1.0 if kind == "none" or factor == 0.0 else factor
    frequencies = rope_frequencies(count, base)
    scale = metadata.number(f"{name}.rope.scaling.attn_factor", 1.0)
    if rope_factors is not None:
        if rope_factors.shape != frequencies.shape or not np.all(np.isfinite(rope_factors) & (rope_factors > 0)):
            raise metadata.error(f"rope_freqs.weight must hold {count // 2} positive factors; convert the model again")
        frequencies = frequencies / rope_factors.astype(np.float64)
    if kind == "yarn":
        original = metadata.integer(f"{name}.rope.scaling.original_context_length", config.context, 1, 1 << 31)
        fast = metadata.number(f"{name}.rope.scaling.yarn_beta_fast", 32.0, 1e-3)
        slow = metadata.number(f"{name}.rope.scaling.yarn_beta_slow", 1.0, 1e-3)
        frequencies = yarn(frequencies, factor, yarn_ramp(count, base, original, fast, slow))
        scale *= 1.0 + 0.1 * math.log(max(factor, 1.0))
    else:
        frequencies = frequencies / factor
    if not np.all(frequencies < 1e6):
        raise metadata.error("rope's scaling makes frequencies that are not finite; convert the model again")
    return make_rope(frequencies, config.rope.style, scale)


def make_rope(frequencies: np.ndarray, style: str, scale: float = 1.0) -> Rope:
    """A Rope of frequencies in f64 [D/2], rounded once to f32."""
    return Rope(tuple(frequencies.astype(np.float32).tolist()), style, scale)


def rope_frequencies(count: int, base: float) -> np.ndarray:
    """base^(-2i / count) for each of the count / 2 pairs, f64 (Su et al., RoFormer, 2021)."""
    return base ** (-np.arange(0, count, 2, dtype=np.float64) / count)


def yarn_ramp(count: int, base: float, original_context: int, beta_fast: float, beta_slow: float) -> np.ndarray:
    """For each pair how much of its extrapolated frequency stays, 1 to 0 (Peng et al., YaRN, 2023, section 3.2)."""

    def pair_of(rotations: float) -> float:
        return count * math.log(original_context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    if base == 1.0:
        return np.ones(count // 2)
    low, high = max(0.0, math.floor(pair_of(beta_fast))), min(count - 1.0, math.ceil(pair_of(beta_slow)))
    return 1.0 - np.clip((np.arange(count // 2) - low) / max(0.001, high - low), 0.0, 1.0)


def yarn(frequencies: np.ndarray, factor: float, ramp: np.ndarray) -> np.ndarray:
    """Frequencies between interpolated (divided by `factor`) and kept, by the ramp."""
    return frequencies / factor * (1.0 - ramp) + frequencies * ramp
