"""GGUF files: metadata and tensors through a memory map, checked against the architecture.

Names and shapes are GGUF's, dimensions in row-major order ([rows, columns]). No tensor is read before it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.gguf_reader import ReaderTensor

from ...errors import InfercError
from ...ir.graph import Weight
from ...ir.types import DTYPES, Type, bf16
from ..mapped import let_go
from ..models import ARCHITECTURES
from ..models.architecture import MAX_SIZE, Config
from . import encoder, gguf_tokenizer
from .gguf_check import ARRAY, Entry, check, read_value, shorten
from .language import Source, dequantized, tensor_shapes
from .metadata import Metadata

FLOATS = ("f32", "f16", "bf16")
ROPE_FACTORS = "rope_freqs.weight"


class _Entries(Mapping[str, Any]):
    """The key-value pairs of a GGUF file as Python values, decoded when asked for."""

    def __init__(self, data: np.ndarray, entries: Mapping[str, Entry]) -> None:
        self._data, self._entries = data, entries

    def __getitem__(self, key: str) -> Any:
        entry = self._entries[key]
        return read_value(self._data, entry.kind, entry.start, entry.end)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


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


def load(path: Path | str) -> Source | encoder.Source:
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
    metadata = Metadata(path, _Entries(data, entries))
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES and name != encoder.NAME:
        raise metadata.error(
            f"the architecture {shorten(repr(name), 40)} is not supported; these are: "
            f"{', '.join(sorted((*ARCHITECTURES, encoder.NAME)))}"
        )
    tensors = {t.name: t for t in _Reader(path, entries).tensors}
    _check_split(metadata)
    called = metadata.get("general.name")
    title = called if isinstance(called, str) and called.strip() else path.stem
    if name == encoder.NAME:
        read = {n: _read_weight(metadata, t, tuple(int(d) for d in reversed(t.shape))) for n, t in tensors.items()}
        return encoder.from_gguf(path, title, metadata, read, dequantized, partial(gguf_tokenizer.convert, metadata))
    config = _read_config(metadata, name, tensors)
    shapes = tensor_shapes(metadata, ARCHITECTURES[name], config, tensors.keys() - {ROPE_FACTORS})
    weights = {tensor: _read_weight(metadata, tensors[tensor], shape) for tensor, shape in shapes.items()}
    return Source(path, title, name, config, weights, metadata, gguf_tokenizer.convert)


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
    let_go(tensor.data)  # what was read before
    return tensor.data if view is None else tensor.data.view(view)
