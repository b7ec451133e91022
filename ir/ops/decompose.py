"""Each named op in simpler ones: for backends without a kernel, and what a traced composite's body is checked against.

Equal to the reference in exact arithmetic. The order of rounding is the reference's where the simpler ops allow it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..graph import Value, make
from ..types import Dim, DType, Type, boolean, f32, floordiv, i32, numpy_dtype

Values = tuple[Value, ...]
LOWEST, TINY = (float(x) for x in (np.finfo(np.float32).min, np.finfo(np.float32).tiny))


def emit(name: str, *operands: Value, **attrs: Any) -> Value:
    """The one result of a new node."""
    return make(ops.OPS[name], *operands, **attrs)[0]


def constant(value: float, shape: tuple[Dim, ...] = (), dtype: DType = f32) -> Value:
    """A scalar spread over `shape`."""
    scalar = emit("constant", value=np.array(value, numpy_dtype(dtype)).tobytes(), type=Type((), dtype))
    return emit("broadcast", scalar, shape=shape, dims=()) if shape else scalar


def _like(value: float, x: Value) -> Value:
    return constant(value, x.shape)


def _spread(x: Value, shape: tuple[Dim, ...], *dims: int) -> Value:
    return emit("broadcast", x, shape=shape, dims=dims)


def _over_last(x: Value, like: Value) -> Value:
    """One number per row, for every element of the row."""
    return _spread(x, like.shape, *range(like.type.rank - 1))


def _along_last(x: Value, like: Value) -> Value:
    """One number per column, for every row."""
    return _spread(x, like.shape, like.type.rank - 1)


def add(a: Value, b: Value) -> Value:
    return emit("add", a, b)


def sub(a: Value, b: Value) -> Value:
    return emit("sub", a, b)


def mul(a: Value, b: Value) -> Value:
    return emit("mul", a, b)


def div(a: Value, b: Value) -> Value:
    return emit("div", a, b)


# --- Activations ---


def silu(x: Value) -> Values:
    return (div(x, add(_like(1, x), emit("exp", emit("neg", x)))),)


def gelu_tanh(x: Value) -> Values:
    cubed = mul(mul(x, x), x)
    inner = mul(_like(0.7978845608, x), add(x, mul(_like(0.044715, x), cubed)))
    return (mul(mul(_like(0.5, x), x), add(_like(1, x), emit("tanh", inner))),)


def gelu(x: Value) -> Values:
    return (mul(mul(_like(0.5, x), x), add(_like(1, x), emit("erf", mul(x, _like(0.5**0.5, x))))),)


def softcap(x: Value, *, cap: float) -> Values:
    return (mul(_like(cap, x), emit("tanh", div(x, _like(cap, x)))),)


def gated(gate: Value, up: Value, *, activation: str) -> Values:
    return (mul(emit(activation, gate), up),)


# --- Norms and softmax ---


def _mean(x: Value) -> Value:
    """The mean along the last axis, for every element of the row."""
    axis = x.type.rank - 1
    total = emit("reduce", x, kind="sum", axes=(axis,))
    return _over_last(div(total, _count(x.shape[axis], total)), x)


def _count(size: Dim, like: Value) -> Value:
    """A dimension as f32, for every element of `like`."""
    if isinstance(size, int):
        return _like(size, like)
    return _spread(emit("convert", length(size), dtype=f32), like.shape)


def _normalised(x: Value, eps: float) -> Value:
    mean_square = _mean(mul(x, x))
    return mul(x, div(_like(1, x), emit("sqrt", add(mean_square, _like(eps, x)))))


def rms_norm(x: Value, weight: Value, *, eps: float, dtype: DType) -> Values:
    y = mul(_normalised(x, eps), _along_last(weight, x))
    return (y if dtype == f32 else emit("quantize", y, dtype=dtype),)


def layer_norm(x: Value, weight: Value, bias: Value, *, eps: float) -> Values:
    y = _normalised(sub(x, _mean(x)), eps)
    return (add(mul(y, _along_last(weight, x)), _along_last(bias, x)),)


def softmax(x: Value, *, axis: int) -> Values:
    others = tuple(i for i in range(x.type.rank) if i != axis)
    highest = emit("reduce", x, kind="max", axes=(axis,))
    e = emit("exp", sub(x, _spread(highest, x.shape, *others)))
    total = emit("reduce", e, kind="sum", axes=(axis,))
    return (div(e, _spread(total, x.shape, *others)),)


# --- Rotary embedding ---


def rope_angles(position: Value, inv_freq: Value, *, scale: float) -> Values:
    shape = (position.shape[0], inv_freq.shape[0])
    angle = mul(_spread(emit("convert", position, dtype=f32), shape, 0), _spread(inv_freq, shape, 1))
    return tuple(mul(emit(f, angle), _like(scale, angle)) for f in ("cos", "sin"))


def _columns(x: Value, start: Dim, limit: Dim, stride: int = 1) -> Value:
    """x[..., start:limit:stride]."""
    *lead, _ = x.shape
    none = (0,) * len(lead)
    return emit("slice", x, start=(*none, start), limit=(*lead, limit), stride=(*(1 for _ in none), stride))


def rope(x: Value, cos: Value, sin: Value, *, style: str) -> Values:
    tokens, head_count, width = x.shape
    n = cos.shape[1]
    half = (tokens, head_count, n)
    c, s = _spread(cos, half, 0, 2), _spread(sin, half, 0, 2)
    if style == "neox":
        a, b = _columns(x, 0, n), _columns(x, n, 2 * n)
    else:
        a, b = _columns(x, 0, 2 * n, 2), _columns(x, 1, 2 * n, 2)
    turned = sub(mul(a, c), mul(b, s)), add(mul(b, c), mul(a, s))
    if style == "neox":
        rotated = emit("concatenate", *turned, axis=2)
    else:
        pairs = [_spread(t, (*half, 1), 0, 1, 2) for t in turned]
        rotated = emit("reshape", emit("concatenate", *pairs, axis=3), shape=(tokens, head_count, 2 * n))
    return (rotated if width == 2 * n else emit("concatenate", rotated, _columns(x, 2 * n, width), axis=2),)


def rope_cache_write(cache: Value, x: Value, cos: Value, sin: Value, sequence: Value, position: Value, *, style: str,
                     window: int) -> Values:  # fmt: skip
    turned = emit("rope", x, cos, sin, style=style)
    return (emit("cache_write", cache, turned, sequence, position, window=window),)


# --- Linears ---


def _wide(x: Value) -> Value:
    return x if x.type == Type(x.shape, f32) else emit("dequantize", x)


def linear(x: Value, w: Value, *bias: Value) -> Values:
    y = emit("dot_general", _wide(x), _wide(w), contracting=((1,), (1,)))
    return (add(y, _along_last(bias[0], y)) if bias else y,)


def linear_add(x: Value, w: Value, residual: Value, *bias: Value) -> Values:
    return (add(residual, emit("linear", x, w, *bias)),)


def linear_group(x: Value, *operands: Value, biases: tuple[bool, ...]) -> Values:
    weights, extra = operands[: len(biases)], iter(operands[len(biases) :])
    return tuple(emit("linear", x, w, *([next(extra)] if has else [])) for w, has in zip(weights, biases))


def gated_linear(x: Value, gate: Value, up: Value, *, activation: str, dtype: DType) -> Values:
    y = emit("gated", emit("linear", x, gate), emit("linear", x, up), activation=activation)
    return (y if dtype == f32 else emit("quantize", y, dtype=dtype),)


def _rows(table: Value, indices: Value) -> Value:
    """table[indices] over the first axis, for indices of any rank."""
    rest = table.shape[1:]
    return emit("gather", table, emit("reshape", indices, shape=(*indices.shape, 1)), slice_sizes=(1, *rest),
                offset_dims=tuple(indices.type.rank + i for i in range(len(rest))), collapsed_slice_dims=(0,),
                start_index_map=(0,), mode="promise")  # fmt: skip


def embedding(table: Value, ids: Value) -> Values:
    return (_rows(_wide(table), ids),)


def take_rows(x: Value, rows: Value) -> Values:
    return (_rows(x, rows),)


def expert_linear(x: Value, w: Value, ids: Value) -> Values:
    chosen = _rows(_wide(w), ids)  # [T, E_used, N, K]
    return (emit("dot_general", _wide(x), chosen, contracting=((1,), (3,)), batch=((0,), (0,))),)


# --- Dense attention ---


def attention(q: Value, k: Value, v: Value, *mask: Value, scale: float, causal: bool, softcap: float) -> Values:
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    k, v = (_repeat_heads(x, heads) for x in (k, v))
    full = (batch, heads, queries, keys)
    score = emit("dot_general", q, k, contracting=((3,), (3,)), batch=((0, 1), (0, 1)))
    score = mul(score, _like(scale, score))
    if softcap:
        score = emit("softcap", score, cap=softcap)
    visible = []
    for m in mask:
        wide = _spread(emit("reshape", m, shape=tuple(d for d in m.shape if d != 1)), full,
                       *(i for i, d in enumerate(m.shape) if d != 1))  # fmt: skip
        if m.dtype == boolean:
            visible.append(wide)
        else:
            score = add(score, wide)
    if causal:
        visible.append(_causal(full))
    if not visible:
        return (emit("dot_general", emit("softmax", score, axis=3), v, contracting=((3,), (2,)),
                     batch=((0, 1), (0, 1))),)  # fmt: skip
    seen = visible[0] if len(visible) == 1 else emit("and", *visible)
    # A query that sees nothing gives zeros, so the softmax is written out, with 0/1 made 0/max(0, tiny).
    lowest = emit("select", seen, score, _like(LOWEST, score))
    highest = emit("reduce", lowest, kind="max", axes=(3,))
    e = emit("select", seen, emit("exp", sub(lowest, _over_last(highest, score))), _like(0, score))
    total = emit("max", emit("reduce", e, kind="sum", axes=(3,)), constant(TINY, full[:3]))
    p = div(e, _over_last(total, e))
    return (emit("dot_general", p, v, contracting=((3,), (2,)), batch=((0, 1), (0, 1))),)


def _repeat_heads(x: Value, heads: Dim) -> Value:
    """[B, H, T, D] with each head repeated in place until there are `heads`."""
    batch, own, tokens, width = x.shape
    if own == heads:
        return x
    shape = (batch, own, floordiv(heads, own), tokens, width)
    return emit("reshape", _spread(x, shape, 0, 1, 3, 4), shape=(batch, heads, tokens, width))


def _causal(full: tuple[Dim, ...]) -> Value:
    """True where key j <= query i + (keys - queries)."""
    query, key = (emit("iota", type=Type(full, i32), dim=d) for d in (2, 3))
    ahead = sub(length(full[3]), length(full[2]))
    return emit("compare", key, add(query, _spread(ahead, full)), direction="le")


def length(size: Dim) -> Value:
    """A dimension as an i32 scalar."""
    if isinstance(size, int):
        return constant(size, (), i32)
    ones = _spread(constant(1, (), i32), (size,))
    return emit("reduce", ones, kind="sum", axes=(0,))
