"""Whole tiny models on machines that the host is not: the logits of the host, through every part of the interface.

Here is a C library too, which zig builds once for each machine; kernels alone are tested without, by `every_target`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from inferc.backends.c import toolchain
from inferc.backends.c.emulation import emulator, missing, zig
from inferc.backends.c.target import TARGETS, choose
from inferc.compiler.driver import compile_model
from inferc.errors import InfercError
from inferc.runtime.artifact import Artifact

from .c_harness import FOREIGN
from .foreign import DATA
from .recorded import MIXED
from .test_sanitizers import Host, make_host, run
from .tiny_models import write_model

MODELS = {"llama of mixed K-quants": ("llama", MIXED), "gemma3 q4_0": ("gemma3", "q4_0"), "qwen2 f16": ("qwen2", "f16")}
TOKENS = 40


def build(host: Host, target: str) -> Path:
    """The program of tests/data/sessions.c and the model."""
    objects, output = [], host.folder / "sessions"
    for unit, own in {**host.plan.program.units, str(DATA / "sessions.c"): ("-D_GNU_SOURCE",)}.items():
        objects.append(host.folder / f"{Path(unit).name}.o")
        flags = [*toolchain.FLAGS, *toolchain.WARNINGS, "-Werror", *own, "-I", host.folder]
        run([*zig(target), *flags, "-c", host.folder / unit, "-o", objects[-1]])
    run([*zig(target), "-static", *objects, "-o", output, *toolchain.LIBRARIES])
    return output


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("target", FOREIGN)
def test_models_have_the_hosts_logits(target: str, case: str, tmp_path: Path) -> None:
    if reason := missing(target):
        pytest.skip(reason)
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
    here, there = (make_host(f, *MODELS[case], 128, t) for f, t in zip(folders, ("native", target)))
    want = run([here.build("-O1"), here.weights, 1, TOKENS])
    machine = TARGETS[target].machine
    for threads in (1,) if machine == "wasm32" else (1, 3):
        assert run([*emulator(machine), build(there, target), there.weights, threads, TOKENS]) == want


@pytest.mark.slow
@pytest.mark.skipif(not TARGETS["neon"].foreign, reason="the host is what this would cross-compile for")
def test_an_artifact_for_another_machine(tmp_path: Path) -> None:
    """Its library has both variants, its manifest says the machine, and this one refuses to load it."""
    path = write_model(tmp_path / "tiny.gguf", "llama", "q4_0", tokenizer="bpe")
    compile_model(str(path), tmp_path / "tiny.inferc", target="neon,neon_i8mm", chunk=16)
    with zipfile.ZipFile(tmp_path / "tiny.inferc") as artifact:
        library = artifact.read("c/libmodel.so")
    assert library[:4] == b"\x7fELF" and int.from_bytes(library[18:20], "little") == 183  # EM_AARCH64
    assert b"neon_i8mm" in library
    with pytest.raises(InfercError, match="was compiled for aarch64"):
        Artifact(tmp_path / "tiny.inferc")


def test_what_cannot_be_a_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InfercError, match="aarch64-linux and wasm32 cannot be in one library"):
        choose("neon,wasm128")
    path = write_model(tmp_path / "tiny.gguf", "llama", "q4_0", tokenizer="bpe")
    with pytest.raises(InfercError, match="wasm128 has no shared libraries"):
        compile_model(str(path), tmp_path / "tiny.inferc", target="wasm128")
