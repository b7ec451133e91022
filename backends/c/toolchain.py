"""The C compiler: found on the host or in the ziglang wheel, and run on a program in a temporary folder."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...errors import InfercError
from .program import Program
from .target import CTarget

FLAGS = (
    "-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
WARNINGS = ("-Wall", "-Wextra", "-pedantic")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-fno-omit-frame-pointer")
LIBRARIES = ("-lm", "-pthread")
FRUGAL = "--param=ggc-min-heapsize=32768", "--param=ggc-min-expand=30"  # GCC frees at 32 MB, not 128, as fast


def find_compiler(target: CTarget | None = None, *, static: bool = False) -> list[str]:
    """The command that compiles C: $CC, else cc, gcc or clang, else ziglang's, which is the one for other machines and
    systems than the host; `static` programs for another Linux have musl's C library. Raises InfercError if there is
    none."""
    if target and target.foreign:
        if not importlib.util.find_spec("ziglang"):
            raise InfercError(f"nothing here compiles for {target.machine}-{target.system}: `pip install ziglang`")
        triple = target.triple.replace("gnu", "musl") if static and target.system == "linux" else target.triple
        return [sys.executable, "-m", "ziglang", "cc", "-target", triple, "-g0"]
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


def check(target: CTarget, form: str = "so") -> list[str]:
    """`find_compiler` for a form of a library. Raises InfercError where the target's machine has no such form."""
    wasm = target.machine == "wasm32"
    if wasm and form == "so":
        raise InfercError(f"{target.name} has no shared libraries: WebAssembly is linked into modules (--emit wasm)")
    if form.startswith("wasm") and not wasm:
        raise InfercError(f"a WebAssembly module is not for {target.name}: use --target wasm32")
    return find_compiler(target, static=form == "exe")


def about(compiler: Sequence[str]) -> str:
    """What the compiler says about itself, in the first line its version."""
    return run([*compiler, "--version"], Path.cwd())


def spelled(flags: Sequence[str], compiler: Sequence[str]) -> list[str]:
    """Flags as the compiler writes them: zig's names of CPUs have no minus sign, which it reads as "without"."""
    if not any("zig" in Path(word).name for word in compiler):
        return list(flags)
    return ["-mcpu=" + f.removeprefix("-march=").replace("-", "_") if f.startswith("-march=") else f for f in flags]


def run(command: Sequence[str], folder: Path) -> str:
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


def compile_program(program: Program, output: Path, *, form: str = "so", weights: Path | None = None,
                    text: Path | None = None, extra: Sequence[str] = (), sanitize: bool = False) -> str:  # fmt: skip
    """Compiles a program to `output`, which appears whole or not at all, in one of `FORMS`.

    Its units are compiled at the same time, each with its own flags for the CPU. `weights` and `text` are the files
    that a program includes that has its weights or text tables built in. `extra` is appended to all flags; `sanitize`
    builds with the address and undefined-behaviour sanitizers. Equal programs give equal bytes. Returns the compiler's
    version line. Raises InfercError where no compiler is found, or it fails, or the disk is full.
    """
    target = program.targets[0]
    compiler = [*check(target, form), *FORM_FLAGS.get(form, ())]
    facts = about(compiler)
    frugal = FRUGAL if "Free Software Foundation" in facts else ()
    flags = [*FLAGS, *WARNINGS, *frugal, *extra, *(SANITIZERS if sanitize else ())]
    with tempfile.TemporaryDirectory(prefix="inferc-cc-") as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        program.write(folder)
        for file, kind in ((weights, "weights"), (text, "text")):
            if file:
                (folder / f"{program.prefix}.{kind}").symlink_to(file.resolve())
        variants = {f"{program.prefix}_{t.name}.c" for t in program.targets}  # which take longest, so others give way
        nice = ["nice"] if shutil.which("nice") else []
        commands = [[*(() if unit in variants else nice), *compiler, *flags, *spelled(own, compiler), "-c", unit, "-o",
                     f"{unit}.o"] for unit, own in program.units.items()]  # fmt: skip
        for _ in pool.map(run, commands, [folder] * len(commands)):
            pass
        objects = [f"{unit}.o" for unit in program.units]
        built = folder / "built" / output.name  # by that name: a shared library knows its own
        built.parent.mkdir()
        FORMS[form](target, [*compiler, *(SANITIZERS if sanitize else ())], objects, built)
        if target.system == "windows" and form != "a":
            _forget_time(built)
        partial = output.with_name(output.name + ".part")
        try:
            shutil.move(built, partial)
            partial.replace(output)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InfercError(f"cannot write {output}: {error.strerror}") from error
    return facts.splitlines()[0]


