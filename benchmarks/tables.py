"""Benchmark results as markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
COLUMNS = (
    "model", "backend", "test", "n_prompt", "n_gen", "n_depth", "batch", "threads", "unit", "tokens_per_second",
    "tokens_per_second_min", "tokens_per_second_max", "peak_memory_bytes", "load_seconds", "first_token_seconds",
    "artifact_bytes", "joules_per_token", "limit", "fraction",
)  # fmt: skip


def as_json(results: Mapping[str, Any]) -> str:
    """Everything."""
    return json.dumps(results, indent=1) + "\n"


def as_csv(results: Mapping[str, Any]) -> str:
    """The rows, and one for each thing left out, whose reason is the last column."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*COLUMNS, "left_out"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["rows"])
    writer.writerows({**line, "left_out": line["reason"]} for line in results["left_out"])
    return out.getvalue()


def as_markdown(results: Mapping[str, Any]) -> str:
    """The machine, a table of speeds, one of memory and starts, what was left out, and the commands."""
    from .machine import described

    sections = ["# Benchmarks", described(results["machine"]), speeds(results["rows"])]
    if any(row["joules_per_token"] is not None for row in results["rows"]):
        sections.append(_energy(results["rows"]))
    sections += [costs(results["rows"], results["compiled"])]
    if results["left_out"]:
        lines = [f"- {x['model']}, {x['backend']}, {x['test']}: {x['reason']}" for x in results["left_out"]]
        sections.append("## Left out\n\n" + "\n".join(lines))
    sections.append("## Commands")
    for about, text in commands(results):
        sections += [about, "\n".join(f"    {line}" for line in text.splitlines())]
    return "\n\n".join(sections) + "\n"


def commands(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what it is, command lines): the one that measured all, then those of engines that are programs, by test."""
    found = [("All of this is one run of:", results["command"])]
    for name, facts in results["engines"].items():
        if own := facts.get("commands"):
            about = f"{name} was run by it, with each MODEL and number of threads N, as:"
            found.append((about, "\n".join(own.values())))
    return found


def without_commands(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What else is known of an engine."""
    return {name: value for name, value in facts.items() if name != "commands"}


def speeds(rows: Sequence[Row]) -> str:
    """One line for each model, test and number of threads: every backend's median with the least and the most, the
    first one's ratio to each other, and its part of the limit."""
    if not rows:
        return "Nothing was measured."
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    first, *others = backends
    heads = [*backends, *(f"{first} × {other}" for other in others), "limit", f"{first} of limit", "of AMX"]
    lines = ["Tokens (of functions, calls) per second: median (least–most).", "",
             f"| model | test | threads | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]  # fmt: skip
    for key in dict.fromkeys((row["model"], row["test"], row["threads"]) for row in rows):
        here = {row["backend"]: row for row in rows if (row["model"], row["test"], row["threads"]) == key}
        mine = here.get(first)
        cells = [_speed(here.get(backend)) for backend in backends]
        cells += [_ratio(mine, here.get(other)) for other in others]
        any_row = next(iter(here.values()))
        cells.append(f"{any_row['limit']:.1f}" if "limit" in any_row else "–")
        cells += [_percent(mine, "fraction"), _percent(mine, "amx_fraction")]
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed(row: Row | None) -> str:
    if row is None:
        return "–"
    digits = 0 if row["tokens_per_second"] >= 100 else 1 if row["tokens_per_second"] >= 1 else 3
    least, most = row["tokens_per_second_min"], row["tokens_per_second_max"]
    return f"{row['tokens_per_second']:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


def _ratio(mine: Row | None, other: Row | None) -> str:
    both = mine and other
    return f"{mine['tokens_per_second'] / other['tokens_per_second']:.2f}" if both and mine and other else "–"


def _percent(row: Row | None, name: str) -> str:
    return f"{100 * row[name]:.0f} %" if row and name in row else "–"


def costs(rows: Sequence[Row], compiled: Sequence[Mapping[str, Any]]) -> str:
    """What a backend costs beside time: memory, starts, sizes."""
    lines = ["## Memory and starts", "",
             "| model | backend | threads | peak memory MB | load s | load and first token s | file MB | compile s |",
             "|---" * 8 + "|"]  # fmt: skip
    took = {(c["model"], c["backend"]): c["compile_seconds"] for c in compiled}
    for key in dict.fromkeys((row["model"], row["backend"], row["threads"]) for row in rows):
        here = [row for row in rows if (row["model"], row["backend"], row["threads"]) == key]
        peak = max(row["peak_memory_bytes"] for row in here) / 1e6
        size = here[0]["artifact_bytes"]
        cells = [f"{peak:.0f}", _seconds(here[0]["load_seconds"]), _seconds(here[0]["first_token_seconds"]),
                 "–" if size is None else f"{size / 1e6:.1f}", _seconds(took.get(key[:2]))]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _energy(rows: Sequence[Row]) -> str:
    lines = ["## Energy", "", "| model | backend | test | threads | joules a token |", "|---" * 5 + "|"]
    for row in rows:
        if row["joules_per_token"] is not None:
            lines.append(f"| {row['model']} | {row['backend']} | {row['test']} | {row['threads']} | "
                         f"{row['joules_per_token']:.3f} |")  # fmt: skip
    return "\n".join(lines)
