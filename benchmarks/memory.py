"""The memory of a process and all that it starts, sampled from Linux's /proc while it runs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PERIOD = 0.01  # seconds between samples, and what one takes comes on top
PROC = Path("/proc")


@dataclass
class Peak:
    """Most bytes that were seen. `tree` is the sum over the processes of their proportional sets (PSS: a page that
    several map counts for each as its share), `at_peak` its parts by process, `process` the most of any one's resident
    set with shared pages whole, as `/usr/bin/time -v` gives. Mapped pages of files count in all of them, pages that are
    in the page cache alone in none. `seconds` is the time from start to end."""

    tree: int = 0
    at_peak: dict[str, int] = field(default_factory=dict)
    process: int = 0
    seconds: float = 0.0
    output: str = ""


def tree(root: int) -> Iterator[int]:
    """The ids of a process and its descendants that live now."""
    waiting = [root]
    while waiting:
        yield (process := waiting.pop())
        for children in PROC.glob(f"{process}/task/*/children"):
            try:
                waiting += map(int, children.read_text().split())
            except OSError:  # the thread ended
                pass


def shares(root: int) -> dict[str, int]:
    """PSS in bytes of each process of a tree, by "name pid"."""
    found = {}
    for process in tree(root):
        try:
            name = (PROC / str(process) / "comm").read_text().strip()
            lines = (PROC / str(process) / "smaps_rollup").read_text().splitlines()
        except OSError:  # it ended
            continue
        found[f"{name} {process}"] = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return found


def peak_of(command: Sequence[str]) -> Peak:
    """Runs a command to its end. Raises CalledProcessError where it fails, with what it wrote."""
    peak, started = Peak(), time.monotonic()
    with tempfile.TemporaryFile("w+") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        while process.poll() is None:
            now = shares(process.pid)
            if sum(now.values()) > peak.tree:
                peak.tree, peak.at_peak = sum(now.values()), now
            time.sleep(PERIOD)
        peak.seconds = time.monotonic() - started
        output.seek(0)
        peak.output = output.read()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, peak.output)
    return peak


if __name__ == "__main__":
    found = peak_of(sys.argv[1:])
    print(found.output, end="")
    print(f"tree {found.tree / 1e6:.0f} MB after all {found.seconds:.2f} s", {k: v >> 20 for k, v in found.at_peak.items()})
