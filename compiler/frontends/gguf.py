"""GGUF files: metadata and tensors through a memory map, checked against the architecture, traced into a module.

Names and shapes are GGUF's, dimensions in row-major order ([rows, columns]). No tensor is read before it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize as gguf_dequantize

from ...errors import InfercError
from ...ir.graph import Module, Weight
from ...ir.types import DTYPES, Type, bf16, f32, i32, symbol
from ..models import ARCHITECTURES
from ..models.architecture import MAX_SIZE, Architecture, Config, Tensor
from ..models.blocks import state_rows
from ..source import Kind, weight_facts
from ..tracing import Input, trace
from . import gguf_tokenizer
from .gguf_check import ARRAY, Entry, check, read_value, shorten

MAX_SLOTS = 1 << 16
FLOATS = ("f32", "f16", "bf16")
ROPE_FACTORS = "rope_freqs.weight"


class Metadata(Mapping[str, Any]):
    """The key-value pairs of a GGUF file as Python values, decoded when asked for, with typed and checked access.

    The typed methods raise InfercError, naming file and key, for a missing key without default, another type, or a
    value out of range.
    """

    def __init__(self, path: Path, data: np.ndarray, entries: Mapping[str, Entry]) -> None:
        self.path, self._data, self._entries = path, data, entries

    def __getitem__(self, key: str) -> Any:
        entry = self._entries[key]
        return read_value(self._data, entry.kind, entry.start, entry.end)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def error(self, problem: str) -> InfercError:
        return InfercError(f"{self.path}: {shorten(problem)}")

    def _scalar(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # a number per layer, where the layers agree
        if value is None:
            raise self.error(f"the metadata key {key} is missing; convert the model again with a current converter")
        if not isinstance(value, kinds) or isinstance(value, bool):
            shown = shorten(repr(value), 40)
            raise self.error(f"the metadata key {key} must be {what}, not {shown}; convert the model again")
        return value

    def integer(self, key: str, default: int | None = None, low: int = 0, high: int = MAX_SIZE) -> int:
        value = self._scalar(key, default, (int,), "one whole number")
        if not low <= value <= high:
            raise self.error(f"the metadata key {key} is {value}, it must be {low} to {high}; convert the model again")
        return value

    def number(self, key: str, default: float | None = None, low: float = -math.inf) -> float:
        value = float(self._scalar(key, default, (int, float), "one number"))
        if not (math.isfinite(value) and low <= value <= 1e30):
            raise self.error(
                f"the metadata key {key} is {value}, it must be finite and at least {low}; convert the model again"
            )
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return self._scalar(key, default, (str,), "text")

    def flags(self, key: str, count: int) -> tuple[bool, ...] | None:
        """A flag per layer; None where the key is missing or holds one number."""
        value = self.get(key)
        if not isinstance(value, list):
            return None
        if len(value) != count or any(v not in (0, 1) for v in value):
            raise self.error(f"the metadata key {key} must be one number or {count} flags; convert the model again")
        return tuple(map(bool, value))


class _Reader(GGUFReader):
    """gguf's reader, without the several NumPy objects that it makes of every item of every array (of every token)."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self._ends = {e.start: e.end for e in entries.values() if e.kind == ARRAY}
        super().__init__(path)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        size = self._ends[orig_offs] - orig_offs
        return size, [self.data[orig_offs : orig_offs + size]], [0], [GGUFValueType.ARRAY]


@dataclass(frozen=True)
class Source:
    """A GGUF model, opened and checked: its weights are read from the map when loaded."""

    path: Path
    architecture: str
    config: Config
    weights: Mapping[str, Weight]
    metadata: Metadata

    @property
    def name(self) -> str:
        """What the file calls the model, or the file's own name."""
        name = self.metadata.get("general.name")
        return name if isinstance(name, str) and name.strip() else self.path.stem

    @property
    def kind(self) -> Kind:
        return "language"

    @property
    def trained(self) -> int:
        """The most positions that the model was trained for."""
        return self.config.context

    def build(self, context: int, chunk: int) -> Module:
        """The step as a module: `build_module`."""
        return build_module(self, context, chunk)

    def tokenizer(self) -> dict[str, Any] | None:
        """The tokenizer, chat template and special tokens; None where the file has none. Raises InfercError."""
        try:
            return gguf_tokenizer.convert(self.metadata)
        except InfercError as error:
            raise InfercError(f"{self.path}: {error}") from error

    def facts(self) -> dict[str, Any]:
        """The manifest's part that is known here."""
        return {"vocab_size": self.config.vocabulary, **weight_facts(self.weights.values())}


