"""The bytes in which C holds K and V, from those in which the interpreter does."""

from __future__ import annotations

import numpy as np

from inferc.ir.types import DType

PAGE = 256  # positions


def page_bytes(kind: str, dtype: DType, rows: np.ndarray) -> np.ndarray:
    """One page of "k" or "v" of f16 [heads, 256, size], or of q8_0 blocks uint8 [heads, 256, bytes], as uint8."""
    heads = rows.shape[0]
    if dtype.name == "f16":
        panels = rows.reshape(heads, 16, 16, -1).transpose(0, 1, 3, 2)
        return np.ascontiguousarray(panels if kind == "k" else rows).reshape(-1).view(np.uint8)
    blocks = rows.reshape(heads, PAGE, -1, 34)
    if kind == "k":
        panels = blocks.reshape(heads, 16, 16, -1, 34).transpose(0, 1, 3, 4, 2)  # head, panel, group, byte, key
        scales = panels[..., :2, :].swapaxes(-1, -2)
        parts = scales.reshape(*scales.shape[:3], 32), panels[..., 2:, :].reshape(*scales.shape[:3], 512)
    else:
        parts = blocks[..., 2:].reshape(heads, -1), blocks[..., :2].reshape(heads, -1)
    return np.concatenate(parts, axis=-1).reshape(-1)
