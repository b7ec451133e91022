"""Weights to and from f32: the meaning of every GGUF dtype, as gguf-py defines it bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import gguf
import numpy as np
from gguf import quants
from numpy.typing import NDArray

from ..types import DTYPES, DType, numpy_dtype
from .formats import FORMATS, Bytes, fields

CHUNK = 1 << 22  # values converted at a time, to bound temporaries


def dequantize(dtype: DType, raw: np.ndarray, shape: Sequence[int]) -> NDArray[np.float32]:
    """f32 array of `shape` from a weight's raw bytes (uint8) or, for float dtypes, its array (bf16 as uint16 bits).

    Raises NotImplementedError for the formats that only activations have, which no file holds."""
    shape = tuple(shape)
    if not dtype.is_block:
        element = numpy_dtype(dtype)
        values = raw.view(element) if raw.dtype == np.uint8 else raw
        if dtype.name == "bf16":
            return (values.astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return values.astype(np.float32).reshape(shape)
    if dtype.name.startswith("a8"):
        raise NotImplementedError(f"{dtype} is an activation dtype: use ir.quant.decode_activation")
    rows = raw.reshape(-1, shape[-1] // dtype.block * dtype.block_bytes)
    out = np.empty((rows.shape[0], shape[-1]), np.float32)
    step = max(1, CHUNK // shape[-1])
    for first in range(0, rows.shape[0], step):
        piece = rows[first : first + step]
        out[first : first + step] = _direct(dtype, piece) if dtype.name in FORMATS else _by_gguf(dtype, piece)
    return out.reshape(shape)


def _direct(dtype: DType, raw: Bytes) -> NDArray[np.float32]:
    """scale * q + offset: gguf-py's order of operations, one formula for all."""
    parts = fields(dtype, raw)
    q = parts.q.reshape(*parts.scale.shape, -1).astype(np.float32)
    q *= parts.scale[..., None]
    if parts.offset is not None:
        q += parts.offset[..., None]
    return q.reshape(raw.shape[0], -1)


def _by_gguf(dtype: DType, raw: Bytes) -> NDArray[np.float32]:
    if dtype.name == "q8_1":  # only activations of other engines have it; its second f16 is d * sum of q, not a value
        blocks = raw.reshape(-1, dtype.block_bytes)
        d = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
        return (d * np.ascontiguousarray(blocks[:, 4:36]).view(np.int8).astype(np.float32)).reshape(raw.shape[0], -1)
    return quants.dequantize(np.ascontiguousarray(raw), gguf.GGMLQuantizationType[dtype.name.upper()])


def quantize_q8_0(values: NDArray[np.float32]) -> Bytes:
    """f32 [..., K] → q8_0 raw bytes [..., K / 32 * 34]: d = max|x| / 127 as f16, q = nearest of x / d, halves away from
    zero, as ggml's reference quantiser."""
    return quants.quantize(np.ascontiguousarray(values, np.float32), gguf.GGMLQuantizationType.Q8_0)


def requantize(dtype: DType, raw: Bytes, shape: Sequence[int]) -> tuple[Bytes, float]:
    """Any GGUF dtype → (q8_0 raw bytes [..., K / 32 * 34], the greatest |error| of a weight, relative to the greatest
    |weight| of its block of 32)."""
    shape = tuple(shape)
    rows = raw.reshape(-1, raw.size // (int(np.prod(shape)) // shape[-1]))
    out = np.empty((rows.shape[0], shape[-1] // 32 * 34), np.uint8)
    worst, step, q8_0 = 0.0, max(1, CHUNK // shape[-1]), DTYPES["q8_0"]
    for first in range(0, rows.shape[0], step):
        piece = rows[first : first + step]
        values = dequantize(dtype, piece, (piece.shape[0], shape[-1]))
        out[first : first + step] = converted = quantize_q8_0(values)
        error = np.abs(dequantize(q8_0, converted, values.shape) - values).reshape(-1, 32).max(axis=1)
        top = np.abs(values).reshape(-1, 32).max(axis=1)
        worst = max(worst, float((error / np.where(top > 0, top, 1)).max(initial=0.0)))
    return out.reshape(*shape[:-1], -1), worst
