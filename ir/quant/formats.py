"""GGUF's block formats as data: where bits, scales and mins lie, and what they mean.

Every directly computed format is one `Format`: a block holds unsigned `bits`-bit values in bit planes, an f16 scale
`d`, perhaps an f16 `m` (an offset that is added) or `dmin` (a scale of integer mins that are subtracted), and perhaps
packed integer scales and mins, one per group. To whoever computes, all of them are the same: groups of 16 or 32 values
`scale * (q - zero) + offset`, with scale = d times the group's integer, offset = m or minus dmin times its min. (Both
products are exact in f32.) The layouts are those of ggml's `block_*` structures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..types import DTYPES, DType

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Plane:
    """`bits` bits of every value, at bit `position` of it. In a chunk of `run` bytes, byte i holds at shift s * bits
    the value s * run + i of the chunk."""

    bits: int
    position: int
    run: int

    def decode(self, data: Bytes) -> Bytes:
        """data [..., bytes] → this plane's bits of the values, not yet at their position, [..., bytes * 8 / bits]."""
        lead, steps = data.shape[:-1], 8 // self.bits
        if steps == 1:
            return data
        if self.run == 1 and self.bits == 1:
            return np.unpackbits(data, axis=-1, bitorder="little")
        words, mask = _wide(np.ascontiguousarray(data), self.run, self.bits)
        out = np.empty((*lead, data.shape[-1] // self.run, steps, words.shape[-1]), words.dtype)
        for step in range(steps):
            np.right_shift(words, words.dtype.type(step * self.bits), out=out[..., step, :])
        out &= mask
        return out.reshape(*lead, -1).view(np.uint8)

    def encode(self, values: Bytes) -> Bytes:
        """The inverse of `decode`: values [..., count] below 2**bits → [..., count * bits / 8]."""
        lead, steps = values.shape[:-1], 8 // self.bits
        parts = values.reshape(*lead, -1, steps, self.run)
        out = parts[..., 0, :].copy()
        for step in range(1, steps):
            out |= parts[..., step, :] << np.uint8(step * self.bits)
        return out.reshape(*lead, -1)


def _wide(data: Bytes, run: int, bits: int) -> tuple[np.ndarray, np.generic]:
    """Runs of bytes as the widest words that divide them, [..., chunks, words], and a mask of `bits` in each byte."""
    word = np.dtype(next(w for w in ("u8", "u4", "u2", "u1") if run % np.dtype(w).itemsize == 0))
    words = data.reshape(*data.shape[:-1], -1, run).view(word)
    return words, np.frombuffer(bytes([(1 << bits) - 1]) * word.itemsize, word)[0]


def planes_of(bits: int) -> tuple[tuple[int, int], ...]:
    """How packed panels split values of so many bits: (bits, position) of each plane, low bits first."""
    return _PLANES[bits]


_PLANES = {2: ((2, 0),), 3: ((2, 0), (1, 2)), 4: ((4, 0),), 5: ((4, 0), (1, 4)), 6: ((4, 0), (2, 4)), 8: ((8, 0),)}


@dataclass(frozen=True)
class Part:
    """Consecutive bytes of a block: `kind` is d, m, scale or q; a scale or q part holds one plane.

    A scale part without a plane is Q4_K's twelve bytes of interleaved 6-bit scales and mins."""

    kind: str
    bytes: int
    plane: Plane | None = None


@dataclass(frozen=True)
class Format:
    """How one block dtype computes. `zero` is subtracted from q; `scale_zero` from the integer scales; `mins` says what
    the second f16 is: "" none, "add" an offset, "subtract" the scale of `mins_count` integer mins."""

    dtype: DType
    bits: int
    group: int
    zero: int
    parts: tuple[Part, ...]
    mins: str = ""
    scale_bits: int = 0
    scale_zero: int = 0
    scale_signed: bool = False

    def __post_init__(self) -> None:
        size = sum(p.bytes for p in self.parts)
        if size != self.dtype.block_bytes:
            raise ValueError(f"{self.dtype}: its parts have {size} bytes, a block has {self.dtype.block_bytes}")
        if (self.block, self.scale_bits > 0) not in ((32, False), (256, True)):
            raise ValueError(f"{self.dtype}: blocks are of 32 values, or of 256 with integer scales")

    @property
    def block(self) -> int:
        return self.dtype.block

    @property
    def groups(self) -> int:
        """Groups in a block: each has its own integer scale where `scale_bits` is not zero."""
        return self.block // self.group

    @property
    def scale_count(self) -> int:
        """Packed integers of a block: the scales, then the mins."""
        return (self.groups if self.scale_bits else 0) * (2 if self.mins == "subtract" else 1)

    @property
    def signed(self) -> bool:
        """q is a two's complement byte rather than an unsigned number less `zero`."""
        return self.bits == 8

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each part starts in a block."""
        return tuple(int(n) for n in np.cumsum([0] + [p.bytes for p in self.parts])[:-1])


def _q(bits: int, position: int, run: int, block: int) -> Part:
    return Part("q", block * bits // 8, Plane(bits, position, run))


_D, _M, _SCALES6 = Part("d", 2), Part("m", 2), Part("scale", 12)


def _format(name: str, bits: int, group: int, zero: int, parts: tuple[Part, ...], **rest: object) -> tuple[str, Format]:
    return name, Format(DTYPES[name], bits, group, zero, parts, **rest)  # type: ignore[arg-type]


FORMATS: dict[str, Format] = dict((
    _format("q4_0", 4, 32, 8, (_D, _q(4, 0, 16, 32))),
    _format("q4_1", 4, 32, 0, (_D, _M, _q(4, 0, 16, 32)), mins="add"),
    _format("q5_0", 5, 32, 16, (_D, _q(1, 4, 1, 32), _q(4, 0, 16, 32))),
    _format("q5_1", 5, 32, 0, (_D, _M, _q(1, 4, 1, 32), _q(4, 0, 16, 32)), mins="add"),
    _format("q8_0", 8, 32, 0, (_D, _q(8, 0, 32, 32))),
    _format("q2_k", 2, 16, 0, (Part("scale", 16, Plane(4, 0, 16)), _q(2, 0, 32, 256), _D, _M),
            mins="subtract", scale_bits=4),
    _format("q3_k", 3, 16, 4, (_q(1, 2, 32, 256), _q(2, 0, 32, 256), Part("scale", 8, Plane(4, 0, 8)),
                               Part("scale", 4, Plane(2, 4, 4)), _D), scale_bits=6, scale_zero=32),
    _format("q4_k", 4, 32, 0, (_D, _M, _SCALES6, _q(4, 0, 32, 256)), mins="subtract", scale_bits=6),
    _format("q5_k", 5, 32, 0, (_D, _M, _SCALES6, _q(1, 4, 32, 256), _q(4, 0, 32, 256)), mins="subtract", scale_bits=6),
    _format("q6_k", 6, 16, 32, (_q(4, 0, 64, 256), _q(2, 4, 32, 256), Part("scale", 16, Plane(8, 0, 16)), _D),
            scale_bits=8, scale_signed=True),
))  # fmt: skip
DENSE = ("f32", "f16", "bf16")
DIRECT = (*FORMATS, *DENSE)  # dtypes of weights that kernels compute with in packed form


def is_direct(dtype: DType) -> bool:
    """Whether linears compute with this weight dtype as it is; others are converted to q8_0 by `requantize`."""
    return dtype.name in DIRECT


@dataclass(frozen=True)
class Raw:
    """A block format taken apart without loss, all as stored: q and scales unsigned [..., blocks, count], d and m as
    the bits of f16 [..., blocks] (m None where the format has none)."""

    q: Bytes
    d: NDArray[np.uint16]
    m: NDArray[np.uint16] | None
    scales: Bytes | None


def take_apart(fmt: Format, raw: Bytes) -> Raw:
    """raw uint8 [..., blocks * block_bytes] → its parts."""
    blocks = raw.reshape(*raw.shape[:-1], -1, fmt.dtype.block_bytes)
    found: dict[str, np.ndarray] = {}
    for part, start in zip(fmt.parts, fmt.offsets):
        data = blocks[..., start : start + part.bytes]
        if part.kind in "dm":
            found[part.kind] = np.ascontiguousarray(data).view("<u2")[..., 0]
            continue
        values = part.plane.decode(data) if part.plane else _decode_scales6(data)
        if part.plane and part.plane.position:
            values = values << np.uint8(part.plane.position)
        if part.kind in found:
            values = found[part.kind] | values
        found[part.kind] = values
    return Raw(found["q"], found["d"], found.get("m"), found.get("scale"))


def put_together(fmt: Format, parts: Raw) -> Bytes:
    """The inverse of `take_apart`."""
    lead = parts.d.shape
    out = np.empty((*lead, fmt.dtype.block_bytes), np.uint8)
    for part, start in zip(fmt.parts, fmt.offsets):
        target = out[..., start : start + part.bytes]
        if part.kind in "dm":
            half = parts.d if part.kind == "d" else parts.m
            target[...] = np.ascontiguousarray(half, dtype="<u2")[..., None].view(np.uint8)
            continue
        values = parts.q if part.kind == "q" else parts.scales
        assert values is not None
        if part.plane is None:
            target[...] = _encode_scales6(values)
        elif part.plane.bits == 8:
            target[...] = values
        else:
            bits = (values >> np.uint8(part.plane.position)) & np.uint8((1 << part.plane.bits) - 1)
            target[...] = part.plane.encode(bits)
    return out.reshape(*lead[:-1], -1)


def _decode_scales6(data: Bytes) -> Bytes:
    """Q4_K's 12 bytes → 8 scales, 8 mins of 6 bits: the first four of each whole, above them the others' high bits."""
    first, second, low = data[..., 0:4], data[..., 4:8], data[..., 8:12]
    four, high = np.uint8(15), np.uint8(0x30)
    return np.concatenate([
        first & np.uint8(63), (low & four) | ((first >> np.uint8(2)) & high),
        second & np.uint8(63), (low >> np.uint8(4)) | ((second >> np.uint8(2)) & high),
    ], axis=-1)  # fmt: skip


def _encode_scales6(values: Bytes) -> Bytes:
    a, b, c, d = (values[..., i : i + 4] for i in (0, 4, 8, 12))
    top, four = np.uint8(0x30), np.uint8(15)
    return np.concatenate([
        a | ((b & top) << np.uint8(2)), c | ((d & top) << np.uint8(2)), (b & four) | ((d & four) << np.uint8(4)),
    ], axis=-1)  # fmt: skip


@dataclass(frozen=True)
class Fields:
    """What a product computes with: q int8 [..., K], already less zero; scale and offset f32 [..., K / group], the
    offset None where the format has none."""

    q: NDArray[np.int8]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32] | None


def fields(dtype: DType, raw: Bytes) -> Fields:
    """raw uint8 [..., K / block * block_bytes] of a direct block format → its integers, scales and offsets."""
    fmt = FORMATS[dtype.name]
    parts = take_apart(fmt, raw)
    lead = raw.shape[:-1]
    q = parts.q.reshape(*lead, -1).view(np.int8)
    scale = parts.d.view(np.float16).astype(np.float32)
    offset = None if parts.m is None else parts.m.view(np.float16).astype(np.float32)
    if parts.scales is not None:
        integers = parts.scales.view(np.int8) if fmt.scale_signed else parts.scales
        groups = integers[..., : fmt.groups].astype(np.float32) - np.float32(fmt.scale_zero)
        scale = (scale[..., None] * groups).reshape(*lead, -1)
        if offset is not None:
            offset = -(offset[..., None] * integers[..., fmt.groups :].astype(np.float32)).reshape(*lead, -1)
    return Fields(q - np.int8(fmt.zero) if fmt.zero else q, scale, offset)
