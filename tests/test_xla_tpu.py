"""Programs for TPUs: their numbers, which any platform computes, and how their weights lie in memory."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from inferc.backends.xla import tpu, tpu_numbers
from inferc.compiler.driver import compile_model, plan_model
from inferc.ir.types import BLOCK_SIZES, CODE_SIZES
from inferc.runtime import xla_call
from inferc.runtime.artifact import Artifact
from inferc.runtime.xla_engine import Engine

from .test_xla_ops import cache_cases, expert_cases, weight_cases
from .tiny_models import write_model
from .xla_run import Case, by_xla, near

DTYPES = (*BLOCK_SIZES, *CODE_SIZES, "f16", "bf16", "f32")
FEW = ("q4_0", "q5_1", "q8_0", "q4_k", "q6_k", "mxfp4", "f16")  # one of each kind of scale, and of plane


@pytest.fixture
def anywhere(monkeypatch):
    """Text that other platforms take too: they know no demand of how a value lies, which changes no number."""
    monkeypatch.setattr(tpu, "lying", lambda w, x, order: x)


def check(cases: dict[str, Case], tolerance: float) -> None:
    for (name, c), results in zip(cases.items(), by_xla(list(cases.values()))):
        for actual, expected in zip(results, c.expected(), strict=True):
            try:
                near(actual, expected, tolerance)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("dtypes", [FEW, pytest.param(tuple({*DTYPES} - {*FEW}), marks=pytest.mark.slow)],
                         ids=["few", "rest"])  # fmt: skip
def test_products_and_embeddings(dtypes, anywhere):
    check(weight_cases("tpu", dtypes), 1e-4)


def test_experts(anywhere):
    """Each token's experts' products, with the weights as they lie."""
    check(expert_cases("tpu", ("q4_0", "mxfp4", "f16")), 1e-4)


@pytest.mark.parametrize("book", [*tpu_numbers.ORDERED, *tpu_numbers.MAGNITUDES])
def test_codes_are_rounded_polynomials(book):
    """With room for the rounding of f32 in any order of steps, such as fused ones."""
    coefficients = tpu_numbers.ORDERED.get(book) or tpu_numbers.MAGNITUDES[book]
    codes = np.array(book[: len(book) // (1 if book in tpu_numbers.ORDERED else 2)])
    exact = np.polynomial.polynomial.polyval(np.arange(len(codes), dtype=np.float64), coefficients)
    if any(c % 1 for c in coefficients):
        assert np.all(np.abs(exact - codes - 0.5) < 0.45)
    else:
        assert np.array_equal(exact, codes)


def test_no_unsigned_integer_becomes_a_float():
    """It takes a TPU six operations, and a signed word one."""
    for name, c in weight_cases("tpu", ("q4_0", "q5_1", "q4_k", "q6_k", "mxfp4", "iq4_nl"), (1,)).items():
        for line in c.text.splitlines():
            if found := re.search(r"convert .*tensor<([\dx]*)ui8>\) -> tensor<[\dx]*f32>", line):
                count = np.prod([int(n) for n in found[1].split("x") if n])
                assert count <= 6 * 256 / 8, (name, line)  # a group's scale may be


@pytest.mark.parametrize("dtype", ["f16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("f32", "q8_0"))])
def test_caches_and_attention(dtype):
    check(cache_cases((dtype,), (1, 5, 12), "tpu"), 1e-4 if dtype == "f32" else 3e-3)


def test_weights_lie_as_programs_for_tpus_take_them(tmp_path, monkeypatch, anywhere):
    """In the order of axes that the manifest has; a CPU, told that it is one of those, computes the same."""
    monkeypatch.setattr(xla_call, "keep_compiled", lambda: None)  # a process has one folder, others'
    path, ids = tmp_path / "model.inferc", list(range(5, 12))
    model = write_model(Path(tmp_path / "m.gguf"), "llama", "q4_k")
    compile_model(str(model), path, backend="xla", context=32, chunk=8, platforms="cpu,tpu", kv="f32")
    expected = Engine(Artifact(path)).session().eval(ids)
    artifact = Artifact(path)
    for p in artifact.manifest["programs"]:
        assert p["variants"] == {"tpu": p["file"].replace("xla/", "xla/tpu/")}
        p["variants"] = {"cpu": p["variants"]["tpu"]}
    orders = {}
    for i in artifact.manifest["inputs"]:
        for number, tensor in enumerate(i["tensors"]):
            if layout := tensor.pop("layouts", {}).get("tpu"):
                tensor["layouts"] = {"cpu": {"order": layout["order"]}}  # tiles are a TPU's
                orders[i["name"], number] = tuple(layout["order"])
    engine = Engine(artifact)
    warnings.simplefilter("error")  # as of a program that is refused
    assert np.abs(engine.session().eval(ids) - expected).max() < 1e-4 * np.abs(expected).max()
    weights = [(i["name"], n) for i in artifact.manifest["inputs"] if i["role"] == "weight"
               for n in range(len(i["tensors"]))]  # fmt: skip
    lying = {name: a.format.layout.major_to_minor for name, a in zip(weights, engine.replicas[0]._weights.arrays)}
    assert orders and all(lying[name] == order for name, order in orders.items())


def test_layouts_are_for_tpus_alone(tmp_path):
    model = write_model(tmp_path / "m.gguf", "llama", "q4_0")
    facts = plan_model(model, backend="xla", context=32, chunk=8, platforms="cpu,cuda").lowered.facts()
    assert not any("layouts" in t for i in facts["inputs"] for t in i["tensors"])
    assert not any("tpu" in p.get("variants", {}) for p in facts["programs"])
