"""A compiled model run as a program of its own, natively or in an emulator, observed or not."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ...errors import InfercError
from . import emulation, toolchain
from .program import Program
from .target import CTarget

FOLDER = Path(__file__).parent


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
        if target.system not in ("", "linux"):
            return f"{target.label} is not run: there is no emulator of {target.system} here"
        return emulation.missing(target.name, target.machine).replace(target.name, target.label, 1)
    return "" if target.name in {t.name for t in supported()} else f"{target.name} is not run: this CPU cannot"


def build(program: Program, output: Path, flags: Sequence[str] = (), *, source: str = "evaluate.c") -> Path:
    """Compiles a program of the prefix "model" for one target together with `source`, `evaluate.c` of a language model
    or `evaluate_function.c`, into the executable `output`.

    Raises InfercError where there is no compiler for it, or it fails.
    """
    target = program.targets[0]
    foreign = target.foreign
    compiler = emulation.zig(target.name, target.machine) if foreign else toolchain.find_compiler(target)
    linked = ("-static",) if foreign else ()
    with tempfile.TemporaryDirectory(prefix="inferc-evaluate-") as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        program.write(folder)
        for part in (source, "evaluate.h"):
            (folder / part).write_text((FOLDER / part).read_text("utf-8"), "utf-8")
        units = {**program.units, source: target.baseline}
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
    with tempfile.TemporaryDirectory(prefix="inferc-evaluate-") as name:
        folder = Path(name)
        np.ascontiguousarray(ids, np.int32).tofile(folder / "ids")
        _execute(executable, target, weights, threads, folder, ["ids", "logits", str(step)], values)
        return np.fromfile(folder / "logits", np.float32).reshape(len(ids), vocabulary)


def run_function(executable: Path, target: CTarget, weights: Path, inputs: Sequence[np.ndarray],
                 dtypes: Sequence[np.dtype], *, threads: int,
                 values: Path | None = None) -> list[np.ndarray]:  # fmt: skip
    """A function's outputs, of these dtypes, for inputs of the signature's; what is told goes into the file `values`.

    Raises InfercError where the program fails.
    """
    with tempfile.TemporaryDirectory(prefix="inferc-evaluate-") as name:
        folder = Path(name)
        with (folder / "inputs").open("wb") as file:
            for x in inputs:
                file.write(np.array([x.ndim, *x.shape], np.int32).tobytes() + x.tobytes())
        _execute(executable, target, weights, threads, folder, ["inputs", "outputs"], values)
        data, at, made = (folder / "outputs").read_bytes(), 0, []
        for dtype in dtypes:
            rank = int(np.frombuffer(data, np.int32, 1, at)[0])
            shape = tuple(np.frombuffer(data, np.int32, rank, at + 4).tolist())
            at += 4 + 4 * rank
            made.append(np.frombuffer(data, dtype, prod(shape), at).reshape(shape))
            at += made[-1].nbytes
        return made


def _execute(executable: Path, target: CTarget, weights: Path, threads: int, folder: Path, own: Sequence[str],
             values: Path | None) -> None:  # fmt: skip
    """Runs what `build` made; files that `own` names lie in `folder`."""
    prefix = emulation.emulator(target.machine) if target.foreign else ()
    threads = 1 if target.machine == "wasm32" else threads
    words = [str(folder / word) if not word.isdigit() else word for word in own]
    told = [] if values is None else [str(values)]
    _run([*prefix, str(executable), str(weights), str(threads), *words, *told], folder)


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
