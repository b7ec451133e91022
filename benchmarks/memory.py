"""The memory of a process and of all that it starts, sampled from Linux's /proc while they run.

    python benchmarks/memory.py COMMAND...
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PERIOD = 0.01  # seconds between samples, beside what one takes
PROC = Path("/proc")


@dataclass
class Peak:
    """The most bytes seen. Mapped pages of files count, pages that are in the page cache alone do not.

    `tree` is the sum over all programs that run of their resident sets: an upper limit, as pages that several map count
    for each; `shared` the same sum with such pages divided among all that map them, on the whole machine (PSS).
    `processes` has the largest resident set of any process by its name (`VmHWM`, what `/usr/bin/time -v` gives).
    """

    tree: int = 0
    shared: int = 0
    processes: dict[str, int] = field(default_factory=dict)


def tree(root: int) -> Iterator[int]:
    """The ids of a process and of its descendants that live now."""
    waiting = [root]
    while waiting:
        yield (process := waiting.pop())
        try:
            for children in PROC.glob(f"{process}/task/*/children"):
                waiting += map(int, children.read_text().split())
        except OSError:  # it has ended, or a thread of it: the next sample sees what the other ones started
            pass


def _fields(path: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)


def _bytes(fields: Mapping[str, str], name: str) -> int:
    return int(fields[name].split()[0]) * 1024


def sample(root: int, peak: Peak) -> None:
    """Raises what `peak` has to what a process and its descendants hold now."""
    resident = shared = 0
    commands = set()
    for process in tree(root):
        try:
            command = (PROC / str(process) / "cmdline").read_bytes()
            if command in commands:  # a child that is no program of its own yet has its parent's memory
                continue
            commands.add(command)
            status, sums = (_fields(PROC / str(process) / name) for name in ("status", "smaps_rollup"))
            resident, shared = resident + _bytes(sums, "Rss"), shared + _bytes(sums, "Pss")
            name = status["Name"].strip()
            peak.processes[name] = max(peak.processes.get(name, 0), _bytes(status, "VmHWM"))
        except (OSError, KeyError):  # it has ended, or not begun
            pass
    peak.tree, peak.shared = max(peak.tree, resident), max(peak.shared, shared)


def peak_of(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> Peak:
    """Runs a command to its end. Raises CalledProcessError where it fails, with what it wrote."""
    peak = Peak()
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
    ):
        while process.poll() is None:
            sample(process.pid, peak)
            time.sleep(PERIOD)
        if process.returncode:
            output.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, output.read())
    return peak


if __name__ == "__main__":
    found = peak_of(sys.argv[1:])
    print(f"all processes {found.tree / 1e6:.0f} MB, with shared pages divided {found.shared / 1e6:.0f}; the largest:")
    print(*(f"{name} {size / 1e6:.0f} MB" for name, size in found.processes.items()), sep=", ")
