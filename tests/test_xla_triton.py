"""Kernels of packed products for NVIDIA GPUs: their numbers by an interpreter of the IR, and where they are used."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from inferc.backends.xla import triton
from inferc.backends.xla.parts import split
from inferc.compiler.driver import compile_model, plan_model
from inferc.ir import quant
from inferc.ir.types import BLOCK_SIZES, CODE_SIZES, DTYPES, Type
from inferc.runtime import xla_call
from inferc.runtime.artifact import Artifact
from inferc.runtime.xla_engine import Engine

from . import triton_run
from .ir_build import sample
from .test_xla_ops import cache_case
from .tiny_models import random_weight, write_model
from .xla_run import by_xla, near

RNG = np.random.default_rng(5)
ELEMENTS = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}


def check(dtype: str, rows: int, width: int, tokens: int, element: str) -> None:
    """A kernel against the product of the weight as it is dequantised and rounded to what products multiply in."""
    t = Type((rows, width), DTYPES[dtype])
    try:
        raw = random_weight(RNG, t.sizes, dtype, 0.1)
    except KeyError:  # our own formats are not of GGUF
        raw = sample(t, RNG)
    assert triton.fits(t, tokens)
    x = RNG.normal(size=(tokens, width)).astype(ELEMENTS[element])
    text, programs, shares = triton.kernel(t, element, tokens)
    made = triton_run.run(text, (programs, shares), [x, *split(t, raw)], (shares, tokens, rows)).sum(0)
    wide = quant.dequantize(t.dtype, raw, t.sizes).astype(ELEMENTS[element]).astype(np.float32)
    expected = x.astype(np.float32) @ wide.T
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=dtype)


@pytest.mark.parametrize("dtype", [*BLOCK_SIZES, *CODE_SIZES])
def test_a_kernel_computes_a_product(dtype):
    """Of every format; with rows and tokens that fill no tile, and rows that several programs share."""
    check(dtype, 70, 1024, 12, "bf16")


@pytest.mark.parametrize("tokens, element", [(9, "f16"), (33, "f32"), (64, "bf16")])
def test_tiles_of_tokens(tokens, element):
    check("q4_k", 64, 512, tokens, element)
    check("q8_0", 3, 96, tokens, element)


@pytest.mark.parametrize("slots, form", [(1, "one"), (3, "each")])
def test_attention_of_few_tokens_for_cuda(slots, form):
    """Its values are mixed by products there, which any platform computes."""
    for dtype in ("f32", "f16", "q8_0"):
        for window in (0, 5):
            c = cache_case(dtype, slots, form, window, slots if form == "each" else 5, 0, "cuda")
            ((actual, *_),), (expected, *_) = by_xla([c]), c.expected()
            near(actual, expected, 1e-4 if dtype == "f32" else 3e-3)


def test_what_has_no_kernel():
    """Elements, more tokens, rows too short for a matrix instruction, more bytes than an index counts."""
    assert not triton.fits(Type((64, 64), DTYPES["f16"]), 16)
    assert not triton.fits(Type((64, 64), DTYPES["q4_0"]), 65)
    assert not triton.fits(Type((64, 64), DTYPES["nvfp4"]), 16) and triton.fits(Type((64, 128), DTYPES["nvfp4"]), 16)
    assert not triton.fits(Type((1 << 20, 4096), DTYPES["q8_0"]), 16)


def test_the_text_of_a_kernel(golden):
    """One for people to read."""
    golden("xla_packed_product.ttir", triton.kernel(Type((4096, 4096), DTYPES["q4_0"]), "bf16", 32)[0] + "\n")


def artifact(folder: Path, **options: object) -> Path:
    path = folder / "model.inferc"
    model = write_model(folder / "m.gguf", "llama", "q4_0")
    given = {"backend": "xla", "context": 32, "chunk": 16, "slots": 12, "compute": "bf16", "platforms": "cpu,cuda"}
    compile_model(str(model), path, **{**given, **options})
    return path


def test_steps_of_several_tokens_have_a_variant_for_cuda(tmp_path):
    """With kernels where XLA has none as good, also where devices share the model, and not for another platform."""
    for mesh in ("", "tp=2"):
        found = Artifact(artifact(tmp_path, mesh=mesh))
        for p in found.manifest["programs"]:
            assert triton.TARGET.encode() not in found.read(p["file"])
            assert (triton.TARGET.encode() in found.read(p["variants"]["cuda"])) == (p["T"] > 8)
    common, gpus = (plan_model(tmp_path / "m.gguf", backend="xla", chunk=16, context=32, platforms=p)
                    for p in ("cpu", "cuda,rocm"))  # fmt: skip
    assert not common.lowered.variants
    assert gpus.lowered.variants and all(v["cuda"] == v["rocm"] for v in gpus.lowered.variants.values())


def test_a_device_that_refuses_kernels_takes_the_common_program(tmp_path, monkeypatch):
    """As a CPU does, told that the variant is for it: said, and computed as without."""
    monkeypatch.setattr(xla_call, "keep_compiled", lambda: None)  # a process has one folder, others'
    path, ids = artifact(tmp_path), list(range(5, 15))
    engine = Engine(Artifact(path))
    expected = engine.session().eval(ids)
    engine = Engine(Artifact(path))
    for p in engine.artifact.manifest["programs"]:
        p["variants"] = {"cpu": p.get("variants", {}).get("cuda")}
    with pytest.warns(UserWarning, match="does not take the kernels of xla/cuda/one-T16-R1.vhlo"):
        made = engine.session().eval(ids)
    assert np.array_equal(made, expected)
