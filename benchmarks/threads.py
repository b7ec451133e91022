"""What the thread pool costs: small regions, an idle pool, and work while another process keeps a core busy.

    python benchmarks/threads.py [--threads 1,2] [--json FILE]

Prints a table. The cost of a region is what it takes longer than its pieces do on one thread, here 2 us of work for
each thread, as one piece or as 16. Then, for regions of about 50 us on one thread: the speedup over one thread alone,
undisturbed and while a process spins on one of the cores. No cliff: that one stays at threads - 1, or 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inferc.backends.c.toolchain import find_compiler

SOURCE = Path(__file__).with_name("threads.c")
RUNTIME = SOURCE.parent.parent / "runtime/c"
ROUNDS, MILLISECONDS, PIECES, STEPS, SMALL = 5, 100, 64, 1000, 125
SPIN = "import os\nos.sched_setaffinity(0, {%d})\nprint(flush=True)\nwhile True: pass"


def build(folder: Path, headers: Path = RUNTIME) -> Path:
    """The compiled benchmark of the pool in `headers`."""
    output = folder / "threads"
    flags = ["-std=c11", "-O3", "-I", str(headers)]
    subprocess.run([*find_compiler(), *flags, str(SOURCE), "-o", str(output), "-pthread"], check=True)
    return output


def measure(program: Path, threads: int, pieces: int, steps: int, pin: bool = False) -> tuple[float, float]:
    """Nanoseconds a region (the median of some runs) and the CPU seconds of 0.3 s of idleness (the most)."""
    command = [str(program), *map(str, (threads, pieces, steps, MILLISECONDS, int(pin)))]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(ROUNDS)]
    return statistics.median(float(r[0]) for r in runs), max(float(r[1]) for r in runs)


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process that spins on the last core that this one may use."""
    spinning = subprocess.Popen([sys.executable, "-c", SPIN % max(os.sched_getaffinity(0))], stdout=subprocess.PIPE)
    try:
        assert spinning.stdout is not None
        spinning.stdout.readline()
        yield
    finally:
        spinning.kill()
        spinning.communicate()


def table(program: Path, counts: list[int]) -> list[dict[str, float]]:
    """One row for each number of threads."""
    alone, rows = 0.0, []
    for threads in counts:
        piece, _ = measure(program, 1, 1, 16 * SMALL)
        one, idle = measure(program, threads, threads, 16 * SMALL)
        many, _ = measure(program, threads, 16 * threads, SMALL)
        work, _ = measure(program, threads, PIECES, STEPS)
        with busy_core():
            disturbed, _ = measure(program, threads, PIECES, STEPS)
        alone = alone or work * threads
        rows.append({
            "threads": threads, "region_ns": one - piece, "region_16_ns": many - piece, "idle_cpu_seconds": idle,
            "speedup": alone / work, "speedup_busy": alone / disturbed,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = ",".join(map(str, range(1, len(os.sched_getaffinity(0)) + 1)))
    parser.add_argument("--threads", default=default, help="numbers with commas between them, 1 first")
    parser.add_argument("--headers", type=Path, default=RUNTIME, help="the folder of another parallel.h")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferc-threads-") as folder:
        rows = table(build(Path(folder), args.headers), [int(n) for n in args.threads.split(",")])
    print("| threads | cost of a region | of 16 pieces a thread | idle CPU in 0.3 s | speedup | one core busy |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        costs = f"{r['region_ns']:.0f} ns | {r['region_16_ns']:.0f} ns | {r['idle_cpu_seconds']:.4f} s"
        print(f"| {r['threads']} | {costs} | {r['speedup']:.2f} | {r['speedup_busy']:.2f} |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
