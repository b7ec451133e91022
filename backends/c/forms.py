"""The forms in which a program is embedded: sources that others build, libraries, an executable, a WebAssembly package.

Each is a row of `FORMS`: a function that writes the form's files into a folder.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import InfercError
from . import toolchain, wasm
from .interface import prefixed
from .program import Program
from .target import HOST_SYSTEM, CTarget
from .text import runtime_text
from .weights import Sum

# Bytes of weights that a system's programs can hold, by system; elsewhere memory is the limit.
MOST_EMBEDDED = {"windows": 1 << 31, "macos": 1 << 31}

# The main of a language model's command line, by what the model gives.
MAINS = {"logits": "main.c", "embeddings": "embed_main.c"}


@dataclass(frozen=True)
class Job:
    """A program of which a form is made: its packed weights, to `embed` or not, and the name that the form is given."""

    program: Program
    weights: Path
    embed: bool
    name: str
    facts: Mapping[str, Any]
    text: Path | None

    @property
    def target(self) -> CTarget:
        return self.program.targets[0]

    @property
    def with_main(self) -> Program:
        """The program with the main of a command line, of which functions have none."""
        if self.program.output not in MAINS:
            return self.program
        program, unit = self.program, f"{self.program.prefix}_main.c"
        added = {unit: MAINS[program.output], "command.h": "command.h", "mapping.h": "mapping.h"}
        texts = {name: prefixed(program.prefix, runtime_text(file)) for name, file in added.items()}
        sources = {**program.sources, **texts}
        return replace(program, sources=sources, units={**program.units, unit: self.target.baseline})


def emit(program: Program, form: str, weights: Path, folder: Path, *, name: str, embed: bool,
         facts: Mapping[str, Any], text: Path | None = None) -> str:  # fmt: skip
    """Writes a form's files into an empty folder: `name` (or, of "c" and "wasm", many), and what goes with it.

    `weights` is the packed file, which may be moved; a WebAssembly package has it beside its modules. `facts` are the
    manifest's. `text` is the file of text tables, always built in.

    Returns the compiler's version, "" where none was needed. Raises InfercError where the target has no such form, no
    compiler is found, or it fails.
    """
    embed &= form != "wasm"
    if (form == "exe" and program.output not in MAINS) or (form == "wasm" and program.output != "logits"):
        raise InfercError(f"--emit {form} is for language models: take the form so, a or c, and call it")
    toolchain.check(program.targets[0], "a" if form == "c" else form)
    system = program.targets[0].system or HOST_SYSTEM
    most = MOST_EMBEDDED.get(system)
    if embed and most and program.weight_bytes > most:
        raise InfercError(
            f"{program.weight_bytes / 1e9:.1f} GB of weights do not fit into a program for {system}: "
            "use --weights sidecar"
        )
    total = Sum()
    with weights.open("rb") as file:
        if program.weight_bytes:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                total.add(view)
    known = program.with_weights(total.value(), embed=embed, text=text.stat().st_size if text else 0)
    return FORMS[form](Job(known, weights, embed, name, facts, text), folder)


def _sidecar(job: Job, folder: Path, name: str) -> None:
    """The weights beside what was built, where they are not inside."""
    if not job.embed:
        shutil.move(job.weights, folder / name)


def _library(job: Job, folder: Path, form: str) -> str:
    prefix = job.program.prefix
    version = toolchain.compile_program(job.program, folder / job.name, form=form, weights=job.weights,
                                        text=job.text)  # fmt: skip
    (folder / f"{prefix}.h").write_text(job.program.sources[f"{prefix}.h"], encoding="utf-8")
    _sidecar(job, folder, f"{prefix}.weights")
    return version


def _executable(job: Job, folder: Path) -> str:
    version = toolchain.compile_program(job.with_main, folder / job.name, form="exe", weights=job.weights,
                                        text=job.text)  # fmt: skip
    _sidecar(job, folder, f"{job.name}.weights")
    return version


def _module(job: Job, folder: Path) -> str:
    program, prefix = wasm.with_glue(job.program), job.program.prefix
    version = toolchain.compile_program(program, folder / f"{prefix}.wasm", form="wasm", text=job.text)
    toolchain.compile_program(program, folder / f"{prefix}.threads.wasm", form="wasm-threads",
                              text=job.text)  # fmt: skip
    wasm.write_package(program, folder, job.facts)
    _sidecar(job, folder, f"{prefix}.weights")
    return version


def _sources(job: Job, folder: Path) -> str:
    program = job.with_main
    program.write(folder)
    prefix = program.prefix
    shutil.move(job.weights, folder / f"{prefix}.weights")
    if job.text:
        shutil.copyfile(job.text, folder / f"{prefix}.text")
    built_in = ["weights"] * job.embed + ["text"] * bool(job.text)
    (folder / "CMakeLists.txt").write_text(_cmake(program, built_in), encoding="utf-8")
    (folder / "README.md").write_text(_readme(program), encoding="utf-8")
    return ""


FORMS: Mapping[str, Callable[[Job, Path], str]] = {
    "c": _sources, "so": lambda job, folder: _library(job, folder, "so"),
    "a": lambda job, folder: _library(job, folder, "a"), "exe": _executable, "wasm": _module,
}  # fmt: skip


def _cmake(program: Program, built_in: Sequence[str]) -> str:
    prefix, main = program.prefix, f"{program.prefix}_main.c"
    units = [unit for unit in program.units if unit != main]
    title, cli, installed = f"The library {prefix} (shared with -DBUILD_SHARED_LIBS=ON)", "", prefix
    if main in program.units:
        title += f", and {prefix}-cli, a program that uses it"
        installed += f" {prefix}-cli"
        cli = (
            f"add_executable({prefix}-cli {main})\n"
            f"target_compile_options({prefix}-cli PRIVATE -std=c11)\n"
            f"target_link_libraries({prefix}-cli PRIVATE {prefix})\n"
        )
    own = "".join(
        f'set_source_files_properties({unit} PROPERTIES COMPILE_OPTIONS "{";".join(flags)}")\n'
        for unit, flags in program.units.items() if flags
    )  # fmt: skip
    here = f"${{CMAKE_CURRENT_SOURCE_DIR}}/{prefix}"
    names = ";".join(f'{name.upper()}_FILE=\\"{here}.{name}\\"' for name in built_in)
    weights = (
        f"set_source_files_properties({prefix}_weights.c PROPERTIES\n"
        f'  COMPILE_DEFINITIONS "{names}"\n'
        f'  OBJECT_DEPENDS "{";".join(f"{here}.{name}" for name in built_in)}")\n'
    )
    return f"""# {title}.
