"""ATen operations of networks: products, convolution, pooling, norms, attention, resampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from ...ir.types import Dim, boolean, f32, f64, floordiv, i64
from .arrays import Array, concatenate, where
from .onnx_elementwise import wide
from .onnx_nn import blocks_added, convolution, greatest_place, windows
from .onnx_sampling import combined, sample_grid, taps
from .products import dot, is_weight, linear, matmul
from .resampled import adaptive_mean, at_places, torch_origin
from .torch_elementwise import norm_of
from .torch_import import Call, Rule


def _moments(x: Array, axes: Sequence[int]) -> tuple[Array, Array]:
    """Mean and variance, in f32 at least."""
    count = x.body.dim(prod(x.shape[a] for a in axes), x.dtype)
    mean = x.sum(*axes, keepdims=True) / count
    centred = x - mean
    return mean, (centred * centred).sum(*axes, keepdims=True) / count


def linear_(c: Call) -> Array:
    x, w, bias = c.input, c.weight, c.get("bias")
    if is_weight(w) and w.rank == 2 and x.dtype != f64:
        return linear(x, w, bias)
    y = dot(x, w, ((x.rank - 1,), (w.rank - 1,)))
    return y if bias is None else y + bias


def addmm(c: Call) -> Array:
    y = matmul(c.mat1, c.mat2) * 1
    y = y if c.get("alpha", 1) == 1 else y * c.alpha
    return y + (c.self if c.get("beta", 1) == 1 else c.self * c.beta)


def addmv(c: Call) -> Array:
    y = matmul(c.mat, c.vec)
    y = y if c.get("alpha", 1) == 1 else y * c.alpha
    return y + (c.self if c.get("beta", 1) == 1 else c.self * c.beta)


def baddbmm(c: Call) -> Array:
    y = matmul(c.batch1, c.batch2)
    y = y if c.get("alpha", 1) == 1 else y * c.alpha
    return y + (c.self if c.get("beta", 1) == 1 else c.self * c.beta)


def grouped_mm(c: Call) -> Array:
    """Rows [m, k], of which those of a group lie together, each with the matrix of its group [g, k, n]; `offs` are the
    ends of groups. Every row is multiplied with all matrices, as one product, and its own result is taken."""
    x, w = (c.input, c.weight) if "input" in c.arguments else (c.self, c.mat2)
    if x.rank != 2 or w.rank != 3 or c.get("bias") is not None:
        raise c.error("grouped products are of rows [m, k] and matrices [g, k, n] without a bias only")
    rows, ends = c.body.arange(x.shape[0]), c.offs.astype(i64)
    group = (ends.unsqueeze(0) <= rows.unsqueeze(1)).astype(i64).sum(1).minimum(ends.shape[0] - 1)  # type: ignore[operator]
    every = dot(x, w, ((1,), (1,)))
    own = c.body.apply("gather", every, group.unsqueeze(1), offset_dims=(1,), collapsed_slice_dims=(1,),
                       start_index_map=(1,), operand_batching_dims=(0,), start_indices_batching_dims=(0,),
                       slice_sizes=(1, 1, w.shape[2]), mode="clip")  # fmt: skip
    return where((rows < ends.at(0, ends.shape[0] - 1)).unsqueeze(1), own, 0.0)  # type: ignore[operator]


def product(second: str) -> Rule:
    return lambda c: matmul(c.self, getattr(c, second))


def convolution_(c: Call) -> Array:
    x, w = c.input, c.weight
    n = w.rank - 2
    strides, pads, dilation = (_each(v, n) for v in (c.stride, c.padding, c.dilation))
    if c.get("transposed", False):
        extra, groups = _each(c.output_padding, n), c.groups
        channels, outputs, *kernel = w.shape
        turned = w.reshape(groups, channels // groups, outputs, *kernel).swapaxes(1, 2)
        turned = turned.reshape(groups * outputs, channels // groups, *kernel).reverse(*range(2, 2 + n))
        reach = [(k - 1) * d for k, d in zip(kernel, dilation)]
        y = convolution(x, turned, groups, base_dilation=tuple(strides), dilation=tuple(dilation),
                        low=tuple(r - p for r, p in zip(reach, pads)),
                        high=tuple(r - p + e for r, p, e in zip(reach, pads, extra)))  # fmt: skip
    else:
        y = convolution(x, w, c.groups, strides=tuple(strides), dilation=tuple(dilation), low=tuple(pads),
                        high=tuple(pads))  # fmt: skip
    bias = c.get("bias")
    return y if bias is None else y + bias.expand(y.shape, (1,))


def _each(value: int | Sequence[int], n: int) -> list[int]:
    given = [value] if isinstance(value, int) else list(value)
    return given * n if len(given) == 1 else given


def layer_norm(c: Call) -> Array | tuple[Array, ...]:
    x = c.input
    count = len(c.normalized_shape)
    axes = range(x.rank - count, x.rank)
    weight, bias, eps = c.get("weight"), c.get("bias"), c.get("eps", 1e-5)
    native = "native" in str(c.node.target)
    if not native and count == 1 and x.dtype == f32:
        weight = c.body.full(x.shape[-1:], 1.0) if weight is None else weight
        bias = c.body.full(x.shape[-1:], 0.0) if bias is None else bias
        return c.body.apply("layer_norm", x, weight, bias, eps=eps)
    w = x if x.dtype == f64 else x.astype(f32)
    mean, variance = _moments(w, axes)
    inverse = 1 / (variance + eps).sqrt()
    y = (w - mean) * inverse
    y = y if weight is None else y * weight.astype(y.dtype)
    y = y if bias is None else y + bias.astype(y.dtype)
    y = y.astype(x.dtype)
    return (y, mean, inverse) if native else y


def rms_norm(c: Call) -> Array:
    x, weight = c.input, c.get("weight")
    eps = c.get("eps")
    eps = {"f64": 2.0**-52, "f16": 2.0**-10, "bf16": 2.0**-7}.get(x.dtype.name, 2.0**-23) if eps is None else eps
    count = len(c.normalized_shape)
    if count == 1 and x.dtype == f32:
        weight = c.body.full(x.shape[-1:], 1.0) if weight is None else weight
        return c.body.apply("rms_norm", x, weight, eps=eps)
    w = x if x.dtype == f64 else x.astype(f32)
    axes = range(x.rank - count, x.rank)
    size = w.body.dim(prod(w.shape[a] for a in axes), w.dtype)
    y = w / ((w * w).sum(*axes, keepdims=True) / size + eps).sqrt()
    return y.astype(x.dtype) if weight is None else (y * weight.astype(y.dtype)).astype(x.dtype)


def _channelwise(x: Array, vector: Array) -> Array:
    return vector.expand(x.shape, (1,))


def batch_norm(c: Call) -> Array | tuple[Array, ...]:
    """With the statistics that were stored: a factor and an addend for each channel."""
    x, eps = c.input, c.get("eps", 1e-5)
    if c.get("training", False):
        if c.get("running_mean") is not None:
            raise c.error("batch norm in training mode is not supported; call model.eval() before exporting")
        return _norm_of_batch(c, x)[0]
    dtype = c.running_var.dtype if c.running_var.dtype != x.dtype else x.dtype
    factor = 1 / (c.running_var.astype(dtype) + eps).sqrt()
    factor = factor if c.get("weight") is None else factor * c.weight.astype(dtype)
    shift = -c.running_mean.astype(dtype) * factor
    shift = shift if c.get("bias") is None else shift + c.bias.astype(dtype)
    w = x.astype(dtype)
    y = (w * _channelwise(w, factor) + _channelwise(w, shift)).astype(x.dtype)
    none = c.body.constant(np.zeros(0, np.float32))
    return (y, none, none) if len(c.results) > 1 else y


def _norm_of_batch(c: Call, x: Array) -> tuple[Array, Array, Array]:
    """With the statistics of the batch itself; these too, the variance as one over its root."""
    w = x if x.dtype == f64 else x.astype(f32)
    axes = [0, *range(2, x.rank)]
    mean, variance = _moments(w, axes)
    inverse = 1 / (variance + c.get("eps", 1e-5)).sqrt()
    y = (w - mean) * inverse
    y = y if c.get("weight") is None else y * _channelwise(y, c.weight.astype(y.dtype))
    y = y if c.get("bias") is None else y + _channelwise(y, c.bias.astype(y.dtype))
    return y.astype(x.dtype), mean.squeeze(*axes), inverse.squeeze(*axes)


def batch_norm_in_training(c: Call) -> list[Array]:
    """Normalised, mean, one over the root of the variance, and the running statistics as new values."""
    if not c.training:
        none = c.body.constant(np.zeros(0, np.float32))
        y = batch_norm(c)
        return [y[0] if isinstance(y, tuple) else y, none, none, c.running_mean, c.running_var][: len(c.results)]
    x, axes = c.input, [0, *range(2, c.input.rank)]
    y, mean, inverse = _norm_of_batch(c, x)
    if c.get("running_mean") is None:
        return [y, mean, inverse]
    w = x if x.dtype == f64 else x.astype(f32)
    count = c.body.dim(prod(x.shape[a] for a in axes), w.dtype)
    variance = _moments(w, axes)[1].squeeze(*axes) * count / (count - 1)
    step = c.momentum
    return [y, mean, inverse, c.running_mean * (1 - step) + mean * step, c.running_var * (1 - step) + variance * step]


def instance_norm(c: Call) -> Array | tuple[Array, ...]:
    """Of each channel of each element of the batch, unless it has statistics that were stored."""
    if not c.use_input_stats:
        return batch_norm(c)
    x = c.input
    w = x if x.dtype == f64 else x.astype(f32)
    mean, variance = _moments(w, range(2, x.rank))
    y = (w - mean) / (variance + c.get("eps", 1e-5)).sqrt()
    y = y if c.get("weight") is None else y * _channelwise(y, c.weight.astype(y.dtype))
    y = y if c.get("bias") is None else y + _channelwise(y, c.bias.astype(y.dtype))
    return y.astype(x.dtype)


def group_norm(c: Call) -> Array | tuple[Array, ...]:
    x = c.input
    groups = c.get("group", c.get("num_groups"))
    w = x if x.dtype == f64 else x.astype(f32)
    split = w.reshape(x.shape[0], groups, -1)
    mean, variance = _moments(split, [2])
    inverse = 1 / (variance + c.get("eps", 1e-5)).sqrt()
    y = ((split - mean) * inverse).reshape(*x.shape)
    y = y if c.get("weight") is None else y * _channelwise(y, c.weight.astype(y.dtype))
    y = y if c.get("bias") is None else y + _channelwise(y, c.bias.astype(y.dtype))
    y = y.astype(x.dtype)
    return (y, mean.squeeze(2), inverse.squeeze(2)) if len(c.results) > 1 else y


def attention(c: Call) -> Array:
    """Scaled dot-product attention; a query that sees nothing gives zeros."""
    q, k, v, mask = c.query, c.key, c.value, c.get("attn_mask")
    if c.get("dropout_p", 0.0):
        raise c.error("dropout in attention is random; call model.eval() before exporting, or give dropout_p=0.0")
    scale = c.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    causal, dtype = bool(c.get("is_causal", False)), q.dtype
    lead = c.shape[:-2]
    flat = [x.astype(f32) for x in (q, k, v)]
    if q.rank != 4:
        flat = [x.broadcast_to((*lead, *x.shape[-2:])).reshape(1, prod(lead), *x.shape[-2:]) for x in flat]
    q4, k4, v4 = flat
    operands = [q4, k4, v4]
    if causal and q4.shape[2] != k4.shape[2]:  # torch aligns the diagonal at the first key, the op at the last
        row, column = (c.body.iota((1, 1, q4.shape[2], k4.shape[2]), 2 + i) for i in range(2))
        operands.append(column <= row)
        causal = False
    elif mask is not None:
        mask = mask if mask.dtype == boolean else mask.astype(f32)
        shaped = mask.reshape(*[1] * (4 - mask.rank), *mask.shape) if mask.rank <= 4 and q.rank == 4 else None
        if shaped is None:
            shaped = mask.broadcast_to((*lead, *mask.shape[-2:])).reshape(1, prod(lead), *mask.shape[-2:])
        operands.append(shaped)
    if len(operands) == 4 and operands[3].dtype == f32:
        operands[3] = operands[3].broadcast_to((*operands[3].shape[:2], q4.shape[2], k4.shape[2]))
    y = c.body.apply("attention", *operands, scale=float(scale), causal=causal, softcap=0.0)
    return y.reshape(*c.shape).astype(dtype)


# --- Pooling ---


def _pool(c: Call, n: int) -> tuple[Array, list[int], list[int], list[int], list[int], list[Dim]]:
    """x with a batch, kernel, strides, dilations, padding, and what is added after it so that ceil_mode's fit."""
    x = c.self if c.self.rank == n + 2 else c.self.unsqueeze(0)
    kernel = _each(c.kernel_size, n)
    strides = _each(c.get("stride") or kernel, n)
    pads, dilation = _each(c.get("padding") or 0, n), _each(c.get("dilation") or 1, n)
    after: list[Dim] = []
    for i in range(n):
        count, size = c.shape[i - n], x.shape[i - n]
        reach = (count - 1) * strides[i] + (kernel[i] - 1) * dilation[i] + 1 - size - pads[i]  # type: ignore[operator]
        exact = isinstance(reach, int) and c.get("ceil_mode", False)
        after.append(max(reach, pads[i]) if exact else pads[i])  # type: ignore[type-var]
    return x, kernel, strides, dilation, pads, after


