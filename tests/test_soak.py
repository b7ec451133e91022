"""Robustness of the C interface over time: many sessions at once, and a fuzzer on restored sessions.

`make soak` gives `SOAK_SECONDS`; in the suite the same program runs for seconds.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from inferc.backends.c import toolchain

from .test_sanitizers import DATA, MEMORY, Host, make_host, run

SESSIONS = 24


def built(host: Host, source: str, compiler: str, *flags: str, checked: tuple[str, ...] = ()) -> Path:
    """A program of tests/data and a model; `checked` are flags of all but the kernels, whose own tests check them."""
    output, objects = host.folder / Path(source).stem, []
    for unit, own in {**host.plan.program.units, str(DATA / source): ()}.items():
        objects.append(host.folder / f"{Path(unit).name}.o")
        more = () if own and unit.startswith("model_") and not unit.endswith("_abi.c") else checked
        run([compiler, *toolchain.FLAGS, *toolchain.WARNINGS, "-Werror", *flags, *more, *own, "-I", host.folder, "-c",
             host.folder / unit, "-o", objects[-1]])  # fmt: skip
    run([compiler, *flags, *checked, *objects, "-o", output, *toolchain.LIBRARIES])
    return output


@pytest.mark.parametrize("model", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_many_sessions_at_once(model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """For `--soak-seconds`; no logit differs, and no memory is lost."""
    seconds = request.config.getoption("--soak-seconds")
    host = make_host(tmp_path, model, "q4_0", 128)
    program = built(host, "soak.c", toolchain.find_compiler()[0], "-O1")
    done = subprocess.run([program, host.weights, str(SESSIONS), str(seconds)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100 * seconds


@pytest.mark.slow
def test_many_sessions_are_clean(tmp_path: Path) -> None:
    host = make_host(tmp_path, "gemma3", "q8_0", 128)
    run([built(host, "soak.c", toolchain.find_compiler()[0], *MEMORY), host.weights, SESSIONS, 4])


@pytest.mark.slow
def test_restored_sessions_are_fuzzed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    compiler = shutil.which("clang") or pytest.skip("libFuzzer is clang's (make emulators)")
    host = make_host(tmp_path, "gemma3", "q8_0", 128)
    checked = ("-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    fuzzer = built(host, "fuzz_restore.c", compiler, "-O1", checked=checked)
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    text = (host.folder / "model_program.h").read_text()
    fingerprint = int(text.partition("UINT64_C(0x")[2][:16], 16).to_bytes(8, "little")
    (seeds / "empty").write_bytes(b"infercs1" + fingerprint + bytes(24))
    seconds = max(10, request.config.getoption("--soak-seconds"))
    run([fuzzer, seeds, f"-max_total_time={seconds}", "-max_len=400000", "-len_control=0", "-print_final_stats=1"])
