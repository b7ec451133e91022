"""Programs of machines that the host is not: zig's compiler for each, and the emulator that runs what it makes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from .target import TARGETS, TRIPLES

# V8 has relaxed SIMD by a flag at first, and a faulty dot product in its first compiler, Liftoff.
NODE_FLAGS = "--no-warnings", "--no-liftoff", "--experimental-wasm-relaxed-simd"
TOOLS = {
    "aarch64": ("qemu-aarch64", "qemu-aarch64-static"), "riscv64": ("qemu-riscv64", "qemu-riscv64-static"),
    "wasm32": ("node",),
}  # fmt: skip
WASI = Path(__file__).with_name("wasi.mjs")
REPLAY = Path(__file__).with_name("replay.mjs")


@cache
def emulator(machine: str, script: Path = WASI) -> tuple[str, ...]:
    """The command that runs a program for a machine; empty where there is none. WebAssembly's is run by a script."""
    found = next((path for tool in TOOLS.get(machine, ()) if (path := shutil.which(tool))), None)
    if not found or machine != "wasm32":
        return (found,) if found else ()
    flags = [f for f in NODE_FLAGS if not subprocess.run([found, f, "--eval", ""], capture_output=True).returncode]
    return found, *flags, str(script)


def replay(package: Path) -> list[str]:
    """The command that answers the golden prompts of a WebAssembly package; empty where there is no Node."""
    node = shutil.which("node")
    return [node, str(REPLAY), str(package.resolve())] if node else []


@cache
def missing(target: str, machine: str = "") -> str:
    """Why the host cannot run a target of another machine, its own or the one named; empty where it can."""
    machine = machine or TARGETS[target].machine
    if not any(map(shutil.which, TOOLS.get(machine, ()))):
        return f"{target} is not run: no {' or '.join(TOOLS.get(machine, [machine]))} here (make emulators)"
    return "" if importlib.util.find_spec("ziglang") else f"{target} is not built: no ziglang here"


def zig(target: str, machine: str = "") -> list[str]:
    """zig's C compiler for a target's machine, or the one named; static programs need musl."""
    triple = TRIPLES[machine or TARGETS[target].machine].replace("gnu", "musl")
    return [sys.executable, "-m", "ziglang", "cc", "-target", triple, "-g0"]
