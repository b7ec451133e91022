"""The machine and the programs that figures were measured with."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..backends.c import target, toolchain
from .roofline import Roofline

FLAGS = re.compile(r"^(ssse3|avx.*|fma|f16c|amx.*|asimd.*|i8mm|bf16|sve.*)$")  # of those in cpuinfo, what kernels use


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def manifest(roofline: Roofline, threads: Sequence[int]) -> dict[str, Any]:
    """CPU, memory, system, compilers, date, and the limits measured now, for each number of threads.

    Bandwidths are in GB/s (of 1 GiB in large pages), peaks in 10^9 multiply-adds a second.
    """
    cpu, memory = _text("/proc/cpuinfo"), _text("/proc/meminfo")
    words = (_field(cpu, "flags") or _field(cpu, "Features")).split()
    kilobytes = re.match(r"\d+", _field(memory, "MemTotal"))
    model = _field(cpu, "model name") or platform.processor()
    if family := _field(cpu, "cpu family"):
        model += f" (family {family}, model {_field(cpu, 'model')})"
    limits: Mapping[int, Any] = {
        t: {
            "read_gbs": {k: round(v / 1e9, 1) for k, v in roofline.bandwidth(t).items()},
            "gmacs": {p: round((roofline.peak(p, t, 0.2) or 0) / 1e9) for p in roofline.peaks},
        }
        for t in threads
    }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": model,
        "flags": sorted(filter(FLAGS.match, words)),
        "target": target.native().name,
        "cores": os.cpu_count(),
        "memory_gb": round(int(kilobytes.group()) / 1e6, 1) if kilobytes else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "compiler": toolchain.about(toolchain.find_compiler()).splitlines()[0],
        "python": platform.python_version(),
        "limits": limits,
    }


def described(found: Mapping[str, Any]) -> str:
    """A manifest as markdown: a paragraph, and a table of the limits."""
    lines = [f"{found['date']}. {found['cpu']}, {found['cores']} cores, {found['memory_gb']} GB, {found['kernel']}, "
             f"{found['compiler']}, target {found['target']}.", ""]  # fmt: skip
    first = next(iter(found["limits"].values()))
    names = list(first["gmacs"])
    lines += [f"| threads | read GB/s (least–most) | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for threads, limits in found["limits"].items():
        read = limits["read_gbs"]
        peaks = " | ".join(str(v) for v in limits["gmacs"].values())
        lines.append(f"| {threads} | {read['median']} ({read['min']}–{read['max']}) | {peaks} |")
    peers = [f"{name} {peer['commit']} ({peer['flags']})" for name, peer in found.get("peers", {}).items()]
    notes = ["Peaks are in 10^9 multiply-adds a second.", *(["Peers: " + ", ".join(peers) + "."] if peers else [])]
    return "\n".join([*lines, "", *notes])
