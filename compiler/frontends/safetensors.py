"""Safetensors files through memory maps: names, dtypes and shapes, each tensor read when asked for.

The format (github.com/huggingface/safetensors): a u64 with the length of a JSON header, the header, then the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ...errors import InfercError
from ..mapped import let_go

MAX_HEADER = 100_000_000  # bytes, as the format's own reader allows

# NumPy's dtype of each; bf16 is held as its bits.
ELEMENTS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor in a mapped file; `kind` is the format's name of its dtype."""

    kind: str
    shape: tuple[int, ...]
    data: np.ndarray  # u8

    def array(self) -> np.ndarray:
        """The values [*shape] in the map; bf16 as bits in uint16."""
        let_go(self.data)  # what was read before
        return self.data.view(ELEMENTS[self.kind]).reshape(self.shape)


def widened(tensor: Tensor) -> np.ndarray:
    """The values of a float tensor as f32 [*shape]."""
    values = tensor.array()
    if tensor.kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the safetensors files of a checkpoint: those its index names, else `model.safetensors`, beside
    which adapters and other forms of the model may lie, else all.

    Raises InfercError for a folder without such files, a damaged file, or a name in two files.
    """
    index = folder / "model.safetensors.index.json"
    whole = folder / "model.safetensors"
    files = [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))
    files = _indexed(folder, index) if index.exists() else files
    if not files:
        raise InfercError(f"{folder}: there is no .safetensors file; save the model with save_pretrained")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read(file).items():
            if name in tensors:
                raise InfercError(f"{file}: the tensor {name} is in another file too; download the model again")
            tensors[name] = tensor
    return tensors


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InfercError(f"{index}: cannot be read ({error}); download the model again") from error
    if bad := sorted(str(n) for n in names if not isinstance(n, str) or Path(n).name != n):
        raise InfercError(f"{index}: {bad[0]!r:.60} is no file beside it; download the model again")
    return [folder / name for name in sorted(names)]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises InfercError for one that is missing, truncated or inconsistent."""
    try:
        size = path.stat().st_size
        data = np.asarray(np.memmap(path, np.uint8, mode="r")) if size else np.empty(0, np.uint8)
    except OSError as error:
        raise InfercError(f"{path}: cannot be opened ({error.strerror}); download the model again") from error
    length = int(data[:8].view("<u8")[0]) if size >= 8 else size
    start = 8 + length
    if length > MAX_HEADER or start > size:
        raise InfercError(f"{path}: is truncated or no safetensors file; download the model again")
    try:
        header = json.loads(data[8:start].tobytes())
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InfercError(f"{path}: its header is damaged; download the model again") from error
    return {name: _tensor(path, name, entry, data[start:]) for name, entry in entries.items()}


def _tensor(path: Path, name: str, entry: Any, data: np.ndarray) -> Tensor:
    damaged = InfercError(f"{path}: the tensor {name!r:.80} is damaged; download the model again")
    if not isinstance(entry, Mapping):
        raise damaged
    kind, shape, ends = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not _sizes(shape) or not _sizes(ends) or len(ends) != 2:
        raise damaged
    if not isinstance(kind, str) or kind not in ELEMENTS:
        raise InfercError(f"{path}: the tensor {name} is of type {kind!r:.20}, which is not supported")
    start, end = ends
    if not start <= end <= data.size or end - start != prod(shape) * np.dtype(ELEMENTS[kind]).itemsize:
        raise damaged
    return Tensor(kind, tuple(shape), data[start:end])


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)
