"""Robustness of the C interface over time: many sessions at once, fuzzers on restored sessions and on what is opened.

`make soak` gives `SOAK_SECONDS`; in the suite the same program runs for seconds.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from inferc.backends.c import toolchain
from inferc.backends.c.weights import sum_of
from inferc.compiler.text.tables import text_tables

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
    fuzz(fuzzer, seeds, request)


def fuzz(fuzzer: Path, seeds: Path, request: pytest.FixtureRequest) -> None:
    seconds = max(10, request.config.getoption("--soak-seconds"))
    # libFuzzer's limit of resident memory counts what the process that starts it had at its largest.
    limits = "-rss_limit_mb=0", "-malloc_limit_mb=1024"
    run([fuzzer, seeds, f"-max_total_time={seconds}", "-max_len=400000", "-len_control=0", "-print_final_stats=1",
         *limits], timeout=seconds + 300)  # fmt: skip


@pytest.mark.slow
def test_opening_is_fuzzed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Weights and text tables that are cut short, too long or altered."""
    compiler = shutil.which("clang") or pytest.skip("libFuzzer is clang's (make emulators)")
    host = make_host(tmp_path, "llama", "q4_0", 128)
    weights = host.weights.read_bytes()
    host = replace(host, plan=replace(host.plan, lowered=replace(
        host.plan.lowered, program=host.plan.program.with_weights(sum_of([weights])))))  # fmt: skip
    host.plan.program.write(host.folder)
    tables = text_tables(host.plan.source.tokenizer()).data
    (tmp_path / "text").write_bytes(tables)
    files = f'-DWEIGHTS="{host.weights}"', f'-DTEXT="{tmp_path / "text"}"'
    checked = ("-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", *files)
    fuzzer = built(host, "fuzz_open.c", compiler, "-O1", checked=checked)
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for flags in range(64):
        (seeds / str(flags)).write_bytes(bytes([flags, 40, 0, 0, 0, 1, 1, 0, 77, 1, 0, 0, 3]))
    (seeds / "tables").write_bytes(bytes([2, 0, 0, 0, 0, 1, 1, 0]) + tables)
    fuzz(fuzzer, seeds, request)
