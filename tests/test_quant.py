"""Formats against gguf-py, bit for bit; packing loses nothing."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st

from inferc.ir import quant
from inferc.ir.quant.formats import SCALES
from inferc.ir.types import BLOCK_SIZES, DTYPES, Type


def random_raw(name: str, rows: int, k: int, seed: int = 0) -> np.ndarray:
    """Random bytes of a block format: every pattern is a valid block. Halves and sums of products are kept finite."""
    dtype, rng = DTYPES[name], np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, k // dtype.block, dtype.block_bytes), np.uint8)
    if name in quant.FORMATS:
        fmt = quant.FORMATS[name]
        for part, start in zip(fmt.parts, fmt.offsets):
            if part.kind in "dm":
                halves = rng.normal(0, 0.05, raw.shape[:2]).astype(np.float16)
                raw[..., start : start + 2] = halves[..., None].view(np.uint8)
            elif part.kind == "scale" and fmt.scale_kind == "e8m0":
                raw[..., start] = np.where(raw[..., start] < 16, rng.integers(0, 200, raw.shape[:2]), 122)
    return raw.reshape(rows, -1)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", sorted(BLOCK_SIZES))
def test_dequantize_equals_gguf(name: str) -> None:
    raw = random_raw(name, 5, 512)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(raw, gguf.GGMLQuantizationType[name.upper()])
        found = quant.dequantize(DTYPES[name], raw, (5, 512))
    assert np.array_equal(found, expected, equal_nan=True)
    if name in quant.FORMATS:
        assert same(found, expected)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_every_scale_of_eight_bits(name: str) -> None:
    """With every code, to infinity; 0x7F is NVFP4's NaN."""
    dtype = DTYPES[name]
    raw = random_raw(name, 256, 1024).reshape(256, -1, dtype.block_bytes)
    raw[..., : dtype.block // 16 if name == "nvfp4" else 1] = np.arange(256, dtype=np.uint8)[:, None, None]
    expected = quants.dequantize(raw.reshape(256, -1), gguf.GGMLQuantizationType[name.upper()])
    with np.errstate(over="ignore"):
        found = quant.dequantize(dtype, raw, (256, 1024))
    assert same(found, expected) and (name == "nvfp4") == np.isfinite(found).all()


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(quant.DIRECT), rows=st.integers(1, 70), blocks=st.integers(1, 4),
       experts=st.sampled_from([(), (1,), (3,)]), seed=st.integers(0, 99))  # fmt: skip
def test_packing_is_lossless(name: str, rows: int, blocks: int, experts: tuple[int, ...], seed: int) -> None:
    dtype = DTYPES[name]
    k = blocks * dtype.block if dtype.is_block else blocks * 7
    type = Type((*experts, rows, k), dtype)
    count = int(np.prod(experts, dtype=int)) * rows
    if dtype.is_block:
        raw = random_raw(name, count, k, seed).reshape(*experts, rows, -1)
    else:
        bits = np.random.default_rng(seed).integers(0, 1 << 15, type.shape)
        raw = bits.astype({"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[name])
    packed = quant.pack(type, raw)
    assert packed.dtype == np.uint8 and packed.shape == (quant.packed_bytes(type),)
    assert same(quant.unpack(type, packed), raw)


@pytest.mark.parametrize("name", sorted(quant.FORMATS))
def test_packed_bytes_lie_as_documented(name: str) -> None:
    """Every value and scale of a row is read back by the formulas of `ir.quant.panels`, one at a time."""
    fmt, dtype = quant.FORMATS[name], DTYPES[name]
    rows, k = 18, 2 * dtype.block
    type = Type((rows, k), dtype)
    raw = random_raw(name, rows, k, 3)
    packed, expected = quant.pack(type, raw), quant.fields(dtype, raw)
    size = quant.ROWS * dtype.block_bytes
    assert quant.panel_bytes(dtype, k) == 2 * size and quant.packed_bytes(type) == 4 * size

    def integer(lines: np.ndarray, bits: int, steps_in: int, index: int, count: int, row: int, byte: int) -> int:
        value = 0
        for plane, position in quant.planes_of(bits):
            field = int(lines[index % plane, 4 * row + byte]) >> plane * (index // plane) & ((1 << plane) - 1)
            value |= field << position
            lines = lines[plane:]
        return value

    for row in (0, 7, 15, 16, 17):
        for block in range(2):
            at = (row // 16 * 2 + block) * size
            data, lane = packed[at : at + size], row % 16
            start = 32 * (fmt.has_d + bool(fmt.mins))
            halves = data[:start].view(np.float16).reshape(-1, 16)[:, lane].astype(np.float32)
            stored = [0] * fmt.scale_count
            for plane, position in quant.planes_of(fmt.scale_bits) if fmt.scale_bits else ():
                width = min(32, fmt.scale_count * plane)
                words = data[start : start + fmt.scale_count * plane * 2].view(f"<u{width // 8}")
                words, per = words.reshape(-1, 16)[:, lane], width // plane
                for v in range(fmt.scale_count):
                    stored[v] |= (int(words[v // per]) >> plane * (v % per) & ((1 << plane) - 1)) << position
                start += fmt.scale_count * plane * 2
            scales = np.full(fmt.groups, halves[0] * np.float32(fmt.unit) if fmt.has_d else 1, np.float32)
            if fmt.scale_bits:
                scales *= SCALES[fmt.scale_kind](np.uint8(stored[: fmt.groups])) - np.float32(fmt.scale_zero)
            assert scales.tolist() == expected.scale[row].reshape(2, -1)[block].tolist()
            if fmt.mins:
                offsets = -halves[1] * np.float32(stored[fmt.groups :]) if fmt.scale_bits else halves[1:]
                assert offsets.tolist() == expected.offset[row].reshape(2, -1)[block].tolist()
            lines = data[start:].reshape(-1, fmt.bits, 64)
            values = [integer(lines[i // 32], fmt.bits, 0, i % 32 // 4, 8, lane, i % 4) for i in range(fmt.block)]
            if fmt.codes:
                values = [fmt.codes[v] for v in values]
            else:
                values = [(v ^ 128) - 128 if fmt.signed else v - fmt.zero for v in values]
            assert values == expected.q[row].reshape(2, -1)[block].tolist()


def test_the_documented_table_of_types() -> None:
    text = (Path(__file__).parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")
    for name in BLOCK_SIZES:
        stored, used = DTYPES[name], quant.computed(DTYPES[name])
        fmt, bits = quant.FORMATS[used.name], [f"{d.block_bytes * 8 / d.block:.4g}" for d in (stored, used)]
        kind = "code book" if fmt.codes else "integer"
        assert f"| {name.upper()} | {bits[0]} | {bits[1]} | {fmt.bits} bits, {kind} | {fmt.group} |" in text


def test_activation_rows_round_trip() -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(-127, 128, (3, 512)).astype(np.int8)
    sums = q.reshape(3, -1, quant.SUM_GROUP).sum(-1, dtype=np.int32)
    x = quant.Activation(q, rng.normal(size=(3, 16)).astype(np.float32), sums)
    rows = quant.encode_activation(x)
    assert rows.shape == (3, quant.row_bytes(DTYPES["a8g32"], 512))
    back = quant.decode_activation(DTYPES["a8g32"], rows)
    assert same(back.q, x.q) and same(back.d, x.d) and same(back.sums, x.sums)