def load(path: Path | str) -> Source:
    """Opens and checks a GGUF file. Nothing but its header is read.

    Raises InfercError, in one line with the remedy, for a file that is missing, truncated, corrupt or inconsistent, a
    weight type or architecture that is not supported, and tensors that are missing or contradict the metadata.
    """
    path = Path(path)
    try:
        mapped = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise InfercError(f"{path}: cannot be opened ({error.strerror}); give the path of a .gguf model") from error
    data = np.asarray(mapped)  # slices of a plain array cost a third
    entries = check(path, data)
    metadata = Metadata(path, data, entries)
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES:
        raise metadata.error(
            f"the architecture {shorten(repr(name), 40)} is not supported; these are: "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    tensors = {t.name: t for t in _Reader(path, entries).tensors}
    config = _read_config(metadata, name, tensors)
    _check_split(metadata)
    return Source(path, name, config, _read_weights(metadata, ARCHITECTURES[name], config, tensors), metadata)


def _check_split(metadata: Metadata) -> None:
    if metadata.integer("split.count", 1, 0) > 1:
        raise metadata.error(
            "the model is split over several files; merge them with llama.cpp's gguf-split --merge first"
        )


def _read_config(metadata: Metadata, name: str, tensors: Mapping[str, ReaderTensor]) -> Config:
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise metadata.error("the tensor token_embd.weight [vocabulary, width] is missing; convert the model again")
    vocabulary = int(embedding.shape[1])
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and (count := len(tokens)) != vocabulary:
        raise metadata.error(
            f"the tokenizer has {count} tokens, token_embd.weight {vocabulary} rows; convert the model again"
        )
    if vocabulary > MAX_SIZE:
        raise metadata.error(f"token_embd.weight has {vocabulary} rows, at most {MAX_SIZE} are supported")
    factors = tensors.get(ROPE_FACTORS)
    if factors is not None and factors.tensor_type != GGMLQuantizationType.F32:
        raise metadata.error(f"{ROPE_FACTORS} must be F32, not {factors.tensor_type.name}; convert the model again")
    return ARCHITECTURES[name].configure(metadata, name, None if factors is None else factors.data, vocabulary)


def _read_weights(
    metadata: Metadata, architecture: Architecture, config: Config, tensors: Mapping[str, ReaderTensor]
) -> dict[str, Weight]:
    """The weights that the architecture reads. A tensor that it does not know would be silently ignored mathematics."""
    expected: dict[str, Tensor] = dict(architecture.tensors)
    for i in range(config.layers):
        expected |= {f"blk.{i}.{name}": tensor for name, tensor in architecture.layer_tensors.items()}
        if not any(name.startswith(f"blk.{i}.") for name in tensors):
            break  # reported below: a lying layer count costs no more than the file has tensors
    weights: dict[str, Weight] = {}
    for name, tensor in expected.items():
        shape = tuple(getattr(config, size) for size in tensor.shape)
        if name in tensors:
            weights[name] = _read_weight(metadata, tensors[name], shape)
        elif not tensor.optional:
            raise metadata.error(f"the tensor {name} {list(shape)} is missing; convert or download the model again")
    if unknown := sorted(tensors.keys() - expected.keys() - {ROPE_FACTORS}):
        raise metadata.error(
            f"the tensor {unknown[0]} is no part of the architecture {config.architecture!r}; "
            "update inferc, or choose a model without it"
        )
    return weights


def _read_weight(metadata: Metadata, tensor: ReaderTensor, expected: tuple[int, ...]) -> Weight:
    shape = tuple(int(d) for d in reversed(tensor.shape))
    if shape != expected:
        raise metadata.error(
            f"the tensor {tensor.name} is {list(shape)} but the metadata make it {list(expected)}; "
            "convert the model again"
        )
    dtype = DTYPES.get(tensor.tensor_type.name.lower())
    if dtype is None or not (dtype.is_block or dtype.name in FLOATS):
        raise metadata.error(
            f"the tensor {tensor.name} has the type {tensor.tensor_type.name}, which no weight may have; "
            "quantise it again"
        )
    return Weight(tensor.name, Type(shape, dtype), partial(_load, tensor, np.uint16 if dtype == bf16 else None))


def _load(tensor: ReaderTensor, view: type | None) -> np.ndarray:
    """The tensor in the map: floats [*shape] (bf16 as bits in uint16), blocks as raw bytes uint8 [*lead, bytes]."""
    return tensor.data if view is None else tensor.data.view(view)


def build_module(source: Source, context: int, chunk: int) -> Module:
    """The step of a model as a module, for at most `context` positions and `chunk` tokens in one call.

    Entry "step": tokens, sequence, position i32[T], rows i32[R], the weights, the caches "layers.<i>.k" and ".v"
    f32[S, heads, rows, length] -> "logits" f32[R, vocabulary] and the new caches by their names. Weights keep their
    names and types.
    """
    config = source.config.within(context)
    tokens, wanted, slots = symbol("T", 1, chunk), symbol("R", 1, chunk), symbol("S", 1, MAX_SLOTS)
    states = {
        f"layers.{i}.{which}": Type((slots, config.kv_heads, state_rows(config, i, context, chunk), length), f32)
        for i in range(config.layers)
        for which, length in (("k", config.key_length), ("v", config.value_length))
    }
    inputs = [
        *(Input(name, "arg", Type((tokens,), i32)) for name in ("tokens", "sequence", "position")),
        Input("rows", "arg", Type((wanted,), i32)),
        *(Input(name, "weight", weight.type) for name, weight in source.weights.items()),
        *(Input(name, "state", type) for name, type in states.items()),
    ]

    def step(*arrays: Any) -> list[Any]:
        named = {i.name: a for i, a in zip(inputs, arrays)}
        weights = {name: named[name] for name in source.weights}
        logits, state = ARCHITECTURES[source.architecture].step(
            config, weights, *arrays[:4], {n: named[n] for n in states}
        )
        return [logits, *(state[name] for name in states)]

    graph, constants = trace(step, inputs, name="step", output_names=("logits", *states))
    return Module({"step": graph}, {**source.weights, **constants})


def reference(source: Source, count: int) -> tuple[Callable[..., jax.Array], dict[str, np.ndarray]]:
    """The model in plain JAX, for tests and measurements: a function, and the dequantised weights it is given.

    `logits(weights, ids i32 [count], rows i32 [R])` -> f32 [R, vocabulary], of one sequence from an empty cache.
    """
    config = source.config.within(count)

    def logits(weights: Mapping[str, jax.Array], ids: jax.Array, rows: jax.Array) -> jax.Array:
        state = {
            f"layers.{i}.{which}": jnp.zeros((1, config.kv_heads, count, length), jnp.float32)
            for i in range(config.layers)
            for which, length in (("k", config.key_length), ("v", config.value_length))
        }
        position = jnp.arange(count, dtype=jnp.int32)
        step = ARCHITECTURES[source.architecture].step
        return step(config, weights, ids, jnp.zeros_like(position), position, rows, state)[0]

    return logits, {name: dequantized(weight) for name, weight in source.weights.items()}


def reference_logits(source: Source, ids: Sequence[int]) -> np.ndarray:
    """Logits f32 [len(ids), vocabulary] of one sequence, by plain JAX in f32 on dequantised weights."""
    logits, weights = reference(source, len(ids))
    rows = np.arange(len(ids), dtype=np.int32)
    return np.asarray(jax.jit(logits)(weights, np.array(ids, np.int32), rows))


def dequantized(weight: Weight) -> np.ndarray:
    """A weight as f32 [*shape], by gguf's own dequantisation."""
    raw = weight.load()
    name = weight.type.dtype.name
    data = raw.view(np.uint8) if name == "bf16" else raw
    return gguf_dequantize(data, GGMLQuantizationType[name.upper()])
