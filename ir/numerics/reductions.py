"""Reductions in the fixed 16-lane order, as bits.

The reduced axes, in ascending order of axis, are read as one row-major sequence x_0 … x_{n-1}, filled up with the
identity to a multiple of 16. Lane j starts at the identity and takes x_j, x_{j+16}, … in turn; then the lanes fold:
i with i+8, i+4, i+2, i+1. So a vector unit of any width gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from .elementary import maximum, minimum, quiet

Axes = int | tuple[int, ...]


@quiet
def reduce16(combine: Callable[[NDArray, NDArray], NDArray], identity: float, x: NDArray, axes: Axes) -> NDArray:
    """`x` without `axes`, reduced by `combine(accumulator, value)` in the 16-lane order; the dtype of `x`."""
    x = np.asarray(x)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    axes = tuple(sorted(a % x.ndim for a in axes))
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    n = prod(x.shape[a] for a in axes)
    rows = x.transpose(kept + axes).reshape(*(x.shape[a] for a in kept), n)
    start = x.dtype.type(identity)
    fill = np.full((*rows.shape[:-1], -n % 16), start, x.dtype)
    lines = np.concatenate([rows, fill], axis=-1).reshape(*rows.shape[:-1], -(-n // 16), 16)
    lanes = np.full((*rows.shape[:-1], 16), start, x.dtype)
    for i in range(lines.shape[-2]):
        lanes = combine(lanes, lines[..., i, :])
    for half in (8, 4, 2, 1):
        lanes = combine(lanes[..., :half], lanes[..., half : 2 * half])
    return lanes[..., 0]


def sum16(x: NDArray, axes: Axes = -1) -> NDArray:
    """Sum, identity +0."""
    return reduce16(np.add, 0.0, x, axes)


def prod16(x: NDArray, axes: Axes = -1) -> NDArray:
    """Product, identity 1."""
    return reduce16(np.multiply, 1.0, x, axes)


def max16(x: NDArray, axes: Axes = -1) -> NDArray:
    """Maximum by `maximum(accumulator, value)`, identity -inf; a NaN stays only where nothing follows in its lane."""
    return reduce16(maximum, -np.inf, x, axes)


def min16(x: NDArray, axes: Axes = -1) -> NDArray:
    """Minimum by `minimum(accumulator, value)`, identity +inf."""
    return reduce16(minimum, np.inf, x, axes)
