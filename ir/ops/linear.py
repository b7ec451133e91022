"""Products with weights, and the ops that make their operands: linear and its fused forms, embedding, quantisation, packing.

Operands: x is [T, K]; a weight is [N, K], one row per output, of any float or block dtype, row-major or in panels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import REQUIRED, Op
from ..numerics import elementary
from ..types import Dim, DType, Type, a8g32, a8g256, bf16, f32, i32
from . import decompose
from .common import Arrays, Types, arity, expect, is_rank, kind_of, plain, vector

LAYOUTS = ("", "panel16")
# What an int8 activation dtype multiplies: weights in blocks of this many values.
WEIGHT_BLOCK = {a8g32: 32, a8g256: 256}


def _weight(w: Type, inner: Dim, rank: int = 2) -> None:
    is_rank(w, rank, "a weight")
    expect(kind_of(w.dtype) in ("float", "block") and w.layout in LAYOUTS, f"{w} is no weight")
    expect(w.shape[-1] == inner, f"the inner dimensions {inner} and {w.shape[-1]} differ")


def _product(x: Type, w: Type, *extra: Type, residual: bool = False) -> Type:
    """The type of linear(x, w); `extra` may hold a residual, where there is one, and a bias."""
    is_rank(x, 2, "x")
    _weight(w, x.shape[1])
    _pair(x.dtype, w.dtype)
    result = Type((x.shape[0], w.shape[0]), f32)
    if residual:
        expect(extra[0] == result, f"the residual must be {result}, not {extra[0]}")
    for bias in extra[residual:]:
        vector(bias, w.shape[0], "the bias", f32)
    return result


def _pair(x: DType, w: DType) -> None:
    if x in WEIGHT_BLOCK:
        expect(w.block == WEIGHT_BLOCK[x], f"{x} multiplies weights in blocks of {WEIGHT_BLOCK[x]}, not {w}")
    else:
        expect(x == f32 or x == w == bf16, f"x may be f32, a8g32 or a8g256, or bf16 with a bf16 weight, not {x} with {w}")


def _infer_linear(*types: Type) -> Types:
    arity(types, 2, 3)
    return (_product(*types),)


def _infer_linear_add(*types: Type) -> Types:
    arity(types, 3, 4)
    return (_product(*types, residual=True),)


def _split(items: Any, biases: tuple[bool, ...]) -> list[tuple[Any, ...]]:
    """The operands of linear_group after x, as (weight,) or (weight, bias) for each product."""
    weights, extra = items[: len(biases)], iter(items[len(biases) :])
    return [(w, next(extra)) if has else (w,) for w, has in zip(weights, biases)]


def _infer_linear_group(x: Type, *types: Type, biases: tuple[bool, ...]) -> Types:
    count = len(biases) + sum(biases)
    expect(len(biases) > 0 and len(types) == count, f"biases {biases} need x and {count} operands, not {len(types)}")
    return tuple(_product(x, *operands) for operands in _split(types, biases))


def _infer_gated_linear(x: Type, gate: Type, up: Type, *, activation: str) -> Types:
    expect(activation in elementary.ACTIVATIONS, f"unknown activation {activation!r}")
    result = _product(x, gate)
    expect(_product(x, up) == result, f"{gate} and {up} have different numbers of rows")
    return (result,)


def _infer_expert_linear(x: Type, w: Type, ids: Type) -> Types:
    is_rank(x, 2, "x")
    _weight(w, x.shape[1], rank=3)
    _pair(x.dtype, w.dtype)
    expect(ids.rank == 2 and ids.dtype == i32 and ids.shape[0] == x.shape[0], f"ids must be i32[{x.shape[0]}, n]: {ids}")
    return (Type((*ids.shape, w.shape[1]), f32),)


def _infer_embedding(table: Type, ids: Type) -> Types:
    is_rank(table, 2, "the table")
    _weight(table, table.shape[1])
    is_rank(ids, 1, "ids")
    vector(ids, ids.shape[0], "ids")
    return (Type((ids.shape[0], table.shape[1]), f32),)


QUANTIZED = (bf16, a8g32, a8g256)


def _infer_quantize(x: Type, *, dtype: DType) -> Types:
    expect(x.dtype == f32 and x.rank > 0 and not x.layout, f"takes f32[..., K], not {x}")
    expect(dtype in QUANTIZED, f"dtype must be one of {', '.join(map(str, QUANTIZED))}, not {dtype}")
    return (Type(x.shape, dtype),)


def _infer_dequantize(w: Type) -> Types:
    expect(kind_of(w.dtype) in ("float", "block", "activation") and w.layout in LAYOUTS, f"{w} holds no numbers to widen")
    return (Type(w.shape, f32),)


def _infer_pack(w: Type, *, layout: str) -> Types:
    is_rank(w, w.rank if w.rank == 3 else 2, "a weight")
    expect(not w.layout, f"{w} is packed already")
    expect(layout in LAYOUTS[1:], f"layout must be panel16, not {layout!r}")
    pass
    return (Type(w.shape, w.dtype, layout),)


def _infer_unpack(w: Type) -> Types:
    expect(w.layout == "panel16", f"{w} is not packed")
    return (Type(w.shape, w.dtype),)


def _infer_concat_rows(*types: Type) -> Types:
    arity(types, 1, 1 << 16)
    for w in types:
        is_rank(w, 2, "a weight")
        expect(not w.layout and w.dtype == types[0].dtype and w.shape[1] == types[0].shape[1],
               f"{w} and {types[0]} must be row-major rows of one kind")  # fmt: skip
    return (Type((sum((w.shape[0] for w in types), 0), types[0].shape[1]), types[0].dtype),)


def _infer_requantize(w: Type, *, dtype: DType) -> Types:
    expect(kind_of(w.dtype) == "block" and not w.layout, f"takes a row-major block weight, not {w}")
    expect(kind_of(dtype) == "block", f"{dtype} has no kernels")
    return (Type(w.shape, dtype),)


def quantize_rows(x: np.ndarray, dtype: DType) -> np.ndarray:
    raise NotImplementedError


def _later(types: Types, *arrays: np.ndarray, **attrs: Any) -> Arrays:
    raise NotImplementedError


LINEAR = (
    Op("linear", _infer_linear, _later, decompose.linear),
    Op("linear_group", _infer_linear_group, _later, decompose.linear_group, (("biases", REQUIRED),)),
    Op("linear_add", _infer_linear_add, _later, decompose.linear_add),
    Op("gated_linear", _infer_gated_linear, _later, decompose.gated_linear, (("activation", REQUIRED),)),
    Op("expert_linear", _infer_expert_linear, _later, decompose.expert_linear),
    Op("embedding", _infer_embedding, _later, decompose.embedding),
    Op("quantize", _infer_quantize, _later, attributes=(("dtype", REQUIRED),)),
    Op("dequantize", _infer_dequantize, _later),
    Op("pack", _infer_pack, _later, attributes=(("layout", "panel16"),)),
    Op("unpack", _infer_unpack, _later),
    Op("concat_rows", _infer_concat_rows, _later),
    Op("requantize", _infer_requantize, _later, attributes=(("dtype", REQUIRED),)),
)
