"""ONNX operators that reduce, order, normalise or contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from ...ir.types import Dim, f32, f64, i32, i64
from .arrays import Array, where
from .onnx_elementwise import wide
from .onnx_import import Call, Rule, dtype_named
from .onnx_shapes import axes_of, taken_along
from .products import dot, is_weight, linear, matmul


def reduction_axes(c: Call) -> list[int] | None:
    """None for all axes; [] for none at all."""
    axes = axes_of(c)
    if not axes:
        return [] if c.attr("noop_with_empty_axes", 0) else None
    return axes


def reduction(function: Callable[[Array, list[int], bool], Array]) -> Rule:
    def rule(c: Call) -> Array:
        x, axes = c.x(), reduction_axes(c)
        chosen = list(range(x.rank)) if axes is None else axes
        return wide(x, lambda x: function(x, chosen, bool(c.attr("keepdims", 1))))

    return rule


def plain_reduction(kind: str) -> Rule:
    return reduction(lambda x, axes, keep: x.reduce(kind, axes, keep))


def _mean(x: Array, axes: list[int], keep: bool) -> Array:
    total = x.sum(*axes, keepdims=keep)
    count = prod(x.shape[a] for a in axes)
    return total / x.body.dim(count, x.dtype)


def _log_sum_exp(x: Array, axes: list[int], keep: bool) -> Array:
    """Shifted by the maximum, unless that is infinite."""
    integral = not x.dtype.is_float
    x = x.astype(f32) if integral else x
    highest = x.reduce("max", axes, True)
    shift = where(highest.unary("is_finite"), highest, 0.0)
    total = (x - shift).exp().sum(*axes, keepdims=True).log() + shift
    return total if keep else total.reshape(x.reduce("max", axes).shape)


def _l2(x: Array, axes: list[int], keep: bool) -> Array:
    if not x.dtype.is_float:
        return (x.astype(f64) * x.astype(f64)).sum(*axes, keepdims=keep).sqrt().astype(x.dtype)
    return (x * x).sum(*axes, keepdims=keep).sqrt()


def arg(op: str) -> Rule:
    def rule(c: Call) -> Array:
        x, axis = c.x(), c.attr("axis")
        axis %= x.rank
        if c.attr("select_last_index", 0):
            size = x.body.dim(x.shape[axis])
            found = size - 1 - x.reverse(axis).unary(op, axis=axis, dtype=i64)
        else:
            found = x.unary(op, axis=axis, dtype=i64)
        return found.unsqueeze(axis) if c.attr("keepdims", 1) else found

    return rule


def running(op: str) -> Rule:
    """A running sum or product; an exclusive one leaves its own element out."""

    def rule(c: Call) -> Array:
        x = c.x()
        axis = int(c.numbers(1).reshape(-1)[0]) % x.rank
        reverse = bool(c.attr("reverse"))
        total = x.unary(op, axis=axis, reverse=reverse)
        if not c.attr("exclusive"):
            return total
        low, high = [0] * x.rank, [0] * x.rank
        (high if reverse else low)[axis] = 1
        (low if reverse else high)[axis] = -1
        return total.pad(low, high, 0 if op == "cumsum" else 1)

    return rule


def top_k(c: Call) -> tuple[Array, Array]:
    x = c.x()
    k = int(c.numbers(1).reshape(-1)[0]) if c.version >= 10 else c.attr("k")
    axis = c.attr("axis") % x.rank
    largest = c.attr("largest", 1)
    moved = x.moveaxis(axis, -1)
    if largest:
        values, indices = c.body.apply_all("top_k", moved, k=k)
    else:  # the first k of an ascending, stable order
        position = c.body.iota(moved.shape, moved.rank - 1, i32)
        ordered = c.body.apply_all("sort", moved, position, axis=moved.rank - 1, keys=1)
        values, indices = (a.slice(-1, 0, k) for a in ordered)
    return values.moveaxis(-1, axis), indices.astype(i64).moveaxis(-1, axis)


def softmax_like(function: Callable[[Array, int], Array]) -> Rule:
    """Since opset 13 along one axis; before, over all axes from `axis` on, as one."""

    def rule(c: Call) -> Array:
        x, axis = c.x(), c.attr("axis", -1)
        if c.version >= 13:
            return function(x, axis % x.rank)
        axis %= x.rank
        flat = x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))
        return function(flat, 1).reshape(*x.shape)

    return rule


def log_softmax(x: Array, axis: int) -> Array:
    def compute(x: Array) -> Array:
        shifted = x - x.max(axis, keepdims=True)
        return shifted - shifted.exp().sum(axis, keepdims=True).log()

    return wide(x, compute)


def hardmax(x: Array, axis: int) -> Array:
    first = x.unary("argmax", axis=axis, dtype=i64).unsqueeze(axis)
    return x.body.iota(x.shape, axis).compare("eq", first.broadcast_to(x.shape)).astype(x.dtype)


def lp_normalization(c: Call) -> Array:
    """x / ‖x‖ along an axis; zeros stay zeros."""
    x, axis = c.x(), c.attr("axis")
    norm = (x * x).sum(axis, keepdims=True).sqrt() if c.attr("p") == 2 else x.abs().sum(axis, keepdims=True)
    zero = norm.compare("eq", 0)
    return where(zero, x.like(0.0), x / where(zero, norm.like(1.0), norm))


def lrn(c: Call) -> Array:
    """x / (bias + alpha / size · Σ x² over `size` neighbouring channels)^beta."""
    x, size = c.x(), c.attr("size")
    square = x * x
    low = (size - 1) // 2
    ones = (1,) * x.rank
    window = tuple(size if i == 1 else 1 for i in range(x.rank))
    before, after = (tuple(n if i == 1 else 0 for i in range(x.rank)) for n in (low, size - 1 - low))
    total = square.unary("reduce_window", kind="sum", window=window, strides=ones, low=before, high=after,
                         base_dilation=ones, dilation=ones)  # fmt: skip
    return x / (c.attr("bias") + c.attr("alpha") / size * total)._with("pow", c.attr("beta"))


def layer_norm(c: Call) -> list[Array]:
    x, axis = c.x(), c.attr("axis") % c.x().rank
    axes = list(range(axis, x.rank))
    scale, bias, eps = c.x(1), c.optional(2), c.attr("epsilon")
    if not c.wants(1) and not c.wants(2) and x.dtype == f32 and axis == x.rank - 1 and scale.shape == x.shape[-1:]:
        zeros = c.body.full(scale.shape, 0.0) if bias is None else bias
        return [c.body.apply("layer_norm", x, scale, zeros, eps=eps)]
    w = x if x.dtype == f64 else x.astype(f32)
    mean = _mean(w, axes, True)
    centred = w - mean
    inverse = 1 / (_mean(centred * centred, axes, True) + eps).sqrt()
    y = (centred * inverse).astype(x.dtype) * scale
    return [y if bias is None else y + bias, mean, inverse]


def rms_norm(c: Call) -> Array:
    x, axis, eps = c.x(), c.attr("axis") % c.x().rank, c.attr("epsilon")
    scale = c.x(1)
    if x.dtype == f32 and axis == x.rank - 1 and scale.shape == x.shape[-1:]:
        return c.body.apply("rms_norm", x, scale, eps=eps)
    w = x if x.dtype == f64 else x.astype(f32)
    y = w / (_mean(w * w, list(range(axis, x.rank)), True) + eps).sqrt()
    return (y * scale.astype(y.dtype)).astype(x.dtype)


def _channelwise(x: Array, vector: Array) -> Array:
    """A number per channel, for every element of x[N, C, …]."""
    return vector.expand(x.shape, (1,))


def batch_norm(c: Call) -> list[Array]:
    x, scale, bias, mean, variance = (c.x(i) for i in range(5))
    eps = c.attr("epsilon")
    if not c.attr("training_mode", 0):
        factor = scale.astype(variance.dtype) / (variance + eps).sqrt()
        shift = bias.astype(mean.dtype) - mean * factor
        return [x * _channelwise(x, factor.astype(x.dtype)) + _channelwise(x, shift.astype(x.dtype))]
    axes = [i for i in range(x.rank) if i != 1]
    own = _mean(x, axes, False)
    centred = x - _channelwise(x, own)
    spread = _mean(centred * centred, axes, False)
    y = centred * _channelwise(x, scale / (spread + eps).sqrt()) + _channelwise(x, bias)
    momentum = c.attr("momentum")
    return [y, mean * momentum + own * (1 - momentum), variance * momentum + spread * (1 - momentum)]


def instance_norm(c: Call) -> Array:
    x, scale, bias = c.x(0), c.x(1), c.x(2)
    axes = list(range(2, x.rank))
    centred = x - _mean(x, axes, True)
    y = centred / (_mean(centred * centred, axes, True) + c.attr("epsilon")).sqrt()
    return y * _channelwise(x, scale) + _channelwise(x, bias)


def group_norm(c: Call) -> Array:
    x, scale, bias, groups = c.x(0), c.x(1), c.x(2), c.attr("num_groups")
    w = x.astype(f32)
    split = w.reshape(x.shape[0], groups, -1)
    centred = split - _mean(split, [2], True)
    y = (centred / (_mean(centred * centred, [2], True) + c.attr("epsilon")).sqrt()).reshape(*x.shape)
    if scale.shape != (x.shape[1],):  # before opset 21 a number per group
        each = x.shape[1] // groups
        scale, bias = (v.expand((groups, each), (0,)).reshape(-1) for v in (scale, bias))
    return (y * _channelwise(x, scale.astype(f32)) + _channelwise(x, bias.astype(f32))).astype(x.dtype)


def mean_variance(c: Call) -> Array:
    x, axes = c.x(), c.attr("axes")
    centred = x - _mean(x, axes, True)
    return centred / (_mean(centred * centred, axes, True).sqrt() + 1e-9)


def matmul_(c: Call) -> Array:
    return matmul(c.x(0), c.x(1))


def gemm(c: Call) -> Array:
    a, b, bias = c.x(0), c.x(1), c.optional(2)
    a = a.transpose() if c.attr("transA") else a
    alpha, beta = c.attr("alpha"), c.attr("beta")
    if is_weight(b) and a.dtype == f32 and alpha == 1.0:
        y = linear(a, b if c.attr("transB") else b.transpose())
    else:
        y = dot(a, b, ((1,), (1 if c.attr("transB") else 0,)))
        y = y * alpha if alpha != 1.0 else y
    if bias is None:
        return y
    return y + (bias * (beta if bias.dtype.is_float else int(beta)) if beta != 1.0 else bias)


def einsum(c: Call) -> Array:
    return einsum_of(c.attr("equation"), c.xs())


def einsum_of(equation: str, operands: Sequence[Array]) -> Array:
    """NumPy's einsum, two operands at a time from the left."""
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    ellipsis = max((x.rank - len(t.replace("...", "")) for t, x in zip(terms, operands) if "..." in t), default=0)
    free = "".join(chr(0x3B1 + i) for i in range(ellipsis))  # letters for the axes under "..."

    def spelled(term: str, x: Array) -> str:
        return term.replace("...", free[ellipsis - (x.rank - len(term.replace("...", ""))) :])

    named = [spelled(t, x) for t, x in zip(terms, operands)]
    if arrow:
        result = right.replace("...", free)
    else:
        letters = sorted(set("".join(t.replace("...", "") for t in terms)))
        result = free + "".join(s for s in letters if left.count(s) == 1)
    labels, x = _diagonal(named[0], operands[0])
    for i, (term, y) in enumerate(zip(named[1:], operands[1:]), 1):
        later = set(result).union(*named[i + 1 :])
        other, y = _diagonal(term, y)
        labels, x = _contract(labels, x, other, y, later)
    summed = [i for i, s in enumerate(labels) if s not in result]
    x = x.sum(*summed) if summed else x
    labels = [s for s in labels if s in result]
    return x.transpose(*(labels.index(s) for s in result)) if result else x


