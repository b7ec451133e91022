"""How values lie in a device's memory: elements as one tensor, blocks as one tensor for each part of their format.

A weight in blocks stays packed: its scales are f16 [..., blocks], its bit planes and small scales ui8 [..., blocks,
bytes], all exactly the bytes of the file, put apart so that each is aligned and read in order. Types whose weights are
points of grids lie in the format that they are computed with as. Layouts of the CPU's panels do not exist here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir import quant
from ...ir.graph import IRError
from ...ir.types import ACTIVATION_SIZES, Type, array_shape
from .text import Shape, element_of

ELEMENT_BYTES = {"i1": 1, "i8": 1, "ui8": 1, "i16": 2, "ui16": 2, "f16": 2, "bf16": 2, "i32": 4, "ui32": 4, "f32": 4,
                 "i64": 8, "ui64": 8, "f64": 8}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One tensor of a value: "" alone, or the name of its part; its shape and element."""

    name: str
    shape: Shape
    element: str

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * ELEMENT_BYTES[self.element]


def part_types(t: Type) -> tuple[Part, ...]:
    """The tensors that hold a value; blocks have no symbols in their shapes."""
    if not t.dtype.is_block:
        return (Part("", t.shape, element_of(t.dtype)),)
    *lead, k = t.sizes
    if t.dtype.name in ACTIVATION_SIZES:
        sums = (*lead, k // quant.SUM_GROUP)
        return Part("q", t.sizes, "i8"), Part("d", (*lead, k // t.dtype.block), "f32"), Part("sums", sums, "i32")
    fmt = quant.FORMATS[quant.computed(t.dtype).name]
    blocks = (*lead, k // fmt.block)
    return tuple(
        Part(name, blocks, "f16") if part.kind in "dm" else Part(name, (*blocks, part.bytes), "ui8")
        for name, part in zip(part_names(fmt), fmt.parts)
    )


def part_names(fmt: quant.Format) -> list[str]:
    """The kinds of a format's parts, numbered where one repeats."""
    kinds = [p.kind for p in fmt.parts]
    return [kind + (str(kinds[:i].count(kind)) if kind in kinds[:i] else "") for i, kind in enumerate(kinds)]


def split(t: Type, array: np.ndarray) -> list[np.ndarray]:
    """The arrays of a value's parts, from the array that the interpreter holds it in. bf16 stays bits in uint16."""
    if not t.dtype.is_block:
        return [np.require(quant.unpack(t, array) if t.layout else array, requirements="C")]
    if t.dtype.name in ACTIVATION_SIZES:
        x = quant.decode_activation(t.dtype, array)
        return [x.q, x.d, x.sums]
    raw = quant.recode(t.dtype, quant.unpack(t, array) if t.layout else array)
    fmt = quant.FORMATS[quant.computed(t.dtype).name]
    blocks = raw.reshape(*t.sizes[:-1], -1, fmt.dtype.block_bytes)
    found = []
    for part, start in zip(fmt.parts, fmt.offsets):
        data = np.ascontiguousarray(blocks[..., start : start + part.bytes])
        found.append(data.view("<f2")[..., 0] if part.kind in "dm" else data)
    return found


def device_rows(joined: Sequence[int], devices: int) -> np.ndarray:
    """The rows of matrices with so many each, stood one upon another, in the order in which devices share them: all of
    the first device's, then the second's."""
    rows = np.split(np.arange(sum(joined)), np.cumsum(joined)[:-1])
    return np.concatenate([part for device in zip(*(np.split(r, devices) for r in rows)) for part in device])


def join(t: Type, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `split` for a row-major type. Raises IRError for a type that is recoded."""
    if not t.dtype.is_block:
        return np.asarray(arrays[0])
    if t.dtype.name in ACTIVATION_SIZES:
        return quant.encode_activation(quant.Activation(*map(np.asarray, arrays)))
    if quant.computed(t.dtype) != t.dtype:
        raise IRError(f"{t} lies on the device in another format")
    fmt = quant.FORMATS[t.dtype.name]
    pieces = [np.ascontiguousarray(a[..., None] if p.kind in "dm" else a).view(np.uint8)
              for p, a in zip(fmt.parts, arrays)]  # fmt: skip
    return np.concatenate(pieces, axis=-1).reshape(array_shape(t))
