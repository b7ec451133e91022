"""Weights to block formats by rounding to nearest: f32 → raw blocks.

A group's scale spans its range exactly; scales and mins are rounded next, and then the values, against the scale and
min as they are stored. No weighting and no search: what a file quantised with an importance matrix does better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import DTYPES
from .formats import FORMATS, SCALES, Bytes, Format, Raw, put_together

ROUNDED = ("q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


def round_to_blocks(dtype: str, values: NDArray[np.float32]) -> Bytes:
    """values f32 [..., K] → raw uint8 [..., K / block * block_bytes] of a dtype of ROUNDED.

    Raises ValueError for another dtype or a K that is no multiple of its block.
    """
    if dtype not in ROUNDED or values.shape[-1] % DTYPES[dtype].block:
        raise ValueError(f"{list(values.shape)} cannot be rounded to {dtype}")
    fmt = FORMATS[dtype]
    groups = values.reshape(*values.shape[:-1], -1, fmt.groups, fmt.group)
    make = _signed if dtype == "q8_0" else _with_mins if fmt.mins else _centred
    parts = make(fmt, groups)
    return put_together(fmt, parts).reshape(*values.shape[:-1], -1)


def _signed(fmt: Format, x: NDArray[np.float32]) -> Raw:
    """Steps of 1/127 of a group's largest magnitude, against the scale before it is stored, halves away from zero: as
    gguf does."""
    d = np.abs(x).max(-1) / np.float32(127)
    inverse = _quotient(np.ones_like(d), d)[..., None]
    steps = x * inverse
    q = np.copysign(np.floor(np.abs(steps) + np.float32(0.5)), steps).astype(np.int8)
    return Raw(q.view(np.uint8).reshape(*q.shape[:-2], -1), _bits(_half(d[..., 0])), None, None)


def _centred(fmt: Format, x: NDArray[np.float32]) -> Raw:
    """Each group's value of the largest magnitude becomes -zero, the end of the range with one more step."""
    scale = _extreme(x, -1) / np.float32(-fmt.zero)
    signed = fmt.scale_kind == "signed"
    lowest = -128 if signed else -fmt.scale_zero
    d = _half(_extreme(scale, -1) / np.float32(lowest))
    steps = np.rint(_quotient(scale, d[..., None])).clip(lowest, -lowest - 1).astype(np.int32)
    scales = (steps if signed else steps + fmt.scale_zero).astype(np.uint8)
    stored = d[..., None] * (SCALES[fmt.scale_kind](scales) - np.float32(fmt.scale_zero))
    q = np.rint(_quotient(x, stored[..., None])) + fmt.zero
    return Raw(_values(fmt, q), _bits(d), None, scales)


def _with_mins(fmt: Format, x: NDArray[np.float32]) -> Raw:
    """Values from a min that is at most 0, in even steps up to the group's largest."""
    top, most = np.float32((1 << fmt.bits) - 1), np.float32((1 << fmt.scale_bits) - 1)
    low = np.minimum(x.min(-1), 0)
    scale = (np.maximum(x.max(-1), 0) - low) / top
    d, dmin = _half(scale.max(-1) / most), _half(-low.min(-1) / most)
    scales = np.rint(_quotient(scale, d[..., None])).clip(0, most)
    mins = np.rint(_quotient(-low, dmin[..., None])).clip(0, most)
    q = np.rint(_quotient(x + (dmin[..., None] * mins)[..., None], (d[..., None] * scales)[..., None]))
    packed = np.concatenate([scales, mins], axis=-1).astype(np.uint8)
    return Raw(_values(fmt, q), _bits(d), _bits(dmin), packed)


def _extreme(x: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The value of the largest magnitude along an axis, with its sign."""
    at = np.expand_dims(np.abs(x).argmax(axis), axis)
    return np.take_along_axis(x, at, axis).squeeze(axis)


def _quotient(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """x / y, 0 where y is 0."""
    return np.divide(x, y, out=np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32), where=y != 0)


def _half(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x as f16 stores it; what is out of its range at its end."""
    return x.clip(-65504, 65504).astype(np.float16).astype(np.float32)


def _bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    return x.astype(np.float16).view(np.uint16)


def _values(fmt: Format, q: NDArray[np.float32]) -> Bytes:
    """Rounded values of groups [..., blocks, groups, group] → [..., blocks, block]."""
    return q.clip(0, (1 << fmt.bits) - 1).astype(np.uint8).reshape(*q.shape[:-2], -1)