def _diagonal(term: str, x: Array) -> tuple[list[str], Array]:
    """A term without repeated letters: of equal axes the diagonal."""
    labels = list(term)
    for letter in dict.fromkeys(labels):
        while labels.count(letter) > 1:
            a, b = (i for i, s in enumerate(labels) if s == letter)
            same = x.body.iota(x.shape, a).compare("eq", x.body.iota(x.shape, b))
            x = where(same, x, x.like(0)).sum(b)
            del labels[b]
    return labels, x


def _contract(left: list[str], x: Array, right: list[str], y: Array, later: set[str]) -> tuple[list[str], Array]:
    for labels, other, own in ((left, right, 0), (right, left, 1)):
        gone = [i for i, s in enumerate(labels) if s not in later and s not in other]
        if gone:
            x, y = (x.sum(*gone), y) if own == 0 else (x, y.sum(*gone))
        labels[:] = [s for s in labels if s in later or s in other]
    both = [s for s in left if s in right]
    for s in both:  # a size of one stands for any
        i, j = left.index(s), right.index(s)
        if x.shape[i] != y.shape[j]:
            x = _grown(x, i, y.shape[j]) if x.shape[i] == 1 else x
            y = _grown(y, j, x.shape[i]) if y.shape[j] == 1 else y
    batch, summed = [s for s in both if s in later], [s for s in both if s not in later]
    product = dot(x, y, ([left.index(s) for s in summed], [right.index(s) for s in summed]),
                  ([left.index(s) for s in batch], [right.index(s) for s in batch]))  # fmt: skip
    return [*batch, *(s for s in left if s not in both), *(s for s in right if s not in both)], product


