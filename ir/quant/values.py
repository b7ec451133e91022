"""Weights as f32: the meaning of every dtype, as gguf-py defines it bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..types import DType, numpy_dtype
from .formats import Bytes, fields
from .iq import computed, recode

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
        out[first : first + step] = _values(computed(dtype), recode(dtype, piece))
    return out.reshape(shape)


def _values(dtype: DType, raw: Bytes) -> NDArray[np.float32]:
    """scale * q + offset: gguf-py's order of operations, one formula for all."""
    parts = fields(dtype, raw)
    q = parts.q.reshape(*parts.scale.shape, -1).astype(np.float32)
    q *= parts.scale[..., None]
    if parts.offset is not None:
        q += parts.offset[..., None]
    return q.reshape(raw.shape[0], -1)
