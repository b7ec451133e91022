"""What a model costs before its first token: compile time and memory, sizes, and starts of program and library.

    python benchmarks/start.py MODEL... [--runs 5]

A model is compiled in fresh processes, after its file was read once: some that are timed, and one whose memory is
sampled with that of the C compiler (`memory.py`). `inferc run` is timed on the artifact, Python's start included; the
library by `start.c`, from the start of its process until a session is ready and until the first logits are there.
Times are the median with the least and the most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inferc.backends.c.toolchain import find_compiler
from inferc.benchmarks.memory import peak_of
from inferc.runtime.artifact import Artifact

# Modules' bytecode is kept, as where a package is installed.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
INFERC = (sys.executable, "-m", "inferc.compiler")
SOURCE = Path(__file__).with_name("start.c")


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def timed(*command: str | Path) -> float:
    """Seconds from the start of a process to its end."""
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return time.monotonic() - started


def imports() -> dict[str, int]:
    """Peak memory of a process that imports what compiles, and does nothing: no compilation has less."""
    found = peak_of([sys.executable, "-c", "import inferc.compiler.driver"], ENVIRONMENT)
    return {"imports_bytes": found.tree}


def compiled(model: Path, output: Path, runs: int) -> dict[str, Any]:
    """Compiles a GGUF file into `output`: seconds of `runs` processes, peak memory of another one, and sizes."""
    with model.open("rb") as file:
        while file.read(1 << 24):  # so that the page cache holds it
            pass
    command = [*INFERC, "compile", str(model), "-o", str(output)]
    seconds = spread(timed(*command) for _ in range(runs))
    peak, size = peak_of(command, ENVIRONMENT), model.stat().st_size
    artifact = Artifact(output)
    code = {name: artifact.view(name).nbytes for name in artifact.names() if name.startswith("c/")}
    library = code.pop(artifact.manifest["library"])
    return {"file_bytes": size, "compile_seconds": seconds, "compile_peak_bytes": peak.tree,
            "peak_of_file": peak.tree / size, "compile_peak_pss_bytes": peak.shared,
            "largest_process_bytes": peak.processes, "artifact_bytes": output.stat().st_size,
            "source_bytes": sum(code.values()), "library_bytes": library}  # fmt: skip


def first_token(artifact: Path) -> float:
    """Seconds from starting `inferc run` on an artifact to its first token, everything included."""
    return timed(*INFERC, "run", str(artifact), "-p", "The capital of", "-n", "1")


def member_offset(path: Path, name: str) -> int:
    """Where a member of a zip begins, which is stored, not compressed."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        start = archive.getinfo(name).header_offset
        file.seek(start)
        header = file.read(30)
    return start + 30 + sum(struct.unpack("<2H", header[26:]))


def library_starts(path: Path, threads: int, runs: int) -> tuple[list[float], list[float]]:
    """Seconds from the start of a process to a ready session, and to the first logits, of each run."""
    artifact = Artifact(path)
    with tempfile.TemporaryDirectory(prefix="inferc-start-") as name:
        folder = Path(name)
        (folder / "model.h").write_bytes(artifact.read("c/model.h"))
        library, program = folder / "libmodel.so", folder / "start"
        library.write_bytes(artifact.read(artifact.manifest["library"]))
        subprocess.run([*find_compiler(), "-O2", "-iquote", name, str(SOURCE), str(library), f"-Wl,-rpath,{name}",
                        "-o", str(program)], check=True)  # fmt: skip
        weights = artifact.manifest["weights"]
        offset = member_offset(path, weights["file"])
        command = [str(program), str(path), str(offset), str(weights["bytes"]), str(threads)]
        ready, evaluated = [], []
        for _ in range(runs + 1):  # the first is not counted: its pages are not in memory yet
            started = time.monotonic()
            done = subprocess.run(command, check=True, capture_output=True)
            times = [float(word) - started for word in done.stdout.split()]
            ready.append(times[0])
            evaluated.append(times[1])
    return ready[1:], evaluated[1:]


def measure(model: Path, artifact: Path, threads: int, runs: int) -> dict[str, Any]:
    """Compiles `model` into `artifact` and measures every start of it."""
    facts = compiled(model, artifact, runs)
    first_token(artifact)  # Python's own files are in the page cache from now on
    ready, evaluated = library_starts(artifact, threads, runs)
    facts["first_token_seconds"] = spread(first_token(artifact) for _ in range(runs))
    return facts | {"library_ready_seconds": spread(ready), "library_logits_seconds": spread(evaluated)}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown of `measure`'s results by model."""

    def milliseconds(values: Mapping[str, float]) -> str:
        return f"{values['median'] * 1e3:.0f} ({values['min'] * 1e3:.0f}–{values['max'] * 1e3:.0f})"

    lines = ["| model | file MB | compile s | peak MB, all processes | / file | largest process MB | C KB | library KB "
             "| `inferc run`, first token ms | library ready ms | library, first logits ms |",
             "|---" * 11 + "|"]  # fmt: skip
    for name, row in rows.items():
        starts = (milliseconds(row[f"{what}_seconds"]) for what in ("first_token", "library_ready", "library_logits"))
        sizes = f"{row['source_bytes'] / 1e3:.0f} | {row['library_bytes'] / 1e3:.0f}"
        largest = max(row["largest_process_bytes"].values()) / 1e6
        lines.append(f"| {name} | {row['file_bytes'] / 1e6:.0f} | {row['compile_seconds']['median']:.1f} | "
                     f"{row['compile_peak_bytes'] / 1e6:.0f} | {row['peak_of_file']:.2f} | {largest:.0f} | {sizes} | "
                     f"{' | '.join(starts)} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferc-bench-") as folder:
        rows = {
            model.stem: measure(model, Path(folder) / f"{model.stem}.inferc", arguments.threads, arguments.runs)
            for model in arguments.models
        }
    least = imports()
    print(f"{table(rows)}\n\nImports alone: {least['imports_bytes'] / 1e6:.0f} MB.")
    if arguments.json:
        arguments.json.write_text(json.dumps({"imports": least, "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