def _grown(x: Array, axis: int, size: Dim) -> Array:
    return x.broadcast_to(tuple(size if i == axis else d for i, d in enumerate(x.shape)))


def determinant(c: Call) -> Array:
    """Gaussian elimination with partial pivoting, a step for each column."""
    x = c.x()
    n = x.shape[-1]
    assert isinstance(n, int)
    lead = x.shape[:-2]
    x = x.reshape(-1, n, n) if lead else x.reshape(1, n, n)
    result = x.body.full((x.shape[0],), 1.0, x.dtype)
    for size in range(n, 0, -1):
        column = x.at(2, 0)
        row = column.abs().unary("argmax", axis=1, dtype=i64)
        pivot_row = taken_along(x, row.expand((x.shape[0], 1, size), (0,)), 1)
        pivot = pivot_row.at(2, 0).squeeze(1)
        result = result * where(row.compare("eq", 0), pivot, -pivot)
        if size == 1:
            break
        first = x.slice(1, 0, 1)
        here = x.body.iota(x.shape, 1).compare("eq", row.expand(x.shape, (0,)))
        swapped = where(here, first, x).slice(1, 1)
        safe = where(pivot.compare("eq", 0), pivot.like(1.0), pivot)
        factor = swapped.at(2, 0) / safe.unsqueeze(1)
        x = (swapped - factor.unsqueeze(2) * pivot_row).slice(2, 1)
    return result.reshape(*lead) if lead else result.reshape(())


