"""Language models opened by any front end: weights by GGUF's names, a configuration, and the step as a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize

from ...errors import InfercError
from ...ir.graph import Module, Weight
from ...ir.quant import dequantize
from ...ir.types import CODE_SIZES, Type, f32, i32, symbol
from ..models import ARCHITECTURES
from ..models.architecture import Architecture, Config, Tensor
from ..models.blocks import ORDERS, state_rows
from ..source import Kind, weight_facts
from ..tracing import Input, trace
from .metadata import Metadata

MAX_SLOTS = 1 << 16


@dataclass(frozen=True)
class Source:
    """A language model, opened and checked (`compiler.source.Source`): its weights are read when loaded.

    `read_tokenizer(metadata)` gives what `tokenizer.json` of an artifact holds. `output` is what the step gives of a
    wanted token: "logits" or "embeddings", the hidden state after the last norm.
    """

    path: Path
    name: str
    architecture: str
    config: Config
    weights: Mapping[str, Weight]
    metadata: Metadata
    read_tokenizer: Callable[[Metadata], dict[str, Any] | None]
    output: str = "logits"

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
        """The tokenizer, chat template and special tokens; None where the model has none. Raises InfercError."""
        try:
            return self.read_tokenizer(self.metadata)
        except InfercError as error:
            raise InfercError(f"{self.path}: {error}") from error

    def facts(self) -> dict[str, Any]:
        """The manifest's part that is known here."""
        width = self.config.width if self.output == "embeddings" else self.config.vocabulary
        return {
            "vocab_size": self.config.vocabulary, "output": self.output, "output_width": width,
            **weight_facts(self.weights.values()),
        }  # fmt: skip


def without_head(source: Source) -> Source:
    """The model that gives embeddings, f32[width] of a token, in place of logits."""
    weights = {name: weight for name, weight in source.weights.items() if name != "output.weight"}
    return replace(source, weights=weights, output="embeddings")