cmake_minimum_required(VERSION 3.16)
project({prefix} C)

find_package(Threads REQUIRED)
add_library({prefix} {" ".join(units)})
target_compile_options({prefix} PRIVATE {" ".join(flag for flag in toolchain.FLAGS if flag != "-fPIC")})
set_target_properties({prefix} PROPERTIES POSITION_INDEPENDENT_CODE ON PUBLIC_HEADER {prefix}.h)
target_include_directories({prefix} PUBLIC "${{CMAKE_CURRENT_SOURCE_DIR}}")
target_link_libraries({prefix} PUBLIC Threads::Threads m)

# Each variant of the model for its kind of CPU; the library takes the best when it is opened.
{own}{weights if built_in else ""}
{cli}install(TARGETS {installed})
"""


def _readme(program: Program) -> str:
    prefix = program.prefix
    shared = " ".join(toolchain.FLAGS)
    lines = [" ".join(["cc", "$FLAGS", *flags, "-c", unit]) for unit, flags in program.units.items()]
    objects = " ".join(Path(unit).with_suffix(".o").name for unit in program.units)
    cli = f"{prefix}_main.c" in program.units
    made = f"-o {prefix}-cli" if cli else f"-shared -o lib{prefix}.so"
    own = f"`.c` files but `{prefix}_main.c`" if cli else "`.c` files"
    return f"""# {prefix}

A model compiled to C by inferc. `{prefix}.h` is its interface. Build it with CMake,

    cmake -B build && cmake --build build{f"{chr(10)}    build/{prefix}-cli --help" if cli else ""}

or with a C11 compiler alone (gcc or clang), in this folder:

    FLAGS="{shared}"
    {(chr(10) + "    ").join(lines)}
    cc {objects} {made} {" ".join(toolchain.LIBRARIES)}

In your own build take all {own}, each with its flags as above, and link
`{" ".join(toolchain.LIBRARIES)}`.
"""


def link(path: Path, manifest: Mapping[str, Any], output: Path) -> None:
    """Makes a shared library for this computer of what `emit` wrote at `path` as form "a" or "c", with the flags of its
    manifest. Raises InfercError where no C compiler is found or it fails."""
    compiler = toolchain.find_compiler()
    if manifest["emit"] == "a":
        whole = ["-Wl,--whole-archive", str(path.resolve()), "-Wl,--no-whole-archive"]
        toolchain.run([*compiler, "-shared", *whole, "-o", str(output.resolve()), *toolchain.LIBRARIES], path.parent)
        return
    objects = []
    for unit, flags in manifest["units"].items():
        objects.append(str(output.resolve().with_name(f"{unit}.o")))
        own = toolchain.spelled(flags, compiler)
        toolchain.run([*compiler, *manifest["flags"], *own, "-c", unit, "-o", objects[-1]], path)
    toolchain.run([*compiler, "-shared", *objects, "-o", str(output.resolve()), *toolchain.LIBRARIES], path)
