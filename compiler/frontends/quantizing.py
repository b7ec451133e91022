"""`--quant`: a model's float matrices rounded to a block format as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize as gguf_quantize

from ...errors import InfercError
from ...ir.graph import Weight
from ...ir.quant.rounding import ROUNDED, round_to_blocks
from ...ir.types import DTYPES, Type
from .language import Source, dequantized

FLOATS = ("f32", "f16", "bf16")
ROWS = 1 << 22  # values rounded at a time, to bound temporaries

# For each format what a matrix takes whose rows are no multiple of 256, and what embedding and head take at least.
QUANTS: Mapping[str, tuple[str, str]] = {
    "q8_0": ("q8_0", "q8_0"), "q6_k": ("q8_0", "q6_k"), "q5_k": ("q5_1", "q6_k"), "q4_k": ("q5_0", "q6_k"),
    "q3_k": ("q4_0", "q6_k"), "q2_k": ("q4_0", "q6_k"), "q5_1": ("q5_1", "q8_0"), "q5_0": ("q5_0", "q8_0"),
    "q4_1": ("q4_1", "q8_0"), "q4_0": ("q4_0", "q8_0"), "bf16": ("bf16", "bf16"),
}  # fmt: skip
TABLES = ("token_embd.weight", "output.weight")


def quantized(source: Source, name: str) -> Source:
    """The source with every matrix of floats in the format `name`, a key of QUANTS; vectors stay, and so do matrices
    that have a block format already. Raises InfercError for another name."""
    if name not in QUANTS:
        raise InfercError(f"there is no quantisation {name!r:.30}: choose one of {', '.join(QUANTS)}")
    weights = {key: _rounded(weight, _dtype(weight, name)) for key, weight in source.weights.items()}
    return replace(source, weights=weights)


def _dtype(weight: Weight, name: str) -> str | None:
    """The format of a weight, None where it stays as it is."""
    shape = weight.type.sizes
    if len(shape) != 2 or weight.type.dtype.name not in FLOATS or shape[-1] % 32:
        return None
    other, table = QUANTS[name]
    wanted, otherwise = (table, QUANTS[table][0]) if weight.name in TABLES else (name, other)
    return otherwise if shape[-1] % DTYPES[wanted].block else wanted


def _rounded(weight: Weight, dtype: str | None) -> Weight:
    if dtype is None:
        return weight
    return Weight(weight.name, Type(weight.type.shape, DTYPES[dtype]), partial(_load, weight, dtype))


def _load(weight: Weight, dtype: str) -> np.ndarray:
    values = dequantized(weight)
    step = max(1, ROWS // values.shape[-1])
    pieces = [_blocks(values[i : i + step], dtype) for i in range(0, len(values), step)]
    return np.concatenate(pieces)


def _blocks(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype in ROUNDED:
        return round_to_blocks(dtype, values)
    raw = gguf_quantize(values, GGMLQuantizationType[dtype.upper()])
    return raw.view(np.uint16) if dtype == "bf16" else raw