def share(source: Source, devices: int) -> Source:
    """What each of several devices has of a model whose heads and inner width of feed-forward they share: its weights
    have the types of a device's parts, and still load whole.

    Raises InfercError where a number, the blocks of a row, or an order of a linear's inputs cannot be shared.
    """
    architecture, config = ARCHITECTURES[source.architecture], source.config

    def parted(count: int, what: str) -> int:
        if count % devices:
            raise InfercError(f"{source.path}: {devices} devices cannot share {count} {what} evenly: choose a --mesh "
                              "whose tp divides them")  # fmt: skip
        return count // devices

    config = replace(
        config, heads=parted(config.heads, "heads"), kv_heads=parted(config.kv_heads, "heads of the caches"),
        feed_forward=parted(config.feed_forward, "inner values of feed-forward"),
    )  # fmt: skip
    known = {**architecture.tensors, **architecture.layer_tensors, **ORDERS}
    weights = {}
    for name, weight in source.weights.items():
        whole, dtype = weight.type.sizes, weight.type.dtype
        shape = tuple(getattr(config, size) for size in known[_in_layer(name)].shape)
        if shape != whole and dtype.is_integer:
            raise InfercError(f"{source.path}: {name} takes inputs from all devices: leave tp out of --mesh")
        if shape[-1] != whole[-1] and dtype.is_block:
            parted(whole[-1] // dtype.block, f"blocks of a row of {name}")
        weights[name] = replace(weight, type=Type(shape, dtype))
    return replace(source, config=config, weights=weights)


def _in_layer(name: str) -> str:
    """A tensor's name without its layer."""
    return name.split(".", 2)[-1] if name.startswith("blk.") else name


def tensor_shapes(metadata: Metadata, architecture: Architecture, config: Config,
                  names: Set[str]) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """The shapes that the architecture gives to the tensors `names` of a file, by GGUF's names.

    Raises InfercError for a tensor that is missing, or that the architecture does not know: ignoring it would be
    silently ignored mathematics.
    """
    expected: dict[str, Tensor] = dict(architecture.tensors)
    for i in range(config.layers):
        layer = {**architecture.layer_tensors, **ORDERS}
        expected |= {f"blk.{i}.{name}": tensor for name, tensor in layer.items()}
        if not any(name.startswith(f"blk.{i}.") for name in names):
            break  # reported below: a lying layer count costs no more than the file has tensors
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in expected.items():
        shape = tuple(getattr(config, size) for size in tensor.shape)
        if name in names:
            shapes[name] = shape
        elif not tensor.optional:
            raise metadata.error(f"the tensor {name} {list(shape)} is missing; convert or download the model again")
    if unknown := sorted(names - expected.keys()):
        raise metadata.error(
            f"the tensor {unknown[0]} is no part of the architecture {config.architecture!r}; "
            "update inferc, or choose a model without it"
        )
    return shapes


def build_module(source: Source, context: int, chunk: int) -> Module:
    """The step of a model as a module, for at most `context` positions and `chunk` tokens in one call.

    Entry "step": tokens, sequence, position i32[T], rows i32[R], the weights, the caches "layers.<i>.k" and ".v"
    f32[S, heads, rows, length] -> "logits" f32[R, vocabulary] (or "embeddings" f32[R, width], the source's `output`)
    and the new caches by their names. Weights keep their names and types.
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
        output, state = ARCHITECTURES[source.architecture].step(
            config, weights, *arrays[:4], {n: named[n] for n in states}, output=source.output
        )
        return [output, *(state[name] for name in states)]

    graph, constants = trace(step, inputs, name="step", output_names=(source.output, *states))
    return Module({"step": graph}, {**source.weights, **constants})


def reference(source: Source, count: int) -> tuple[Callable[..., jax.Array], dict[str, np.ndarray]]:
    """The model in plain JAX, for tests and measurements: a function, and the dequantised weights it is given.

    `logits(weights, ids i32 [count], rows i32 [R])` -> f32 [R, vocabulary], of one sequence from an empty cache.
    """
    step, empty = reference_step(source, count)

    def logits(weights: Mapping[str, jax.Array], ids: jax.Array, rows: jax.Array) -> jax.Array:
        return step(weights, ids, jnp.arange(count, dtype=jnp.int32), rows, empty())[0]

    return logits, {name: dequantized(weight) for name, weight in source.weights.items()}


def reference_step(source: Source, context: int) -> tuple[Callable[..., Any], Callable[[], dict[str, jax.Array]]]:
    """The step of the model in plain JAX for one sequence, and what makes its empty caches of `context` positions.

    `step(weights, ids i32 [T], position i32 [T], rows i32 [R], caches)` -> (f32 [R, vocabulary], caches).
    """
    config = source.config.within(context)

    def step(weights: Mapping[str, jax.Array], ids: jax.Array, position: jax.Array, rows: jax.Array, state: Any) -> Any:
        evaluate = ARCHITECTURES[source.architecture].step
        return evaluate(config, weights, ids, jnp.zeros_like(position), position, rows, state)

    def empty() -> dict[str, jax.Array]:
        return {
            f"layers.{i}.{which}": jnp.zeros((1, config.kv_heads, context, length), jnp.float32)
            for i in range(config.layers)
            for which, length in (("k", config.key_length), ("v", config.value_length))
        }

    return step, empty


def reference_logits(source: Source, ids: Sequence[int]) -> np.ndarray:
    """Logits f32 [len(ids), vocabulary] of one sequence, by plain JAX in f32 on dequantised weights."""
    logits, weights = reference(source, len(ids))
    rows = np.arange(len(ids), dtype=np.int32)
    return np.asarray(jax.jit(logits)(weights, np.array(ids, np.int32), rows))


def dequantized(weight: Weight) -> np.ndarray:
    """A weight as f32 [*shape], by gguf's own dequantisation where it knows the type; integers as they are."""
    raw, dtype = weight.load(), weight.type.dtype
    if dtype.is_integer:
        return raw
    if dtype.name in CODE_SIZES:
        return dequantize(dtype, raw, weight.type.sizes)
    data = raw.view(np.uint8) if dtype.name == "bf16" else raw
    return gguf_dequantize(data, GGMLQuantizationType[dtype.name.upper()])
