"""Products with weights, and what makes their operands: linear and its fused forms, embedding, quantisation, packing.

Operands: x is [T, K]; a weight is [N, K], one row per output, of any float or block dtype, row-major or in panels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import quant
from ..graph import REQUIRED, Op
from ..numerics import elementary
from ..numerics import linear as products
from ..types import Dim, DType, Type, a8g32, bf16, f32, i32
from . import decompose
from .common import Arrays, Types, arity, expect, is_rank, kind_of, vector

LAYOUTS = ("", "panel16")


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
    fits = x == f32 or x == w == bf16 or x == a8g32 and kind_of(w) == "block"
    expect(fits, f"x may be f32, a8g32 with a weight in blocks, or bf16 with a bf16 weight, not {x} with {w}")


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


def _infer_gated_linear(x: Type, gate: Type, up: Type, *, activation: str, dtype: DType) -> Types:
    expect(activation in elementary.ACTIVATIONS, f"unknown activation {activation!r}")
    result = _product(x, gate)
    expect(_product(x, up) == result, f"{gate} and {up} have different numbers of rows")
    return (result,) if dtype == f32 else _infer_quantize(result, dtype=dtype)


def _infer_expert_linear(x: Type, w: Type, ids: Type) -> Types:
    is_rank(x, 2, "x")
    _weight(w, x.shape[1], rank=3)
    _pair(x.dtype, w.dtype)
    is_rank(ids, 2, "ids")
    expect(ids.dtype == i32 and ids.shape[0] == x.shape[0], f"ids must be i32[{x.shape[0]}, n], not {ids}")
    return (Type((*ids.shape, w.shape[1]), f32),)


def _infer_embedding(table: Type, ids: Type) -> Types:
    is_rank(table, 2, "the table")
    _weight(table, table.shape[1])
    is_rank(ids, 1, "ids")
    vector(ids, ids.shape[0], "ids")
    return (Type((ids.shape[0], table.shape[1]), f32),)


QUANTIZED = (bf16, a8g32)


def _infer_quantize(x: Type, *, dtype: DType) -> Types:
    expect(x.dtype == f32 and x.rank > 0 and not x.layout, f"takes f32[..., K], not {x}")
    expect(dtype in QUANTIZED, f"dtype must be one of {', '.join(map(str, QUANTIZED))}, not {dtype}")
    return (Type(x.shape, dtype),)


def _infer_dequantize(w: Type) -> Types:
    expect(kind_of(w.dtype) in ("float", "block", "activation"), f"{w} has nothing to widen")
    return (Type(w.shape, f32),)


def _infer_pack(w: Type, *, layout: str) -> Types:
    expect(w.rank in (2, 3) and not w.layout, f"{w} is no row-major weight")
    expect(layout in LAYOUTS[1:], f"layout must be panel16, not {layout!r}")
    expect(quant.is_direct(w.dtype), f"{w.dtype} has no packed form; recode it first")
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


def _infer_encode(w: Type, *, dtype: DType) -> Types:
    expect(w.rank == 2 and w.dtype == f32 and not w.layout, f"takes f32[N, K], not {w}")
    expect(dtype.name in quant.ROUNDED, f"dtype must be one of {', '.join(quant.ROUNDED)}, not {dtype}")
    return (Type(w.shape, dtype),)


def _infer_recode(w: Type) -> Types:
    expect(w.dtype.name in quant.RECODED and not w.layout, f"takes a row-major weight in grid points, not {w}")
    return (Type(w.shape, quant.computed(w.dtype)),)


# --- Meaning ---


def _times(types: Types, x: np.ndarray, w: np.ndarray, w_type: Type, *bias: np.ndarray) -> np.ndarray:
    y = products.linear(x, types[0].dtype, w, w_type)
    return y + bias[0] if bias else y


def _linear(types: Types, x: np.ndarray, w: np.ndarray, *bias: np.ndarray) -> Arrays:
    return (_times(types, x, w, types[1], *bias),)


def _linear_add(types: Types, x: np.ndarray, w: np.ndarray, residual: np.ndarray, *bias: np.ndarray) -> Arrays:
    return (residual + _times(types, x, w, types[1], *bias),)


def _linear_group(types: Types, x: np.ndarray, *operands: np.ndarray, biases: tuple[bool, ...]) -> Arrays:
    return tuple(_times(types, x, w, w_type, *bias) for (w, *bias), w_type in zip(_split(operands, biases), types[1:]))


def _gated_linear(types: Types, x: np.ndarray, gate: np.ndarray, up: np.ndarray, *, activation: str,
                  dtype: DType) -> Arrays:  # fmt: skip
    y = elementary.ACTIVATIONS[activation](_times(types, x, gate, types[1])) * _times(types, x, up, types[2])
    return (y if dtype == f32 else products.quantize(y, dtype),)


def _expert_linear(types: Types, x: np.ndarray, w: np.ndarray, ids: np.ndarray) -> Arrays:
    row_major = quant.unpack(types[1], w) if types[1].layout else w
    each = Type(types[1].shape[1:], types[1].dtype)
    y = np.empty((*ids.shape, each.shape[0]), np.float32)
    for expert in np.unique(ids):
        tokens, places = np.nonzero(ids == expert)
        y[tokens, places] = _times(types, x[tokens], row_major[expert], each)
    return (y,)


def _embedding(types: Types, table: np.ndarray, ids: np.ndarray) -> Arrays:
    count, width = types[0].sizes
    expect(not ids.size or 0 <= ids.min() <= ids.max() < count, f"an id is outside 0..{count - 1}")
    rows = (quant.unpack(types[0], table) if types[0].layout else table)[ids]
    return (quant.dequantize(types[0].dtype, rows, (len(ids), width)),)


def _dequantize(types: Types, w: np.ndarray) -> Arrays:
    t = types[0]
    if kind_of(t.dtype) == "activation":
        x = quant.decode_activation(t.dtype, w)
        return (x.q.astype(np.float32) * np.repeat(x.d, t.dtype.block, axis=-1),)
    return (quant.dequantize(t.dtype, quant.unpack(t, w) if t.layout else w, t.sizes),)


LINEAR = (
    Op("linear", _infer_linear, _linear, decompose.linear),
    Op("linear_group", _infer_linear_group, _linear_group, decompose.linear_group, (("biases", REQUIRED),)),
    Op("linear_add", _infer_linear_add, _linear_add, decompose.linear_add),
    Op("gated_linear", _infer_gated_linear, _gated_linear, decompose.gated_linear,
       (("activation", REQUIRED), ("dtype", f32))),
    Op("expert_linear", _infer_expert_linear, _expert_linear, decompose.expert_linear),
    Op("embedding", _infer_embedding, _embedding, decompose.embedding),
    Op("quantize", _infer_quantize, lambda types, x, dtype: (products.quantize(x, dtype),),
       attributes=(("dtype", REQUIRED),)),
    Op("dequantize", _infer_dequantize, _dequantize),
    Op("pack", _infer_pack, lambda types, w, layout: (quant.pack(types[0], w),), attributes=(("layout", "panel16"),)),
    Op("unpack", _infer_unpack, lambda types, w: (quant.unpack(types[0], w),)),
    Op("concat_rows", _infer_concat_rows, lambda types, *ws: (np.concatenate(ws),)),
    Op("encode", _infer_encode, lambda types, w, dtype: (quant.round_to_blocks(dtype.name, w),),
       attributes=(("dtype", REQUIRED),)),
    Op("recode", _infer_recode, lambda types, w: (quant.recode(types[0].dtype, w),)),
)  # fmt: skip