def _forget_time(path: Path) -> None:
    """Clears the time of linking in the header of a file for Windows."""
    with path.open("r+b") as file:
        file.seek(0x3C)
        header = int.from_bytes(file.read(4), "little")
        file.seek(header)
        if file.read(4) != b"PE\0\0":
            raise InfercError(f"zig made no program for Windows of {path.name}: another ziglang may")
        file.seek(header + 8)
        file.write(bytes(4))


def _shared(target: CTarget, compiler: Sequence[str], objects: Sequence[str], output: Path) -> None:
    named = {"macos": f"-Wl,-install_name,@rpath/{output.name}", "windows": ""}
    name = named.get(target.system, f"-Wl,-soname,{output.name}")
    flags = [flag for flag in (name, *LINKED.get(target.system, ())) if flag]
    run([*compiler, "-shared", *flags, *objects, "-o", str(output), *LIBRARIES], output.parent.parent)


def _archive(target: CTarget, compiler: Sequence[str], objects: Sequence[str], output: Path) -> None:
    """A static library; the archiver writes no times and owners, and the format of the target's system."""
    archiver = ["ar"]
    if target.foreign or not shutil.which("ar"):
        if not importlib.util.find_spec("ziglang"):
            raise InfercError("nothing here makes static libraries: install binutils, or `pip install ziglang`")
        kind = {"macos": "darwin", "windows": "coff"}.get(target.system, "gnu")
        archiver = [sys.executable, "-m", "ziglang", "ar", f"--format={kind}"]
    run([*archiver, "rcsD", str(output), *objects], output.parent.parent)


def _executable(target: CTarget, compiler: Sequence[str], objects: Sequence[str], output: Path) -> None:
    static = ("-static", "-Wl,-s") if target.foreign and target.system == "linux" else ()
    flags = (*static, *LINKED.get(target.system, ()))
    run([*compiler, *flags, *objects, "-o", str(output), *LIBRARIES], output.parent.parent)


def _module(target: CTarget, compiler: Sequence[str], objects: Sequence[str], output: Path) -> None:
    run([*compiler, *objects, "-o", str(output), *MODULE], output.parent.parent)


def _threaded_module(target: CTarget, compiler: Sequence[str], objects: Sequence[str], output: Path) -> None:
    run([*compiler, *objects, "-o", str(output), *MODULE, *SHARED_MEMORY], output.parent.parent)


# What compile_program makes: a shared library, a static one, a program (one unit has main), WebAssembly modules.
FORMS: Mapping[str, Callable[[CTarget, Sequence[str], Sequence[str], Path], None]] = {
    "so": _shared, "a": _archive, "exe": _executable, "wasm": _module, "wasm-threads": _threaded_module,
}  # fmt: skip
LINKED = {"windows": ("-Wl,-s",), "macos": ("-Wl,-s",)}  # no files of debug facts beside what is built
MODULE = (
    "-mexec-model=reactor", "-Wl,--export-dynamic", "-Wl,--export=malloc", "-Wl,--export=free", "-Wl,-s",
)  # fmt: skip
SHARED_MEMORY = (
    "-Wl,--shared-memory", "-Wl,--import-memory", "-Wl,--initial-memory=33554432", "-Wl,--max-memory=4294901760",
    "-Wl,--export=__wasm_init_tls", "-Wl,--export=__tls_size",
)  # fmt: skip
# What zig builds its C library with too, so that the linker lets it share memory.
FORM_FLAGS = {"wasm-threads": ("-mcpu=generic+atomics+bulk_memory+simd128",)}
