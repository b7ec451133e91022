"""The C compiler: found on the host or in the ziglang wheel, and run on a program in a temporary folder."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...errors import InfercError
from .program import Program
from .target import TRIPLES, CTarget

FLAGS = (
    "-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
WARNINGS = ("-Wall", "-Wextra", "-pedantic")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-fno-omit-frame-pointer")
LIBRARIES = ("-lm", "-pthread")


def find_compiler(target: CTarget | None = None) -> list[str]:
    """The command that compiles C: $CC, else cc, gcc or clang, else ziglang's, which is the one for other machines than
    the host. Raises InfercError if there is none."""
    if target and target.foreign:
        if target.machine == "wasm32":
            raise InfercError(f"{target.name} has no shared libraries: WebAssembly is linked into modules")
        if not importlib.util.find_spec("ziglang"):
            raise InfercError(f"nothing here compiles for {target.machine}: `pip install ziglang`")
        return [sys.executable, "-m", "ziglang", "cc", "-target", TRIPLES[target.machine]]
    if chosen := shlex.split(os.environ.get("CC", "")):
        if not shutil.which(chosen[0]):
            raise InfercError(f"there is no compiler {chosen[0]}, which CC names: set CC to a C compiler or unset it")
        return chosen
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise InfercError("no C compiler was found: install gcc or clang, set CC, or `pip install ziglang`")


def version(compiler: Sequence[str]) -> str:
    """The first line that the compiler says about itself."""
    return _run([*compiler, "--version"], Path.cwd()).splitlines()[0]


def spelled(flags: Sequence[str], compiler: Sequence[str]) -> list[str]:
    """Flags as the compiler writes them: zig's names of CPUs have no minus sign, which it reads as "without"."""
    if not any("zig" in Path(word).name for word in compiler):
        return list(flags)
    return ["-mcpu=" + f.removeprefix("-march=").replace("-", "_") if f.startswith("-march=") else f for f in flags]


def _run(command: Sequence[str], folder: Path) -> str:
    """Runs a compiler command; raises InfercError with the first line that says what is wrong."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise InfercError(f"cannot run the C compiler {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).splitlines()
        cause = next((line for line in lines if "error" in line), lines[0] if lines else f"exit code {done.returncode}")
        raise InfercError(f"the C compiler {command[0]} failed: {cause}")
    return done.stdout


def compile_program(program: Program, output: Path, *, extra: Sequence[str] = (), sanitize: bool = False) -> str:
    """Compiles a program to the shared library `output`, which appears whole or not at all.

    Its units are compiled at the same time, each with its own flags for the CPU. `extra` is appended to all flags;
    `sanitize` builds with the address and undefined-behaviour sanitizers. Returns the compiler's version line. Raises
    InfercError where no compiler is found, or it fails, or the disk is full.
    """
    compiler = find_compiler(program.targets[0])
    flags = [*FLAGS, *WARNINGS, *extra, *(SANITIZERS if sanitize else ())]
    with tempfile.TemporaryDirectory(prefix="inferc-cc-") as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        program.write(folder)
        commands = [[*compiler, *flags, *spelled(own, compiler), "-c", unit, "-o", f"{unit}.o"]
                    for unit, own in program.units.items()]  # fmt: skip
        for _ in pool.map(_run, commands, [folder] * len(commands)):
            pass
        objects = [f"{unit}.o" for unit in program.units]
        _run([*compiler, "-shared", *(SANITIZERS if sanitize else ()), *objects, "-o", "library", *LIBRARIES], folder)
        partial = output.with_name(output.name + ".part")
        try:
            shutil.copyfile(folder / "library", partial)
            partial.replace(output)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InfercError(f"cannot write {output}: {error.strerror}") from error
    return version(compiler)
