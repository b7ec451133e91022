"""Speed of compiled models: compile time and memory, time to the first token, prompt and generation tokens/s.

    python benchmarks/models.py smollm2 gemma3-270m --threads 1 2 --prompt 512 --tokens 64 --runs 5

Every figure is the median of the runs with the least and the most; thread counts take turns within a run, so that a
drift of the machine hits them alike. Prints a markdown table, and JSON with `--json FILE`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from inferc.runtime.model import Model, load


def compiled(model: str, folder: Path) -> tuple[Path, dict[str, float]]:
    """Compiles in a fresh process: the artifact, seconds, and the process's peak memory in MB."""
    output = folder / f"{Path(model).stem}.inferc"
    code = (
        "import resource, sys; from pathlib import Path; from inferc.compiler.driver import compile_model; "
        "report = compile_model(sys.argv[1], Path(sys.argv[2])); "
        "print(report.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    started = time.monotonic()
    command = [sys.executable, "-c", code, model, str(output)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    _, peak = answer.stdout.split()
    return output, {"compile_seconds": time.monotonic() - started, "compile_peak_mb": float(peak) / 1024,
                    "artifact_mb": output.stat().st_size / 1e6}  # fmt: skip


def first_token(artifact: Path) -> float:
    """Seconds from starting `inferc run` on an artifact to its first token, everything included."""
    command = [sys.executable, "-m", "inferc.compiler", "run", str(artifact), "-p", "The capital of", "-n", "1"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def speeds(model: Model, prompt: int, tokens: int) -> tuple[float, float]:
    """Tokens per second of a prompt of random ids, and of the generation after it."""
    ids = np.random.default_rng(0).integers(3, model.vocab_size, prompt).tolist()
    model.logits([ids[-1] ^ 1])  # so that nothing of the last run is kept
    for _ in model.generate_ids(ids, max_tokens=tokens + 1, ignore_eos=True):
        pass
    timings = model.timings
    return timings.prompt_tokens / timings.prompt_seconds, timings.tokens / timings.seconds


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def shown(values: dict[str, float], digits: int = 0) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}–{values['max']:.{digits}f})"


def machine() -> dict[str, str | int | None]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "system": platform.platform()}


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict:
    artifact, facts = compiled(name, folder)
    first = [first_token(artifact) for _ in range(arguments.runs)]
    result: dict = {"model": name, **facts, "first_token_seconds": spread(first)}
    models = {threads: load(artifact, threads) for threads in arguments.threads}
    seen: dict[int, list[tuple[float, float]]] = {threads: [] for threads in models}
    for _ in range(arguments.runs + 1):
        for threads, model in models.items():
            seen[threads].append(speeds(model, arguments.prompt, arguments.tokens))
    for threads, model in models.items():
        prompts, generations = zip(*seen[threads][1:])  # the first run warms up
        result[f"threads_{threads}"] = {"prompt": spread(list(prompts)), "generation": spread(list(generations))}
        model.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(name, arguments, Path(folder)) for name in arguments.models]
    print(f"{machine()}\n")
    columns = f"prompt {arguments.prompt}, tokens/s | generation {arguments.tokens}, tokens/s"
    print(f"| model | threads | {columns} |\n|---|---|---|---|")
    for result in results:
        for threads in arguments.threads:
            row = result[f"threads_{threads}"]
            print(f"| {result['model']} | {threads} | {shown(row['prompt'])} | {shown(row['generation'], 1)} |")
    print("\n| model | compile s | peak MB | artifact MB | first token s |\n|---|---|---|---|---|")
    for result in results:
        print(f"| {result['model']} | {result['compile_seconds']:.1f} | {result['compile_peak_mb']:.0f} | "
              f"{result['artifact_mb']:.0f} | {shown(result['first_token_seconds'], 2)} |")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