def max_pool(n: int, indices: bool) -> Rule:
    def rule(c: Call) -> Array | tuple[Array, ...]:
        x, kernel, strides, dilation, low, high = _pool(c, n)
        y = windows(x, "max", kernel, strides, dilation, low, high)
        if not indices:
            return y.reshape(*c.shape)
        place, step = c.body.full(x.shape, 0, i64), c.body.dim(1)
        for axis in reversed(range(2, x.rank)):
            place = place + c.body.iota(x.shape, axis) * step
            step = step * c.body.dim(x.shape[axis])
        found = greatest_place(x, place, y.shape[2:], kernel, strides, dilation, low, high)
        return y.reshape(*c.shape), found.reshape(*c.shape)

    return rule


def average_pool(n: int) -> Rule:
    def rule(c: Call) -> Array:
        x, kernel, strides, dilation, low, high = _pool(c, n)
        total = windows(x, "sum", kernel, strides, dilation, low, high)
        if c.get("divisor_override"):
            return (total / float(c.divisor_override)).reshape(*c.shape)
        ones = c.body.full((1, 1, *x.shape[2:]), 1.0, x.dtype)
        before, after = list(low), list(high)
        if c.get("count_include_pad", True):
            ones = ones.pad([0, 0, *low], [0, 0, *low], 1.0)
            before, after = [0] * n, [h - p for h, p in zip(high, low)]
        return (total / windows(ones, "sum", kernel, strides, dilation, before, after)).reshape(*c.shape)

    return rule


