"""ONNX operators on quantised numbers: integers with a scale and a zero point."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...ir.types import Dim, DType, f32, i32, numpy_dtype, u8
from .arrays import Array
from .onnx_import import Call, Rule, dtype_named
from .onnx_nn import convolution, spatial
from .products import matmul


def limits(dtype: DType) -> tuple[int, int]:
    info = np.iinfo(numpy_dtype(dtype))
    return int(info.min), int(info.max)


def spread(c: Call, vector: Array, x: Array, axis: int, block: int) -> Array:
    """A scale or zero point for every element of x: one, one for each index of an axis, or one for each block."""
    if vector.rank == 0 or vector.shape == (1,):
        return vector.reshape(()).broadcast_to(x.shape)
    axis %= x.rank
    if vector.rank == 1:
        return vector.expand(x.shape, (axis,))
    shape: list[Dim] = [*vector.shape[: axis + 1], block, *vector.shape[axis + 1 :]]
    whole = vector.expand(shape, [i for i in range(vector.rank + 1) if i != axis + 1])
    whole = whole.reshape(*vector.shape[:axis], vector.shape[axis] * block, *vector.shape[axis + 1 :])
    return whole.slice(axis, 0, x.shape[axis])


def saturated(x: Array, zero: Array, dtype: DType) -> Array:
    """x rounded half to even, moved by the zero point, in the range of `dtype`."""
    low, high = limits(dtype)
    return (x.unary("round", mode="even") + zero.astype(f32)).maximum(float(low)).minimum(float(high)).astype(dtype)


def quantize(c: Call) -> Array:
    x = c.x(0)
    number = c.attr("output_dtype")
    dtype = c.x(2).dtype if c.has(2) else dtype_named(number, c.where) if number else u8
    axis, block = c.attr("axis", 1), c.attr("block_size", 0)
    scale = spread(c, c.x(1), x, axis, block)
    zero = spread(c, c.x(2), x, axis, block) if c.has(2) else c.body.full(x.shape, 0, dtype)
    scaled = x.astype(f32) / scale.astype(f32)
    return saturated(scaled, zero, dtype)


def dequantize(c: Call) -> Array:
    x, scale = c.x(0), c.x(1)
    axis, block = c.attr("axis", 1), c.attr("block_size", 0)
    number = c.attr("output_dtype", 0)
    result = dtype_named(number, c.where) if number else scale.dtype
    wide = x.astype(i32)
    if c.has(2):
        wide = wide - spread(c, c.x(2).astype(i32), x, axis, block)
    return (wide.astype(f32) * spread(c, scale, x, axis, block).astype(f32)).astype(result)


def dynamic_quantize(c: Call) -> tuple[Array, Array, Array]:
    """To 0 … 255, so that the range has 0 in it."""
    x = c.x()
    high, low = x.reduce("max").maximum(0), x.reduce("min").minimum(0)
    scale = (high - low) / 255.0
    zero = (-low / scale).maximum(0).minimum(255).unary("round", mode="even").astype(u8)
    return saturated(x / scale, zero.broadcast_to(x.shape), u8), scale, zero


def _centred(x: Array, zero: Array | None, axis: int = 0) -> Array:
    """x less its zero point, in i32; a vector of them runs along an axis."""
    wide = x.astype(i32)
    if zero is None:
        return wide
    zero = zero.astype(i32)
    if zero.rank == 1 and zero.shape != (1,):
        zero = zero.expand(x.shape, (axis % x.rank,))
    return wide - (zero if zero.rank else zero.reshape(()))


def matmul_integer(c: Call) -> Array:
    return matmul(_centred(c.x(0), c.optional(2), -2), _centred(c.x(1), c.optional(3), -1))


def qlinear_matmul(c: Call) -> Array:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (c.x(i) for i in range(8))
    total = matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))
    factor = a_scale.astype(f32) * b_scale.astype(f32) / y_scale.astype(f32)
    scaled = total.astype(f32) * factor
    return saturated(scaled, y_zero.broadcast_to(scaled.shape), y_zero.dtype)


def conv_integer(c: Call) -> Array:
    x, w = _centred(c.x(0), c.optional(2)), _centred(c.x(1), c.optional(3))
    return convolution(x, w, c.attr("group"), **spatial(c, x, w.shape[2:]))  # type: ignore[arg-type]


def qlinear_conv(c: Call) -> Array:
    x, w = _centred(c.x(0), c.x(2)), _centred(c.x(3), c.x(5))
    total = convolution(x, w, c.attr("group"), **spatial(c, x, w.shape[2:]))  # type: ignore[arg-type]
    if c.has(8):
        total = total + c.x(8).expand(total.shape, (1,))
    factor = c.x(1) * c.x(4) / c.x(6)
    if factor.rank == 1 and factor.shape != (1,):
        factor = factor.expand(total.shape, (1,))
    scaled = total.astype(f32) * (factor if factor.rank else factor.reshape(()))
    return saturated(scaled, c.x(7).reshape(()).broadcast_to(scaled.shape), c.x(7).dtype)


QUANT: Mapping[str, Rule] = {
    "QuantizeLinear": quantize, "DequantizeLinear": dequantize, "DynamicQuantizeLinear": dynamic_quantize,
    "MatMulInteger": matmul_integer, "QLinearMatMul": qlinear_matmul, "ConvInteger": conv_integer,
    "QLinearConv": qlinear_conv,
}  # fmt: skip
