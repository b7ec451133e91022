"""ONNX operators on signals: Fourier transforms, and mel filters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ...ir.types import f64
from .arrays import Array, concatenate, stack
from .onnx_import import Call, Rule, dtype_named


def dft(c: Call) -> Array:
    """Along an axis of a signal whose last axis is its real and imaginary part, or the real part alone."""
    x = c.x(0)
    if c.version >= 20:
        axis = int(c.numbers(2).reshape(-1)[0]) if c.has(2) else -2
    else:
        axis = c.attr("axis")
    axis = axis % x.rank if axis < 0 else axis
    inverse, onesided = bool(c.attr("inverse")), bool(c.attr("onesided"))
    length = int(c.numbers(1).reshape(-1)[0]) if c.has(1) else x.shape[axis]
    if not isinstance(length, int):
        raise c.error(f"the length {length} of a transform must be fixed; give dft_length")
    if inverse and onesided and not c.has(1):
        length = 2 * (length - 1)
    return transform(x, axis, length, inverse, onesided)


def transform(x: Array, axis: int, length: int, inverse: bool, onesided: bool) -> Array:
    """One-sided, a real signal gives length // 2 + 1 frequencies, and those give a real signal."""
    if inverse and onesided:  # the other half is the conjugate of this one
        half = length // 2 + 1
        x = _fitted(x, axis, half)
        mirrored = x.slice(axis, 1, length - half + 1).reverse(axis)
        sign = x.body.constant(np.array([1.0, -1.0]), x.dtype)
        x = concatenate([x, mirrored * sign], axis)
    x = _fitted(x, axis, length)
    real = x.at(-1, 0).moveaxis(axis, -1)
    imaginary = x.at(-1, 1).moveaxis(axis, -1) if x.shape[-1] == 2 else x.body.full(real.shape, 0.0, x.dtype)
    parts = x.body.apply_all("fft", real, imaginary, inverse=inverse)
    if onesided and not inverse:
        parts = tuple(p.slice(-1, 0, length // 2 + 1) for p in parts)
    re, im = (p.moveaxis(-1, axis) for p in parts)
    return re.unsqueeze(-1) if inverse and onesided else stack([re, im], -1)


def _fitted(x: Array, axis: int, length: int) -> Array:
    """The axis cut, or continued by zeros."""
    size = x.shape[axis]
    assert isinstance(size, int)
    high = [length - size if i == axis else 0 for i in range(x.rank)]
    return x.pad([0] * x.rank, high, 0.0)


def stft(c: Call) -> Array:
    """Transforms of frames: the frame step and length must be known."""
    x, step = c.x(0), int(c.numbers(1).reshape(-1)[0])
    window = c.optional(2)
    length = int(c.numbers(3).reshape(-1)[0]) if c.has(3) else window.shape[0] if window is not None else 0
    size = x.shape[1]
    if not isinstance(length, int) or not isinstance(size, int) or not length:
        raise c.error("the signal and its frames must have fixed lengths; give them when exporting")
    count = (size - length) // step + 1
    frames = stack([x.slice(1, i * step, i * step + length) for i in range(count)], 1)
    if window is not None:
        frames = frames * window.unsqueeze(-1)
    return transform(frames, 2, length, False, bool(c.attr("onesided")))


def mel_weight_matrix(c: Call) -> Array:
    bins, length, rate = (int(c.numbers(i).reshape(-1)[0]) for i in range(3))
    low, high = (float(c.numbers(i).reshape(-1)[0]) for i in (3, 4))
    spectrum = length // 2 + 1

    def mel(f: float) -> float:
        return 2595 * math.log10(1 + f / 700)

    points = np.arange(bins + 2) * ((mel(high) - mel(low)) / (bins + 2)) + mel(low)
    edges = ((length + 1) * (700 * (10 ** (points / 2595) - 1)) // rate).astype(int)
    weights = np.zeros((spectrum, bins))
    for i in range(bins):
        lower, centre, upper = edges[i : i + 3]
        if centre == lower:
            weights[centre, i] = 1
        else:
            for j in range(lower, centre + 1):
                weights[j, i] = (j - lower) / (centre - lower)
        for j in range(centre, upper) if upper > centre else ():
            weights[j, i] = (upper - j) / (upper - centre)
    return c.body.constant(weights, f64).astype(dtype_named(c.attr("output_datatype"), c.where))


SIGNAL: Mapping[str, Rule] = {"DFT": dft, "STFT": stft, "MelWeightMatrix": mel_weight_matrix}

__all__ = ["SIGNAL", "transform"]
