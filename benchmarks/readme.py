"""Writes the README's figures from the JSON of a run, so that none is typed by hand.

    python benchmarks/readme.py [--bench DATE-bench.json] [--quality DATE-quality.json]

The README has them between marks that name their file in `benchmarks/results/`; without an option the marks' own files
are read again. `tests/test_readme.py` fails where a mark's file says otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
MARK = re.compile(r"<!-- (bench|quality) of (\S+) -->\n(.*?)<!-- end of \1 -->\n", re.DOTALL)


def rewritten(readme: str, files: Mapping[str, str] | None = None) -> str:
    """The README with every marked part made anew, from other files of results where `files` names one by kind.

    Raises OSError for a file that is not there, ValueError where the README has no such mark.
    """
    chosen, found = files or {}, set[str]()

    def part(mark: re.Match[str]) -> str:
        kind, name = mark[1], chosen.get(mark[1], mark[2])
        found.add(kind)
        made = PARTS[kind](json.loads((RESULTS / name).read_text("utf-8")), name.removesuffix(".json"))
        return f"<!-- {kind} of {name} -->\n{made}\n<!-- end of {kind} -->\n"

    text = MARK.sub(part, readme)
    if missing := set(chosen) - found:
        raise ValueError(f"the README has no mark for {', '.join(sorted(missing))}")
    return text


def bench(results: Mapping[str, Any], name: str) -> str:
    """Where the figures come from, a table of speeds, one of starts and memory; of the most threads alone."""
    machine, threads = results["machine"], max(row["threads"] for row in results["rows"])
    rows = [row for row in results["rows"] if row["threads"] == threads]
    models, backends = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "backend"))
    peers = [b for b in backends if b != "c"]
    folder, rounds = "benchmarks/results", results["rounds"]
    about = (
        f"{threads} thread{'s' * (threads > 1)} on {machine['cores']} cores of {machine['cpu']}, {machine['date']}, "
        f"engines interleaved in one run of `inferc bench`, medians of {rounds} round{'s' * (rounds > 1)} "
        f"([tables and command]({folder}/{name}.md), [page]({folder}/{name}.html), [JSON]({folder}/{name}.json), "
        "[how each figure is measured](docs/bench.md)). Tokens per second:"
    )
    ratios = [f"× {p}" for p in peers]
    speeds = _table(
        ["model", "prompt", *ratios, "of peak", "generation", *ratios, "of bandwidth"],
        [line for model in models for line in _speeds([r for r in rows if r["model"] == model], model, peers)],
    )
    costs = _table(
        ["model", "compile", "opened", "opened, and first token", "peak memory", *(f"of {p}" for p in peers)],
        [_costs(rows, results["compiled"], model, peers) for model in models],
    )
    return f"{_wrapped(about)}\n\n{speeds}\n\n{costs}"


def _speeds(rows: Sequence[Row], model: str, peers: Sequence[str]) -> list[list[str]]:
    """A line for each depth: the prompt, and the generation of one sequence."""
    lines = []
    for depth in sorted({row["n_depth"] for row in rows}):
        here = [row for row in rows if row["n_depth"] == depth and row["batch"] == 1]
        cells = [f"at depth {depth}" if depth else model]
        for kind in ("n_prompt", "n_gen"):
            by = {row["backend"]: row for row in here if row[kind]}
            own = by.get("c")
            cells.append(_number(own["tokens_per_second"]) if own else "")
            cells += [f"{own['tokens_per_second'] / by[p]['tokens_per_second']:.1f}" if own and p in by
                      else "–" if own else "" for p in peers]  # fmt: skip
            cells.append(f"{100 * own['fraction']:.0f} %" if own and "fraction" in own else "–" if own else "")
        lines.append(cells)
    return lines


def _costs(rows: Sequence[Row], compiled: Sequence[Row], model: str, peers: Sequence[str]) -> list[str]:
    def of(backend: str) -> list[Row]:
        return [row for row in rows if (row["model"], row["backend"]) == (model, backend)]

    def memory(backend: str) -> str:
        found = [row["peak_memory_bytes"] for row in of(backend)]
        return f"{max(found) / 1e6:.0f} MB" if found else "–"

    own = of("c")[0]
    took = next(c["compile_seconds"] for c in compiled if (c["model"], c["backend"]) == (model, "c"))
    starts = [f"{1e3 * own[key]:.0f} ms" for key in ("load_seconds", "first_token_seconds")]
    return [model, f"{took:.1f} s", *starts, memory("c"), *map(memory, peers)]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(r)} |" for r in rows)])


def quality(results: Sequence[Mapping[str, Any]], name: str) -> str:
    """Perplexity beside llama.cpp's, and the divergence beside that of plain rounding."""
    rows = []
    for found in results:
        own = found["engines"]["compiled"]
        theirs = found.get("llama_cpp")
        rows.append([found["model"], f"{own['perplexity']:.3f}", f"{theirs:.3f}" if theirs else "–",
                     f"{found['kl_ratio']:.2f} ± {found['kl_ratio_error']:.2f}",
                     f"{100 * own['top_1']:.1f} %"])  # fmt: skip
    table = _table(["model", "perplexity", "llama.cpp's", "divergence ÷ plain rounding's", "top-1 as in f32"], rows)
    windows = " and ".join(dict.fromkeys(f"{f['windows']} windows of {f['window']} tokens" for f in results))
    about = (
        f"Quality, over {windows} ([JSON](benchmarks/results/{name}.json), by "
        "`python benchmarks/quality.py MODEL...`): perplexity as llama.cpp defines it, and the divergence from f32 "
        "activations over that of plain rounding in groups of 32:"
    )
    return f"{_wrapped(about)}\n\n{table}"


PARTS: Mapping[str, Callable[[Any, str], str]] = {"bench": bench, "quality": quality}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in PARTS:
        parser.add_argument(f"--{kind}", help=f"a file in {RESULTS.name}/, in place of the one that the README names")
    given = {kind: name for kind, name in vars(parser.parse_args()).items() if name}
    path = ROOT / "README.md"
    try:
        text = rewritten(path.read_text("utf-8"), {kind: Path(name).name for kind, name in given.items()})
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")
    partial = path.with_suffix(".md.part")
    partial.write_text(text, "utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
