"""GGUF's block formats as data: where bits, scales and mins lie, and what they mean.

Every directly computed format is one `Format`: a block holds unsigned `bits`-bit values in bit planes, perhaps an f16
scale `d`, perhaps an f16 `m` (an offset that is added) or `dmin` (a scale of integer mins that are subtracted), and
perhaps packed small scales and mins, one per group. To whoever computes, all of them are the same: groups of 16 or 32
values `scale * (q - zero) + offset`, or `scale * codes[q] + offset`, with scale = d times the group's, offset = m or
minus dmin times its min. (Both products are exact in f32.) The layouts are those of ggml's `block_*` structures; the
last rows are our own: what `ir.quant.iq` makes of types whose weights are points of grids, and integers in groups as
GPTQ and AWQ have them (a zero point is a min whose scale is the group's own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..types import DTYPES, DType
from . import code_books

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
    """How one block dtype computes. `zero` is subtracted from q, or, with a code book, `codes` are looked up by it and
    all of them at least -zero; `mins` says what the second f16 is: "" none, "add" an offset, "subtract" the scale of
    integer mins. `scale_kind`, a row of SCALES, says what the `scale_bits` of a group's scale mean; `scale_zero` is
    subtracted; `unit` multiplies d."""

    dtype: DType
    bits: int
    group: int
    zero: int
    parts: tuple[Part, ...]
    mins: str = ""
    scale_bits: int = 0
    scale_zero: int = 0
    scale_kind: str = "unsigned"
    codes: tuple[int, ...] = ()
    unit: float = 1.0

    def __post_init__(self) -> None:
        size = sum(p.bytes for p in self.parts)
        if size != self.dtype.block_bytes:
            raise ValueError(f"{self.dtype}: its parts have {size} bytes, a block has {self.dtype.block_bytes}")
        if self.group not in (16, 32) or self.block not in (32, 64, 128, 256):
            raise ValueError(f"{self.dtype}: groups are of 16 or 32 values, blocks of 32, 64, 128 or 256")

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
    def has_d(self) -> bool:
        return any(p.kind == "d" for p in self.parts)

    @property
    def signed(self) -> bool:
        """What a dot product takes is a two's complement byte rather than 0..127, from which `zero` is subtracted."""
        return self.bits == 8 or min(self.codes, default=0) + self.zero < 0

    @property
    def dot_bits(self) -> int:
        """Bits of what a dot product takes."""
        return 8 if self.signed else (max(self.codes) + self.zero).bit_length() if self.codes else self.bits

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each part starts in a block."""
        return tuple(int(n) for n in np.cumsum([0] + [p.bytes for p in self.parts])[:-1])


def _q(bits: int, position: int, run: int, block: int) -> Part:
    return Part("q", block * bits // 8, Plane(bits, position, run))


def _e8m0(s: Bytes) -> NDArray[np.float32]:
    return np.ldexp(np.float32(1), s.astype(np.int32) - 128)


def _ue4m3(s: Bytes) -> NDArray[np.float32]:
    fraction, exponent = (s & 7).astype(np.float32), (s >> 3 & 15).astype(np.int32)
    value = np.ldexp(fraction + 8 * (exponent > 0), np.maximum(exponent, 1) - 11)
    return np.where(s == 0x7F, np.float32(0), value)


# What a group's packed scale means as f32.
SCALES: dict[str, Callable[[Bytes], NDArray[np.float32]]] = {
    "unsigned": lambda s: s.astype(np.float32),
    "signed": lambda s: s.view(np.int8).astype(np.float32),
    "odd": lambda s: (2 * s + 1).astype(np.float32),  # for s below 128
    "e8m0": _e8m0,  # 2 ** (s - 128), half of the OCP's: its codes are doubled
    "ue4m3": _ue4m3,  # half of the 8-bit float without its sign; its NaN is zero
}

_D, _M, _SCALES6 = Part("d", 2), Part("m", 2), Part("scale", 12)


def _format(name: str, bits: int, group: int, zero: int, parts: tuple[Part, ...], **rest: object) -> tuple[str, Format]:
    return name, Format(DTYPES[name], bits, group, zero, parts, **rest)  # type: ignore[arg-type]


def _codes(name: str, bits: int, group: int, codes: tuple[int, ...], unit: float) -> tuple[str, Format]:
    """Blocks of 256: an f16 d, 4-bit odd scales, planes of codes."""
    scales = Part("scale", 128 // group, Plane(4, 0, 128 // group))
    planes = (_q(n, position, 32 * n, 256) for n, position in planes_of(bits))
    return _format(name, bits, group, -min(codes), (_D, scales, *planes), scale_bits=4, scale_kind="odd",
                   codes=codes, unit=unit)  # fmt: skip


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
            scale_bits=8, scale_kind="signed"),
    _format("iq4_nl", 4, 32, 0, (_D, _q(4, 0, 16, 32)), codes=code_books.IQ4_NL),
    _format("iq4_xs", 4, 32, 0, (_D, Part("scale", 2, Plane(2, 4, 1)), Part("scale", 4, Plane(4, 0, 1)),
                                 _q(4, 0, 16, 256)), scale_bits=6, scale_zero=32, codes=code_books.IQ4_NL),
    _format("tq2_0", 2, 32, 1, (_q(2, 0, 32, 256), _D)),
    _format("mxfp4", 4, 32, 12, (Part("scale", 1, Plane(8, 0, 1)), _q(4, 0, 16, 32)), scale_bits=8, scale_kind="e8m0",
            codes=code_books.E2M1),
    _format("nvfp4", 4, 16, 12, (Part("scale", 4, Plane(8, 0, 4)), _q(4, 0, 8, 64)), scale_bits=8, scale_kind="ue4m3",
            codes=code_books.E2M1),
    _codes("iq1_g32", 3, 32, code_books.IQ1, 1 / 8),
    _codes("iq1_g16", 3, 16, code_books.IQ1, 1 / 8),
    _codes("iq2_g32", 3, 32, code_books.IQ2, 1 / 8),
    _codes("iq2_g16", 3, 16, code_books.IQ2, 1 / 8),
    _codes("iq3_xxs_g32", 4, 32, code_books.IQ3_XXS, 1 / 4),
    _codes("iq3_s_g32", 4, 32, code_books.IQ3_S, 1.0),
    _format("int4_g128", 4, 32, 8, (_D, _q(4, 0, 16, 128))),
    _format("uint4_g128", 4, 32, 0, (_D, _M, Part("scale", 8, Plane(8, 0, 8)), _q(4, 0, 16, 128)), mins="subtract",
            scale_bits=8),
    _format("uint4_g32", 4, 32, 0, (_D, _M, Part("scale", 2, Plane(8, 0, 2)), _q(4, 0, 16, 32)), mins="subtract",
            scale_bits=8),
))  # fmt: skip
DENSE = ("f32", "f16", "bf16")
DIRECT = (*FORMATS, *DENSE)  # dtypes of weights that kernels compute with in packed form


def is_direct(dtype: DType) -> bool:
    """Whether linears compute with this weight dtype as it is; others are recoded first."""
    return dtype.name in DIRECT


@dataclass(frozen=True)
class Raw:
    """A block format taken apart without loss, all as stored: q and scales unsigned [..., blocks, count], d and m as
    the bits of f16 [..., blocks]. What the format does not have is None."""

    q: Bytes
    d: NDArray[np.uint16] | None
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
    return Raw(found["q"], found.get("d"), found.get("m"), found.get("scale"))


def put_together(fmt: Format, parts: Raw) -> Bytes:
    """The inverse of `take_apart`."""
    lead = parts.q.shape[:-1]
    out = np.empty((*lead, fmt.dtype.block_bytes), np.uint8)
    for part, start in zip(fmt.parts, fmt.offsets):
        target = out[..., start : start + part.bytes]
        if part.kind in "dm":
            half = parts.d if part.kind == "d" else parts.m
            assert half is not None
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
    q = parts.q.reshape(*lead, -1)
    signed = np.array(fmt.codes, np.int8)[q] if fmt.codes else q.view(np.int8) - np.int8(fmt.zero)
    scale = np.ones((*parts.q.shape[:-1], fmt.groups), np.float32)
    if parts.d is not None:
        scale *= parts.d.view(np.float16).astype(np.float32)[..., None] * np.float32(fmt.unit)
    offset = None if parts.m is None else parts.m.view(np.float16).astype(np.float32)
    if parts.scales is not None:
        scale *= SCALES[fmt.scale_kind](parts.scales[..., : fmt.groups]) - np.float32(fmt.scale_zero)
        if offset is not None:
            offset = -(offset[..., None] * parts.scales[..., fmt.groups :].astype(np.float32)).reshape(*lead, -1)
    return Fields(signed, scale.reshape(*lead, -1), offset)