def adaptive_average(n: int) -> Rule:
    """Windows from floor(i · size / out) to ceil((i + 1) · size / out)."""

    def rule(c: Call) -> Array:
        x = c.self
        for i in range(n):
            axis = x.rank - n + i
            size, out = x.shape[axis], c.shape[axis]
            if out == 1:
                x = x.mean(axis, keepdims=True)
            elif not isinstance(out, int):
                raise c.error("adaptive pooling needs a fixed size of its result; export with one")
            elif not isinstance(size, int) and size % out != 0:
                x = adaptive_mean(x, axis, out)
            elif size % out == 0:
                x = x.reshape(*x.shape[:axis], out, floordiv(size, out), *x.shape[axis + 1 :]).mean(axis + 1)
            else:
                low = [i * size // out for i in range(out)]
                high = [-(-(i + 1) * size // out) for i in range(out)]
                parts = [x.slice(axis, a, b).mean(axis, keepdims=True) for a, b in zip(low, high)]
                x = concatenate(parts, axis)
        return x

    return rule


def adaptive_max(n: int) -> Rule:
    """Windows as wide as the widest, of which some end before, and the place in the image of each greatest element."""

    def rule(c: Call) -> tuple[Array, ...]:
        x, lead = c.self, c.self.rank - n
        if all(out == 1 for out in c.shape[lead:]):
            flat = x.reshape(*x.shape[:lead], -1)
            return flat.max(-1).reshape(*c.shape), flat.unary("argmax", axis=lead, dtype=i64).reshape(*c.shape)
        inside, places = np.ones((), bool), np.zeros((), np.int64)
        for i in range(n):
            size, out = x.shape[lead + 2 * i], c.shape[lead + i]
            if not isinstance(size, int) or not isinstance(out, int):
                raise c.error("adaptive pooling needs fixed sizes; export with fixed ones")
            low, high = (np.array([-(-(k * size) // out) if up else k * size // out for k in range(up, out + up)])
                         for up in (0, 1))  # fmt: skip
            at = low[:, None] + np.arange((high - low).max())
            inside = inside[..., None, None] & (at < high[:, None])
            places = places[..., None, None] * size + np.minimum(at, size - 1)
            x = x.take(c.body.constant(np.minimum(at, size - 1)), lead + 2 * i)
        order = [*range(0, 2 * n, 2), *range(1, 2 * n, 2)]
        x = x.transpose(*range(lead), *(lead + d for d in order)).reshape(*c.shape, -1)
        inside, places = (a.transpose(order).reshape(*a.transpose(order).shape[:n], -1) for a in (inside, places))
        x = where(c.body.constant(inside).broadcast_to(x.shape), x, -math.inf)
        which = x.unary("argmax", axis=x.rank - 1, dtype=i64).unsqueeze(-1)
        found = which.compare("eq", c.body.arange(x.shape[-1]))
        return x.max(-1), where(found, c.body.constant(places).broadcast_to(x.shape), 0).sum(-1)

    return rule


def col2im(c: Call) -> Array:
    x = c.self if c.self.rank == 3 else c.self.unsqueeze(0)
    strides, dilation, pads = (_each(c.get(name), 2) for name in ("stride", "dilation", "padding"))
    return blocks_added(x, c.output_size, c.kernel_size, strides, dilation, [*pads, *pads]).reshape(*c.shape)


# --- Resampling ---


def upsample(kind: str, n: int) -> Rule:
    """To the size of the result; scales that are given count, as torch uses them."""

    def rule(c: Call) -> Array:
        x = c.self if "self" in c.arguments else c.input
        align, antialias = bool(c.get("align_corners", False)), "_aa" in str(c.node.target)
        factors = c.get("scale_factors") or [c.get(f"scales_{a}", c.get("scales")) for a in "dhw"[3 - n :]]
        narrow = x.dtype
        y = x if kind == "nearest" else x.astype(f32)
        for i in range(n):
            axis = x.rank - n + i
            size, out = x.shape[axis], c.shape[axis]
            if not isinstance(size, int) or not isinstance(out, int):
                if antialias:
                    raise c.error("antialiasing needs fixed sizes; export with fixed ones")
                exactly = "exact" in str(c.node.target)
                y = at_places(y, axis, torch_origin(y, axis, out, factors[i], kind, align, exactly), kind)
                continue
            scale = factors[i] if factors[i] else out / size
            places = np.arange(out, dtype=np.float64)
            if align:
                origin = places * (size - 1) / (out - 1) if out > 1 else places * 0
            elif kind == "nearest":
                origin = places / scale if "exact" not in str(c.node.target) else (places + 0.5) / scale - 0.5
            else:
                origin = (places + 0.5) / scale - 0.5
            if kind == "linear" and not antialias:
                origin = np.maximum(origin, 0)
            nearest = "floor" if "exact" not in str(c.node.target) else "round_prefer_ceil"
            exact = out / size if align else scale
            y = combined(y, axis, *taps(origin, exact, size, kind, nearest, antialias, -0.5 if antialias else -0.75,
                                        antialias))  # fmt: skip
        return y.astype(narrow)

    return rule


def grid_sampler(c: Call) -> Array:
    mode = ("linear", "nearest", "cubic")[c.interpolation_mode]
    padding = ("zeros", "border", "reflection")[c.padding_mode]
    y = sample_grid(c.input.astype(f32), c.grid.astype(f32), mode, padding, bool(c.align_corners),
                    each=mode == "cubic")  # fmt: skip
    return y.astype(c.input.dtype)


def glu(c: Call) -> Array:
    axis = c.get("dim", -1) % c.self.rank
    half = c.self.shape[axis] // 2
    return wide(c.self, lambda x: x.slice(axis, 0, half) * x.slice(axis, half).logistic())


def prelu(c: Call) -> Array:
    x, w = c.self, c.weight
    if w.rank == 1 and x.rank > 1 and w.shape != (1,):
        w = w.expand(x.shape, (1,))
    return where(x > 0, x, x * w)


def cdist(c: Call) -> Array:
    a, b = c.x1.unsqueeze(-2), c.x2.unsqueeze(-3)
    return norm_of(a - b, c.p, [-1], False)


NN: Mapping[str, Rule] = {
    "linear": linear_, "addmm": addmm, "addmv": addmv, "baddbmm": baddbmm, "mm": product("mat2"),
    "bmm": product("mat2"), "matmul": product("other"), "mv": product("vec"), "dot": product("tensor"),
    "_grouped_mm": grouped_mm, "transformers::grouped_mm_fallback": grouped_mm,
    "convolution": convolution_, "layer_norm": layer_norm, "native_layer_norm": layer_norm, "rms_norm": rms_norm,
    "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm, "native_batch_norm": batch_norm,
    "_native_batch_norm_legit_functional": batch_norm_in_training,
    "_native_batch_norm_legit.no_stats": batch_norm_in_training, "group_norm": group_norm,
    "instance_norm": instance_norm, "col2im": col2im,
    "native_group_norm": group_norm, "scaled_dot_product_attention": attention,
    "max_pool1d": max_pool(1, False), "max_pool2d": max_pool(2, False), "max_pool3d": max_pool(3, False),
    "max_pool1d_with_indices": max_pool(1, True), "max_pool2d_with_indices": max_pool(2, True),
    "max_pool3d_with_indices": max_pool(3, True), "avg_pool1d": average_pool(1), "avg_pool2d": average_pool(2),
    "avg_pool3d": average_pool(3), "adaptive_avg_pool1d": adaptive_average(1),
    "_adaptive_avg_pool2d": adaptive_average(2), "_adaptive_avg_pool3d": adaptive_average(3),
    "adaptive_avg_pool2d": adaptive_average(2), "adaptive_max_pool1d": adaptive_max(1),
    "adaptive_max_pool2d": adaptive_max(2), "adaptive_max_pool3d": adaptive_max(3),
    "upsample_nearest1d": upsample("nearest", 1), "upsample_nearest2d": upsample("nearest", 2),
    "upsample_nearest3d": upsample("nearest", 3), "upsample_linear1d": upsample("linear", 1),
    "_upsample_nearest_exact1d": upsample("nearest", 1), "_upsample_nearest_exact2d": upsample("nearest", 2),
    "upsample_bilinear2d": upsample("linear", 2), "upsample_trilinear3d": upsample("linear", 3),
    "upsample_bicubic2d": upsample("cubic", 2), "_upsample_bilinear2d_aa": upsample("linear", 2),
    "_upsample_bicubic2d_aa": upsample("cubic", 2), "grid_sampler_2d": grid_sampler, "grid_sampler_3d": grid_sampler,
    "glu": glu, "prelu": prelu, "_prelu_kernel": prelu,
    "_cdist_forward": cdist,
}  # fmt: skip
