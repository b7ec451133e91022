"""The benchmark of GPUs, on the CPU and a tiny model: every engine that this machine has, and one that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .tiny_models import write_model

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks/xla_gpu.py"


@pytest.mark.slow
def test_one_command_measures_all(tmp_path):
    model = write_model(tmp_path / "tiny.gguf", "llama", "q4_0")
    output = tmp_path / "figures.json"
    words = "--platform cpu --types as-is --slots 1,2 --prompts 16 --tokens 4 --context 64 --beside c,jax".split()
    words += ["--gguf", model, "--llama-bench", tmp_path / "none", "--json", output]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["rows"]
    measured = {(r["engine"], r["what"]) for r in rows if "what" in r}
    both = {"prompt 16", "decode 1"}
    assert measured == {(e, w) for e in ("inferc f32", "inferc C", "jax.jit f32") for w in both} | {
        ("inferc f32", "decode 2")
    }
    assert all(r["tokens_per_second"] > 0 and r["fraction"] > 0 for r in rows if "what" in r)
    assert [(r["engine"], "No such file" in r["error"]) for r in rows if "error" in r] == [("llama.cpp", True)]


def test_a_missing_device_is_said():
    done = subprocess.run([sys.executable, SCRIPT, "--platform", "rocm"], capture_output=True, text=True)
    assert done.returncode == 1 and "jax has no device of rocm here: nothing is measured" in done.stderr
