"""Size, start and first token of a model in the forms of `compile --emit`, beside a small program with llama.cpp.

    python benchmarks/embedded.py MODEL [--llama PROGRAM] [--rounds 15]

MODEL is a GGUF file or a short name. Every form is compiled, with the program of `examples/c` for the libraries and a
few lines for Node. Times are wall time from exec to exit of programs in turns, files in memory: "start" opens the model
and makes no token, "first token" one after a short prompt. Prints a markdown table: least ms, the median in brackets.

PROGRAM is `embedded_llama.cpp` beside this file, built with a llama.cpp that docs/bench.md says how to get:

    c++ -std=c++17 -O2 embedded_llama.cpp -I$L/include -I$L/ggml/include -L$L/build/bin -lllama -lggml -lggml-base \\
        -Wl,-rpath,$L/build/bin -o embedded_llama
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inferc.backends.c.toolchain import LIBRARIES, find_compiler
from inferc.compiler import hub
from inferc.compiler.driver import compile_model

PROMPT = "The capital of France is"
THREADS = 2
HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples/c/main.c"
NODE = """
const { Model } = await import("%s/index.js");
const model = await Model.load({ threads: %d });
for await (const piece of %d ? model.generate("%s", { maxTokens: 1 }) : []) process.stdout.write(piece);
model.close();
"""


@dataclass(frozen=True)
class Form:
    """A row: what it is, its size in words, and the commands that make no token and one."""

    name: str
    size: str
    start: Sequence[str] = ()
    first: Sequence[str] = ()


def megabytes(*paths: Path) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB"


def example(folder: Path, library: str, tokens: int) -> str:
    """The C example, making that many tokens, built in a folder with a library and its header."""
    text = re.sub(r"\bMOST = \d+", f"MOST = {tokens}", EXAMPLE.read_text())
    text = text.replace("sizeof(model_open_options)}", f"sizeof(model_open_options), .threads = {THREADS}}}")
    source, program = folder / f"make{tokens}.c", folder / f"make{tokens}-{library}.out"
    source.write_text(text)
    rpath = "-Wl,-rpath," + str(folder)
    command = [*find_compiler(), "-std=c11", source, f"-I{folder}", folder / library, rpath, *LIBRARIES, "-o", program]
    subprocess.run(list(map(str, command)), check=True)
    return str(program)


def forms(model: Path, folder: Path) -> list[Form]:
    """The model in every form, made in a folder."""

    def made(emit: str, name: str, **options: str) -> Path:
        compile_model(str(model), folder / name, emit=emit, **options)
        return folder / name

    def asked(program: Path) -> tuple[list[str], ...]:
        return tuple([str(program), "-p", PROMPT, "-t", str(THREADS), "-n", n] for n in "01")

    whole, beside = made("exe", "whole"), made("exe", "beside", weights="sidecar")
    weights = beside.with_name("beside.weights")
    found = [
        Form("`exe`", f"{megabytes(whole)}, one file", *asked(whole)),
        Form("`exe`, weights beside it", f"{megabytes(beside)} + {megabytes(weights)}", *asked(beside)),
    ]
    for emit, name in ("so", "libmodel.so"), ("a", "libmodel.a"):
        path = made(emit, name)
        programs = [[example(folder, name, tokens), PROMPT] for tokens in (0, 1)]
        found.append(Form(f"`{emit}` in the C example", megabytes(path), *programs))
    sources = made("c", "sources")
    found.append(Form("`c`", f"{megabytes(*sources.iterdir())} of sources, tables and weights"))
    if shutil.which("node"):
        package = made("wasm", "package", target="wasm32")
        modules = sorted(package.glob("*.wasm"))
        size = f"{len(modules)} × {megabytes(modules[0])} + {megabytes(package / 'model.weights')}"
        scripts = [NODE % (package, THREADS, tokens, PROMPT) for tokens in (0, 1)]
        found.append(Form("`wasm` in Node", size, *(["node", "--input-type=module", "-e", s] for s in scripts)))
    return found


def llama(program: Path, model: Path) -> Form:
    """The program with llama.cpp; its libraries are those of its folders, not the system's."""
    lines = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    paths = [Path(path).resolve() for path in re.findall(r"=> (/\S+)", lines)]
    own = {path for path in paths if re.match(r"lib(llama|ggml)", path.name)}
    size = f"{megabytes(program, *own)}, with {len(own)} libraries of its own, + {megabytes(model)}"
    return Form("llama.cpp", size, *([str(program), str(model), PROMPT, n] for n in "01"))


def seconds(command: Sequence[str]) -> float:
    """Wall time of one run. Raises CalledProcessError where it fails."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def code_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--llama", type=Path, help="embedded_llama.cpp, built")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    model = hub.pull(options.model, lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="inferc-embedded-") as folder:
        rows = forms(Path(model), Path(folder))
        if options.llama:
            rows.append(llama(options.llama.resolve(), Path(model)))
        commands = {(row.name, what): command for row in rows
                    for what, command in (("start", row.start), ("first", row.first)) if command}  # fmt: skip
        times: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
        for number in range(options.rounds + 1):
            for key, command in commands.items():
                taken = seconds(command)
                if number:  # the first reads the files
                    times[key].append(1000 * taken)
            print(f"round {number} of {options.rounds}", file=sys.stderr)
    print("| form | size | start, ms | first token, ms |\n|---|---|---|---|")
    for row in rows:
        shown = [f"{min(t):.1f} ({statistics.median(t):.1f})" if (t := times.get((row.name, what))) else "–"
                 for what in ("start", "first")]  # fmt: skip
        print(f"| {row.name} | {row.size} | {' | '.join(shown)} |")
    lines = code_lines(EXAMPLE), code_lines(HERE / "embedded_llama.cpp")
    print(f"\nHost code: {lines[0]} lines of C, {lines[1]} of C++ with llama.cpp. {THREADS} threads, {PROMPT!r}.")


if __name__ == "__main__":
    main()
