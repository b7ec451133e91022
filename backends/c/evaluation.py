"""A compiled language model run on token ids as a program of its own, natively or in an emulator, observed or not."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InfercError
from . import emulation, toolchain
from .program import Program
from .target import CTarget

SOURCE = Path(__file__).with_name("evaluate.c")


@dataclass(frozen=True)
class Told:
    """A value that an observed program told: the number of its point, the result's index, where its bytes begin in the
    file of values, and how many they are."""

    point: int
    result: int
    offset: int
    size: int


def missing(target: CTarget) -> str:
    """Why this host cannot run a program for the target; empty where it can."""
    from .target import supported

    if target.foreign:
        return emulation.missing(target.name)
    return "" if target.name in {t.name for t in supported()} else f"{target.name} is not run: this CPU cannot"


def build(program: Program, output: Path, flags: Sequence[str] = ()) -> Path:
    """Compiles a program of the prefix "model" for one target together with `evaluate.c` into the executable `output`.

    Raises InfercError where there is no compiler for it, or it fails.
    """
    target = program.targets[0]
    compiler = emulation.zig(target.name) if target.foreign else toolchain.find_compiler(target)
    linked = ("-static",) if target.foreign else ()
    with tempfile.TemporaryDirectory(prefix="inferc-evaluate-") as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        program.write(folder)
        (folder / "evaluate.c").write_text(SOURCE.read_text("utf-8"), "utf-8")
        units = {**program.units, "evaluate.c": target.baseline}
        commands = [
            [*compiler, *toolchain.FLAGS, *flags, *toolchain.spelled(own, compiler), "-c", unit, "-o", f"{unit}.o"]
            for unit, own in units.items()
        ]
        for _ in pool.map(lambda command: _run(command, folder), commands):
            pass
        _run([*compiler, *linked, *(f"{unit}.o" for unit in units), "-o", str(output), *toolchain.LIBRARIES], folder)
    return output


def run(executable: Path, target: CTarget, weights: Path, ids: np.ndarray, *, threads: int, step: int,
        vocabulary: int, values: Path | None = None) -> np.ndarray:  # fmt: skip
    """The logits f32[len(ids), vocabulary] of ids evaluated `step` at a time; what is told goes into the file `values`.

    Raises InfercError where the program fails.
    """
    prefix = emulation.emulator(target.machine) if target.foreign else ()
    if target.machine == "wasm32":
        threads = 1
    with tempfile.TemporaryDirectory(prefix="inferc-evaluate-") as name:
        folder = Path(name)
        np.ascontiguousarray(ids, np.int32).tofile(folder / "ids")
        told = [] if values is None else [str(values)]
        _run([*prefix, str(executable), str(weights), str(folder / "ids"), str(folder / "logits"), str(threads),
              str(step), *told], folder)  # fmt: skip
        return np.fromfile(folder / "logits", np.float32).reshape(len(ids), vocabulary)


def told_in(values: Path) -> Iterator[Told]:
    """What a file of values holds, in the order of the program."""
    data = np.memmap(values, np.uint8, "r") if values.stat().st_size else np.zeros(0, np.uint8)
    at = 0
    while at < len(data):
        point, result = (int(n) for n in data[at : at + 8].view(np.int32))
        size = int(data[at + 8 : at + 16].view(np.int64)[0])
        yield Told(point, result, at + 16, size)
        at += 16 + size


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise InfercError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        last = lines[-1] if lines else f"exit code {done.returncode}"
        cause = next((line for line in lines if "error" in line), last)
        raise InfercError(f"{shlex.join(map(str, command[:2]))} … failed: {cause}")
