"""Benchmark rows as a markdown table and a roofline plot."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def table(rows: Sequence[Row], ours: str) -> str:
    """One line for each model, test and number of threads: each engine's speed, our ratios, our part of the limit."""
    engines = list(dict.fromkeys(row["backend"] for row in rows))
    peers = [engine for engine in engines if engine != ours]
    heads = [*engines, *(f"× {peer}" for peer in peers), "limit", "of limit", "of AMX"]
    lines = ["Tokens per second: median (least–most).", "", f"| model | test | threads | {' | '.join(heads)} |",
             "|---" * (3 + len(heads)) + "|"]  # fmt: skip
    for key in dict.fromkeys((row["model"], row["test"], row["threads"]) for row in rows):
        here = {row["backend"]: row for row in rows if (row["model"], row["test"], row["threads"]) == key}
        mine = here[ours]
        cells = [_speed(here.get(engine)) for engine in engines]
        cells += [_ratio(mine, here.get(peer)) for peer in peers]
        cells.append(f"{mine['limit']:.1f}" if "limit" in mine else "–")
        cells += [_percent(mine, "fraction"), _percent(mine, "amx_fraction")]
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed(row: Row | None) -> str:
    if row is None:
        return "–"
    digits = 0 if row["tokens_per_second"] >= 100 else 1
    return f"{row['tokens_per_second']:.{digits}f} ({row['min']:.{digits}f}–{row['max']:.{digits}f})"


def _ratio(mine: Row, other: Row | None) -> str:
    return "–" if other is None else f"{mine['tokens_per_second'] / other['tokens_per_second']:.2f}"


def _percent(row: Row, name: str) -> str:
    return f"{100 * row[name]:.0f} %" if name in row else "–"


def plot(rows: Sequence[Row], machine: Mapping[str, Any], path: Path) -> None:
    """Roofline of the most threads: multiply-adds a second over multiply-adds per byte of memory, logarithmic.

    A prompt reads the weights once for all its tokens. Without matplotlib (the extra `bench`) a line says so.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{path} was not drawn: `pip install inferc[bench]` for matplotlib", file=sys.stderr)
        return
    threads = max(machine["limits"])
    limits = machine["limits"][threads]
    bandwidth = limits["read_gbs"]["median"]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds per byte", ylabel="10⁹ multiply-adds per second",
             title=f"{machine['cpu']}, {threads} threads, {machine['date']}")  # fmt: skip
    reach = [0.3, 3000.0]
    for name, peak in limits["gmacs"].items():
        knee = peak / bandwidth
        axes.plot([knee, reach[1]], [peak, peak], color="gray", linewidth=1)
        axes.annotate(name, (reach[1], peak), ha="right", va="bottom", fontsize=8, color="gray")
    top = max(limits["gmacs"].values()) / bandwidth
    axes.plot([reach[0], top], [reach[0] * bandwidth, top * bandwidth], color="gray", linewidth=1)
    axes.annotate(f"read {bandwidth} GB/s", (reach[0], reach[0] * bandwidth), va="bottom", fontsize=8, color="gray")
    models = list(dict.fromkeys(row["model"] for row in rows))
    engines = list(dict.fromkeys(row["backend"] for row in rows))
    shown = [row for row in rows if row["threads"] == threads and "limit" in row]
    bytes_of = {row["model"]: row["bytes_per_token"] for row in shown if row["n_gen"] and not row["n_depth"]}
    for row in shown:
        size = row.get("bytes_per_token") or bytes_of.get(row["model"], 0) / row["n_prompt"]
        if not size:
            continue
        at = row["macs_per_token"] / size, row["macs_per_token"] * row["tokens_per_second"] / 1e9
        axes.plot(*at, marker="os^Dv"[engines.index(row["backend"]) % 5], color=f"C{models.index(row['model']) % 10}",
                  linestyle="", markersize=6)  # fmt: skip
    for i, model in enumerate(models):
        axes.plot([], [], linewidth=5, color=f"C{i % 10}", label=model)
    for i, engine in enumerate(engines):
        axes.plot([], [], marker="os^Dv"[i % 5], linestyle="", color="black", label=engine)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path)
