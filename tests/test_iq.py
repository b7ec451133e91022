"""Types of grids and digits, recoded: the values are gguf-py's, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st

from inferc.ir import quant
from inferc.ir.quant import code_books, iq
from inferc.ir.types import DTYPES

D_AT = {"tq1_0": 52, "iq1_m": -1}  # where the f16 d lies, if not first; IQ1_M's is in the high quarters of four words


def with_d(name: str, raw: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Blocks [..., block bytes] with the f16 d [...] in its place."""
    raw, at = raw.copy(), D_AT.get(name, 0)
    if at >= 0:
        raw[..., at : at + 2] = d[..., None].view(np.uint8)
    else:
        words = raw[..., 48:].copy().view("<u2")
        quarters = d.view(np.uint16)[..., None] >> np.array([0, 4, 8, 12], np.uint16)
        raw[..., 48:] = (words & 0x0FFF | quarters << 12).astype("<u2").view(np.uint8)
    return raw


def check(name: str, raw: np.ndarray) -> None:
    """raw uint8 [rows, blocks, block bytes]"""
    dtype = DTYPES[name]
    raw, k = raw.reshape(raw.shape[0], -1), raw.shape[1] * dtype.block
    codes, to = quant.recode(dtype, raw), quant.computed(dtype)
    assert codes.dtype == np.uint8 and codes.shape == (raw.shape[0], k // to.block * to.block_bytes)
    expected = quants.dequantize(raw, gguf.GGMLQuantizationType[name.upper()])
    for found in (quant.dequantize(dtype, raw, (raw.shape[0], k)), quant.dequantize(to, codes, (raw.shape[0], k))):
        assert found.dtype == expected.dtype == np.float32
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(quant.RECODED)), rows=st.integers(1, 3), blocks=st.integers(1, 3),
       half=st.floats(width=16, allow_nan=False, allow_infinity=False), seed=st.integers(0, 1 << 32))  # fmt: skip
def test_any_bytes_have_the_values_of_gguf(name: str, rows: int, blocks: int, half: float, seed: int) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, (rows, blocks, DTYPES[name].block_bytes), np.uint8)
    check(name, with_d(name, raw, np.full((rows, blocks), half, np.float16)))


@pytest.mark.parametrize("name", sorted(quant.RECODED))
def test_every_scale_and_sign(name: str) -> None:
    """Every byte in every place, with halves of both signs, zeros, denormals and the greatest."""
    size = DTYPES[name].block_bytes
    raw = (np.arange(256)[:, None, None] + 37 * np.arange(size)).astype(np.uint8)
    raw = np.concatenate([raw, np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], raw.shape)])
    for half in (1.0, -0.375, 0.0, -0.0, 6e-8, -6.1e-5, 65504.0):
        check(name, with_d(name, raw, np.full(raw.shape[:2], half, np.float16)))


GRIDS = {
    "iq1_s": code_books.IQ1_GRID, "iq1_m": code_books.IQ1_GRID, "iq2_xxs": code_books.IQ2_XXS_GRID,
    "iq2_xs": code_books.IQ2_XS_GRID, "iq2_s": code_books.IQ2_S_GRID, "iq3_xxs": code_books.IQ3_XXS_GRID,
    "iq3_s": code_books.IQ3_S_GRID,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_point_of_the_grid(name: str) -> None:
    """Random blocks reach every point, and no two points are equal."""
    raw = np.random.default_rng(1).integers(0, 256, (2000, 1, DTYPES[name].block_bytes), np.uint8)
    check(name, with_d(name, raw, np.ones((2000, 1), np.float16)))
    grid, coordinate = GRIDS[name], 7 if name.startswith("iq3") else 3  # the bits of a code without its sign
    codes = iq.RECODED[name][1](raw).q
    reached = {tuple(p) for p in (codes.reshape(-1, grid.shape[1]) & coordinate).tolist()}
    assert reached == {tuple(p) for p in grid.tolist()} and len(reached) == len(grid)
