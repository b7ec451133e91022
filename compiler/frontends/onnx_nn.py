"""ONNX operators of networks: convolution, pooling, attention and what they are used with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from ...ir.types import Dim, DType, f32, i64
from .arrays import Array, concatenate, where
from .onnx_import import Call, Rule
from .onnx_shapes import scattered

# --- Windows ---


def spatial(c: Call, x: Array, kernel: Sequence[int]) -> dict[str, Any]:
    """Strides, dilations and padding of a window operator over the axes of x after the first two."""
    n = len(kernel)
    strides, dilation = c.attr("strides") or [1] * n, c.attr("dilations") or [1] * n
    low, high = padding(c, x.shape[2:], kernel, strides, dilation)
    return {"strides": tuple(strides), "dilation": tuple(dilation), "low": low, "high": high}


def padding(c: Call, sizes: Sequence[Dim], kernel: Sequence[int], strides: Sequence[int],
            dilation: Sequence[int]) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:  # fmt: skip
    """Before and after each axis. SAME means ceil(size / stride) positions, the odd one after (UPPER) or before."""
    n, mode = len(kernel), c.attr("auto_pad", "NOTSET")
    if mode in ("NOTSET", "", None):
        pads = c.attr("pads") or [0] * (2 * n)
        return tuple(pads[:n]), tuple(pads[n:])
    if mode == "VALID":
        return (0,) * n, (0,) * n
    low: list[Dim] = []
    high: list[Dim] = []
    for size, k, s, d in zip(sizes, kernel, strides, dilation):
        if not isinstance(size, int):
            if s != 1:
                raise c.error(f"auto_pad {mode} with a stride needs a fixed size, not {size}; give pads instead")
            total = (k - 1) * d
        else:
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        half = total // 2
        low.append(half if mode == "SAME_UPPER" else total - half)
        high.append(total - low[-1])  # type: ignore[operator]
    return tuple(low), tuple(high)


def convolution(x: Array, w: Array, groups: int, dtype: DType | None = None, **settings: Any) -> Array:
    """x[N, C, …] * w[M, C / groups, …]."""
    order = tuple(range(x.rank))
    n = x.rank - 2
    full = {"strides": (1,) * n, "low": (0,) * n, "high": (0,) * n, "base_dilation": (1,) * n, "dilation": (1,) * n}
    return x.body.apply("convolution", x, w, groups=groups, x_dims=order, w_dims=order, out_dims=order, dtype=dtype,
                        **(full | settings))  # fmt: skip


def _channel_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.expand(y.shape, (1,))


def conv(c: Call) -> Array:
    x, w = c.x(0), c.x(1)
    y = convolution(x, w, c.attr("group"), **spatial(c, x, w.shape[2:]))  # type: ignore[arg-type]
    return _channel_bias(y, c.optional(2))


def conv_transpose(c: Call) -> Array:
    """A convolution of the dilated input with the kernel turned round, its inputs and outputs swapped in each group."""
    x, w, groups = c.x(0), c.x(1), c.attr("group")
    kernel: list[int] = list(w.shape[2:])  # type: ignore[arg-type]
    n = len(kernel)
    strides, dilation = c.attr("strides") or [1] * n, c.attr("dilations") or [1] * n
    extra = c.attr("output_padding") or [0] * n
    pads, wanted, mode = c.attr("pads") or [0] * (2 * n), c.attr("output_shape"), c.attr("auto_pad", "NOTSET")
    if wanted or mode in ("SAME_UPPER", "SAME_LOWER"):
        sizes: list[int] = list(x.shape[2:])  # type: ignore[arg-type]
        wanted = wanted[-n:] if wanted else [s * t for s, t in zip(sizes, strides)]
        pads = [0] * (2 * n)
        for i in range(n):
            total = strides[i] * (sizes[i] - 1) + extra[i] + (kernel[i] - 1) * dilation[i] + 1 - wanted[i]
            half = total // 2
            pads[i] = half if mode == "SAME_UPPER" else total - half
            pads[n + i] = total - pads[i]
    channels, outputs = w.shape[0], w.shape[1]
    turned = w.reshape(groups, channels // groups, outputs, *kernel).swapaxes(1, 2)
    turned = turned.reshape(groups * outputs, channels // groups, *kernel).reverse(*range(2, 2 + n))
    reach = [(k - 1) * d for k, d in zip(kernel, dilation)]
    y = convolution(x, turned, groups, base_dilation=tuple(strides), dilation=tuple(dilation),
                    low=tuple(r - p for r, p in zip(reach, pads)),
                    high=tuple(r - p + e for r, p, e in zip(reach, pads[n:], extra)))  # fmt: skip
    return _channel_bias(y, c.optional(2))


def windows(x: Array, kind: str, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int],
            low: Sequence[Dim], high: Sequence[Dim]) -> Array:  # fmt: skip
    """A reduction of windows over the axes after the first two."""
    ones = (1,) * x.rank
    return x.unary("reduce_window", kind=kind, window=(1, 1, *kernel), strides=(1, 1, *strides),
                   low=(0, 0, *low), high=(0, 0, *high), base_dilation=ones, dilation=(1, 1, *dilation))  # fmt: skip


def pool_settings(c: Call, x: Array) -> tuple[list[int], list[int], list[int], list[Dim], list[Dim], list[Dim]]:
    """Kernel, strides, dilations, padding before and after, and what ceil_mode adds after that."""
    kernel = c.attr("kernel_shape")
    n = len(kernel)
    strides, dilation = c.attr("strides") or [1] * n, c.attr("dilations") or [1] * n
    low, high = (list(p) for p in padding(c, x.shape[2:], kernel, strides, dilation))
    beyond: list[Dim] = [0] * n
    if c.attr("ceil_mode", 0):
        for i, (size, k, s, d) in enumerate(zip(x.shape[2:], kernel, strides, dilation)):
            if not isinstance(size, int):
                raise c.error(f"ceil_mode needs a fixed size, not {size}; export the model with fixed sizes")
            span = size + low[i] + high[i] - (k - 1) * d - 1  # type: ignore[operator]
            count = -(-span // s) + 1
            if (count - 1) * s >= size + low[i]:  # type: ignore[operator]
                count -= 1  # a window that begins in the padding after is left out
            beyond[i] = max((count - 1) * s - span, 0)
    return kernel, strides, dilation, low, high, beyond


def average_pool(c: Call) -> Array:
    x = c.x()
    kernel, strides, dilation, low, high, beyond = pool_settings(c, x)
    after = [h + b for h, b in zip(high, beyond)]
    total = windows(x, "sum", kernel, strides, dilation, low, after)
    ones = c.body.full((1, 1, *x.shape[2:]), 1.0, x.dtype)
    if c.attr("count_include_pad"):
        none = [0, 0]
        ones = ones.pad([*none, *low], [*none, *high], 1.0)
        low, after = [0] * len(low), beyond
    return total / windows(ones, "sum", kernel, strides, dilation, low, after)


def lp_pool(c: Call) -> Array:
    x, p = c.x(), c.attr("p")
    kernel, strides, dilation, low, high, beyond = pool_settings(c, x)
    powered = x.abs()._with("pow", float(p)) if p != 2 else x * x
    total = windows(powered, "sum", kernel, strides, dilation, low, [h + b for h, b in zip(high, beyond)])
    return total.sqrt() if p == 2 else total._with("pow", 1 / p)


def max_pool(c: Call) -> list[Array]:
    x = c.x()
    kernel, strides, dilation, low, high, beyond = pool_settings(c, x)
    after = [h + b for h, b in zip(high, beyond)]
    y = windows(x, "max", kernel, strides, dilation, low, after)
    if not c.wants(1):
        return [y]
    places = place_of(c, x, bool(c.attr("storage_order")))
    return [y, greatest_place(x, places, y.shape[2:], kernel, strides, dilation, low, after)]


def greatest_place(x: Array, places: Array, counts: Sequence[Dim], kernel: Sequence[int], strides: Sequence[int],
                   dilation: Sequence[int], low: Sequence[Dim], high: Sequence[Dim]) -> Array:  # fmt: skip
    """Of each window the place of its greatest element, the first of equals, or of its last NaN. `places` has a number
    for each element of x, none negative; `counts` are the windows along each spatial axis."""
    lowest = x.like(-math.inf if x.dtype.is_float else np.iinfo(x.dtype.numpy).min)
    padded = x.pad([0, 0, *low], [0, 0, *high], lowest)
    places = places.pad([0, 0, *low], [0, 0, *high], -1)
    best = index = None
    for offset in product(*(range(k) for k in kernel)):
        value, place = padded, places
        for i, count in enumerate(counts):
            first = offset[i] * dilation[i]
            last = first + (count - 1) * strides[i] + 1
            value, place = (a.slice(2 + i, first, last, strides[i]) for a in (value, place))
        if best is None or index is None:
            best, index = value, place
            continue
        better = (place >= 0) & ((value > best) | value.compare("ne", value) | (index < 0))
        best, index = where(better, value, best), where(better, place, index)
    assert index is not None
    return index


def place_of(c: Call, x: Array, column_major: bool) -> Array:
    """The position of each element in the whole tensor, flattened; spatial axes in either order."""
    axes = [*range(2), *(reversed(range(2, x.rank)) if column_major else range(2, x.rank))]
    place, step = c.body.full(x.shape, 0, i64), 1
    for axis in reversed(axes):
        place = place + c.body.iota(x.shape, axis) * step
        step *= int(x.shape[axis])  # type: ignore[arg-type]
    return place


def max_unpool(c: Call) -> Array:
    x, indices = c.x(0), c.x(1)
    kernel = c.attr("kernel_shape")
    n = len(kernel)
    strides, pads = c.attr("strides") or [1] * n, c.attr("pads") or [0] * (2 * n)
    natural = [(d - 1) * s + k - pads[i] - pads[n + i] for i, (d, s, k) in enumerate(zip(x.shape[2:], strides, kernel))]
    shape = [int(v) for v in c.numbers(2)] if c.has(2) else [*x.shape[:2], *natural]
    own: list[Dim] = [*x.shape[:2], *natural]  # what indices count in
    zeros = c.body.full((prod(own),), 0.0, x.dtype)
    filled = scattered(zeros, indices.reshape(-1, 1), x.reshape(-1), "set").reshape(*own)
    return filled.pad([0] * x.rank, [s - o for s, o in zip(shape, own)])


def global_pool(kind: str) -> Rule:
    def rule(c: Call) -> Array:
        x = c.x()
        axes = range(2, x.rank)
        return x.mean(*axes, keepdims=True) if kind == "mean" else x.reduce(kind, list(axes), True)

    return rule


def global_lp_pool(c: Call) -> Array:
    x, p = c.x(), float(c.attr("p"))
    return x.abs()._with("pow", p).sum(*range(2, x.rank), keepdims=True)._with("pow", 1 / p)


def col2im(c: Call) -> Array:
    """Columns of blocks added where they came from."""
    x = c.x(0)
    image, block = ([int(v) for v in c.numbers(i)] for i in (1, 2))
    n = len(image)
    strides, dilation = c.attr("strides") or [1] * n, c.attr("dilations") or [1] * n
    pads = c.attr("pads") or [0] * (2 * n)
    return blocks_added(x, image, block, strides, dilation, pads)


def blocks_added(x: Array, image: Sequence[int], block: Sequence[int], strides: Sequence[int], dilation: Sequence[int],
                 pads: Sequence[int]) -> Array:  # fmt: skip
    """x[batch, channels * block..., blocks] -> [batch, channels, image...], every block added where it came from.

    `pads` are those before each axis, then those after.
    """
    n = len(image)
    padded = [s + pads[i] + pads[n + i] for i, s in enumerate(image)]
    count = [(p - (k - 1) * d - 1) // s + 1 for p, k, s, d in zip(padded, block, strides, dilation)]
    batch, channels = x.shape[0], x.shape[1] // prod(block)
    parts = x.reshape(batch, channels, prod(block), *count)
    total: Array | None = None
    for number, offset in enumerate(product(*(range(k) for k in block))):
        part = parts.at(2, number)
        low = [o * d for o, d in zip(offset, dilation)]
        high = [p - l - (m - 1) * s - 1 for p, l, m, s in zip(padded, low, count, strides)]
        spread = part.pad([0, 0, *low], [0, 0, *high], 0, [0, 0, *(s - 1 for s in strides)])
        total = spread if total is None else total + spread
    assert total is not None
    for i in range(n):
        total = total.slice(2 + i, pads[i], pads[i] + image[i])
    return total


# --- Attention ---


def attention(c: Call) -> Sequence[Any]:
    """The op of the IR where it says all; windows, lengths, scores that are results and half floats by ONNX's function.

    A row that may see nothing is zeros in both.
    """
    q, k, v = c.x(0), c.x(1), c.x(2)
    mask = c.optional(3)
    windowed = c.attr("left_window_size", -1) != -1 or c.attr("right_window_size", -1) != -1
    causal = bool(c.attr("is_causal"))
    if windowed or q.dtype != f32 or c.has(6) or c.wants(3) or causal and (mask is not None or c.has(4)):
        return c.importer.as_function(c)
    flat = q.rank == 3
    if flat:
        q, k, v = (heads_of(x, c.attr(f"{n}_num_heads")) for x, n in ((q, "q"), (k, "kv"), (v, "kv")))
    if c.has(4):
        k, v = concatenate([c.x(4), k], 2), concatenate([c.x(5), v], 2)
    if mask is not None and mask.shape[-1] != k.shape[2] or causal and q.shape[2] != k.shape[2]:
        return c.importer.as_function(c)
    scale = c.attr("scale")
    scale = scale if scale is not None else 1 / math.sqrt(q.shape[3])  # type: ignore[arg-type]
    masks = [] if mask is None else [mask.reshape(*(1,) * (4 - mask.rank), *mask.shape)]
    y = c.body.apply("attention", q, k, v, *masks, scale=float(scale), causal=causal, softcap=float(c.attr("softcap")))
    return [joined_heads(y) if flat else y, k, v]


def heads_of(x: Array, count: int) -> Array:
    batch, length, width = x.shape
    return x.reshape(batch, length, count, width // count).transpose(0, 2, 1, 3)


def joined_heads(y: Array) -> Array:
    batch, heads, length, width = y.shape
    return y.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


def rotary(c: Call) -> Array:
    """Rotary embedding; positions choose rows of the caches where they are given."""
    x, cos, sin = c.x(0), c.x(1), c.x(2)
    flat, heads = x.rank == 3, c.attr("num_heads")
    if flat:
        batch, length, width = x.shape
        x = x.reshape(batch, length, heads, width // heads)
    else:
        x = x.transpose(0, 2, 1, 3)
    if c.has(3):
        cos, sin = (t.take(c.x(3)) for t in (cos, sin))
    count = c.attr("rotary_embedding_dim") or x.shape[3]
    turned, rest = x.slice(3, 0, count), x.slice(3, count)
    half = count // 2
    cos, sin = (t.slice(2, 0, half).unsqueeze(2) for t in (cos, sin))
    if c.attr("interleaved"):
        a, b = turned.slice(3, 0, None, 2), turned.slice(3, 1, None, 2)
    else:
        a, b = turned.slice(3, 0, half), turned.slice(3, half)
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    if c.attr("interleaved"):
        pair = [t.unsqueeze(4) for t in (real, imaginary)]
        turned = concatenate(pair, 4).reshape(*turned.shape)
    else:
        turned = concatenate([real, imaginary], 3)
    y = turned if count == x.shape[3] else concatenate([turned, rest], 3)
    return y.reshape(*c.x(0).shape) if flat else y.transpose(0, 2, 1, 3)


NN: Mapping[str, Rule] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "AveragePool": average_pool, "LpPool": lp_pool, "MaxPool": max_pool,
    "MaxUnpool": max_unpool, "GlobalAveragePool": global_pool("mean"), "GlobalMaxPool": global_pool("max"),
    "GlobalLpPool": global_lp_pool, "Col2Im": col2im, "Attention": attention, "RotaryEmbedding": rotary,
}  # fmt: skip

__all__ = ["NN", "convolution", "spatial"]
