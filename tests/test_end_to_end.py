"""Whole tiny models: generated C equals the interpreter bit for bit, on every target, thread count and chunking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inferc.backends.c import target as c_target
from inferc.backends.c import toolchain
from inferc.backends.c.state import HEADER_BYTES
from inferc.compiler.driver import Plan, compile_model, plan_model
from inferc.errors import InfercError
from inferc.ir.interpret import interpret, prepare_weights
from inferc.ir.types import Type, array_dtype, array_shape, evaluate
from inferc.runtime.model import load
from tests.tiny_models import CONTEXT, MODELS, VOCABULARY, WEIGHT_TYPES, write_model

HOST = [t.name for t in c_target.supported()]
IDS = np.random.default_rng(7).integers(3, VOCABULARY, 27).tolist()
CHUNK = 16

# A mix as K-quantised files have it, so that a layer's siblings differ in type and in activation groups.
MIXED = {"attn_v": "q6_k", "ffn_down": "q5_k", "attn_k": "q5_0", "token_embd": "q6_k", "": "q4_k"}
RECODED = {"attn_v": "iq4_xs", "ffn_down": "iq3_s", "attn_k": "nvfp4", "token_embd": "iq2_xs", "": "iq1_m"}
CASES = {name: (name, "q4_1") for name in MODELS}
CASES |= {f"llama {dtype}": ("llama", dtype) for dtype in WEIGHT_TYPES}
CASES |= {f"{name} mixed": (name, MIXED) for name in ("llama", "gemma3", "qwen2")}


pytestmark = pytest.mark.usefixtures("quick_compiler")


def expected_logits(plan: Plan, ids: list[int]) -> np.ndarray:
    """Logits f32[len(ids), V], or embeddings, by the interpreter, fed in pieces of the chunk."""
    step = plan.module.entries["step"]
    weights = {name: array for name, _, array in prepare_weights(plan.module)}
    states = {}
    for node in step.inputs_of("state"):
        t = Type(tuple(evaluate(d, {"S": 1}) for d in node.types[0].shape), node.types[0].dtype)
        states[node.attr("name")] = np.zeros(array_shape(t), array_dtype(t))
    rows = []
    for start in range(0, len(ids), plan.chunk):
        piece = ids[start : start + plan.chunk]
        arguments = {
            "tokens": np.array(piece, np.int32),
            "sequence": np.zeros(len(piece), np.int32),
            "position": np.arange(start, start + len(piece), dtype=np.int32),
            "rows": np.arange(len(piece), dtype=np.int32),
        }
        results = interpret(step, arguments | weights | states)
        rows.append(next(iter(results.values())))
        states = {name: results[name] for name in states}
    return np.concatenate(rows)


def compiled_logits(artifact: Path, ids: list[int], *, threads: int = 1, pieces: int | None = None) -> np.ndarray:
    """Logits f32[len(ids), V] of a compiled artifact, fed at once or in `pieces` tokens at a time."""
    with load(artifact, threads) as model:
        step = pieces or len(ids)
        return np.concatenate([model.logits(ids[: i + step])[i:] for i in range(0, len(ids), step)])


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    different = actual.view(np.uint32) != expected.view(np.uint32)
    most = np.abs(actual - expected).max()
    assert not different.any(), f"{different.sum()} of {different.size} differ, by up to {most}"


def build(tmp_path: Path, model: str, types, target: str) -> tuple[Plan, Path]:
    path = write_model(tmp_path / "tiny.gguf", model, types, tokenizer="bpe")
    artifact = tmp_path / f"{target}.inferc"
    compile_model(str(path), artifact, target=target, chunk=CHUNK)
    return plan_model(path, target=target, chunk=CHUNK), artifact


@pytest.mark.parametrize("case", CASES)
def test_c_equals_interpreter(case, tmp_path):
    model, types = CASES[case]
    plan, artifact = build(tmp_path, model, types, HOST[-1])
    expected = expected_logits(plan, IDS)
    assert np.isfinite(expected).all() and expected.std() > 1e-3
    assert_same_bits(compiled_logits(artifact, IDS), expected)


@pytest.mark.parametrize("model, types", [
    ("llama", MIXED), ("gemma3", "q4_0"),
    *(pytest.param(*c, marks=pytest.mark.slow) for c in (("llama", RECODED), ("llama", "bf16"), ("qwen3", "f16"))),
])  # fmt: skip
def test_bits_do_not_depend_on_target_threads_or_chunking(model, types, tmp_path):
    path = write_model(tmp_path / "tiny.gguf", model, types, tokenizer="bpe")
    seen = []
    for target in HOST:
        artifact = tmp_path / f"{target}.inferc"
        compile_model(str(path), artifact, target=target, chunk=CHUNK)
        for threads, pieces in ((1, None), (2, None), (3, 1), (1, 5), (2, 1)):
            seen.append(compiled_logits(artifact, IDS, threads=threads, pieces=pieces))
    for other in seen[1:]:
        assert_same_bits(other, seen[0])


def test_full_optimisation(quick_compiler, monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "FLAGS", quick_compiler)
    plan, artifact = build(tmp_path, "llama", MIXED, HOST[-1])
    assert_same_bits(compiled_logits(artifact, IDS, threads=2), expected_logits(plan, IDS))


def test_long_context_over_several_cache_pages(tmp_path):
    """More than one page of 256 positions, and rings that wrap, against the same ids fed one at a time."""
    metadata = {"context_length": 1024}
    path = write_model(tmp_path / "tiny.gguf", "gemma3", "q8_0", tokenizer="bpe", metadata=metadata)
    artifact = tmp_path / "tiny.inferc"
    compile_model(str(path), artifact, chunk=64)
    ids = np.random.default_rng(3).integers(3, VOCABULARY, 700).tolist()
    whole = compiled_logits(artifact, ids, threads=2)
    assert_same_bits(compiled_logits(artifact, ids, pieces=50), whole)
    with load(artifact, 1) as model:
        last = [model.logits(ids[: i + 1])[i] for i in range(640, 700)]
    assert_same_bits(np.stack(last), whole[640:])


def test_quantised_cache(tmp_path):
    """q8_0: the interpreter's bits on every target, rings that wrap, half the session, and little else changed."""
    metadata = {"context_length": 1024}
    path = write_model(tmp_path / "tiny.gguf", "gemma3", "q8_0", tokenizer="bpe", metadata=metadata)
    ids = np.random.default_rng(3).integers(3, VOCABULARY, 700).tolist()
    artifacts = {kv: tmp_path / f"{kv}.inferc" for kv in ("f16", "q8_0")}
    for kv, artifact in artifacts.items():
        compile_model(str(path), artifact, chunk=64, kv=kv)
    plan = plan_model(path, chunk=64, kv="q8_0")
    expected = expected_logits(plan, ids)
    whole = compiled_logits(artifacts["q8_0"], ids, threads=2)
    assert_same_bits(whole, expected)
    assert_same_bits(compiled_logits(artifacts["q8_0"], ids, pieces=50), expected)
    for target in HOST:
        artifact = tmp_path / f"{target}.inferc"
        compile_model(str(path), artifact, chunk=64, kv="q8_0", target=target)
        assert_same_bits(compiled_logits(artifact, ids), expected)
    plain = compiled_logits(artifacts["f16"], ids)
    assert 0 < np.abs(whole - plain).mean() < 0.05 * plain.std()
    of_f16, of_q8_0 = (plan_model(path, chunk=64, kv=kv).program.session for kv in artifacts)
    assert (of_q8_0.bytes(1024) - HEADER_BYTES) * 64 == (of_f16.bytes(1024) - HEADER_BYTES) * 34
    rings = [r.pages for r in of_q8_0.regions.values() if r.window]
    assert rings == [2, 2] and of_q8_0.rewind == of_f16.rewind
    with load(artifacts["q8_0"], 1) as model:
        last = [model.logits(ids[: i + 1])[i] for i in range(690, 700)]
    assert_same_bits(np.stack(last), expected[690:])


def test_quantised_cache_needs_blocks(tmp_path):
    path = write_model(tmp_path / "tiny.gguf", "llama", "q8_0", tokenizer="bpe")
    with pytest.raises(InfercError, match="cache layers.0.k: q8_0 needs a last dimension that is a multiple of 32"):
        plan_model(path, kv="q8_0")
    with pytest.raises(InfercError, match="choose one of f16, q8_0"):
        plan_model(path, kv="q4_0")


def test_context_is_a_limit(tmp_path):
    _, artifact = build(tmp_path, "llama", "q8_0", "generic")
    ids = (IDS * 8)[:CONTEXT]
    assert compiled_logits(artifact, ids).shape == (CONTEXT, VOCABULARY)
