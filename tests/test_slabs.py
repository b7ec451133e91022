"""Weights in slabs are the bytes that the interpreter makes of them whole."""

from __future__ import annotations

import numpy as np
import pytest

from inferc.compiler import slabs
from inferc.ir.graph import Module, Weight
from inferc.ir.interpret import prepare_weights
from inferc.ir.quant import is_direct
from inferc.ir.types import array_dtype, array_shape

from .ir_build import graph, inputs, op, typed

TYPES = (
    "q4_1[40, 64]", "q6_k[37, 256]", "iq2_xxs[50, 256]", "f16[41, 5]", "bf16[33, 7]", "f32[3, 20, 6]",
    "q8_0[2, 37, 32]",
)  # fmt: skip


def packed(written: str) -> Module:
    """A module of one weight that the entry reads packed."""
    (w,) = inputs(w=f"weight {written}")
    made = op("pack", w if is_direct(w.dtype) or not w.dtype.is_block else op("recode", w))
    raw = np.random.default_rng(0).integers(0, 64, array_shape(w.type)).astype(array_dtype(w.type))
    (read,) = inputs(w=f"weight {made.type}")
    return Module({"run": graph(read)}, {"w": Weight("w", w.type, lambda: raw)}, graph(made, w, names=("w",)))


@pytest.mark.parametrize("written", TYPES)
@pytest.mark.parametrize("size", [1, 4000])
def test_slabs_are_the_whole(written: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = packed(written)
    ((_, type, whole),) = prepare_weights(module)
    monkeypatch.setattr(slabs, "BYTES", size)
    parts = list(slabs.prepared(module, "w"))
    assert len(parts) > (1 if size == 1 else 0)
    assert [at for at, _, _ in parts] == [0, *np.cumsum([array.size for _, _, array in parts])[:-1]]
    assert all(t.dtype == type.dtype and t.layout == type.layout for _, t, _ in parts)
    assert np.array_equal(np.concatenate([array for _, _, array in parts]), whole)


def test_what_is_not_packed_by_rows_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "BYTES", 1)
    a, b = inputs(a="weight q4_0[16, 32]", b="weight q4_0[32, 32]")
    joined = op("pack", op("concat_rows", a, b))
    bytes_of = {n: np.full((rows, 18), rows, np.uint8) for n, rows in (("a", 16), ("b", 32))}
    raws = {n: Weight(n, typed(f"q4_0[{len(raw)}, 32]"), lambda raw=raw: raw) for n, raw in bytes_of.items()}
    (read,) = inputs(ab=f"weight {joined.type}")
    module = Module({"run": graph(read)}, raws, graph(joined, a, b, names=("ab",)))
    ((_, type, whole),) = prepare_weights(module)
    ((at, t, array),) = slabs.prepared(module, "ab")
    assert (at, t) == (0, type) and np.array_equal(array, whole)
    unprepared = Module({"run": graph(a)}, {"a": raws["a"]}, None)
    ((at, t, array),) = slabs.prepared(unprepared, "a")
    assert (at, t) == (0, a.type) and np.array_equal(array, raws["a"].load())
