"""Encoders of the BERT family, from GGUF files and Hugging Face folders: functions of one text's ids, with a tokenizer.

Weights take GGUF's names; whatever their type in the file, they are compiled as f32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ...errors import InfercError
from ...ir.graph import Module, Weight
from ...ir.types import Type, f32, i32, symbol
from ..models import bert
from ..models.architecture import Tensor
from ..source import Kind, weight_facts
from ..tracing import Input, trace
from . import safetensors
from .huggingface_tokenizer import convert
from .metadata import Metadata

NAME = "bert"  # in general.architecture, and the `model_type` of a Hugging Face folder
POOLING_TYPES = {0: "mean", 1: "mean", 2: "cls"}  # `bert.pooling_type`; 0 is none
MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers; the last is the caller's to do
KEYS = {
    "num_hidden_layers": "block_count", "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "layer_norm_eps": "attention.layer_norm_epsilon",
}  # fmt: skip
UNREAD = ("pooler.", "cls.", "embeddings.position_ids")  # of a checkpoint: other heads, and a constant

Read = Callable[[], np.ndarray]
Tokenizer = Callable[[], dict[str, Any] | None]


@dataclass(frozen=True)
class Source:
    """An encoder, opened and checked (`compiler.source.Source`). `tokenizer_of` gives what `tokenizer.json` of an
    artifact holds."""

    path: Path
    name: str
    config: bert.Config
    weights: Mapping[str, Weight]
    tokenizer_of: Tokenizer
    architecture: str = NAME
    kind: Kind = "function"

    @property
    def trained(self) -> int:
        """The most tokens of a text."""
        return self.config.context

    def build(self, context: int, chunk: int) -> Module:
        """Entry "run": ids i32[length] -> embedding f32[width], of 1 to all positions. Raises InfercError for another
        `context`."""
        if context != self.trained:
            raise InfercError(f"{self.path}: an encoder takes up to {self.trained} tokens: leave the context out")
        ids = Input("ids", "arg", Type((symbol("length", 1, self.trained),), i32))
        inputs = [ids, *(Input(name, "weight", weight.type) for name, weight in self.weights.items())]

        def run(ids: Any, *arrays: Any) -> list[Any]:
            return [bert.embed(self.config, dict(zip(self.weights, arrays)), ids)]

        graph, constants = trace(run, inputs, name="run", output_names=("embedding",))
        return Module({"run": graph}, {**self.weights, **constants})

    def tokenizer(self) -> dict[str, Any] | None:
        try:
            return self.tokenizer_of()
        except InfercError as error:
            raise InfercError(f"{self.path}: {error}") from error

    def facts(self) -> dict[str, Any]:
        """As of any function, "vocab_size", and "pooling", one of `bert.POOLINGS`."""
        signature = {
            "inputs": [{"name": "ids", "dtype": "i32", "shape": ["length"]}],
            "outputs": [{"name": "embedding", "dtype": "f32", "shape": [self.config.width]}],
            "dims": {"length": [1, self.trained]},
        }
        return {
            "vocab_size": self.config.vocabulary, "pooling": self.config.pooling, "signature": signature,
            **weight_facts(self.weights.values()),
        }  # fmt: skip


def from_gguf(path: Path, name: str, metadata: Metadata, weights: Mapping[str, Weight],
              widened: Callable[[Weight], np.ndarray], tokenizer: Tokenizer) -> Source:  # fmt: skip
    """The encoder of a GGUF file; `widened` gives a weight as f32. Raises InfercError for tensors that are missing,
    unknown or of another shape than the metadata make them, and for a pooling that is not known."""
    kind = metadata.integer(f"{NAME}.pooling_type", 1)
    if kind not in POOLING_TYPES:
        raise metadata.error(f"the pooling type {kind} is not supported; mean (1) and that of the first token (2) are")
    found = {n: (w.type.sizes, partial(widened, w)) for n, w in weights.items()}
    return _checked(path, name, metadata, found, POOLING_TYPES[kind], tokenizer)


def from_folder(path: Path, config: Mapping[str, Any], metadata: Metadata, pooling: Mapping[str, Any]) -> Source:
    """The encoder of a Hugging Face folder: config.json, and what 1_Pooling/config.json of sentence-transformers says,
    which may be nothing. Raises InfercError as `from_gguf`, and for options that are not BERT's."""
    for option, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(option, known) != known:
            raise metadata.error(f"{option} {config[option]!r:.40} is not supported; {known!r} is")
    pooled = _pooling(path, pooling)
    layers = metadata.integer(f"{NAME}.block_count", low=1, high=4096)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    found: dict[str, tuple[tuple[int, ...], Read]] = {}
    for theirs, tensor in safetensors.read_folder(path).items():
        short = theirs.removeprefix("bert.")
        if short.startswith(UNREAD):
            continue
        ours = names.get_name(short, (".weight", ".bias"))
        if ours is None or tensor.kind not in ("F32", "F16", "BF16"):
            raise InfercError(f"{path}: the tensor {theirs} ({tensor.kind}) is no part of {NAME!r}; update inferc")
        found[ours] = tensor.shape, partial(safetensors.widened, tensor)
    return _checked(path, path.resolve().name, metadata, found, pooled, partial(_tokenizer, path))


