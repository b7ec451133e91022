"""The ops a model is written in besides its linears: norms, activations, rotary embedding, softmax, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..graph import REQUIRED, Op
from ..numerics import attention, elementary, linear
from ..types import DType, Type, boolean, f32
from . import decompose
from .common import Arrays, Types, arity, expect, is_rank, moves, plain, positive_axis, vector
from .linear import QUANTIZED

STYLES = ("neox", "interleaved")


def _f32(*types: Type) -> None:
    plain(*types)
    for t in types:
        expect(t.dtype == f32, f"computes in f32, not on {t}")


def _infer_unary(x: Type, **_: Any) -> Types:
    _f32(x)
    return (x,)


def _infer_gated(gate: Type, up: Type, *, activation: str) -> Types:
    _f32(gate, up)
    expect(activation in elementary.ACTIVATIONS, f"unknown activation {activation!r}")
    expect(gate == up, f"{gate} and {up} must be equal types")
    return (gate,)


def _infer_rms_norm(x: Type, weight: Type, *, eps: float, dtype: DType) -> Types:
    _f32(x)
    expect(x.rank > 0, "takes at least one dimension")
    vector(weight, x.shape[-1], "the weight", f32)
    expect(dtype in (f32, *QUANTIZED), f"cannot give {dtype}")
    return (Type(x.shape, dtype),)


def _infer_layer_norm(x: Type, weight: Type, bias: Type, *, eps: float) -> Types:
    _f32(x)
    expect(x.rank > 0, "takes at least one dimension")
    vector(weight, x.shape[-1], "the weight", f32)
    vector(bias, x.shape[-1], "the bias", f32)
    return (x,)


def _infer_softmax(x: Type, *, axis: int) -> Types:
    _f32(x)
    positive_axis(axis, x.rank)
    return (x,)


def _infer_rope_angles(position: Type, inv_freq: Type, *, scale: float) -> Types:
    is_rank(position, 1, "position")
    vector(position, position.shape[0], "position")
    is_rank(inv_freq, 1, "inv_freq")
    _f32(inv_freq)
    return (Type((position.shape[0], inv_freq.shape[0]), f32),) * 2


def infer_rope(x: Type, cos: Type, sin: Type, *, style: str) -> Types:
    """x[T, H, D] with cos and sin [T, n], 2n <= D."""
    _f32(x, cos, sin)
    is_rank(x, 3, "x")
    is_rank(cos, 2, "cos")
    expect(cos == sin and cos.shape[0] == x.shape[0], f"cos {cos} and sin {sin} must both be [{x.shape[0]}, n]")
    expect(style in STYLES, f"style must be one of {', '.join(STYLES)}, not {style!r}")
    width, rotated = x.shape[2], cos.shape[1]
    if isinstance(width, int) and isinstance(rotated, int):
        expect(2 * rotated <= width, f"{rotated} pairs do not fit a head of {width}")
    return (x,)


def _infer_attention(*types: Type, scale: float, causal: bool, softcap: float) -> Types:
    arity(types, 3, 4)
    q, k, v, *mask = types
    _f32(q, k, v)
    for t, what in ((q, "q"), (k, "k"), (v, "v")):
        is_rank(t, 4, what)
    expect(q.shape[0] == k.shape[0] == v.shape[0] and k.shape[1:3] == v.shape[1:3], f"k {k} and v {v} do not fit q {q}")
    expect(q.shape[3] == k.shape[3], f"q {q} and k {k} have different head sizes")
    heads(q.shape[1], k.shape[1])
    full = (*q.shape[:3], k.shape[2])
    for m in mask:
        expect(m.dtype in (boolean, f32) and m.rank == 4 and all(d in (1, n) for d, n in zip(m.shape, full)),
               f"the mask must be bool or f32, each axis 1 or that of {full}, not {m}")  # fmt: skip
    return (Type((*q.shape[:3], v.shape[3]), f32),)


def heads(queries: Any, keys: Any) -> None:
    """Each key head serves the same whole number of query heads."""
    expect(isinstance(queries, int) and isinstance(keys, int) and queries % keys == 0,
           f"{queries} query heads cannot share {keys} key heads")  # fmt: skip


def _infer_take_rows(x: Type, rows: Type) -> Types:
    plain(x)
    is_rank(x, 2, "x")
    is_rank(rows, 1, "rows")
    vector(rows, rows.shape[0], "rows")
    return (Type((rows.shape[0], x.shape[1]), x.dtype),)


def _ref(function: Callable[..., np.ndarray]) -> Callable[..., Arrays]:
    """A reference with one result, of operands that are their own meaning."""
    return lambda types, *arrays, **attrs: (function(*arrays, **attrs),)


def _rms_norm(types: Types, x: np.ndarray, weight: np.ndarray, *, eps: float, dtype: DType) -> Arrays:
    y = attention.rms_norm(x, weight, eps)
    return (y if dtype == f32 else linear.quantize(y, dtype),)


def _gated(gate: np.ndarray, up: np.ndarray, *, activation: str) -> np.ndarray:
    return elementary.ACTIVATIONS[activation](gate) * up


NAMED = (
    Op("silu", _infer_unary, _ref(elementary.silu), decompose.silu),
    Op("gelu_tanh", _infer_unary, _ref(elementary.gelu_tanh), decompose.gelu_tanh),
    Op("gelu", _infer_unary, _ref(elementary.gelu), decompose.gelu),
    Op("softcap", _infer_unary, _ref(elementary.softcap), decompose.softcap, (("cap", REQUIRED),)),
    Op("gated", _infer_gated, _ref(_gated), decompose.gated, (("activation", REQUIRED),)),
    Op("rms_norm", _infer_rms_norm, _rms_norm, decompose.rms_norm, (("eps", REQUIRED), ("dtype", f32))),
    Op("layer_norm", _infer_layer_norm, _ref(attention.layer_norm), decompose.layer_norm, (("eps", REQUIRED),)),
    Op("softmax", _infer_softmax, _ref(attention.softmax), decompose.softmax, (("axis", REQUIRED),)),
    Op("rope_angles", _infer_rope_angles, lambda types, *a, **k: attention.rope_angles(*a, **k), decompose.rope_angles,
       (("scale", 1.0),)),
    Op("rope", infer_rope, _ref(attention.rope), decompose.rope, (("style", REQUIRED),)),
    Op("attention", _infer_attention, _ref(attention.attention), decompose.attention,
       (("scale", REQUIRED), ("causal", False), ("softcap", 0.0))),
    Op("take_rows", _infer_take_rows, moves(lambda x, rows: x[rows]), decompose.take_rows),
)  # fmt: skip
