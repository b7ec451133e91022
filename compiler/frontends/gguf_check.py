"""A strict, bounds-checked walk over a GGUF file's header, before any parser that trusts it.

A parser that believes a lying count or length can hang or ask for terabytes. `check` reads the same fields, in time and
memory bounded by the file's own size, and raises InfercError for the first thing that cannot be true.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import PurePath
from typing import Any, NoReturn

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ...errors import InfercError

VERSIONS = (2, 3)
MAX_KEY_BYTES = 65535
MAX_NAME_BYTES = 256  # of a tensor
MAX_DIMENSIONS = 4
STRING, ARRAY, BOOL = 8, 9, 7
U32 = 4
NUMPY = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
SCALAR_BYTES = {kind: np.dtype(name).itemsize for kind, name in NUMPY.items()}
SMALLEST_ENTRY = 8 + 4 + 1  # a key-value pair: the key's length, the value's type, one byte
SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8
DOWNLOAD = "download or convert the file again"
# What to give in the place of files that look like models of another kind.
INSTEAD = {
    ".py": "name a function in it, as FILE.py:NAME",
    **dict.fromkeys((".safetensors", ".bin", ".json"), "give the folder that it lies in, with config.json"),
    **dict.fromkeys((".pt", ".pth", ".ckpt"), "save the model with torch.export.save, as .pt2"),
    **dict.fromkeys((".tflite", ".pb", ".h5", ".keras"), "convert it to ONNX"),
}  # fmt: skip


def unsigned(data: np.ndarray | memoryview, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size].tobytes(), "little")


def shorten(text: str, limit: int = 300) -> str:
    """What a file says may be long; a message may not."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Cursor:
    """A place in the file that never reads past its end."""

    def __init__(self, path: Any, data: np.ndarray) -> None:
        self.path, self.data, self.at = path, data, 0
        self._view = data.data  # whose slices cost less

    def fail(self, problem: str, remedy: str = DOWNLOAD) -> NoReturn:
        raise InfercError(f"{self.path}: {shorten(problem)}; {remedy}")

    def skip(self, count: int, what: str) -> int:
        """Moves past `count` bytes and returns where they begin."""
        start = self.at
        if count > len(self.data) - start:
            self.fail(
                f"the file ends inside {what} (it needs {count} bytes at {start}, {len(self.data) - start} are left)"
            )
        self.at = start + count
        return start

    def u32(self, what: str) -> int:
        return unsigned(self._view, self.skip(4, what), 4)

    def u64(self, what: str) -> int:
        return unsigned(self._view, self.skip(8, what), 8)

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.u64(f"the length of {what}")
        if limit is not None and length > limit:
            self.fail(f"{what} has {length} bytes, at most {limit} are allowed")
        start = self.skip(length, what)
        try:
            return str(self._view[start : self.at], "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def texts(self, what: str, count: int) -> None:
        """Moves past `count` texts, as `text` does, without a name for each that is right."""
        view, size = self._view, len(self._view)
        for index in range(count):
            start = self.at + 8
            end = start + int.from_bytes(view[self.at : start], "little")
            try:
                str(view[start:end], "utf-8")
            except UnicodeDecodeError:
                end = size + 1
            if end > size:
                self.text(f"{what}[{index}]")  # which says what is wrong
            self.at = end


@dataclass(frozen=True)
class Entry:
    """Where a metadata value lies: its GGUF type, its first byte and the one after its last."""

    kind: int
    start: int
    end: int


def check(path: Any, data: np.ndarray) -> dict[str, Entry]:
    """Checks the header of a GGUF file held in `data` (uint8 [bytes]): keys, values, tensor names, shapes, extents.

    Returns where each metadata value lies. Raises InfercError, naming the key or tensor, if anything is truncated, out
    of bounds, unknown, or said twice.
    """
    cursor = Cursor(path, data)
    if len(data) < 24 or data[:4].tobytes() != b"GGUF":
        remedy = INSTEAD.get(PurePath(path).suffix, "give the path of a .gguf model")
        cursor.fail("this is not a GGUF file", remedy)
    cursor.at = 4
    version = cursor.u32("the version")
    if version not in VERSIONS:
        swapped = version != 0 and version & 0xFFFF == 0
        kind = "big-endian, or corrupt" if swapped else f"of GGUF version {version}"
        cursor.fail(f"the file is {kind}; versions 2 and 3, little-endian, are read", "convert the model again")
    tensors, entries = cursor.u64("the tensor count"), cursor.u64("the metadata count")
    if entries * SMALLEST_ENTRY + tensors * SMALLEST_TENSOR > len(data):
        cursor.fail(f"{tensors} tensors and {entries} metadata keys cannot fit in {len(data)} bytes")
    values = _check_metadata(cursor, entries)
    _check_tensors(cursor, tensors, _alignment(cursor, values.get("general.alignment")))
    return values


def read_value(data: np.ndarray, kind: int, start: int, end: int) -> Any:
    """The metadata value of a checked file: a number, flag, text, or a list of them."""
    if kind == STRING:
        return data[start + 8 : end].tobytes().decode()
    if kind != ARRAY:
        return np.frombuffer(data, NUMPY[kind], 1, start)[0].item()
    item, count = unsigned(data, start, 4), unsigned(data, start + 4, 8)
    if item != STRING:
        return np.frombuffer(data, NUMPY[item], count, start + 12).tolist()
    raw, at, values = data[start:end].tobytes(), 12, []
    for _ in range(count):
        stop = at + 8 + int.from_bytes(raw[at : at + 8], "little")
        values.append(raw[at + 8 : stop].decode())
        at = stop
    return values


def _check_metadata(cursor: Cursor, entries: int) -> dict[str, Entry]:
    values: dict[str, Entry] = {}
    for index in range(entries):
        key = cursor.text(f"metadata key {index}", MAX_KEY_BYTES)
        if key in values or key.startswith("GGUF.") or not key.isprintable():
            cursor.fail(f"the metadata key {key!r} is repeated or not allowed")
        kind = cursor.u32(f"the type of {key}")
        start = cursor.at
        _check_value(cursor, key, kind)
        values[key] = Entry(kind, start, cursor.at)
    return values


def _alignment(cursor: Cursor, entry: Entry | None) -> int:
    if entry is None:
        return 32
    alignment = read_value(cursor.data, entry.kind, entry.start, entry.end) if entry.kind == U32 else 0
    if not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        cursor.fail(f"general.alignment must be a power of two from 8 to {1 << 20}, as a 32-bit number")
    return alignment


def _check_value(cursor: Cursor, key: str, kind: int) -> None:
    if kind == STRING:
        cursor.text(key)
    elif kind == ARRAY:
        item, count = cursor.u32(f"the item type of {key}"), cursor.u64(f"the length of {key}")
        if item == STRING:
            if count * 8 > len(cursor.data):
                cursor.fail(f"{key} cannot hold {count} strings in a file of {len(cursor.data)} bytes")
            cursor.texts(key, count)
        elif item in SCALAR_BYTES:
            start = cursor.skip(count * SCALAR_BYTES[item], key)
            _check_flags(cursor, key, item, start)
        else:
            cursor.fail(f"{key} is an array of type {item}, which is not a number, flag or string")
    elif kind in SCALAR_BYTES:
        _check_flags(cursor, key, kind, cursor.skip(SCALAR_BYTES[kind], key))
    else:
        cursor.fail(f"{key} has the unknown type {kind}")


def _check_flags(cursor: Cursor, key: str, kind: int, start: int) -> None:
    if kind == BOOL and cursor.at > start and cursor.data[start : cursor.at].max() > 1:
        cursor.fail(f"{key} must be 0 or 1")


def _check_tensors(cursor: Cursor, count: int, alignment: int) -> None:
    extents: list[tuple[int, int, str]] = []
    names: set[str] = set()
    for index in range(count):
        name = cursor.text(f"the name of tensor {index}", MAX_NAME_BYTES)
        if name in names or not name.isprintable():
            cursor.fail(f"the tensor name {name!r} is repeated or not printable")
        names.add(name)
        rank = cursor.u32(f"the rank of {name}")
        if not 1 <= rank <= MAX_DIMENSIONS:
            cursor.fail(f"tensor {name} has {rank} dimensions, 1 to {MAX_DIMENSIONS} are allowed")
        shape = [cursor.u64(f"the shape of {name}") for _ in range(rank)]
        kind, offset = cursor.u32(f"the type of {name}"), cursor.u64(f"the offset of {name}")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            cursor.fail(
                f"tensor {name} has the unknown type {kind}", "update inferc and gguf, or convert to a known type"
            )
        if not all(shape) or shape[0] % block:
            cursor.fail(f"tensor {name} has the impossible shape {shape} for blocks of {block}")
        if offset % alignment:
            cursor.fail(f"tensor {name} lies at offset {offset}, which is no multiple of the alignment {alignment}")
        extents.append((offset, prod(shape) // block * block_bytes, name))
    base = -(-cursor.at // alignment) * alignment
    end, last = 0, ""
    for offset, size, name in sorted(extents):
        if offset < end:
            cursor.fail(f"the tensors {last} and {name} overlap")
        end, last = offset + size, name
        if base + end > len(cursor.data):
            cursor.fail(
                f"tensor {name} ends at byte {base + end}, the file at {len(cursor.data)}: it is truncated or corrupt"
            )
