"""Tokens per second of XLA artifacts on a device, as fractions of what the device can do, beside other engines.

    python benchmarks/xla_gpu.py --json figures.jsonl      # a GPU: 1B and 8B shapes, four weight types, in ten minutes
    python benchmarks/xla_gpu.py --seconds 3000            # all of it
    python benchmarks/xla_gpu.py --platform cpu --gguf MODEL.gguf --types as-is --slots 1 --prompts 128 --beside c,jax

One run measures the device first: GB/s of reading and of copying a large array, the higher of them, and TFLOP/s of a
matrix product in the dtype that is computed in. Then, for each model and batch, decoding (`greedy` on the device where
the batch is one, else one call for a token of each slot) and prompts from an empty cache, what matters most first.
Weights are random, of the shapes in `random_gguf.SHAPES`, and made in memory. Of decoding the fraction is that of the
bandwidth: weights and half the cache are read once for each step; of prompts that of the matrix product's peak, at two
operations for each token and weight of the layers.

Each engine measures a model in a process of its own, which may fail or be stopped: it is said so, with the reason, and
the others go on. A figure is printed and appended to `--json`, a line of JSON each, as soon as it is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from inferc.benchmarks import random_gguf
from inferc.benchmarks.xla_engines import ENGINES, OF_A_SHAPE, Leg, device_facts
from inferc.errors import InfercError

LEAST_SECONDS = 20  # what an engine needs to start and measure anything
BESIDE = {"c": "inferc C", "jax": "jax.jit f32", "llama.cpp": "llama.cpp", "transformers": "transformers"}
PEERS = {"cuda": "transformers,llama.cpp"}  # engines that are measured beside ours, by platform


def legs(options: argparse.Namespace) -> list[Leg]:
    """Batches of one first, and the others beside the first of ours that they can be compared with."""
    found: list[Leg] = []
    for batch, kind, shape in product(options.slots, options.types, [""] if options.gguf else options.shapes):
        found.append(("inferc", shape, kind, batch))
        for engine in (BESIDE[name] for name in options.beside):
            if kind == options.types[0] if engine in OF_A_SHAPE else batch == options.slots[0]:
                found.append((engine, shape, kind, batch))
    return found


def parameters_of(leg: Leg, options: argparse.Namespace) -> int:
    """Values of the layers' weights."""
    from inferc.compiler.frontends import gguf

    if leg[1]:
        shapes = dict(random_gguf.SHAPES[leg[1]].tensors())
    else:
        shapes = {name: w.type.sizes for name, w in gguf.load(options.gguf).weights.items()}
    return sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith("blk."))


def described(leg: Leg, options: argparse.Namespace) -> dict[str, Any]:
    engine, shape, kind, batch = leg
    model = options.gguf.stem if options.gguf else shape if engine in OF_A_SHAPE else f"{shape}-{kind}"
    return {"model": model, "engine": f"{engine} {options.compute}" if engine == "inferc" else engine, "batch": batch}


def keep(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Prints a row, and appends it to the file of all."""
    head = f"{row.get('model', ''):28} {row.get('engine', ''):14}"
    if "error" in row:
        print(f"{head} batch {row['batch']}: {row['error']}", flush=True)
    elif "what" in row:
        print(f"{head} {row['what']:12} {row['tokens_per_second']:10.1f} tokens/s  {row['fraction']:6.1%} of the "
              f"{row['of']}", flush=True)  # fmt: skip
    else:
        print(f"{row['device']}, jax {row['jax']}: {row['gb_per_second']:.0f} GB/s, {row['tflops']:.2f} TFLOP/s in "
              f"{row['compute']}", flush=True)  # fmt: skip
    with options.json.open("a") as file:
        file.write(json.dumps(row) + "\n")


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What has been kept so far."""
    return [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []


def measure(leg: Leg, options: argparse.Namespace) -> None:
    """Keeps what an engine gives, or why it gives nothing more."""
    limits, row = rows_of(options)[0], described(leg, options)
    try:
        for what, speed, size in ENGINES[leg[0]](leg, options):
            if what.startswith("decode"):
                of, fraction = "bandwidth", speed / leg[3] * size / 1e9 / limits["gb_per_second"]
            else:
                of, fraction = "matmul peak", speed * 2 * parameters_of(leg, options) / 1e12 / limits["tflops"]
            keep({**row, "what": what, "tokens_per_second": speed, "fraction": fraction, "of": of}, options)
    except Exception as error:  # whatever another's engine raises, on a machine that costs by the hour
        reason = str(error).strip().splitlines() or [""]
        keep({**row, "error": f"failed: {type(error).__name__}: {reason[0]}"}, options)


def in_process(leg: Leg | None, words: Sequence[str], seconds: float, options: argparse.Namespace) -> None:
    """Measures in a process of its own, and keeps why it ended if not by itself."""
    command = [sys.executable, __file__, *words, "--leg", json.dumps(leg)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            code, why = process.wait(seconds), "ended with code {}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code, why = 1, f"stopped after {seconds:.0f} s"
    if code and leg:
        keep({**described(leg, options), "error": why.format(code)}, options)


def main() -> None:
    words = sys.argv[1:]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def several(text: str) -> list[str]:
        return [item for item in text.split(",") if item]

    def numbers(text: str) -> list[int]:
        return [int(n) for n in several(text)]

    parser.add_argument("--platform", default="cuda")
    parser.add_argument("--shapes", type=several, default="llama-3.1-8b,llama-3.2-1b")
    parser.add_argument("--gguf", type=Path, help="one model file in place of random ones")
    parser.add_argument("--types", type=several, default="q4_0,bf16,q8_0,q4_k")
    parser.add_argument("--slots", type=numbers, default="1,8,32")
    parser.add_argument("--prompts", type=numbers, default="512,2048")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--compute", default="")
    parser.add_argument("--beside", type=several, help=f"of {', '.join(BESIDE)}; on cuda {PEERS['cuda']} by default")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's program, where it is not found by itself")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "inferc-random", help="a folder")
    parser.add_argument("--json", type=Path, help="a file for all figures, a line each; what is there is replaced")
    parser.add_argument("--seconds", type=float, default=570, help="after which nothing more is measured")
    parser.add_argument("--leg-seconds", type=float, default=180, help="for one engine, model and batch")
    parser.add_argument("--leg", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # what jax holds, an engine beside it cannot have
    options.compute = options.compute or ("f32" if options.platform == "cpu" else "bf16")
    options.beside = several(PEERS.get(options.platform, "")) if options.beside is None else options.beside
    if "--leg" in words:
        if options.leg is None:
            keep(device_facts(options), options)
        else:
            measure(tuple(options.leg), options)
        return
    if options.json is None:
        options.json = Path(tempfile.mkdtemp()) / "figures.jsonl"
        words += ["--json", str(options.json)]
    options.json.unlink(missing_ok=True)
    end = time.monotonic() + options.seconds
    in_process(None, words, options.leg_seconds, options)
    if not rows_of(options):
        sys.exit(1)
    for leg in legs(options):
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            keep({**described(leg, options), "error": "not measured: no time is left (--seconds)"}, options)
        else:
            in_process(leg, words, min(left, options.leg_seconds), options)
    if not any("what" in row for row in rows_of(options)):
        sys.exit("error: nothing could be measured")


if __name__ == "__main__":
    try:
        main()
    except InfercError as error:
        sys.exit(f"error: {error}")
