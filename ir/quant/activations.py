"""Rows of activations quantised to int8, as the C buffers hold them: K bytes q, K / 32 f32 scales, K / 16 i32 sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..types import DType
from .formats import Bytes

SUM_GROUP = 16  # values per stored sum: the least group that a weight format has


@dataclass(frozen=True)
class Activation:
    """q int8 [..., K], d f32 [..., K / 32], sums i32 [..., K / SUM_GROUP]."""

    q: NDArray[np.int8]
    d: NDArray[np.float32]
    sums: NDArray[np.int32]


def row_bytes(dtype: DType, k: int) -> int:
    """Bytes of a row of k activations."""
    return k // dtype.block * dtype.block_bytes


def encode_activation(x: Activation) -> Bytes:
    """uint8 [..., row bytes]"""
    parts = (x.q, x.d.astype("<f4", copy=False), x.sums.astype("<i4", copy=False))
    return np.concatenate([np.ascontiguousarray(p).view(np.uint8) for p in parts], axis=-1)


def decode_activation(dtype: DType, rows: Bytes) -> Activation:
    """The inverse of `encode_activation`."""
    k = rows.shape[-1] // dtype.block_bytes * dtype.block
    scales = k + k // dtype.block * 4
    return Activation(
        np.ascontiguousarray(rows[..., :k]).view(np.int8),
        np.ascontiguousarray(rows[..., k:scales]).view("<f4"),
        np.ascontiguousarray(rows[..., scales:]).view("<i4"),
    )
