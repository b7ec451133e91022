"""The benchmark of GPUs, on the CPU and a tiny model: every engine that this machine has, and one that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferc.benchmarks import random_gguf, xla_engines
from inferc.compiler.driver import plan_model

from .tiny_models import write_model

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks/xla_gpu.py"


def measured(output: Path, *words: object) -> tuple[int, list[dict[str, Any]], str]:
    """The exit code of a small run, the rows that it kept, and what it said."""
    small = "--platform cpu --prompts 16 --tokens 4 --context 64 --leg-seconds 120".split()
    command = [sys.executable, SCRIPT, *small, *map(str, words), "--json", output]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    return done.returncode, rows, done.stdout + done.stderr


@pytest.mark.slow
def test_one_command_measures_all(tmp_path):
    model = write_model(tmp_path / "tiny.gguf", "llama", "q4_0")
    words = "--types as-is --slots 1,2 --beside c,jax,llama.cpp".split()
    code, rows, said = measured(tmp_path / "rows", *words, "--gguf", model, "--llama-bench", tmp_path / "none")
    assert code == 0, said
    both = {"prompt 16", "decode 1"}
    assert {(r["engine"], r["what"]) for r in rows if "what" in r} == {
        (e, w) for e in ("inferc f32", "inferc C", "jax.jit f32") for w in both
    } | {("inferc f32", "decode 2")}
    assert all(r["tokens_per_second"] > 0 and r["fraction"] > 0 for r in rows if "what" in r)
    assert [(r["engine"], "No such file" in r["error"]) for r in rows if "error" in r] == [("llama.cpp", True)]
    assert rows[0]["gb_per_second"] > 0 and rows[0]["tflops"] > 0


@pytest.mark.slow
def test_what_is_stopped_is_said(tmp_path):
    """And what was measured before is kept; what there is no time for is named."""
    words = "--shapes smollm2-135m --types q4_0,q8_0 --slots 1 --beside llama.cpp".split()
    code, rows, said = measured(tmp_path / "rows", *words, "--models", tmp_path, "--seconds", 21, "--leg-seconds", 1)
    assert code == 1 and not rows, said  # not even the device
    code, rows, said = measured(tmp_path / "rows", *words, "--models", tmp_path, "--seconds", 0)
    assert code == 1 and "device" in rows[0], said
    assert all("no time is left" in r["error"] for r in rows[1:]) and len(rows) == 5


def test_a_missing_device_is_said(tmp_path):
    code, rows, said = measured(tmp_path / "rows", "--platform", "rocm")
    assert code == 1 and not rows and "jax has no device of rocm here: nothing is measured" in said


@pytest.mark.parametrize("dtype", ["bf16", "q4_0", "q4_k"])
def test_random_weights_without_a_file(dtype, tmp_path):
    """A file with holes is read for its types; the weights in memory are rows of them, again and again."""
    path = tmp_path / "hollow.gguf"
    shape = random_gguf.Shape(1, 256, 512, 4, 2, 1024, 64, 1e4)
    random_gguf.write(path, shape, dtype, distinct=0)
    plan = plan_model(path, backend="xla", platforms="cpu", compute="bf16", chunk=1)
    found = xla_engines.InMemory(plan)
    data = found.view("weights")
    assert path.stat().st_blocks * 512 < found.manifest["memory"]["weights"] == data.size
    for weight in plan.lowered.program.weights:
        for offset, part in zip(weight.offsets, weight.parts):
            rows = data[offset : offset + part.bytes].reshape(part.shape[0], -1)
            assert np.array_equal(rows[: len(rows) - 256], rows[256:]) and rows.any()
