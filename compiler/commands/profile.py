"""`inferc profile`: where the time of a compiled model goes, by op, layer and thread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ...errors import InfercError
from .options import KV, Context, ModelName, Target, Threads, progress_bars
from .verify import write

if TYPE_CHECKING:
    from ..profiling.report import Phase


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(profile)


def profile(
    name: ModelName,
    prompt: Annotated[int, typer.Option("--prompt-tokens", "-p", min=0, help="Tokens of a prompt.")] = 128,
    generate: Annotated[int, typer.Option("--tokens", "-n", min=0, help="Tokens generated one by one.")] = 32,
    depth: Annotated[int, typer.Option("--depth", "-d", min=0, help="Positions in the cache before that.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Ops to show of each phase.")] = 15,
    layers: Annotated[bool, typer.Option("--layers", help="Show the time of every layer.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a flame chart: a page that needs nothing else.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write a trace for chrome://tracing or Perfetto.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    threads: Threads = None,
    target: Target = "native",
    context: Context = None,
    kv: KV = "f16",
) -> None:
    """Measure every op of a model in C: its program is compiled once more with a clock around each call."""
    from ..cache import compiled
    from ..profiling import measure, report

    if not prompt and not generate:
        raise InfercError("nothing to measure: give -p, -n or both")
    with progress_bars() as progress:
        path = compiled(name, progress, target=target, context=context, kv=kv)
    forced = target not in ("native", "portable") and "," not in target
    measured = measure.measure(path, prompt=prompt, generate=generate, depth=depth, threads=threads,
                               target=target if forced else None)  # fmt: skip
    limits = report.limits_of(measured)
    phases = report.phases(measured, limits)
    title = f"{measured.name}, {measured.target.name}, {measured.threads} threads"
    if html:
        write(html, report.flame(phases, title))
    if trace:
        write(trace, json.dumps(report.trace(measured)))
    if output:
        facts = {"model": measured.name, "target": measured.target.name, "threads": measured.threads, "depth": depth,
                 "limits": limits, "phases": [phase.data() for phase in phases]}  # fmt: skip
        write(output, json.dumps(facts, indent=1) + "\n")
    console = Console(highlight=False, width=160)
    read, *peaks = (f"{name} {value / 1e9:.1f}" for name, value in limits.items())
    console.print(f"{title}. Limits now: {read} GB/s; 10^9 multiply-adds a second: {', '.join(peaks)}")
    for phase in phases:
        show(console, phase, rows, layers)


def show(console: Console, phase: Phase, most: int, layers: bool) -> None:
    """Prints the tables of one phase."""
    speed, plain = phase.tokens / phase.seconds, phase.tokens / phase.plain_seconds
    console.print(f"\n{phase.name}: {phase.tokens} tokens, {speed:.1f} a second ({plain:.1f} without observers)")
    table = Table("op", "where", "calls", "ms", "%", "GB/s", "GMAC/s", "of limit", "regions", "waited ms", box=SIMPLE)
    total = sum(row.seconds for row in phase.ops.values())
    ordered = sorted(phase.ops.items(), key=lambda item: -item[1].seconds)
    for (op, origin), row in ordered[:most]:
        d = row.data()
        table.add_row(op, origin, str(row.calls), f"{row.seconds * 1e3:.2f}", f"{100 * row.seconds / total:.1f}",
                      f"{d['bytes_per_second'] / 1e9:.1f}", f"{d['macs_per_second'] / 1e9:.0f}",
                      f"{100 * d['of_limit']:.0f} %", str(row.regions), f"{row.waited * 1e3:.2f}")  # fmt: skip
    if rest := ordered[most:]:
        seconds = sum(row.seconds for _, row in rest)
        table.add_row(f"{len(rest)} more", "", "", f"{seconds * 1e3:.2f}", f"{100 * seconds / total:.1f}")
    beside = max(phase.seconds - total, 0)
    table.add_row("between ops", "", "", f"{beside * 1e3:.2f}")
    console.print(table)
    if layers:
        by_layer = Table("layer", "ms", "%", "GB/s", "GMAC/s", "of limit", "waited ms", box=SIMPLE)
        for name, row in phase.layers.items():
            d = row.data()
            by_layer.add_row(name, f"{row.seconds * 1e3:.2f}", f"{100 * row.seconds / total:.1f}",
                             f"{d['bytes_per_second'] / 1e9:.1f}", f"{d['macs_per_second'] / 1e9:.0f}",
                             f"{100 * d['of_limit']:.0f} %", f"{row.waited * 1e3:.2f}")  # fmt: skip
        console.print(by_layer)
    if phase.threads:
        shares = ", ".join(f"thread {n}: {t.busy * 1e3:.2f} ms busy, {t.waited * 1e3:.2f} waited, {t.pieces} pieces"
                           for n, t in sorted(phase.threads.items()))  # fmt: skip
        console.print(f"{phase.barriers} barriers, {phase.in_regions * 1e3:.2f} ms in parallel regions. {shares}")
