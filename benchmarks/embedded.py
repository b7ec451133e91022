"""Start and first token of small programs: seconds of wall time from exec to exit, medians of runs in turns.

    python benchmarks/embedded.py NAME="COMMAND" …

Each command makes one token (warm: its files are in memory). Prints a markdown table.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
import time

ROUNDS = 15


def seconds(command: list[str]) -> float:
    """Wall time of one run. Raises CalledProcessError where it fails."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(arguments: list[str]) -> None:
    commands = {name: shlex.split(command) for name, _, command in (a.partition("=") for a in arguments)}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(seconds(command))
    print("| program | median ms | least ms |\n|---|---|---|")
    for name, found in times.items():
        print(f"| {name} | {1000 * statistics.median(found):.1f} | {1000 * min(found):.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