def _pooling(path: Path, settings: Mapping[str, Any]) -> str:
    """The pooling of sentence-transformers' settings, which name it or, as they used to, have a flag for each. Raises
    InfercError for one that is not known, and for modules other than `MODULES`."""
    file = path / "modules.json"
    try:
        modules = json.loads(file.read_text("utf-8")) if file.exists() else []
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InfercError(f"{file}: cannot be read ({error}); download the model again") from error
    if other := [kind for kind in kinds if kind not in MODULES]:
        raise InfercError(f"{path}: its module {other[0]:.40} is not supported; {', '.join(MODULES)} are")
    flags = [name.removeprefix("pooling_mode_").removesuffix("s").removesuffix("_token")
             for name, on in settings.items() if name.startswith("pooling_mode_") and on is True]  # fmt: skip
    named = settings.get("pooling_mode", flags)
    modes = [named] if isinstance(named, str) else named
    if not isinstance(modes, list) or len(modes) > 1 or any(mode not in bert.POOLINGS for mode in modes):
        raise InfercError(f"{path}: pooling by {modes!r:.80} is not supported; {' and '.join(bert.POOLINGS)} are")
    return modes[0] if modes else "mean"


def _checked(path: Path, name: str, metadata: Metadata, found: Mapping[str, tuple[tuple[int, ...], Read]], pooling: str,
             tokenizer: Tokenizer) -> Source:  # fmt: skip
    def rows(tensor: str) -> int:
        return (found[tensor][0] or (0,))[0] if tensor in found else 0

    config = bert.configure(metadata, rows("token_embd.weight"), rows("token_types.weight"), pooling)
    expected: dict[str, Tensor] = dict(bert.TENSORS)
    expected |= {f"blk.{i}.{n}": t for i in range(config.layers) for n, t in bert.LAYER_TENSORS.items()}
    for tensor, shape in ((n, tuple(getattr(config, size) for size in t.shape)) for n, t in expected.items()):
        if tensor not in found:
            raise metadata.error(f"the tensor {tensor} {list(shape)} is missing; convert or download the model again")
        if found[tensor][0] != shape:
            raise metadata.error(f"the tensor {tensor} is {list(found[tensor][0])}, the metadata make it {list(shape)}")
    if unknown := sorted(found.keys() - expected.keys()):
        raise metadata.error(f"the tensor {unknown[0]} is no part of the architecture {NAME!r}; update inferc")
    weights = {n: Weight(n, Type(found[n][0], f32), found[n][1]) for n in expected}
    return Source(path, name, config, weights, tokenizer)


def _tokenizer(path: Path) -> dict[str, Any] | None:
    """The folder's tokenizer, which puts [CLS] before a text and [SEP] after it."""
    made = convert(path)
    if made is None:
        return None
    ids = json.loads(made["tokenizer"]).get("model", {}).get("vocab", {})
    if not isinstance(ids, dict) or not {"[CLS]", "[SEP]"} <= ids.keys():
        raise InfercError("tokenizer.json has no [CLS] and [SEP]; download the model again")
    around = {"bos_id": ids["[CLS]"], "eos_ids": [ids["[SEP]"]], "add_bos": True, "add_eos": True}
    return {**made, **around}