def window(cosines: Sequence[float]) -> Rule:
    """Σ ± cosines[k] cos(2πkn / N), N the size if periodic, else one less."""

    def rule(c: Call) -> Array:
        size = int(c.numbers(0).reshape(-1)[0])
        n = np.arange(size) * 2 * math.pi / (size if c.attr("periodic") else size - 1)
        values = sum((-1) ** k * a * np.cos(k * n) for k, a in enumerate(cosines))
        return c.body.constant(values, f64).astype(dtype_named(c.attr("output_datatype"), c.where))

    return rule


def _l1(x: Array, axes: list[int], keep: bool) -> Array:
    return x.abs().sum(*axes, keepdims=keep)


REDUCTIONS: Mapping[str, Rule] = {
    "ReduceSum": plain_reduction("sum"), "ReduceProd": plain_reduction("prod"), "ReduceMax": plain_reduction("max"),
    "ReduceMin": plain_reduction("min"), "ReduceMean": reduction(_mean), "ReduceL1": reduction(_l1),
    "ReduceL2": reduction(_l2), "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(*axes, keepdims=keep).log()),
    "ReduceLogSumExp": reduction(_log_sum_exp),
    "ReduceSumSquare": reduction(lambda x, axes, keep: (x * x).sum(*axes, keepdims=keep)),
    "ArgMax": arg("argmax"), "ArgMin": arg("argmin"), "CumSum": running("cumsum"), "CumProd": running("cumprod"),
    "TopK": top_k, "Softmax": softmax_like(lambda x, axis: x.softmax(axis)), "LogSoftmax": softmax_like(log_softmax),
    "Hardmax": softmax_like(hardmax), "LpNormalization": lp_normalization, "LRN": lrn,
    "LayerNormalization": layer_norm, "RMSNormalization": rms_norm, "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "MeanVarianceNormalization": mean_variance, "MatMul": matmul_, "Gemm": gemm, "Einsum": einsum, "Det": determinant,
    "HannWindow": window((0.5, 0.5)), "HammingWindow": window((25 / 46, 21 / 46)),
    "BlackmanWindow": window((0.42, 0.5, 0.08)),
}  # fmt: skip

__all__ = ["REDUCTIONS", "einsum_of", "log_softmax"]
