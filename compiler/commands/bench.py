"""`inferc bench`: compiled models and other engines, side by side in one run."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import InfercError
from .options import KV, Dim, note, progress_bars, sizes
from .verify import words, write

FORMATS = ("md", "csv", "json", "html")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(bench)


def bench(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[=TEST,...]...", help="Models, perhaps with tests: `pp512,tg64@4096`."),
    ],
    backends: Annotated[
        str,
        typer.Option(help="Of `c`, `xla`, `llama.cpp`, `ik_llama.cpp`, `llama-cpp-python`, `jax`, `torch`, "
                     "`torch.compile`, `aotinductor`, `onnxruntime`, `openvino`, `iree`."),  # fmt: skip
    ] = "c,xla,llama.cpp",
    prompt: Annotated[str, typer.Option("--prompt-tokens", "-p", help="Tokens of prompts.")] = "512",
    generate: Annotated[str, typer.Option("--tokens", "-n", help="Tokens generated.")] = "128",
    depth: Annotated[str, typer.Option("--depth", "-d", help="Positions in the cache before.")] = "0",
    batch: Annotated[str, typer.Option("--batch", "-b", help="Sequences generated at once.")] = "1",
    threads: Annotated[str, typer.Option("--threads", "-t", help="Threads; default: the physical cores.")] = "",
    rounds: Annotated[int, typer.Option("--rounds", "-r", min=1, help="Rounds: each runs every test once.")] = 5,
    depth_rounds: Annotated[int, typer.Option(min=1, help="Rounds of tests at a depth, which take long.")] = 2,
    formats: Annotated[str, typer.Option("--format", "-o", help="`md`, `csv`, `json`, `html`, or several.")] = "md",
    output: Annotated[
        Path | None, typer.Option("--output", help="The file to write; with several formats, without its suffix.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="NAME=PATH", help="Where a program is, e.g. ik_llama.cpp's llama-bench; flags "
                     "may follow the path."),  # fmt: skip
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="NAME:MODEL", help="A backend and a part of a model's name: leave it out."),
    ] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, help="Positions of the cache in C.")] = None,
    dim: Dim = None,
    kv: KV = "f16",
) -> None:
    """Measure models with our backends and other engines, all in every round, beside the machine's limits.

    What cannot be measured here is said with the reason. Nothing else should run on the machine.
    """
    from ...benchmarks import engines, machine, suite, tables
    from ...benchmarks.roofline import Roofline
    from ...benchmarks.tests import Test, grid
    from ...runtime.session import physical_cores
    from .. import hub

    began = time.monotonic()
    chosen = words(formats)
    if unknown := [f for f in chosen if f not in FORMATS]:
        raise InfercError(f"there is no format {unknown[0]!r}: choose of {', '.join(FORMATS)}")
    if len(chosen) > 1 and output is None:
        raise InfercError("several formats need --output, the name of the files without their suffix")
    names = words(backends)
    programs, flags = _peers(peer or [])
    names += [name for name in programs if name not in names]
    try:
        for name in names:
            engines.adapter(name)
        default = tuple(grid(_numbers(prompt), _numbers(generate), _numbers(depth), _numbers(batch)))
        wanted = []
        for text in models:
            model, _, own = text.partition("=")
            wanted.append((model, tuple(map(Test.parse, words(own))) if own else default))
    except ValueError as error:
        raise InfercError(str(error)) from error
    with progress_bars() as progress:
        paths = tuple((hub.pull(model, progress), tests) for model, tests in wanted)
    counts = tuple(_numbers(threads)) or (physical_cores(),)
    skipped = tuple((name, part) for name, _, part in (text.partition(":") for text in skip or []))
    plan = suite.Plan(paths, tuple(names), counts, rounds, depth_rounds, programs, flags, skipped, context, sizes(dim),
                      {"kv": kv})  # fmt: skip
    about = machine.manifest(Roofline(), counts)
    results = suite.run(plan, note)
    about["minutes"] = round((time.monotonic() - began) / 60, 1)
    data = {
        "machine": about, "engines": results.engines, "rows": results.rows, "left_out": results.left_out,
        "compiled": results.compiled, "rounds": rounds, "command": _command(),
    }  # fmt: skip
    if not results.rows:
        note("nothing was measured:")
    for line in results.left_out:
        note(f"left out: {line['model']}, {line['backend']}, {line['test']}: {line['reason']}")
    for form in chosen:
        text = _written(form, data, tables)
        if output is None:
            sys.stdout.write(text)
        else:
            write(output if len(chosen) == 1 else output.with_name(f"{output.name}.{form}"), text)
    if output is not None:
        sys.stdout.write(tables.speeds(results.rows) + "\n")
    if not results.rows:
        raise typer.Exit(1)


def _written(form: str, data: dict[str, Any], tables: Any) -> str:
    if form == "html":
        from ...benchmarks import page

        return page.as_html(data)
    made: str = {"md": tables.as_markdown, "csv": tables.as_csv, "json": tables.as_json}[form](data)
    return made


def _numbers(text: str) -> list[int]:
    """Whole numbers with commas between them. Raises InfercError."""
    try:
        return [int(word) for word in words(text)]
    except ValueError as error:
        raise InfercError(f"{text!r} is no list of numbers: write them with commas, as in 1,2") from error


def _peers(given: list[str]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Programs and flags by backend."""
    programs: dict[str, str] = {}
    flags: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, _, rest = text.partition("=")
        path, *own = shlex.split(rest) or [""]
        if not path or not shutil.which(path):
            raise InfercError(f"--peer {text}: give NAME=PATH of a program that can be run")
        programs[name] = path
        flags |= {name: tuple(own)} if own else {}
    return programs, flags


def _command() -> str:
    """The command line as given, with files by name alone: the page is for others."""
    parts = []
    for word in sys.argv[1:]:
        name, mark, rest = word.partition("=")
        plain = [Path(p).name if "/" in p else p for p in (name, rest)]
        parts.append(shlex.quote(plain[0] + mark + plain[1]))
    return " ".join(["inferc", *parts])
