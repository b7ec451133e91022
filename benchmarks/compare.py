"""The comparison with llama.cpp and ik_llama.cpp in one command: brings and makes the models, measures them, writes the
README's figures.

    python benchmarks/compare.py --models DIR --llama-cpp DIR [--ik-llama-cpp DIR] [more options of inferc bench]

The folders of the peers are those with their programs `llama-bench` and, of llama.cpp, `llama-quantize` (docs/bench.md
says how they are built). What is in the folder of models already is not made again. Nothing else should run on the
machine; on two cores it takes about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from inferc.benchmarks import random_gguf, readme

SMALL = "pp512,tg64,tg32@4096"
LARGE = "pp512,tg32"


@dataclass(frozen=True)
class Model:
    """A file, what it is made from, and its tests. `name` is what `inferc pull` brings, `of` the file that llama.cpp
    quantises to `type`; without either the file is one of random weights in the shape of Llama 3.2 1B."""

    file: str
    tests: str
    name: str = ""
    of: str = ""
    type: str = ""


MODELS = (
    Model("SmolLM2-135M-Instruct.Q4_1.gguf", SMALL, name="smollm2"),
    Model("SmolLM2-135M-Instruct.Q4_0.gguf", SMALL, of="SmolLM2-135M-Instruct.Q4_1.gguf", type="Q4_0"),
    Model("gemma-3-270m-q4_k_m.gguf", SMALL, name="gemma3-270m"),
    Model("llama-1b-F16.gguf", LARGE, type="f16"),
    Model("llama-1b-BF16.gguf", LARGE, type="bf16"),
    Model("llama-1b-Q8_0.gguf", LARGE, of="llama-1b-F16.gguf", type="Q8_0"),
    Model("llama-1b-Q4_0.gguf", f"{LARGE},tg32@4096", of="llama-1b-F16.gguf", type="Q4_0"),
    Model("llama-1b-Q4_K_M.gguf", f"{LARGE},tg32@4096", of="llama-1b-F16.gguf", type="Q4_K_M"),
)


def made(model: Model, folder: Path, quantize: Path) -> Path:
    """The model's file, made where it is not there yet. Raises CalledProcessError, OSError."""
    path = folder / model.file
    if path.exists():
        return path
    print(f"making {model.file}", file=sys.stderr, flush=True)
    if model.name:
        done = subprocess.run([sys.executable, "-m", "inferc.compiler.cli", "pull", model.name], check=True,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
        path.symlink_to(done.stdout.split("\n")[0].strip())
        return path
    partial = path.with_name(f"{path.name}.part")
    if model.of:
        subprocess.run([quantize, "--allow-requantize", folder / model.of, partial, model.type], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    else:
        random_gguf.write(partial, random_gguf.SHAPES["llama-3.2-1b"], model.type, seed=0)
    partial.replace(path)
    return path


def command(folder: Path, peers: dict[str, Path], output: Path, more: Sequence[str]) -> list[str]:
    """The words after `inferc`. ik_llama.cpp has wrong logits for rows of 576 in Q4_1."""
    words = ["bench", *(f"{folder / m.file}={m.tests}" for m in MODELS), "--backends", ",".join(["c", *peers])]
    for name, program in peers.items():
        words += ["--peer", f"{name}={program}"]
    words += ["--skip", "ik_llama.cpp:Q4_1", "-r", "3", "--depth-rounds", "1"]
    return [*words, "-o", "md,csv,json,html", "--output", str(output), *more]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="the folder of the models' files, perhaps empty")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="the folder of llama-bench and llama-quantize")
    parser.add_argument("--ik-llama-cpp", type=Path, help="the folder of its llama-bench")
    parser.add_argument("--keep-readme", action="store_true", help="leave the README's figures as they are")
    arguments, more = parser.parse_known_args()
    peers = {"llama.cpp": arguments.llama_cpp / "llama-bench"}
    if arguments.ik_llama_cpp:
        peers["ik_llama.cpp"] = arguments.ik_llama_cpp / "llama-bench"
    quantize = arguments.llama_cpp / "llama-quantize"
    if absent := [p for p in (*peers.values(), quantize) if not p.is_file()]:
        parser.error(f"there is no program {absent[0]}")
    arguments.models.mkdir(parents=True, exist_ok=True)
    output = readme.RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-bench"
    try:
        for model in MODELS:
            made(model, arguments.models, quantize)
        words = command(arguments.models, peers, output, more)
        subprocess.run([sys.executable, "-m", "inferc.compiler.cli", *words], check=True)
        if not arguments.keep_readme:
            subprocess.run([sys.executable, readme.__file__, "--bench", f"{output.name}.json"], check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
