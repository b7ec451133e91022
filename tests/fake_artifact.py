"""An artifact whose library is `data/fake_model.c`, for tests of the runtime alone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferc.runtime.artifact import ArtifactWriter, machine

DATA = Path(__file__).parent / "data"
VOCAB, CONTEXT, CHUNK = 64, 600, 16
WEIGHTS = np.arange(VOCAB, dtype=np.int32)


def manifest(sha256: str, **changes: Any) -> dict[str, Any]:
    return {
        "producer": "inferc 0.1.0", "name": "fake", "kind": "language", "architecture": "fake", "backend": "c",
        "target": "generic",
        "variants": [{"target": "generic", "cpu_features": []}], "machine": machine(), "prefix": "model",
        "context": CONTEXT, "chunk": CHUNK, "vocab_size": VOCAB, "library": "c/libmodel.so",
        "weights": {"file": "weights", "bytes": WEIGHTS.nbytes, "sha256": sha256},
        "tokenizer": None, **changes,
    }  # fmt: skip


def write(path: Path, code: bytes, description: dict | None = None, **changes: Any) -> Path:
    """Writes a whole artifact: its library's code, its tokenizer.json. `changes` replace entries of its manifest."""
    with ArtifactWriter(path) as artifact:
        sha256 = artifact.write_stream("weights", WEIGHTS.nbytes, [(0, WEIGHTS[:10]), (40, WEIGHTS[10:])])
        artifact.write("c/libmodel.so", code)
        if description is not None:
            artifact.write_json("tokenizer.json", description)
            changes.setdefault("tokenizer", "tokenizer.json")
        artifact.write_manifest(manifest(sha256, **changes))
    return path


@cache
def library(*defines: str) -> bytes:
    """The compiled fake model; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") or pytest.skip("no C compiler")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "libmodel.so"
        flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", *(f"-D{d}" for d in defines)]
        subprocess.run([compiler, *flags, DATA / "fake_model.c", "-o", out], check=True)
        return out.read_bytes()
