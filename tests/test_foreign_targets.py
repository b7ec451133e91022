"""Whole tiny models on machines that the host is not: the logits of the host, through every part of the interface.

Here is a C library too, which zig builds once for each machine; kernels alone are tested without, by `every_target`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from inferc.backends.c import toolchain
from inferc.backends.c.target import TARGETS

from .c_harness import FOREIGN
from .foreign import DATA, emulator, missing, zig
from .recorded import MIXED
from .test_sanitizers import Host, make_host, run

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
        assert run([*emulator(machine, "wasi.mjs"), build(there, target), there.weights, threads, TOKENS]) == want
