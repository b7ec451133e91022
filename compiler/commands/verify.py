"""`inferc verify`: every backend on the same text, compared, with the first op where two part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ...errors import InfercError
from .options import KV, Dim, ModelName, Threads, note, progress_bars, sizes

if TYPE_CHECKING:
    from ..verification.report import Report


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(verify)


def verify(
    name: ModelName,
    backends: Annotated[
        str, typer.Option(help="Of `reference` (JAX in f32), `interpreter` (the IR's meaning), `c` and `xla`.")
    ] = "reference,interpreter,c,xla",
    targets: Annotated[
        str,
        typer.Option(help="C targets, by target (`avx2`) or platform (`x86-64-v3`, `aarch64-linux`); `all` is every "
                     "one that this machine runs, with qemu and node too."),  # fmt: skip
    ] = "native",
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Compare the result of every layer.")] = False,
    tokenizer: Annotated[bool, typer.Option("--tokenizer", help="Check that the tokenizer gives texts back.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="C must have the same bits on all targets, and the interpreter's.")
    ] = False,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A UTF-8 text; default: one of our own.")] = None,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=2, max=512, help="Tokens of the text.")] = 64,
    kl: Annotated[float, typer.Option(help="Most mean KL divergence allowed, in nats.", min=0)] = 0.05,
    top_1: Annotated[float, typer.Option("--top-1", help="Least agreement about the likeliest token.", min=0)] = 0.8,
    norm: Annotated[float, typer.Option(help="Most difference of a function, of the norm.", min=0)] = 0.01,
    dim: Dim = None,
    threads: Threads = None,
    kv: KV = "f16",
    output: Annotated[Path | None, typer.Option("--json", help="Write what was found to this file.")] = None,
) -> None:
    """Compare backends on the same text: per layer and at the logits, down to the first op that differs.

    The exit code is 1 where a bound is missed.
    """
    from .. import hub
    from ..frontends import open_source
    from ..verification.report import Wanted
    from ..verification.text import TEXT
    from ..verification.verify import verify as compared

    with progress_bars() as progress:
        source = open_source(hub.pull(name, progress))
    wanted = Wanted(
        tuple(words(backends)), tuple(words(targets)), read_text(file) if file else TEXT, tokens, per_layer, tokenizer,
        exact, kl, norm, top_1, kv, threads, sizes(dim),
    )  # fmt: skip
    report = compared(source, wanted, note)
    show(report, exact)
    if output:
        write(output, json.dumps(report.data(), indent=1) + "\n")
    if not report.ok:
        raise typer.Exit(1)


def words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises InfercError."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InfercError(f"cannot read {path} as UTF-8 text: {error}") from error


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises InfercError."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InfercError(f"cannot write {path}: {error.strerror}") from error


def show(report: Report, exact: bool) -> None:
    """Prints tables for people."""
    console = Console(highlight=False, width=160)
    table = Table("run", "against", "bits", "max abs", "max rel", "norm", "KL mean", "KL max", "top-1", box=SIMPLE)
    for run in report.runs:
        d, a = run.difference, run.agreement
        numbers = [f"{x:.3g}" for x in (d.max_abs, d.max_rel, d.norm_rel, *((a.kl_mean, a.kl_max) if a else ()))]
        numbers += [f"{a.top_1:.1%}"] if a else []
        table.add_row(run.name, run.against, "equal" if d.equal else "differ", *numbers)
    console.print(table)
    names = list(report.runs[0].difference.ulps) if report.runs else []
    ulps = Table("% by ulps apart", *names, box=SIMPLE)
    for run in report.runs:
        total = max(sum(run.difference.ulps.values()), 1)
        shares = (f"{100 * n / total:.3g}" for n in run.difference.ulps.values())
        ulps.add_row(f"{run.name} / {run.against}", *shares)
    console.print(ulps)
    if found := [run for run in report.runs if run.layers]:
        layers = Table("layer, max abs (norm)", *(f"{run.name} / {run.against}" for run in found), box=SIMPLE)
        for rows in zip(*(run.layers for run in found)):
            cells = ("equal" if r["equal"] else f"{r['max_abs']:.3g} ({r['norm_rel']:.3g})" for r in rows)
            layers.add_row(rows[0]["layer"], *cells)
        console.print(layers)
    for run in report.runs:
        for line in run.lines:
            console.print(line if line.startswith(" ") else f"{run.name}: {line}", soft_wrap=True)
    for what, reason in report.left_out.items():
        console.print(f"{what} was left out: {reason}")
    if report.tokenizer is not None:
        failures = report.tokenizer["failures"]
        console.print(f"tokenizer: {report.tokenizer['texts']} texts, {len(failures)} failures")
        for failure in failures:
            console.print(f"  {failure}")
    for run in report.runs:
        for failure in run.failures:
            console.print(f"{run.name}: {failure}", soft_wrap=True)
    verdict = "as it should be" if report.ok else "FAILED"
    what = f"{report.model}, {report.tokens} tokens" if report.tokens else report.model
    console.print(f"{what}: {verdict}{', to the bit' if exact and report.ok else ''}")
