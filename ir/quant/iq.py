"""GGUF's types whose weights are points of grids, or digits, recoded into formats of codes, without loss.

Each reader takes blocks, uint8 [..., blocks, block bytes], and gives them as the `Raw` of another format: codes, the
bits of d and a scale for each group. The layouts are those of ggml's `block_*` structures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..types import DTYPES, DType
from . import code_books
from .formats import FORMATS, Bytes, Raw, put_together

CHUNK = 1 << 20  # values recoded at a time


def _bytes_as(kind: str, blocks: Bytes, first: int, end: int) -> np.ndarray:
    """Bytes first .. end of every block as little-endian integers, [..., blocks, count]."""
    return np.ascontiguousarray(blocks[..., first:end]).view(kind)


def _half(blocks: Bytes, at: int) -> NDArray[np.uint16]:
    return _bytes_as("<u2", blocks, at, at + 2)[..., 0]


def _fields(data: np.ndarray, bits: int, step: int, count: int) -> np.ndarray:
    """`count` fields of `bits` bits from each integer, `step` bits apart, the lowest first: [..., integers * count]."""
    shifts = (step * np.arange(count)).astype(data.dtype)
    return (data[..., None] >> shifts & data.dtype.type((1 << bits) - 1)).reshape(*data.shape[:-1], -1)


def _raw(q: Bytes, d: NDArray[np.uint16], scales: np.ndarray) -> Raw:
    return Raw(q, d, None, scales.astype(np.uint8))


def _points(grid: Bytes, index: np.ndarray) -> Bytes:
    """Points of a grid by their indices: [..., count] → [..., count * coordinates]."""
    whole = grid.view(f"V{grid.shape[1]}")[:, 0]  # a point is one element, so that taking is one copy
    return whole[index].view(np.uint8).reshape(*index.shape[:-1], -1)


def _signed(points: Bytes, signs: Bytes, bit: int) -> Bytes:
    return points | signs << np.uint8(bit)


_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # of eight values by a byte
_EVEN_SIGNS = _SIGNS[[i | (i.bit_count() & 1) << 7 for i in range(128)]]  # seven bits, the eighth makes the count even


def _iq2_xxs(blocks: Bytes) -> Raw:
    words = _bytes_as("<u4", blocks, 2, 66)  # of 32 values: four indices of 8 bits, then 4 * 7 bits of signs, the scale
    index, rest = np.ascontiguousarray(words[..., ::2]).view(np.uint8), words[..., 1::2]
    q = _signed(_points(code_books.IQ2_XXS_GRID, index), _points(_EVEN_SIGNS, _fields(rest, 7, 7, 4)), 2)
    return _raw(q, _half(blocks, 0), rest >> 28)


def _iq2_xs(blocks: Bytes) -> Raw:
    words = _bytes_as("<u2", blocks, 2, 66)  # of 8 values: an index of 9 bits, 7 bits of signs
    q = _signed(_points(code_books.IQ2_XS_GRID, words & 511), _points(_EVEN_SIGNS, words >> 9), 2)
    return _raw(q, _half(blocks, 0), _fields(blocks[..., 66:74], 4, 4, 2))


def _iq2_s(blocks: Bytes) -> Raw:
    index = blocks[..., 2:34] | _fields(blocks[..., 66:74], 2, 2, 4).astype(np.uint16) << 8
    q = _signed(_points(code_books.IQ2_S_GRID, index), _points(_SIGNS, blocks[..., 34:66]), 2)
    return _raw(q, _half(blocks, 0), _fields(blocks[..., 74:82], 4, 4, 2))


def _iq3_xxs(blocks: Bytes) -> Raw:
    words = _bytes_as("<u4", blocks, 66, 98)  # of 32 values: 4 * 7 bits of signs, the scale
    q = _signed(_points(code_books.IQ3_XXS_GRID, blocks[..., 2:66]), _points(_EVEN_SIGNS, _fields(words, 7, 7, 4)), 3)
    return _raw(q, _half(blocks, 0), words >> 28)


def _iq3_s(blocks: Bytes) -> Raw:
    index = blocks[..., 2:66] | _fields(blocks[..., 66:74], 1, 1, 8).astype(np.uint16) << 8
    q = _signed(_points(code_books.IQ3_S_GRID, index), _points(_SIGNS, blocks[..., 74:106]), 3)
    return _raw(q, _half(blocks, 0), _fields(blocks[..., 106:110], 4, 4, 2))


def _iq1_s(blocks: Bytes) -> Raw:
    high = _bytes_as("<u2", blocks, 34, 50)  # of 32 values: the high 3 bits of 4 indices, scale, sign
    index = blocks[..., 2:34] | _fields(high, 3, 3, 4) << np.uint16(8)
    q = _signed(_points(code_books.IQ1_GRID, index), np.repeat(high >> 15, 32, axis=-1).astype(np.uint8), 2)
    return _raw(q, _half(blocks, 0), high >> 12 & 7)


def _iq1_m(blocks: Bytes) -> Raw:
    high = _fields(blocks[..., 32:48], 4, 4, 2)  # of 8 values: the high 3 bits of the index, the sign of the eighth
    index = blocks[..., :32] | (high & 7).astype(np.uint16) << np.uint16(8)
    q = _signed(_points(code_books.IQ1_GRID, index), np.repeat(high >> 3, 8, axis=-1), 2)
    words = _bytes_as("<u2", blocks, 48, 56)  # four scales of 3 bits, a quarter of d
    d = np.bitwise_or.reduce(words >> 12 << np.arange(0, 16, 4, dtype=np.uint16), axis=-1)
    return _raw(q, d, _fields(words, 3, 3, 4))


def _tq1_0(blocks: Bytes) -> Raw:
    """A byte is a fraction of 256 whose digits in base 3 are the values: multiplied by 3, the next one overflows."""
    powers = np.array([[1], [3], [9], [27], [81]], np.uint8)
    parts = ((0, 32, 5), (32, 48, 5), (48, 52, 4))  # first and end of the bytes, the digits that each has
    rest = [blocks[..., None, first:end] * powers[:count] for first, end, count in parts]
    q = np.concatenate([r.reshape(*blocks.shape[:-1], -1) for r in rest], axis=-1).astype(np.uint16) * 3 >> 8
    return Raw(q.astype(np.uint8), _half(blocks, 52), None, None)


# Of each type: the format that it is recoded into, and its reader.
RECODED: Mapping[str, tuple[DType, Callable[[Bytes], Raw]]] = {
    "iq1_s": (DTYPES["iq1_g32"], _iq1_s), "iq1_m": (DTYPES["iq1_g16"], _iq1_m),
    "iq2_xxs": (DTYPES["iq2_g32"], _iq2_xxs), "iq2_xs": (DTYPES["iq2_g16"], _iq2_xs),
    "iq2_s": (DTYPES["iq2_g16"], _iq2_s), "iq3_xxs": (DTYPES["iq3_xxs_g32"], _iq3_xxs),
    "iq3_s": (DTYPES["iq3_s_g32"], _iq3_s), "tq1_0": (DTYPES["tq2_0"], _tq1_0),
}  # fmt: skip


def computed(dtype: DType) -> DType:
    """The dtype that weights of this one are computed with as."""
    return RECODED[dtype.name][0] if dtype.name in RECODED else dtype


def recode(dtype: DType, raw: Bytes) -> Bytes:
    """uint8 [..., K / block * block_bytes] of any block dtype → the same values as `computed(dtype)`."""
    if dtype.name not in RECODED:
        return raw
    to, read = RECODED[dtype.name]
    rows = raw.reshape(-1, raw.shape[-1] // dtype.block_bytes, dtype.block_bytes)
    out = np.empty((rows.shape[0], rows.shape[1] * dtype.block // to.block * to.block_bytes), np.uint8)
    step = max(1, CHUNK // (rows.shape[1] * dtype.block))
    for first in range(0, rows.shape[0], step):
        out[first : first + step] = put_together(FORMATS[to.name], read(rows[first : first + step]))
    return out.reshape(*raw.shape[:-1], -1)
