"""Layout "panel16": rows in panels of 16, one row per SIMD lane, each panel one contiguous stream.

Per panel, per block: d of the 16 rows as f16, then m or dmin as f16, then the packed scales as words of 16 lanes; then,
for each 32 values, the bit planes, low bits first. A plane of p bits has p lines of 64 bytes: quad j (values 4j .. 4j+3
of the 32) sits in line j % p at shift p * (j // p), byte 4r + i of a line belonging to row r, value 4j + i.
The scales are planes too: value v of a plane of p bits sits in word v // (w / p) at shift p * (v % (w / p)), a word
having w = 32 bits, or as many as the plane has of a row where these are fewer (8 or 16).
Dense panels are [k][16 rows]; bf16 is [k / 2][16 rows][2], an odd K padded with zero. Rows are padded with zeros to a
multiple of 16. Leading dimensions (experts) are packed one after another. Packing loses nothing: `unpack` inverts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from ..types import DType, Type, numpy_dtype
from .formats import FORMATS, Bytes, Format, Raw, planes_of, put_together, take_apart

ROWS = 16
CHUNK = 1 << 18  # values worked on at a time: what the second cache holds with its temporaries


def known_shape(type: Type) -> tuple[int, ...]:
    """The shape of a weight. Raises TypeError where a dimension is a symbol, as only activations have them."""
    if any(not isinstance(d, int) for d in type.shape):
        raise TypeError(f"the shape of the weight {type} must be known")
    return tuple(d for d in type.shape if isinstance(d, int))


def packed_bytes(type: Type) -> int:
    """Bytes of a weight of this type, shape [..., N, K] of ints, in layout panel16."""
    *lead, n, k = known_shape(type)
    return prod(lead) * (-(-n // ROWS)) * panel_bytes(type.dtype, k)


def panel_bytes(dtype: DType, k: int) -> int:
    """Bytes of one panel of 16 rows of k values."""
    if dtype.is_block:
        return ROWS * k // dtype.block * dtype.block_bytes
    return ROWS * (k + k % 2 if dtype.name == "bf16" else k) * dtype.block_bytes


def pack(type: Type, raw: np.ndarray) -> Bytes:
    """Row-major bytes or array of a weight [..., N, K] → flat uint8 in layout panel16.

    Works through the weight in pieces, so that memory stays near twice the weight. Raises KeyError for a dtype that has
    no panels."""
    rows = _as_rows(type, raw)
    out = np.empty(packed_bytes(type), np.uint8)
    for piece, target, count in _pieces(type, rows, out):
        if count < piece.shape[0] or piece.shape[0] % ROWS:
            padded = np.zeros((-(-count // ROWS) * ROWS, piece.shape[1]), piece.dtype)
            padded[:count] = piece[:count]
            piece = padded
        if type.dtype.is_block:
            _pack_block(FORMATS[type.dtype.name], piece, target)
        else:
            _pack_dense(type, piece, target)
    return out


def unpack(type: Type, packed: Bytes) -> np.ndarray:
    """Inverse of `pack`: raw bytes uint8 [..., N, row bytes] for block dtypes, an array [..., N, K] for dense ones."""
    *lead, n, k = known_shape(type)
    if type.dtype.is_block:
        out = np.empty((prod(lead) * n, k // type.dtype.block * type.dtype.block_bytes), np.uint8)
    else:
        out = np.empty((prod(lead) * n, k), numpy_dtype(type.dtype))
    for piece, source, count in _pieces(type, out, packed):
        if type.dtype.is_block:
            piece[:] = _unpack_block(FORMATS[type.dtype.name], source, k)[:count]
        else:
            piece[:] = _unpack_dense(type, source)[:count]
    return out.reshape(*lead, n, out.shape[-1])


def _as_rows(type: Type, raw: np.ndarray) -> np.ndarray:
    k = known_shape(type)[-1]
    if type.dtype.is_block:
        return raw.reshape(-1, k // type.dtype.block * type.dtype.block_bytes)
    element = numpy_dtype(type.dtype)
    return (raw.view(element) if raw.dtype == np.uint8 else raw).reshape(-1, k)


def _pieces(type: Type, rows: np.ndarray, packed: Bytes) -> Iterator[tuple[np.ndarray, Bytes, int]]:
    """(rows, their packed bytes [panels, panel bytes], number of rows) of whole panels, a cacheful at a time."""
    *lead, n, k = known_shape(type)
    size, panels = panel_bytes(type.dtype, k), -(-n // ROWS)
    step = max(1, CHUNK // (ROWS * k))
    for matrix in range(prod(lead)):
        for first in range(0, panels, step):
            last = min(first + step, panels)
            start, stop = matrix * n + first * ROWS, matrix * n + min(last * ROWS, n)
            base = matrix * panels
            target = packed[(base + first) * size : (base + last) * size].reshape(last - first, size)
            yield rows[start:stop], target, stop - start


def _lanes(values: np.ndarray) -> np.ndarray:
    """[panels * 16, blocks, count] → [panels, blocks, count, 16]"""
    return values.reshape(-1, ROWS, *values.shape[1:]).transpose(0, 2, 3, 1)


def _rows(values: np.ndarray) -> np.ndarray:
    """[panels, blocks, count, 16] → [panels * 16, blocks, count], contiguous"""
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)).reshape(-1, values.shape[1], values.shape[2])


def _in_bytes(bits: int) -> np.uint32:
    """A mask of the low `bits` bits of each byte."""
    return np.uint32(0x01010101 * ((1 << bits) - 1))


def _word(fmt: Format, bits: int) -> tuple[np.dtype, np.ndarray]:
    """The type of the words of a plane of scales, and the shifts of the values in one."""
    size = min(32, fmt.scale_count * bits)
    return np.dtype(f"<u{size // 8}"), np.arange(0, size, bits, dtype=np.uint32)


def _pack_block(fmt: Format, rows: Bytes, out: Bytes) -> None:
    parts = take_apart(fmt, rows)
    blocks = out.reshape(out.shape[0], -1, ROWS * fmt.dtype.block_bytes)
    at = 0
    for half in (parts.d, parts.m):
        if half is not None:
            lanes = np.ascontiguousarray(_lanes(half[..., None]).astype("<u2", copy=False))
            blocks[..., at : at + 2 * ROWS] = lanes.view(np.uint8)[..., 0, :]
            at += 2 * ROWS
    if parts.scales is not None:
        for bits, position in planes_of(fmt.scale_bits):
            word, shifts = _word(fmt, bits)
            field = (parts.scales >> np.uint8(position)) & np.uint8((1 << bits) - 1)
            field = field.astype(np.uint32).reshape(*field.shape[:-1], -1, len(shifts))
            words = np.bitwise_or.reduce(field << shifts, axis=-1)
            lanes = np.ascontiguousarray(_lanes(words).astype(word)).view(np.uint8)
            size = lanes.shape[-2] * word.itemsize * ROWS
            blocks[..., at : at + size] = lanes.reshape(*lanes.shape[:2], size)
            at += size
    quads = np.ascontiguousarray(_lanes(np.ascontiguousarray(parts.q).view("<u4")))
    quads = quads.reshape(*quads.shape[:2], -1, 8, ROWS)  # [panels, blocks, 32s, quads, rows] of 4 values each
    lines = blocks[..., at:].reshape(*quads.shape[:3], fmt.bits, 4 * ROWS)
    line = 0
    for bits, position in planes_of(fmt.bits):
        field = (quads >> np.uint32(position)) & _in_bytes(bits)
        field = field.reshape(*field.shape[:3], 8 // bits, bits, ROWS)
        plane = field[..., 0, :, :]
        for step in range(1, 8 // bits):
            plane = plane | (field[..., step, :, :] << np.uint32(bits * step))
        lines[..., line : line + bits, :] = np.ascontiguousarray(plane).view(np.uint8)
        line += bits


def _unpack_block(fmt: Format, packed: Bytes, k: int) -> Bytes:
    blocks = packed.reshape(packed.shape[0], -1, ROWS * fmt.dtype.block_bytes)
    at, halves = 0, list[np.ndarray | None]()
    for present in (fmt.has_d, bool(fmt.mins)):
        if present:
            half = np.ascontiguousarray(blocks[..., at : at + 2 * ROWS]).view("<u2")
            halves.append(_rows(half[..., None, :])[..., 0])
            at += 2 * ROWS
        else:
            halves.append(None)
    scales = None
    if fmt.scale_bits:
        scales = np.zeros((packed.shape[0] * ROWS, blocks.shape[1], fmt.scale_count), np.uint8)
        for bits, position in planes_of(fmt.scale_bits):
            word, shifts = _word(fmt, bits)
            size = fmt.scale_count * bits // 8 * ROWS
            words = np.ascontiguousarray(blocks[..., at : at + size]).view(word)
            words = _rows(words.reshape(*words.shape[:2], -1, ROWS))
            values = (words[..., None].astype(np.uint32) >> shifts) & np.uint32((1 << bits) - 1)
            scales |= (values.reshape(scales.shape) << np.uint32(position)).astype(np.uint8)
            at += size
    lines = np.ascontiguousarray(blocks[..., at:]).view("<u4")
    lines = lines.reshape(*blocks.shape[:2], fmt.block // 32, fmt.bits, ROWS)
    quads = np.zeros((*lines.shape[:3], 8, ROWS), np.uint32)
    line = 0
    for bits, position in planes_of(fmt.bits):
        plane = lines[..., line : line + bits, :]
        for step in range(8 // bits):
            field = (plane >> np.uint32(bits * step)) & _in_bytes(bits)
            quads[..., step * bits : (step + 1) * bits, :] |= field << np.uint32(position)
        line += bits
    q = _rows(quads.reshape(*blocks.shape[:2], fmt.block // 4, ROWS)).view(np.uint8)
    d, m = halves
    return put_together(fmt, Raw(q, d, m, scales))


def _pack_dense(type: Type, rows: np.ndarray, out: Bytes) -> None:
    panels = rows.reshape(-1, ROWS, rows.shape[1])
    if type.dtype.name == "bf16":
        if rows.shape[1] % 2:
            panels = np.pad(panels, ((0, 0), (0, 0), (0, 1)))
        panels = np.ascontiguousarray(panels).view("<u4")
    out.view(panels.dtype).reshape(panels.shape[0], panels.shape[2], ROWS)[:] = panels.transpose(0, 2, 1)


def _unpack_dense(type: Type, packed: Bytes) -> np.ndarray:
    element, k = numpy_dtype(type.dtype), known_shape(type)[-1]
    word = np.dtype("<u4") if type.dtype.name == "bf16" else element
    panels = np.ascontiguousarray(packed.view(word).reshape(packed.shape[0], -1, ROWS).transpose(0, 2, 1))
    return panels.view(element).reshape(-1, panels.shape[2] * word.itemsize // element.itemsize)[:, :k]
